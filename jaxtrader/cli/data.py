"""`jaxtrader data`: from files of any vendor to bars that can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxtrader.cli.console import make_console

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
    granted, and how that came to be known; every option below overrides it.

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
