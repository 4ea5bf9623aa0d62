"""Standardise features by the mean and deviation of the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrader.errors import DataError

_CONSTANT = 1e-12


@dataclass(frozen=True, eq=False)
class Scaler:
    """`clip((x - mean) / scale, -clip, clip)`, feature by feature.

    Raises:
        DataError: on construction, when shapes differ, a number is not finite, or a scale or the
            clip is not above 0.
    """

    mean: np.ndarray  # float64[F], in the unit of the feature
    scale: np.ndarray  # float64[F], > 0, in the unit of the feature
    clip: float = 5.0  # in deviations

    def __post_init__(self) -> None:
        for name in ("mean", "scale"):
            array = np.array(getattr(self, name), np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise DataError(f"scaler: mean {self.mean.shape} and scale {self.scale.shape} differ")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all()):
            raise DataError("scaler: mean and scale must be finite")
        if not (self.scale > 0).all() or not self.clip > 0:
            raise DataError("scaler: scale and clip must be above 0")

    @classmethod
    def fit(cls, rows: np.ndarray, clip: float = 5.0) -> Scaler:
        """Takes mean and population standard deviation of `rows` [N, F]: training rows only.

        A feature that never changes gets scale 1, so that it becomes 0 and not noise.

        Raises:
            DataError: there are no rows, or one holds NaN or infinity.
        """
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or len(rows) == 0:
            raise DataError(f"scaler: needs rows [N, F] to fit, got shape {rows.shape}")
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise DataError(
                f"scaler: training row {row}, feature {column} is {rows[row, column]}; "
                "leave the warm-up rows out"
            )
        deviation = rows.std(axis=0)
        return cls(rows.mean(axis=0), np.where(deviation < _CONSTANT, 1.0, deviation), clip)

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Scales `features` [..., F]: float32 of the same shape, in [-clip, clip]; NaN stays NaN.

        Raises:
            DataError: the last axis does not have F entries.
        """
        if features.shape[-1:] != self.mean.shape:
            raise DataError(f"scaler: made for {len(self.mean)} features, got {features.shape}")
        scaled = (np.asarray(features, np.float64) - self.mean) / self.scale
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: lists of numbers, every bit kept."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist(), "clip": self.clip}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scaler:
        """The inverse of `to_dict`.

        Raises:
            DataError: a key is missing or unknown, or the numbers make no scaler.
        """
        if set(values) != {"mean", "scale", "clip"}:
            raise DataError(f"scaler: needs the keys mean, scale and clip, got {sorted(values)}")
        try:
            mean, scale = (np.array(values[name], np.float64) for name in ("mean", "scale"))
            return cls(mean, scale, float(values["clip"]))
        except (TypeError, ValueError) as error:
            raise DataError(f"scaler: mean, scale and clip must be numbers ({error})") from error
