"""Checks of a stage-5 report: its summary against the evaluation episodes it was made from.

`experiments.stage5 --run-pytest` runs this on its own report, a folder named by
JAXTRADER_STAGE5_REPORT. Without that, a tiny run makes one.
"""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pandas as pd
import pytest

from jaxtrader.outputs import OutputLayout
from jaxtrader.reporting.summary import schema

LN_7 = math.log(7)
ACTIONS = (
    "HOLD", "BUY_SMALL", "BUY_MEDIUM", "BUY_LARGE", "SELL_PARTIAL", "SELL_ALL", "ADD_POSITION",
)  # fmt: skip
END = ("END_OF_DATA", "EPISODE_END")
FORCED = ("BANKRUPTCY", "DRAWDOWN_BREAKER", "STOP_LOSS", "TAKE_PROFIT", "MAX_HOLDING")
MEAN_OF = {
    "policy_action_entropy_mean": "policy_action_entropy",
    "executed_action_entropy_mean": "executed_action_entropy",
    "policy_distribution_entropy_mean": "policy_distribution_entropy",
    "voluntary_trade_rate": "voluntary_trade_rate",
    "forced_exit_ratio": "forced_exit_ratio",
    "sanitizer_trade_delta": "sanitizer_trade_delta",
    "action_repeat_violations": "action_repeat_violations",
    "diversity_bonus_mean": "diversity_bonus",
    "unique_actions_mean": "unique_actions",
    "episode_reward_mean": "reward",
    "episode_log_return_mean": "log_return",
    "episode_trades_mean": "closed_trades",
    "long_share_mean": "long_share",
}
SHARES = (
    "voluntary_trade_rate", "forced_exit_ratio", "action_repeat_violations", "long_share",
)  # fmt: skip


