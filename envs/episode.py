"""What is told of an episode, summed over its steps by whoever wants to tell it."""

import jax
import jax.numpy as jnp
from flax import struct

from envs.actions import END_REASONS, FORCED_REASONS, NUM_ACTIONS, NUM_REASONS, is_any
from envs.execution import Fill
from envs.reward import FREE_STREAK, RewardComponents
from envs.trading import TradingEnv, TradingState, Transition


@struct.dataclass
class EpisodeStatistics:
    """Sums over the steps of one episode. Counters are integers; money is in initial equity."""

    steps: jax.Array  # i32[]
    policy_counts: jax.Array  # i32[7] histogram of policy actions
    executed_counts: jax.Array  # i32[7] histogram of executed actions
    reason_counts: jax.Array  # i32[16] histogram of reasons
    repeat_violations: jax.Array  # i32[] steps whose streak exceeded the free one
    voluntary_exits: jax.Array  # i32[] trades closed by the policy's own sale
    forced_exits: jax.Array  # i32[] trades closed by a forced exit
    ended_exits: jax.Array  # i32[] trades closed because the episode or the data ended
    winning_trades: jax.Array  # i32[]
    gross_profit: jax.Array  # f32[] sum of winning trades' net profit
    gross_loss: jax.Array  # f32[] sum of losing trades' net loss, positive
    costs: jax.Array  # f32[] slippage and commission
    traded_value: jax.Array  # f32[] both ways
    long_steps: jax.Array  # i32[] steps that ended with a position
    max_drawdown: jax.Array  # f32[]
    reward: jax.Array  # f32[] sum of clipped rewards
    components: RewardComponents  # sums of unweighted components
    magnitudes: RewardComponents  # sums of their absolute values
    final_equity: jax.Array  # f32[]


def no_statistics(env: TradingEnv) -> EpisodeStatistics:
    """Those of an episode that has not begun: zeros."""
    zero, none = jnp.float32(0.0), jnp.int32(0)
    return EpisodeStatistics(
        steps=none,
        policy_counts=jnp.zeros(NUM_ACTIONS, jnp.int32),
        executed_counts=jnp.zeros(NUM_ACTIONS, jnp.int32),
        reason_counts=jnp.zeros(NUM_REASONS, jnp.int32),
        repeat_violations=none,
        voluntary_exits=none,
        forced_exits=none,
        ended_exits=none,
        winning_trades=none,
        gross_profit=zero,
        gross_loss=zero,
        costs=zero,
        traded_value=zero,
        long_steps=none,
        max_drawdown=zero,
        reward=zero,
        components=env.components.of(),
        magnitudes=env.components.of(),
        final_equity=jnp.float32(1.0),
    )


@struct.dataclass
class StepRecord:
    """What the statistics need to know of a step."""

    action: jax.Array  # i32[] policy action
    executed: jax.Array  # i32[]
    reason: jax.Array  # i32[]
    streak: jax.Array  # i32[]
    fill: Fill
    is_long: jax.Array  # bool[] after the step
    equity: jax.Array  # f32[]
    drawdown: jax.Array  # f32[]
    reward: jax.Array  # f32[]
    components: RewardComponents


def step_record(action: jax.Array, after: TradingState, outcome: Transition) -> StepRecord:
    """Of one or many steps.

    Args:
      action: i32[...] policy action.
      after: the state that it led to, before any auto-reset.
      outcome: what the step did.
    """
    return StepRecord(
        action=action,
        executed=outcome.executed,
        reason=outcome.reason,
        streak=after.conduct.streak,
        fill=outcome.fill,
        is_long=after.position.is_long,
        equity=after.account.equity,
        drawdown=after.account.drawdown,
        reward=outcome.reward,
        components=outcome.components,
    )


def tally(
    statistics: EpisodeStatistics, steps: StepRecord, counted: jax.Array
) -> EpisodeStatistics:
    """`statistics` of an episode and some more of its steps.

    A stretch of steps is summed at once: kept up to date at every step, forty sums would cost more
    than the step.

    Args:
      steps: [T] in the order of time.
      counted: bool[T], which of them belong to the episode; no others follow those that do.
    """
    s, fill = statistics, steps.fill
    forced = fill.closed & is_any(steps.reason, FORCED_REASONS)
    ended = fill.closed & is_any(steps.reason, END_REASONS)
    actions, reasons = jnp.arange(NUM_ACTIONS), jnp.arange(NUM_REASONS)

    def count(condition: jax.Array) -> jax.Array:
        return jnp.sum(counted & condition, axis=0, dtype=jnp.int32)

    def histogram(values: jax.Array, of: jax.Array) -> jax.Array:
        return jnp.sum(counted[:, None] & (values[:, None] == of), axis=0, dtype=jnp.int32)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(counted, values, 0.0), axis=0)

    last = jnp.max(jnp.where(counted, jnp.arange(counted.shape[0]), -1), axis=0)
    return EpisodeStatistics(
        steps=s.steps + count(counted),
        policy_counts=s.policy_counts + histogram(steps.action, actions),
        executed_counts=s.executed_counts + histogram(steps.executed, actions),
        reason_counts=s.reason_counts + histogram(steps.reason, reasons),
        repeat_violations=s.repeat_violations + count(steps.streak > FREE_STREAK),
        voluntary_exits=s.voluntary_exits + count(fill.closed & ~forced & ~ended),
        forced_exits=s.forced_exits + count(forced),
        ended_exits=s.ended_exits + count(ended),
        winning_trades=s.winning_trades + count(fill.trade_profit > 0),
        gross_profit=s.gross_profit + total(jnp.maximum(fill.trade_profit, 0.0)),
        gross_loss=s.gross_loss + total(jnp.maximum(-fill.trade_profit, 0.0)),
        costs=s.costs + total(fill.costs),
        traded_value=s.traded_value + total(fill.value),
        long_steps=s.long_steps + count(steps.is_long),
        max_drawdown=jnp.maximum(
            s.max_drawdown, jnp.max(jnp.where(counted, steps.drawdown, 0.0), axis=0)
        ),
        reward=s.reward + total(steps.reward),
        components=jax.tree.map(lambda x, y: x + total(y), s.components, steps.components),
        magnitudes=jax.tree.map(lambda x, y: x + total(jnp.abs(y)), s.magnitudes, steps.components),
        final_equity=jnp.where(last >= 0, steps.equity[jnp.maximum(last, 0)], s.final_equity),
    )
