"""The seven actions, when they are legal, and the sanitizer that has the last word.

Two lines of defence. The legality mask goes into the policy's logits. The sanitizer then enforces
the account's rules, which a policy cannot always see coming, and turns the *policy action* into an
*order* with a reason code, so that every override can be counted.
"""

from enum import IntEnum
from functools import reduce

import jax
import jax.numpy as jnp
from flax import struct

from envs.market import Quote
from envs.position import Account, Position


class Action(IntEnum):
    """What a symbol agent may choose at every bar."""

    HOLD = 0
    BUY_SMALL = 1
    BUY_MEDIUM = 2
    BUY_LARGE = 3
    SELL_PARTIAL = 4
    SELL_ALL = 5
    ADD_POSITION = 6


NUM_ACTIONS = len(Action)
"""Seven."""


class Reason(IntEnum):
    """Why the executed action is what it is."""

    NONE = 0  # the policy's own action
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


NUM_REASONS = len(Reason)
FORCED_REASONS = (
    Reason.BANKRUPTCY,
    Reason.DRAWDOWN_BREAKER,
    Reason.STOP_LOSS,
    Reason.TAKE_PROFIT,
    Reason.MAX_HOLDING,
)
END_REASONS = (Reason.END_OF_DATA, Reason.EPISODE_END)


@struct.dataclass
class TradingLimits:
    """Sizes, caps and forced exits; every field a traced scalar (`buy_fractions`: f32[3])."""

    buy_fractions: jax.Array  # share of equity that BUY_SMALL, BUY_MEDIUM and BUY_LARGE spend
    position_cap: jax.Array  # largest weight of one symbol after a buy, share of equity
    max_exposure: jax.Array  # largest invested share of equity after a buy
    add_threshold: jax.Array  # unrealised return that permits ADD_POSITION
    max_adds: jax.Array  # i32
    min_notional: jax.Array  # smallest order, units of initial equity
    max_trades_per_session: jax.Array  # i32
    max_repeats: jax.Array  # i32 longest run of one non-HOLD policy action
    stop_loss: jax.Array  # unrealised loss that forces an exit
    take_profit: jax.Array  # unrealised gain that forces an exit
    max_holding: jax.Array  # i32 bars
    max_drawdown: jax.Array  # account drawdown that ends the episode
    bankruptcy_equity: jax.Array  # equity that ends the episode, units of initial equity


def trading_limits(
    *,
    buy_fractions: tuple[float, float, float] = (0.025, 0.06, 0.09),
    position_cap: float = 0.20,
    max_exposure: float = 1.0,
    add_threshold: float = 0.02,
    max_adds: int = 2,
    min_notional: float = 1e-5,
    max_trades_per_session: int = 50,
    max_repeats: int = 3,
    stop_loss: float = 0.05,
    take_profit: float = 0.10,
    max_holding: int = 140,
    max_drawdown: float = 0.25,
    bankruptcy_equity: float = 0.50,
) -> TradingLimits:
    """`TradingLimits` from Python numbers, as strongly typed scalars."""
    return TradingLimits(
        buy_fractions=jnp.asarray(buy_fractions, jnp.float32),
        position_cap=jnp.float32(position_cap),
        max_exposure=jnp.float32(max_exposure),
        add_threshold=jnp.float32(add_threshold),
        max_adds=jnp.int32(max_adds),
        min_notional=jnp.float32(min_notional),
        max_trades_per_session=jnp.int32(max_trades_per_session),
        max_repeats=jnp.int32(max_repeats),
        stop_loss=jnp.float32(stop_loss),
        take_profit=jnp.float32(take_profit),
        max_holding=jnp.int32(max_holding),
        max_drawdown=jnp.float32(max_drawdown),
        bankruptcy_equity=jnp.float32(bankruptcy_equity),
    )


@struct.dataclass
class Directives:
    """What the master agent tells a symbol agent; neutral when there is no master."""

    risk_multiplier: jax.Array  # f32[] scales every buy
    allow_new_risk: jax.Array  # bool[] whether buys and adds are permitted


def neutral_directives() -> Directives:
    """Full size, everything permitted."""
    return Directives(risk_multiplier=jnp.float32(1.0), allow_new_risk=jnp.bool_(True))


