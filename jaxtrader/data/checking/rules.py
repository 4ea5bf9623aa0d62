"""What is looked for in a file of bars: one function a subject, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from jaxtrader.data.bars import row_faults
from jaxtrader.data.checking.coverage import coverage_of, runs
from jaxtrader.data.checking.findings import Finding, Limits
from jaxtrader.data.checking.series import DAY_MINUTES, RawFile, Series

Rule = Callable[[Series, Limits], Iterator[Finding]]
RULES: list[Rule] = []

_SHOWN = 5
_SPLITS = (1.5, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 25, 30, 50)
_NEAR_SPLIT = 0.04  # log distance from such a ratio
_USUAL = 1.4826  # times the median of absolute values: a deviation (of a normal distribution)
_NEIGHBOURS = 41
_STEP_SESSIONS = 20
_ENOUGH_SESSIONS = 60


def rule(check: Rule) -> Rule:
    """Registers a check."""
    RULES.append(check)
    return check


def row_findings(raw: RawFile) -> Iterator[Finding]:
    """Rows that training refuses to read: every rule of `Bars` that is broken."""
    order = np.sort(raw.stamps[~np.isnat(raw.stamps)])
    again = int((np.diff(order).astype(np.int64) == 0).sum())
    if again:
        times = np.unique(order[1:][np.diff(order).astype(np.int64) == 0])
        yield Finding(
            "duplicates",
            "fatal",
            again,
            f"{_count(again, 'row')} at the time of another: {_conflicts(raw, times)}; keep one",
            tuple(_moment(time) for time in times[:_SHOWN]),
        )
    for column, wrong, what, remedy in row_faults(raw.stamps, raw.values):
        rows = np.flatnonzero(wrong)
        if len(rows) and "repeats the row" not in what:
            kind = "order" if "earlier" in what else "bad rows"
            yield Finding(
                kind,
                "fatal",
                len(rows),
                f"column {column!r} {what} in {_count(len(rows), 'row')}; {remedy}",
                tuple(f"row {row} ({_moment(raw.stamps[row])})" for row in rows[:_SHOWN].tolist()),
            )


def _conflicts(raw: RawFile, times: np.ndarray) -> str:
    """How many of the repeated times have rows that differ, and in what."""
    frame = pd.DataFrame({"time": raw.stamps, **raw.values})
    spread = frame[frame["time"].isin(times)].groupby("time").nunique()
    prices = (spread[["open", "high", "low", "close"]] > 1).any(axis=1)
    volume = (spread["volume"] > 1) & ~prices
    alike = len(spread) - int(prices.sum()) - int(volume.sum())
    return (
        f"{alike} times alike, {int(volume.sum())} with another volume, {int(prices.sum())} with "
        "other prices"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _moment(moment: Any) -> str:
    text = str(np.datetime_as_string(moment, unit="m")).replace("T", " ")
    return text.removesuffix(" 00:00")


@rule
def length(series: Series, limits: Limits) -> Iterator[Finding]:
    """Enough bars to cut into train, validation and test."""
    if len(series) < limits.minimum_bars:
        yield Finding(
            "length",
            "fatal",
            len(series),
            f"{_count(len(series), 'bar')}: too few to train, validate and test on "
            f"({limits.minimum_bars:,} are the least); get a longer history",
        )
    late = int((series.stamps > np.datetime64("now", "us")).sum())
    if late:
        yield Finding(
            "future",
            "fatal",
            late,
            f"{_count(late, 'bar')} of the future; are times in the right unit?",
            (series.when(len(series) - 1),),
        )


@rule
def step(series: Series, limits: Limits) -> Iterator[Finding]:
    """Bars as far apart as the folder says, and none that begins before the last has ended."""
    minutes = np.diff(series.stamps).astype(np.int64) // 60_000_000
    near = minutes[minutes <= 4 * series.minutes]
    commonest = int(np.bincount(near).argmax()) if len(near) else 0
    if series.minutes < DAY_MINUTES and commonest != series.minutes:
        yield Finding(
            "step",
            "fatal",
            len(near),
            f"most bars are {commonest or 'many'} minutes apart, not {series.minutes}; are they in "
            "the right folder?",
        )
        return
    rows = np.flatnonzero(minutes < series.minutes) + 1
    short = series.first_of_session[rows] | ~series.inside[rows]
    rows = rows[~short]
    if len(rows):
        yield Finding(
            "overlap",
            "care",
            len(rows),
            f"{_count(len(rows), 'bar')} before the last one has ended: two series in one file?",
            tuple(series.when(row) for row in rows[:_SHOWN].tolist()),
        )


@rule
def holes(series: Series, limits: Limits) -> Iterator[Finding]:
    """Sessions without a single bar, in a row; and the return across, which is no overnight's."""
    dates = series.sessions.date
    found = runs(coverage_of(series).missing_sessions)
    short = [first for first, last in found if last - first < 2]
    if short:
        yield Finding(
            "missing sessions",
            "note",
            len(short),
            f"{_count(len(short), 'place')} where one session or two have no bar",
            tuple(str(dates[first]) for first in short[:_SHOWN]),
        )
    for first, last in found:
        count = last - first + 1
        if count < 3:
            continue
        after = int(np.searchsorted(series.session, first))
        yield Finding(
            "hole",
            "fatal" if count > limits.longest_hole else "care",
            count,
            f"{_count(count, 'session')} without a bar, {dates[first]} to {dates[last]}: the close "
            f"changes by {100 * np.expm1(series.jump[after]):+.1f} % across; keep a side, or fill "
            "it from another source",
            (str(dates[first]), str(dates[last])),
        )


