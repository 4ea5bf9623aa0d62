"""Generalised advantage estimation."""

import jax
import jax.numpy as jnp


def gae(
    rewards: jax.Array,
    values: jax.Array,
    terminated: jax.Array,
    truncated: jax.Array,
    final_values: jax.Array,
    last_value: jax.Array,
    discount: jax.Array,
    trace_decay: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over auto-reset streams.

    A termination is worth 0 afterwards. A truncation bootstraps from the value of the observation
    *before* the auto-reset. Neither lets the trace leak into the next episode.

    Args:
      rewards, values: f32[T, N], of step t and of its observation.
      terminated, truncated: bool[T, N], as returned by step t.
      final_values: f32[T, N], value of the observation before the auto-reset; read at truncations.
      last_value: f32[N], value of the observation after the last step.
      discount, trace_decay: f32[], gamma and lambda.

    Returns:
      (advantages, returns), f32[T, N] each; returns = advantages + values.
    """
    done = terminated | truncated
    next_values = jnp.concatenate([values[1:], last_value[None]])
    next_values = jnp.where(truncated, final_values, next_values)
    next_values = jnp.where(terminated, 0.0, next_values)
    deltas = rewards + discount * next_values - values
    decay = jnp.where(done, 0.0, discount * trace_decay)

    def backward(advantage: jax.Array, step: tuple[jax.Array, jax.Array]):
        delta, decay = step
        advantage = delta + decay * advantage
        return advantage, advantage

    start = jnp.zeros_like(last_value)
    _, advantages = jax.lax.scan(backward, start, (deltas, decay), reverse=True)
    return advantages, advantages + values
