"""Counters kept during an episode, read when it ends."""

import jax
import jax.numpy as jnp
from flax import struct

from envs.actions import END_REASONS, FORCED_REASONS, NUM_ACTIONS, NUM_REASONS, is_any
from envs.execution import Fill
from envs.reward import FREE_STREAK, RewardComponents


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


def no_statistics(components: type[RewardComponents] = RewardComponents) -> EpisodeStatistics:
    """Zeros of the right types; `components` is the type of the environment's."""
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
        components=components.of(),
        magnitudes=components.of(),
        final_equity=jnp.float32(1.0),
    )


def record(
    statistics: EpisodeStatistics,
    *,
    action: jax.Array,
    executed: jax.Array,
    reason: jax.Array,
    streak: jax.Array,
    fill: Fill,
    is_long: jax.Array,
    equity: jax.Array,
    drawdown: jax.Array,
    reward: jax.Array,
    components: RewardComponents,
) -> EpisodeStatistics:
    """Adds one step."""
    s = statistics
    forced = fill.closed & is_any(reason, FORCED_REASONS)
    ended = fill.closed & is_any(reason, END_REASONS)
    actions, reasons = jnp.arange(NUM_ACTIONS), jnp.arange(NUM_REASONS)
    return EpisodeStatistics(
        steps=s.steps + 1,
        policy_counts=s.policy_counts + (actions == action),
        executed_counts=s.executed_counts + (actions == executed),
        reason_counts=s.reason_counts + (reasons == reason),
        repeat_violations=s.repeat_violations + (streak > FREE_STREAK),
        voluntary_exits=s.voluntary_exits + (fill.closed & ~forced & ~ended),
        forced_exits=s.forced_exits + forced,
        ended_exits=s.ended_exits + ended,
        winning_trades=s.winning_trades + (fill.trade_profit > 0),
        gross_profit=s.gross_profit + jnp.maximum(fill.trade_profit, 0.0),
        gross_loss=s.gross_loss + jnp.maximum(-fill.trade_profit, 0.0),
        costs=s.costs + fill.costs,
        traded_value=s.traded_value + fill.value,
        long_steps=s.long_steps + is_long,
        max_drawdown=jnp.maximum(s.max_drawdown, drawdown),
        reward=s.reward + reward,
        components=jax.tree.map(jnp.add, s.components, components),
        magnitudes=jax.tree.map(lambda total, x: total + jnp.abs(x), s.magnitudes, components),
        final_equity=equity,
    )