@rule
def coverage(series: Series, limits: Limits) -> Iterator[Finding]:
    """The share of expected bars, and sessions cut short."""
    found = coverage_of(series)
    lacking = found.expected - found.present
    if found.share < limits.coverage:
        severity = "fatal" if found.share < limits.least_coverage else "care"
        yield Finding(
            "coverage",
            severity,
            lacking,
            f"{100 * found.share:.1f} % of the {found.expected:,} bars that the calendar "
            f"{series.sessions.calendar} expects from the first bar to the last",
        )
    partial = found.partial_sessions
    if len(partial):
        days = tuple(map(str, series.sessions.date[partial[:_SHOWN]]))
        yield Finding(
            "partial sessions",
            "note",
            len(partial),
            f"{_count(len(partial), 'session')} with some of its bars alone",
            days,
        )
    if found.offset and not series.by_week:
        yield Finding(
            "alignment",
            "note",
            found.offset,
            f"bars begin {found.offset} minutes after the open, and every {series.minutes} minutes "
            "then: what is before is in a bar that begins outside the session, or missing",
        )


@rule
def outside(series: Series, limits: Limits) -> Iterator[Finding]:
    """Bars that begin before the open or after the close, holidays and half days included."""
    if series.by_week:
        return
    rows = np.flatnonzero(~series.inside)
    if len(rows):
        share = len(rows) / len(series)
        half = _on_short_days(series, rows)
        yield Finding(
            "outside session",
            "care" if share > limits.outside else "note",
            len(rows),
            f"{_count(len(rows), 'bar')} ({100 * share:.2f} %) outside the sessions of "
            f"{series.sessions.calendar}{half}; drop them, or expect them",
            tuple(series.when(row) for row in rows[:_SHOWN].tolist()),
        )


def _on_short_days(series: Series, rows: np.ndarray) -> str:
    hours = (series.sessions.close - series.sessions.open).astype(np.int64)
    short = hours < np.median(hours)
    count = int(short[series.session[rows]].sum())
    return f", {count:,} of them on days that close early" if count else ""


@rule
def stale(series: Series, limits: Limits) -> Iterator[Finding]:
    """Bars in a row that do not move at all."""
    flat = (series.high == series.low) & (series.jump == 0)
    flat[0] = False
    if flat.any() and series.minutes < DAY_MINUTES:
        yield Finding(
            "flat bars",
            "note",
            int(flat.sum()),
            f"{_count(int(flat.sum()), 'bar')} at one price, that of the close before",
            tuple(series.when(row) for row in np.flatnonzero(flat)[:_SHOWN].tolist()),
        )
    found = [run for run in runs(np.flatnonzero(flat)) if run[1] - run[0] + 1 >= limits.stale_bars]
    if found:
        bars = sum(last - first + 1 for first, last in found)
        longest = max(found, key=lambda run: run[1] - run[0])
        yield Finding(
            "stale",
            "care",
            bars,
            f"{_count(bars, 'bar')} without movement, {limits.stale_bars} and more in a row; the "
            f"longest run begins {series.when(longest[0])} and has {longest[1] - longest[0] + 1}",
            tuple(series.when(first) for first, _ in found[:_SHOWN]),
        )


