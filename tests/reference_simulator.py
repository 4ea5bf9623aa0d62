"""A plain float64 simulator of one symbol's episode, for checking the compiled environment.

One bar at a time, one Python branch for each rule: slow, and easy to compare with the rules by
eye. It imports nothing from the library, so that the two cannot share a mistake.

Money is in units of the initial equity (the account starts with cash 1.0), prices are in price
units, and share counts are therefore in units of `initial_cash` real shares. Rates are fractions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np


class Action(IntEnum):
    """The seven actions."""

    HOLD = 0
    BUY_SMALL = 1
    BUY_MEDIUM = 2
    BUY_LARGE = 3
    SELL_PARTIAL = 4
    SELL_ALL = 5
    ADD_POSITION = 6


class Reason(IntEnum):
    """Why the executed action is what it is; `NONE` when it is the policy's own."""

    NONE = 0
    BANKRUPTCY = 1
    DRAWDOWN_BREAKER = 2
    END_OF_DATA = 3
    EPISODE_END = 4
    STOP_LOSS = 5
    TAKE_PROFIT = 6
    MAX_HOLDING = 7
    ILLEGAL = 8
    MASTER_VETO = 9
    REPEAT_LIMIT = 10
    DAILY_TRADE_LIMIT = 11
    POSITION_CAP = 12
    EXPOSURE_CAP = 13
    BELOW_MINIMUM = 14
    UNTRADABLE = 15


BUY_FRACTION = {Action.BUY_SMALL: 0.025, Action.BUY_MEDIUM: 0.06, Action.BUY_LARGE: 0.09}
SIZE_MULTIPLIER = {Action.BUY_SMALL: 1.2, Action.BUY_MEDIUM: 1.0, Action.BUY_LARGE: 0.8}
BUYS = tuple(BUY_FRACTION)

FORCED = (
    Reason.BANKRUPTCY,
    Reason.DRAWDOWN_BREAKER,
    Reason.STOP_LOSS,
    Reason.TAKE_PROFIT,
    Reason.MAX_HOLDING,
)
ENDED = (Reason.END_OF_DATA, Reason.EPISODE_END)

COMPONENTS = (
    "realized_pnl",
    "transaction_cost",
    "hold",
    "drawdown",
    "diversity_bonus",
    "action_repeat",
    "forced_exit",
    "invalid_action",
    "unrealized_pnl",
    "log_wealth",
    "differential_sharpe",
)

WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "professional": {
        "realized_pnl": 1.0,
        "transaction_cost": 1.0,
        "hold": 1.0,
        "drawdown": 1.0,
        "diversity_bonus": 0.07,
        "action_repeat": 0.05,
    },
    "log_wealth": {"log_wealth": 1.0},
    "differential_sharpe": {"differential_sharpe": 1.0},
}

COSTS: Mapping[str, Mapping[str, float]] = {
    "retail": {"commission": 5e-4, "slippage": 2.5e-4},
    "stage5": {"commission": 2e-5, "slippage": 1e-4},
    "free": {"commission": 0.0, "slippage": 0.0},
}


@dataclass(frozen=True)
class ReferenceParameters:
    """Every number an episode depends on. `math.inf` switches a stop or a limit off."""

    commission: float = 5e-4  # fraction of traded value, each side
    slippage: float = 2.5e-4  # fraction of price, each side
    cost_multiplier: float = 1.0
    fill: str = "next_open"  # or "same_close"
    lot_size: float = 0.0  # real shares; 0 for fractional shares
    initial_cash: float = 100_000.0  # dollars
    min_notional: float = 1.0  # dollars
    stop_loss: float = 0.05
    take_profit: float = 0.10
    max_holding: float = 140  # bars
    max_drawdown: float = 0.25
    bankruptcy_equity: float = 0.5  # of the start
    position_cap: float = 0.20  # of equity
    max_exposure: float = 1.0  # of equity
    daily_trade_limit: float = 50
    repeat_limit: int = 3
    add_threshold: float = 0.02  # unrealised return
    max_adds: int = 2
    risk_multiplier: float = 1.0
    allow_new_risk: bool = True  # False: the master vetoes buys and adds
    gamma: float = 0.99
    pnl_scale: float = 0.01
    hold_band: float = 0.01
    drawdown_threshold: float = 0.10
    sharpe_rate: float = 0.01
    reward_clip: float = 10.0
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS["professional"])

    def __post_init__(self) -> None:
        if self.fill not in ("next_open", "same_close"):
            raise ValueError(f"fill is {self.fill!r}; use 'next_open' or 'same_close'")
        unknown = set(self.weights) - set(COMPONENTS)
        if unknown:
            raise ValueError(f"no reward component is called {sorted(unknown)}")


