"""The float64 reference simulator against numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from reference_simulator import (
    COMPONENTS,
    COSTS,
    Action,
    Reason,
    ReferenceParameters,
    ReferenceSimulator,
    StepRecord,
    action_entropy,
)
from reward_cases import CASES, RewardCase

A = Action


def run(
    opens: Sequence[float],
    closes: Sequence[float],
    actions: Sequence[Action],
    *,
    session: list[int] | None = None,
    tradable: list[bool] | None = None,
    stop_bar: int | None = None,
    **parameters: Any,
) -> ReferenceSimulator:
    """Plays `actions` from bar 0, without costs unless told otherwise."""
    rules = ReferenceParameters(**{**COSTS["free"], **parameters})
    simulator = ReferenceSimulator(opens, closes, tradable, session, rules)
    simulator.reset(0, len(closes) - 1 if stop_bar is None else stop_bar)
    for action in actions:
        simulator.step(action)
    return simulator


def reasons(simulator: ReferenceSimulator) -> list[Reason]:
    return [record.reason for record in simulator.records]


# ---------------------------------------------------------------------------- the table of rewards


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reward_case(case: RewardCase) -> None:
    parameters = ReferenceParameters(**case.parameters)
    simulator = ReferenceSimulator(case.opens, case.closes, case.tradable, parameters=parameters)
    simulator.reset(0, simulator.last_bar if case.stop_bar is None else case.stop_bar)
    records = [simulator.step(action) for action in case.actions]
    record: StepRecord = records[case.step]
    for name, value in case.expected.items():
        assert record.components[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name
    if case.reward is not None:
        assert record.reward == pytest.approx(case.reward, rel=1e-10, abs=1e-12)
    # A case at a tie would test rounding, not the rule.
    assert min(each.margin for each in records) > 1e-6


def test_cases_are_many_and_named_once() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    claimed = {name for case in CASES for name in case.expected}
    assert claimed == set(COMPONENTS)


# ------------------------------------------------------------------------------- money and trades


def test_round_trip_money() -> None:
    """Buy 6 % at 100 with 1 % slippage and 2 % commission, sell half at 120, the rest at 110."""
    simulator = run(
        [100, 100, 120, 110, 110],
        [100, 104, 110, 110, 110],
        [A.BUY_MEDIUM, A.SELL_PARTIAL, A.SELL_ALL],
        slippage=0.01,
        commission=0.02,
    )
    bought, halved, closed = simulator.records
    # A share costs 100 x 1.01 x 1.02 = 103.02.
    assert bought.fill_price == pytest.approx(101.0)
    assert bought.fill_shares == pytest.approx(0.06 / 103.02)
    assert bought.cash == pytest.approx(0.94)
    assert bought.cost_basis == pytest.approx(0.06)
    # 3.02 of every 103.02 spent are costs.
    assert bought.fill_costs == pytest.approx(0.06 * 3.02 / 103.02)
    assert bought.unrealised_return == pytest.approx(104 / 103.02 - 1)
    assert bought.equity == pytest.approx(0.94 + 0.06 * 104 / 103.02)
    # A share sold at 120 brings 120 x 0.99 x 0.98 = 116.424; costs are 3.576 a share.
    half = 0.03 / 103.02
    assert halved.fill_price == pytest.approx(118.8)
    assert halved.fill_shares == pytest.approx(-half)
    assert halved.cash == pytest.approx(0.94 + half * 116.424)
    assert halved.fill_costs == pytest.approx(half * 3.576)
    assert halved.realised_profit == pytest.approx(half * 116.424 - 0.03)
    assert (halved.cost_basis, halved.peak_basis) == pytest.approx((0.03, 0.06))
    # At 110: 106.722 a share.
    assert closed.cash == pytest.approx(0.94 + half * 116.424 + half * 106.722)
    assert (closed.shares, closed.cost_basis, closed.peak_basis) == (0.0, 0.0, 0.0)
    assert closed.equity == closed.cash
    (trade,) = simulator.ledger
    assert (trade.entry_bar, trade.exit_bar, trade.kind) == (1, 3, "voluntary")
    assert trade.net_profit == pytest.approx(half * (116.424 + 106.722) - 0.06)
    assert trade.net_profit == pytest.approx(closed.equity - 1.0)


def test_lots_round_down() -> None:
    """2,500 dollars at 30 are 83.33 shares: 8 lots of 10, spending 2,400. Half of 5 lots is 2."""
    simulator = run([30, 30, 30, 30], [30, 30, 30, 30], [A.BUY_SMALL], lot_size=10.0)
    assert simulator.records[0].fill_shares * 100_000 == pytest.approx(80.0)
    assert simulator.records[0].cash == pytest.approx(0.976)
    # At 49: 51.02 shares, 5 lots, of which 2 are sold.
    simulator = run([49] * 4, [49] * 4, [A.BUY_SMALL, A.SELL_PARTIAL], lot_size=10.0)
    assert simulator.records[1].fill_shares * 100_000 == pytest.approx(-20.0)
    # At 400: 6.25 shares are no lot.
    simulator = run([400] * 3, [400] * 3, [A.BUY_SMALL], lot_size=10.0)
    assert reasons(simulator) == [Reason.BELOW_MINIMUM]


def test_same_close_fills_at_the_decision() -> None:
    simulator = run(
        [1, 1, 1, 1],
        [100, 110, 121, 121],
        [A.BUY_LARGE, A.SELL_ALL],
        session=[0, 1, 1, 1],
        fill="same_close",
    )
    bought, sold = simulator.records
    assert bought.fill_price == 100.0
    assert bought.equity == pytest.approx(0.91 + 0.09 * 1.1)
    # The fill was in session 0, and the current bar is in session 1.
    assert (bought.trades_today, sold.trades_today) == (0, 1)
    assert sold.cash == pytest.approx(0.91 + 0.09 * 1.1)
    assert (simulator.ledger[0].entry_bar, simulator.ledger[0].exit_bar) == (0, 1)


# --------------------------------------------------------------------------- legality and sanitizer


def test_legality() -> None:
    """Adds need 2 %, at most two of them, and a weight under the cap."""
    closes = [100.0, 101.0, 104.0, 104.0, 104.0, 104.0]
    actions = [A.BUY_SMALL, A.HOLD, A.ADD_POSITION, A.ADD_POSITION, A.HOLD]
    simulator = run([100.0] * 6, closes, actions)
    masks = [record.legal for record in simulator.records]
    flat = (True, True, True, True, False, False, False)
    held = (True, False, False, False, True, True, False)
    may_add = (True, False, False, False, True, True, True)
    assert masks == [flat, held, may_add, may_add, held]
    # After one add to a large position: (0.0936 + 0.090324 ...) would pass 0.2 with the second.
    simulator = run([100.0] * 5, [100.0] + [104.0] * 4, [A.BUY_LARGE] + [A.ADD_POSITION] * 2)
    assert reasons(simulator) == [Reason.NONE, Reason.NONE, Reason.ILLEGAL]


def test_stops_name_their_reason() -> None:
    """-6 %, +12 % and a third bar held, each exit filling at the next open."""
    buy = [A.BUY_SMALL, A.HOLD]
    assert reasons(run([100.0] * 4, [100, 94, 94, 94], buy))[1] is Reason.STOP_LOSS
    assert reasons(run([100.0] * 4, [100, 112, 94, 94], buy))[1] is Reason.TAKE_PROFIT
    held = run([100.0] * 7, [100.0] * 7, [A.BUY_SMALL, *[A.HOLD] * 4], max_holding=3)
    # Bought on bar 1; marked at bars 1, 2 and 3; sold on bar 4.
    assert reasons(held) == [Reason.NONE] * 3 + [Reason.MAX_HOLDING, Reason.NONE]
    assert [record.account.bars_held for record in held.records] == [1, 2, 3, 0, 0]
    trade = held.ledger[0]
    assert (trade.entry_bar, trade.exit_bar, trade.kind) == (1, 4, "forced")


def test_refusals_name_their_reason() -> None:
    flat = [100.0] * 8
    cases: list[tuple[list[Action], dict[str, Any], Reason]] = [
        ([A.SELL_ALL], {}, Reason.ILLEGAL),
        ([A.BUY_SMALL], {"allow_new_risk": False}, Reason.MASTER_VETO),
        ([A.BUY_SMALL, *[A.SELL_PARTIAL] * 4], {}, Reason.REPEAT_LIMIT),
        ([A.BUY_SMALL, A.SELL_ALL], {"daily_trade_limit": 1}, Reason.DAILY_TRADE_LIMIT),
        # 9 % x 3 = 27 % of equity.
        ([A.BUY_LARGE], {"risk_multiplier": 3.0}, Reason.POSITION_CAP),
        (
            [A.BUY_LARGE],
            {"risk_multiplier": 3.0, "position_cap": 1.0, "max_exposure": 0.25},
            Reason.EXPOSURE_CAP,
        ),
        # 2.5 % of 39 dollars are 0.975.
        ([A.BUY_SMALL], {"initial_cash": 39.0}, Reason.BELOW_MINIMUM),
    ]
    for actions, parameters, reason in cases:
        simulator = run(flat, flat, actions, **parameters)
        last = simulator.records[-1]
        assert (last.executed_action, last.reason) == (A.HOLD, reason)
        assert last.fill_shares == last.fill_costs == 0.0


def test_untradable_bar_refuses_what_survived() -> None:
    """Bar 1 does not trade: a legal buy is untradable, an illegal sale is still illegal."""
    tradable = [True, False, True, True]
    bought = run([100.0] * 4, [100.0] * 4, [A.BUY_SMALL], tradable=tradable)
    assert reasons(bought) == [Reason.UNTRADABLE]
    sold = run([100.0] * 4, [100.0] * 4, [A.SELL_ALL], tradable=tradable)
    assert reasons(sold) == [Reason.ILLEGAL]
    # On the last bar the position is carried out of the episode unsold.
    carried = run([100.0] * 3, [100.0] * 3, [A.BUY_SMALL, A.HOLD], tradable=[True, True, False])
    assert reasons(carried) == [Reason.NONE, Reason.UNTRADABLE]
    assert carried.records[-1].truncated
    assert carried.records[-1].shares > 0.0
    assert carried.ledger == []


def test_trades_today_follow_the_session_of_the_fill() -> None:
    """One trade a session: the second of session 0 is refused, the first of session 1 is not."""
    simulator = run(
        [100.0] * 6,
        [100.0] * 6,
        [A.BUY_SMALL, A.SELL_ALL, A.SELL_ALL, A.HOLD],
        session=[0, 0, 0, 1, 1, 1],
        daily_trade_limit=1,
    )
    assert reasons(simulator)[:3] == [Reason.NONE, Reason.DAILY_TRADE_LIMIT, Reason.NONE]
    assert [record.trades_today for record in simulator.records] == [1, 1, 1, 1]


def test_breaker_waits_for_its_exit() -> None:
    """Latched at a drawdown of 0.252, sold and terminated a bar later, recovered or not."""
    simulator = run(
        [100, 100, 90, 90, 90],
        [100, 72, 90, 90, 90],
        [A.BUY_LARGE, A.HOLD],
        risk_multiplier=10.0,
        position_cap=1.0,
    )
    latched, sold = simulator.records
    assert (latched.drawdown, latched.terminated) == (pytest.approx(0.252), False)
    assert (sold.reason, sold.terminated, sold.truncated) == (Reason.DRAWDOWN_BREAKER, True, False)
    assert simulator.ledger[0].kind == "forced"
    with pytest.raises(RuntimeError):
        simulator.step(A.HOLD)
    # Sold by the policy on the very step that ruins it: 0.1 + 0.9 x 0.4 = 0.46.
    simulator = run(
        [100, 100, 40, 40],
        [100, 100, 40, 40],
        [A.BUY_LARGE, A.SELL_ALL],
        risk_multiplier=10.0,
        position_cap=1.0,
    )
    ruined = simulator.records[-1]
    assert (ruined.reason, ruined.terminated) == (Reason.NONE, True)
    assert ruined.equity == pytest.approx(0.46)


# --------------------------------------------------------------------------- telemetry and margins


def test_telemetry() -> None:
    """Three trades: one sold by the policy, one stopped, one ended."""
    opens = [100, 100, 100, 100, 94, 94, 94, 94]
    closes = [100, 100, 100, 94, 94, 94, 94, 94]
    actions = [A.BUY_SMALL, A.SELL_ALL, A.BUY_SMALL, A.HOLD, A.SELL_ALL, A.BUY_SMALL, A.HOLD]
    simulator = run(opens, closes, actions)
    assert [trade.kind for trade in simulator.ledger] == ["voluntary", "forced", "ended"]
    stats = simulator.telemetry()
    assert (stats["voluntary_trade_rate"], stats["forced_exit_ratio"]) == (0.5, 0.5)
    # Wanted: 3 buys, 2 sales. Done as wanted: 3 buys, 1 sale. One of 7 steps.
    assert stats["sanitizer_trade_delta"] == pytest.approx(100 / 7)
    # Policy: 2 HOLD, 3 BUY_SMALL, 2 SELL_ALL. Executed: 1, 3, 3.
    policy = -(2 * 2 / 7 * math.log(2 / 7) + 3 / 7 * math.log(3 / 7))
    executed = -(1 / 7 * math.log(1 / 7) + 2 * 3 / 7 * math.log(3 / 7))
    assert stats["policy_action_entropy"] == pytest.approx(policy)
    assert stats["executed_action_entropy"] == pytest.approx(executed)
    assert stats["unique_actions"] == 3
    assert stats["reason_illegal"] == stats["reason_stop_loss"] == 1
    # The stopped trade lost 6 % of 2.5 % of equity, the others nothing.
    assert stats["net_profit"] == pytest.approx(-0.0015)
    assert stats["log_return"] == pytest.approx(math.log(0.9985))
    assert action_entropy([0, 1, 2, 3, 4, 5, 6]) == pytest.approx(math.log(7))


def test_repeat_violations_and_windows() -> None:
    """Streaks 1 to 5, then a hold: two of six steps passed 3."""
    simulator = run([100.0] * 8, [100.0] * 8, [A.SELL_ALL] * 5 + [A.HOLD])
    assert simulator.telemetry()["action_repeat_violations"] == pytest.approx(2 / 6)
    assert [record.streak for record in simulator.records] == [1, 2, 3, 4, 5, 0]
    assert simulator.window_telemetry(7) is None
    assert simulator.window_telemetry(3) == (0.0, 1)


def test_margin_is_the_distance_of_the_closest_comparison() -> None:
    """A close of 102.0001 is 1e-6 above the add threshold, and a flat hold compares little."""
    simulator = run([100.0] * 5, [100.0, 102.0001, 100.0, 100.0, 100.0], [A.BUY_SMALL, A.HOLD])
    first, second = simulator.records
    # A buy of 0.025 against the cap of 0.2 is 0.875 away; the drawdown of 0 is 0.25 from its limit.
    assert first.margin == pytest.approx(0.25)
    assert second.margin == pytest.approx(1e-6, rel=1e-6)


def test_bad_input_is_an_error() -> None:
    with pytest.raises(ValueError, match="one entry a bar"):
        ReferenceSimulator([1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive"):
        ReferenceSimulator([1.0, math.nan], [1.0, 1.0])
    simulator = ReferenceSimulator([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(RuntimeError, match="reset"):
        simulator.step(A.HOLD)
    with pytest.raises(ValueError, match="bars"):
        simulator.reset(0, 2)
    simulator.reset(0, 1)
    with pytest.raises(ValueError, match="7"):
        simulator.step(7)
    with pytest.raises(ValueError, match="fill"):
        ReferenceParameters(fill="next_close")
