"""What is compared with what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from benchmarks.peers.comparison import Contender, Row
from benchmarks.throughput import start_walk, walk
from envs.trading import TradingParams
from jaxtrader.config import TrainingConfig, replace_settings
from jaxtrader.data import Dataset
from jaxtrader.placement import over_agents
from jaxtrader.program import Program, agent_keys, build_program, hyperparameters, ppo_shape

UPDATES_PER_CALL = 5
_TOTAL_UPDATES = 100_000  # so many that schedules stand still

_SB3 = ("torch", "gymnasium", "stable_baselines3")
_POLICY = (
    "SB3's own policy: no legality mask, hold bias or logit cap, and an action layer of gain 0.01, "
    "not 0.1; no entropy guard, no episode statistics"
)
_ONE_STEP = "one compiled program steps all environments, which SB3 has from us"
_FROZEN = "encoder frozen on both sides; SB3 still runs it at every step and in every minibatch"
_EMBEDDED = "encoder frozen on both sides; SB3 is given embeddings made beforehand and has none"
_WINDOWS = "windows stored and encoded one by one, rows shuffled; no entropy guard, no statistics"


def ours(
    config: TrainingConfig,
    market: Dataset,
    *,
    frozen: bool = False,
    seeds: int = 1,
    devices: int = 1,
) -> Contender:
    """Training by the program that `jaxtrader.train` runs.

    Args:
      devices: for one agent's environments, of which as many are used as there can be equal groups.
    """
    groups = math.gcd(devices, config.ppo.num_envs, ppo_shape(config).blocks_per_minibatch)
    config = replace_settings(config, "ppo", env_shards=groups)
    if frozen:
        config = replace_settings(config, "network", frozen_encoder=True)
    program = build_program(config, market, num_seeds=seeds)
    params = program.params["train"]
    hyper = hyperparameters(config, _TOTAL_UPDATES)
    agents = program.initialize(agent_keys(market.symbols, tuple(range(seeds))), params, hyper)
    tables, n = program.embeddings(agents.params, params), jnp.int32(UPDATES_PER_CALL)

    def advance() -> int:
        nonlocal agents
        agents, _ = jax.block_until_ready(program.run_updates(agents, params, hyper, n, tables))
        return UPDATES_PER_CALL * program.learner.shape.steps_per_update * seeds

    return Contender(advance)


def windowed(
    config: TrainingConfig,
    market: Dataset,
    *,
    encoder: Literal["DenseEncoder", "ConvolutionEncoder", "PairingEncoder"],
    seeds: int = 1,
) -> Contender:
    """`benchmarks.peers.windowed` on the same market, seeds laid over devices as ours are."""
    from benchmarks.peers import windowed as peer_module
    from benchmarks.peers.windowed import WindowActorCritic, WindowedPPO

    if encoder == "PairingEncoder":
        peer_module.check_that_neighbours_pair(config.network)
    program = build_program(config, market, num_seeds=seeds)
    networks = WindowActorCritic(config.network, getattr(peer_module, encoder))
    peer, placement = WindowedPPO(program.learner.env, networks, config.ppo), program.placement
    params = program.params["train"]
    hyper = placement.everywhere(hyperparameters(config, _TOTAL_UPDATES))
    keys = placement.by_agent(agent_keys(market.symbols, tuple(range(seeds))))
    state = jax.jit(over_agents(peer.init, placement))(keys, params, hyper)
    update = jax.jit(over_agents(peer.update, placement), donate_argnums=0)

    def advance() -> int:
        nonlocal state
        state = jax.block_until_ready(update(state, params, hyper))
        return config.ppo.num_envs * config.ppo.rollout_steps * seeds

    return Contender(advance)


def our_environments(config: TrainingConfig, market: Dataset, *, num_envs: int) -> Contender:
    """Our environments alone, under random actions."""
    steps = _steps_per_call(num_envs)
    config = replace_settings(
        config, "ppo", num_envs=num_envs, rollout_steps=steps, batch_size=steps
    )
    program = build_program(config, market)
    learner, params = program.learner, _first_symbol(program)
    state = jax.jit(learner.init)(jax.random.key(0), params, hyperparameters(config, 1))
    step = jax.jit(partial(walk, learner), donate_argnums=1)
    accounts, key = start_walk(state.walkers.state), jax.random.key(1)

    def advance() -> int:
        nonlocal accounts, key
        key, key_walk = jax.random.split(key)
        accounts = jax.block_until_ready(step(params, accounts, key_walk))
        return learner.shape.steps_per_update

    return Contender(advance)


def cartpole(config: TrainingConfig, market: Dataset, *, num_envs: int) -> Contender:
    """gymnax's CartPole, as many environments and steps."""
    from benchmarks.peers import yardstick

    return yardstick.cartpole(num_envs, _steps_per_call(num_envs))


