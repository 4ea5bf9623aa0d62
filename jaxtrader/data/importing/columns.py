"""Which column of a file is which, and what the file's vendor is known for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtrader.data.importing.conventions import Conventions, Known, Label, Prices
from jaxtrader.errors import DataError

# What headers call a column, in lower case with all but letters and digits left out. Where a file
# has several of a row, the one that stands first here counts: an epoch before a text.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "time": (
        "unix", "unixtimestamp", "epoch", "windowstart", "timestamp", "datetime", "opentime",
        "gmttime", "localtime", "begin", "start", "date", "time", "t", "closetime",
    ),
    "open": ("open", "o", "1open", "openprice"),
    "high": ("high", "h", "2high", "highprice"),
    "low": ("low", "l", "3low", "lowprice"),
    "close": ("close", "c", "4close", "closeprice", "closelast", "last"),
    "volume": ("volume", "vol", "v", "5volume", "6volume", "tickvolume"),
    "adj_close": ("adjclose", "adjustedclose", "5adjustedclose"),
    "dividend": ("dividend", "dividends", "dividendamount", "7dividendamount", "divcash"),
    "split": ("split", "splits", "stocksplits", "splitcoefficient", "8splitcoefficient",
              "splitfactor"),
    "symbol": ("symbol", "ticker", "tic", "name", "instrument"),
}  # fmt: skip
_NEEDED = ("time", "open", "high", "low", "close")

# Files without a line of headers, by their number of columns.
HEADERLESS: dict[int, tuple[str, ...]] = {
    6: ("timestamp", "open", "high", "low", "close", "volume"),
    7: ("date", "time", "open", "high", "low", "close", "volume"),
    12: (
        "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume",
        "count", "taker_buy_volume", "taker_buy_quote_volume", "ignore",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Vendor:
    """What is known of the files of a vendor, which are told by the columns they have."""

    name: str
    columns: frozenset[str]  # headers, in lower case with all but letters and digits left out
    zone: str | None
    label: Label | None
    prices: Prices | None

    def conventions(self) -> Conventions:
        """All of it, marked as known of the vendor."""
        how = f"known of {self.name}"
        values = (self.zone, self.label, self.prices)
        return Conventions(*(None if value is None else Known(value, how) for value in values))


def _vendor(
    name: str, columns: str, zone: str | None, label: Label | None, prices: Prices | None
) -> Vendor:
    return Vendor(name, frozenset(columns.split()), zone, label, prices)


# The first whose columns are all there counts, so the pickier ones stand above the others.
VENDORS = (
    # github.com/binance/binance-public-data: open times in ms, in µs from 2025 on.
    _vendor("Binance", "opentime closetime quotevolume count", "UTC", "start", "raw"),
    # docs.alpaca.markets, stock bars: RFC 3339 in UTC, raw unless asked otherwise.
    _vendor("Alpaca", "timestamp tradecount vwap", "UTC", "start", "raw"),
    # alphavantage.co/documentation, TIME_SERIES_DAILY_ADJUSTED: as-traded prices with events.
    _vendor("Alpha Vantage", "adjustedclose dividendamount splitcoefficient", None, "start", "raw"),
    # tiingo.com/documentation/end-of-day: raw and adjusted columns with events.
    _vendor("Tiingo", "adjclose adjopen divcash splitfactor", "UTC", "start", "raw"),
    # Yahoo divides prices by later splits; `Adj Close` takes dividends out as well.
    _vendor("Yahoo", "open close adjclose", None, "start", "split_adjusted"),
    # yfinance with auto_adjust=True, its default.
    _vendor("yfinance", "open close dividends stocksplits", None, "start", "adjusted"),
    # stooq.com: adjusted unless asked otherwise; in which zone its hours are it does not say.
    _vendor("Stooq", "ticker per date time open close openint", None, None, "adjusted"),
    # kaggle.com, Huge Stock Market Dataset.
    _vendor("Kaggle's stock market files", "date open close openint", None, "start", "adjusted"),
    # kaggle.com, Bitcoin Historical Data.
    _vendor("Kaggle's bitcoin files", "timestamp weightedprice", "UTC", "start", "raw"),
    # cryptodatadownload.com: in UTC since the end of 2017.
    _vendor("CryptoDataDownload", "unix date symbol open close", "UTC", "start", "raw"),
    # dukascopy.com, historical data export.
    _vendor("Dukascopy", "gmttime open close", "UTC", "start", "raw"),
    # polygon.io flat files: epochs in ns, not adjusted.
    _vendor("Polygon", "windowstart transactions", "UTC", "start", "raw"),
    # nasdaq.com, historical quotes.
    _vendor("Nasdaq", "date closelast open", None, "start", "split_adjusted"),
)


def simple(header: str) -> str:
    """A header as this module spells it: `<OPEN>` is open, `1. open` is 1open."""
    return re.sub(r"[^a-z0-9]", "", header.lower())


def is_header(cells: Sequence[str]) -> bool:
    """Whether a line names columns of prices."""
    names = {simple(cell) for cell in cells}
    return any(names & set(SYNONYMS["open"])) and any(names & set(SYNONYMS["close"]))


def vendor_of(headers: Sequence[str]) -> Vendor | None:
    """The vendor whose columns are all there; None when there is none."""
    names = {simple(header) for header in headers}
    return next((vendor for vendor in VENDORS if vendor.columns <= names), None)


def find_columns(headers: Sequence[str], where: str) -> dict[str, str]:
    """Role -> header, for the roles of `SYNONYMS` that the file has, and `clock` for a time of day.

    Raises:
        DataError: a column is there twice, or one that is needed is not there.
    """
    by_name: dict[str, str] = {}
    for header in headers:
        if simple(header) in by_name and simple(header):
            raise DataError(
                f"{where}: columns {by_name[simple(header)]!r} and {header!r} are called alike; "
                "rename or delete one"
            )
        by_name.setdefault(simple(header), header)
    found = {
        role: by_name[next(name for name in names if name in by_name)]
        for role, names in SYNONYMS.items()
        if any(name in by_name for name in names)
    }
    missing = [role for role in _NEEDED if role not in found]
    if missing:
        raise DataError(
            f"{where}: no column for {', '.join(missing)}; the columns are "
            f"{', '.join(map(repr, headers))}. Rename them to time, open, high, low, close, volume"
        )
    if found["time"] == by_name.get("date") and "time" in by_name:
        found["clock"] = by_name["time"]
    if "volume" not in found:  # CryptoDataDownload: `Volume BTC`, and then `Volume USD`
        some = [header for name, header in by_name.items() if name.startswith("volume")]
        found |= {"volume": some[0]} if some else {}
    return found
