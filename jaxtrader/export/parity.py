"""Proof that an exported policy equals the JAX one: replayed where jax cannot be imported."""

import io
import json
import math
import os
import subprocess
import sys
import tempfile
import traceback
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import torch

from jaxtrader.errors import ExportError
from jaxtrader.export.torchscript import load_policy, write_complete

_BATCH = 1000  # observations: bounds the memory of the replay
_ABSENT = ("jax", "jaxlib", "flax")

# None in sys.modules makes an import fail. The search path is the parent's, as when
# multiprocessing spawns: the child has to find the same jaxtrader.
_CHILD = f"""
import json, sys
sys.modules.update(dict.fromkeys({_ABSENT!r}))
sys.path[:] = json.loads(sys.argv[1])
from jaxtrader.export.parity import _answer_requests
_answer_requests()
"""


@dataclass(frozen=True)
class ParityReport:
    """How far an exported policy is from the recorded answers of the JAX policy."""

    observations: int
    largest_logit_difference: float  # absolute, over legal actions
    largest_value_difference: float  # absolute
    largest_scaled_value_difference: float  # difference / max(1, |value|)
    clear_actions: int  # observations whose top two legal logits differ by more than `tolerance`
    agreeing_actions: int  # those of them with the same most probable action
    near_ties: int  # the other observations: rounding may decide their action
    tolerance: float
    jax_absent: bool  # the replaying process had no jax

    @property
    def passed(self) -> bool:
        """Logits and (scaled) values within the tolerance, clear actions all the same, no jax.

        Values are in units of the return, and large ones cannot agree to an absolute 1e-5 in
        float32: their difference is judged relative to the value where that exceeds 1.
        """
        return (
            self.largest_logit_difference <= self.tolerance
            and self.largest_scaled_value_difference <= self.tolerance
            and self.agreeing_actions == self.clear_actions
            and self.jax_absent
        )


def write_parity_data(
    path_npz: str | os.PathLike[str],
    features: np.ndarray,
    account: np.ndarray,
    mask: np.ndarray,
    logits: np.ndarray,
    value: np.ndarray,
) -> None:
    """Records N observations and what the JAX policy answered; the file is complete or absent.

    Args:
        path_npz: where to, `*.npz`.
        features: raw (not scaled) windows, f32 or f64[N, R, F].
        account: f32[N, A].
        mask: bool[N, 7], True where legal.
        logits: f32[N, 7]; those of illegal actions are not compared.
        value: f32[N].

    Raises:
        ExportError: there is nothing to record, shapes do not fit, or the file cannot be written.
    """
    arrays = {
        "features": np.asarray(features),
        "account": np.asarray(account),
        "mask": np.asarray(mask),
        "logits": np.asarray(logits),
        "value": np.asarray(value),
    }
    dimensions = {"features": 3, "account": 2, "mask": 2, "logits": 2, "value": 1}
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shapes[name]) != count for name, count in dimensions.items()) or (
        len({shape[0] for shape in shapes.values()}) != 1
        or shapes["features"][0] == 0
        or shapes["mask"] != shapes["logits"]
    ):
        raise ExportError(
            f"{path_npz}: parity data need features [N, R, F], account [N, A], mask and logits "
            f"[N, 7] and value [N] with N > 0, got {shapes}"
        )
    if arrays["mask"].dtype != bool:
        raise ExportError(f"{path_npz}: mask must be bool, got {arrays['mask'].dtype}")
    archive = io.BytesIO()
    np.savez(archive, allow_pickle=False, **arrays)
    write_complete(Path(path_npz), archive.getvalue())


def check_parity(
    policy_path: str | os.PathLike[str],
    npz_path: str | os.PathLike[str],
    tolerance: float = 1e-5,
) -> ParityReport:
    """Replays `write_parity_data`'s observations in a fresh Python process that has no jax.

    The process verifies and loads the policy as any user would (`load_policy`), on one thread.

    Args:
        policy_path: an exported policy, its manifest beside it.
        npz_path: the recorded observations and answers.
        tolerance: largest absolute difference between logits; > 0.

    Raises:
        ExportError: the replay failed (its error output is quoted), or `tolerance` is not above 0.
    """
    with ParityProcess() as process:
        return process.check(policy_path, npz_path, tolerance)


