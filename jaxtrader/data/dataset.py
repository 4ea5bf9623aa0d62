"""`Dataset`: bars of S symbols with features, scaler, splits and provenance, ready for training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxtrader.data.scaler import Scaler

_ARRAYS = (
    "timestamps", "n_bars", "open", "high", "low", "close", "volume",
    "tradable", "session", "raw_features", "periods_per_year",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Dataset:
    """Bars of S symbols, each on its own time axis, padded on the right to T bars. Read-only.

    Rows of `raw_features` in a symbol's warm-up and in the padding are NaN, and stay NaN in the
    market made from them: a program that reads one of these rows says so in its results. The
    first row that an observation of any split reaches is `first_bar - receptive_field + 1`.
    """

    symbols: tuple[str, ...]
    timeframe: str
    timestamps: np.ndarray  # int64[S, T] microseconds since 1970 UTC, start of the bar; padding -1
    n_bars: np.ndarray  # int32[S] bars before the padding
    open: np.ndarray  # float64[S, T] price; padding repeats the last bar
    high: np.ndarray  # float64[S, T] price; padding repeats the last bar
    low: np.ndarray  # float64[S, T] price; padding repeats the last bar
    close: np.ndarray  # float64[S, T] price; padding repeats the last bar
    volume: np.ndarray  # float64[S, T] shares or coins; padding 0
    tradable: np.ndarray  # bool[S, T] whether orders fill in this bar; padding False
    session: np.ndarray  # int32[S, T] ordinal of the trading session; padding repeats the last one
    raw_features: np.ndarray  # float32[S, T, F] before scaling; NaN in warm-up and padding
    feature_names: tuple[str, ...]  # F names
    scaler: Scaler  # fitted on the training rows of all symbols together
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]]  # name -> int32[S] first and last bar
    periods_per_year: np.ndarray  # int32[S] sessions a year: 252, or 365 round the clock
    receptive_field: int  # bars an observation looks back on, itself included (R)
    provenance: Mapping[str, Any]  # where every number comes from, as JSON can hold it

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            getattr(self, name).setflags(write=False)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the content (not of paths): equal exactly when a run would see equal data."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self._settings(), sort_keys=True).encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    def _settings(self) -> dict[str, Any]:
        return {
            "kind": self.provenance["kind"],
            "symbols": self.symbols,
            "timeframe": self.timeframe,
            "bars": self.open.shape[1],
            "feature_names": self.feature_names,
            "scaler": self.scaler.to_dict(),
            "splits": {
                name: [first.tolist(), last.tolist()] for name, (first, last) in self.splits.items()
            },
            "receptive_field": self.receptive_field,
        }

    def describe(self) -> list[str]:
        """Lines for the start banner: REAL or SYNTHETIC, and each symbol's span and splits."""
        kind = str(self.provenance["kind"]).upper()
        lines = [
            f"{kind} data: {len(self.symbols)} symbol{'s' * (len(self.symbols) > 1)}, "
            f"{int(self.n_bars.sum()):,} bars of {self.timeframe}, "
            f"{len(self.feature_names)} features, receptive field {self.receptive_field} bars, "
            f"fingerprint {self.fingerprint[:12]}"
        ]
        for s, symbol in enumerate(self.symbols):
            origin = self.provenance["symbols"][symbol]
            lines.append(
                f"{symbol}: {self.n_bars[s]:,} bars, {self._day(s, 0)} to "
                f"{self._day(s, self.n_bars[s] - 1)}, from {origin['source']}"
            )
            lines += [f"  {self._describe_split(s, name)}" for name in self.splits]
            lines += [f"  note: {note}" for note in origin["notes"]]
        return lines + [f"note: {note}" for note in self.provenance["notes"]]

    def _describe_split(self, s: int, name: str) -> str:
        first, last = (int(bars[s]) for bars in self.splits[name])
        return (
            f"{name}: {last - first + 1:,} bars ({first} to {last}), "
            f"{self._day(s, first)} to {self._day(s, last)}"
        )

    def _day(self, s: int, bar: int) -> str:
        return str(self.timestamps[s, bar].astype("M8[us]").astype("M8[D]"))
