"""What four devices come to, and what one does; tells a test, as JSON in its last line.

    python four_devices.py FOLDER

A process of its own, because the number of devices is settled when JAX is first used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.sched_getaffinity = lambda _: set(range(4))  # as on a machine of four cores

from jaxtrader.runtime import use_compilation_cache, use_cpu_cores  # noqa: E402

use_compilation_cache()
use_cpu_cores(4)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from learners import bits  # noqa: E402
from small_runs import (  # noqa: E402
    CONFIG,
    QUIET,
    STEPS_PER_UPDATE,
    after_calls,
    market,
)

from jaxtrader import program as programs  # noqa: E402
from jaxtrader import training  # noqa: E402
from jaxtrader.config import TrainingConfig, replace_settings  # noqa: E402
from jaxtrader.evaluation.evaluate import full_split_bars  # noqa: E402
from jaxtrader.hosts import to_host  # noqa: E402
from jaxtrader.outputs import OutputLayout  # noqa: E402
from jaxtrader.program import (  # noqa: E402
    Program,
    agent_keys,
    build_program,
    hyperparameters,
)
from jaxtrader.runs import TrainingRun, restore_run, start_run  # noqa: E402
from jaxtrader.training import Interrupted, train  # noqa: E402

SEEDS = (1337, 5)
UPDATES = 5
TOTAL = UPDATES * STEPS_PER_UPDATE
COMPILED: Counter[str] = Counter()  # programs, by the names of their functions
COLLECTIVE = re.compile(r"= (.*?) (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(")


def note_compiled(event: str, _seconds: float, fun_name: str = "", **_) -> None:
    """JAX tells of everything that is compiled, or read from the cache of compiled programs."""
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED[fun_name] += 1


jax.monitoring.register_event_duration_secs_listener(note_compiled)


def compiled() -> dict[str, int]:
    return {name: COMPILED[f"jit({name})"] for name in ("_initialize", "_run_updates", "_play")}


def differing(one, other) -> list[str]:
    """Paths of the leaves that are not the same to the bit."""
    one, other = bits(one), bits(other)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
        )
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes()
    ]


def differing_runs(run: TrainingRun, other: TrainingRun) -> list[str]:
    """What two runs do not have in common: states, records, best parameters."""
    return [
        *differing(run.state, other.state),
        *differing(run.best_params, other.best_params),
        *(
            name
            for name in ("update", "best_update", "best_sharpe")
            if not np.array_equal(getattr(run, name), getattr(other, name))
        ),
        *(
            name
            for name in ("updates_table", "episodes_table")
            if not getattr(run, name)().equals(getattr(other, name)())
        ),
    ]


def collectives(program: Program, state, tables=None) -> list[list[str]]:
    """Every array that is exchanged in the compiled training: how, and in which operation."""
    hyper, n = program.placement.everywhere((hyperparameters(program.config, 1), jnp.int32(1)))
    lowered = programs._run_updates.lower(
        program.learner, program.placement, state, tables, program.params["train"], hyper, n
    )
    found = []
    for line in lowered.compile().as_text().splitlines():
        if made := COLLECTIVE.search(line):
            origin = re.search(r'op_name="([^"]*)"', line)
            arrays = re.findall(r"\w+\[[\d,]*\]", made[1])
            found += [[made[2], origin[1] if origin else ""]] * len(arrays)
    return found


def mesh_of(program: Program) -> dict[str, int]:
    return dict(program.placement.mesh.shape)


def devices_of(tree) -> list[int]:
    """On how many devices each leaf lies in parts of its own."""
    parts = [
        len({str(shard.index) for shard in x.addressable_shards}) for x in jax.tree.leaves(tree)
    ]
    return sorted(set(parts))


def advanced(program: Program, state, updates: int, tables=None):
    """State and metrics after a call of several updates; `state` is donated."""
    hyper = hyperparameters(program.config, 4)
    return program.run_updates(state, program.params["train"], hyper, jnp.int32(updates), tables)


def started(program: Program, seeds: tuple[int, ...]):
    keys = agent_keys(program.dataset.symbols, seeds)
    return program.initialize(keys, program.params["train"], hyperparameters(program.config, 4))


def copied(tree):
    """On the host, where nothing is donated."""
    return jax.tree.map(jnp.copy, tree)


# ------------------------------------------------------------------------------ what is compared


def agents(folder: Path) -> dict:
    """Two symbols with two seeds each, an agent on every device."""
    spread = build_program(CONFIG, market(), num_seeds=2)
    alone = build_program(CONFIG, market(), num_seeds=2, devices=jax.devices()[:1])

    def straight(program: Program) -> TrainingRun:
        run = start_run(program, SEEDS, TOTAL, None)
        train(run, TOTAL, QUIET)
        return run

    on_four, on_one = straight(spread), straight(alone)
    once = compiled()

    def moved(before: Program, after: Program, name: str) -> TrainingRun:
        """Interrupted after three updates of one and ended by the other."""
        layout = OutputLayout(folder / name)
        run = start_run(before, SEEDS, TOTAL, layout)
        try:
            train(run, TOTAL, QUIET, should_stop=after_calls(3))
        except Interrupted:
            run.close()
        resumed = restore_run(after, SEEDS, layout, to_train=True)
        assert resumed.update == 3, resumed.update
        train(resumed, TOTAL, QUIET)
        resumed.close()
        return resumed

    training.SECONDS_PER_CALL = 0.0  # one update a call, so that there are calls to stop after
    four_to_one, one_to_four = moved(spread, alone, "shrunk"), moved(alone, spread, "grown")
    split = spread.params["validation"]
    bars = full_split_bars(spread, "validation")
    steps = int((bars[1] - bars[0]).max())
    played = [
        program.play(on_one.state.params, program.params["validation"], *bars, steps)
        for program in (spread, alone)
    ]
    return {
        "meshes": [mesh_of(spread), mesh_of(alone)],
        "parts": {
            "state": devices_of(on_four.state),
            "played": devices_of(played[0]),
            "market": devices_of(split.market),
        },
        "differing": differing_runs(on_four, on_one),
        "played": differing(*played),
        "four_to_one": differing_runs(four_to_one, on_one),
        "one_to_four": differing_runs(one_to_four, on_one),
        "agents_differ": bool(differing(member(on_one, 0), member(on_one, 1))),
        "compiled_once": once,
        "compiled": compiled(),
        "collectives": collectives(spread, on_four.state),
    }


def member(run: TrainingRun, seed: int):
    return jax.tree.map(lambda x: x[:, seed], bits(run.state.params))


def frozen_seeds() -> dict:
    """Three seeds of one symbol with a frozen encoder, on three of the four devices."""
    config = replace_settings(CONFIG, "network", frozen_encoder=True)
    spread = build_program(config, market("BBB"), num_seeds=3)
    alone = build_program(config, market("BBB"), num_seeds=3, devices=jax.devices()[:1])
    start = started(alone, (1337, 5, 7))
    on_three = spread.placement.states(copied(start))
    encoder = bits(start.params["encoder"])
    results, tables = [], []
    for program, state in ((spread, on_three), (alone, start)):
        tables.append(program.embeddings(state.params, program.params["train"]))
        results.append(advanced(program, state, 2, tables[-1]))
    return {
        "mesh": mesh_of(spread),
        "parts": [devices_of(tables[0]), devices_of(results[0][0])],
        "tables": differing(*tables),
        "differing": differing(*results),
        "encoder": differing(results[0][0].params["encoder"], encoder),
    }


def environments() -> dict:
    """One agent, whose four groups of two environments are on four devices and on one.

    Telemetry watches one environment of each group.
    """

    def program(batch_size: int, devices=None) -> Program:
        changes = {"num_envs": 8, "env_shards": 4, "batch_size": batch_size}
        config: TrainingConfig = replace_settings(CONFIG, "ppo", **changes)
        made = build_program(config, market("BBB"), devices=devices)
        learner = dataclasses.replace(made.learner, telemetry_envs=4)
        return dataclasses.replace(made, learner=learner)

    spread, alone = program(128), program(128, jax.devices()[:1])
    start = started(alone, (1337,))
    before = bits(start.params)
    results = [
        advanced(program, program.placement.states(copied(start)), 2) for program in (spread, alone)
    ]
    (on_four, metrics), (on_one, expected) = jax.tree.map(np.asarray, to_host_bits(results))
    return {
        "mesh": mesh_of(spread),
        "parts": [
            devices_of(results[0][0].walkers.state.bar),
            devices_of(results[0][0].params),
        ],
        "moved": largest(on_one.params, before),
        "params": largest(on_four.params, on_one.params),
        "metrics": {
            field.name: largest(
                getattr(metrics.loss, field.name), getattr(expected.loss, field.name)
            )
            for field in dataclasses.fields(metrics.loss)
        },
        "walkers": differing_whole_numbers(on_four.walkers, on_one.walkers),
        "collectives": collectives(spread, results[0][0]),
        # So large a minibatch that it encodes the whole market.
        "collectives_of_table": collectives(program(512), results[0][0]),
    }


def to_host_bits(tree):
    return bits(to_host(tree))


def largest(tree, expected) -> float:
    """Largest absolute difference of any number in it."""
    return max(
        float(np.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    )


def differing_whole_numbers(tree, expected) -> list[str]:
    """Of counts, bars and switches, which rounding does not touch."""

    def whole(tree):
        return jax.tree.map(lambda x: np.zeros(0) if x.dtype.kind == "f" else x, tree)

    return differing(whole(tree), whole(expected))


def main() -> None:
    facts = {"devices": len(jax.devices()), "agents": agents(Path(sys.argv[1]))}
    # That optimised programs agree has been seen by now, and optimising takes most of the time.
    jax.config.update("jax_disable_most_optimizations", True)
    facts |= {"frozen_seeds": frozen_seeds(), "environments": environments()}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
