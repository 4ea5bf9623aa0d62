"""Legality, and the sanitizer: every reason, in order of precedence, one scenario each.

Every scenario is played by the compiled environment and by the float64 reference, and both must
give the reasons written beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_simulator import COSTS, Action, Reason, ReferenceParameters
from trading_episodes import Episode, Played, play, script

import envs.actions
from envs.actions import (
    END_REASONS,
    FORCED_REASONS,
    NUM_ACTIONS,
    NUM_REASONS,
    first_reason,
    neutral_directives,
    order_budget,
    trading_limits,
)
from envs.position import flat_position, new_account

HOLD, SMALL, MEDIUM, LARGE, PART, ALL, ADD = Action
R = Reason
NONE = R.NONE


@dataclass(frozen=True)
class Scenario:
    """Prices, a script, and what is to come of it."""

    name: str
    closes: Sequence[float]
    actions: Sequence[Action]
    reasons: Sequence[Reason]
    executed: Sequence[Action]
    opens: Sequence[float] | None = None  # the previous close when None
    parameters: dict[str, Any] = field(default_factory=dict)
    tradable: Sequence[bool] | None = None
    session: Sequence[int] | None = None
    stop_bar: int | None = None
    ends: str = ""  # "terminated", "truncated", "both", or "" when it goes on

    def episode(self) -> Episode:
        closes = np.asarray(self.closes, float)
        opens = np.append(closes[0], closes[:-1]) if self.opens is None else self.opens
        return Episode(
            opens=np.asarray(opens, float),
            closes=closes,
            tradable=None if self.tradable is None else np.asarray(self.tradable),
            session=None if self.session is None else np.asarray(self.session),
            stop_bar=self.stop_bar,
            scores=script(self.actions),
            rules=ReferenceParameters(**{**COSTS["free"], **self.parameters}),
        )


FLAT = [100.0] * 12
# 90 % of equity in one position, with a cap out of its way.
DEEP: dict[str, Any] = {"risk_multiplier": 10.0, "position_cap": 2.0}
NO_TRADE_IN_2 = [True, True, False, *[True] * 9]

SCENARIOS = [
    Scenario(
        "nothing_to_override",
        [100, 100, 103, 103, 103, 103, 103],
        [SMALL, HOLD, ADD, PART, ALL],
        [NONE] * 5,
        [SMALL, HOLD, ADD, PART, ALL],
    ),
    # ------------------------------------------------------------------------------ forced exits
    Scenario(
        # 0.1 + 0.9 x 0.4 = 0.46: under half the start, and a drawdown of 54 %: bankruptcy goes
        # first. The account is sold a bar later, and only then is the episode over.
        "bankruptcy",
        [100, 100, 40, 40, 40],
        [LARGE, HOLD, HOLD],
        [NONE, NONE, R.BANKRUPTCY],
        [LARGE, HOLD, ALL],
        parameters=DEEP | {"stop_loss": 0.9},
        ends="terminated",
    ),
    Scenario(
        "drawdown_breaker",
        [100, 100, 72, 72, 72],
        [LARGE, HOLD, HOLD],
        [NONE, NONE, R.DRAWDOWN_BREAKER],
        [LARGE, HOLD, ALL],
        parameters=DEEP | {"stop_loss": 0.9},
        ends="terminated",
    ),
    Scenario(
        # The drawdown is latched: the price is back before the sale.
        "breaker_is_latched",
        [100, 100, 72, 100, 100],
        [LARGE, HOLD, HOLD],
        [NONE, NONE, R.DRAWDOWN_BREAKER],
        [LARGE, HOLD, ALL],
        opens=[100, 100, 100, 99, 100],
        parameters=DEEP | {"stop_loss": 0.9},
        ends="terminated",
    ),
    Scenario(
        # A breaker that latched while the exit had no market keeps the position until it has. A
        # deeper loss on the way makes it a bankruptcy.
        "ruin_waits_for_a_market_and_may_get_worse",
        [100, 100, 72, 72, 40, 40, 40],
        [LARGE, HOLD, HOLD, ALL, ALL],
        [NONE, NONE, R.UNTRADABLE, R.UNTRADABLE, R.BANKRUPTCY],
        [LARGE, HOLD, HOLD, HOLD, ALL],
        parameters=DEEP | {"stop_loss": 0.9},
        tradable=[True, True, True, False, False, True, True],
        ends="terminated",
    ),
    Scenario(
        # Sold by the policy on the very step whose close would ruin it: over at once.
        "ruined_by_its_own_sale",
        [100, 100, 40, 40],
        [LARGE, ALL],
        [NONE, NONE],
        [LARGE, ALL],
        opens=[100, 100, 40, 40],
        parameters=DEEP,
        ends="terminated",
    ),
    Scenario(
        "end_of_data",
        FLAT[:4],
        [SMALL, HOLD, PART],
        [NONE, NONE, R.END_OF_DATA],
        [SMALL, HOLD, ALL],
        ends="truncated",
    ),
    Scenario(
        "episode_end",
        FLAT[:5],
        [SMALL, HOLD, PART],
        [NONE, NONE, R.EPISODE_END],
        [SMALL, HOLD, ALL],
        stop_bar=3,
        ends="truncated",
    ),
    Scenario(
        # Whatever the policy does on the last step: the end has a reason of its own.
        "end_takes_the_policys_own_sale",
        FLAT[:5],
        [SMALL, HOLD, ALL],
        [NONE, NONE, R.EPISODE_END],
        [SMALL, HOLD, ALL],
        stop_bar=3,
        ends="truncated",
    ),
    Scenario(
        "end_before_stop_loss",
        [100, 100, 94, 94, 94],
        [SMALL, HOLD, HOLD],
        [NONE, NONE, R.EPISODE_END],
        [SMALL, HOLD, ALL],
        stop_bar=3,
        ends="truncated",
    ),
    Scenario(
        "ruin_before_end_of_data",
        [100, 100, 72, 72],
        [LARGE, HOLD, HOLD],
        [NONE, NONE, R.DRAWDOWN_BREAKER],
        [LARGE, HOLD, ALL],
        parameters=DEEP | {"stop_loss": 0.9},
        ends="both",
    ),
    Scenario(
        "end_without_a_market_keeps_the_position",
        FLAT[:4],
        [SMALL, HOLD, HOLD],
        [NONE, NONE, R.UNTRADABLE],
        [SMALL, HOLD, HOLD],
        tradable=[True, True, True, False],
        ends="truncated",
    ),
    Scenario(
        "no_buy_on_the_last_step",
        FLAT[:4],
        [HOLD, HOLD, LARGE],
        [NONE, NONE, R.END_OF_DATA],
        [HOLD, HOLD, HOLD],
        ends="truncated",
    ),
    Scenario(
        # Refused buys keep their reason ahead of the veto; other orders of the flat are illegal.
        "no_buy_on_the_last_step_whatever_the_master_says",
        FLAT[:5],
        [HOLD, HOLD, SMALL],
        [NONE, NONE, R.EPISODE_END],
        [HOLD, HOLD, HOLD],
        parameters={"allow_new_risk": False},
        stop_bar=3,
        ends="truncated",
    ),
    Scenario(
        "illegal_on_the_last_step_is_illegal",
        FLAT[:4],
        [HOLD, HOLD, ALL],
        [NONE, NONE, R.ILLEGAL],
        [HOLD, HOLD, HOLD],
        ends="truncated",
    ),
    Scenario(
        # -4 % is not yet 5 %; -6 % is, against a policy that wants to buy.
        "stop_loss",
        [100, 100, 96, 94, 94, 94, 94],
        [SMALL, HOLD, HOLD, LARGE, HOLD],
        [NONE, NONE, NONE, R.STOP_LOSS, NONE],
        [SMALL, HOLD, HOLD, ALL, HOLD],
    ),
    Scenario(
        "take_profit",
        [100, 100, 111, 111, 111],
        [SMALL, HOLD, ADD],
        [NONE, NONE, R.TAKE_PROFIT],
        [SMALL, HOLD, ALL],
    ),
    Scenario(
        # Marked on bars 1, 2 and 3, decided at close 3.
        "max_holding",
        FLAT,
        [SMALL, HOLD, HOLD, HOLD, HOLD],
        [NONE, NONE, NONE, R.MAX_HOLDING, NONE],
        [SMALL, HOLD, HOLD, ALL, HOLD],
        parameters={"max_holding": 3},
    ),
    Scenario(
        "stop_loss_before_max_holding",
        [100, 100, 94, 94, 94],
        [SMALL, HOLD, HOLD],
        [NONE, NONE, R.STOP_LOSS],
        [SMALL, HOLD, ALL],
        parameters={"max_holding": 2},
    ),
    Scenario(
        "take_profit_before_max_holding",
        [100, 100, 111, 111, 111],
        [SMALL, HOLD, HOLD],
        [NONE, NONE, R.TAKE_PROFIT],
        [SMALL, HOLD, ALL],
        parameters={"max_holding": 2},
    ),
    Scenario(
        # A policy that sells everything itself takes the credit, and the blame.
        "own_sale_on_a_stop_bar",
        [100, 100, 94, 94, 94],
        [SMALL, HOLD, ALL],
        [NONE, NONE, NONE],
        [SMALL, HOLD, ALL],
    ),
    Scenario(
        # ... even one that the sanitizer would have refused: the position has to go.
        "own_sale_on_a_stop_bar_beats_the_daily_limit",
        [100, 100, 94, 94, 94],
        [SMALL, HOLD, ALL],
        [NONE, NONE, NONE],
        [SMALL, HOLD, ALL],
        parameters={"daily_trade_limit": 1},
    ),
    Scenario(
        "forced_exit_beats_the_daily_limit",
        [100, 100, 94, 94, 94],
        [SMALL, HOLD, HOLD],
        [NONE, NONE, R.STOP_LOSS],
        [SMALL, HOLD, ALL],
        parameters={"daily_trade_limit": 1},
    ),
    Scenario(
        "half_a_sale_on_a_stop_bar_becomes_a_whole_one",
        [100, 100, 94, 94, 94],
        [SMALL, HOLD, PART],
        [NONE, NONE, R.STOP_LOSS],
        [SMALL, HOLD, ALL],
    ),
    # ---------------------------------------------------------------------------------- refusals
    Scenario(
        "illegal",
        FLAT,
        [PART, ALL, ADD, SMALL, MEDIUM, ADD],
        [R.ILLEGAL, R.ILLEGAL, R.ILLEGAL, NONE, R.ILLEGAL, R.ILLEGAL],
        [HOLD, HOLD, HOLD, SMALL, HOLD, HOLD],
    ),
    Scenario(
        # Selling is always permitted; an illegal order is illegal whatever the master says.
        "master_veto",
        FLAT,
        [LARGE, ADD, PART],
        [R.MASTER_VETO, R.ILLEGAL, R.ILLEGAL],
        [HOLD, HOLD, HOLD],
        parameters={"allow_new_risk": False},
    ),
    Scenario(
        "veto_before_repeat_limit",
        FLAT,
        [SMALL] * 5,
        [R.MASTER_VETO] * 5,
        [HOLD] * 5,
        parameters={"allow_new_risk": False},
    ),
    Scenario(
        # The streak is the policy's, refused or not; holding breaks it.
        "repeat_limit",
        FLAT,
        [SMALL, PART, PART, PART, PART, PART, HOLD, PART, ALL],
        [NONE, NONE, NONE, NONE, R.REPEAT_LIMIT, R.REPEAT_LIMIT, NONE, NONE, NONE],
        [SMALL, PART, PART, PART, HOLD, HOLD, HOLD, PART, ALL],
    ),
    Scenario(
        "illegal_orders_count_for_the_streak",
        FLAT,
        [ALL, ALL, ALL, ALL, SMALL, ALL],
        [R.ILLEGAL] * 4 + [NONE, NONE],
        [HOLD] * 4 + [SMALL, ALL],
    ),
    Scenario(
        "repeat_limit_of_one",
        FLAT,
        [SMALL, PART, PART, HOLD, PART],
        [NONE, NONE, R.REPEAT_LIMIT, NONE, NONE],
        [SMALL, PART, HOLD, HOLD, PART],
        parameters={"repeat_limit": 1},
    ),
    Scenario(
        # Fills count, orders do not: the refused sale of step 2 leaves the count at 2. Bar 5 opens
        # a session.
        "daily_trade_limit",
        FLAT,
        [SMALL, PART, ALL, PART, ALL, SMALL, ALL],
        [NONE, NONE, R.DAILY_TRADE_LIMIT, R.DAILY_TRADE_LIMIT, NONE, NONE, R.DAILY_TRADE_LIMIT],
        [SMALL, PART, HOLD, HOLD, ALL, SMALL, HOLD],
        session=[0] * 5 + [1] * 7,
        parameters={"daily_trade_limit": 2},
    ),
    Scenario(
        # In same-close mode the order of step 4 fills in bar 4, in the old session.
        "daily_trade_limit_at_the_close",
        FLAT,
        [SMALL, PART, ALL, PART, ALL, ALL, SMALL],
        [NONE, NONE] + [R.DAILY_TRADE_LIMIT] * 3 + [NONE, NONE],
        [SMALL, PART, HOLD, HOLD, HOLD, ALL, SMALL],
        session=[0] * 5 + [1] * 7,
        parameters={"daily_trade_limit": 2, "fill": "same_close"},
    ),
    Scenario(
        "repeat_limit_before_daily_limit",
        FLAT,
        [SMALL, PART, PART, PART, PART],
        [NONE, R.DAILY_TRADE_LIMIT, R.DAILY_TRADE_LIMIT, R.DAILY_TRADE_LIMIT, R.REPEAT_LIMIT],
        [SMALL, HOLD, HOLD, HOLD, HOLD],
        parameters={"daily_trade_limit": 1},
    ),
    Scenario(
        # 9 % x 3 of equity, against a cap of 20 %; 6 % x 3 passes.
        "position_cap",
        FLAT,
        [LARGE, MEDIUM],
        [R.POSITION_CAP, NONE],
        [HOLD, MEDIUM],
        parameters={"risk_multiplier": 3.0},
    ),
    Scenario(
        # 27 % of equity, against an exposure of 25 % at most.
        "exposure_cap",
        FLAT,
        [LARGE, MEDIUM],
        [R.EXPOSURE_CAP, NONE],
        [HOLD, MEDIUM],
        parameters={"risk_multiplier": 3.0, "position_cap": 1.0, "max_exposure": 0.25},
    ),
    Scenario(
        "position_cap_before_exposure_cap",
        FLAT,
        [LARGE],
        [R.POSITION_CAP],
        [HOLD],
        parameters={"risk_multiplier": 3.0, "max_exposure": 0.25},
    ),
    Scenario(
        "daily_limit_before_position_cap",
        FLAT,
        [LARGE],
        [R.DAILY_TRADE_LIMIT],
        [HOLD],
        parameters={"risk_multiplier": 3.0, "daily_trade_limit": 0},
    ),
    Scenario(
        # 6 % at a gain of 4 %, and 6 % again, pass 12 %.
        "an_add_over_the_cap_is_illegal",
        [100, 104, 104, 104, 104, 104],
        [MEDIUM, ADD, PART, ALL],
        [NONE, R.ILLEGAL, NONE, NONE],
        [MEDIUM, HOLD, PART, ALL],
        opens=[100, 100, 104, 104, 104, 104],
        parameters={"position_cap": 0.12},
    ),
    Scenario(
        # 12 x 9 % of equity is more than there is: all cash is spent, and an exposure of 1 is not
        # over 1. There is nothing left to add with.
        "every_cent",
        [100, 104, 104, 104, 104],
        [LARGE, ADD, ALL],
        [NONE, R.BELOW_MINIMUM, NONE],
        [LARGE, HOLD, ALL],
        opens=[100, 100, 104, 104, 104],
        parameters={"risk_multiplier": 12.0, "position_cap": 2.0} | COSTS["retail"],
    ),
    Scenario(
        # 2.5 % of 39 dollars are less than one dollar; 6 % are more.
        "below_minimum",
        FLAT,
        [SMALL, MEDIUM, PART],
        [R.BELOW_MINIMUM, NONE, NONE],
        [HOLD, MEDIUM, PART],
        parameters={"initial_cash": 39.0},
    ),
    Scenario(
        # 6,000 dollars are worth selling by half, and then no longer.
        "half_below_minimum",
        FLAT,
        [MEDIUM, PART, PART, ALL],
        [NONE, NONE, R.BELOW_MINIMUM, NONE],
        [MEDIUM, PART, HOLD, ALL],
        parameters={"min_notional": 2_900.0},
    ),
    Scenario(
        # 2,500 dollars at 300 are 8.33 shares: no lot of ten; 6,000 are two. Half of one is none.
        "no_whole_lot",
        [300.0] * 12,
        [SMALL, MEDIUM, PART, PART, ALL],
        [R.BELOW_MINIMUM, NONE, NONE, R.BELOW_MINIMUM, NONE],
        [HOLD, MEDIUM, PART, HOLD, ALL],
        parameters={"lot_size": 10.0},
    ),
    Scenario(
        # The close would buy a lot, the open of the fill bar does not.
        "no_whole_lot_at_the_fill",
        [200.0] * 12,
        [SMALL],
        [R.BELOW_MINIMUM],
        [HOLD],
        opens=[200, 300, *[200] * 10],
        parameters={"lot_size": 10.0},
    ),
    # -------------------------------------------------------------------------------- untradable
    Scenario(
        "untradable",
        FLAT,
        [HOLD, SMALL, SMALL, HOLD, HOLD],
        [NONE, R.UNTRADABLE, NONE, NONE, NONE],
        [HOLD, HOLD, SMALL, HOLD, HOLD],
        tradable=NO_TRADE_IN_2,
    ),
    Scenario(
        # In same-close mode the order fills in the bar of its decision.
        "untradable_at_the_close",
        FLAT,
        [HOLD, SMALL, PART, ALL, HOLD],
        [NONE, NONE, R.UNTRADABLE, NONE, NONE],
        [HOLD, SMALL, HOLD, ALL, HOLD],
        tradable=NO_TRADE_IN_2,
        parameters={"fill": "same_close"},
    ),
    Scenario(
        "forced_exit_without_a_market",
        [100, 94, 94, 94, 94, 94],
        [SMALL, HOLD, HOLD, HOLD],
        [NONE, R.UNTRADABLE, R.STOP_LOSS, NONE],
        [SMALL, HOLD, ALL, HOLD],
        opens=[100, 100, 94, 94, 94, 94],
        tradable=NO_TRADE_IN_2[:6],
    ),
    Scenario(
        # A bar that does not trade has no price to divide by: untradable, not too small.
        "untradable_before_no_whole_lot",
        [300.0] * 12,
        [HOLD, SMALL, SMALL],
        [NONE, R.UNTRADABLE, R.BELOW_MINIMUM],
        [HOLD, HOLD, HOLD],
        tradable=NO_TRADE_IN_2,
        parameters={"lot_size": 10.0},
    ),
    Scenario(
        # What was refused at the decision never reaches the market.
        "refusals_before_untradable",
        FLAT,
        [HOLD, ALL, SMALL],
        [NONE, R.ILLEGAL, NONE],
        [HOLD, HOLD, SMALL],
        tradable=NO_TRADE_IN_2,
    ),
    Scenario(
        "holding_is_never_untradable",
        FLAT,
        [HOLD, HOLD, HOLD],
        [NONE] * 3,
        [HOLD] * 3,
        tradable=[False] * 12,
    ),
]


@functools.cache
def played() -> dict[str, tuple[Played, int]]:
    """All scenarios, played at once: the batch and the row of each by name."""
    rows = {}
    for fill in ("next_open", "same_close"):
        these = [s for s in SCENARIOS if s.parameters.get("fill", "next_open") == fill]
        batch = play([scenario.episode() for scenario in these])
        rows |= {scenario.name: (batch, row) for row, scenario in enumerate(these)}
    return rows


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenario(scenario: Scenario) -> None:
    steps = len(scenario.actions)
    batch, row = played()[scenario.name]
    outcome = jax.tree.map(lambda leaf: leaf[row, :steps], batch.outcome)
    found = [Reason(int(code)) for code in outcome.reason]
    assert found == list(scenario.reasons)
    assert [Action(int(code)) for code in outcome.executed] == list(scenario.executed)
    terminated = scenario.ends in ("terminated", "both")
    truncated = scenario.ends in ("truncated", "both")
    assert outcome.terminated.tolist() == [False] * (steps - 1) + [terminated]
    assert outcome.truncated.tolist() == [False] * (steps - 1) + [truncated]

    simulator = scenario.episode().reference()
    records = [simulator.step(action) for action in scenario.actions]
    assert [record.reason for record in records] == list(scenario.reasons)
    assert [record.executed_action for record in records] == list(scenario.executed)
    assert records[-1].terminated == terminated
    assert records[-1].truncated == truncated


def test_every_reason_and_action_has_a_scenario() -> None:
    assert {reason for s in SCENARIOS for reason in s.reasons} == set(Reason)
    assert {action for s in SCENARIOS for action in s.executed} == set(Action)
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_codes_are_those_of_the_reference() -> None:
    assert {a.name: int(a) for a in envs.actions.Action} == {a.name: int(a) for a in Action}
    assert {r.name: int(r) for r in envs.actions.Reason} == {r.name: int(r) for r in Reason}
    assert (NUM_ACTIONS, NUM_REASONS) == (7, 16)
    assert not set(FORCED_REASONS) & set(END_REASONS)


# ------------------------------------------------------------------------------------------ masks


def masks(scenario: Scenario) -> list[list[bool]]:
    batch = play([scenario.episode()])
    return batch.mask[0, : len(scenario.actions)].tolist()


FLAT_MASK = [True, True, True, True, False, False, False]
LONG_MASK = [True, False, False, False, True, True, False]
ADD_MASK = [True, False, False, False, True, True, True]


def scripted(closes: Sequence[float], actions: Sequence[Action], **parameters: Any) -> Scenario:
    """Opens at 100, whatever the closes."""
    return Scenario("", closes, actions, [], [], opens=[100.0] * len(closes), parameters=parameters)


def test_masks_by_state() -> None:
    """Flat; long under 2 %; long above it; at most two adds; flat again."""
    closes = [100, 101, 103, 103, 103, 103, 103, 103]
    actions = [SMALL, HOLD, ADD, ADD, HOLD, ALL, HOLD]
    expected = [FLAT_MASK, LONG_MASK, ADD_MASK, ADD_MASK, LONG_MASK, LONG_MASK, FLAT_MASK]
    assert masks(scripted(closes, actions)) == expected


def test_mask_of_an_add_counts_entry_costs_and_the_cap() -> None:
    # 102.05 / 100.0750125 is a gain of 1.97 %; 102.1 one of 2.02 %.
    assert masks(scripted([100, 102.05, 102], [SMALL, HOLD], **COSTS["retail"]))[1] == LONG_MASK
    assert masks(scripted([100, 102.10, 102], [SMALL, HOLD], **COSTS["retail"]))[1] == ADD_MASK
    # A large position at 104 and another 9 % of equity make 18.3 %; a third would make 27 %.
    large = masks(scripted([100, 104, 104, 104], [LARGE, ADD, HOLD]))
    assert large == [FLAT_MASK, ADD_MASK, LONG_MASK]
    # The master's multiplier scales the add: 2 x 9 % x 1.04 + 2 x 9 % are more than 20 %.
    doubled = masks(scripted([100, 104, 104], [LARGE, HOLD], risk_multiplier=2.0))
    assert doubled[1] == LONG_MASK


def test_masks_do_not_know_the_account_rules() -> None:
    """Vetoes, limits and untradable bars are the sanitizer's: the mask stays as it is."""
    scenario = scripted([100] * 4, [SMALL, SMALL], allow_new_risk=False, daily_trade_limit=0)
    assert masks(scenario) == [FLAT_MASK, FLAT_MASK]


