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
from jaxtrader.errors import DataError, ExportError
from jaxtrader.evaluation.evaluate import Evaluation, evaluate_agents
from jaxtrader.evaluation.foresight import ForesightCeiling
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import Program, build_program
from jaxtrader.reporting.summary import build_summary
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
    # From the start as likely to trade as not: seven updates are not enough to find out how.
    network=NetworkConfig(
        channels=8, hidden=16, account_hidden=8, dilations=(1, 2, 4), hold_bias=0.0
    ),
    ppo=PPOConfig(
        num_envs=2,
        rollout_steps=64,
        batch_size=64,
        num_epochs=2,
        block_length=16,
        total_timesteps=UPDATES * 128,
    ),
    checkpoints=CheckpointConfig(every=2),
    # The oracle takes seconds to compile: it has tests of its own.
    evaluation=EvaluationConfig(episodes=4, perfect_foresight=False),
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


def reported(folder: Path) -> tuple[Path, TrainingRun, list[list[Evaluation]]]:
    """The report that stage 5 writes of both stocks and all seeds after two updates."""
    from experiments.stage5 import write_reports

    run = trained(program(), updates=2, folder=folder)
    layout, report = OutputLayout(folder), OutputLayout(folder).report("20260131T235959Z")
    evaluations = evaluate_agents(
        program(), run.best_params, run.seeds, "test", CONFIG.evaluation.episodes
    )
    summary = build_summary(
        run,
        evaluations,
        [[ExportError("not asked for")] * len(row) for row in evaluations],
        [ForesightCeiling("AAA", "test", 0.10, 0.11, 0.20), DataError("too long a split")],
        created=report.name,
        command=["a", "test"],
        skipped=False,
        extended_to=None,
    )
    run.close()
    write_reports(run, summary, evaluations, report, layout)
    return report, run, evaluations


# What may be executed, and by whose decision: one fill of every kind that a report tells apart.
FILLS = (
    ("BUY_SMALL", "NONE"),
    ("ADD_POSITION", "NONE"),
    ("SELL_PARTIAL", "NONE"),
    ("SELL_ALL", "NONE"),
    ("BUY_LARGE", "NONE"),
    ("SELL_ALL", "STOP_LOSS"),
    ("BUY_MEDIUM", "NONE"),
    ("SELL_ALL", "END_OF_DATA"),
)


def traded(evaluation: Evaluation) -> Evaluation:
    """`evaluation` as if the agent had traded as in `FILLS`, every fifth bar, at made-up prices."""
    steps = evaluation.steps.assign(executed="HOLD", reason="NONE", closed=False)
    steps[["fill_shares", "fill_value", "fill_price", "costs", "trade_profit"]] = 0.0
    for k, (executed, reason) in enumerate(FILLS):
        sold = executed.startswith("SELL")
        made = {
            "executed": executed,
            "reason": reason,
            "closed": executed == "SELL_ALL",
            "fill_shares": -1.5 if sold else 2.5,
            "fill_value": 100.0 * (k + 1),
            "fill_price": 90.0 + k,
            "costs": 0.25,
            "trade_profit": 12.5 if sold else 0.0,
        }
        steps.loc[steps.index[5 * k], list(made)] = list(made.values())
    return dataclasses.replace(evaluation, steps=steps)


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
    return build_program(config, program.dataset, program.placement.vectorize)