@rule
def zero_volume(series: Series, limits: Limits) -> Iterator[Finding]:
    """Bars that nobody traded in, as far as the file knows."""
    zero = np.flatnonzero(series.volume == 0)
    if len(zero) == len(series):
        yield Finding(
            "no volume", "care", len(zero), "there is no volume at all: its features are 0"
        )
    elif len(zero):
        share = len(zero) / len(series)
        yield Finding(
            "zero volume",
            "care" if share > limits.zero_volume else "note",
            len(zero),
            f"{_count(len(zero), 'bar')} ({100 * share:.2f} %) without volume",
            tuple(series.when(row) for row in zero[:_SHOWN].tolist()),
        )


@rule
def outliers(series: Series, limits: Limits) -> Iterator[Finding]:
    """Prints that the next bar takes back, and jumps far beyond the usual."""
    usual, size = _usual_move(series), np.abs(series.jump)
    back = _taken_back(series) & ~_across_hole(series)
    bad = back & (size > limits.bad_print) & (size > 8 * usual)
    prints = np.flatnonzero(bad)
    if len(prints):
        yield Finding(
            "bad print",
            "care",
            len(prints),
            f"{_count(len(prints), 'close')} taken back by the next bar, the largest of them "
            f"{100 * np.expm1(series.jump[prints[size[prints].argmax()]]):+.1f} %",
            tuple(series.when(row) for row in prints[:_SHOWN].tolist()),
        )
    far = (size > limits.outlier) & (size > 15 * usual) & ~back & ~_across_hole(series)
    far[1:] &= ~bad[:-1]  # the way back from a bad print
    far &= ~_like_split(series)
    rows = np.flatnonzero(far)
    if len(rows):
        rows = rows[np.argsort(-size[rows], kind="stable")]
        moves = [
            f"{series.when(row)} ({100 * np.expm1(series.jump[row]):+.0f} %)"
            for row in rows.tolist()
        ]
        yield Finding(
            "outlier",
            "care",
            len(rows),
            f"{_count(len(rows), 'move')} far beyond the usual, the largest {moves[0]}: real, or a "
            "spin-off that was adjusted wrongly?",
            tuple(moves[:_SHOWN]),
        )


@rule
def splits(series: Series, limits: Limits) -> Iterator[Finding]:
    """Jumps from one session to the next by the ratio of a split, which stay."""
    rows = np.flatnonzero(_like_split(series) & ~_across_hole(series))
    if len(rows):
        moves = [f"{series.when(row)} (x {np.exp(series.jump[row]):.3g})" for row in rows.tolist()]
        yield Finding(
            "split-like jump",
            "care",
            len(rows),
            f"{_count(len(rows), 'jump')} by the ratio of a split, {moves[0]}: if prices are as "
            "traded, import them with their splits",
            tuple(moves[:_SHOWN]),
        )


@rule
def volume_steps(series: Series, limits: Limits) -> Iterator[Finding]:
    """Places where the volume of a session changes its level: another unit, split or source."""
    total = np.bincount(series.session, series.volume, minlength=len(series.sessions))
    bars = np.bincount(series.session, minlength=len(series.sessions))
    kept = np.flatnonzero((bars > 0) & (total > 0))
    if len(kept) < _ENOUGH_SESSIONS:
        return
    level = np.log(total[kept])
    median = pd.Series(level).rolling(_STEP_SESSIONS).median()
    step = median.shift(-_STEP_SESSIONS + 1).to_numpy() - median.shift(1).to_numpy()
    step = np.nan_to_num(step)
    for i in _peaks(np.abs(step), np.log(limits.volume_step)):
        yield Finding(
            "volume step",
            "care",
            1,
            f"volume becomes {np.exp(abs(step[i])):.3g} times {_direction(step[i])} around "
            f"{series.sessions.date[kept[i]]}: another unit, a split, another source?",
            (str(series.sessions.date[kept[i]]),),
        )


