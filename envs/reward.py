"""The reward: named components, their weights, and presets (reward version 3.1).

`reward = clip(sum over k of weight_k * component_k, +-reward_clip)`. A function of one's own adds a
component `custom`, see `RewardStep`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from envs.actions import FORCED_REASONS, Action, Conduct, Reason, is_any
from envs.execution import Fill
from envs.position import Account, Position

REWARD_VERSION = "3.1"

DIVERSITY_WINDOW = 50  # steps in which distinct executed actions are counted
DIVERSITY_WARM_UP = 10  # steps of the episode before the bonus is paid
FREE_STREAK = 3  # identical non-HOLD actions that go unpunished


@struct.dataclass
class RewardComponents:
    """One number per component, f32[] each; also the type of the weights and of sums."""

    realized_pnl: jax.Array  # return on the position's largest basis, shaped by size and exit
    transaction_cost: jax.Array  # minus costs as a share of equity
    hold: jax.Array  # holding on to a winner or a loser
    drawdown: jax.Array  # drawdown beyond the threshold, relative to it
    diversity_bonus: jax.Array  # distinct executed actions lately
    action_repeat: jax.Array  # long runs of one action
    forced_exit: jax.Array  # -1 when a position had to be sold
    invalid_action: jax.Array  # -1 for an action outside the legality mask
    unrealized_pnl: jax.Array  # potential-based shaping: cannot change the optimal policy
    log_wealth: jax.Array  # change of log equity: what money does
    differential_sharpe: jax.Array  # marginal change of the moving Sharpe ratio

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Component names in field order."""
        return tuple(cls.__dataclass_fields__)

    @classmethod
    def of(cls, **values: float) -> "RewardComponents":
        """Named components as float32 scalars, the others 0."""
        unknown = set(values) - set(cls.names())
        if unknown:
            raise ValueError(f"unknown reward components {sorted(unknown)}: one of {cls.names()}")
        return cls(**{name: jnp.float32(values.get(name, 0.0)) for name in cls.names()})

    def total(self, weights: "RewardComponents") -> jax.Array:
        """Weighted sum, f32[]."""
        weighted = jax.tree.map(jnp.multiply, weights, self)
        return jax.tree.reduce(jnp.add, weighted)


@struct.dataclass
class CustomComponents(RewardComponents):
    """The components of an environment that has a `RewardFunction`."""

    custom: jax.Array  # what the function returned


@struct.dataclass
class RewardParams:
    """Coefficients of the reward; all traced."""

    weights: RewardComponents
    pnl_scale: jax.Array  # f32[] return that is worth one unit of reward
    size_multipliers: jax.Array  # f32[3] for trades opened by BUY_SMALL, _MEDIUM, _LARGE
    partial_multiplier: jax.Array  # f32[] SELL_PARTIAL
    staged_multiplier: jax.Array  # f32[] a full exit after a partial one
    pyramid_multiplier: jax.Array  # f32[] the position was added to
    hold_band: jax.Array  # f32[] unrealised return beyond which holding costs
    hold_winner: jax.Array  # f32[] penalty above the band
    hold_loser: jax.Array  # f32[] penalty below it
    drawdown_threshold: jax.Array  # f32[]
    discount: jax.Array  # f32[] gamma of the potential-based component
    sharpe_rate: jax.Array  # f32[] adaptation rate of the differential Sharpe ratio
    reward_clip: jax.Array  # f32[]


