"""The best that could have been done: exact backward induction over bars and position states.

The market does not answer back, so the largest expected log wealth of one symbol's account, under
the environment's own rules, from a flat account to a flat account, is a dynamic program. Two uses:
the perfect-foresight ceiling on real bars, and the Bayes optimum on a planted market whose law is
known. Both are an `Outlook`: what the information at each bar says of the next one.

State. Log wealth does not depend on the account's size, so a long position is its weight w (value
over equity), its unrealised return u, the adds made and the buy that opened it. Grid points
are stepped by the environment's own functions (legality, sanitizer, sizing, execution); between
them the value is interpolated, linearly in w and in u.

Approximations. (1) Interpolation: the thresholds where a rule jumps lie between two close grid
points, but an exit many bars ahead makes the value a step function of u now, and interpolation
rounds the step. With four times the grid points (twice, for regime) the plans of the planted
markets were worth up to 0.6 % more or less, and their replays earned the same within 0.3 %.
(2) Left out, because the state does not carry them: maximum holding, repeat limit, trades per
session, drawdown breaker and bankruptcy. All of them only take choices away, so the value is an
upper bound up to (1). (3) The smallest order is measured at equity 1, and shares are fractional.

What is rigorous, whatever the grid: `replay` plays the plan in `TradingEnv` with every rule on, so
what it earns is attainable, and `foresight_bound` is a bound that no strategy exceeds. The optimum
lies between the two.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from envs.actions import (
    Action,
    Conduct,
    Directives,
    Reason,
    TradingLimits,
    legal_actions,
    new_conduct,
    order_budget,
    sanitize,
)
from envs.execution import ExecutionParams, execute
from envs.market import Market, Quote, quote
from envs.position import Account, Position, flat_position, new_account
from envs.trading import TradingEnv, TradingParams, TradingState

# Distance of the two grid points at a threshold from it: far enough for float32 to tell the sides.
MARGIN = 1e-5
LARGEST_RETURN = 0.5  # the grid reaches no further where stops are set wider or switched off
FLAT_ACTIONS = (Action.HOLD, Action.BUY_SMALL, Action.BUY_MEDIUM, Action.BUY_LARGE)
LONG_ACTIONS = (Action.HOLD, Action.SELL_PARTIAL, Action.SELL_ALL, Action.ADD_POSITION)
MAX_GIBIBYTES = 2.0  # of one plan


@struct.dataclass
class Outlook:
    """The law of the next bar given the information at this one's close.

    Information is one of Z states, and B branches may follow each. A leading axis of length 1
    instead of T says that all bars are alike. A branch of probability 0 is padding: give it gap
    and move 1.
    """

    probability: jax.Array  # f32[T, Z, B] of each branch; sums to 1 over B
    gap: jax.Array  # f32[T, Z, B] raw fill price of the order decided at bar t, over close[t]
    move: jax.Array  # f32[T, Z, B] close[t + 1] over that fill price
    next_state: jax.Array  # i32[T, Z, B] information at t + 1
    tradable: jax.Array  # bool[T] whether the order decided at bar t fills

    @property
    def num_bars(self) -> int:
        """T."""
        return self.probability.shape[0]

    @property
    def num_states(self) -> int:
        """Z."""
        return self.probability.shape[1]


@dataclass(frozen=True)
class Grid:
    """Sizes of the value function's grid; static."""

    weights: int = 12
    returns: int = 96
    max_adds: int = 2  # at least as many as the rules permit

    def __post_init__(self) -> None:
        if self.weights < 2 or self.returns < 6:
            raise ValueError(f"{self}: a grid needs at least 2 weights and 6 returns")


