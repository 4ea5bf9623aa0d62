"""The gates a run must pass before it is worth more compute: stage 5 of the validation plan.

A gate bounds one telemetry metric, averaged over a run's episodes. `check_gates` judges a run,
`alerts` names what deserves a look without failing it, `gate_table` shows several seeds.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
from rich.table import Table
from rich.text import Text

from jaxtrader.errors import ConfigError, DataError, JaxtraderError

ENTROPY_ALERT = 0.18
"""Nats; policy action entropy under this is an alert."""

ENTROPY_GAP_ALERT = 0.05
"""Nats; executed action entropy further than this from the policy's is an alert."""

# The gap is a difference of two float32 means, each off by at most 1.2e-7 under ln 7.
_GAP_ROUNDING = 1e-6


class MissingMetricError(JaxtraderError, KeyError):
    """A gate asks for a metric that the run did not report; the message names it."""

    def __str__(self) -> str:  # KeyError would print the quoted repr
        return str(self.args[0])


@dataclasses.dataclass(frozen=True)
class Gate:
    """A bound on one metric.

    Raises:
      ConfigError: no bound at all, a bound that is not finite, or a range that holds no value.
    """

    metric: str  # key in the run's metrics
    description: str  # what a failure means, one line
    lower: float | None = None
    upper: float | None = None
    lower_inclusive: bool = True  # the lower bound itself passes
    upper_inclusive: bool = True  # the upper bound itself passes
    unit: str = ""  # printed after the bound

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.lower, self.upper) if bound is not None]
        if not bounds or not all(math.isfinite(bound) for bound in bounds):
            raise ConfigError(f"gate {self.metric}: give a finite lower or upper bound")
        if bounds[0] > bounds[-1]:
            raise ConfigError(f"gate {self.metric}: lower {self.lower} is above upper {self.upper}")

    @property
    def bound(self) -> str:
        """The bound as text: `>= 0.20`, `< 15 pp`, `[0.08, 0.15]`."""
        unit = f" {self.unit}" if self.unit else ""
        if self.lower is not None and self.upper is not None:
            left, right = "[" if self.lower_inclusive else "(", "]" if self.upper_inclusive else ")"
            return f"{left}{_number(self.lower)}, {_number(self.upper)}{right}{unit}"
        if self.lower is not None:
            return f"{'>=' if self.lower_inclusive else '>'} {_number(self.lower)}{unit}"
        assert self.upper is not None  # __post_init__ requires one bound
        return f"{'<=' if self.upper_inclusive else '<'} {_number(self.upper)}{unit}"

    def passes(self, value: float) -> bool:
        """Whether `value` is within the bounds; a value that is not finite never is.

        A value that is a bound's nearest float32 *is* that bound: metrics are computed in float32,
        where one forced exit in ten is 0.1 + 1.5e-9.
        """
        if not math.isfinite(value):
            return False
        if self.lower is not None:
            at_lower = _equal(value, self.lower)
            if not (self.lower_inclusive if at_lower else value > self.lower):
                return False
        if self.upper is not None:
            at_upper = _equal(value, self.upper)
            if not (self.upper_inclusive if at_upper else value < self.upper):
                return False
        return True


@dataclasses.dataclass(frozen=True)
class GateResult:
    """One metric of one run held against its gate."""

    metric: str
    value: float  # as reported, possibly nan
    passed: bool
    bound: str  # the gate's bound as text

    def to_dict(self) -> dict[str, str | float | bool | None]:
        """Fields by name, safe for strict JSON: a value that is not finite becomes `None`."""
        value = self.value if math.isfinite(self.value) else None
        return {**dataclasses.asdict(self), "value": value}


STAGE5_GATES: tuple[Gate, ...] = (
    Gate(
        metric="policy_action_entropy_mean",
        description="the policy has not collapsed onto one action",
        lower=0.20,
        unit="nats",
    ),
    Gate(
        metric="voluntary_trade_rate",
        description="the policy closes trades itself",
        lower=0.10,
    ),
    Gate(
        metric="sanitizer_trade_delta",
        description="the sanitizer refuses few of the policy's orders",
        upper=15.0,
        upper_inclusive=False,
        unit="pp",
    ),
    Gate(
        metric="forced_exit_ratio",
        description="few trades end in a forced exit",
        upper=0.10,
    ),
    Gate(
        metric="diversity_bonus_mean",
        description="actions vary, and not for the bonus's own sake (unweighted)",
        lower=0.08,
        upper=0.15,
    ),
    Gate(
        metric="action_repeat_violations",
        description="few steps repeat an action more than 3 times in a row",
        upper=0.05,
        upper_inclusive=False,
    ),
)
"""The gates of a stage 5 validation run, in the order they are reported."""


