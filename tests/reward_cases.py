"""Reward components worked by hand, for any simulator of the seven actions to be held against.

Every number here is a literal with its arithmetic beside it; nothing is computed by the code under
test, and nothing is imported from it.

Conventions. The episode starts at the close of bar 0. Action k is decided at close k, fills at
open k+1 (unless `fill` says otherwise) and is marked at close k+1. The last bar given is the last
bar of the data; `stop_bar`, where set, is an earlier end of the episode. Bars are tradable and of
one session unless `tradable` says otherwise. `expected` lists components before weighting at step
`step`; a component not listed is not claimed. `reward` is the weighted and clipped sum.

A realised return of r on the whole position is r / 0.01 before its multipliers: the unit below is
"points". Sizes multiply by 1.2 (small), 1.0 (medium), 0.8 (large); sales by 0.8 (partial), 1.0
(full), 1.1 (full after a partial); a position added to by 1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HOLD, SMALL, MEDIUM, LARGE, PART, ALL, ADD = range(7)

FREE: Mapping[str, Any] = {"commission": 0.0, "slippage": 0.0}
RETAIL: Mapping[str, Any] = {"commission": 5e-4, "slippage": 2.5e-4}
STAGE5: Mapping[str, Any] = {"commission": 2e-5, "slippage": 1e-4}


@dataclass(frozen=True)
class RewardCase:
    """One step of one episode and what its reward is made of."""

    name: str
    opens: tuple[float, ...]
    closes: tuple[float, ...]
    actions: tuple[int, ...]  # the policy's, from the first step
    step: int  # index into actions
    expected: Mapping[str, float]  # component name to value, unweighted
    parameters: Mapping[str, Any] = field(default_factory=lambda: FREE)  # over the defaults
    reward: float | None = None
    stop_bar: int | None = None  # the last bar when None
    tradable: tuple[bool, ...] | None = None


def _profit(value: float) -> dict[str, float]:
    return {"realized_pnl": value}


# Price paths (opens, closes). All entries fill at 100, so the average cost is 100 whatever the
# amounts; a close of 104 makes the next add legal (unrealised 4 %).
RISE_0 = ((100, 100, 105, 105, 105), (100, 104, 105, 105, 105))  # one buy, exits at 105
RISE_1 = ((100, 100, 100, 105, 105, 105), (100, 104, 104, 105, 105, 105))  # one add
RISE_2 = ((100, 100, 100, 100, 106, 106, 106), (100, 104, 104, 104, 106, 106, 106))  # two adds
# A close of 112 (+12 %) trips the take profit; the exit fills at 108.
PROFIT_0 = ((100, 100, 108, 108), (100, 112, 108, 108))
PROFIT_1 = ((100, 100, 100, 108, 108), (100, 104, 112, 108, 108))
PROFIT_2 = ((100, 100, 100, 100, 108, 108), (100, 104, 104, 112, 108, 108))
# The same with a partial sale at 105 first.
STAGED_PROFIT_0 = ((100, 100, 105, 108, 108), (100, 104, 112, 108, 108))
STAGED_PROFIT_1 = ((100, 100, 100, 105, 108, 108), (100, 104, 104, 112, 108, 108))
STAGED_PROFIT_2 = ((100, 100, 100, 100, 105, 108, 108), (100, 104, 104, 104, 112, 108, 108))
# A close of 94 (-6 %) trips the stop loss; the exit fills at 93.
LOSS_0 = ((100, 100, 93, 93), (100, 94, 93, 93))
LOSS_1 = ((100, 100, 100, 93, 93), (100, 104, 94, 93, 93))
LOSS_2 = ((100, 100, 100, 100, 93, 93), (100, 104, 104, 94, 93, 93))
# Bought at 98, marked at +4 %, sold at +5 %: 2,500 dollars are not a whole number of shares.
LOTS = ((100, 98, 102.9, 102.9, 102.9), (100, 101.92, 102.9, 102.9, 102.9))

# Three entries of 9 % pass the 20 % cap, so the cases that need them raise it.
WIDE = {**FREE, "position_cap": 0.5}
# 9 % times 10: a position large enough to hurt, with a cap out of its way.
DEEP = {**FREE, "risk_multiplier": 10.0, "position_cap": 2.0}

FLAT_60 = ((100,) * 60, (100,) * 60)

SALES = (
    # SELL_ALL of the policy, nothing sold before: points x size x 1.0 x adds.
    RewardCase("full_small_0", *RISE_0, (SMALL, ALL), 1, _profit(6.0)),  # 5 x 1.2
    RewardCase("full_medium_0", *RISE_0, (MEDIUM, ALL), 1, _profit(5.0)),  # 5 x 1.0
    RewardCase("full_large_0", *RISE_0, (LARGE, ALL), 1, _profit(4.0)),  # 5 x 0.8
    RewardCase("full_small_1", *RISE_1, (SMALL, ADD, ALL), 2, _profit(7.8)),  # 5 x 1.2 x 1.3
    RewardCase("full_medium_1", *RISE_1, (MEDIUM, ADD, ALL), 2, _profit(6.5)),  # 5 x 1.3
    RewardCase("full_large_1", *RISE_1, (LARGE, ADD, ALL), 2, _profit(5.2)),  # 5 x 0.8 x 1.3
    # 6 x 1.2 x 1.3: two adds multiply by 1.3 once.
    RewardCase("full_small_2", *RISE_2, (SMALL, ADD, ADD, ALL), 3, _profit(9.36)),
    RewardCase("full_medium_2", *RISE_2, (MEDIUM, ADD, ADD, ALL), 3, _profit(7.8)),  # 6 x 1.3
    # 6 x 0.8 x 1.3
    RewardCase("full_large_2", *RISE_2, (LARGE, ADD, ADD, ALL), 3, _profit(6.24), WIDE),
    # The second add of a large entry would be 27 % of equity: illegal under the 20 % cap, so the
    # position is still the one of a single add: 6 x 0.8 x 1.3, the same points.
    RewardCase("full_large_capped", *RISE_2, (LARGE, ADD, ADD, ALL), 3, _profit(6.24)),
    # SELL_PARTIAL: half of the position, points x 0.5 x size x 0.8 x adds.
    RewardCase("partial_small_0", *RISE_0, (SMALL, PART), 1, _profit(2.4)),  # 2.5 x 1.2 x 0.8
    RewardCase("partial_medium_0", *RISE_0, (MEDIUM, PART), 1, _profit(2.0)),  # 2.5 x 0.8
    RewardCase("partial_large_0", *RISE_0, (LARGE, PART), 1, _profit(1.6)),  # 2.5 x 0.8 x 0.8
    RewardCase("partial_small_1", *RISE_1, (SMALL, ADD, PART), 2, _profit(3.12)),  # 2.4 x 1.3
    RewardCase("partial_medium_1", *RISE_1, (MEDIUM, ADD, PART), 2, _profit(2.6)),  # 2.0 x 1.3
    RewardCase("partial_large_1", *RISE_1, (LARGE, ADD, PART), 2, _profit(2.08)),  # 1.6 x 1.3
    # 3 x 1.2 x 0.8 x 1.3
    RewardCase("partial_small_2", *RISE_2, (SMALL, ADD, ADD, PART), 3, _profit(3.744)),
    # 3 x 0.8 x 1.3
    RewardCase("partial_medium_2", *RISE_2, (MEDIUM, ADD, ADD, PART), 3, _profit(3.12)),
    # 3 x 0.8 x 0.8 x 1.3
    RewardCase("partial_large_2", *RISE_2, (LARGE, ADD, ADD, PART), 3, _profit(2.496), WIDE),
    # Staged: the other half, points x 0.5 x size x 1.1 x adds.
    RewardCase("staged_small_0", *RISE_0, (SMALL, PART, ALL), 2, _profit(3.3)),  # 2.5 x 1.2 x 1.1
    RewardCase("staged_medium_0", *RISE_0, (MEDIUM, PART, ALL), 2, _profit(2.75)),  # 2.5 x 1.1
    RewardCase("staged_large_0", *RISE_0, (LARGE, PART, ALL), 2, _profit(2.2)),  # 2.5 x 0.8 x 1.1
    # 3.3 x 1.3
    RewardCase("staged_small_1", *RISE_1, (SMALL, ADD, PART, ALL), 3, _profit(4.29)),
    # 2.75 x 1.3
    RewardCase("staged_medium_1", *RISE_1, (MEDIUM, ADD, PART, ALL), 3, _profit(3.575)),
    # 2.2 x 1.3
    RewardCase("staged_large_1", *RISE_1, (LARGE, ADD, PART, ALL), 3, _profit(2.86)),
    # 3 x 1.2 x 1.1 x 1.3
    RewardCase("staged_small_2", *RISE_2, (SMALL, ADD, ADD, PART, ALL), 4, _profit(5.148)),
    # 3 x 1.1 x 1.3
    RewardCase("staged_medium_2", *RISE_2, (MEDIUM, ADD, ADD, PART, ALL), 4, _profit(4.29)),
    # 3 x 0.8 x 1.1 x 1.3
    RewardCase("staged_large_2", *RISE_2, (LARGE, ADD, ADD, PART, ALL), 4, _profit(3.432), WIDE),
    # Buys and adds pay nothing at once, and holding pays nothing for its gain.
    RewardCase("buy_pays_nothing", *RISE_0, (SMALL,), 0, _profit(0.0)),
    RewardCase("add_pays_nothing", *RISE_1, (SMALL, ADD), 1, _profit(0.0)),
    RewardCase("hold_pays_nothing", *RISE_0, (SMALL, HOLD), 1, _profit(0.0)),
)

FORCED_SALES = (
    # Take profit at 108, 8 points. The policy holds, or wants something else.
    RewardCase("forced_small_0", *PROFIT_0, (SMALL, HOLD), 1, _profit(9.6)),  # 8 x 1.2
    RewardCase("forced_medium_0", *PROFIT_0, (MEDIUM, HOLD), 1, _profit(8.0)),  # 8 x 1.0
    RewardCase("forced_large_0", *PROFIT_0, (LARGE, HOLD), 1, _profit(6.4)),  # 8 x 0.8
    RewardCase("forced_small_1", *PROFIT_1, (SMALL, ADD, HOLD), 2, _profit(12.48)),  # 9.6 x 1.3
    RewardCase("forced_medium_1", *PROFIT_1, (MEDIUM, ADD, HOLD), 2, _profit(10.4)),  # 8 x 1.3
    RewardCase("forced_large_1", *PROFIT_1, (LARGE, ADD, HOLD), 2, _profit(8.32)),  # 6.4 x 1.3
    # 9.6 x 1.3
    RewardCase("forced_small_2", *PROFIT_2, (SMALL, ADD, ADD, HOLD), 3, _profit(12.48)),
    # 8 x 1.3
    RewardCase("forced_medium_2", *PROFIT_2, (MEDIUM, ADD, ADD, HOLD), 3, _profit(10.4)),
    # 6.4 x 1.3
    RewardCase("forced_large_2", *PROFIT_2, (LARGE, ADD, ADD, HOLD), 3, _profit(8.32), WIDE),
    # A partial sale or an illegal buy of the policy is replaced by the full forced sale: 8 x 1.2.
    RewardCase("forced_over_partial", *PROFIT_0, (SMALL, PART), 1, _profit(9.6)),
    RewardCase(
        "forced_over_illegal",
        *PROFIT_0,
        (SMALL, LARGE),
        1,
        {"realized_pnl": 9.6, "forced_exit": -1.0, "invalid_action": 0.0},
    ),
    # Forced after a partial: half of 8 points x 1.1 x size x adds.
    RewardCase(
        "forced_staged_small_0", *STAGED_PROFIT_0, (SMALL, PART, HOLD), 2, _profit(5.28)
    ),  # 4 x 1.1 x 1.2
    RewardCase(
        "forced_staged_medium_0", *STAGED_PROFIT_0, (MEDIUM, PART, HOLD), 2, _profit(4.4)
    ),  # 4 x 1.1
    RewardCase(
        "forced_staged_large_0", *STAGED_PROFIT_0, (LARGE, PART, HOLD), 2, _profit(3.52)
    ),  # 4 x 1.1 x 0.8
    RewardCase(
        "forced_staged_small_1", *STAGED_PROFIT_1, (SMALL, ADD, PART, HOLD), 3, _profit(6.864)
    ),  # 5.28 x 1.3
    RewardCase(
        "forced_staged_medium_1", *STAGED_PROFIT_1, (MEDIUM, ADD, PART, HOLD), 3, _profit(5.72)
    ),  # 4.4 x 1.3
    RewardCase(
        "forced_staged_large_1", *STAGED_PROFIT_1, (LARGE, ADD, PART, HOLD), 3, _profit(4.576)
    ),  # 3.52 x 1.3
    RewardCase(
        "forced_staged_small_2", *STAGED_PROFIT_2, (SMALL, ADD, ADD, PART, HOLD), 4, _profit(6.864)
    ),  # 5.28 x 1.3
    RewardCase(
        "forced_staged_medium_2", *STAGED_PROFIT_2, (MEDIUM, ADD, ADD, PART, HOLD), 4, _profit(5.72)
    ),  # 4.4 x 1.3
    RewardCase(
        "forced_staged_large_2",
        *STAGED_PROFIT_2,
        (LARGE, ADD, ADD, PART, HOLD),
        4,
        _profit(4.576),  # 3.52 x 1.3
        WIDE,
    ),
    # Stop loss at 93: -7 points. Multipliers apply to losses as to gains.
    RewardCase("stop_small_0", *LOSS_0, (SMALL, HOLD), 1, _profit(-8.4)),  # -7 x 1.2
    RewardCase("stop_medium_0", *LOSS_0, (MEDIUM, HOLD), 1, _profit(-7.0)),  # -7 x 1.0
    RewardCase("stop_large_0", *LOSS_0, (LARGE, HOLD), 1, _profit(-5.6)),  # -7 x 0.8
    RewardCase("stop_small_1", *LOSS_1, (SMALL, ADD, HOLD), 2, _profit(-10.92)),  # -8.4 x 1.3
    RewardCase("stop_medium_1", *LOSS_1, (MEDIUM, ADD, HOLD), 2, _profit(-9.1)),  # -7 x 1.3
    RewardCase("stop_large_1", *LOSS_1, (LARGE, ADD, HOLD), 2, _profit(-7.28)),  # -5.6 x 1.3
    # -8.4 x 1.3
    RewardCase("stop_small_2", *LOSS_2, (SMALL, ADD, ADD, HOLD), 3, _profit(-10.92)),
    # Half sold at 105, then stopped: 0.5 x -7 x 1.1 x 1.2.
    RewardCase(
        "stop_staged_small",
        (100, 100, 105, 93, 93),
        (100, 104, 94, 93, 93),
        (SMALL, PART, HOLD),
        2,
        _profit(-4.62),
    ),
    # Held for one bar, with a limit of one: sold at 105, 5 x 1.2.
    RewardCase(
        "max_holding_small",
        *RISE_0,
        (SMALL, HOLD),
        1,
        {"realized_pnl": 6.0, "forced_exit": -1.0},
        {**FREE, "max_holding": 1},
    ),
    # Drawdown breaker. 0.9 of equity at 100 falls to 72: equity 0.1 + 0.9 x 0.72 = 0.748, drawdown
    # 0.252. Sold at 70: -30 points x 0.8 = -24. Equity 0.1 + 0.63 = 0.73, so the drawdown
    # component is -(0.27 - 0.10) / 0.10.
    RewardCase(
        "breaker_large",
        (100, 100, 70, 70),
        (100, 72, 70, 70),
        (LARGE, HOLD),
        1,
        {"realized_pnl": -24.0, "forced_exit": -1.0, "drawdown": -1.7},
        DEEP,
        reward=-10.0,
    ),
    # The breaker's sale keeps its reason when the policy sells everything itself.
    RewardCase(
        "breaker_over_sell_all",
        (100, 100, 70, 70),
        (100, 72, 70, 70),
        (LARGE, ALL),
        1,
        {"realized_pnl": -24.0, "forced_exit": -1.0},
        DEEP,
    ),
    # Bankruptcy: equity 0.1 + 0.9 x 0.4 = 0.46; sold at 41: -59 points x 0.8; equity 0.469.
    RewardCase(
        "bankrupt_large",
        (100, 100, 41, 41),
        (100, 40, 41, 41),
        (LARGE, HOLD),
        1,
        {"realized_pnl": -47.2, "forced_exit": -1.0, "drawdown": -4.31},
        DEEP,
        reward=-10.0,
    ),
    # Selling everything oneself on the bar of the stop is voluntary: -7 x 1.2, no forced exit.
    RewardCase(
        "voluntary_at_stop",
        *LOSS_0,
        (SMALL, ALL),
        1,
        {"realized_pnl": -8.4, "forced_exit": 0.0},
    ),
    RewardCase("stop_is_forced", *LOSS_0, (SMALL, HOLD), 1, {"forced_exit": -1.0}),
    # The stop cannot fill on an untradable bar: no exit, and a hold below -1 %.
    RewardCase(
        "stop_untradable",
        (100, 100, 94, 93, 93),
        (100, 94, 94, 93, 93),
        (SMALL, HOLD),
        1,
        {"realized_pnl": 0.0, "forced_exit": 0.0, "hold": -0.005, "transaction_cost": 0.0},
        tradable=(True, True, False, True, True),
    ),
    # It fills on the next one: -7 x 1.2.
    RewardCase(
        "stop_after_untradable",
        (100, 100, 94, 93, 93),
        (100, 94, 94, 93, 93),
        (SMALL, HOLD, HOLD),
        2,
        {"realized_pnl": -8.4, "forced_exit": -1.0, "hold": 0.0},
        tradable=(True, True, False, True, True),
    ),
)

ENDED_SALES = (
    # The last step sells at 105, and is no forced exit: 5 x 1.2.
    RewardCase(
        "end_of_data",
        (100, 100, 105),
        (100, 104, 105),
        (SMALL, HOLD),
        1,
        {"realized_pnl": 6.0, "forced_exit": 0.0},
    ),
    RewardCase(
        "episode_end",
        *RISE_0,
        (SMALL, HOLD),
        1,
        {"realized_pnl": 6.0, "forced_exit": 0.0},
        stop_bar=2,
    ),
    # 5 x 1.2 x 1.3: the add the policy wants on the last step is replaced by the sale.
    RewardCase("end_over_add", *RISE_1, (SMALL, ADD, ADD), 2, _profit(7.8), stop_bar=3),
    # Half was sold before: 2.5 x 1.2 x 1.1.
    RewardCase("end_staged", *RISE_0, (SMALL, PART, HOLD), 2, _profit(3.3), stop_bar=3),
    # -7 x 1.0. A stop on the last step is an end all the same.
    RewardCase(
        "end_over_stop",
        *LOSS_0,
        (MEDIUM, HOLD),
        1,
        {"realized_pnl": -7.0, "forced_exit": 0.0},
        stop_bar=2,
    ),
    # A buy on the last step is refused: it costs nothing.
    RewardCase(
        "end_refuses_buy",
        *RISE_0,
        (HOLD, SMALL),
        1,
        {"realized_pnl": 0.0, "transaction_cost": 0.0, "invalid_action": 0.0, "hold": 0.0},
        RETAIL,
        stop_bar=2,
    ),
)

PEAK_BASIS = (
    # Partials of partials: 1/4 of the position, 5 x 0.25 x 0.8 x 1.2.
    RewardCase("second_partial", *RISE_0, (SMALL, PART, PART), 2, _profit(1.2)),
    # 1/8: 5 x 0.125 x 0.8 x 1.2.
    RewardCase(
        "third_partial",
        (100, 100, 105, 105, 105, 105),
        (100, 104, 105, 105, 105, 105),
        (SMALL, PART, PART, PART),
        3,
        _profit(0.6),
    ),
    # The fourth in a row is refused: a hold above +1 %, a streak of 4.
    RewardCase(
        "fourth_partial_refused",
        (100, 100, 105, 105, 105, 105, 105),
        (100, 104, 105, 105, 105, 105, 105),
        (SMALL, PART, PART, PART, PART),
        4,
        {"realized_pnl": 0.0, "hold": -0.01, "action_repeat": -0.5 / 3, "invalid_action": 0.0},
    ),
    # The quarter left after two partials: 5 x 0.25 x 1.1 x 1.2.
    RewardCase(
        "full_after_two_partials",
        (100, 100, 105, 105, 105, 105),
        (100, 104, 105, 105, 105, 105),
        (SMALL, PART, PART, ALL),
        3,
        _profit(1.65),
    ),
    # The multiplier counts adds made so far. Half sold before the add, at 105: 2.5 x 1.2 x 0.8.
    RewardCase(
        "partial_before_add",
        (100, 100, 105, 100, 105, 105),
        (100, 104, 104, 105, 105, 105),
        (SMALL, PART, ADD),
        1,
        _profit(2.4),
    ),
    # Half sold at 100 (basis 0.0125 left), equity 0.9875 + 0.0125 x 1.04 = 1.0005, add 0.0250125 at
    # 100: basis 0.0375125 is the new peak. Sold whole at 105: 5 x 1.2 x 1.1 x 1.3.
    RewardCase(
        "add_after_partial",
        (100, 100, 100, 100, 105, 105),
        (100, 104, 104, 105, 105, 105),
        (SMALL, PART, ADD, ALL),
        3,
        _profit(8.58),
    ),
    # Buy 0.025 and add 0.025 x 1.001 = 0.025025: peak 0.050025. Sell half at 100, then half of the
    # rest at 110: 10 x 0.25 x 0.8 x 1.2 x 1.3, the peak being the largest basis and not today's.
    RewardCase(
        "peak_is_remembered",
        (100, 100, 100, 100, 110, 110),
        (100, 104, 104, 104, 104, 104),
        (SMALL, ADD, PART, PART),
        3,
        _profit(3.12),
    ),
    # Adds at another price. Buy 0.025 at 100: 0.00025 shares. Add 0.025025 at 110: 0.0002275.
    # Basis 0.050025; sold at 112: 0.0004775 x 112 = 0.05348, profit 0.003455, which is
    # 6.906546726636... points, x 1.2 x 1.3.
    RewardCase(
        "add_at_another_price",
        (100, 100, 110, 112, 112),
        (100, 104, 110, 112, 112),
        (SMALL, ADD, ALL),
        2,
        _profit(10.774212893553223),
        reward=10.0,
    ),
    # Lots of one share: 2,500 dollars buy 25.51 at 98, so 25; half is 12. Sold at 102.9:
    # 5 x 12/25 x 0.8 x 1.2.
    RewardCase(
        "partial_in_lots", *LOTS, (SMALL, PART), 1, _profit(2.304), {**FREE, "lot_size": 1.0}
    ),
    # The 13 left: 5 x 13/25 x 1.1 x 1.2.
    RewardCase(
        "staged_in_lots", *LOTS, (SMALL, PART, ALL), 2, _profit(3.432), {**FREE, "lot_size": 1.0}
    ),
    # Lots of 20: one lot bought, half of it is none: refused, a hold above +1 %.
    RewardCase(
        "partial_of_one_lot",
        *LOTS,
        (SMALL, PART),
        1,
        {"realized_pnl": 0.0, "hold": -0.01},
        {**FREE, "lot_size": 20.0},
    ),
    # Decided and filled at the close: bought at 100, sold at 104, whatever the opens: 4 x 1.2.
    RewardCase(
        "same_close",
        (100, 120, 90, 90),
        (100, 104, 90, 90),
        (SMALL, ALL),
        1,
        _profit(4.8),
        {**FREE, "fill": "same_close"},
    ),
    # The next trade starts from nothing: no staging, no adds, its own size. Sold at 105 after the
    # first closed staged and added to; second bought at 105, sold at 107.1: 2 x 1.0.
    RewardCase(
        "second_trade_is_fresh",
        (100, 100, 100, 105, 105, 105, 107.1, 107.1),
        (100, 104, 104, 105, 105, 105, 107.1, 107.1),
        (SMALL, ADD, PART, ALL, MEDIUM, ALL),
        5,
        _profit(2.0),
    ),
)

# Retail: a share bought at 100 costs 100 x 1.00025 x 1.0005 = 100.0750125, and a sale at P brings
# P x 0.99975 x 0.9995 = P x 0.999250125.
COSTS = (
    # 105 x 0.999250125 / 100.0750125 = 1.04842618056130...: 4.84261805613 points x 1.2, x 0.8.
    RewardCase("retail_full_small", *RISE_0, (SMALL, ALL), 1, _profit(5.811141667356798), RETAIL),
    RewardCase("retail_full_large", *RISE_0, (LARGE, ALL), 1, _profit(3.8740944449045323), RETAIL),
    # 4.84261805613 x 0.5 x 0.8, and x 0.5 x 1.1.
    RewardCase(
        "retail_partial_medium", *RISE_0, (MEDIUM, PART), 1, _profit(1.9370472224522661), RETAIL
    ),
    RewardCase(
        "retail_staged_medium", *RISE_0, (MEDIUM, PART, ALL), 2, _profit(2.663439930871866), RETAIL
    ),
    # 4.84261805613 x 1.2 x 1.3
    RewardCase(
        "retail_full_small_1", *RISE_1, (SMALL, ADD, ALL), 2, _profit(7.554484167563838), RETAIL
    ),
    # 93 x 0.999250125 / 100.0750125 = 0.92860604564...: -7.139395435998552 points.
    RewardCase(
        "retail_stop_medium", *LOSS_0, (MEDIUM, HOLD), 1, _profit(-7.139395435998552), RETAIL
    ),
    # There and back at 100: 0.999250125 / 1.000750125 - 1 = -0.00149887565589; x 100 x 1.2.
    RewardCase(
        "retail_round_trip",
        (100, 100, 100, 100),
        (100, 100, 100, 100),
        (SMALL, ALL),
        1,
        _profit(-0.1798650787078282),
        RETAIL,
    ),
    # A buy spends 0.025 for 0.025 / 100.0750125 shares worth 100: the cost is
    # 0.025 x (1 - 100 / 100.0750125) = 0.025 x 0.000749562734 of equity 1, in units of 0.01.
    RewardCase(
        "retail_cost_buy_small",
        *RISE_0,
        (SMALL,),
        0,
        {"transaction_cost": -0.0018739068356349309},
        RETAIL,
    ),
    # 0.06 x 0.000749562734 x 100
    RewardCase(
        "retail_cost_buy_medium",
        *RISE_0,
        (MEDIUM,),
        0,
        {"transaction_cost": -0.004497376405523834},
        RETAIL,
    ),
    # 0.09 x 0.000749562734 x 100
    RewardCase(
        "retail_cost_buy_large",
        *RISE_0,
        (LARGE,),
        0,
        {"transaction_cost": -0.006746064608285751},
        RETAIL,
    ),
    # An add spends 2.5 % of equity again: the same share of equity goes in costs.
    RewardCase(
        "retail_cost_add",
        *RISE_1,
        (SMALL, ADD),
        1,
        {"transaction_cost": -0.0018739068356349309},
        RETAIL,
    ),
    # 0.025 / 100.0750125 = 0.00024981260931644 shares; equity at close 1 is 0.975 + shares x 104 =
    # 1.00098051136891; cost = shares x 105 x (1 - 0.999250125) = 0.0000196694644; / equity x 100.
    RewardCase(
        "retail_cost_sell_all",
        *RISE_0,
        (SMALL, ALL),
        1,
        {"transaction_cost": -0.0019650196951657064},
        RETAIL,
    ),
    # Half of that.
    RewardCase(
        "retail_cost_sell_partial",
        *RISE_0,
        (SMALL, PART),
        1,
        {"transaction_cost": -0.0009825098475828532},
        RETAIL,
    ),
    # 0.09 / 100.0750125 shares; equity 0.91 + shares x 94 = 0.994536586993; cost = shares x 93 x
    # 0.000749875. A forced sale pays like any other.
    RewardCase(
        "retail_cost_stop_large",
        *LOSS_0,
        (LARGE, HOLD),
        1,
        {"transaction_cost": -0.006306202543166009},
        RETAIL,
    ),
    RewardCase("retail_cost_hold", *RISE_0, (SMALL, HOLD), 1, {"transaction_cost": 0.0}, RETAIL),
    RewardCase(
        "retail_cost_refused", *RISE_0, (SMALL, LARGE), 1, {"transaction_cost": 0.0}, RETAIL
    ),
    RewardCase("free_cost_buy", *RISE_0, (LARGE,), 0, {"transaction_cost": 0.0}),
    # 100 x 1.0001 x 1.00002 = 100.0120002; 0.06 x (1 - 100 / 100.0120002) x 100.
    RewardCase(
        "stage5_cost_buy_medium",
        *RISE_0,
        (MEDIUM,),
        0,
        {"transaction_cost": -0.0007199256074872373},
        STAGE5,
    ),
    # 105 x 0.9999 x 0.99998 / 100.0120002 = 1.0497480302369: 4.974803023687557 points.
    RewardCase("stage5_full_medium", *RISE_0, (MEDIUM, ALL), 1, _profit(4.974803023687557), STAGE5),
    # Costs x 1.5: 100 x 1.000375 x 1.00075 = 100.112528125; 0.09 x (1 - 100 / 100.112528125) x 100.
    RewardCase(
        "stressed_cost_buy_large",
        *RISE_0,
        (LARGE,),
        0,
        {"transaction_cost": -0.010116147738627457},
        {**RETAIL, "cost_multiplier": 1.5},
    ),
    # Unweighted components in one step: the round trip at 100 and the sale's own costs. Shares as
    # above; equity at close 1 is 0.975 + 0.024981260931644; cost = shares x 100 x 0.000749875 =
    # 0.00001873282304; / equity x 100 = 0.00187331740835. The reward is their sum.
    RewardCase(
        "retail_reward_sum",
        (100, 100, 100, 100),
        (100, 100, 100, 100),
        (SMALL, ALL),
        1,
        {"realized_pnl": -0.1798650787078282, "transaction_cost": -0.00187331740833459},
        RETAIL,
        reward=-0.181738396116169,
    ),
)


def _hold(name: str, close: float, value: float, costs: Mapping[str, Any] = FREE) -> RewardCase:
    """Bought at 100, held through a close of `close`."""
    return RewardCase(
        name,
        (100, 100, 100, 100),
        (100, close, 100, 100),
        (SMALL, HOLD),
        1,
        {"hold": value},
        costs,
    )


HOLDS = (
    _hold("hold_up_3", 103, -0.01),
    _hold("hold_up_half", 100.5, 0.0),
    _hold("hold_even", 100, 0.0),
    _hold("hold_down_half", 99.5, 0.0),
    _hold("hold_down_2", 98, -0.005),
    # Entry costs count: 101.1 / 100.0750125 = 1.01024, but 101.05 / 100.0750125 = 1.00974.
    _hold("hold_net_above", 101.1, -0.01, RETAIL),
    _hold("hold_net_inside_up", 101.05, 0.0, RETAIL),
    # 99.1 / 100.0750125 = 0.990257, but 99.05 / 100.0750125 = 0.989758.
    _hold("hold_net_inside_down", 99.1, 0.0, RETAIL),
    _hold("hold_net_below", 99.05, -0.005, RETAIL),
    RewardCase("hold_flat", *RISE_0, (HOLD, HOLD), 1, {"hold": 0.0}),
    RewardCase("hold_before_entry_fills", *RISE_0, (SMALL,), 0, {"hold": 0.0}),
    # The band is that of the decision's close (104), not of the close after it (100).
    RewardCase(
        "hold_looks_at_the_decision",
        (100, 100, 100, 100),
        (100, 104, 100, 100),
        (SMALL, HOLD),
        1,
        {"hold": -0.01},
    ),
    # A refused order is an executed HOLD.
    RewardCase(
        "hold_by_refusal", *RISE_0, (SMALL, LARGE), 1, {"hold": -0.01, "invalid_action": -1.0}
    ),
    RewardCase("hold_not_when_adding", *RISE_1, (SMALL, ADD), 1, {"hold": 0.0}),
    RewardCase("hold_not_when_selling", *RISE_0, (SMALL, PART), 1, {"hold": 0.0}),
)

DRAWDOWNS = (
    # 0.1 + 0.9 x 0.95 = 0.955: a drawdown of 0.045, under the threshold.
    RewardCase(
        "drawdown_small",
        (100, 100, 95, 95),
        (100, 95, 95, 95),
        (LARGE,),
        0,
        {"drawdown": 0.0},
        DEEP,
    ),
    # 0.1 + 0.9 x 0.85 = 0.865: (0.135 - 0.10) / 0.10.
    RewardCase(
        "drawdown_135",
        (100, 100, 85, 85),
        (100, 85, 85, 85),
        (LARGE,),
        0,
        {"drawdown": -0.35},
        DEEP,
    ),
    # Peak 0.1 + 0.9 x 1.08 = 1.072, then 0.1 + 0.9 x 0.90 = 0.91: drawdown 1 - 0.91 / 1.072 =
    # 0.151119402985.
    RewardCase(
        "drawdown_from_a_peak",
        (100, 100, 108, 90, 90),
        (100, 108, 90, 90, 90),
        (LARGE, HOLD),
        1,
        {"drawdown": -0.5111940298507464},
        DEEP,
    ),
    # Stopped out at 84: 0.1 + 0.756 = 0.856, and the drawdown of 0.144 is charged while flat.
    RewardCase(
        "drawdown_while_flat",
        (100, 100, 84, 84, 84),
        (100, 86, 84, 84, 84),
        (LARGE, HOLD, HOLD),
        2,
        {"drawdown": -0.44, "hold": 0.0},
        DEEP,
        reward=-0.44,
    ),
)

# Four different actions in three steps of flat prices, then holds: 1, 4, 5 and 0.
_FOUR = (SMALL, PART, ALL)


def _diversity(name: str, actions: tuple[int, ...], value: float) -> RewardCase:
    """Prices stay at 100; the last step is checked."""
    step = len(actions) - 1
    return RewardCase(name, *FLAT_60, actions, step, {"diversity_bonus": value})


DIVERSITY = (
    _diversity("diversity_after_9", (*_FOUR, *(HOLD,) * 6), 0.0),
    _diversity("diversity_4_after_10", (*_FOUR, *(HOLD,) * 7), 0.2),
    _diversity("diversity_1", (HOLD,) * 10, 0.0),
    _diversity("diversity_2", (SMALL, *(HOLD,) * 9), 0.0),
    _diversity("diversity_3", (SMALL, ALL, *(HOLD,) * 8), 0.1),
    _diversity("diversity_5", (*_FOUR, MEDIUM, *(HOLD,) * 6), 0.3),
    _diversity("diversity_6", (*_FOUR, MEDIUM, ALL, LARGE, *(HOLD,) * 4), 0.3),
    # Refused buys were executed as HOLD: 1, 0 and 5.
    _diversity("diversity_executed", (SMALL, MEDIUM, LARGE, ALL, *(HOLD,) * 6), 0.1),
    # The buy leaves the window of 50 with step 50, the partial sale with step 51.
    _diversity("diversity_window_50", (*_FOUR, *(HOLD,) * 47), 0.2),
    _diversity("diversity_window_51", (*_FOUR, *(HOLD,) * 48), 0.1),
    _diversity("diversity_window_52", (*_FOUR, *(HOLD,) * 49), 0.0),
    # A forced sale counts as the SELL_ALL it is: 1, 0 and 5. It fills at 94, -6 points x 1.2.
    RewardCase(
        "diversity_forced",
        (100, 100, *(94,) * 12),
        (100, *(94,) * 13),
        (SMALL, *(HOLD,) * 9),
        9,
        {"diversity_bonus": 0.1, "realized_pnl": 0.0},
        reward=0.1 * 0.07,
    ),
)


def _repeat(name: str, actions: tuple[int, ...], value: float) -> RewardCase:
    """Prices stay at 100; the last step is checked."""
    return RewardCase(name, *FLAT_60, actions, len(actions) - 1, {"action_repeat": value})


REPEATS = (
    # SELL_ALL of a flat account is refused, and counts all the same: the streak is the policy's.
    _repeat("repeat_1", (ALL,), 0.0),
    _repeat("repeat_3", (ALL,) * 3, 0.0),
    _repeat("repeat_4", (ALL,) * 4, -0.16666666666666666),  # -0.5 x 1/3
    _repeat("repeat_5", (ALL,) * 5, -0.3333333333333333),  # -0.5 x 2/3
    _repeat("repeat_6", (ALL,) * 6, -0.5),  # -0.5 x 3/3
    _repeat("repeat_8", (ALL,) * 8, -0.5),  # at most 0.5
    _repeat("repeat_broken_by_hold", (ALL, ALL, ALL, HOLD, ALL), 0.0),
    _repeat("repeat_broken_by_another", (ALL, ALL, ALL, PART), 0.0),
    _repeat("repeat_of_hold", (HOLD,) * 8, 0.0),
    # Weighted by 0.05; invalid_action has weight 0.
    RewardCase(
        "repeat_reward",
        *FLAT_60,
        (ALL,) * 7,
        6,
        {"action_repeat": -0.5, "invalid_action": -1.0},
        reward=-0.025,
    ),
)

OTHERS = (
    RewardCase("invalid_sell_flat", *RISE_0, (ALL,), 0, {"invalid_action": -1.0}),
    RewardCase("invalid_add_flat", *RISE_0, (ADD,), 0, {"invalid_action": -1.0}),
    RewardCase("invalid_buy_long", *RISE_0, (SMALL, SMALL), 1, {"invalid_action": -1.0}),
    # 1.5 % is under the 2 % an add needs.
    RewardCase(
        "invalid_add_early",
        (100, 100, 101.5, 101.5),
        (100, 101.5, 101.5, 101.5),
        (SMALL, ADD),
        1,
        {"invalid_action": -1.0},
    ),
    # The third add is one too many.
    RewardCase(
        "invalid_third_add",
        (*(100,) * 6,),
        (100, 104, 104, 104, 104, 104),
        (SMALL, ADD, ADD, ADD),
        3,
        {"invalid_action": -1.0, "hold": -0.01},
    ),
    RewardCase("valid_sell", *RISE_0, (SMALL, ALL), 1, {"invalid_action": 0.0}),
    # Potentials in points of the largest basis: from 0 to 4: 0.99 x 4.
    RewardCase("unrealized_entry", *RISE_0, (SMALL,), 0, {"unrealized_pnl": 3.96}),
    # From 4 to 2: 0.99 x 2 - 4.
    RewardCase(
        "unrealized_hold",
        (100, 100, 102, 102),
        (100, 104, 102, 102),
        (SMALL, HOLD),
        1,
        {"unrealized_pnl": -2.02},
    ),
    # From 4 to nothing.
    RewardCase("unrealized_sell_all", *RISE_0, (SMALL, ALL), 1, {"unrealized_pnl": -4.0}),
    # From 4 to 5 on half the basis: 0.99 x 2.5 - 4.
    RewardCase("unrealized_sell_partial", *RISE_0, (SMALL, PART), 1, {"unrealized_pnl": -1.525}),
    # Costs are in the basis: 100 / 100.0750125 - 1 = -0.000749562734; x 100 x 0.99.
    RewardCase(
        "unrealized_retail_entry",
        (100, 100, 100, 100),
        (100, 100, 100, 100),
        (SMALL,),
        0,
        {"unrealized_pnl": -0.07420671069114326},
        RETAIL,
    ),
    # The breaker's exit ends the episode at potential 0, from (72 / 100 - 1) x 100 = -28.
    RewardCase(
        "unrealized_terminal",
        (100, 100, 70, 70),
        (100, 72, 70, 70),
        (LARGE, HOLD),
        1,
        {"unrealized_pnl": 28.0},
        DEEP,
    ),
    # Equity 0.91 + 0.09 x 1.04 = 1.0036: ln 1.0036 = 0.003593535510.
    RewardCase("wealth_up", *RISE_0, (LARGE,), 0, {"log_wealth": 0.3593535510130218}),
    # Equity 0.91 + 0.09 x 0.96 = 0.9964: ln 0.9964 = -0.003606495594.
    RewardCase(
        "wealth_down",
        (100, 100, 96, 96),
        (100, 96, 96, 96),
        (LARGE,),
        0,
        {"log_wealth": -0.36064955941117444},
    ),
    # Sold at 103 after a close of 104: ln(1.0027 / 1.0036).
    RewardCase(
        "wealth_sale",
        (100, 100, 103, 103),
        (100, 104, 103, 103),
        (LARGE, ALL),
        1,
        {"log_wealth": -0.08971739623877364},
    ),
    RewardCase("wealth_flat", *RISE_0, (HOLD,), 0, {"log_wealth": 0.0}),
    RewardCase(
        "wealth_preset",
        *RISE_0,
        (LARGE,),
        0,
        {"log_wealth": 0.3593535510130218},
        {**FREE, "weights": {"log_wealth": 1.0}},
        reward=0.3593535510130218,
    ),
    # No variance yet on the first return.
    RewardCase(
        "sharpe_first",
        (100, 100, 103, 103),
        (100, 103, 103, 103),
        (LARGE,),
        0,
        {"differential_sharpe": 0.0},
        DEEP,
    ),
    # First return 0.9 x 3 % = 0.027: A = 0.00027, B = 0.00000729. Then a close of 101.5: equity
    # 1.027 to 1.0135, R = -0.013145082765. (B (R - A) - A (R^2 - B) / 2) / (B - A^2)^1.5
    # = -1.2013888548e-7 / 1.9388494347e-8.
    RewardCase(
        "sharpe_second",
        (100, 100, 103, 101.5, 101.5),
        (100, 103, 101.5, 101.5, 101.5),
        (LARGE, HOLD),
        1,
        {"differential_sharpe": -6.196400985535933},
        DEEP,
    ),
    # Then A = 0.99 A + 0.01 R = 0.0001358491723, B = 0.99 B + 0.01 R^2 = 0.000008945032009 and a
    # close of 104: equity 1.0135 to 1.036, R = 0.022200296004: 1.644979250e-7 / 2.667027134e-8.
    RewardCase(
        "sharpe_third",
        (100, 100, 103, 101.5, 104, 104),
        (100, 103, 101.5, 104, 104, 104),
        (LARGE, HOLD, HOLD),
        2,
        {"differential_sharpe": 6.167838449320162},
        {**DEEP, "weights": {"differential_sharpe": 1.0}},
        reward=6.167838449320162,
    ),
    # Clipped at 10 either way: 9.6 x 1.3 = 12.48 and -8.4 x 1.3 = -10.92.
    RewardCase("clip_high", *PROFIT_1, (SMALL, ADD, HOLD), 2, _profit(12.48), reward=10.0),
    RewardCase("clip_low", *LOSS_1, (SMALL, ADD, HOLD), 2, _profit(-10.92), reward=-10.0),
    # A flat ten steps with five distinct actions: 0.3 x 0.07.
    RewardCase(
        "diversity_reward",
        *FLAT_60,
        (*_FOUR, MEDIUM, ALL, *(HOLD,) * 5),
        9,
        {"diversity_bonus": 0.3},
        reward=0.021,
    ),
)

CASES: tuple[RewardCase, ...] = (
    *SALES,
    *FORCED_SALES,
    *ENDED_SALES,
    *PEAK_BASIS,
    *COSTS,
    *HOLDS,
    *DRAWDOWNS,
    *DIVERSITY,
    *REPEATS,
    *OTHERS,
)