@struct.dataclass
class Plan:
    """The solved program: values to act on."""

    outlook: Outlook
    value: jax.Array  # f32[Z] expected log wealth gained from a flat account at the first bar
    flat_ahead: jax.Array  # f32[N, Z] value of being flat after step n
    long_ahead: jax.Array  # f32[N, Z, 3, A + 1, W, U] of being long: by entry size, adds, w and u
    weights: jax.Array  # f32[3, A + 1, W] grid of weights for each entry size and number of adds
    returns: jax.Array  # f32[U] grid of unrealised returns

    @property
    def horizon(self) -> int:
        """Steps N."""
        return self.flat_ahead.shape[0]


@struct.dataclass
class Replay:
    """A plan played in the real environment. Rows after an early end repeat the dead account."""

    action: jax.Array  # i32[N] policy action
    executed: jax.Array  # i32[N]
    reason: jax.Array  # i32[N]
    equity: jax.Array  # f32[N] at the close of each next bar, units of initial equity
    log_wealth: jax.Array  # f32[] log of the final equity


def perfect_foresight(
    market: Market, symbol: int, first_bar: int, last_bar: int, fill: str = "next_open"
) -> Outlook:
    """The outlook of someone who has read the bars: Z = B = 1, T = last_bar - first_bar.

    Args:
      first_bar: of the first decision.
      last_bar: at whose close the account is flat again.
      fill: as in `ExecutionParams`.

    Raises:
      ValueError: for bars outside the market.
    """
    if not 0 <= first_bar < last_bar < market.num_bars:
        raise ValueError(
            f"bars {first_bar} to {last_bar} do not lie in order inside 0 to {market.num_bars - 1}"
        )
    bars = jnp.arange(first_bar, last_bar)
    last_bars = jnp.full(market.num_symbols, last_bar)
    quotes = quote(market, jnp.int32(symbol), bars, last_bars, fill)
    one = jnp.ones((last_bar - first_bar, 1, 1), jnp.float32)
    return Outlook(
        probability=one,
        gap=(quotes.fill_price / quotes.close)[:, None, None],
        move=(quotes.next_close / quotes.fill_price)[:, None, None],
        next_state=jnp.zeros(one.shape, jnp.int32),
        tradable=quotes.fill_tradable,
    )


def solve(
    outlook: Outlook,
    params: TradingParams,
    horizon: int | None = None,
    grid: Grid = Grid(),
) -> Plan:
    """Backward induction over the outlook under the execution, limits and directives of `params`.

    Args:
      outlook: of all bars, or of one that stands for all.
      params: rules of one symbol (no leading axis); rates and limits do not recompile.
      horizon: steps; needed where the outlook has one bar for all, else its length. On such a
        market the best action soon stops depending on the steps that remain: `act` and `replay`
        take a plan of a few hundred steps through episodes of any length.
      grid: with the default one, the plan takes 41 KB for each step and state of information.

    Raises:
      ValueError: for more adds than the grid has, a horizon that does not match the outlook, or a
        plan that would not fit into memory.
    """
    steps = outlook.num_bars if horizon is None else horizon
    if outlook.num_bars not in (1, steps):
        raise ValueError(f"an outlook of {outlook.num_bars} bars has no horizon of {steps} steps")
    if params.limits.max_adds > grid.max_adds:
        raise ValueError(
            f"the rules permit {params.limits.max_adds} adds and the grid {grid.max_adds}: "
            "give a Grid with as many"
        )
    states = outlook.num_states
    gibibytes = 4 * steps * states * 3 * (grid.max_adds + 1) * grid.weights * grid.returns / 2**30
    if gibibytes > MAX_GIBIBYTES:
        raise ValueError(
            f"a plan of {steps} steps, {states} information states and this grid takes "
            f"{gibibytes:.1f} GiB, more than {MAX_GIBIBYTES}: use fewer bars or a coarser Grid"
        )
    return _solve(outlook, _rules(params), steps, grid)


