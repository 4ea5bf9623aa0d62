"""Experience: many environments stepped by one policy, stored as indices and the account half.

Environments walk the market in blocks of `block_length` contiguous bars. Episodes are truncated at
block boundaries only, and a termination inside a block goes on from the same bar with a new account
(`TradingEnv.auto_reset`), so a block is always one contiguous stretch of one symbol: it is stored
as the index of its first bar, the learner encodes it in one pass, and a rollout looks up its
prices, and draws all its random numbers, before the first step.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from agents.networks import ActorCritic, Params, entropy, log_prob, sample
from envs.actions import NUM_ACTIONS
from envs.episode import EpisodeStatistics, StepRecord, no_statistics, step_record, tally
from envs.market import close_price
from envs.trading import TradingEnv, TradingParams, TradingState


@struct.dataclass
class Diary:
    """The episodes under way in M of the environments: what telemetry tells of them."""

    statistics: EpisodeStatistics  # [M]
    entropy_sum: jax.Array  # f32[M] sum of the policy's entropies


@struct.dataclass
class Walkers:
    """N environments between steps."""

    state: TradingState  # [N, ...]
    diary: Diary  # [M]


@struct.dataclass
class FinishedEpisodes:
    """The last episode that each of M environments finished in each block; zeros where none did."""

    diary: Diary  # [..., M]
    count: jax.Array  # i32[..., M] episodes finished in the block


@struct.dataclass
class Rollout:
    """K blocks of C steps in N environments."""

    symbol: jax.Array  # i32[K, N]
    first_bar: jax.Array  # i32[K, N] bar at which the block's first decision is made
    account: jax.Array  # f32[K, C, N, A]
    mask: jax.Array  # bool[K, C, N, 7]
    action: jax.Array  # i32[K, C, N] policy actions
    executed: jax.Array  # i32[K, C, N]
    log_prob: jax.Array  # f32[K, C, N]
    entropy: jax.Array  # f32[K, C, N]
    value: jax.Array  # f32[K, C, N]
    reward: jax.Array  # f32[K, C, N]
    terminated: jax.Array  # bool[K, C, N]
    truncated: jax.Array  # bool[K, C, N]; true in a block's last step only
    final_value: jax.Array  # f32[K, N] value of the observation before the last auto-reset
    last_value: jax.Array  # f32[N] value of the observation after the last step
    finished: FinishedEpisodes  # [K, M]


def _select(done: jax.Array, new, old):
    """`new` where `done` (bool[N]), leaf by leaf over leading axis N."""
    return jax.tree.map(
        lambda a, b: jnp.where(done.reshape(done.shape + (1,) * (b.ndim - 1)), a, b), new, old
    )


def _blank(env: TradingEnv, count: int) -> Diary:
    diary = Diary(statistics=no_statistics(env), entropy_sum=jnp.float32(0.0))
    return jax.tree.map(lambda x: jnp.tile(x, (count, *[1] * x.ndim)), diary)


def start_walkers(
    key: jax.Array,
    env: TradingEnv,
    params: TradingParams,
    num_envs: int,
    block_length: int,
    recorded_envs: int,
    groups: int = 1,
) -> Walkers:
    """N flat accounts at random bars, of which about `recorded_envs` keep a diary.

    They are the first of each group, see `collect`: rounded up to as many of each, or all.

    First episodes have different lengths, multiples of `block_length`: otherwise all environments
    would end their episodes in the same step for ever.
    """
    symbol, bar, stop_bar = params.starts.sample(key, params.max_steps_in_episode, (num_envs,))
    blocks = params.max_steps_in_episode // block_length
    stop_bar = stop_bar - block_length * (jnp.arange(num_envs) % blocks)
    return Walkers(
        state=jax.vmap(env.initial_state)(symbol, bar, stop_bar),
        diary=_blank(env, groups * min(num_envs // groups, math.ceil(recorded_envs / groups))),
    )


def first_of_groups(x: Any, count: int, groups: int) -> Any:
    """The first of [N, ...] in each of so many equal groups, `count` in all: [count, ...]."""
    return x.reshape(groups, -1, *x.shape[1:])[:, : count // groups].reshape(count, *x.shape[1:])


def new_accounts(env: TradingEnv, state: TradingState, terminated: jax.Array) -> TradingState:
    """[N] states of which the terminated ones (bool[N]) go on with a new account."""
    fresh = jax.vmap(env.initial_state)(state.symbol, state.bar, state.stop_bar)
    return _select(terminated, fresh, state)


def new_episodes(
    key: jax.Array,
    env: TradingEnv,
    params: TradingParams,
    state: TradingState,
    truncated: jax.Array,
) -> TradingState:
    """[N] states of which the truncated ones (bool[N]) start elsewhere."""
    start = params.starts.sample(key, params.max_steps_in_episode, truncated.shape)
    return _select(truncated, jax.vmap(env.initial_state)(*start), state)


def keep_diary(
    diary: Diary, steps: StepRecord, entropies: jax.Array, done: jax.Array
) -> tuple[Diary, FinishedEpisodes]:
    """One environment's diary after a block of C steps, and the last episode that ended in it.

    Args:
      steps, entropies, done: [C]; `done`, whether the step ended its episode.
    """
    step = jnp.arange(done.shape[0])
    end = jnp.max(jnp.where(done, step, -1))
    end_before = jnp.max(jnp.where(done & (step < end), step, -1))
    blank = jax.tree.map(jnp.zeros_like, diary)

    def continued(begun: jax.Array, counted: jax.Array) -> Diary:
        start = jax.tree.map(lambda kept, none: jnp.where(begun, kept, none), diary, blank)
        return Diary(
            statistics=tally(start.statistics, steps, counted),
            entropy_sum=start.entropy_sum + jnp.sum(jnp.where(counted, entropies, 0.0)),
        )

    last = continued(end_before < 0, (end_before < step) & (step <= end))
    finished = FinishedEpisodes(
        diary=jax.tree.map(lambda x, none: jnp.where(end >= 0, x, none), last, blank),
        count=jnp.sum(done, dtype=jnp.int32),
    )
    return continued(end < 0, end < step), finished


def collect(
    key: jax.Array,
    networks: ActorCritic,
    params: Params,
    env: TradingEnv,
    env_params: TradingParams,
    walkers: Walkers,
    num_blocks: int,
    block_length: int,
    table: jax.Array | None = None,
    groups: int = 1,
) -> tuple[Walkers, Rollout]:
    """Steps all environments `num_blocks * block_length` times under the stochastic policy.

    Args:
      walkers: N environments at block boundaries.
      table: the market's embeddings, where they have been made already.
      groups: equal parts of the environments, which may lie on devices of their own. The diaries
        are kept of the first environments of each.
    """
    num_envs = walkers.state.bar.shape[0]
    recorded = walkers.diary.entropy_sum.shape[0]
    # Of a block's decisions, and of the bar after the last, whose value may be needed.
    encode = networks.block_encoder(
        params, env_params.market, (num_blocks + 1) * num_envs, block_length + 1, table
    )
    advance = jax.vmap(env.advance, (0, 0, 0, None))
    account_features = jax.vmap(env.account_features, (0, None, 0))
    action_mask = jax.vmap(env.action_mask, (0, None, 0))

    def step(state: TradingState, inputs):
        embedding, quote, uniform = inputs
        state = new_accounts(env, state, env.is_terminated(state, env_params))
        account = account_features(state, env_params, quote.close)
        mask = action_mask(state, env_params, quote.close)
        logits, value = networks.heads(params, embedding, account, mask)
        action, nats = sample(uniform, logits), entropy(logits)
        after, outcome = advance(state, action, quote, env_params)

        ended = outcome.terminated | outcome.truncated
        watched = jax.tree.map(
            lambda x: first_of_groups(x, recorded, groups),
            (step_record(action, after, outcome), nats, ended),
        )
        stored = {
            "account": account,
            "mask": mask,
            "action": action,
            "executed": outcome.executed,
            "log_prob": log_prob(logits, action),
            "entropy": nats,
            "value": value,
            "reward": outcome.reward,
            "terminated": outcome.terminated,
            "truncated": outcome.truncated,
        }
        return after, (stored, watched)

    # Scans carry their key. Were they to walk over an array of keys, `vmap` would transpose it,
    # and jax.debug_key_reuse takes a transposed key for a used one.
    def block(carry: tuple[jax.Array, Walkers], _):
        key, walkers = carry
        key, key_actions, key_starts = jax.random.split(key, 3)
        symbol, first_bar = walkers.state.symbol, walkers.state.bar
        embeddings = jnp.swapaxes(encode(symbol, first_bar), 0, 1)
        bars = first_bar + jnp.arange(block_length)[:, None]
        quotes = env.quote(symbol, bars, env_params)
        uniforms = jax.random.uniform(key_actions, bars.shape)
        state, (stored, watched) = jax.lax.scan(
            step, walkers.state, (embeddings[:-1], quotes, uniforms)
        )
        diary, finished = jax.vmap(keep_diary, (0, 1, 1, 1))(walkers.diary, *watched)
        final_value = value_of(state, embeddings[-1], quotes.next_close[-1])
        state = new_accounts(env, state, stored["terminated"][-1])
        state = new_episodes(key_starts, env, env_params, state, stored["truncated"][-1])
        return (key, Walkers(state, diary)), (symbol, first_bar, stored, final_value, finished)

    def value_of(state: TradingState, embedding: jax.Array, close: jax.Array) -> jax.Array:
        account = account_features(state, env_params, close)
        mask = jnp.ones((num_envs, NUM_ACTIONS), bool)  # which the value head ignores
        return networks.heads(params, embedding, account, mask)[1]

    (_, walkers), (symbol, first_bar, stored, final_value, finished) = jax.lax.scan(
        block, (key, walkers), length=num_blocks
    )
    state = walkers.state
    last_embedding = encode(state.symbol, state.bar)[:, 0]
    last_close = close_price(env_params.market, state.symbol, state.bar)
    return walkers, Rollout(
        symbol=symbol,
        first_bar=first_bar,
        final_value=final_value,
        last_value=value_of(state, last_embedding, last_close),
        finished=finished,
        **stored,
    )
