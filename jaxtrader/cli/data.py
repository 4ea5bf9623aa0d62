"""`jaxtrader data`: from files of any vendor to bars that can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxtrader.cli.console import make_console

if TYPE_CHECKING:
    from rich.console import Console

    from jaxtrader.data.checking import CheckedFile

data = tyro.extras.SubcommandApp()


@data.command(name="import")
def import_(
    sources: Annotated[tuple[Path, ...], tyro.conf.Positional],
    into: Path = Path("data"),
    symbol: str | None = None,
    timeframe: str | None = None,
    zone: str | None = None,
    label: Literal["start", "end"] | None = None,
    prices: Literal["raw", "split_adjusted", "adjusted"] | None = None,
    date_format: str | None = None,
    decimal: Literal[".", ","] = ".",
    resample: str | None = None,
    calendar: str | None = None,
    hours: Literal["regular", "all"] = "regular",
    replace: bool = False,
) -> int:
    """Import bars as vendors write them into INTO/historical/SYMBOL/TIMEFRAME/data.parquet.

    Reads CSV as of Yahoo, yfinance, Stooq, Kaggle, Binance, Alpaca, Alpha Vantage, Tiingo, Nasdaq,
    Polygon, Dukascopy, CryptoDataDownload and their like, also in .gz and .zip, the zip files of
    QuantConnect's LEAN with their map and factor files, and parquet. It says what it took for
    granted, and how that came to be known; the options below override what files do not say.

        jaxtrader data import downloads/ --into data
        jaxtrader data import SPY.csv --zone America/New_York --label end
        jaxtrader data import minutes/ --resample 1Hour
        jaxtrader data import Lean/Data/equity/usa/hour --into data

    Nothing is judged here, and nothing repaired: `jaxtrader data check` comes next. When a file
    cannot be understood, nothing at all is written.

    Args:
      sources: Files, or folders that hold files.
      into: Folder that gets, or has, `historical`.
      symbol: Symbol of the files. Default: as a column or the file's name says.
      timeframe: Length of the files' bars: 15Min, 1Hour, 1Day. Default: the commonest distance.
      zone: Time zone of times without an offset, such as UTC or America/New_York.
      label: Whether a time is the start or the end of its bar.
      prices: As traded (raw), adjusted for splits, or adjusted for dividends too. Of raw prices
        with their splits and dividends, a column adjustment_factor is kept, which readers apply.
      date_format: How times are written, as in '%d.%m.%Y %H:%M'.
      decimal: The sign before the decimals.
      resample: Make longer bars, such as 1Hour, counted from the open of each session.
      calendar: Exchange that says when sessions are, such as XNYS, XLON, 24/5 or 24/7, for
        --resample. Default: by the hours and weekdays of the bars.
      hours: Whether --resample leaves out what lies outside sessions.
      replace: Put new files in the place of files that are there already.
    """
    from rich.progress import Progress
    from rich.table import Table

    from jaxtrader.data.importing import ImportOptions, import_files

    options = ImportOptions(
        symbol, timeframe, zone, label, prices, date_format, decimal, resample, calendar, hours,
        replace,
    )  # fmt: skip
    console = make_console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def progress(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        found = import_files(sources, into, options, progress)
    table = Table(title=f"{len(found)} series in {into / 'historical'}")
    for heading in ("symbol", "bars", "first", "last", "vendor", "times", "label", "prices"):
        table.add_column(heading, overflow="fold")
    for each in found:
        said = each.provenance
        table.add_row(
            each.symbol,
            f"{each.bars:,} of {each.timeframe}",
            each.first[:10],
            each.last[:10],
            said["vendor"],
            said["zone"],
            said["label"],
            said["prices"],
        )
    console.print(table)
    for each in found:
        for note in each.provenance["notes"]:
            console.print(f"{each.symbol} {each.timeframe}: {note}", markup=False, soft_wrap=True)
    console.print("next: jaxtrader data check", markup=False, highlight=False)
    return 0


@data.command(name="check")
def check(
    data_dir: Annotated[Path, tyro.conf.Positional] = Path("data"),
    symbols: tuple[str, ...] = (),
    timeframes: tuple[str, ...] = (),
    calendar: str | None = None,
    report: Path | None = None,
    remediate: Path | None = None,
) -> int:
    """Check bars: what is missing, doubled, out of place or hardly true; and whether to train.

    Looks for rows that training refuses, duplicates, holes and sessions cut short by the exchange's
    real calendar (holidays, half days, daylight saving), bars outside sessions, runs that do not
    move, prints taken back by the next bar, moves far beyond the usual, jumps by the ratio of a
    split, bars without volume, steps in the level of the volume, and changes of source.

    Writes DATA_DIR/validation_report.json and .md. Exit status: 0 when every file is fit for
    training, with care or without; 1 when one is not; 2 when something could not be done. With
    --remediate it is that of the copies.

        jaxtrader data check data
        jaxtrader data check data --symbols SPY QQQ --timeframes 1Hour
        jaxtrader data check data --remediate mended

    Args:
      data_dir: Folder that holds `historical`.
      symbols: Which to check. Default: all.
      timeframes: Which to check, such as 1Hour. Default: all.
      calendar: Exchange whose sessions count, such as XNYS, XLON, 24/5 or 24/7. Default: by the
        hours and weekdays of the bars.
      report: Where to write the report. Default: DATA_DIR/validation_report.json.
      remediate: Write mended copies into this folder, and remediation.csv with every row that was
        moved or left out. The files that were checked stay as they are.
    """
    from rich.progress import Progress
    from rich.table import Table

    from jaxtrader.data import checking

    console = make_console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("checking", total=None)

        def progress(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        checked = checking.check_folder(data_dir, symbols, timeframes, calendar, progress=progress)
    table = Table(title=f"{len(checked)} files under {data_dir}")
    for heading in ("symbol", "bars", "first", "last", "coverage", "verdict", "why"):
        table.add_column(heading, overflow="fold")
    for each in checked:
        kinds = [f.kind for f in each.findings if f.severity != "note"]
        table.add_row(
            each.symbol,
            f"{each.bars:,} of {each.timeframe}",
            (each.first or "")[:10],
            (each.last or "")[:10],
            f"{100 * each.coverage:.1f} %",
            each.verdict.name,
            ", ".join(dict.fromkeys(kinds)),
        )
    console.print(table)
    path = report or data_dir / "validation_report.json"
    readable = checking.write_report(checked, path)
    console.print(f"report: {path}, {readable}", markup=False, soft_wrap=True)
    if remediate is not None:
        checked = _mend(checked, remediate, console)
    return 1 if any(each.verdict.name == "not ready" for each in checked) else 0


def _mend(checked: list[CheckedFile], into: Path, console: Console) -> list[CheckedFile]:
    """Writes mended copies and a report of them; what is checked then, mended or not."""
    from jaxtrader.data import checking

    mended = {}
    for new in checking.remediate(checked, into):
        each = checking.check_file(new.path, new.symbol, new.timeframe, new.calendar)
        mended[new.symbol, new.timeframe] = each
        said = "; ".join(f"{count:,} rows {name}" for name, count in new.changes.items())
        console.print(
            f"{new.path}: {each.verdict.name}, {new.bars:,} bars; {said or 'nothing to change'}",
            markup=False,
            soft_wrap=True,
        )
    checking.write_report([*mended.values()], into / "validation_report.json")
    console.print(f"every change: {into / 'remediation.csv'}", markup=False, soft_wrap=True)
    return [mended.get((each.symbol, each.timeframe), each) for each in checked]


@data.command(name="features")
def features(
    data_dir: Annotated[Path, tyro.conf.Positional] = Path("data"),
    symbols: tuple[str, ...] = (),
    timeframe: str = "1Hour",
    names: tuple[str, ...] = (),
    groups: tuple[Literal["technical", "sentiment", "regime", "macro"], ...] = (),
    into: Path | None = None,
    probes: int = 0,
) -> int:
    """List the features there are, or compute those of symbols and probe them for look-ahead.

    Without --symbols, every feature with its group, the bars that it needs before its first value,
    the series that it looks at, and its formula. With them, the span of each feature's values; all
    symbols named make up the universe of the features that look at several. Exit status: 1 when a
    feature has looked ahead.

        jaxtrader data features
        jaxtrader data features --groups regime
        jaxtrader data features data --symbols SPY QQQ --groups technical regime --into data
        jaxtrader data features data --symbols SPY --names rsi_14 macro_inflation --probes 100

    Args:
      data_dir: Folder that holds `historical`, and `sentiment` and `macro` beside it.
      symbols: Whose features to compute.
      timeframe: Of their bars.
      names: Which features. Default: those that training looks at.
      groups: All features of these groups, beside those named.
      into: Folder that gets features/SYMBOL/TIMEFRAME/features.parquet.
      probes: Bars at which to replace and to remove all that is later, to see whether a feature
        knew it; 100 are enough to find what is not rare.
    """
    from rich.table import Table

    from jaxtrader.data.features import FEATURE_NAMES, FEATURES, chosen_features

    console = make_console()
    of_groups = tuple(n for n, each in FEATURES.items() if each.group in groups)
    chosen = tuple(dict.fromkeys((*names, *of_groups)))
    if chosen:
        chosen_features(chosen)
    if not symbols:
        table = Table(title=f"{len(FEATURES)} features; * is what training looks at by default")
        for heading in ("feature", "group", "warm-up", "series", "formula"):
            table.add_column(heading, overflow="fold")
        for name in chosen or tuple(FEATURES):
            each = FEATURES[name]
            default = "*" if name in FEATURE_NAMES else ""
            warm_up = f"{each.warm_up(timeframe):,}"
            table.add_row(name + default, each.group, warm_up, ", ".join(each.macro), each.formula)
        console.print(table)
        return 0
    return _compute_features(data_dir, symbols, timeframe, chosen or FEATURE_NAMES, into, probes)


def _compute_features(
    data_dir: Path,
    symbols: tuple[str, ...],
    timeframe: str,
    names: tuple[str, ...],
    into: Path | None,
    probes: int,
) -> int:
    from rich.table import Table

    from jaxtrader.data.feature_files import features_of

    console, ahead = make_console(), False
    for each in features_of(data_dir, symbols, timeframe, names, into, probes):
        table = Table(
            title=f"{each.symbol}: {len(each.values):,} bars, {each.warm_up:,} of warm-up"
        )
        for heading in ("feature", "least", "mean", "most", "look-ahead"):
            table.add_column(heading)
        for column, name in enumerate(names):
            values = each.values[each.warm_up :, column]
            seen = len(each.looked_ahead.get(name, ()))
            said = f"in {seen:,} bars" if seen else "none found" if probes else "not probed"
            numbers = (values.min(), values.mean(), values.max()) if len(values) else ()
            table.add_row(name, *(f"{number:.4g}" for number in numbers), said)
        console.print(table)
        if each.path is not None:
            console.print(f"written: {each.path}", markup=False, soft_wrap=True)
        ahead |= bool(each.looked_ahead)
    return 1 if ahead else 0
