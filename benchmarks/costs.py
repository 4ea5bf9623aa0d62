"""What a step takes, counted from programs and shapes, and what the machine at hand could give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from agents.rollout import collect
from benchmarks.measure import seconds_per_call
from jaxtrader.memory import footprint
from jaxtrader.program import Program, hyperparameters

COLUMNS: tuple[str, ...] = ("environment", "rollout", "training")
"""Environment only; with the policy; with learning."""


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches at best, all cores or one accelerator, measured."""

    flops_per_second: float  # products of large square matrices of the network's precision
    bytes_per_second: float  # read and written by a copy that fits no cache


@dataclass(frozen=True)
class Cost:
    """What one environment step takes."""

    flops: float  # multiplications and additions in matrix products
    bytes: float  # read and written, if nothing but network parameters stays in a cache

    def least_seconds(self, ceilings: Ceilings) -> float:
        """That the scarcer resource is busy with a step at the least."""
        return max(self.flops / ceilings.flops_per_second, self.bytes / ceilings.bytes_per_second)

    def limit(self, ceilings: Ceilings) -> str:
        """Which resource is the scarcer."""
        compute = self.flops / ceilings.flops_per_second
        return "compute" if compute > self.bytes / ceilings.bytes_per_second else "memory"


def measured_ceilings(dtype: str, repeats: int = 5) -> Ceilings:
    """Of the first device, and so, on a CPU, of all its cores."""
    cpu = jax.default_backend() == "cpu"
    flops = max(
        _product_flops_per_second(size, dtype, repeats)
        for size in ((1024, 2048) if cpu else (4096, 8192))
    )
    return Ceilings(flops, _copied_bytes_per_second(2**27 if cpu else 2**31, repeats))


def _product_flops_per_second(size: int, dtype: str, repeats: int) -> float:
    products = 8
    matrix = jnp.full((size, size), 1.0 / size, dtype)

    @partial(jax.jit, donate_argnums=0)
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, products, lambda _, x: matrix @ x, x)

    _, seconds, _ = seconds_per_call(multiply, jnp.ones_like(matrix), repeats)
    return products * 2 * size**3 / seconds


def _copied_bytes_per_second(size: int, repeats: int) -> float:
    @partial(jax.jit, donate_argnums=0)
    def add(x: jax.Array) -> jax.Array:
        return x + 1.0

    _, seconds, _ = seconds_per_call(add, jnp.zeros(size // 4), repeats)
    return 2 * size / seconds


def costs(program: Program) -> dict[str, Cost]:
    """By column, of one step of one agent; nothing is computed.

    Bytes count what has to move: accounts and prices once a step; experience as it is written, read
    and dealt into blocks; and for each minibatch what its backward pass keeps, written and read.

    Args:
      program: of one symbol and seed on one device.
    """
    learner, parts = program.learner, footprint(program, num_seeds=1)
    shape = learner.shape
    trading = jax.eval_shape(
        lambda tree: jax.tree.map(lambda x: x[0], tree), program.params["train"]
    )
    hyper = jax.eval_shape(lambda: hyperparameters(program.config, 1))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key, trading, hyper)
    table = jax.eval_shape(learner.embeddings, state.params, trading)
    bar = jax.ShapeDtypeStruct((), jnp.int32)

    def rollout(state: Any, trading: Any, table: Any) -> Any:
        return collect(
            state.key, learner.networks, state.params, learner.env, trading, state.walkers,
            shape.num_blocks, shape.block_length, table,
        )  # fmt: skip

    accounts = num_bytes(state.walkers.state) / shape.num_envs
    stepping = 2 * accounts + num_bytes(jax.eval_shape(learner.env.quote, bar, bar, trading))
    steps = shape.steps_per_update
    experience, minibatch = parts.rollout / 2 / steps, parts.minibatch / steps
    epochs = shape.num_epochs * shape.minibatches
    return {
        "environment": Cost(0.0, stepping),
        "rollout": Cost(
            matmul_flops(rollout, state, trading, table) / steps, stepping + experience
        ),
        "training": Cost(
            matmul_flops(learner.update, state, trading, hyper, table) / steps,
            stepping + 3 * experience + 2 * epochs * minibatch,
        ),
    }


def num_bytes(tree: Any) -> int:
    """Of all arrays of `tree`, or of their shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def matmul_flops(function: Callable, *args: Any) -> int:
    """Multiplications and additions in all matrix products of `function(*args)`.

    Args:
      args: arrays, or `jax.ShapeDtypeStruct`s for them.
    """
    traced = jax.make_jaxpr(function)(*args).jaxpr
    # As the compiler would, without what nobody asks for: gradients of observations, for instance.
    needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return _flops(needed)


def _flops(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        inner = [_flops(part) for part in _parts(eqn)]
        match eqn.primitive.name:
            case "dot_general":
                (contracted, _), _ = eqn.params["dimension_numbers"]
                operand, product = eqn.invars[0].aval, eqn.outvars[0].aval
                depth = math.prod(operand.shape[axis] for axis in contracted)
                total += 2 * depth * math.prod(product.shape)
            case "scan":
                total += eqn.params["length"] * sum(inner)
            case "cond":
                total += max(inner)
            case "while" if sum(inner):
                raise ValueError("matrix products in a loop of unknown length cannot be counted")
            case "conv_general_dilated":
                raise ValueError("convolutions are not counted")
            case _:
                total += sum(inner)
    return total


def _parts(eqn: Any) -> Iterator[Any]:
    """The programs inside an equation."""
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part
