"""Deterministic episodes: the greedy policy, recorded step by step."""

import jax
import jax.numpy as jnp
from flax import struct

from agents.networks import ActorCritic, Params, entropy, greedy
from envs.episode import EpisodeStatistics, no_statistics, step_record, tally
from envs.trading import TradingEnv, TradingParams


@struct.dataclass
class Steps:
    """What happened at each step; rows after an episode's end are not `valid`."""

    valid: jax.Array  # bool[T, E]
    bar: jax.Array  # i32[T, E] decision bar; the order fills in the next
    action: jax.Array  # i32[T, E] policy action
    executed: jax.Array  # i32[T, E]
    reason: jax.Array  # i32[T, E]
    reward: jax.Array  # f32[T, E]
    entropy: jax.Array  # f32[T, E] nats, of the policy's distribution
    value: jax.Array  # f32[T, E] the critic's
    fill_shares: jax.Array  # f32[T, E] bought or (negative) sold, per unit of initial equity
    fill_price: jax.Array  # f32[T, E]
    fill_value: jax.Array  # f32[T, E] at the raw price
    costs: jax.Array  # f32[T, E]
    trade_profit: jax.Array  # f32[T, E] net profit of a trade closed in this step
    closed: jax.Array  # bool[T, E]
    cash: jax.Array  # f32[T, E] after the fill
    shares: jax.Array  # f32[T, E] after the fill
    equity: jax.Array  # f32[T, E] at the close of bar + 1


@struct.dataclass
class Playback:
    """E greedy episodes, each counted once."""

    steps: Steps
    statistics: EpisodeStatistics  # [E]
    entropy_sum: jax.Array  # f32[E]
    terminated: jax.Array  # bool[E]


def play(
    networks: ActorCritic,
    params: Params,
    env: TradingEnv,
    env_params: TradingParams,
    starts: jax.Array,
    stops: jax.Array,
    num_steps: int,
) -> Playback:
    """Plays E episodes of symbol 0 with the most probable legal action at every step.

    An episode ends once, by termination or at its stop bar; from then on its state is frozen.

    Args:
      starts, stops: i32[E], first decision bar and the bar whose close ends the episode.
      num_steps: steps to run, at least the longest episode.
    """
    table = networks.encode_market(params, env_params.market)

    def start(bar: jax.Array, stop: jax.Array):
        return env.initial_state(jnp.int32(0), bar, stop)

    def step(carry, _):
        state, alive, entropy_sum, terminated = carry
        quote = env.quote(state.symbol, state.bar, env_params)
        account = jax.vmap(env.account_features, (0, None, 0))(state, env_params, quote.close)
        mask = jax.vmap(env.action_mask, (0, None, 0))(state, env_params, quote.close)
        embedding = networks.embedding_at(table, state.symbol, state.bar)
        logits, value = networks.heads(params, embedding, account, mask)
        action, nats = greedy(logits), entropy(logits)
        after, outcome = jax.vmap(env.advance, (0, 0, 0, None))(state, action, quote, env_params)
        row = Steps(
            valid=alive,
            bar=state.bar,
            action=action,
            executed=outcome.executed,
            reason=outcome.reason,
            reward=outcome.reward,
            entropy=nats,
            value=value,
            fill_shares=outcome.fill.shares,
            fill_price=outcome.fill.price,
            fill_value=outcome.fill.value,
            costs=outcome.fill.costs,
            trade_profit=outcome.fill.trade_profit,
            closed=outcome.fill.closed,
            cash=after.account.cash,
            shares=after.position.shares,
            equity=after.account.equity,
        )
        state = jax.tree.map(
            lambda new, old: jnp.where(alive.reshape(-1, *[1] * (new.ndim - 1)), new, old),
            after,
            state,
        )
        entropy_sum = entropy_sum + jnp.where(alive, nats, 0.0)
        terminated = terminated | (alive & outcome.terminated)
        alive = alive & ~(outcome.terminated | outcome.truncated)
        return (state, alive, entropy_sum, terminated), (row, step_record(action, after, outcome))

    episodes = starts.shape[0]
    carry = (
        jax.vmap(start)(starts, stops),
        jnp.ones(episodes, bool),
        jnp.zeros(episodes, jnp.float32),
        jnp.zeros(episodes, bool),
    )
    carry, (steps, records) = jax.lax.scan(step, carry, length=num_steps)
    *_, entropy_sum, terminated = carry
    statistics = jax.vmap(tally, (None, 1, 1))(no_statistics(env), records, steps.valid)
    return Playback(
        steps=steps,
        statistics=statistics,
        entropy_sum=entropy_sum,
        terminated=terminated,
    )
