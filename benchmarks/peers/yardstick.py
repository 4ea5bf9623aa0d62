"""The yardstick of environment overhead: gymnax's CartPole, one of the cheapest environments."""

# ruff: noqa: TID253 (this room exists for gymnax)

from __future__ import annotations

from typing import Any

import gymnax
import jax
import jax.numpy as jnp

from benchmarks.peers.comparison import Contender


def cartpole(num_envs: int, num_steps: int) -> Contender:
    """CartPole-v1 under `vmap` inside a scan, with random actions, as gymnax's users step it."""
    env, params = gymnax.make("CartPole-v1")

    @jax.jit
    def start(key: jax.Array) -> Any:
        return jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)

    @jax.jit
    def walk(key: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
        def step(carry: Any, key: jax.Array) -> Any:
            _, state = carry
            key_action, key_step = jax.random.split(key)
            # As ours are drawn; `randint` draws two numbers an action.
            actions = jnp.int32(env.num_actions * jax.random.uniform(key_action, (num_envs,)))
            keys = jax.random.split(key_step, num_envs)
            observation, state, *_ = jax.vmap(env.step, (0, 0, 0, None))(
                keys, state, actions, params
            )
            return (observation, state), None

        key, key_walk = jax.random.split(key)
        carry, _ = jax.lax.scan(step, carry, jax.random.split(key_walk, num_steps))
        return key, carry

    carry = (jax.random.key(1), start(jax.random.key(0)))

    def advance() -> int:
        nonlocal carry
        carry = jax.block_until_ready(walk(*carry))
        return num_envs * num_steps

    return Contender(advance)
