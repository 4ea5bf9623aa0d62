"""Series of the economy, joined to bars only after they had been published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxtrader.data.layout import macro_path
from jaxtrader.data.parquet import read_columns
from jaxtrader.data.sentiment import whole_days
from jaxtrader.errors import DataError


@dataclass(frozen=True)
class Release:
    """When a series is published, and how often."""

    days: int  # from the date in the file to the day of publication, at the latest as a rule
    patience: int  # days since the latest publication after which the series has ended
    what: str
    source: str  # of the days


_H15 = "Federal Reserve H.15, the next business day in the afternoon"
# Of series that files carry without their days of publication. A monthly date is the first of the
# month that is described, so that the month's own length is in `days`.
RELEASES: dict[str, Release] = {
    "VIX": Release(0, 12, "CBOE volatility index, close", "CBOE, at the close of the day"),
    "DGS2": Release(4, 12, "2-year Treasury yield, per cent", _H15),
    "DGS10": Release(4, 12, "10-year Treasury yield, per cent", _H15),
    "DGS30": Release(4, 12, "30-year Treasury yield, per cent", _H15),
    "T10Y2Y": Release(4, 12, "10-year less 2-year yield, percentage points", _H15),
    "T10Y3M": Release(4, 12, "10-year less 3-month yield, percentage points", _H15),
    "DTWEXBGS": Release(10, 21, "broad dollar index", "Federal Reserve H.10, weekly on Monday"),
    "WTI": Release(9, 21, "crude oil, dollars a barrel", "EIA, weekly on Wednesday"),
    "ICSA": Release(6, 60, "initial jobless claims of a week", "DOL, Thursday after the week"),
    "WALCL": Release(2, 21, "assets of the Federal Reserve", "H.4.1, Thursday after Wednesday"),
    "FEDFUNDS": Release(38, 75, "effective federal funds rate, per cent", "H.15, after the month"),
    "UNRATE": Release(60, 75, "unemployment rate, per cent", "BLS, early in the month after"),
    "CPIAUCSL": Release(60, 75, "consumer prices", "BLS, middle of the month after"),
    "CPILFESL": Release(60, 75, "consumer prices less food and energy", "BLS, middle of the month"),
    "INDPRO": Release(60, 75, "industrial production", "Federal Reserve G.17, middle of the month"),
}


# While the government was shut in the autumn of 2025: (series, first and last date, published).
DELAYS = (
    ("ICSA", "2025-09-27", "2025-11-08", "2025-11-20"),
    ("UNRATE", "2025-09-01", "2025-09-01", "2025-11-20"),
    ("INDPRO", "2025-09-01", "2025-09-01", "2025-12-03"),
    ("INDPRO", "2025-10-01", "2025-10-01", "2025-12-23"),
)


@dataclass(frozen=True, eq=False)
class MacroSeries:
    """N values of a series, in order of time, and when each could be used."""

    name: str
    date: np.ndarray  # datetime64[D][N], what the value describes
    usable: np.ndarray  # datetime64[D][N], non-decreasing: first session that may know the value
    value: np.ndarray  # float64[N]
    patience: int  # days after which the latest value is no longer one
    source: str
    sha256: str


def read_macro(data_dir: str | Path, name: str) -> MacroSeries:
    """Reads `macro/<name>.parquet`: columns date and value, and release_date where it is known.

    A value serves sessions after the day of its publication: `release_date`, or the date and the
    days of `RELEASES`, which are those of a slow ordinary release, and `DELAYS`. Rows without a
    value, such as holidays, are left out.

    Raises:
        DataError: there is no such file, it is damaged, a date is empty, out of order or there
            twice, or nothing tells when its values were published.
    """
    path = macro_path(data_dir, name)
    table, sha256 = read_columns(path, ("date", "value"), ("release_date",))
    kind = table["value"].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{path}: column 'value' holds {kind}; write it as float64 (double)")
    date = whole_days(path, "date", table["date"])
    value = table["value"].cast(pa.float64(), safe=False).to_numpy()
    release = RELEASES.get(name)
    if "release_date" in table.column_names:
        published = whole_days(path, "release_date", table["release_date"])
        patience = release.patience if release else 75
    elif release is not None:
        published, patience = _usually_published(name, date), release.patience
    else:
        raise DataError(
            f"{path}: when its values were published is not known; add a column release_date, or "
            f"use one of {', '.join(RELEASES)}"
        )
    wrong = np.flatnonzero(np.diff(date).astype(np.int64) <= 0)
    if len(wrong):
        raise DataError(
            f"{path}: row {wrong[0] + 1}, column 'date': {date[wrong[0] + 1]} does not come after "
            f"{date[wrong[0]]}; sort the file and keep one row a date"
        )
    kept = np.isfinite(value)
    if not kept.any():
        raise DataError(f"{path}: no row has a value; write it again or leave it out")
    usable = np.maximum.accumulate(published[kept] + 1)
    return MacroSeries(name, date[kept], usable, value[kept], patience, str(path), sha256)


def _usually_published(name: str, date: np.ndarray) -> np.ndarray:
    published = date + RELEASES[name].days
    for series, first, last, day in DELAYS:
        if series == name:
            late = (date >= np.datetime64(first)) & (date <= np.datetime64(last))
            published = np.where(late, np.maximum(published, np.datetime64(day)), published)
    return published


@dataclass(frozen=True, eq=False)
class MacroAt:
    """What of the economy was public at each of T bars."""

    series: Mapping[str, MacroSeries]
    session: np.ndarray  # datetime64[D][T]

    def __call__(
        self, name: str, transform: Callable[[MacroSeries], np.ndarray] = lambda each: each.value
    ) -> np.ndarray:
        """The latest published value at each bar, float64[T].

        Args:
            name: of the series.
            transform: the series -> float64[N], before it is joined; each number from its own
                date and those before.

        Raises:
            DataError: the series is not there, begins after the first bar or ended before the last.
        """
        if name not in self.series:
            raise DataError(
                f"a feature looks at macro/{name}.parquet, which was not given; put it beside "
                "historical, or leave the feature out"
            )
        series = self.series[name]
        latest = np.searchsorted(series.usable, self.session, side="right") - 1
        if latest[0] < 0:
            raise DataError(
                f"{series.source}: the first value could be used on {series.usable[0]}, and bars "
                f"begin on {self.session[0]}; cut the bars, get a longer series, or leave its "
                "features out"
            )
        age = (self.session - series.usable[latest]).astype(np.int64)
        late = np.flatnonzero(age > series.patience)
        if len(late):
            raise DataError(
                f"{series.source}: on {self.session[late[0]]} its latest value, of "
                f"{series.date[latest[late[0]]]}, had been public for {age[late[0]]} days; get a "
                "newer file, cut the bars, or leave its features out"
            )
        return np.asarray(transform(series), np.float64)[latest]
