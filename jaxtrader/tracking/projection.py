"""What a run's files say, in MLflow's terms: parameters, tags and points. Nothing is sent here.

Names: `train/<column>` of the table of updates, `episodes/<metric>` averaged over the episodes
that ended in an update, and `<split>/...` of the evaluation; before each, with several symbols,
`<SYMBOL>/`. A point's step is environment steps of its seed. Its time is that of the run's start
plus a millisecond an update: tables have no clock, so that a resumed run repeats them to the bit,
and a point that is sent again is the same point.

A value that is not finite has no point. It stays in the tables, which are among the artifacts.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrader.tracking.record import RunRecord, milliseconds

LONGEST_VALUE = 6000  # characters of a parameter; tags may have more
_NO_METRIC = ("symbol", "seed", "update", "steps")
_WORDS = {"": math.nan, "True": 1.0, "False": 0.0}


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    timestamp: int  # ms since 1970
    step: int  # environment steps


class GrowingTable:
    """A CSV file read from where the last reading ended, whole lines only."""

    def __init__(self, path: Path):
        """The file may not exist yet."""
        self.path = path
        self.offset = 0  # bytes taken so far
        self._digest = hashlib.sha256()
        self._columns: list[str] = []

    @property
    def sha256(self) -> str:
        """Of the bytes taken so far."""
        return self._digest.hexdigest()

    def lines(self) -> list[bytes]:
        """The lines that have not been taken yet; one that is still being written is left."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)

    def take(self, lines: Sequence[bytes]) -> list[dict[str, str]]:
        """The next lines as rows, by column."""
        self.offset += sum(map(len, lines))
        self._digest.update(b"".join(lines))
        fields = list(csv.reader(line.decode() for line in lines))
        if fields and not self._columns:
            self._columns = fields.pop(0)
        return [dict(zip(self._columns, row, strict=True)) for row in fields]


def update_points(record: RunRecord, row: Mapping[str, str]) -> list[Point]:
    """Of one row of the table of updates."""
    prefix = _prefix(record, row["symbol"])
    timestamp = record.started_ms + int(row["update"])
    values = {name: _number(text) for name, text in row.items() if name not in _NO_METRIC}
    return [
        Point(f"{prefix}train/{column}", value, timestamp, int(row["steps"]))
        for column, value in values.items()
        if math.isfinite(value)
    ]


def episode_points(record: RunRecord, rows: Sequence[Mapping[str, str]]) -> list[Point]:
    """Of all episodes of one seed that ended in the same update."""
    found = []
    for symbol in record.symbols:
        own = [row for row in rows if row["symbol"] == symbol]
        for metric, column in record.episode_means.items():
            values = [_number(row[column]) for row in own]
            mean = math.fsum(values) / len(values) if values else math.nan
            if math.isfinite(mean):
                first = own[0]
                timestamp = record.started_ms + int(first["update"])
                name = f"{_prefix(record, symbol)}episodes/{metric}"
                found.append(Point(name, mean, timestamp, int(first["steps_done"])))
    return found


def evaluation_points(
    record: RunRecord, agent: Mapping[str, Any], summary: Mapping[str, Any]
) -> list[Point]:
    """Of one agent of a report's summary."""
    evaluation = agent["evaluation"]
    prefix = f"{_prefix(record, agent['symbol'])}{evaluation['split']}/"
    return _report_points(prefix, evaluation, summary)


def training_points(summary: Mapping[str, Any]) -> list[Point]:
    """Of a report's summary: how long was trained and how fast, and how many agents passed."""
    passed = sum(agent["passed"] for agent in summary["agents"])
    counts = {"agents": len(summary["agents"]), "agents_passed": passed}
    return _report_points("", {"training": summary["training"], **counts}, summary)


def parameters(record: RunRecord, seed: int | None) -> dict[str, str]:
    """The settings, and the seed of a child run or all seeds of the parent's."""
    seeds = {"seeds": _words(record.seeds)} if seed is None else {"seed": str(seed)}
    settings = dict(_leaves(record.config, "."))
    values = {**settings, "symbols": _words(record.symbols), **seeds}
    return {name: _shortened(str(value)) for name, value in values.items()}


def tags(record: RunRecord, seed: int | None) -> dict[str, str]:
    """What a run is found by, and what it was made with and from."""
    environment = record.environment
    commit = environment["git_commit"]
    found = {
        "agent_type": record.agent_type,
        "curriculum_stage": record.curriculum_stage,
        "reward_version": record.reward_version,
        **({"seeds": _words(record.seeds)} if seed is None else {"seed": str(seed)}),
        "git_commit": commit or "unknown",
        **{f"data.{name}": str(value) for name, value in record.data.items()},
        **{f"version.{name}": value for name, value in environment["versions"].items()},
        **{f"machine.{name}": value for name, value in environment["machine"].items()},
        "command": shlex.join(record.command),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": record.study,
    }
    if commit:
        found["mlflow.source.git.commit"] = commit.partition("+")[0]
    return {name: _shortened(value) for name, value in found.items()}


def verdict_tags(agents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Which gates these agents of a summary failed, which of them halted, and what to look at.

    No agents, no verdict.
    """
    if not agents:
        return {}
    failed, halted, warnings = [], [], []
    for agent in agents:
        name = f"{agent['symbol']} seed {agent['seed']}"
        gates = [gate["metric"] for gate in agent["gates"] if not gate["passed"]]
        failed += [f"{name}: {gate}" for gate in gates]
        halted += [f"{name}: {agent['halted']}"] if agent["halted"] else []
        warnings += [f"{name}: {warning}" for warning in agent["warnings"]]
    found = {
        "gates": "failed" if failed else "passed",
        "gates.failed": "; ".join(failed),
        "halted": "; ".join(halted),
        "warnings": "; ".join(warnings),
    }
    return {name: _shortened(text or "none") for name, text in found.items()}


def metric_symbol(symbol: str) -> str:
    """A symbol as a metric's name may hold it: `^GSPC` is `_5e_GSPC`."""
    return re.sub(r"[^A-Za-z0-9_.-]", lambda match: f"_{ord(match[0]):x}_", symbol)


def _prefix(record: RunRecord, symbol: str) -> str:
    return f"{metric_symbol(symbol)}/" if len(record.symbols) > 1 else ""


def _report_points(
    prefix: str, section: Mapping[str, Any], summary: Mapping[str, Any]
) -> list[Point]:
    timestamp, step = milliseconds(summary["created"]), summary["training"]["steps_per_seed"]
    return [
        Point(prefix + name, float(value), timestamp, step)
        for name, value in _leaves(section, "/")
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _number(text: str) -> float:
    """A field of a table: an empty one is NaN, True is 1."""
    return _WORDS[text] if text in _WORDS else float(text)


def _leaves(section: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            for inner, leaf in _leaves(value, separator):
                yield f"{name}{separator}{inner}", leaf
        else:
            yield name, value


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"