# ------------------------------------------------------------------------------------- precedence


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_first_condition_that_holds_gives_the_reason(data: st.DataObject) -> None:
    """A reason is a constant, or one for each of eight environments."""
    conditions = data.draw(arrays(bool, st.tuples(st.integers(1, 9), st.just(8))))
    reasons = data.draw(arrays(np.int32, conditions.shape, elements=st.integers(0, 15)))
    constant = data.draw(st.lists(st.booleans(), min_size=len(reasons), max_size=len(reasons)))
    reasons[constant] = reasons[constant, :1]
    first = first_reason(
        [
            (jnp.asarray(holds), Reason(int(row[0])) if same else jnp.asarray(row))
            for holds, row, same in zip(conditions, reasons, constant, strict=True)
        ]
    )
    expected = np.where(
        conditions.any(axis=0), reasons[conditions.argmax(axis=0), np.arange(8)], NONE
    )
    assert first.dtype == jnp.int32
    np.testing.assert_array_equal(first, expected)


# ---------------------------------------------------------------------------------------- budgets


def test_order_budget() -> None:
    """Fractions of equity times the multiplier, at most the cash; an add repeats the entry."""
    limits, directives = trading_limits(), neutral_directives()
    account = new_account()

    def budget(action: Action, position: Any = None, **changes: float) -> float:
        told = directives
        if "risk_multiplier" in changes:
            told = type(directives)(
                risk_multiplier=jnp.float32(changes["risk_multiplier"]),
                allow_new_risk=directives.allow_new_risk,
            )
        held = flat_position() if position is None else position
        return float(order_budget(jnp.int32(action), held, account, limits, told))

    sizes = [budget(action) for action in Action]
    np.testing.assert_allclose(sizes, [0, 0.025, 0.06, 0.09, 0, 0, 0], rtol=1e-6)
    assert budget(MEDIUM, risk_multiplier=0.5) == pytest.approx(0.03)
    assert budget(MEDIUM, risk_multiplier=100.0) == 1.0
