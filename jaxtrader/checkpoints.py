"""Orbax checkpoints of one agent: the latest two, and the best by validation Sharpe ratio."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from agents.learner import TrainState
from jaxtrader.errors import CheckpointError
from jaxtrader.files import sync, write_whole

FORMAT_VERSION = 3
# Written last of all: a checkpoint is one when it has this list of what its files hold. Orbax alone
# would restore numbers with a bit turned, and end in a flood of tracebacks on files cut short.
_SUMS = "sha256.json"
# A checkpoint is renamed to here before its files go: a kill can cut short the removal of a folder
# but not a rename, and half a checkpoint must not look like a whole one.
_DELETED = ".deleted"
_SPARE_BYTES = 2**20  # what a checkpoint may take beside twice its arrays

# Orbax reports every save at INFO and WARNING, and at ERROR what it raises anyway.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class DamagedCheckpointError(CheckpointError):
    """A checkpoint cannot be read; an earlier one may be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint."""

    update: int
    state: TrainState
    meta: dict[str, Any]


class AgentCheckpoints:
    """The checkpoints of one (symbol, seed), in one folder.

    Each holds a state, its description, and the sha256 of every file of the two: whatever is not
    what was written is damaged, and is not even parsed.
    """

    def __init__(self, folder: Path, keep_best: int = 3, *, read_only: bool = False):
        """Opens or creates `folder`; leftovers of a save or removal that was killed are removed.

        Two latest checkpoints are kept, not one: agents are saved one after the other, so a kill
        between two saves must still leave an update that all of them have.

        Args:
          read_only: leave everything as it is, also what looks left over: another process may be
            saving here.
        """
        self.folder = folder.absolute()
        self._keep_best = keep_best
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else _DELETED,
            enable_async_checkpointing=False,
            create=False,
            read_only=read_only,
            multiprocessing_options=_on_its_own(),
        )
        try:
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_deleted()
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be used for checkpoints ({error}); choose another "
                "--output-dir or free the space"
            ) from error

    def updates(self) -> list[int]:
        """Updates that have a whole checkpoint, in ascending order.

        Raises:
          CheckpointError: there is one of another format.
        """
        return [u for u in sorted(self._manager.all_steps()) if self._is_whole(u)]

    def save(
        self,
        update: int,
        state: TrainState,
        meta: Mapping[str, Any],
        validation_sharpe: float | None,
    ) -> None:
        """Saves `state` as the checkpoint of `update`, complete or not at all.

        Args:
          meta: what else to remember, as JSON can hold it.
          validation_sharpe: of the parameters in it; NaN where it is undefined, None keeps the
            checkpoint from competing for the best.

        Raises:
          CheckpointError: the folder cannot be written (disk full, read-only).
        """
        sharpe = None
        if validation_sharpe is not None and math.isfinite(validation_sharpe):
            sharpe = float(validation_sharpe)  # JSON knows no NaN
        meta = {
            **meta,
            "format_version": FORMAT_VERSION,
            "update": update,
            "competes_for_best": validation_sharpe is not None,
            "validation_sharpe": sharpe,
            "state": _shapes(state),
        }
        self._require_space(update, state)
        try:
            saved = self._manager.save(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_bare(state)),  # pyright: ignore[reportCallIssue]
                    meta=ocp.args.JsonSave(meta),  # pyright: ignore[reportCallIssue]
                ),
            )
            if not saved:  # Orbax passes over an update that is not the latest
                raise ValueError(f"there are later ones: {self.updates()}")
            folder = self.folder / str(update)
            for path in (self.folder, folder, *folder.rglob("*")):
                sync(path)  # Orbax has seen to the arrays alone
            write_whole(folder / _SUMS, json.dumps(_sums(folder), indent=1))
            self._delete(set(self.updates()) - self._kept())
        except Exception as error:  # Orbax and TensorStore raise a dozen kinds for a full disk
            raise CheckpointError(
                f"{self.folder}: checkpoint of update {update} could not be saved "
                f"({_brief(error)}); earlier checkpoints are intact. Make room and go on with "
                "--resume, or choose another --output-dir"
            ) from error

    def validation_sharpe(self, update: int) -> float:
        """The metric under which `update` was saved; NaN when it was undefined.

        Raises:
          DamagedCheckpointError: the description cannot be read.
        """
        value = self.read_meta(update).get("validation_sharpe")
        return math.nan if value is None else value

    def ranking(self, last: int | None = None) -> list[int]:
        """Updates up to `last`, the best validation Sharpe ratio first.

        Undefined ones rank below all others, those that do not compete below these, and of equals
        the later one is better. A damaged description comes first of all: it may have been the
        best, and whoever takes the next has to hear of it.

        Raises:
          CheckpointError: there is no checkpoint.
        """
        updates = [u for u in self.updates() if last is None or u <= last]
        if not updates:
            raise CheckpointError(
                f"{self.folder}: no checkpoint found; train first (leave out --skip-training)"
            )
        rank = {u: (*(self._score(u) or (True, math.inf)), u) for u in updates}
        return sorted(updates, key=rank.__getitem__, reverse=True)

    def restore(self, update: int, like: TrainState) -> Checkpoint:
        """Restores one update to the host, whichever devices it was saved on.

        Args:
          like: a state, or the shapes of one, with the structure to expect.

        Raises:
          DamagedCheckpointError: it cannot be read, or is not what was saved.
          CheckpointError: it is of another format, or its arrays are not shaped like `like`.
        """
        where = f"{self.folder}/{update}"
        self._verify(update)
        meta = self.read_meta(update)
        check_meta(meta, {"state": _shapes(like)}, where)
        shapes = jax.eval_shape(_key_data, like)
        empty = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        try:
            restored: Any = self._manager.restore(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(empty)  # pyright: ignore[reportCallIssue]
                ),
            )
        except Exception as error:  # Orbax raises a dozen kinds for a damaged file
            raise DamagedCheckpointError(
                f"{where}: cannot be restored, it is damaged: {_brief(error)}"
            ) from error
        state = jax.tree.map(
            lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x,
            restored.state,
            like,
        )
        return Checkpoint(update, state, meta)

    def read_meta(self, update: int) -> dict[str, Any]:
        """The checkpoint's description, without its arrays.

        Raises:
          DamagedCheckpointError: it cannot be read, or is not what was saved.
          CheckpointError: it is of another format.
        """
        self._verify(update, only="meta/metadata")
        meta = self._parsed(update)
        _check_format(meta, self.folder / str(update))
        return meta

    def forget_after(self, update: int) -> None:
        """Deletes checkpoints later than `update`, before training goes on from there.

        Raises:
          CheckpointError: the folder cannot be written.
        """
        try:
            self._delete({u for u in self._manager.all_steps() if u > update})
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: checkpoints after update {update} cannot be removed ({error}); "
                "make the folder writable, or copy it and name the copy's --output-dir"
            ) from error

    def close(self) -> None:
        """Waits for what is under way and lets go of the folder."""
        self._manager.close()

    def _require_space(self, update: int, state: TrainState) -> None:
        """A full disk is better noticed here than by Orbax, which floods the screen over it."""
        needed = _SPARE_BYTES + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk = shutil.disk_usage(self.folder)
        if disk.total and disk.free < needed:
            raise CheckpointError(
                f"{self.folder}: no space left for the checkpoint of update {update} "
                f"({disk.free / 2**20:.1f} MiB free, {needed / 2**20:.1f} needed); earlier "
                "checkpoints are intact. Free space and go on with --resume, or choose another "
                "--output-dir"
            )

    def _kept(self) -> set[int]:
        """The latest two and the best few; a damaged one is not among the best."""
        scores = {u: self._score(u) for u in self.updates()}
        best = sorted((u for u in scores if scores[u]), key=lambda u: (scores[u], u))
        return {*sorted(scores)[-2:], *best[-self._keep_best :]}

    def _score(self, update: int) -> tuple[bool, float] | None:
        """Whether it competes for the best, and with what; None for a damaged description."""
        try:
            meta = self.read_meta(update)
        except DamagedCheckpointError:
            return None
        sharpe = meta.get("validation_sharpe")
        return bool(meta.get("competes_for_best")), -math.inf if sharpe is None else sharpe

    def _is_whole(self, update: int) -> bool:
        if (self.folder / str(update) / _SUMS).is_file():
            return True
        with contextlib.suppress(DamagedCheckpointError):  # a save that was killed
            _check_format(self._parsed(update), self.folder / str(update))
        return False

    def _verify(self, update: int, only: str | None = None) -> None:
        """Raises DamagedCheckpointError unless all files (or one) are what was saved."""
        folder = self.folder / str(update)
        written = _read_json(folder / _SUMS)
        try:
            found = _sums(folder, only)
        except OSError as error:
            raise DamagedCheckpointError(f"{folder}: cannot be read ({error})") from error
        for name in sorted(written) if only is None else [only]:
            if name not in found or found[name] != written.get(name):
                what = "was changed" if name in found else "is missing"
                raise DamagedCheckpointError(
                    f"{folder}: cannot be restored, it is damaged: its file {name} {what}"
                )

    def _parsed(self, update: int) -> dict[str, Any]:
        return _read_json(self.folder / str(update) / "meta" / "metadata")

    def _delete(self, updates: set[int]) -> None:
        for update in sorted(updates):
            self._manager.delete(update)
        self._remove_deleted()

    def _remove_deleted(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder / _DELETED)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _bare(state: Any) -> Any:
    """`state` as NumPy arrays, which belong to no device, host or number of processes."""
    return jax.tree.map(np.asarray, _key_data(state))


def _on_its_own() -> ocp.options.MultiprocessingOptions:
    """Keeps Orbax from waiting for other processes: only the first saves, and each reads alone."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _brief(error: Exception) -> str:
    """TensorStore names one long path after another, and then the reason."""
    text = str(error)
    return text if len(text) <= 500 else f"{text[:200]} ... {text[-300:]}"


