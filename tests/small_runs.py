"""Runs small enough for a test: two artificial stocks of unequal length, and a tiny network.

Nothing here is compiled twice in one process: programs are compiled once for equal settings and
shapes, so what tests share is the settings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from agents.networks import NetworkConfig
from jaxtrader import training
from jaxtrader.config import (
    CheckpointConfig,
    DataConfig,
    EnvironmentConfig,
    EvaluationConfig,
    PPOConfig,
    TrainingConfig,
)
from jaxtrader.data import Dataset, dataset_from_bars
from jaxtrader.data.synthetic import synthetic_bars
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import Program, build_program
from jaxtrader.runs import TrainingRun, start_run
from jaxtrader.training import train

# 7 bars each; BBB ends earlier. Validation and test split of a stock are of equal length, so that
# one compiled pass serves both.
SESSIONS = {"AAA": 160, "BBB": 120}
SEEDS = (1337, 5, 7)
UPDATES = 7
CONFIG = TrainingConfig(
    data=DataConfig(synthetic_sessions=SESSIONS["BBB"], split_clock="own"),
    environment=EnvironmentConfig(episode_length=64),
    network=NetworkConfig(channels=8, hidden=16, account_hidden=8, dilations=(1, 2, 4)),
    ppo=PPOConfig(
        num_envs=2,
        rollout_steps=64,
        batch_size=64,
        num_epochs=2,
        block_length=16,
        total_timesteps=UPDATES * 128,
    ),
    checkpoints=CheckpointConfig(every=2),
    evaluation=EvaluationConfig(episodes=4),
)
STEPS_PER_UPDATE = 128
QUIET = Console(quiet=True)


@functools.cache
def market(*symbols: str) -> Dataset:
    """The stocks named, or both."""
    names = symbols or tuple(SESSIONS)
    return dataset_from_bars(
        [synthetic_bars(name, sessions=SESSIONS[name]) for name in names],
        receptive_field=CONFIG.network.receptive_field,
        minimum_bars=CONFIG.environment.episode_length + 1,
        split_clock="own",
    )


def write_bars(folder: Path) -> Path:
    """Both stocks as the parquet files of a data folder."""
    for name, sessions in SESSIONS.items():
        bars = synthetic_bars(name, sessions=sessions)
        columns = {key: getattr(bars, key) for key in ("open", "high", "low", "close", "volume")}
        stamps = pa.array(bars.timestamps, pa.timestamp("us", "UTC"))
        path = folder / "historical" / name / "1Hour" / "data.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table({"timestamp": stamps, **columns}), path)
    return folder


@functools.cache
def program(*symbols: str, vectorize: bool = False) -> Program:
    """On the stocks named, or both."""
    return build_program(CONFIG, market(*symbols), vectorize)


def trained(
    program: Program,
    seeds: tuple[int, ...] = SEEDS,
    *,
    updates: int = UPDATES,
    folder: Path | None = None,
) -> TrainingRun:
    """A run from its start to its end."""
    layout = None if folder is None else OutputLayout(folder)
    run = start_run(program, seeds, updates * STEPS_PER_UPDATE, layout)
    train(run, updates * STEPS_PER_UPDATE, QUIET)
    return run


def after_calls(number: int) -> Callable[[], bool]:
    """A `should_stop` that says so after `number` calls of the program."""
    calls = 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        return calls >= number

    return should_stop


def one_update_a_call(monkeypatch) -> None:
    """From here on, no call of the program does more than one update."""
    monkeypatch.setattr(training, "SECONDS_PER_CALL", 0.0)


def with_settings(program: Program, section: str, **changes) -> Program:
    """`program` under settings that differ in one section."""
    settings = dataclasses.replace(getattr(program.config, section), **changes)
    config = dataclasses.replace(program.config, **{section: settings})
    return build_program(config, program.dataset, program.vectorize)