@dataclass(frozen=True)
class Account:
    """What an account observation is made of, at the close of the current bar."""

    held: bool
    unrealised_return: float  # 0 when flat
    bars_held: int  # marks since entry; 1 after the step that filled the entry
    weight: float  # position value / equity
    adds: int
    partial_taken: bool
    cash_share: float  # cash / equity
    exposure: float  # invested value / equity; the weight, with one symbol
    drawdown: float
    return_since_start: float
    streak: int
    trades_today: int


@dataclass(frozen=True)
class StepRecord:
    """One step. Balances and `account` are after the step; `legal` is from before it."""

    bar: int  # the bar at whose close the action was decided
    legal: tuple[bool, ...]  # [7]
    policy_action: Action
    executed_action: Action
    reason: Reason
    fill_shares: float  # bought (+) or sold (-); 0 without a fill
    fill_price: float  # with slippage, before commission; 0 without a fill
    fill_costs: float  # slippage and commission
    realised_profit: float
    cash: float
    shares: float
    cost_basis: float
    peak_basis: float
    equity: float
    peak_equity: float
    drawdown: float
    unrealised_return: float
    components: dict[str, float]  # unweighted
    reward: float  # weighted sum, clipped
    reward_unclipped: float
    terminated: bool
    truncated: bool
    trades_today: int
    streak: int
    account: Account
    margin: float  # distance of the closest comparison of this step to its threshold


@dataclass(frozen=True)
class ClosedTrade:
    """One round trip, from the buy that opened it to the sale that closed it."""

    entry_bar: int  # bar of the opening fill
    exit_bar: int  # bar of the closing fill
    net_profit: float  # every sale of the trade, after costs of both sides
    reason: Reason
    kind: str  # "voluntary", "forced" or "ended"


@dataclass
class _Order:
    """An order as it would fill: what is known about it before and at the fill."""

    shares: float
    value_at_close: float  # what the order is worth at the decision, for the minimum


