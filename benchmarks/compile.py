"""From the start of a process to its first update: cold, and with the compilation cache warm.

    python -m benchmarks.compile
    python -m benchmarks.compile --seeds 1 16 --config throughput

For each number of seeds a fresh process trains one update on the embedded synthetic market, first
with an empty cache, then with the cache that it left; medians over turns. Seconds are from before
the process was started. Compiling is what the first update took beyond the second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import write_results
from jaxtrader.config import default_config_path, load_config
from jaxtrader.errors import ConfigError, JaxtraderError


@dataclass(frozen=True)
class Arguments:
    """Measure how long compilation takes."""

    seeds: tuple[int, ...] = (1, 16)
    """Numbers of seeds; two rows each."""
    repeats: int = 3
    """Turns, of which the median counts."""
    config: Path = field(default_factory=default_config_path)
    """YAML file with settings, or the name of a preset."""
    output: Path | None = None
    """JSON file to write; none: print only."""


@dataclass(frozen=True)
class Start:
    """Seconds from before the start of a process until the first of each was done."""

    seeds: int
    cache: str  # "cold" or "warm"
    imports: float
    program: float  # the market, and everything laid out on the devices
    agents: float  # initialised
    update: float
    compiling: float  # of the update's program: the first update beyond the second


def first_update(config: str, num_seeds: int) -> dict[str, float]:
    """Runs in a process of its own; times of the clock at which each was done."""
    import jax
    import jax.numpy as jnp

    from jaxtrader import api
    from jaxtrader.program import agent_keys, build_program, hyperparameters
    from jaxtrader.runtime import use_compilation_cache, use_cpu_cores

    use_compilation_cache()
    use_cpu_cores(num_seeds)
    done = {"imports": time.time()}
    settings = load_config(config)
    market = api.synthetic_market(config=settings)
    program = build_program(settings, market, num_seeds=num_seeds)
    params, hyper = program.params["train"], hyperparameters(settings, 2)
    done["program"] = time.time()
    keys = agent_keys(market.symbols, tuple(range(num_seeds)))
    agents = jax.block_until_ready(program.initialize(keys, params, hyper))
    tables = program.embeddings(agents.params, params)
    done["agents"] = time.time()
    for update in ("update", "second"):
        agents, _ = program.run_updates(agents, params, hyper, jnp.int32(1), tables)
        jax.block_until_ready(agents)
        done[update] = time.time()
    return done


def start(config: Path, num_seeds: int, cache: Path, name: str) -> Start:
    """Trains one update in a fresh process.

    Raises:
      JaxtraderError: with what the process said, if it failed.
    """
    program = (
        "import json, sys; from benchmarks.compile import first_update; "
        "print(json.dumps(first_update(sys.argv[1], int(sys.argv[2]))))"
    )
    root = Path(__file__).resolve().parents[1]
    search = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program, str(config), str(num_seeds)],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise JaxtraderError(f"the process that should train an update failed:\n{done.stderr}")
    times = json.loads(done.stdout.splitlines()[-1])
    second = times.pop("second") - times["update"]
    return Start(
        seeds=num_seeds,
        cache=name,
        **{moment: at - began for moment, at in times.items()},
        compiling=max(times["update"] - times["agents"] - second, 0.0),
    )


def medians(starts: Sequence[Start]) -> list[Start]:
    """One start for each number of seeds and state of the cache, in the order of the first."""
    frame = pd.DataFrame(asdict(one) for one in starts)
    found = frame.groupby(["seeds", "cache"], sort=False, as_index=False).median()
    rows: list[Any] = found.to_dict("records")
    return [Start(**row) for row in rows]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmarks.compile")
    console = Console()
    starts = []
    try:
        if not arguments.seeds or min(arguments.seeds) < 1:
            raise ConfigError(f"--seeds {arguments.seeds}: give 1 or more each")
        if arguments.repeats < 1:
            raise ConfigError(f"--repeats {arguments.repeats}: give at least 1")
        config = load_config(arguments.config)
        turns = [seeds for _ in range(arguments.repeats) for seeds in arguments.seeds]
        for turn, seeds in enumerate(turns, start=1):
            with tempfile.TemporaryDirectory() as folder:
                for name in ("cold", "warm"):
                    with console.status(f"{turn} of {len(turns)}: {seeds} seeds, {name}"):
                        starts.append(start(arguments.config, seeds, Path(folder), name))
    except JaxtraderError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    rows = medians(starts)
    table = Table("seeds", "cache", "imports", "program", "agents", "first update", "compiling")
    for row in rows:
        seeds, cache, *seconds = asdict(row).values()
        table.add_row(str(seeds), cache, *(f"{each:.1f} s" for each in seconds))
    console.print(table)
    console.print(
        "Seconds since the process was started; compiling: the first update beyond the second.",
        soft_wrap=True,
    )
    cold = {row.seeds: row.compiling for row in rows if row.cache == "cold"}
    if len(cold) > 1:
        fewest, most = min(cold), max(cold)
        console.print(
            f"{most} seeds compile {cold[most] / cold[fewest]:.2f} times as long as {fewest}"
        )
    write_results(
        arguments.output,
        "compile",
        {
            "repeats": arguments.repeats,
            "config": config.to_dict(),
            "rows": [asdict(row) for row in rows],
            "starts": [asdict(one) for one in starts],
        },
        console,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
