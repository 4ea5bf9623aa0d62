"""Several processes, usually on several hosts, that train as one; the first of them writes.

Every process runs the same program on the same inputs; its devices hold a part of the agents. What
one of them decides by its clock, or hears from a person, has to be agreed upon first: two processes
that call different programs wait for each other for ever.
"""

from __future__ import annotations

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

from jaxtrader.errors import ConfigError


def join_hosts() -> None:
    """Joins the processes that were started together, before JAX touches a device.

    JAX finds out by itself under SLURM, Open MPI, Kubernetes jobs and on cloud TPUs. Elsewhere the
    variables JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID tell.

    Raises:
      ConfigError: neither of the two, or the others cannot be reached.
    """
    number, count = (os.environ.get(f"JAX_{name}") for name in ("PROCESS_ID", "NUM_PROCESSES"))
    try:
        jax.distributed.initialize(
            process_id=None if number is None else int(number),
            num_processes=None if count is None else int(count),
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--distributed: the processes did not find each other ({error}). Start them with "
            "srun, mpirun or as a Kubernetes job, or set JAX_COORDINATOR_ADDRESS (host:port of "
            "the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def is_local(x: Any) -> bool:
    """Whether `x` is an array, not a traced one, that this process has the whole of."""
    concrete = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    return concrete and x.is_fully_addressable


def to_host(tree: Any) -> Any:
    """`tree` as NumPy arrays, whole on every process. All of them have to call this together.

    Random keys come as local arrays of keys.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    leaves, structure = jax.tree.flatten(tree)
    keys = [isinstance(x, jax.Array) and _is_key(x) for x in leaves]
    bare = [_key_data(x) if key else x for x, key in zip(leaves, keys, strict=True)]
    spread = [i for i, x in enumerate(bare) if isinstance(x, jax.Array) and not is_local(x)]
    for i, whole in zip(spread, _gathered([bare[i] for i in spread]), strict=True):
        bare[i] = whole
    whole = jax.device_get(bare)
    return structure.unflatten(
        jax.random.wrap_key_data(x) if key else x for x, key in zip(whole, keys, strict=True)
    )


_key_data = jax.jit(jax.random.key_data)


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _gathered(leaves: list[jax.Array]) -> list[np.ndarray]:
    """Arrays that are spread over processes, whole, in one exchange of bytes.

    A collective for each would be many in one program, which a CPU runs in no particular order:
    two processes would then exchange different ones.
    """
    if not leaves:  # nobody need take part
        return []
    own = jax.process_index()
    parts = [_parts(leaf) for leaf in leaves]
    sizes = [0] * jax.process_count()
    for leaf, owners in zip(leaves, parts, strict=True):
        for where, process in owners.items():
            sizes[process] += leaf.dtype.itemsize * math.prod(b - a for a, b in where)
    buffer = np.zeros(max(sizes), np.uint8)
    place = 0
    for leaf, owners in zip(leaves, parts, strict=True):
        shards = {_key(shard.index, leaf): shard.data for shard in leaf.addressable_shards}
        for where, process in owners.items():
            if process == own:
                data = np.ascontiguousarray(shards[where]).reshape(-1).view(np.uint8)
                buffer[place : place + data.size] = data
                place += data.size
    buffers = multihost_utils.process_allgather(buffer)
    places = [0] * len(buffers)
    wholes = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves]
    for leaf, owners, whole in zip(leaves, parts, wholes, strict=True):
        for where, process in owners.items():
            view = whole[(*(slice(*bounds) for bounds in where), ...)]  # also of a single number
            data = buffers[process][places[process] : places[process] + view.nbytes]
            view[...] = data.copy().view(leaf.dtype).reshape(view.shape)
            places[process] += view.nbytes
    return wholes


_Where = tuple[tuple[int, int], ...]  # bounds of a part, axis by axis


def _parts(leaf: jax.Array) -> dict[_Where, int]:
    """Which process speaks for each part of an array."""
    owners: dict[_Where, int] = {}
    devices = leaf.sharding.devices_indices_map(leaf.shape)
    for device in sorted(devices, key=lambda device: device.id):
        owners.setdefault(_key(devices[device], leaf), device.process_index)
    return owners


def _key(index: tuple[slice, ...], leaf: jax.Array) -> _Where:
    return tuple(part.indices(length)[:2] for part, length in zip(index, leaf.shape, strict=True))


def agreed(number: int) -> int:
    """The first process's `number`, on every process."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def anywhere(condition: bool) -> bool:
    """Whether `condition` holds on any process."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.bool_(condition)).any())


def wait_for_all(moment: str) -> None:
    """Returns when every process has come to this `moment`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)
