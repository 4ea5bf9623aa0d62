"""Stage 5 gates: the bounds themselves, values on them, and what happens without a value."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from jaxtrader.errors import ConfigError, DataError, JaxtraderError
from jaxtrader.gates import (
    STAGE5_GATES,
    Gate,
    MissingMetricError,
    alerts,
    check_gates,
    gate_table,
)

GOOD = {
    "policy_action_entropy_mean": 0.60,
    "executed_action_entropy_mean": 0.62,
    "voluntary_trade_rate": 0.80,
    "sanitizer_trade_delta": 3.0,
    "forced_exit_ratio": 0.02,
    "diversity_bonus_mean": 0.11,
    "action_repeat_violations": 0.01,
}
METRICS = [gate.metric for gate in STAGE5_GATES]


def verdict(metric, value):
    results = {result.metric: result for result in check_gates({**GOOD, metric: value})}
    others = [result.passed for name, result in results.items() if name != metric]
    assert all(others)
    return results[metric].passed


def test_a_good_run_passes_every_gate_in_order():
    results = check_gates(GOOD)
    assert [result.metric for result in results] == [
        "policy_action_entropy_mean",
        "voluntary_trade_rate",
        "sanitizer_trade_delta",
        "forced_exit_ratio",
        "diversity_bonus_mean",
        "action_repeat_violations",
    ]
    assert all(result.passed for result in results)
    assert [result.value for result in results] == [GOOD[result.metric] for result in results]


# (metric, bound, whether the bound itself passes, whether below it passes, above it)
BOUNDS = [
    ("policy_action_entropy_mean", 0.20, True, False, True),
    ("voluntary_trade_rate", 0.10, True, False, True),
    ("sanitizer_trade_delta", 15.0, False, True, False),
    ("forced_exit_ratio", 0.10, True, True, False),
    ("diversity_bonus_mean", 0.08, True, False, True),
    ("diversity_bonus_mean", 0.15, True, True, False),
    ("action_repeat_violations", 0.05, False, True, False),
]


@pytest.mark.parametrize(("metric", "bound", "on", "below", "above"), BOUNDS)
def test_bounds_are_exact(metric, bound, on, below, above):
    assert verdict(metric, bound) is on
    assert verdict(metric, float(np.nextafter(bound, -np.inf))) is below
    assert verdict(metric, float(np.nextafter(bound, np.inf))) is above


@pytest.mark.parametrize(("metric", "bound", "on", "below", "above"), BOUNDS)
def test_bounds_are_exact_in_float32(metric, bound, on, below, above):
    """One forced exit in ten is 0.1 as float32 knows it, which is above 0.1 in float64."""
    value = np.float32(bound)
    assert verdict(metric, value) is on
    assert verdict(metric, float(value)) is on  # read back from a file
    assert verdict(metric, np.nextafter(value, np.float32(-np.inf))) is below
    assert verdict(metric, np.nextafter(value, np.float32(np.inf))) is above


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails(metric, value):
    assert verdict(metric, value) is False


@pytest.mark.parametrize("metric", METRICS)
def test_a_missing_metric_is_an_error_that_names_it(metric):
    metrics = {name: value for name, value in GOOD.items() if name != metric}
    with pytest.raises(MissingMetricError, match=metric) as caught:
        check_gates(metrics)
    assert isinstance(caught.value, JaxtraderError)
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith(("'", '"'))


def test_a_misspelt_metric_is_pointed_at():
    metrics = {**GOOD, "forced_exits_ratio": GOOD["forced_exit_ratio"]}
    del metrics["forced_exit_ratio"]
    with pytest.raises(MissingMetricError, match="nearest is forced_exits_ratio"):
        check_gates(metrics)


def test_bounds_as_text():
    assert [gate.bound for gate in STAGE5_GATES] == [
        ">= 0.20 nats",
        ">= 0.10",
        "< 15 pp",
        "<= 0.10",
        "[0.08, 0.15]",
        "< 0.05",
    ]
    half_open = Gate("m", "d", lower=0.0, upper=1.0, lower_inclusive=False, upper_inclusive=False)
    assert half_open.bound == "(0.00, 1.00)"
    assert Gate("m", "d", lower=2.0, lower_inclusive=False).bound == "> 2.00"
    assert Gate("m", "d", upper=0.125).bound == "<= 0.125"


@pytest.mark.parametrize(
    "bounds", [{}, {"lower": math.nan}, {"upper": math.inf}, {"lower": 2.0, "upper": 1.0}]
)
def test_a_gate_needs_bounds_that_make_sense(bounds):
    with pytest.raises(ConfigError, match="gate m"):
        Gate("m", "d", **bounds)


def test_results_are_strict_json():
    results = check_gates({**GOOD, "forced_exit_ratio": math.nan})
    documents = [result.to_dict() for result in results]
    assert json.loads(json.dumps(documents, allow_nan=False)) == documents
    assert documents[3] == {
        "metric": "forced_exit_ratio",
        "value": None,
        "passed": False,
        "bound": "<= 0.10",
    }


# --- alerts --------------------------------------------------------------------------------------


def entropies(policy, executed):
    return {"policy_action_entropy_mean": policy, "executed_action_entropy_mean": executed}


def test_no_alert_on_a_good_run():
    assert alerts(GOOD) == []


def test_low_policy_entropy_alerts_below_018_only():
    assert alerts(entropies(0.18, 0.18)) == []
    assert alerts(entropies(np.float32(0.18), np.float32(0.18))) == []
    (alert,) = alerts(entropies(np.nextafter(0.18, 0), 0.18))
    assert "collapsing" in alert


@pytest.mark.parametrize("sign", [1, -1])
def test_entropy_gap_alerts_beyond_005_only(sign):
    # 0.60 + 0.05 - 0.60 is 0.05 + 4e-17 in floats: still within
    assert alerts(entropies(0.60, 0.60 + sign * 0.05)) == []
    assert alerts(entropies(0.60, float(np.float32(0.60 + sign * 0.05)))) == []
    (alert,) = alerts(entropies(0.60, 0.60 + sign * 0.0501))
    assert "sanitizer" in alert


def test_both_alerts_at_once_fail_no_gate():
    assert len(alerts(entropies(0.10, 0.30))) == 2
    assert all(result.passed for result in check_gates({**GOOD, "executed_action_entropy_mean": 0}))


def test_entropy_that_is_not_a_number_alerts():
    (alert,) = alerts(entropies(math.nan, 0.5))
    assert "policy action entropy is nan" in alert
    with pytest.raises(MissingMetricError, match="executed_action_entropy_mean"):
        alerts({"policy_action_entropy_mean": 0.5})


# --- table ---------------------------------------------------------------------------------------


def rendered(table):
    console = Console(width=140, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_table_has_a_row_per_gate_and_a_column_per_seed():
    runs = {
        "seed 42": check_gates(GOOD),
        "seed 1337": check_gates({**GOOD, "forced_exit_ratio": 0.3}),
        "seed 9001": check_gates({**GOOD, "forced_exit_ratio": math.nan}),
    }
    table = gate_table(runs)
    assert [column.header for column in table.columns][:2] == ["metric", "gate"]
    assert [str(column.header) for column in table.columns][2:] == list(runs)
    assert table.row_count == len(STAGE5_GATES) + 1
    text = rendered(table)
    lines = {line.split()[1]: line for line in text.splitlines() if len(line.split()) > 2}
    row = lines["forced_exit_ratio"]
    assert "<= 0.10" in row
    assert "0.0200 pass" in row
    assert "0.3000 FAIL" in row
    assert "nan FAIL" in row
    assert lines["all"].count("pass") == 1
    assert lines["all"].count("FAIL") == 2
    assert "[0.08, 0.15]" in text  # not taken for markup


def test_table_refuses_what_it_cannot_line_up():
    with pytest.raises(DataError, match="no run"):
        gate_table({})
    with pytest.raises(DataError, match="run b was judged by other gates"):
        gate_table({"a": check_gates(GOOD), "b": check_gates(GOOD, STAGE5_GATES[:2])})
