"""Experience: many environments stepped by one policy, stored as indices and the account half.

Environments walk the market in blocks of `block_length` contiguous bars. Episodes are truncated at
block boundaries only, and a termination inside a block goes on from the same bar with a new account
(`TradingEnv.auto_reset`), so a block is always one contiguous stretch of one symbol: it is stored
as the index of its first bar, and the learner encodes it in one pass.
"""

import jax
import jax.numpy as jnp
from flax import struct

from agents.networks import ActorCritic, Params, entropy, log_prob, sample
from envs.episode import EpisodeStatistics
from envs.trading import TradingEnv, TradingParams, TradingState


@struct.dataclass
class Walkers:
    """N environments between steps."""

    state: TradingState  # [N, ...]
    account: jax.Array  # f32[N, A] account half of the observation
    mask: jax.Array  # bool[N, 7] legal actions
    entropy_sum: jax.Array  # f32[N] sum of the policy's entropies over the episode under way


@struct.dataclass
class FinishedEpisodes:
    """The last episode that each environment finished in each block; zeros where none did."""

    statistics: EpisodeStatistics  # [..., N]
    entropy_sum: jax.Array  # f32[..., N]
    count: jax.Array  # i32[..., N] episodes finished in the block


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
    finished: FinishedEpisodes  # [K, N]


def start_walkers(
    key: jax.Array, env: TradingEnv, params: TradingParams, num_envs: int, block_length: int
) -> Walkers:
    """N flat accounts at random bars.

    First episodes have different lengths, multiples of `block_length`: otherwise all environments
    would end their episodes in the same step for ever.
    """

    def start(key: jax.Array, index: jax.Array) -> TradingState:
        symbol, bar, stop_bar = params.starts.sample(key, params.max_steps_in_episode)
        blocks = params.max_steps_in_episode // block_length
        return env.initial_state(symbol, bar, stop_bar - block_length * (index % blocks))

    state = jax.vmap(start)(jax.random.split(key, num_envs), jnp.arange(num_envs))
    return Walkers(
        state=state,
        account=jax.vmap(env.account_features, (0, None))(state, params),
        mask=jax.vmap(env.action_mask, (0, None))(state, params),
        entropy_sum=jnp.zeros(num_envs, jnp.float32),
    )


def _no_episodes(like: EpisodeStatistics) -> FinishedEpisodes:
    return FinishedEpisodes(
        statistics=jax.tree.map(jnp.zeros_like, like),
        entropy_sum=jnp.zeros(like.steps.shape, jnp.float32),
        count=jnp.zeros_like(like.steps),
    )


def _select(done: jax.Array, new, old):
    """`new` where `done` (bool[N]), leaf by leaf over leading axis N."""
    return jax.tree.map(
        lambda a, b: jnp.where(done.reshape(done.shape + (1,) * (b.ndim - 1)), a, b), new, old
    )


def collect(
    key: jax.Array,
    networks: ActorCritic,
    params: Params,
    env: TradingEnv,
    env_params: TradingParams,
    walkers: Walkers,
    num_blocks: int,
    block_length: int,
) -> tuple[Walkers, Rollout]:
    """Steps all environments `num_blocks * block_length` times under the stochastic policy.

    Args:
      walkers: N environments at block boundaries.
    """
    num_envs = walkers.account.shape[0]
    # Of a block's decisions, and of the bar after the last, whose value may be needed.
    encode = networks.block_encoder(
        params, env_params.market, (num_blocks + 1) * num_envs, block_length + 1
    )

    # Scans carry their key. Were they to walk over an array of keys, `vmap` would transpose it,
    # and jax.debug_key_reuse takes a transposed key for a used one.
    def step(carry: tuple[jax.Array, Walkers, FinishedEpisodes, jax.Array], embedding: jax.Array):
        key, walkers, finished, _ = carry
        key, key_action, key_reset = jax.random.split(key, 3)
        logits, value = networks.heads(params, embedding, walkers.account, walkers.mask)
        action = sample(key_action, logits)
        nats = entropy(logits)
        state, outcome = jax.vmap(env.transition, (0, 0, None))(walkers.state, action, env_params)
        final_account = jax.vmap(env.account_features, (0, None))(state, env_params)

        done = outcome.terminated | outcome.truncated
        entropy_sum = walkers.entropy_sum + nats
        episode = FinishedEpisodes(state.statistics, entropy_sum, finished.count + 1)
        finished = _select(done, episode, finished)
        state = jax.vmap(env.auto_reset, (0, 0, 0, 0, None))(
            jax.random.split(key_reset, num_envs),
            state,
            outcome.terminated,
            outcome.truncated,
            env_params,
        )
        after = Walkers(
            state=state,
            account=jax.vmap(env.account_features, (0, None))(state, env_params),
            mask=jax.vmap(env.action_mask, (0, None))(state, env_params),
            entropy_sum=jnp.where(done, 0.0, entropy_sum),
        )
        stored = {
            "account": walkers.account,
            "mask": walkers.mask,
            "action": action,
            "executed": outcome.executed,
            "log_prob": log_prob(logits, action),
            "entropy": nats,
            "value": value,
            "reward": outcome.reward,
            "terminated": outcome.terminated,
            "truncated": outcome.truncated,
        }
        return (key, after, finished, final_account), stored

    def block(carry: tuple[jax.Array, Walkers], _):
        key, walkers = carry
        key, key_steps = jax.random.split(key)
        symbol, first_bar = walkers.state.symbol, walkers.state.bar
        embeddings = jnp.swapaxes(encode(symbol, first_bar), 0, 1)
        none_finished = _no_episodes(walkers.state.statistics)
        steps = (key_steps, walkers, none_finished, walkers.account)
        (_, after, finished, final_account), stored = jax.lax.scan(step, steps, embeddings[:-1])
        # The value head ignores the mask.
        _, final_value = networks.heads(params, embeddings[-1], final_account, walkers.mask)
        return (key, after), (symbol, first_bar, stored, final_value, finished)

    (_, walkers), (symbol, first_bar, stored, final_value, finished) = jax.lax.scan(
        block, (key, walkers), length=num_blocks
    )
    last_embedding = encode(walkers.state.symbol, walkers.state.bar)[:, 0]
    _, last_value = networks.heads(params, last_embedding, walkers.account, walkers.mask)
    return walkers, Rollout(
        symbol=symbol,
        first_bar=first_bar,
        final_value=final_value,
        last_value=last_value,
        finished=finished,
        **stored,
    )