@struct.dataclass
class Conduct:
    """What the sanitizer remembers of the agent's behaviour in this episode."""

    last_action: jax.Array  # i32[] previous policy action
    streak: jax.Array  # i32[] run of identical non-HOLD policy actions that ends there
    session_trades: jax.Array  # i32[] orders filled in the session of the current bar
    last_executed: jax.Array  # i32[7] step at which each executed action was last seen
    ruin: jax.Array  # i32[] Reason that ends the episode once flat; NONE while solvent


NEVER = -(2**30)  # a step long before any episode


def new_conduct() -> Conduct:
    """A clean record."""
    return Conduct(
        last_action=jnp.int32(Action.HOLD),
        streak=jnp.int32(0),
        session_trades=jnp.int32(0),
        last_executed=jnp.full(NUM_ACTIONS, NEVER, jnp.int32),
        ruin=jnp.int32(Reason.NONE),
    )


def is_buy(action: jax.Array) -> jax.Array:
    """Whether `action` opens a position, bool[]."""
    return (action >= Action.BUY_SMALL) & (action <= Action.BUY_LARGE)


def is_any(value: jax.Array, members: tuple[IntEnum, ...]) -> jax.Array:
    """Whether `value` (i32[]) is one of `members`, bool[]."""
    # Written out: a reduction over an axis of five costs more than the five comparisons.
    return reduce(jnp.logical_or, [value == member for member in members])


def first_reason(checks: list[tuple[jax.Array, jax.Array | Reason]]) -> jax.Array:
    """The reason of the first condition that holds, i32[]; NONE where none does.

    Unlike `jnp.select`, nested choices fuse with what they choose from.
    """
    reason = jnp.int32(Reason.NONE)
    for condition, its_reason in reversed(checks):
        reason = jnp.where(condition, its_reason, reason)
    return reason.astype(jnp.int32)


def order_budget(
    action: jax.Array,
    position: Position,
    account: Account,
    limits: TradingLimits,
    directives: Directives,
) -> jax.Array:
    """Money a buy or an add would spend, costs included: f32[], 0 for every other action.

    An add spends the fraction of the buy that opened the position. Never more than the cash.
    """
    size = jnp.where(action == Action.ADD_POSITION, position.entry_size, action)
    spends = is_buy(action) | (action == Action.ADD_POSITION)
    fraction = jnp.where(size == Action.BUY_SMALL, limits.buy_fractions[0], 0.0)
    fraction = jnp.where(size == Action.BUY_MEDIUM, limits.buy_fractions[1], fraction)
    fraction = jnp.where(size == Action.BUY_LARGE, limits.buy_fractions[2], fraction)
    budget = jnp.minimum(fraction * directives.risk_multiplier * account.equity, account.cash)
    return jnp.where(spends, budget, 0.0)


def legal_actions(
    position: Position,
    account: Account,
    close: jax.Array,
    limits: TradingLimits,
    directives: Directives,
) -> jax.Array:
    """Legality mask over the seven actions at the close of the current bar, bool[7]."""
    long = position.is_long
    add = jnp.int32(Action.ADD_POSITION)
    weight_after = (
        position.value(close) + order_budget(add, position, account, limits, directives)
    ) / account.equity
    may_add = (
        long
        & (position.unrealized_return(close) >= limits.add_threshold)
        & (position.adds < limits.max_adds)
        & (weight_after <= limits.position_cap)
    )
    return jnp.stack([jnp.ones_like(long), ~long, ~long, ~long, long, long, may_add])


def next_streak(conduct: Conduct, action: jax.Array) -> jax.Array:
    """Run of identical non-HOLD policy actions including `action`, i32[]."""
    streak = jnp.where(action == conduct.last_action, conduct.streak + 1, 1)
    return jnp.where(action == Action.HOLD, 0, streak)


def session_trades(conduct: Conduct, quote: Quote) -> jax.Array:
    """Orders already filled in the session in which the next order would fill, i32[]."""
    begins_anew = quote.new_session if quote.fills_next else False
    return jnp.where(begins_anew, 0, conduct.session_trades)


def forced_exit(
    position: Position,
    conduct: Conduct,
    close: jax.Array,
    end_reason: jax.Array,
    limits: TradingLimits,
) -> jax.Array:
    """Reason for which a long position must be sold now, i32[]; NONE when it need not.

    `end_reason` is END_OF_DATA or EPISODE_END on the last step of an episode, else NONE.
    """
    unrealized = position.unrealized_return(close)
    reason = first_reason(
        [
            (conduct.ruin != Reason.NONE, conduct.ruin),
            (end_reason != Reason.NONE, end_reason),
            (unrealized <= -limits.stop_loss, Reason.STOP_LOSS),
            (unrealized >= limits.take_profit, Reason.TAKE_PROFIT),
            (position.bars_held >= limits.max_holding, Reason.MAX_HOLDING),
        ]
    )
    return jnp.where(position.is_long, reason, Reason.NONE)


