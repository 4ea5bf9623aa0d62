"""Check files and folders of bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrader.data.checking.coverage import coverage_of
from jaxtrader.data.checking.findings import Finding, Limits, Verdict
from jaxtrader.data.checking.rules import RULES, row_findings
from jaxtrader.data.checking.series import read_raw, series_of
from jaxtrader.data.exchange import known_calendar
from jaxtrader.data.layout import bars_path, historical_folder, timeframe_minutes
from jaxtrader.errors import ConfigError, DataError


@dataclass(frozen=True)
class CheckedFile:
    """What there is to say about one file of bars."""

    symbol: str
    timeframe: str
    path: Path
    verdict: Verdict
    findings: tuple[Finding, ...]
    sha256: str | None = None  # None where the file cannot be read
    bars: int = 0
    first: str | None = None  # UTC
    last: str | None = None  # UTC
    calendar: str | None = None
    sessions: int = 0  # that the calendar has from the first bar to the last
    missing_sessions: int = 0
    expected_bars: int = 0
    coverage: float = 0.0  # share of the expected bars, 0 to 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "symbol": self.symbol,
            "timeframe": self.timeframe,
            "path": str(self.path),
            "sha256": self.sha256,
            "verdict": self.verdict.name,
            "reasons": list(self.verdict.reasons),
            "bars": self.bars,
            "first": self.first,
            "last": self.last,
            "calendar": self.calendar,
            "sessions": self.sessions,
            "missing_sessions": self.missing_sessions,
            "expected_bars": self.expected_bars,
            "coverage": round(self.coverage, 6),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check_file(
    path: Path,
    symbol: str,
    timeframe: str,
    calendar: str | None = None,
    limits: Limits | None = None,
) -> CheckedFile:
    """Says what is wrong with a file. A file that cannot be read is a finding, not an error.

    Args:
        path: parquet file.
        symbol: of its bars.
        timeframe: of its bars.
        calendar: as exchange_calendars calls it; None to go by the hours and weekdays of the bars.
        limits: where findings begin.

    Raises:
        ConfigError: there is no such calendar.
    """
    limits = Limits() if limits is None else limits
    if calendar is not None:
        known_calendar(calendar)
    try:
        timeframe_minutes(timeframe)
        raw = read_raw(path, symbol, timeframe)
        series = series_of(raw, calendar)
    except (ConfigError, DataError) as error:
        finding = Finding("unreadable", "fatal", 1, str(error))
        return CheckedFile(symbol, timeframe, path, Verdict.of([finding]), (finding,))
    findings = list(row_findings(raw))
    if series is None:
        few = Finding("length", "fatal", len(raw.stamps), "less than two bars make sense")
        findings.append(few)
        return CheckedFile(
            symbol, timeframe, path, Verdict.of(findings), tuple(findings), raw.sha256
        )
    findings += [finding for rule in RULES for finding in rule(series, limits)]
    covered = coverage_of(series)
    return CheckedFile(
        symbol=symbol,
        timeframe=timeframe,
        path=path,
        verdict=Verdict.of(findings),
        findings=tuple(findings),
        sha256=raw.sha256,
        bars=len(raw.stamps),
        first=series.when(0),
        last=series.when(len(series) - 1),
        calendar=series.sessions.calendar,
        sessions=len(series.sessions),
        missing_sessions=len(covered.missing_sessions),
        expected_bars=covered.expected,
        coverage=covered.share,
    )


def check_folder(
    data_dir: str | Path,
    symbols: Sequence[str] = (),
    timeframes: Sequence[str] = (),
    calendar: str | None = None,
    limits: Limits | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> list[CheckedFile]:
    """Checks the bars under `data_dir`.

    Args:
        data_dir: folder that holds `historical` (or `data/historical`), or is it.
        symbols: which; none for all.
        timeframes: which; none for all.
        calendar, limits: see `check_file`.
        progress: told what is checked, and how many of how many files are done.

    Returns:
        One entry a file, by symbol and timeframe.

    Raises:
        DataError: there is no such folder, symbol or timeframe, or no file at all.
        ConfigError: there is no such calendar or timeframe.
    """
    for timeframe in timeframes:
        timeframe_minutes(timeframe)
    historical = historical_folder(data_dir)
    if symbols and timeframes:
        files = [bars_path(data_dir, symbol, name) for symbol in symbols for name in timeframes]
    else:
        files = sorted(historical.glob("*/*/data.parquet"))
        unknown = set(symbols) - {file.parent.parent.name for file in files}
        if unknown:
            bars_path(data_dir, sorted(unknown)[0], "1Hour")  # says which symbols there are
        files = [
            file
            for file in files
            if (not symbols or file.parent.parent.name in symbols)
            and (not timeframes or file.parent.name in timeframes)
        ]
    if not files:
        raise DataError(f"{historical}: no <SYMBOL>/<timeframe>/data.parquet of what was asked for")
    checked = []
    for done, file in enumerate(files):
        symbol, timeframe = file.parent.parent.name, file.parent.name
        progress(f"{symbol} {timeframe}", done, len(files))
        checked.append(check_file(file, symbol, timeframe, calendar, limits))
    progress("done", len(files), len(files))
    return checked