def _direction(step: float) -> str:
    return "larger" if step > 0 else "smaller"


def _peaks(size: np.ndarray, limit: float) -> list[int]:
    """Local maxima above a limit, a stretch of sessions apart, the largest first."""
    found: list[int] = []
    for i in np.argsort(-size):
        if size[i] < limit:
            break
        if all(abs(int(i) - other) >= 2 * _STEP_SESSIONS for other in found):
            found.append(int(i))
    return found[:_SHOWN]


@rule
def sources(series: Series, limits: Limits) -> Iterator[Finding]:
    """Where the column `source` changes, and what changes with it."""
    if series.raw.source is None:
        return
    names = series.raw.source[series.rows]
    changes = np.flatnonzero(names[1:] != names[:-1]) + 1
    if len(changes) == 0:
        return
    within = int((~series.first_of_session[changes]).sum())
    if within:
        yield Finding(
            "mixed sources",
            "care",
            within,
            f"{_count(within, 'change')} of source within a session",
            tuple(series.when(row) for row in changes[:_SHOWN].tolist()),
        )
    steps = [at for row in changes.tolist() if (at := _volume_step_at(series, row)) is not None]
    large = [step for step in steps if abs(np.log(step[1])) > np.log(limits.source_step)]
    said = "; ".join(f"{series.when(row)}: {ratio:.2f} times" for row, ratio in large[:_SHOWN])
    yield Finding(
        "mixed sources",
        "care" if large else "note",
        len(changes),
        f"{len(set(names))} sources, {_count(len(changes), 'change')}"
        + (f"; the level of the volume changes with them ({said})" if large else ""),
        tuple(series.when(row) for row in changes[:_SHOWN].tolist()),
    )


def _volume_step_at(series: Series, row: int) -> tuple[int, float] | None:
    """The ratio of a usual bar's volume in the sessions after a bar and before it."""
    session = series.session[row]
    near = np.abs(series.session - session + 0.5) < _STEP_SESSIONS
    before = series.volume[near & (series.session < session)]
    after = series.volume[near & (series.session >= session)]
    if min(len(before), len(after)) < _STEP_SESSIONS or not np.median(before) > 0:
        return None
    return row, float(np.median(after) / np.median(before))


def _usual_move(series: Series) -> np.ndarray:
    """float64[T]: a usual move of such a bar around that time, the median of 41 sizes.

    The first bar of a session moves more than the others, and a panic more than a quiet summer.
    """
    size = np.abs(series.jump)
    usual = np.empty(len(series))
    for kind in (series.first_of_session, ~series.first_of_session):
        around = pd.Series(size[kind]).rolling(_NEIGHBOURS, center=True, min_periods=1).median()
        usual[kind] = _USUAL * around
    return usual


def _taken_back(series: Series) -> np.ndarray:
    """bool[T]: moves of which the next close takes back four fifths, or the next open half."""
    closes = np.append(series.jump[1:], 0.0)
    opens = np.append(np.log(series.open[1:] / series.close[:-1]), 0.0)
    opens[np.flatnonzero(series.first_of_session[1:])] = 0.0  # a night lies between
    share = np.stack([-closes / 0.8, -opens / 0.5]) * np.sign(series.jump)
    return (share > np.abs(series.jump)).any(axis=0) & (-closes * np.sign(series.jump) > 0)


def _across_hole(series: Series) -> np.ndarray:
    """bool[T]: bars before which a session and more are missing."""
    return np.diff(series.session, prepend=series.session[0]) > 1


def _like_split(series: Series) -> np.ndarray:
    """bool[T]: first bars of a session whose open has moved by the ratio of a split, to stay."""
    gap = np.log(series.open / np.append(series.open[:1], series.close[:-1]))
    ratios = np.log(np.array(_SPLITS))
    near = np.abs(np.abs(gap)[:, None] - ratios).min(axis=1) < _NEAR_SPLIT
    stays = np.abs(series.jump - gap) < 0.5 * np.abs(gap)
    return near & stays & (series.first_of_session | (series.minutes >= DAY_MINUTES))
