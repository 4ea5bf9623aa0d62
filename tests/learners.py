"""A learner small enough to compile in seconds, compiled once for all tests that need one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
from markets import params_for, random_walk

from agents.entropy import EntropySchedule, GuardParams
from agents.learner import Hyperparameters, Learner, TrainState
from agents.networks import ActorCritic, NetworkConfig
from agents.ppo import PPOParams, PPOShape
from envs.trading import TradingEnv

NETWORKS = ActorCritic(NetworkConfig(channels=8, dilations=(1, 2), hidden=8, account_hidden=8))
SHAPE = PPOShape(
    num_envs=6,
    num_blocks=4,
    block_length=4,
    num_epochs=2,
    blocks_per_minibatch=8,
    normalize_rewards=True,
)


def ppo_params(
    *,
    learning_rate: float = 3e-3,
    final_learning_rate: float = 1e-3,
    discount: float = 0.99,
    trace_decay: float = 0.95,
    clip_ratio: float = 0.2,
    value_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    target_kl: float = float("inf"),
) -> PPOParams:
    """Strongly typed scalars."""
    numbers = dict(locals())
    return PPOParams(**{name: jnp.float32(value) for name, value in numbers.items()})


def guard_params(
    *,
    threshold: float = 0.22,
    patience: int = 2,
    warm_up: int = 1,
    cool_down: int = 1,
    boost: float = 1.7,
    floor: float = 0.03,
    ceiling: float = 3.0,
    max_rescues: int = 2,
) -> GuardParams:
    """Strongly typed scalars."""
    return GuardParams(
        threshold=jnp.float32(threshold),
        patience=jnp.int32(patience),
        warm_up=jnp.int32(warm_up),
        cool_down=jnp.int32(cool_down),
        boost=jnp.float32(boost),
        floor=jnp.float32(floor),
        ceiling=jnp.float32(ceiling),
        max_rescues=jnp.int32(max_rescues),
    )


def hyperparameters(
    *,
    ppo: PPOParams | None = None,
    guard: GuardParams | None = None,
    entropy_coef: float = 0.01,
    final_entropy_coef: float = 0.01,
    hold: float = 0.5,
    total_updates: int = 10,
) -> Hyperparameters:
    """Hyperparameters of one agent."""
    return Hyperparameters(
        ppo=ppo_params() if ppo is None else ppo,
        entropy=EntropySchedule(
            initial=jnp.float32(entropy_coef),
            final=jnp.float32(final_entropy_coef),
            hold=jnp.float32(hold),
        ),
        guard=guard_params() if guard is None else guard,
        total_updates=jnp.int32(total_updates),
    )


def stack(trees):
    """Trees of equal structure, stacked leaf by leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(tree, index: int):
    """One member of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def bits(tree):
    """The tree in NumPy, keys as the integers they are made of, so that it can be compared."""

    def raw(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        # A copy: a view of a buffer on the CPU would keep it from being donated.
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(raw, tree)


def run(update: Callable, state: TrainState, env_params, hyper: Hyperparameters, updates: int):
    """The state and the metrics after each of several updates."""
    history = []
    for _ in range(updates):
        state, metrics = update(state, env_params, hyper)
        history.append((state, metrics))
    return history


# chex tells functions apart by where they are wrapped, hence one wrapper each.


def one_update(learner: Learner) -> Callable:
    """`update` of one agent, jitted; fails when it is traced a second time."""
    return jax.jit(chex.assert_max_traces(learner.update, n=1))


def three_updates(learner: Learner) -> Callable:
    """`update` of agents and hyperparameters stacked, likewise."""
    update = chex.assert_max_traces(learner.update, n=1)
    return jax.jit(jax.vmap(update, in_axes=(0, None, 0)))


@functools.cache
def tiny() -> SimpleNamespace:
    """One learner, and its `init` and `update` for one agent and for three, each jitted."""
    env_params = params_for(random_walk(), episode_length=12, receptive_field=4)
    learner = Learner(env=TradingEnv(env_params, window=4), networks=NETWORKS, shape=SHAPE)
    return SimpleNamespace(
        learner=learner,
        env_params=env_params,
        init=jax.jit(learner.init),
        init_three=jax.jit(jax.vmap(learner.init, in_axes=(0, None, 0))),
        update=one_update(learner),
        update_three=three_updates(learner),
    )


def start_three(seeds: tuple[int, int, int], hypers: list[Hyperparameters]):
    """(states, hyperparameters) of three agents, stacked."""
    setup, hyper = tiny(), stack(hypers)
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    return setup.init_three(keys, setup.env_params, hyper), hyper