def act(
    plan: Plan,
    state: TradingState,
    information: jax.Array,
    params: TradingParams,
) -> jax.Array:
    """The best action in an environment's state, i32[]: HOLD where several are equally good.

    One step is looked ahead from the exact state, so the grid matters only from there on. The plan
    ends where the episode does: `state.stop_bar` is the close after the plan's last step. Before
    its first step a plan of particular bars knows nothing and holds.

    Args:
      information: i32[] state of information at the close of the current bar.
    """
    step = plan.horizon - (state.stop_bar - state.bar)
    if plan.outlook.num_bars == 1:
        step = jnp.maximum(step, 0)
    calendar = quote(
        params.market, state.symbol, state.bar, params.starts.last_bar, params.execution.fill
    )
    situation = _Situation(
        position=state.position,
        account=state.account,
        conduct=state.conduct,
        close=calendar.close,
        new_session=calendar.new_session,
    )
    ahead = _Ahead(step, plan.flat_ahead, plan.long_ahead, plan.weights, plan.returns)
    law = _law(plan.outlook, step, information)
    last = state.bar + 1 >= state.stop_bar
    values = _action_values(tuple(Action), situation, law, last, ahead, _rules(params))
    return jnp.argmax(values).astype(jnp.int32)


@partial(jax.jit, static_argnames="env")
def replay(
    plan: Plan,
    env: TradingEnv,
    params: TradingParams,
    symbol: jax.Array,
    stop_bar: jax.Array,
    information: jax.Array | None = None,
) -> Replay:
    """Plays the plan in the real environment, every rule on, from a flat account.

    Args:
      stop_bar: i32[] bar at whose close the episode ends; it begins N bars earlier.
      information: i32[N] state of information at every decision; by default zeros, one for each
        step of the plan.

    Returns:
      what happened. Its log wealth is attainable, hence a lower bound of the optimum.
    """
    if information is None:
        information = jnp.zeros(plan.horizon, jnp.int32)

    def step(carry, information):
        state, over = carry
        action = act(plan, state, information, params)
        after, outcome = env.transition(state, action, params)
        after = jax.tree.map(lambda new, old: jnp.where(over, old, new), after, state)
        row = (action, outcome.executed, outcome.reason, after.account.equity)
        return (after, over | outcome.terminated), row

    start = env.initial_state(symbol, stop_bar - information.shape[0], stop_bar)
    (state, _), rows = jax.lax.scan(step, (start, jnp.bool_(False)), information)
    return Replay(*rows, log_wealth=jnp.log(state.account.equity))


def foresight_bound(outlook: Outlook, params: TradingParams) -> jax.Array:
    """Log wealth that no strategy exceeds, not even one that has read the bars, f32[].

    A relaxation in which all that limits the account is the weight it can have. With equity E and
    position X at close t, and the values b bought and s sold at the fill,

        E' = E + X (gap - 1) + v (move - 1) - c_b b - c_s s,   X' = v move,   v = X gap + b - s,

    where c_b and c_s are the costs of a side. By induction from the end, the best final equity is
    at most a E + m X with a = 1, m = 0 at the stop bar: with k = a' (move - 1) + m' move,

        a' E' + m' X' = a' E + a' X (gap - 1) + k v - a' (c_b b + c_s s)
                     <= a' E + a' X (gap - 1) + X gap clip(k, -c_s a', c_b a') + v (k - c_b a')^+,

    which is linear in X once v <= w E. That w: a fill leaves at most the position cap, measured at
    close t, times the gap where it is above 1. A position held on has not reached the target p,
    and its basis was at most cap E_0 at its last buy (the basis of what an add found is below its
    value, u >= 0), which left cash of at least (1 - cap) E_0: its weight at close t is at most
    q / (1 - cap + q), q = cap (1 + p). At the last step, and where nothing trades, nothing is
    bought. What is given away: entry sizes below the cap, the add gate, stops and targets; a factor
    of two on hourly bars of SPY.

    Args:
      outlook: of perfect foresight, Z = B = 1.

    Raises:
      ValueError: for an outlook with a choice of futures.
    """
    if outlook.gap.shape[1:] != (1, 1):
        raise ValueError(
            f"the bound needs one certain future, not an outlook of shape {outlook.gap.shape}: "
            "use perfect_foresight"
        )
    return _foresight_bound(outlook, _rules(params))