def tiny_report(folder: Path) -> Path:
    """A report of two symbols and three seeds, after two updates."""
    from small_runs import reported

    return reported(folder)[0]


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The summary, and every evaluation episode of its agents."""
    named = os.environ.get("JAXTRADER_STAGE5_REPORT")
    folder = Path(named) if named else tiny_report(tmp_path_factory.mktemp("report"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    layout = OutputLayout(folder.parents[2])
    tables = []
    for agent in summary["agents"]:
        path = layout.evaluation(agent["seed"], agent["evaluation"]["split"])
        table = pd.read_csv(path, dtype={"symbol": str}, keep_default_na=False, na_values=[""])
        own = table[table["symbol"] == agent["symbol"]]
        tables.append(own.assign(seed=agent["seed"]))
    return SimpleNamespace(summary=summary, agents=summary["agents"], tables=tables)


@pytest.fixture
def agents(report):
    """(agent of the summary, its evaluation episodes)."""
    return list(zip(report.agents, report.tables, strict=True))


@pytest.fixture
def episodes(report):
    """All evaluation episodes."""
    return pd.concat(report.tables)


def test_the_summary_obeys_its_schema(report):
    jsonschema.Draft202012Validator(schema()).validate(report.summary)


def test_every_agent_was_evaluated_on_as_many_episodes_as_it_says(agents):
    for agent, table in agents:
        assert len(table) == agent["evaluation"]["random_start_episodes"] > 0
        assert table["start"].is_unique


def test_telemetry_means_are_those_of_the_episodes(agents):
    for agent, table in agents:
        telemetry = agent["evaluation"]["telemetry"]
        assert set(telemetry) == set(MEAN_OF)
        for metric, column in MEAN_OF.items():
            expected = math.fsum(table[column]) / len(table)
            assert telemetry[metric] == pytest.approx(expected, rel=1e-9, abs=1e-12), metric


def test_gates_judge_the_telemetry(agents):
    for agent, _ in agents:
        for gate in agent["gates"]:
            assert gate["value"] == agent["evaluation"]["telemetry"][gate["metric"]]
        exported = agent["policy"] is not None and agent["policy"]["parity"]["passed"]
        gates = all(gate["passed"] for gate in agent["gates"])
        assert agent["passed"] == (gates and exported)


def histogram(episodes: pd.DataFrame, kind: str) -> np.ndarray:
    return episodes[[f"{kind}_{action}" for action in ACTIONS]].to_numpy(np.float64)


def test_telemetry_diff_bounds(agents, episodes):
    """Every metric within what it can be, per episode and on average."""
    columns = ("policy_action_entropy", "executed_action_entropy", "policy_distribution_entropy")
    for column in columns:
        assert episodes[column].between(0.0, LN_7 + 1e-6).all(), column
    assert episodes["sanitizer_trade_delta"].between(-100.0, 100.0).all()
    for column in SHARES:
        assert episodes[column].between(0.0, 1.0).all(), column
    assert episodes["unique_actions"].between(1, 7).all()
    assert episodes["diversity_bonus"].between(0.0, 0.3 + 1e-6).all()
    for agent, _ in agents:
        telemetry = agent["evaluation"]["telemetry"]
        assert 0.0 <= telemetry["policy_action_entropy_mean"] <= LN_7 + 1e-6
        assert 0.0 <= telemetry["executed_action_entropy_mean"] <= LN_7 + 1e-6
        assert -100.0 <= telemetry["sanitizer_trade_delta"] <= 100.0
        for metric in ("voluntary_trade_rate", "forced_exit_ratio", "action_repeat_violations"):
            assert 0.0 <= telemetry[metric] <= 1.0
        assert telemetry["voluntary_trade_rate"] + telemetry["forced_exit_ratio"] <= 1.0 + 1e-9


@pytest.mark.parametrize("kind", ["policy", "executed"])
def test_entropies_are_those_of_the_action_counts(episodes, kind):
    counts = histogram(episodes, kind)
    assert (counts.sum(axis=1) == episodes["steps"]).all()
    shares = counts / counts.sum(axis=1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    np.testing.assert_allclose(
        episodes[f"{kind}_action_entropy"], -(shares * logs).sum(axis=1), atol=1e-5
    )


def test_the_sanitizers_delta_is_that_of_the_counts(episodes):
    """Orders wanted less orders executed that were not forced, per step, in percentage points."""
    wanted = episodes["steps"] - episodes["policy_HOLD"]
    executed = episodes["steps"] - episodes["executed_HOLD"]
    imposed = episodes["forced_exits"] + episodes["ended_exits"]
    expected = 100.0 * (wanted - (executed - imposed)) / episodes["steps"]
    np.testing.assert_allclose(episodes["sanitizer_trade_delta"], expected, atol=1e-4)


def test_exits_are_those_of_the_reasons(episodes):
    closed = episodes["voluntary_exits"] + episodes["forced_exits"]
    assert (closed == episodes["closed_trades"]).all()
    traded = closed > 0
    np.testing.assert_allclose(
        episodes["forced_exit_ratio"][traded],
        (episodes["forced_exits"] / closed)[traded],
        atol=1e-6,
    )
    assert (episodes["forced_exit_ratio"][~traded] == 0.0).all()
    # A ruined account that is flat refuses to buy with the same reason as it would sell with.
    assert (episodes[[f"reason_{r}" for r in FORCED]].sum(axis=1) >= episodes["forced_exits"]).all()
    assert (episodes[[f"reason_{r}" for r in END]].sum(axis=1) >= episodes["ended_exits"]).all()
    reasons = episodes[[column for column in episodes if column.startswith("reason_")]]
    assert (reasons.sum(axis=1) == episodes["steps"]).all()


def test_the_reward_is_the_sum_of_its_components(episodes):
    """Of steps that cannot have been clipped: the whole episode has less than one step's limit."""
    paid = episodes[[column for column in episodes if column.startswith("reward_")]].sum(axis=1)
    size = episodes[[column for column in episodes if column.startswith("magnitude_")]].abs()
    small = size.sum(axis=1) < 10.0
    np.testing.assert_allclose(episodes["reward"][small], paid[small], atol=1e-3)
