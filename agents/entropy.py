"""Entropy: its coefficient's schedule, and the guard that rescues or halts a collapsing seed."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)  # on the device or on the host


def histogram_entropy(counts: ArrayT) -> ArrayT:
    """Entropy in nats of the empirical distribution `counts` [..., K]; 0 when there are none.

    Of a NumPy array by NumPy: a table would else have every step of this compiled for its length.
    """
    xp = counts.__array_namespace__()
    p = counts / xp.maximum(xp.sum(counts, axis=-1, keepdims=True), 1)
    return -xp.sum(xp.where(p > 0, p * xp.log(xp.where(p > 0, p, 1.0)), 0.0), axis=-1)


@struct.dataclass
class EntropySchedule:
    """Hold, then linear; all fields f32[]."""

    initial: jax.Array  # coefficient while held
    final: jax.Array  # coefficient at the end of training
    hold: jax.Array  # share of training for which it is held

    def __call__(self, progress: jax.Array) -> jax.Array:
        """Coefficient at `progress` in [0, 1], f32[]."""
        fraction = (progress - self.hold) / jnp.maximum(1.0 - self.hold, 1e-6)
        return self.initial + jnp.clip(fraction, 0.0, 1.0) * (self.final - self.initial)


@struct.dataclass
class GuardParams:
    """When the guard steps in; counts are in updates, converted from steps on the host."""

    threshold: jax.Array  # f32[] nats below which a check fails
    patience: jax.Array  # i32[] failing checks in a row that trigger a rescue
    warm_up: jax.Array  # i32[] updates before the first check
    cool_down: jax.Array  # i32[] updates after a rescue without checks
    boost: jax.Array  # f32[] factor on the entropy coefficient per rescue
    floor: jax.Array  # f32[] least coefficient after a rescue
    ceiling: jax.Array  # f32[] largest coefficient, in multiples of the base
    max_rescues: jax.Array  # i32[] rescues in a row that may fail before the seed is halted


@struct.dataclass
class GuardState:
    """One seed's guard."""

    failures: jax.Array  # i32[] failing checks in a row
    rescues: jax.Array  # i32[] rescues so far
    failed_rescues: jax.Array  # i32[] rescues since a check last passed
    quiet_until: jax.Array  # i32[] first update that is checked again
    multiplier: jax.Array  # f32[] boost now applied to the coefficient
    triggered: jax.Array  # bool[] whether the last check rescued
    exhausted: jax.Array  # bool[] whether the rescues have failed: the seed must halt


def new_guard() -> GuardState:
    """A guard that has seen nothing."""
    return GuardState(
        failures=jnp.int32(0),
        rescues=jnp.int32(0),
        failed_rescues=jnp.int32(0),
        quiet_until=jnp.int32(0),
        multiplier=jnp.float32(1.0),
        triggered=jnp.bool_(False),
        exhausted=jnp.bool_(False),
    )


def entropy_coefficient(
    scheduled: jax.Array, guard: GuardState, params: GuardParams, base: jax.Array
):
    """Scheduled coefficient with the guard's boost: floored, and capped by `ceiling` x `base`.

    A boost never lowers the coefficient, even where the schedule is above the cap.
    """
    boosted = jnp.maximum(scheduled * guard.multiplier, params.floor)
    boosted = jnp.minimum(boosted, jnp.maximum(params.ceiling * base, scheduled))
    return jnp.where(guard.rescues > 0, boosted, scheduled)


def check_entropy(
    guard: GuardState, action_entropy: jax.Array, update: jax.Array, params: GuardParams
) -> GuardState:
    """One check, after update number `update` (i32[], counted from 1).

    Args:
      action_entropy: f32[] nats, of the histogram of the rollout's executed actions.
    """
    watching = (update > params.warm_up) & (update >= guard.quiet_until)
    failing = watching & (action_entropy < params.threshold)
    failures = jnp.where(watching, jnp.where(failing, guard.failures + 1, 0), guard.failures)
    alarm = failing & (failures >= params.patience)
    exhausted = alarm & (guard.failed_rescues >= params.max_rescues)
    rescue = alarm & ~exhausted
    recovered = watching & ~failing
    return GuardState(
        failures=jnp.where(rescue, 0, failures),
        rescues=guard.rescues + rescue,
        failed_rescues=jnp.where(recovered, 0, guard.failed_rescues + rescue),
        quiet_until=jnp.where(rescue, update + 1 + params.cool_down, guard.quiet_until),
        multiplier=jnp.where(rescue, guard.multiplier * params.boost, guard.multiplier),
        triggered=rescue,
        exhausted=guard.exhausted | exhausted,
    )