@struct.dataclass
class _Rules:
    """The part of `TradingParams` that does not depend on the market."""

    execution: ExecutionParams
    limits: TradingLimits
    directives: Directives


def _rules(params: TradingParams) -> _Rules:
    return _Rules(params.execution, params.limits, params.directives)


@struct.dataclass
class _Situation:
    """What an account brings to a decision."""

    position: Position
    account: Account
    conduct: Conduct
    close: jax.Array  # f32[]
    new_session: jax.Array  # bool[] whether the next bar opens a session


@struct.dataclass
class _Ahead:
    """The value function after a step, on its grid."""

    step: jax.Array  # i32[] row of the values that follow
    flat: jax.Array  # f32[N, Z]
    long: jax.Array  # f32[N, Z, 3, A + 1, W, U]
    weights: jax.Array  # f32[3, A + 1, W]
    returns: jax.Array  # f32[U]

    def value(
        self, information: jax.Array, position: Position, account: Account, close: jax.Array
    ) -> jax.Array:
        """Interpolated value of an account at `close` with `information` (i32[]), f32[]."""
        size = jnp.maximum(position.entry_size - 1, 0)
        i, x = _locate(self.weights[size, position.adds], position.value(close) / account.equity)
        j, y = _locate(self.returns, position.unrealized_return(close))
        # Beyond the outer thresholds nothing depends on the return; the weight counts everywhere.
        y = jnp.clip(y, 0.0, 1.0)

        def at(values: jax.Array, *place: jax.Array) -> jax.Array:
            # A negative step would otherwise count from the end, as in NumPy.
            return values.at[self.step, information, *place].get(
                mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
            )

        def corner(right: int, up: int) -> jax.Array:
            return at(self.long, size, position.adds, i + right, j + up)

        lower = corner(0, 0) * (1.0 - y) + corner(0, 1) * y
        upper = corner(1, 0) * (1.0 - y) + corner(1, 1) * y
        long = lower * (1.0 - x) + upper * x
        return jnp.where(position.is_long, long, at(self.flat))


