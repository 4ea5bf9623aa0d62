"""What Gymnasium calls info: the environment's records as dictionaries of NumPy arrays [N, ...].

Numbers are in 64 bits, as in the infos of Gymnasium's own vector environments.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from envs.actions import Reason
from jaxtrader.adapters.lanes import Snapshot

_REASONS = np.array([reason.name for reason in Reason], object)


def state_info(snapshot: Snapshot) -> dict[str, Any]:
    """What is known of an account at any time."""
    return {"action_mask": snapshot.action_mask, "equity": _wide(snapshot.equity)}


def step_info(transition: Any) -> dict[str, Any]:
    """What a step did; `transition` is a `Transition` of arrays."""
    return {
        "executed_action": _wide(transition.executed),
        "reason": _REASONS[transition.reason],
        "components": fields(transition.components),
    }


def fields(record: Any) -> dict[str, Any]:
    """A dataclass of arrays by field name."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {
        name: fields(value) if dataclasses.is_dataclass(value) else _wide(value)
        for name, value in values.items()
    }


def _wide(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64 if values.dtype == np.float32 else np.int64)


def objects(rows: np.ndarray) -> np.ndarray:
    """An array of arrays, object[N]."""
    boxed = np.empty(len(rows), object)
    for i, row in enumerate(rows):
        boxed[i] = row.copy()
    return boxed


def choose(where: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rows of `first` where `where` (bool[N]), else of `second`; both [N, ...]."""
    return np.where(where.reshape(-1, *[1] * (first.ndim - 1)), first, second)


def single(info: dict[str, Any]) -> dict[str, Any]:
    """The info of an environment that is alone: Python numbers and text, and copies of arrays."""

    def own(value: Any) -> Any:
        if isinstance(value, dict):
            return single(value)
        return value.item() if value.ndim == 1 else value[0].copy()

    return {key: own(value) for key, value in info.items()}


def batched(info: dict[str, Any], where: np.ndarray) -> dict[str, Any]:
    """Gymnasium's form of the infos of the environments `where`: each key with its mask `_key`."""
    infos: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, dict):
            infos[key] = batched(value, where)
        else:
            nothing = None if value.dtype == object else value.dtype.type(0)
            infos[key] = choose(where, value, np.full_like(value, nothing))
        infos[f"_{key}"] = where.copy()
    return infos
