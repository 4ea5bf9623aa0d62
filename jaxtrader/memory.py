"""What training takes of a device's memory, by its shapes, and what to do when that is full."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from agents.ppo import ppo_loss, to_blocks
from agents.rollout import collect
from jaxtrader.config import TrainingConfig
from jaxtrader.errors import DeviceMemoryError
from jaxtrader.program import Program, hyperparameters


@dataclass(frozen=True)
class Footprint:
    """Bytes on the fullest device, by use; the compiler's own workspace comes on top."""

    market: int  # bars and features of the training split
    agents: int  # parameters, optimisers, counters
    environments: int  # accounts
    rollout: int  # experience of one update, twice: as collected and as dealt into blocks
    minibatch: int  # what the backward pass keeps of the forward pass, and its steps
    tables: int  # embeddings of frozen encoders

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def footprint(program: Program, num_seeds: int) -> Footprint:
    """What training so many seeds takes; nothing is computed or allocated."""
    learner, placement = program.learner, program.placement
    shape = learner.shape
    trading = jax.eval_shape(
        lambda tree: jax.tree.map(lambda x: x[0], tree), program.params["train"]
    )
    hyper = jax.eval_shape(lambda: hyperparameters(program.config, 1))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key, trading, hyper)

    def experience(key: Any, state: Any, trading: Any) -> Any:
        _, rollout = collect(
            key,
            learner.networks,
            state.params,
            learner.env,
            trading,
            state.walkers,
            shape.num_blocks,
            shape.block_length,
        )
        return rollout, to_blocks(rollout, rollout.reward, rollout.value, shape.env_shards)

    rollout, blocks = jax.eval_shape(experience, key, state, trading)

    def of(count: int) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), blocks)

    def activations(blocks: Any, passes: int) -> Any:
        def kept(params: Any, blocks: Any, trading: Any, hyper: Any) -> Any:
            def loss(params: Any) -> jax.Array:
                rest = (trading.market, blocks, hyper.ppo, jnp.float32(0.0), None, passes)
                return ppo_loss(params, learner.networks, *rest)[0]

            return jax.vjp(loss, params)[1]

        return jax.eval_shape(kept, state.params, blocks, trading, hyper)

    minibatch = of(shape.blocks_per_minibatch)
    held = [minibatch, activations(minibatch, shape.passes)]
    if shape.passes > 1:
        held.append(activations(of(shape.blocks_per_minibatch // shape.passes), 1))
    mesh = placement.mesh.shape
    symbols = -(-len(program.dataset.symbols) // mesh["symbols"])
    agents = symbols * -(-num_seeds // mesh["seeds"])
    at_once = agents if placement.vectorize else 1
    groups = mesh["environments"]
    environments = _bytes(state.walkers)
    table = jax.eval_shape(learner.embeddings, state.params, trading)
    return Footprint(
        market=symbols * _bytes(trading.market),
        agents=agents * (_bytes(state) - environments),
        environments=agents * environments // groups,
        rollout=at_once * (_bytes(rollout) + _bytes(blocks)) // groups,
        minibatch=at_once * _bytes(held) // groups,
        tables=agents * _bytes(table),
    )


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def device_limit() -> int | None:
    """Bytes that the first device can give to arrays; None where it does not say."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def advice(program: Program, num_seeds: int, limit: int | None) -> str:
    """Which of num_envs, rollout_steps and batch_size to lower, and to what.

    Args:
      limit: bytes that the device has for arrays. At most 60 % of what is taken now is aimed at.
    """
    parts = footprint(program, num_seeds)
    listed = ", ".join(
        f"{name} {size / 2**20:,.0f} MiB"
        for name, size in sorted(vars(parts).items(), key=lambda part: -part[1])
        if size >= 2**20
    )
    found = (
        f"the device is out of memory: training takes {parts.total / 2**20:,.0f} MiB there "
        f"({listed})" + ("" if limit is None else f", and it has {limit / 2**20:,.0f} MiB")
    )
    settings = lowered(program.config, parts, limit)
    if settings is None:
        return (
            f"{found}. What does not depend on num_envs, rollout_steps or batch_size is too much "
            "already: train fewer symbols or seeds at once, or spread them over more devices"
        )
    changes = " ".join(f"--ppo.{name.replace('_', '-')} {n}" for name, n in settings.items())
    less = ""
    shape = program.learner.shape
    at_once = shape.blocks_per_minibatch // shape.env_shards // shape.passes
    fewer = max((n for n in range(1, at_once) if at_once % n == 0), default=0)
    if parts.minibatch > parts.total / 4 and fewer:
        less = (
            f"; --ppo.microbatch-size {fewer * shape.block_length} alone lowers what the minibatch "
            "takes, and changes nothing else"
        )
    return f"{found}. Lower {', '.join(settings)}: try {changes}{less}"


def lowered(
    config: TrainingConfig, parts: Footprint, limit: int | None, spare: float = 0.8
) -> dict[str, int] | None:
    """Settings of `ppo` that would fit, by name; None where nothing else can be lowered.

    The part that takes most is halved until all take 60 % of what they did, and `spare` of the
    limit suffices.
    """
    ppo = config.ppo
    sizes = {"num_envs": ppo.num_envs, "batch_size": ppo.batch_size}
    sizes["rollout_steps"] = ppo.rollout_steps
    fixed = parts.market + parts.agents + parts.tables
    takes = {"environments": parts.environments, "rollout": parts.rollout}
    takes["minibatch"] = parts.minibatch
    goal = 0.6 * sum(takes.values())
    if limit is not None:  # whatever the shapes say, it was not enough
        goal = min(goal, spare * limit - fixed)
    while sum(takes.values()) > goal:
        largest = max(takes, key=takes.__getitem__)
        name = "batch_size" if largest == "minibatch" else "num_envs"
        if largest == "rollout" and sizes["num_envs"] <= config.ppo.env_shards:
            name = "rollout_steps"
        if sizes[name] % 2:
            return None
        sizes[name] //= 2
        grow = ("minibatch",) if name == "batch_size" else ("environments", "rollout")
        for part in grow if name != "rollout_steps" else ("rollout",):
            takes[part] //= 2
        # A minibatch cannot be larger than the rollout that it is a part of.
        while sizes["batch_size"] > sizes["num_envs"] * sizes["rollout_steps"]:
            sizes["batch_size"] //= 2
            takes["minibatch"] //= 2
        if not sizes["batch_size"]:
            return None
    return {name: size for name, size in sizes.items() if size != getattr(ppo, name)}


@contextmanager
def explained(program: Program, num_seeds: int) -> Iterator[None]:
    """Turns the compiler's word for a full device into what a person can do about it.

    Raises:
      DeviceMemoryError: the device's memory does not suffice.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DeviceMemoryError(advice(program, num_seeds, device_limit())) from error