def _locate(points: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cell of the ascending `points` that holds `x`, and where in it: (i32[], f32[]).

    Outside the points, the outermost cell and a fraction outside [0, 1].
    """
    cell = jnp.clip(jnp.sum(x >= points) - 1, 0, points.shape[0] - 2)
    return cell, (x - points[cell]) / (points[cell + 1] - points[cell])


def _split_range(low: jax.Array, threshold: jax.Array, high: jax.Array, size: int) -> jax.Array:
    """`size` ascending points from `low` to `high`, two of them on either side of `threshold`."""
    half = size // 2
    below = jnp.linspace(low, threshold - MARGIN, half)
    return jnp.concatenate([below, jnp.linspace(threshold + MARGIN, high, size - half)])


def _return_points(limits: TradingLimits, size: int) -> jax.Array:
    """Unrealised returns f32[size]: beyond the stop, up to the add gate, to the target, beyond."""
    low = jnp.maximum(-limits.stop_loss, -LARGEST_RETURN)
    high = jnp.minimum(limits.take_profit, LARGEST_RETURN)
    middle = jnp.where(
        (limits.add_threshold > low) & (limits.add_threshold < high),
        limits.add_threshold,
        0.5 * (low + high),
    )
    inner = _split_range(low + MARGIN, middle, high - MARGIN, size - 2)
    return jnp.concatenate([low[None] - MARGIN, inner, high[None] + MARGIN])


def _weight_points(rules: _Rules, grid: Grid) -> jax.Array:
    """Weights f32[3, A + 1, W], by entry size and adds: up to what those buys usually amount to."""
    limits = rules.limits
    most = jnp.clip(limits.position_cap, 1e-4, 1.0)
    bought = (limits.buy_fractions * rules.directives.risk_multiplier)[:, None]
    usual = jnp.clip(bought * jnp.arange(1.0, grid.max_adds + 2.0), 1e-4, most)
    return jnp.linspace(1e-3 * usual, jnp.minimum(1.2 * usual, 1.0), grid.weights, axis=-1)


def _long_situation(
    entry_size: jax.Array, adds: jax.Array, weight: jax.Array, unrealized: jax.Array
) -> _Situation:
    """An account worth 1 that holds one position, at a close of 1."""
    one = jnp.float32(1.0)
    position = replace(
        flat_position(),
        shares=weight,
        cost_basis=weight / (1.0 + unrealized),
        peak_basis=weight / (1.0 + unrealized),
        entry_size=entry_size,
        adds=adds,
    )
    return _untroubled(position, replace(new_account(), cash=one - weight))


def _untroubled(position: Position, account: Account) -> _Situation:
    """A holding of an account with a clean record, at a close of 1."""
    return _Situation(
        position=position,
        account=account,
        conduct=new_conduct(),
        close=jnp.float32(1.0),
        new_session=jnp.bool_(False),
    )


def _law(outlook: Outlook, step: jax.Array, information: jax.Array) -> Outlook:
    """The outlook's row for one step and one state of information: leaves [B], `tradable` []."""
    bar = step if outlook.num_bars > 1 else 0
    return Outlook(
        probability=outlook.probability[bar, information],
        gap=outlook.gap[bar, information],
        move=outlook.move[bar, information],
        next_state=outlook.next_state[bar, information],
        tradable=outlook.tradable[bar],
    )


def _action_values(
    actions: tuple[Action, ...],
    situation: _Situation,
    law: Outlook,
    last: jax.Array,
    ahead: _Ahead,
    rules: _Rules,
) -> jax.Array:
    """Expected log growth over the next step plus the value after it, f32[len(actions)].

    Args:
      law: the outlook for this step and state of information: leaves [B], `tradable` [].
      last: bool[] whether this is the last step.
    """
    position, account, close = situation.position, situation.account, situation.close
    limits, directives, execution = rules.limits, rules.directives, rules.execution
    legal = legal_actions(position, account, close, limits, directives)
    end_reason = jnp.where(last, Reason.EPISODE_END, Reason.NONE).astype(jnp.int32)

    def of_action(action: jax.Array) -> jax.Array:
        def of_branch(gap: jax.Array, move: jax.Array, next_state: jax.Array) -> jax.Array:
            prices = Quote(
                close=close,
                next_close=close * gap * move,
                new_session=situation.new_session,
                last=last,
                fill_price=close * gap,
                fill_tradable=law.tradable,
                fills_next=execution.fill == "next_open",
            )
            order, _ = sanitize(
                action,
                legal,
                position,
                account,
                situation.conduct,
                prices,
                end_reason,
                execution.lot,
                limits,
                directives,
            )
            budget = order_budget(order, position, account, limits, directives)
            _, after, purse, _ = execute(order, budget, position, account, prices, execution)
            purse = purse.mark(after.value(prices.next_close))
            growth = jnp.log(purse.equity / account.equity)
            return growth + ahead.value(next_state, after, purse, prices.next_close)

        gains = jax.vmap(of_branch)(law.gap, law.move, law.next_state)
        return jnp.sum(law.probability * gains)

    return jax.vmap(of_action)(jnp.asarray(actions, jnp.int32))


@partial(jax.jit, static_argnames=("horizon", "grid"))
def _solve(outlook: Outlook, rules: _Rules, horizon: int, grid: Grid) -> Plan:
    # At a close of 1 a lot would be another amount of money.
    rules = replace(rules, execution=replace(rules.execution, lot=jnp.float32(0.0)))
    weights = _weight_points(rules, grid)
    returns = _return_points(rules.limits, grid.returns)
    num_states = outlook.num_states
    flat_situation = _untroubled(flat_position(), new_account())

    def over_the_grid(value_of):
        """f32[3, A + 1, W, U] of a function of (entry size, adds, weight, return)."""
        values = jax.vmap(value_of, (None, None, None, 0))
        values = jax.vmap(values, (None, None, 0, None))
        values = jax.vmap(values, (None, 0, 0, None))
        values = jax.vmap(values, (0, None, 0, None))
        return values(jnp.arange(1, 4), jnp.arange(grid.max_adds + 1), weights, returns)

    def step(ahead: _Ahead, index: jax.Array):
        last = index == horizon - 1

        def best(actions, situation, law):
            return jnp.max(_action_values(actions, situation, law, last, ahead, rules))

        def of_state(information: jax.Array) -> tuple[jax.Array, jax.Array]:
            law = _law(outlook, index, information)
            flat = best(FLAT_ACTIONS, flat_situation, law)
            long = over_the_grid(lambda *at: best(LONG_ACTIONS, _long_situation(*at), law))
            return flat, long

        # One state at a time: all at once would take gigabytes where there are dozens.
        flat, long = jax.lax.map(of_state, jnp.arange(num_states))
        return replace(ahead, flat=flat[None], long=long[None]), (ahead.flat[0], ahead.long[0])

    end = _Ahead(
        step=jnp.int32(0),
        flat=jnp.zeros((1, num_states)),
        long=jnp.zeros((1, num_states, 3, grid.max_adds + 1, grid.weights, grid.returns)),
        weights=weights,
        returns=returns,
    )
    first, (flat_ahead, long_ahead) = jax.lax.scan(step, end, jnp.arange(horizon), reverse=True)
    return Plan(
        outlook=outlook,
        value=first.flat[0],
        flat_ahead=flat_ahead,
        long_ahead=long_ahead,
        weights=weights,
        returns=returns,
    )


@jax.jit
def _foresight_bound(outlook: Outlook, rules: _Rules) -> jax.Array:
    execution, limits = rules.execution, rules.limits
    slippage = execution.slippage * execution.cost_multiplier
    commission = execution.commission * execution.cost_multiplier
    buying = slippage + commission + slippage * commission
    selling = slippage + commission - slippage * commission
    cap = jnp.minimum(limits.position_cap, 1.0)
    # Where losers may be added to, the basis of what an add found can exceed its value; how far,
    # the stop decides, since whoever reaches it is sold. Where no loss is too large, the
    # weight has no limit but 1.
    lowest = jnp.minimum(jnp.maximum(limits.add_threshold, -limits.stop_loss), 0.0)
    largest = cap / (1.0 + jnp.maximum(lowest, -0.99)) * (1.0 + limits.take_profit)
    held_weight = jnp.where(lowest > -0.99, largest / (1.0 - cap + largest), 1.0)

    def step(shadow, bar):
        equity, position = shadow  # a' and m' of the derivation
        gap, move, tradable, last = bar
        held = equity * (move - 1.0) + position * move
        bought = jnp.where(last, -selling, buying) * equity
        traded = jnp.clip(held, -selling * equity, bought)
        position = equity * (gap - 1.0) + gap * jnp.where(tradable, traded, held)
        weight = jnp.maximum(held_weight * gap, cap)
        profit = weight * jnp.maximum(held - bought, 0.0)
        return (equity + jnp.where(tradable & ~last, profit, 0.0), position), None

    last = jnp.arange(outlook.tradable.shape[0]) == outlook.tradable.shape[0] - 1
    bars = (outlook.gap[:, 0, 0], outlook.move[:, 0, 0], outlook.tradable, last)
    (equity, _), _ = jax.lax.scan(step, (jnp.float32(1.0), jnp.float32(0.0)), bars, reverse=True)
    return jnp.log(equity)
