"""Training steps per second beside what people would use instead, in one run.

    python -m benchmarks.peers                                 # every row, some minutes
    python -m benchmarks.peers --only sb3-dummy windowed       # single rows
    python -m benchmarks.peers --only cartpole --cartpole-envs 8 4096

Every row trains one agent (windowed-seeds: one a core) on the embedded synthetic market: the same
bars, observation, network sizes and PPO hyperparameters on both sides, on this machine. Ours and
the peer take turns, and the ratio is the median over turns, so that other work on the machine meets
both alike. What differs is said below the table. Have the machine to yourself: other work takes
more from whoever has more to compute, which flatters us.

    sb3-dummy, sb3-subproc   Stable-Baselines3's PPO on our Gymnasium adapter, in each of its own
                             two ways of stepping several environments
    sb3-vector               the same on our adapter that steps all of them at once
    gym-trading-env          the same on another trading environment
    *-frozen, *-embedded     frozen encoder on both sides
    windowed, windowed-conv  PPO in JAX as it is usually written
    windowed-shards          the same, the environments of our agent spread over the cores
    windowed-seeds           the same, as many seeds at once on both sides as there are cores
    windowed-pairing         the same with as little arithmetic as windows can do with
    cartpole                 gymnax's CartPole against our environment, both without learning

Peers are optional: `pip install -e '.[peers]'`; a row whose packages are missing says so. Exit
status: 0 when every row was measured and meets its bar, 1 when one does not, 2 on bad input.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import write_results
from benchmarks.peers.comparison import Measured, compare
from benchmarks.peers.rows import rows
from jaxtrader import api
from jaxtrader.config import default_config_path, load_config
from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.runtime import available_cores, use_compilation_cache, use_cpu_cores

BUSY = 0.5  # load average, before anything is measured, from which on ratios are not to be trusted


@dataclass(frozen=True)
class Arguments:
    """Measure ourselves against others."""

    only: tuple[
        Literal[
            "sb3-dummy", "sb3-subproc", "sb3-vector", "gym-trading-env", "sb3-dummy-frozen",
            "sb3-dummy-embedded", "sb3-vector-embedded", "windowed", "windowed-shards",
            "windowed-seeds", "windowed-conv", "windowed-pairing", "cartpole",
        ],
        ...,
    ] = ()  # fmt: skip
    """Rows to measure. Default: all."""
    repeats: int = 3
    """Turns of each side, of which the median counts."""
    seconds: float = 3.0
    """Least length of a turn; a turn does at least one update."""
    cartpole_envs: tuple[int, ...] = (8, 512, 4096, 65536)
    """Numbers of environments for the rows of CartPole."""
    config: Path = field(default_factory=default_config_path)
    """YAML file with settings."""
    output: Path | None = None
    """JSON file to write; none: print only."""


def table(measured: Sequence[Measured]) -> Table:
    """One line for each row."""
    table = Table("peer", "its steps/s", "our steps/s", "ours / peer", "bar")
    for one in measured:
        bar = "" if one.row.bar is None else f"≥ {one.row.bar:g}"
        if one.reason:
            table.add_row(one.row.name, "not measured", "", "", bar)
            continue
        verdict = "" if one.row.bar is None else (" met" if one.met else " MISSED")
        theirs, own = statistics.median(one.peer), statistics.median(one.ours)
        ratio = f"{one.ratio:.1f}"
        table.add_row(one.row.name, f"{theirs:,.0f}", f"{own:,.0f}", ratio, bar + verdict)
    return table


def notes(measured: Sequence[Measured]) -> Iterator[str]:
    """What there is to say beside the table."""
    for remark in dict.fromkeys(remark for one in measured for remark in one.row.differs):
        about = [one.row.name for one in measured if remark in one.row.differs]
        yield f"{', '.join(about)}: {remark}"
    for one in measured:
        details = ", ".join(f"{name} {number:.2g}" for name, number in one.details.items())
        if one.reason or details:
            yield f"{one.row.name}: {one.reason or details}"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmarks.peers")
    use_compilation_cache()
    cores = available_cores()
    use_cpu_cores(cores)
    console = Console()
    load, _, _ = os.getloadavg()
    try:
        if arguments.repeats < 1 or not arguments.seconds >= 0:
            raise ConfigError(
                f"--repeats {arguments.repeats} --seconds {arguments.seconds}: give at least 1 "
                "turn, of 0 seconds or more"
            )
        if not all(n >= 1 for n in arguments.cartpole_envs):
            raise ConfigError(f"--cartpole-envs {arguments.cartpole_envs}: give 1 or more each")
        config = load_config(arguments.config)
        market = api.synthetic_market(config=config)
        if load > BUSY:
            console.print(
                f"warning: the machine is busy (load average {load:.1f}), which flatters us"
            )
        measured: list[Measured] = []

        def write(console: Console) -> None:
            results = {
                "repeats": arguments.repeats,
                "seconds": arguments.seconds,
                "load_average_before": load,
                "config": config.to_dict(),
                "rows": [one.to_dict() for one in measured],
            }
            write_results(arguments.output, "peers", results, console)

        for row in rows(arguments.cartpole_envs, cores):
            name = "cartpole" if row.name.startswith("cartpole") else row.name
            if arguments.only and name not in arguments.only:
                continue
            console.print(f"{row.name} ...", highlight=False)
            measured.append(compare(row, config, market, arguments.repeats, arguments.seconds))
            write(Console(quiet=True))  # whoever stops here keeps the rows so far
    except JaxtraderError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    console.print(table(measured))
    for note in notes(measured):
        console.print(note, markup=False, highlight=False)
    write(console)
    return 0 if all(one.met for one in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
