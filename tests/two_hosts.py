"""One of several processes that train together; tells a test what it has come to, as JSON.

    python two_hosts.py FOLDER

JAX_NUM_PROCESSES and the rest are set, or it trains alone, on two devices in either case. Its last
line is the JSON; its arrays are in FOLDER/arrays_<process>.npz, the run's files in FOLDER/run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

folder = Path(sys.argv[1]).resolve()
written: list[str] = []


def note_writes(event: str, arguments: tuple) -> None:
    """Python tells of every file and folder that is made, renamed or removed."""
    if event == "open":
        path, mode, flags = arguments
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        paths = [path] if writes else []
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        paths = [arguments[0]]
    else:
        return
    own = str(folder / "run")
    written.extend(f"{event} {p}" for p in map(str, paths) if p.startswith(own))


sys.addaudithook(note_writes)

import jax  # noqa: E402

from jaxtrader.hosts import agreed, anywhere, is_first, join_hosts, to_host, wait_for_all  # noqa: E402
from jaxtrader.runtime import use_compilation_cache  # noqa: E402

use_compilation_cache()
jax.config.update("jax_num_cpu_devices", 2)
together = "JAX_NUM_PROCESSES" in os.environ
if together:
    join_hosts()

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from learners import bits  # noqa: E402
from small_runs import CONFIG, QUIET, STEPS_PER_UPDATE, market  # noqa: E402

from jaxtrader import training  # noqa: E402
from jaxtrader.errors import ConfigError  # noqa: E402
from jaxtrader.outputs import OutputLayout  # noqa: E402
from jaxtrader.program import build_program  # noqa: E402
from jaxtrader.runs import restore_run, start_run  # noqa: E402
from jaxtrader.training import Interrupted, train  # noqa: E402

SEEDS = (1337, 5)
TOTAL = 4 * STEPS_PER_UPDATE


def arrays(tree) -> dict[str, np.ndarray]:
    """Leaves by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(bits(tree))
    }


def trained() -> tuple[dict, dict]:
    """Facts and arrays of a run that only the last process wants to stop, at once, and resumes."""
    facts: dict = {}
    try:
        build_program(CONFIG, market("BBB"))
    except ConfigError as error:
        facts["one_agent"] = str(error)
    program = build_program(CONFIG, market("BBB"), num_seeds=2)
    layout = OutputLayout(folder / "run") if together else None
    run = start_run(program, SEEDS, TOTAL, layout)
    if together:
        training.SECONDS_PER_CALL = 0.0
        facts["first_holds"] = [len(run.checkpoints), len(run.locks)]
        try:
            last = jax.process_index() == jax.process_count() - 1
            train(run, TOTAL, QUIET, should_stop=lambda: last)
        except Interrupted as message:
            facts["interrupted"] = str(message)
        run.close()
        wait_for_all("the first has saved, as it has where processes are started anew")
        run = restore_run(program, SEEDS, layout, to_train=True)
        facts["resumed_at"] = run.update
        facts["locks"] = len(run.locks)
    train(run, TOTAL, QUIET)
    run.close()
    facts["mesh"] = dict(program.placement.mesh.shape)
    facts["own_agents"] = len(run.state.update.addressable_shards)
    facts["tables"] = [run.updates_table().to_csv(), run.episodes_table().to_csv()]
    best = {"update": run.best_update, "sharpe": run.best_sharpe, "params": run.best_params}
    return facts, arrays({"state": to_host(run.state), "best": best})


def mixed_tree() -> tuple[dict, dict]:
    """Arrays of every kind as their owner sees them, and what they are as a whole."""
    mesh = jax.make_mesh((2, 2), ("rows", "columns"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6) / 7
    whole = {
        "rows": (numbers, ("rows",)),
        "columns": (numbers.astype(np.int8), (None, "columns")),
        "both": (numbers.astype(np.float16), ("rows", "columns")),
        "every_row": (np.arange(8) % 3 == 0, (("rows", "columns"),)),
        "everywhere": (numbers + 1, ()),
        "number": (np.int32(7), ()),
        "three_axes": (np.arange(16, dtype=np.uint32).reshape(4, 2, 2), ("columns", None, "rows")),
    }
    tree = {}
    for name, (value, axes) in whole.items():
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        tree[name] = jax.make_array_from_callback(
            np.shape(value), sharding, lambda index, value=value: np.asarray(value)[index]
        )
    seeds = jax.random.split(jax.random.key(3), 4)
    words = np.asarray(jax.random.key_data(seeds))
    spread = NamedSharding(mesh, PartitionSpec("rows"))
    data = jax.make_array_from_callback(words.shape, spread, lambda index: words[index])
    tree["keys"] = jax.jit(jax.random.wrap_key_data)(data)
    tree["own_key"] = jax.random.key(9)
    tree["own"] = jnp.arange(3.0)
    tree["numpy"] = np.arange(4)
    tree["nothing"] = None
    expected = {name: value for name, (value, _) in whole.items()}
    expected["keys"], expected["own_key"] = words, jax.random.key_data(jax.random.key(9))
    expected["own"], expected["numpy"] = np.arange(3.0, dtype=np.float32), np.arange(4)
    return tree, {name: np.asarray(value) for name, value in expected.items()}


def exchanged() -> dict:
    """What each process gets to hear of the others."""
    own = jax.process_index()
    tree, expected = mixed_tree()
    got = to_host(tree)
    as_numpy = arrays(got)
    return {
        "agreed": agreed(10 + own),
        "anywhere": [anywhere(own == 0), anywhere(own == 1), anywhere(False)],
        "first": is_first(),
        "spread": sorted(
            name
            for name, x in tree.items()
            if isinstance(x, jax.Array) and not x.is_fully_addressable
        ),
        "wrong": sorted(
            name
            for name in expected | as_numpy
            if as_numpy[name].dtype != expected[name].dtype
            or not np.array_equal(as_numpy[name], expected[name])
        ),
        "keys_are_keys": all(
            jnp.issubdtype(got[name].dtype, jax.dtypes.prng_key) for name in ("keys", "own_key")
        ),
        "on_the_host": all(
            isinstance(x, np.ndarray | np.generic)
            for name, x in got.items()
            if name not in ("keys", "own_key", "nothing")
        ),
    }


def main() -> None:
    facts, results = trained()
    facts["written"] = sorted(set(written))
    if together:
        facts["exchanged"] = exchanged()
    np.savez(folder / f"arrays_{jax.process_index() if together else 'alone'}.npz", **results)
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