WEIGHT_PRESETS = {
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


def reward_params(
    preset: str = "professional",
    *,
    weights: dict[str, float] | None = None,
    custom: bool = False,
    pnl_scale: float = 0.01,
    discount: float = 0.99,
    reward_clip: float = 10.0,
) -> RewardParams:
    """`RewardParams` from a preset of `WEIGHT_PRESETS`, with single weights overridden.

    Args:
      custom: for an environment that has a `RewardFunction`: the component `custom` alone has a
        weight, 1, in place of the preset's.

    Raises:
      ValueError: for an unknown preset or component, or a scale or clip that is not positive.
    """
    if preset not in WEIGHT_PRESETS:
        raise ValueError(f"unknown reward preset {preset!r}: one of {sorted(WEIGHT_PRESETS)}")
    if pnl_scale <= 0 or reward_clip <= 0:
        raise ValueError(f"pnl_scale and reward_clip must be > 0: {pnl_scale}, {reward_clip}")
    components = CustomComponents if custom else RewardComponents
    standard = {"custom": 1.0} if custom else WEIGHT_PRESETS[preset]
    return RewardParams(
        weights=components.of(**(standard | (weights or {}))),
        pnl_scale=jnp.float32(pnl_scale),
        size_multipliers=jnp.asarray([1.2, 1.0, 0.8], jnp.float32),
        partial_multiplier=jnp.float32(0.8),
        staged_multiplier=jnp.float32(1.1),
        pyramid_multiplier=jnp.float32(1.3),
        hold_band=jnp.float32(0.01),
        hold_winner=jnp.float32(-0.01),
        hold_loser=jnp.float32(-0.005),
        drawdown_threshold=jnp.float32(0.10),
        discount=jnp.float32(discount),
        sharpe_rate=jnp.float32(0.01),
        reward_clip=jnp.float32(reward_clip),
    )


@struct.dataclass
class ReturnMoments:
    """Moving moments behind the differential Sharpe ratio."""

    first: jax.Array  # f32[] exponential average of the step return
    second: jax.Array  # f32[] exponential average of its square


def no_returns() -> ReturnMoments:
    """Moments before the first step."""
    return ReturnMoments(first=jnp.float32(0.0), second=jnp.float32(0.0))


@struct.dataclass
class RewardStep:
    """One step, as a reward sees it. Money is in units of the initial equity."""

    before: Position  # at the decision, close t
    after: Position  # at close t + 1
    account_before: Account  # marked at close t
    account_after: Account  # marked at close t + 1
    conduct: Conduct  # this step's action included
    action: jax.Array  # i32[] policy action
    executed: jax.Array  # i32[] executed action
    reason: jax.Array  # i32[] `Reason` for which the two differ
    fill: Fill
    close: jax.Array  # f32[] price at close t
    next_close: jax.Array  # f32[] price at close t + 1
    time: jax.Array  # i32[] steps of the episode before this one
    terminated: jax.Array  # bool[] whether the episode ended for good


RewardFunction = Callable[[RewardStep], jax.Array]
"""A reward of one's own: a pure, jit-compilable function of one step to f32[].

Two environments are the same program only if they have the same function. Numbers that it closes
over are baked into the program.
"""


def _realized_pnl(before: Position, executed: jax.Array, fill: Fill, p: RewardParams) -> jax.Array:
    # Profit over the *largest* basis weighs each sale by the share of the position it closes, so
    # that no split of one exit pays more than `staged_multiplier` times the full exit.
    peak_basis = jnp.where(before.is_long, before.peak_basis, 1.0)
    size = jnp.where(before.entry_size == Action.BUY_SMALL, p.size_multipliers[0], 0.0)
    size = jnp.where(before.entry_size == Action.BUY_MEDIUM, p.size_multipliers[1], size)
    size = jnp.where(before.entry_size == Action.BUY_LARGE, p.size_multipliers[2], size)
    full = jnp.where(before.partial_taken, p.staged_multiplier, 1.0)
    exit_kind = jnp.where(executed == Action.SELL_PARTIAL, p.partial_multiplier, full)
    pyramid = jnp.where(before.adds > 0, p.pyramid_multiplier, 1.0)
    return fill.realized_profit / peak_basis / p.pnl_scale * size * exit_kind * pyramid


def _hold(before: Position, executed: jax.Array, close: jax.Array, p: RewardParams) -> jax.Array:
    unrealized = before.unrealized_return(close)
    penalty = jnp.where(unrealized > p.hold_band, p.hold_winner, 0.0)
    penalty = jnp.where(unrealized < -p.hold_band, p.hold_loser, penalty)
    return jnp.where(executed == Action.HOLD, penalty, 0.0)


def distinct_actions(last_executed: jax.Array, step: jax.Array) -> jax.Array:
    """Distinct executed actions in the last `DIVERSITY_WINDOW` steps, i32[].

    `last_executed` is i32[7], the step at which each action was last seen; `step` is i32[], now.
    """
    return jnp.sum(step - last_executed < DIVERSITY_WINDOW)


def _diversity_bonus(last_executed: jax.Array, step: jax.Array) -> jax.Array:
    distinct = distinct_actions(last_executed, step)
    bonus = jnp.where(distinct >= 3, 0.1, 0.0)
    bonus = jnp.where(distinct >= 4, 0.2, bonus)
    bonus = jnp.where(distinct >= 5, 0.3, bonus)
    return jnp.where(step + 1 >= DIVERSITY_WARM_UP, bonus, 0.0)


def potential(position: Position, close: jax.Array, pnl_scale: jax.Array) -> jax.Array:
    """Unrealised profit over the largest basis, in reward units: f32[], 0 when flat."""
    basis = jnp.where(position.is_long, position.peak_basis, 1.0)
    profit = position.value(close) - position.cost_basis
    return jnp.where(position.is_long, profit / basis / pnl_scale, 0.0)


def differential_sharpe(
    moments: ReturnMoments, step_return: jax.Array, rate: jax.Array
) -> tuple[jax.Array, ReturnMoments]:
    """Differential Sharpe ratio (Moody & Saffell 2001, eq. 15) and the updated moments.

    D = (B dA - A dB / 2) / (B - A^2)^(3/2) with the moments before the step; 0 while the moving
    variance is not positive beyond float32's rounding, of the moments and of equity itself.
    """
    d_first = step_return - moments.first
    d_second = step_return**2 - moments.second
    variance = moments.second - moments.first**2
    defined = variance > jnp.maximum(1e-6 * moments.second, 1e-13)
    scale = jnp.where(defined, variance, 1.0) ** 1.5
    ratio = (moments.second * d_first - 0.5 * moments.first * d_second) / scale
    moments = ReturnMoments(
        first=moments.first + rate * d_first, second=moments.second + rate * d_second
    )
    return jnp.where(defined, ratio, 0.0), moments


def reward_components(
    step: RewardStep, moments: ReturnMoments, params: RewardParams
) -> tuple[RewardComponents, ReturnMoments]:
    """All components of one step, unweighted, and the updated moments."""
    scale, conduct = params.pnl_scale, step.conduct
    # A terminal state's potential is 0, lest the shaping changes what is optimal.
    phi_after = jnp.where(step.terminated, 0.0, potential(step.after, step.next_close, scale))
    excess_drawdown = jnp.maximum(step.account_after.drawdown - params.drawdown_threshold, 0.0)
    over = jnp.maximum(conduct.streak - FREE_STREAK, 0).astype(jnp.float32)
    growth = step.account_after.equity / step.account_before.equity
    sharpe, moments = differential_sharpe(moments, growth - 1.0, params.sharpe_rate)
    components = RewardComponents(
        realized_pnl=_realized_pnl(step.before, step.executed, step.fill, params),
        transaction_cost=-step.fill.costs / step.account_before.equity / scale,
        hold=_hold(step.before, step.executed, step.close, params),
        drawdown=-excess_drawdown / params.drawdown_threshold,
        diversity_bonus=_diversity_bonus(conduct.last_executed, step.time),
        action_repeat=-0.5 * jnp.minimum(over / 3.0, 1.0),
        forced_exit=-is_any(step.reason, FORCED_REASONS).astype(jnp.float32)
        * step.fill.closed.astype(jnp.float32),
        invalid_action=-(step.reason == Reason.ILLEGAL).astype(jnp.float32),
        unrealized_pnl=params.discount * phi_after - potential(step.before, step.close, scale),
        log_wealth=jnp.log(growth) / scale,
        differential_sharpe=sharpe,
    )
    return components, moments


def with_custom(
    components: RewardComponents, function: RewardFunction, step: RewardStep
) -> CustomComponents:
    """`components` and what a function of one's own makes of the step.

    Raises:
      ValueError: it returns more than one number.
    """
    value = jnp.asarray(function(step), jnp.float32)
    if value.shape:
        name = getattr(function, "__name__", function)
        raise ValueError(
            f"the reward function {name} returned shape {value.shape}: return one number, f32[]"
        )
    return CustomComponents(**vars(components), custom=value)