def _shapes(state: Any) -> dict[str, str]:
    """Type and shape of every array by its path: `params/heads/actor/bias` -> `float32[7]`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _sums(folder: Path, only: str | None = None) -> dict[str, str]:
    """sha256 of every file under `folder` (or of one) by its path there, but for their list's own.

    Files are found by looking, never by names in the list, which might lead elsewhere.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if path.is_file() and name != _SUMS and only in (None, name)
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: cannot be read, it is damaged ({error})") from error


def _check_format(meta: Mapping[str, Any], where: Path) -> None:
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        raise CheckpointError(
            f"{where}: has checkpoint format {version!r}, and this version of jaxtrader reads "
            f"{FORMAT_VERSION}: "
            + ("upgrade jaxtrader" if newer else "use the version that trained it")
            + ", or train anew into another --output-dir"
        )


def check_meta(checkpoint: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Compares what a checkpoint was made for with what is asked of it now.

    Raises:
      CheckpointError: naming the first entry that differs and both values.
    """
    for key, now in expected.items():
        stored = checkpoint.get(key)
        if stored == now:
            continue
        for form in (dict, list):
            if isinstance(stored, form) and isinstance(now, form):
                stored_entries, entries = _entries(key, stored), _entries(key, now)
                absent = dict.fromkeys(stored_entries.keys() - entries.keys())
                check_meta(stored_entries, {**entries, **absent}, where)
        raise CheckpointError(
            f"{where}: was made with {key} = {stored!r}, and now it is {now!r}; "
            "use the settings and data of that run, or train anew into another --output-dir"
        )


def _entries(key: str, value: dict | list) -> dict[str, Any]:
    """The entries of a section by their full names: `ppo.gamma`, `feature_names[3]`."""
    if isinstance(value, dict):
        return {f"{key}.{name}": entry for name, entry in value.items()}
    return {f"{key}[{i}]": entry for i, entry in enumerate(value)}