def check_gates(
    metrics: Mapping[str, SupportsFloat], gates: Sequence[Gate] = STAGE5_GATES
) -> list[GateResult]:
    """Judges one run.

    Args:
      metrics: metric name to value, as the telemetry reports them; other metrics are ignored.
        Shares are fractions, `sanitizer_trade_delta` is in percentage points, entropies in nats.
      gates: the gates to apply.

    Returns:
      One result per gate, in their order. A `nan` or infinite metric fails.

    Raises:
      MissingMetricError: a gate's metric is absent; it names the metric and the nearest one given.
    """
    results = []
    for gate in gates:
        value = _metric(metrics, gate.metric)
        results.append(GateResult(gate.metric, value, gate.passes(value), gate.bound))
    return results


def alerts(metrics: Mapping[str, SupportsFloat]) -> list[str]:
    """Warnings of one run that fail no gate.

    - policy action entropy under 0.18 nats: the policy is collapsing;
    - executed action entropy more than 0.05 nats from the policy's: the sanitizer rewrites it.

    Args:
      metrics: holds `policy_action_entropy_mean` and `executed_action_entropy_mean`, nats.

    Returns:
      One sentence per alert, none when all is well. An entropy that is not finite is an alert.

    Raises:
      MissingMetricError: one of the two is absent.
    """
    policy = _metric(metrics, "policy_action_entropy_mean")
    executed = _metric(metrics, "executed_action_entropy_mean")
    raised = []
    for name, value in (("policy", policy), ("executed", executed)):
        if not math.isfinite(value):
            raised.append(f"{name} action entropy is {value}: no episode ended, or the run broke")
    if policy < ENTROPY_ALERT and not _equal(policy, ENTROPY_ALERT):
        raised.append(
            f"policy action entropy {policy:.3f} is below {ENTROPY_ALERT} nats: "
            "the policy is collapsing onto few actions"
        )
    gap = abs(executed - policy)
    if math.isfinite(gap) and gap > ENTROPY_GAP_ALERT + _GAP_ROUNDING:
        raised.append(
            f"executed action entropy {executed:.3f} is {gap:.3f} nats from the policy's "
            f"{policy:.3f}, more than {ENTROPY_GAP_ALERT}: the sanitizer rewrites the policy"
        )
    return raised


def gate_table(results_by_run: Mapping[str, Sequence[GateResult]]) -> Table:
    """Results of several runs side by side.

    Args:
      results_by_run: column heading (such as `seed 42`) to what `check_gates` gave for that run.

    Returns:
      A rich table: one row per gate and a verdict, one column per run. Every cell says `pass` or
      `FAIL` in words, so that it survives a log file.

    Raises:
      DataError: no run, or runs judged by different gates.
    """
    if not results_by_run:
        raise DataError("gate_table got no run: give the results of at least one")
    runs = list(results_by_run.values())
    rows = [(result.metric, result.bound) for result in runs[0]]
    for name, results in results_by_run.items():
        if [(result.metric, result.bound) for result in results] != rows:
            raise DataError(f"run {name} was judged by other gates than the first: compare alike")
    table = Table(title="Gates")
    table.add_column("metric", no_wrap=True)
    table.add_column("gate", no_wrap=True)
    for name in results_by_run:
        table.add_column(Text(str(name)), justify="right", no_wrap=True)
    for row, (metric, bound) in enumerate(rows):
        table.add_row(Text(metric), Text(bound), *(_cell(results[row]) for results in runs))
    table.add_section()
    verdicts = (_verdict(all(result.passed for result in results)) for results in runs)
    table.add_row(Text("all gates"), Text(""), *verdicts)
    return table


def _metric(metrics: Mapping[str, SupportsFloat], name: str) -> float:
    if name in metrics:
        return float(metrics[name])
    near = difflib.get_close_matches(name, list(metrics), n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise MissingMetricError(f"the run reports no metric {name}{hint}: add it to the telemetry")


def _equal(value: float, bound: float) -> bool:
    return value in (bound, float(np.float32(bound)))


def _number(bound: float) -> str:
    if bound >= 10 and bound == round(bound):
        return f"{bound:.0f}"
    return f"{bound:.2f}" if bound == round(bound, 2) else f"{bound:g}"


def _cell(result: GateResult) -> Text:
    text = Text(f"{result.value:.4f} ")
    return text.append_text(_verdict(result.passed))


def _verdict(passed: bool) -> Text:
    return Text("pass", style="green") if passed else Text("FAIL", style="bold red")
