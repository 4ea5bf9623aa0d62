"""Where files lie: `historical/<SYMBOL>/<timeframe>/data.parquet` and its neighbours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from jaxtrader.errors import ConfigError, DataError

_SYMBOL = re.compile(r"[A-Za-z0-9^][A-Za-z0-9^._=-]{0,31}")
_TIMEFRAME = re.compile(r"([1-9][0-9]{0,3})(Min|Hour|Day)")
_MINUTES = {"Min": 1, "Hour": 60, "Day": 24 * 60}


def timeframe_minutes(timeframe: str) -> int:
    """Length of one bar in minutes: `"15Min"` -> 15, `"1Hour"` -> 60, `"1Day"` -> 1440.

    Raises:
        ConfigError: the name is not a whole number followed by Min, Hour or Day.
    """
    match = _TIMEFRAME.fullmatch(timeframe)
    if match is None:
        raise ConfigError(
            f"timeframe {timeframe!r} is not a number followed by Min, Hour or Day; "
            "write for example '15Min', '1Hour' or '1Day'"
        )
    return int(match[1]) * _MINUTES[match[2]]


def check_symbol(symbol: str) -> str:
    """Returns `symbol` when it can be the name of one folder, and nothing else.

    Raises:
        DataError: the name holds a path separator, starts with a dot, or is otherwise not a ticker.
    """
    if _SYMBOL.fullmatch(symbol) is None or ".." in symbol:
        raise DataError(
            f"{symbol!r} is not a symbol: use letters, digits and . - _ = ^ "
            "(for example SPY, BRK-B, BTCUSDT), no folders"
        )
    return symbol


def historical_folder(data_dir: str | Path) -> Path:
    """The `historical` folder of `data_dir`: DIR/historical, DIR/data/historical or DIR itself.

    Raises:
        DataError: none of the three exists.
    """
    data_dir = Path(data_dir)
    candidates = [data_dir / "historical", data_dir / "data" / "historical"]
    if data_dir.name == "historical":
        candidates.append(data_dir)
    for folder in candidates:
        if _is_there(folder.is_dir, folder):
            return folder
    raise DataError(
        f"{data_dir}: found neither {candidates[0]} nor {candidates[1]}; give the folder that "
        "holds historical/<SYMBOL>/<timeframe>/data.parquet"
    )


def bars_path(data_dir: str | Path, symbol: str, timeframe: str) -> Path:
    """Path of one symbol's bars, which exists.

    Raises:
        DataError: no such symbol (the nearest ones are named) or timeframe (those there are named).
        ConfigError: `timeframe` is not the name of a timeframe.
    """
    check_symbol(symbol)
    timeframe_minutes(timeframe)
    historical = historical_folder(data_dir)
    folder = historical / symbol
    path = folder / timeframe / "data.parquet"
    if _is_there(path.is_file, path):
        return path
    if not folder.is_dir():
        several = " Separate several symbols by spaces." if "," in symbol else ""
        nearest = _nearest_symbols(symbol, historical)
        raise DataError(f"{folder}: no such symbol.{several} {nearest}")
    if path.exists():
        raise DataError(f"{path}: is not a file; write the bars as one parquet file of that name")
    timeframes = sorted(p.parent.name for p in folder.glob("*/data.parquet") if p.is_file())
    others = sorted(p.name for p in path.parent.glob("*") if p.is_file())
    hint = f". There is {others[0]}: bars are read from parquet alone" if others else ""
    raise DataError(
        f"{path}: no such file. Timeframes of {symbol} there: {', '.join(timeframes) or 'none'}"
        f"{hint}"
    )


def sentiment_path(data_dir: str | Path, symbol: str) -> Path:
    """Path of one symbol's daily sentiment, beside `historical`; the file may not exist."""
    folder = historical_folder(data_dir).parent
    return folder / "sentiment" / check_symbol(symbol) / "daily_sentiment.parquet"


def macro_path(data_dir: str | Path, name: str) -> Path:
    """Path of a series of the economy, beside `historical`, which exists.

    Raises:
        DataError: there is no such file; those there are named.
    """
    folder = historical_folder(data_dir).parent / "macro"
    path = folder / f"{check_symbol(name)}.parquet"
    if not _is_there(path.is_file, path):
        there = sorted(each.stem for each in folder.glob("*.parquet"))
        raise DataError(
            f"{path}: no such file. Series there: {', '.join(there) or 'none'}; leave the features "
            f"that look at {name} out, or add it"
        )
    return path


def _is_there(check: Callable[[], bool], path: Path) -> bool:
    """Raises DataError where even looking is not permitted, or the name is too long."""
    try:
        return check()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be looked at ({error.strerror}); check the path and its permissions"
        ) from error


def _nearest_symbols(symbol: str, historical: Path) -> str:
    symbols = sorted(p.name for p in historical.iterdir() if p.is_dir())
    if not symbols:
        return f"{historical} holds no symbols at all"
    by_upper = {name.upper(): name for name in symbols}
    nearest = difflib.get_close_matches(symbol.upper(), by_upper, n=3, cutoff=0.5)
    if nearest:
        names = ", ".join(by_upper[name] for name in nearest)
        return f"Nearest of the {len(symbols)} there: {names}"
    return f"There are {len(symbols)}: {', '.join(symbols[:8])}{', ...' * (len(symbols) > 8)}"