def refusal(
    action: jax.Array,
    legal: jax.Array,
    position: Position,
    account: Account,
    conduct: Conduct,
    quote: Quote,
    end_reason: jax.Array,
    lot: jax.Array,
    limits: TradingLimits,
    directives: Directives,
) -> jax.Array:
    """Reason for which the policy's order is refused, i32[]; NONE when it stands.

    `legal` is the bool[7] mask. All checks use what is known at the close of the current bar.
    """
    budget = order_budget(action, position, account, limits, directives)
    value = position.value(quote.close)
    takes_risk = is_buy(action) | (action == Action.ADD_POSITION)
    half = position.half(lot) * quote.close
    sold = jnp.where(action == Action.SELL_PARTIAL, half, value)
    notional = jnp.where(takes_risk, budget, sold)
    exposure = 1.0 - account.cash / account.equity
    is_legal = reduce(jnp.logical_or, [(action == a) & legal[a] for a in Action])
    checks: list[tuple[jax.Array, jax.Array | Reason]] = [
        (is_buy(action) & (conduct.ruin != Reason.NONE), conduct.ruin),
        (is_buy(action) & (end_reason != Reason.NONE), end_reason),
        (~is_legal, Reason.ILLEGAL),
        (takes_risk & ~directives.allow_new_risk, Reason.MASTER_VETO),
        (next_streak(conduct, action) > limits.max_repeats, Reason.REPEAT_LIMIT),
        (
            session_trades(conduct, quote) >= limits.max_trades_per_session,
            Reason.DAILY_TRADE_LIMIT,
        ),
        (
            takes_risk & ((value + budget) / account.equity > limits.position_cap),
            Reason.POSITION_CAP,
        ),
        (
            # An account that spends its last cent is exposed to 1 only up to rounding.
            takes_risk & (exposure + budget / account.equity > limits.max_exposure + 1e-6),
            Reason.EXPOSURE_CAP,
        ),
        (notional < limits.min_notional, Reason.BELOW_MINIMUM),
    ]
    return jnp.where(action == Action.HOLD, Reason.NONE, first_reason(checks))


def sanitize(
    action: jax.Array,
    legal: jax.Array,
    position: Position,
    account: Account,
    conduct: Conduct,
    quote: Quote,
    end_reason: jax.Array,
    lot: jax.Array,
    limits: TradingLimits,
    directives: Directives,
) -> tuple[jax.Array, jax.Array]:
    """Turns the policy's action into the order sent to the market.

    Args:
      action: i32[] policy action.
      legal: bool[7] legality mask.
      end_reason: i32[] END_OF_DATA or EPISODE_END on the last step of an episode, else NONE.
      lot: f32[] smallest number of shares per unit of initial equity; 0: none.

    Returns:
      (order, reason), both i32[]. The order is SELL_ALL for a forced exit and HOLD for a refusal.
      A policy that sells everything just when a stop, a target or the holding limit asks for it
      takes the credit: reason NONE. An order that meets an untradable fill bar becomes HOLD with
      reason UNTRADABLE.
    """
    exit_reason = forced_exit(position, conduct, quote.close, end_reason, limits)
    refused = refusal(
        action, legal, position, account, conduct, quote, end_reason, lot, limits, directives
    )
    must_exit = exit_reason != Reason.NONE
    own_exit = (action == Action.SELL_ALL) & (exit_reason >= Reason.STOP_LOSS)
    order = jnp.where(refused == Reason.NONE, action, Action.HOLD)
    order = jnp.where(must_exit, Action.SELL_ALL, order)
    reason = jnp.where(must_exit, jnp.where(own_exit, Reason.NONE, exit_reason), refused)
    blocked = (order != Action.HOLD) & ~quote.fill_tradable
    order = jnp.where(blocked, Action.HOLD, order)
    reason = jnp.where(blocked, Reason.UNTRADABLE, reason)
    return order.astype(jnp.int32), reason.astype(jnp.int32)
