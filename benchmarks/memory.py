"""Peak bytes on the device against environments and symbols.

    python -m benchmarks.memory
    python -m benchmarks.memory --envs 2048 16384 --symbols --config throughput

For each row the training program of one seed is compiled for one device, and run for one update
unless `--dry` is given. Three figures stand side by side: by shapes (`jaxtrader.memory.footprint`,
on which the advice for a full device rests), what the compiler sets aside, and the most that the
device had in use since the start, where it says (a CPU does not).
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import write_results
from benchmarks.throughput import scaled
from jaxtrader import api
from jaxtrader.config import TrainingConfig, default_config_path, load_config
from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.memory import explained, footprint
from jaxtrader.program import agent_keys, build_program, hyperparameters
from jaxtrader.runtime import use_compilation_cache


@dataclass(frozen=True)
class Arguments:
    """Measure how much memory training takes."""

    envs: tuple[int, ...] = (8, 512, 4096, 32_768)
    """Environments of one agent; one row each."""
    symbols: tuple[int, ...] = (1, 10, 143)
    """Numbers of symbols, with the environments of the config; one row each."""
    dry: bool = False
    """Compile only."""
    config: Path = field(default_factory=default_config_path)
    """YAML file with settings, or the name of a preset."""
    output: Path | None = None
    """JSON file to write; none: print only."""


def measure(config: TrainingConfig, num_symbols: int, dry: bool) -> dict[str, Any]:
    """Bytes that training one seed of so many symbols takes."""
    symbols = tuple(f"SYNTH{number}" for number in range(num_symbols))
    market = api.synthetic_market(symbols, config)
    program = build_program(config, market, devices=jax.devices()[:1])
    parts = footprint(program, num_seeds=1)
    planned: Any = program.lower_updates(num_seeds=1).compile().memory_analysis()
    if not dry:
        params, hyper = program.params["train"], hyperparameters(config, 1)
        with explained(program, num_seeds=1):
            agents = program.initialize(agent_keys(symbols, (0,)), params, hyper)
            tables = program.embeddings(agents.params, params)
            jax.block_until_ready(program.run_updates(agents, params, hyper, jnp.int32(1), tables))
    return {
        "envs": config.ppo.num_envs,
        "symbols": num_symbols,
        "rollout_steps": config.ppo.rollout_steps,
        "batch_size": config.ppo.batch_size,
        "by_shapes": {**asdict(parts), "total": parts.total},
        "by_compiler": planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes,
        "peak": peak_bytes(),
    }


def peak_bytes() -> int | None:
    """The most that the device had in use at a time; None where it does not say."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmarks.memory")
    console = Console()
    counts = (*arguments.envs, *arguments.symbols)
    try:
        if not counts or min(counts) < 1:
            raise ConfigError(
                f"--envs {arguments.envs} --symbols {arguments.symbols}: give 1 or more each"
            )
        use_compilation_cache()
        config = load_config(arguments.config)
        settings = [(scaled(config, envs), 1) for envs in sorted(arguments.envs)]
        settings += [(config, symbols) for symbols in sorted(arguments.symbols)]
        rows = []
        for number, each in enumerate(settings, 1):
            with console.status(f"{number} of {len(settings)}"):
                rows.append(measure(*each, arguments.dry))
    except JaxtraderError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    table = Table("envs", "symbols", "by shapes", "by compiler", "peak of the device")
    for row in rows:
        sizes = (row["by_shapes"]["total"], row["by_compiler"], row["peak"])
        table.add_row(
            f"{row['envs']:,}",
            f"{row['symbols']:,}",
            *("not told" if size is None else f"{size / 2**20:,.1f} MiB" for size in sizes),
        )
    console.print(table)
    write_results(
        arguments.output,
        "memory",
        {"config": config.to_dict(), "dry": arguments.dry, "rows": rows},
        console,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