class ParityProcess:
    """`check_parity` of many policies, one after another, in one process.

    It starts with the first of them, because importing torch takes seconds; after a replay that
    killed it, the next one starts another::

        with ParityProcess() as process:
            reports = [process.check(policy, recorded) for policy, recorded in pairs]
    """

    def __enter__(self) -> "ParityProcess":
        self._resources = ExitStack()
        # A file, because a pipe that nobody reads would stop a process that writes much.
        self._errors = self._resources.enter_context(tempfile.TemporaryFile("w+"))
        self._process: subprocess.Popen[bytes] | None = None
        return self

    def __exit__(self, *exception: object) -> None:
        self._resources.close()

    def check(
        self,
        policy_path: str | os.PathLike[str],
        npz_path: str | os.PathLike[str],
        tolerance: float = 1e-5,
    ) -> ParityReport:
        """See `check_parity`."""
        if not (math.isfinite(tolerance) and tolerance > 0):
            raise ExportError(f"tolerance: must be above 0 and finite, got {tolerance}")
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-c", _CHILD, json.dumps(sys.path)]
            self._process = self._resources.enter_context(
                subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=self._errors)
            )
        assert self._process.stdin
        assert self._process.stdout
        request = json.dumps([str(policy_path), str(npz_path), tolerance])
        with suppress(BrokenPipeError):  # it has ended: no answer will come
            self._process.stdin.write(f"{request}\n".encode())
        answer = self._process.stdout.readline()
        if not answer:
            status = self._process.wait()
            self._errors.seek(0)
            raise ExportError(
                f"{policy_path}: the parity replay ended with exit status {status}:\n"
                f"{self._errors.read().strip()}"
            )
        fields = json.loads(answer)
        if "error" in fields:
            raise ExportError(f"{policy_path}: the parity replay failed:\n{fields['error']}")
        return ParityReport(**fields)


def _answer_requests() -> None:
    """The child: for each line of JSON it reads, prints the fields of a `ParityReport`."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # for whatever else may print
    for request in sys.stdin:
        try:
            answer = _replay(*json.loads(request))
        except ExportError as error:
            answer = {"error": str(error)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def _replay(policy_path: str, npz_path: str, tolerance: float) -> dict[str, Any]:
    """Compares the policy with the recorded answers: the fields of a `ParityReport`."""
    module = load_policy(policy_path).module
    recorded = _read_parity_data(npz_path)
    inputs = [torch.from_numpy(recorded[name]) for name in ("features", "account", "mask")]
    answers = [
        (module.logits(*batch), *module(*batch))
        for batch in zip(*(tensor.split(_BATCH) for tensor in inputs), strict=True)
    ]
    logits, action, _, value = (torch.cat(parts).numpy() for parts in zip(*answers, strict=True))

    legal = recorded["mask"].copy()
    legal[~legal.any(axis=1), 0] = True  # HOLD, when nothing is legal
    expected = np.where(legal, recorded["logits"], -np.inf)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > tolerance  # infinite where one action alone is legal
    value_difference = np.abs(value - recorded["value"])
    logit_difference = np.abs(np.where(legal, logits - recorded["logits"], 0.0))
    return {
        "observations": len(value),
        "largest_logit_difference": float(logit_difference.max()),
        "largest_value_difference": float(value_difference.max()),
        "largest_scaled_value_difference": float(
            (value_difference / np.maximum(1.0, np.abs(recorded["value"]))).max()
        ),
        "clear_actions": int(clear.sum()),
        "agreeing_actions": int((clear & (action == expected.argmax(axis=1))).sum()),
        "near_ties": int((~clear).sum()),
        "tolerance": tolerance,
        "jax_absent": not any(
            module is not None and name.partition(".")[0] in _ABSENT
            for name, module in sys.modules.items()
        ),
    }


def _read_parity_data(npz_path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(npz_path, allow_pickle=False) as archive:
            return {
                name: archive[name] for name in ("features", "account", "mask", "logits", "value")
            }
    except (OSError, KeyError, ValueError) as error:
        raise ExportError(
            f"{npz_path}: not parity data ({error}); record them with write_parity_data"
        ) from error