def stable_baselines(
    config: TrainingConfig,
    market: Dataset,
    *,
    environments: Literal["DummyVecEnv", "SubprocVecEnv", "VectorAdapter"],
    encoder: Literal["learnt", "frozen", "embedded"] = "learnt",
) -> Contender:
    """SB3's PPO on our adapter."""
    from benchmarks.peers import stable_baselines as sb3

    network = config.network
    if encoder == "embedded":
        market = sb3.embedded_market(config, market)
        network = replace(network, dilations=())
    envs = sb3.adapter_environments(getattr(sb3, environments), market, config)
    model = sb3.learner(envs, config, len(market.feature_names), network=network)
    if encoder == "frozen":
        model.policy.features_extractor.encoder.requires_grad_(False)
    return sb3.contender(model)


def gym_trading(config: TrainingConfig, market: Dataset) -> Contender:
    """SB3's PPO on gym-trading-env."""
    from benchmarks.peers import gym_trading as gte
    from benchmarks.peers import stable_baselines as sb3

    envs = gte.environments(market, config)
    model = sb3.learner(envs, config, len(market.feature_names), extractor=gte.ColumnsExtractor)
    return sb3.contender(model)


def rows(cartpole_envs: Sequence[int], cores: int = 2) -> list[Row]:
    """All rows; CartPole's once for each number of environments.

    Args:
      cores: each is a device of its own, for a seed or a group of environments.
    """

    def sb3(
        name: str,
        environments: Literal["DummyVecEnv", "SubprocVecEnv", "VectorAdapter"],
        bar: float | None,
        *differs: str,
        encoder: Literal["learnt", "frozen", "embedded"] = "learnt",
    ) -> Row:
        return Row(
            name=name,
            ours=partial(ours, frozen=encoder != "learnt"),
            peer=partial(stable_baselines, environments=environments, encoder=encoder),
            bar=bar,
            differs=(_POLICY, *differs),
            packages=_SB3,
        )

    return [
        sb3("sb3-dummy", "DummyVecEnv", 20.0),
        sb3("sb3-subproc", "SubprocVecEnv", 20.0),
        sb3("sb3-vector", "VectorAdapter", None, _ONE_STEP),
        Row(
            name="gym-trading-env",
            ours=ours,
            peer=gym_trading,
            bar=20.0,
            differs=(
                _POLICY,
                "the account's half of the observation has 2 numbers, not 12; fills at the close; "
                "no limits and no forced exits",
            ),
            packages=(*_SB3, "gym_trading_env"),
        ),
        sb3("sb3-dummy-frozen", "DummyVecEnv", 50.0, _FROZEN, encoder="frozen"),
        sb3("sb3-dummy-embedded", "DummyVecEnv", 50.0, _EMBEDDED, encoder="embedded"),
        sb3(
            "sb3-vector-embedded",
            "VectorAdapter",
            None,
            _ONE_STEP,
            _EMBEDDED,
            encoder="embedded",
        ),
        Row(
            name="windowed",
            ours=ours,
            peer=partial(windowed, encoder="DenseEncoder"),
            bar=10.0,
            differs=(_WINDOWS, "flax's dense layers on pairs of rows for an encoder"),
        ),
        Row(
            name="windowed-shards",
            ours=partial(ours, devices=cores),
            peer=partial(windowed, encoder="DenseEncoder"),
            bar=10.0,
            differs=(
                _WINDOWS,
                f"our environments in groups (ppo.env_shards) on up to {cores} devices, one a core",
            ),
        ),
        Row(
            name="windowed-seeds",
            ours=partial(ours, seeds=cores),
            peer=partial(windowed, encoder="DenseEncoder", seeds=cores),
            bar=10.0,
            differs=(_WINDOWS, f"{cores} seeds at once on both sides, laid over the devices alike"),
        ),
        Row(
            name="windowed-conv",
            ours=ours,
            peer=partial(windowed, encoder="ConvolutionEncoder"),
            bar=10.0,
            differs=(_WINDOWS, "flax's dilated nn.Conv for an encoder"),
        ),
        Row(
            name="windowed-pairing",
            ours=ours,
            peer=partial(windowed, encoder="PairingEncoder"),
            bar=None,
            differs=(
                _WINDOWS,
                "of a window only what its last embedding needs is computed, as we have it done in "
                "torch; this needs windows that are powers of two",
            ),
        ),
        *(
            Row(
                name=f"cartpole-{num_envs}",
                ours=partial(our_environments, num_envs=num_envs),
                peer=partial(cartpole, num_envs=num_envs),
                bar=1.0,
                differs=("no learning on either side, random actions; another task",),
                packages=("gymnax",),
            )
            for num_envs in cartpole_envs
        ),
    ]


def _steps_per_call(num_envs: int) -> int:
    """Of each environment, a power of two: enough for a call to be worth making, and not long."""
    return min(max(2**22 >> (num_envs - 1).bit_length(), 256), 4096)


def _first_symbol(program: Program) -> TradingParams:
    return jax.tree.map(lambda x: x[0], program.params["train"])
