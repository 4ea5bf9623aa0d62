"""Reward normalisation by the running scale of the discounted return."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class ReturnScale:
    """Running moments of the discounted return over all environments and steps."""

    mean: jax.Array  # f32[]
    variance: jax.Array  # f32[]
    batches: jax.Array  # i32[] equal-sized batches seen
    returns: jax.Array  # f32[N] discounted return of the episode under way


def new_return_scale(num_envs: int) -> ReturnScale:
    """No data yet."""
    return ReturnScale(
        mean=jnp.float32(0.0),
        variance=jnp.float32(0.0),
        batches=jnp.int32(0),
        returns=jnp.zeros(num_envs, jnp.float32),
    )


def discounted_returns(
    start: jax.Array, rewards: jax.Array, done: jax.Array, discount: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """R_t = gamma R_{t-1} + r_t, begun anew after an episode's end.

    Args:
      start: f32[N] return of the episode under way.
      rewards, done: f32[T, N] and bool[T, N].

    Returns:
      (return after the last step f32[N], all returns f32[T, N]).
    """

    def forward(running: jax.Array, step: tuple[jax.Array, jax.Array]):
        reward, done = step
        running = discount * running + reward
        return jnp.where(done, 0.0, running), running

    return jax.lax.scan(forward, start, (rewards, done))


def update_return_scale(
    scale: ReturnScale, rewards: jax.Array, done: jax.Array, discount: jax.Array
) -> ReturnScale:
    """Merges one rollout (f32[T, N]) by the parallel variance formula (Chan et al. 1979)."""
    running, returns = discounted_returns(scale.returns, rewards, done, discount)
    batch_mean, batch_variance = jnp.mean(returns), jnp.var(returns)
    share = 1.0 / (scale.batches + 1.0)
    delta = batch_mean - scale.mean
    return ReturnScale(
        mean=scale.mean + share * delta,
        variance=(1.0 - share) * scale.variance
        + share * batch_variance
        + share * (1.0 - share) * delta**2,
        batches=scale.batches + 1,
        returns=running,
    )


def normalize_rewards(
    rewards: jax.Array, scale: ReturnScale, clip: float = 10.0, epsilon: float = 1e-8
) -> jax.Array:
    """Rewards over the standard deviation of the discounted return, clipped; never recentred."""
    return jnp.clip(rewards / jnp.sqrt(scale.variance + epsilon), -clip, clip)