class ReferenceSimulator:
    """One symbol, one account, one episode at a time.

    Args:
        opens, closes: [T] prices. A bar without trading repeats the last close.
        tradable: [T] whether an order can fill on the bar; all true by default.
        session: [T] ordinal of the trading session, non-decreasing; all 0 by default.
        parameters: the rules' numbers.
        last_bar: last bar of the split, which tells END_OF_DATA from EPISODE_END; T-1 by default.

    Raises:
        ValueError: arrays of different lengths, prices that are not positive and finite, an
            episode outside the data, or an action that is none of the seven.
        RuntimeError: a step before `reset` or after the episode ended.
    """

    def __init__(
        self,
        opens: Sequence[float] | np.ndarray,
        closes: Sequence[float] | np.ndarray,
        tradable: Sequence[bool] | np.ndarray | None = None,
        session: Sequence[int] | np.ndarray | None = None,
        parameters: ReferenceParameters | None = None,
        last_bar: int | None = None,
    ) -> None:
        bars = len(closes)
        self.opens = [float(price) for price in opens]
        self.closes = [float(price) for price in closes]
        self.tradable = [True] * bars if tradable is None else [bool(flag) for flag in tradable]
        self.session = [0] * bars if session is None else [int(day) for day in session]
        self.parameters = ReferenceParameters() if parameters is None else parameters
        self.last_bar = bars - 1 if last_bar is None else last_bar
        if {len(self.opens), len(self.tradable), len(self.session)} != {bars}:
            raise ValueError("opens, closes, tradable and session must have one entry a bar")
        if not all(math.isfinite(p) and p > 0 for p in self.opens + self.closes):
            raise ValueError("every price must be positive and finite")
        if self.session != sorted(self.session):
            raise ValueError("session must not decrease")
        rules = self.parameters
        self.slippage = rules.slippage * rules.cost_multiplier
        self.commission = rules.commission * rules.cost_multiplier
        self.done = True

    # ------------------------------------------------------------------ episode

    def reset(self, start_bar: int, stop_bar: int) -> Account:
        """Starts at the close of `start_bar`; the last mark is the close of `stop_bar`."""
        if not 0 <= start_bar < stop_bar <= self.last_bar < len(self.closes):
            raise ValueError(
                f"bars {start_bar} to {stop_bar} do not lie in order inside 0 to {self.last_bar}"
            )
        self.bar, self.start_bar, self.stop_bar = start_bar, start_bar, stop_bar
        self.cash, self.peak_equity = 1.0, 1.0
        self.streak, self.trades_today = 0, 0
        self.last_policy_action = Action.HOLD
        self.bankrupt, self.broken = False, False
        self.sharpe_mean, self.sharpe_square = 0.0, 0.0
        self.trade_profit, self.entry_bar = 0.0, -1
        self._clear_position()
        self.margins = [math.inf]
        self.records: list[StepRecord] = []
        self.ledger: list[ClosedTrade] = []
        self.done = False
        return self.account()

    def step(self, policy_action: int) -> StepRecord:
        """Decides at the close of the current bar, fills, and marks at the next close."""
        if self.done:
            raise RuntimeError("the episode is over or was never started: call reset")
        chosen = Action(policy_action)
        self.margins = [math.inf]
        bar, fill_bar = self.bar, self._fill_bar()
        legal = self.legal_mask()
        self._count_streak(chosen)
        before = self.account()
        equity_before, potential_before = self.equity(), self._potential()
        if self.session[fill_bar] != self.session[bar]:
            self.trades_today = 0
        executed, reason = self._decide(chosen, legal)
        sale_multiplier = self._sale_multiplier(executed)
        shares, price, costs, profit = self._fill(executed)
        if executed is not Action.HOLD:
            self.trades_today += 1
        if shares < 0.0 and self.shares == 0.0:
            self._close_trade(fill_bar, reason)

        self._mark()
        terminated = (self.bankrupt or self.broken) and self.shares == 0.0
        truncated = self.bar == self.stop_bar
        components = {
            "realized_pnl": profit * sale_multiplier / self.parameters.pnl_scale,
            "transaction_cost": -costs / equity_before / self.parameters.pnl_scale,
            "hold": self._hold_component(executed, before),
            "drawdown": self._drawdown_component(),
            "diversity_bonus": self._diversity_component(executed),
            "action_repeat": self._repeat_component(),
            "forced_exit": -1.0 if reason in FORCED and executed is Action.SELL_ALL else 0.0,
            "invalid_action": -1.0 if reason is Reason.ILLEGAL else 0.0,
            "unrealized_pnl": self._potential_component(potential_before),
            "log_wealth": math.log(self.equity() / equity_before) / self.parameters.pnl_scale,
            "differential_sharpe": self._sharpe_component(self.equity() / equity_before - 1.0),
        }
        weights = self.parameters.weights
        total = sum(weights.get(name, 0.0) * value for name, value in components.items())
        clip = self.parameters.reward_clip
        record = StepRecord(
            bar=bar,
            legal=legal,
            policy_action=chosen,
            executed_action=executed,
            reason=reason,
            fill_shares=shares,
            fill_price=price,
            fill_costs=costs,
            realised_profit=profit,
            cash=self.cash,
            shares=self.shares,
            cost_basis=self.cost_basis,
            peak_basis=self.peak_basis,
            equity=self.equity(),
            peak_equity=self.peak_equity,
            drawdown=self.drawdown(),
            unrealised_return=self.unrealised_return(),
            components=components,
            reward=min(max(total, -clip), clip),
            reward_unclipped=total,
            terminated=terminated,
            truncated=truncated,
            trades_today=self.trades_today,
            streak=self.streak,
            account=self.account(),
            margin=min(self.margins),
        )
        self.records.append(record)
        self.done = terminated or truncated
        return record

    # ------------------------------------------------------------------ the account

    def equity(self) -> float:
        """Cash and the position at the current close."""
        return self.cash + self.shares * self.closes[self.bar]

    def drawdown(self) -> float:
        """Fall from the highest mark so far; the start counts as a mark."""
        return 1.0 - self.equity() / self.peak_equity

    def unrealised_return(self) -> float:
        """Position value over what it cost, entry costs included; 0 when flat."""
        if self.shares == 0.0:
            return 0.0
        return self.shares * self.closes[self.bar] / self.cost_basis - 1.0

    def account(self) -> Account:
        """The ingredients of the account observation at the current close."""
        equity = self.equity()
        weight = self.shares * self.closes[self.bar] / equity
        return Account(
            held=self.shares > 0.0,
            unrealised_return=self.unrealised_return(),
            bars_held=self.bars_held,
            weight=weight,
            adds=self.adds,
            partial_taken=self.partial_taken,
            cash_share=self.cash / equity,
            exposure=weight,
            drawdown=self.drawdown(),
            return_since_start=equity - 1.0,
            streak=self.streak,
            trades_today=self.trades_today,
        )

    def _clear_position(self) -> None:
        self.shares, self.cost_basis, self.peak_basis = 0.0, 0.0, 0.0
        self.lots = 0
        self.bars_held, self.adds, self.partial_taken = 0, 0, False
        self.entry_action: Action | None = None

    # ------------------------------------------------------------------ the decision

    def legal_mask(self) -> tuple[bool, ...]:
        """[7] what the rules allow at the current close."""
        flat = self.shares == 0.0
        mask = [False] * len(Action)
        mask[Action.HOLD] = True
        for action in BUYS:
            mask[action] = flat
        mask[Action.SELL_PARTIAL] = not flat
        mask[Action.SELL_ALL] = not flat
        mask[Action.ADD_POSITION] = not flat and self._may_add()
        return tuple(mask)

    def _may_add(self) -> bool:
        rules = self.parameters
        if self.adds >= rules.max_adds:
            return False
        gain, weight = self.unrealised_return(), self._weight_after(Action.ADD_POSITION)
        return self._compare(gain, rules.add_threshold, 1.0) >= 0.0 and (
            self._compare(weight, rules.position_cap) <= 0.0
        )

    def _decide(self, chosen: Action, legal: tuple[bool, ...]) -> tuple[Action, Reason]:
        """The executed action and its reason: the first rule that matches."""
        held, ending = self.shares > 0.0, self._ending()
        stop = self._stop() if held else Reason.NONE
        executed, reason = chosen, Reason.NONE
        if held and ending is not Reason.NONE:
            executed, reason = Action.SELL_ALL, ending
        elif stop is not Reason.NONE:
            # Selling everything oneself on the bar of a stop is a decision, not a forced exit.
            own = chosen is Action.SELL_ALL
            executed, reason = Action.SELL_ALL, Reason.NONE if own else stop
        elif chosen in BUYS and ending is not Reason.NONE:
            executed, reason = Action.HOLD, ending
        elif chosen is not Action.HOLD:
            reason = self._refusal(chosen, legal)
            executed = chosen if reason is Reason.NONE else Action.HOLD
        if executed is not Action.HOLD and not self.tradable[self._fill_bar()]:
            executed, reason = Action.HOLD, Reason.UNTRADABLE
        return executed, reason

    def _ending(self) -> Reason:
        """Why the position must not outlive this step, if it must not."""
        if self.bankrupt:
            return Reason.BANKRUPTCY
        if self.broken:
            return Reason.DRAWDOWN_BREAKER
        if self.bar + 1 == self.stop_bar:
            end_of_data = self.stop_bar == self.last_bar
            return Reason.END_OF_DATA if end_of_data else Reason.EPISODE_END
        return Reason.NONE

    def _stop(self) -> Reason:
        """The exit rule the open position has run into, if any."""
        rules, gain = self.parameters, self.unrealised_return()
        if self._compare(gain, -rules.stop_loss, 1.0) <= 0.0:
            return Reason.STOP_LOSS
        if self._compare(gain, rules.take_profit, 1.0) >= 0.0:
            return Reason.TAKE_PROFIT
        if self.bars_held >= rules.max_holding:
            return Reason.MAX_HOLDING
        return Reason.NONE

    def _refusal(self, chosen: Action, legal: tuple[bool, ...]) -> Reason:
        """Why the sanitizer refuses the policy's order, if it does."""
        rules = self.parameters
        adds_risk = chosen in BUYS or chosen is Action.ADD_POSITION
        if not legal[chosen]:
            return Reason.ILLEGAL
        if adds_risk and not rules.allow_new_risk:
            return Reason.MASTER_VETO
        if self.streak > rules.repeat_limit:
            return Reason.REPEAT_LIMIT
        if self.trades_today >= rules.daily_trade_limit:
            return Reason.DAILY_TRADE_LIMIT
        if adds_risk:
            weight = self._weight_after(chosen)
            if self._compare(weight, rules.position_cap) > 0.0:
                return Reason.POSITION_CAP
            if self._compare(weight, rules.max_exposure) > 0.0:
                return Reason.EXPOSURE_CAP
        order = self._order(chosen)
        minimum = rules.min_notional / rules.initial_cash
        if self._compare(order.value_at_close, minimum) < 0.0:
            return Reason.BELOW_MINIMUM
        # A bar that does not trade has no price to divide by: that refusal comes first.
        if order.shares == 0.0 and self.tradable[self._fill_bar()]:
            return Reason.BELOW_MINIMUM
        return Reason.NONE

    def _compare(self, value: float, threshold: float, scale: float | None = None) -> float:
        """`value - threshold`; its size in units of `scale` (the threshold) joins the margins."""
        difference = value - threshold
        unit = abs(threshold) if scale is None else scale
        self._note_margin(abs(difference) / unit if unit > 0.0 else abs(difference))
        return difference

    def _note_margin(self, margin: float) -> None:
        if not math.isnan(margin):
            self.margins.append(margin)

    def _count_streak(self, chosen: Action) -> None:
        if chosen is Action.HOLD:
            self.streak = 0
        else:
            self.streak = self.streak + 1 if chosen is self.last_policy_action else 1
        self.last_policy_action = chosen

    # ------------------------------------------------------------------ orders and fills

    def _fill_bar(self) -> int:
        return self.bar + 1 if self.parameters.fill == "next_open" else self.bar

    def _raw_price(self) -> float:
        same_close = self.parameters.fill == "same_close"
        return self.closes[self.bar] if same_close else self.opens[self.bar + 1]

    def _budget(self, action: Action) -> float:
        """Cash a buy or an add may spend, costs included."""
        size = self.entry_action if action is Action.ADD_POSITION else action
        if size is None:
            raise RuntimeError("an add needs an open position")
        wanted = BUY_FRACTION[size] * self.parameters.risk_multiplier * self.equity()
        return min(wanted, self.cash)

    def _weight_after(self, action: Action) -> float:
        value = self.shares * self.closes[self.bar] + self._budget(action)
        return value / self.equity()

    def _order(self, action: Action) -> _Order:
        """Shares the order trades (positive) and its value at the decision."""
        rules, close = self.parameters, self.closes[self.bar]
        if action is Action.SELL_ALL:
            return _Order(self.shares, self.shares * close)
        if action is Action.SELL_PARTIAL:
            half = self.shares / 2.0
            if rules.lot_size > 0.0:
                half = self._lots_to_shares(self.lots // 2)
            return _Order(half, half * close)
        budget = self._budget(action)
        paid_per_share = self._raw_price() * (1.0 + self.slippage) * (1.0 + self.commission)
        shares = budget / paid_per_share
        if rules.lot_size > 0.0:
            lots = shares * rules.initial_cash / rules.lot_size
            self._note_margin(abs(lots - round(lots)) / max(lots, 1.0))
            shares = self._lots_to_shares(math.floor(lots))
        return _Order(shares, budget)

    def _lots_to_shares(self, lots: int) -> float:
        return lots * self.parameters.lot_size / self.parameters.initial_cash

    def _fill(self, executed: Action) -> tuple[float, float, float, float]:
        """Moves cash and shares; gives signed shares, price, costs and realised profit."""
        if executed is Action.HOLD:
            return 0.0, 0.0, 0.0, 0.0
        quantity, raw = self._order(executed).shares, self._raw_price()
        if executed in (Action.SELL_PARTIAL, Action.SELL_ALL):
            return self._sell(executed, quantity, raw)
        return self._buy(executed, quantity, raw)

    def _buy(
        self, executed: Action, quantity: float, raw: float
    ) -> tuple[float, float, float, float]:
        price = raw * (1.0 + self.slippage)
        spend = quantity * price * (1.0 + self.commission)
        self.cash -= spend
        self.shares += quantity
        self.lots += self._whole_lots(quantity)
        self.cost_basis += spend
        self.peak_basis = max(self.peak_basis, self.cost_basis)
        if executed is Action.ADD_POSITION:
            self.adds += 1
        else:
            self.entry_action, self.entry_bar = executed, self._fill_bar()
            self.trade_profit = 0.0
        return quantity, price, abs(quantity * raw - spend), 0.0

    def _sell(
        self, executed: Action, quantity: float, raw: float
    ) -> tuple[float, float, float, float]:
        price = raw * (1.0 - self.slippage)
        proceeds = quantity * price * (1.0 - self.commission)
        basis_sold = self.cost_basis * quantity / self.shares
        profit = proceeds - basis_sold
        self.cash += proceeds
        self.trade_profit += profit
        if executed is Action.SELL_ALL:
            self._clear_position()
        else:
            self.shares -= quantity
            self.lots -= self._whole_lots(quantity)
            self.cost_basis -= basis_sold
            self.partial_taken = True
        return -quantity, price, abs(quantity * raw - proceeds), profit

    def _whole_lots(self, quantity: float) -> int:
        """A lot count is kept as an integer, so that half of it is exact."""
        rules = self.parameters
        if rules.lot_size <= 0.0:
            return 0
        return round(quantity * rules.initial_cash / rules.lot_size)

    def _close_trade(self, exit_bar: int, reason: Reason) -> None:
        kind = "forced" if reason in FORCED else "ended" if reason in ENDED else "voluntary"
        self.ledger.append(ClosedTrade(self.entry_bar, exit_bar, self.trade_profit, reason, kind))

    def _mark(self) -> None:
        """Moves to the next close: counters, peak, ruin."""
        rules, bar_left = self.parameters, self.bar
        self.bar += 1
        if rules.fill == "same_close" and self.session[self.bar] != self.session[bar_left]:
            self.trades_today = 0
        if self.shares > 0.0:
            self.bars_held += 1
        equity = self.equity()
        self.peak_equity = max(self.peak_equity, equity)
        if self._compare(equity, rules.bankruptcy_equity) <= 0.0:
            self.bankrupt = True
        if self._compare(self.drawdown(), rules.max_drawdown, 1.0) >= 0.0:
            self.broken = True

    # ------------------------------------------------------------------ reward components

    def _sale_multiplier(self, executed: Action) -> float:
        """Multipliers of a sale over the largest basis; 0 for anything that is no sale."""
        if executed not in (Action.SELL_PARTIAL, Action.SELL_ALL) or self.entry_action is None:
            return 0.0
        if executed is Action.SELL_PARTIAL:
            exit_multiplier = 0.8
        else:
            exit_multiplier = 1.1 if self.partial_taken else 1.0
        add_multiplier = 1.3 if self.adds > 0 else 1.0
        size_multiplier = SIZE_MULTIPLIER[self.entry_action]
        return size_multiplier * exit_multiplier * add_multiplier / self.peak_basis

    def _hold_component(self, executed: Action, before: Account) -> float:
        if executed is not Action.HOLD or not before.held:
            return 0.0
        band = self.parameters.hold_band
        if self._compare(before.unrealised_return, band, 1.0) > 0.0:
            return -0.01
        if self._compare(before.unrealised_return, -band, 1.0) < 0.0:
            return -0.005
        return 0.0

    def _drawdown_component(self) -> float:
        threshold = self.parameters.drawdown_threshold
        return -max(self.drawdown() - threshold, 0.0) / threshold

    def _diversity_component(self, executed: Action) -> float:
        if len(self.records) + 1 < 10:
            return 0.0
        recent = [record.executed_action for record in self.records[-49:]] + [executed]
        distinct = len(set(recent))
        return {3: 0.1, 4: 0.2}.get(distinct, 0.3 if distinct >= 5 else 0.0)

    def _repeat_component(self) -> float:
        excess = self.streak - self.parameters.repeat_limit
        return -0.5 * min(excess / 3.0, 1.0) if excess > 0 else 0.0

    def _potential(self) -> float:
        """Unrealised profit over the largest basis, in units of the scale; 0 when flat."""
        if self.shares == 0.0:
            return 0.0
        profit = self.shares * self.closes[self.bar] - self.cost_basis
        return profit / self.peak_basis / self.parameters.pnl_scale

    def _potential_component(self, before: float) -> float:
        """A terminal state has potential 0 by itself: termination waits for a flat account."""
        return self.parameters.gamma * self._potential() - before

    def _sharpe_component(self, simple_return: float) -> float:
        """Moody and Saffell (2001), "Learning to trade via direct reinforcement", eq. 15."""
        mean, square = self.sharpe_mean, self.sharpe_square
        mean_change, square_change = simple_return - mean, simple_return**2 - square
        variance = square - mean**2
        rate = self.parameters.sharpe_rate
        self.sharpe_mean = mean + rate * mean_change
        self.sharpe_square = square + rate * square_change
        if variance <= 0.0:
            return 0.0
        return (square * mean_change - 0.5 * mean * square_change) / variance**1.5

    # ------------------------------------------------------------------ telemetry

    def telemetry(self) -> dict[str, float]:
        """Statistics of the steps so far; `sanitizer_trade_delta` is in percentage points."""
        records, steps = self.records, len(self.records)
        if steps == 0:
            raise RuntimeError("no step was taken yet")
        policy = [record.policy_action for record in records]
        executed = [record.executed_action for record in records]
        own_orders = sum(
            record.executed_action is not Action.HOLD and record.reason is Reason.NONE
            for record in records
        )
        wanted = sum(action is not Action.HOLD for action in policy)
        kinds = Counter(trade.kind for trade in self.ledger)
        closed = kinds["voluntary"] + kinds["forced"]
        return {
            "steps": float(steps),
            "policy_action_entropy": action_entropy(policy),
            "executed_action_entropy": action_entropy(executed),
            "unique_actions": float(len(set(executed))),
            "voluntary_trades": float(kinds["voluntary"]),
            "forced_trades": float(kinds["forced"]),
            "ended_trades": float(kinds["ended"]),
            "voluntary_trade_rate": kinds["voluntary"] / closed if closed else 0.0,
            "forced_exit_ratio": kinds["forced"] / closed if closed else 0.0,
            "sanitizer_trade_delta": 100.0 * (wanted - own_orders) / steps,
            "action_repeat_violations": sum(
                record.streak > self.parameters.repeat_limit for record in records
            )
            / steps,
            "total_reward": math.fsum(record.reward for record in records),
            "total_costs": math.fsum(record.fill_costs for record in records),
            "net_profit": math.fsum(trade.net_profit for trade in self.ledger),
            "log_return": math.log(records[-1].equity),
            "max_drawdown": max(record.drawdown for record in records),
            **{f"reason_{reason.name.lower()}": 0.0 for reason in Reason},
            **{
                f"reason_{reason.name.lower()}": float(count)
                for reason, count in Counter(record.reason for record in records).items()
            },
        }

    def window_telemetry(self, window: int = 120) -> tuple[float, int] | None:
        """Least entropy and fewest distinct executed actions of any `window` steps in a row.

        None when fewer steps were taken.
        """
        executed = [record.executed_action for record in self.records]
        pieces = [executed[i : i + window] for i in range(len(executed) - window + 1)]
        if not pieces:
            return None
        return min(map(action_entropy, pieces)), min(len(set(piece)) for piece in pieces)


def action_entropy(actions: Sequence[int]) -> float:
    """Entropy in nats of the histogram of `actions`."""
    counts = np.bincount(np.asarray(actions, dtype=np.int64), minlength=len(Action))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
