"""Where the agents are computed: symbols, seeds and environments laid over a mesh of devices.

There is one program for one device and for many. Arrays carry their sharding into it and the
compiler splits it along them; only the environments of one agent need to hear of each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agents.learner import TrainState
from agents.normalize import ReturnScale
from agents.rollout import Walkers
from jaxtrader.errors import ConfigError
from jaxtrader.hosts import is_local

AXES = ("symbols", "seeds", "environments")


def device_mesh(
    num_symbols: int,
    num_seeds: int,
    env_shards: int,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """The mesh of `AXES` that uses most of the devices, each for the same share of the work.

    Of several it is the one that spreads agents the most: agents never wait for each other.

    Args:
      env_shards: groups that the environments of an agent form (`ppo.env_shards`).
      devices: by default all there are. Every process that has some of them takes an equal part.

    Raises:
      ConfigError: there are more processes than the work can be shared out among.
    """
    hosts: dict[int, list[Any]] = {}
    for device in jax.devices() if devices is None else devices:
        hosts.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, hosts.values()))
    work = (num_symbols, num_seeds, env_shards)
    fitting = [
        shape
        for shape in itertools.product(*map(_divisors, work))
        if math.prod(shape) % len(hosts) == 0 and math.prod(shape) <= fewest * len(hosts)
    ]
    if not fitting:
        raise ConfigError(
            f"{num_symbols} symbols x {num_seeds} seeds x {env_shards} groups of environments "
            f"(ppo.env_shards) cannot be shared out evenly among {len(hosts)} processes: start "
            "fewer, or name more seeds"
        )
    shape = max(fitting, key=lambda s: (math.prod(s), s[0] * s[1], s[1]))
    share = math.prod(shape) // len(hosts)
    used = np.array([device for own in hosts.values() for device in own[:share]]).reshape(shape)
    return Mesh(used, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@dataclass(frozen=True)
class Placement:
    """How agents [S, K] are spread over devices, and how those that share one take turns."""

    mesh: Mesh
    vectorize: bool  # agents of one device run abreast with vmap, or one after the other

    def by_symbol(self, tree: Any) -> Any:
        """`tree` of leaves [S, ...] laid out over the devices."""
        return self._put(tree, self._sharding("symbols"))

    def by_agent(self, tree: Any) -> Any:
        """`tree` of leaves [S, K, ...] laid out over the devices."""
        return self._put(tree, self._sharding("symbols", "seeds"))

    def everywhere(self, tree: Any) -> Any:
        """`tree`, whole on every device."""
        return self._put(tree, self._sharding())

    def states(self, state: TrainState) -> TrainState:
        """Agents [S, K, ...] laid out over the devices, environments and all."""
        return self._put(state, self._state_shardings())

    def keep_states(self, state: TrainState) -> TrainState:
        """Tells the compiler, inside a program, that agents stay where they are."""
        if self.mesh.size == 1:
            return state
        return jax.lax.with_sharding_constraint(state, self._state_shardings())

    def _state_shardings(self) -> TrainState:
        agent, spread = self._sharding("symbols", "seeds"), self._sharding(*AXES)
        shardings: dict[str, Any] = dict.fromkeys(TrainState.__dataclass_fields__, agent)
        shardings["walkers"] = Walkers(state=spread, diary=spread)  # type: ignore[arg-type]
        shardings["return_scale"] = ReturnScale(agent, agent, agent, returns=spread)  # type: ignore[arg-type]
        return TrainState(**shardings)

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _put(self, tree: Any, shardings: Any) -> Any:
        """`shardings` may be those of whole branches of `tree`."""
        if self.mesh.size == 1:
            return tree
        bare = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)
        if jax.process_count() > 1:  # only what lies on the host can be sent beyond it
            bare = jax.tree.map(lambda x: np.asarray(x) if is_local(x) else x, bare)
        placed = jax.device_put(bare, shardings)
        return jax.tree.map(lambda x, like: _as_keys(x) if _is_key(like) else x, placed, tree)


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


_as_keys = jax.jit(jax.random.wrap_key_data)


def over_agents(function: Callable, placement: Placement) -> Callable:
    """Lifts `function(agent, params, *rest)` to agents [S, K, ...] and params [S, ...].

    Every device computes its own agents, by the program that one device alone would run. They run
    abreast with `vmap`, which is what an accelerator wants. A CPU has no lanes to spare: there they
    follow each other with `lax.map`, which is faster and makes a seed alone equal the same seed
    among others to the bit.
    """
    each = jax.vmap if placement.vectorize else lambda f: lambda xs: jax.lax.map(f, xs)

    def own(agents: Any, params: Any, *rest: Any) -> Any:
        def symbol(pair: tuple[Any, Any]) -> Any:
            agents, params = pair
            return each(lambda agent: function(agent, params, *rest))(agents)

        return each(symbol)((agents, params))

    if placement.mesh.size == 1:
        return own
    agent, symbol = PartitionSpec("symbols", "seeds"), PartitionSpec("symbols")

    def shared(agents: Any, params: Any, *rest: Any) -> Any:
        return jax.shard_map(
            own,
            mesh=placement.mesh,
            in_specs=(agent, symbol, *[PartitionSpec()] * len(rest)),
            out_specs=agent,
            axis_names={"symbols", "seeds"},  # environments are left to the compiler
            check_vma=False,
        )(agents, params, *rest)

    return shared
