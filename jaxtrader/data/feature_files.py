"""Features of symbols on disk: to look at, to plot, and to probe for look-ahead."""

from __future__ import annotations

import importlib.metadata
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrader.data.bars import Bars, read_bars
from jaxtrader.data.features import chosen_features, compute_features, warm_up_bars
from jaxtrader.data.lookahead import find_lookahead
from jaxtrader.data.macro import MacroSeries, read_macro
from jaxtrader.data.sentiment import DailySentiment, read_sentiment
from jaxtrader.data.sessions import sessions_of
from jaxtrader.data.universe import Universe
from jaxtrader.files import write_whole

METADATA = b"jaxtrader.features"


@dataclass(frozen=True, eq=False)
class SymbolFeatures:
    """The features of one symbol's T bars."""

    symbol: str
    path: Path | None  # of the file; None where none was asked for
    values: np.ndarray  # float64[T, F]; NaN in the warm-up
    warm_up: int  # rows
    looked_ahead: dict[str, np.ndarray]  # see `find_lookahead`; empty where it was not asked for


def features_of(
    data_dir: str | Path,
    symbols: Sequence[str],
    timeframe: str = "1Hour",
    names: tuple[str, ...] | None = None,
    into: str | Path | None = None,
    probes: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Iterator[SymbolFeatures]:
    """Computes features of the bars under `data_dir`, of all symbols as one universe.

    Args:
        data_dir: folder that holds `historical`, and `sentiment` and `macro` where features look
            at them.
        symbols: names of S symbols.
        timeframe: of their bars.
        names: F registered names; None for all of `FEATURE_NAMES`.
        into: folder that gets `features/<SYMBOL>/<timeframe>/features.parquet`: timestamp, and a
            column float64 a feature; None to write nothing.
        probes: bars at which to look for look-ahead; 0 for none.
        progress: told which symbol is next, and how many of how many are done.

    Raises:
        DataError: a file is missing, damaged or malformed, or does not reach far enough.
        ConfigError: a name is unknown, or given twice.
        JaxtraderError: a file cannot be written.
    """
    chosen = chosen_features(names)
    names = tuple(each.name for each in chosen)
    series = sorted({name for each in chosen for name in each.macro})
    macro = {name: read_macro(data_dir, name) for name in series}
    bars = [read_bars(data_dir, symbol, timeframe) for symbol in symbols]
    sessions = [sessions_of(each) for each in bars]
    universe = Universe.of(bars, sessions)
    for done, (each, when) in enumerate(zip(bars, sessions, strict=True)):
        progress(each.symbol, done, len(bars))
        mood = read_sentiment(data_dir, each.symbol)
        known = {"macro": macro, "universe": universe}
        values = compute_features(each, mood, names, when, **known)
        ahead = find_lookahead(each, names, mood, probes=probes, **known) if probes else {}
        path = None
        if into is not None:
            folder = Path(into) / "features" / each.symbol / timeframe
            path = folder / "features.parquet"
            write_whole(path, _parquet(each, mood, macro, names, values))
        warm_up = warm_up_bars(names, timeframe)
        yield SymbolFeatures(each.symbol, path, values, warm_up, ahead)
    progress("done", len(bars), len(bars))


def _parquet(
    bars: Bars,
    sentiment: DailySentiment | None,
    macro: dict[str, MacroSeries],
    names: tuple[str, ...],
    values: np.ndarray,
) -> bytes:
    sources = [bars, *([sentiment] if sentiment else []), *macro.values()]
    said = {
        "sources": [{"file": each.source, "sha256": each.sha256} for each in sources],
        "jaxtrader": importlib.metadata.version("jaxtrader"),
    }
    stamps = pa.array(bars.timestamps, pa.timestamp("us", "UTC"))
    table = pa.table({"timestamp": stamps, **dict(zip(names, values.T, strict=True))})
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({METADATA: json.dumps(said).encode()})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
