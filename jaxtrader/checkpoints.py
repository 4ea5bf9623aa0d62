"""Orbax checkpoints of one agent: the latest two, and the best by validation Sharpe ratio."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from agents.learner import TrainState
from jaxtrader.errors import CheckpointError

FORMAT_VERSION = 1
_METRIC = "validation_sharpe"

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save at INFO and WARNING


class DamagedCheckpointError(CheckpointError):
    """A checkpoint cannot be read; an earlier one may be whole."""


def _rank(metrics: Mapping[str, float]) -> float:
    # A NaN would win Orbax's comparison.
    value = metrics[_METRIC]
    return value if math.isfinite(value) else -math.inf


@dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint."""

    update: int
    state: TrainState
    meta: dict[str, Any]


class AgentCheckpoints:
    """The checkpoints of one (symbol, seed), in one folder."""

    def __init__(self, folder: Path, keep_best: int = 3):
        """Opens or creates `folder`; leftovers of a save that was killed are removed.

        Two latest checkpoints are kept, not one: agents are saved one after the other, so a kill
        between two saves must still leave an update that all of them have.
        """
        self.folder = folder.absolute()
        keep = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(get_metric_fn=_rank, n=keep_best),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
            best_fn=_rank,
            best_mode="max",
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be used for checkpoints ({error}); choose another "
                "--output-dir or free the space"
            ) from error

    def updates(self) -> list[int]:
        """Updates that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(
        self, update: int, state: TrainState, meta: Mapping[str, Any], validation_sharpe: float
    ) -> None:
        """Saves `state` as the checkpoint of `update`, complete or not at all.

        Raises:
          CheckpointError: the folder cannot be written (disk full, read-only).
        """
        meta = {**meta, "format_version": FORMAT_VERSION, "update": update}
        try:
            self._manager.save(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    meta=ocp.args.JsonSave(meta),  # pyright: ignore[reportCallIssue]
                ),
                metrics={_METRIC: float(validation_sharpe)},
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder}: checkpoint of update {update} could not be saved ({error}); "
                "earlier checkpoints are intact"
            ) from error

    def validation_sharpe(self, update: int) -> float:
        """The metric under which `update` was saved; NaN when it was undefined."""
        metrics = self._manager.metrics(update)
        return float(metrics[_METRIC]) if metrics else float("nan")

    def ranking(self, last: int | None = None) -> list[int]:
        """Updates up to `last`, the best validation Sharpe ratio first.

        Undefined ones rank below all others, and of equals the later one is better.

        Raises:
          CheckpointError: there is no checkpoint.
        """
        updates = [u for u in self.updates() if last is None or u <= last]
        if not updates:
            raise CheckpointError(
                f"{self.folder}: no checkpoint found; train first (leave out --skip-training)"
            )
        rank = {u: (_rank({_METRIC: self.validation_sharpe(u)}), u) for u in updates}
        return sorted(updates, key=rank.__getitem__, reverse=True)

    def restore(
        self, update: int, like: TrainState, expected: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Restores one update.

        Args:
          like: a state, or the shapes of one, with the structure to expect.
          expected: what the description must say, see `check_meta`; nothing in particular if None.

        Raises:
          DamagedCheckpointError: it cannot be read.
          CheckpointError: it is of another format, or not what is expected.
        """
        meta = self.read_meta(update)
        check_meta(meta, expected or {}, f"{self.folder}/{update}")
        try:
            restored: Any = self._manager.restore(
                update,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(like)  # pyright: ignore[reportCallIssue]
                ),
            )
        except Exception as error:  # Orbax raises a dozen kinds for a damaged file
            raise DamagedCheckpointError(
                f"{self.folder}/{update}: cannot be restored, it is damaged: {str(error)[:500]}"
            ) from error
        return Checkpoint(update, restored.state, meta)

    def read_meta(self, update: int) -> dict[str, Any]:
        """The checkpoint's description, without its arrays.

        Raises:
          DamagedCheckpointError: it cannot be read.
          CheckpointError: it is of another format.
        """
        path = self.folder / str(update) / "meta" / "metadata"
        try:
            meta = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DamagedCheckpointError(f"{path}: cannot be read ({error})") from error
        if meta.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: has checkpoint format {meta.get('format_version')!r}, and this version "
                f"of jaxtrader reads {FORMAT_VERSION}: use the version that trained it, or train "
                "anew into another --output-dir"
            )
        return meta

    def forget_after(self, update: int) -> None:
        """Deletes checkpoints later than `update`, before training goes on from there."""
        for later in [u for u in self.updates() if u > update]:
            self._manager.delete(later)

    def close(self) -> None:
        """Waits for what is under way and lets go of the folder."""
        self._manager.close()


def check_meta(checkpoint: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Compares what a checkpoint was made for with what is asked of it now.

    Raises:
      CheckpointError: naming the first key that differs and both values.
    """
    for key, value in expected.items():
        if checkpoint.get(key) != value:
            raise CheckpointError(
                f"{where}: was made with {key} = {checkpoint.get(key)!r}, and now it is {value!r}; "
                "use the settings and data of that run, or train anew into another --output-dir"
            )
