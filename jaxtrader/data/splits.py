"""Chronological train, validation and test bars, with an embargo between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxtrader.errors import ConfigError, DataError

SPLIT_NAMES = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Split:
    """A stretch of bars, both ends included.

    Decisions are made at `first_bar` to `last_bar - 1`; `last_bar` is the last mark.
    """

    name: str
    first_bar: int
    last_bar: int

    def __len__(self) -> int:
        return max(self.last_bar - self.first_bar + 1, 0)


def split_boundaries(
    timestamps: Sequence[np.ndarray],
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    label: str = "bars",
) -> tuple[np.datetime64, np.datetime64]:
    """The moments at which validation and test begin.

    Args:
        timestamps: for every symbol that shares the boundaries, its usable bars, datetime64[us][.].
            The boundaries cut the bars of all of them together by `fractions`.
        fractions: shares of train, validation and test; each above 0, their sum 1.
        label: what to call the series in an error.

    Raises:
        ConfigError: the fractions are not as above.
        DataError: there is no bar at all.
    """
    if len(fractions) != 3 or not (min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-9):
        raise ConfigError(
            f"fractions {tuple(fractions)} must be three numbers above 0 whose sum is 1, "
            f"for example {DEFAULT_FRACTIONS}"
        )
    moments: NDArray[np.datetime64] = np.sort(np.concatenate(timestamps))
    if len(moments) == 0:
        raise DataError(
            f"{label}: no bar is left after the warm-up and the first window; give more bars"
        )
    train, validation, _ = fractions
    first = round(train * len(moments))
    second = round((train + validation) * len(moments))
    return moments[min(first, len(moments) - 1)], moments[min(second, len(moments) - 1)]


def chronological_splits(
    timestamps: np.ndarray,
    boundaries: tuple[np.datetime64, np.datetime64],
    *,
    warm_up: int,
    receptive_field: int,
    minimum_bars: int = 2,
    label: str = "bars",
) -> tuple[Split, Split, Split]:
    """Cuts one symbol's bars at `boundaries` into train, validation and test.

    Train begins at the first bar whose window of `receptive_field` bars holds no warm-up row.
    Between a split's last mark and the first decision of the next lie `receptive_field` bars that
    belong to neither (they come out of the later split), so that no window of a split contains a
    bar of the split before it.

    Args:
        timestamps: datetime64[us][T], start of each bar.
        boundaries: the moments at which validation and test begin.
        warm_up: number of leading rows without complete features.
        receptive_field: bars an observation looks back on, itself included (R), and the embargo.
        minimum_bars: smallest acceptable number of bars in a split.
        label: what to call the series in an error.

    Raises:
        DataError: a split would have fewer than `minimum_bars` bars.
        ConfigError: `receptive_field` is not above 0, or `minimum_bars` is below 2.
    """
    if receptive_field < 1 or minimum_bars < 2:
        raise ConfigError(
            f"receptive_field {receptive_field} must be at least 1 and minimum_bars "
            f"{minimum_bars} at least 2: a decision and the mark that follows it"
        )
    ends = [int(np.searchsorted(timestamps, moment)) for moment in boundaries] + [len(timestamps)]
    first = warm_up + receptive_field - 1
    splits = []
    for name, end in zip(SPLIT_NAMES, ends, strict=True):
        splits.append(Split(name, first, end - 1))
        first = end + receptive_field
    if min(len(split) for split in splits) < minimum_bars:
        sizes = ", ".join(f"{split.name} {len(split)}" for split in splits)
        raise DataError(
            f"{label}: {len(timestamps)} bars leave {sizes}, and each split needs {minimum_bars} "
            f"({warm_up} bars of warm-up and {receptive_field - 1} of first window come before "
            f"train, {receptive_field} bars of embargo before validation and before test): give "
            "more bars, a shorter episode or receptive field, or other fractions; of several "
            "symbols, drop this one or cut each by its own bars (split_clock='own')"
        )
    return splits[0], splits[1], splits[2]
