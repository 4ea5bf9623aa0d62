"""The Python API: load a market, train, evaluate, look, export.

import jaxtrader as jt

market = jt.synthetic_market()
run = jt.train(market, seeds=(42,), total_timesteps=40_000)
[evaluation] = jt.evaluate(run, split="test")
evaluation.equity, evaluation.trades          # pandas
jt.export_policy(run, "policy.pt")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from agents.networks import ActorCritic
from jaxtrader.config import TrainingConfig, replace_settings
from jaxtrader.data import Dataset, load_dataset, synthetic_dataset
from jaxtrader.deployment import ExportedPolicy, export_agent, sample_observations
from jaxtrader.errors import ConfigError
from jaxtrader.evaluation.evaluate import Evaluation, evaluate_agents
from jaxtrader.program import build_program
from jaxtrader.runs import TrainingRun, output_layout, start_run
from jaxtrader.training import train as train_run


def load_market(
    data_dir: str | Path, symbols: Sequence[str] = ("SPY",), config: TrainingConfig | None = None
) -> Dataset:
    """Real bars from `data_dir/historical/<SYMBOL>/<timeframe>/data.parquet`.

    Args:
      config: its `data` section has the timeframe and the shares of the splits.

    Raises:
      DataError: a file is missing or malformed; the message names file, row and remedy.
    """
    config = config or TrainingConfig()
    data = config.data
    return load_dataset(
        data_dir,
        symbols,
        data.timeframe,
        receptive_field=ActorCritic(config.network).receptive_field,
        fractions=(data.train_share, data.validation_share, data.test_share),
        minimum_bars=config.environment.episode_length + 1,
        split_clock=data.split_clock,
    )


def synthetic_market(
    symbols: Sequence[str] = ("SYNTH",), config: TrainingConfig | None = None
) -> Dataset:
    """The embedded synthetic market; `config.data` has its seed and its number of sessions."""
    config = config or TrainingConfig()
    data = config.data
    return synthetic_dataset(
        symbols,
        data.synthetic_seed,
        sessions=data.synthetic_sessions,
        timeframe=data.timeframe,
        receptive_field=ActorCritic(config.network).receptive_field,
        fractions=(data.train_share, data.validation_share, data.test_share),
        minimum_bars=config.environment.episode_length + 1,
    )


def train(
    market: Dataset,
    seeds: Sequence[int] = (42,),
    config: TrainingConfig | None = None,
    *,
    total_timesteps: int | None = None,
    output_dir: str | Path | None = None,
    quiet: bool = False,
) -> TrainingRun:
    """Trains one agent per symbol and seed, all in one program.

    Args:
      total_timesteps: environment steps of each seed; by default the config's.
      output_dir: where checkpoints and tables go; None keeps everything in memory.
      quiet: no progress display.

    Returns:
      the run: `run.updates_table()` and `run.episodes_table()` are its record, and `evaluate` and
      `export_policy` take it from there.
    """
    config = replace_settings(config or TrainingConfig(), "ppo", total_timesteps=total_timesteps)
    program = build_program(config, market)
    steps = config.ppo.total_timesteps
    run = start_run(program, tuple(seeds), steps, output_layout(output_dir))
    train_run(run, steps, Console(quiet=quiet))
    return run


def evaluate(
    run: TrainingRun, split: str = "test", episodes: int | None = None
) -> list[Evaluation]:
    """Evaluates the checkpoint of every agent that did best on the validation split.

    Deterministic: one pass over the whole split from a flat start, and `episodes` episodes with
    random starts, under the costs of training.

    Returns:
      one `Evaluation` per symbol and seed, in that order.
    """
    settings = run.program.config.evaluation
    by_symbol = evaluate_agents(
        run.program,
        run.best_params,
        run.seeds,
        split,
        settings.episodes if episodes is None else episodes,
        settings.seed,
    )
    return [evaluation for row in by_symbol for evaluation in row]


def export_policy(
    run: TrainingRun,
    path: str | Path,
    *,
    symbol: str | None = None,
    seed: int | None = None,
    split: str = "test",
) -> ExportedPolicy:
    """Writes one agent as a TorchScript file that needs only torch, and checks it against JAX.

    Args:
      symbol, seed: which agent; may be left out where there is only one.
      split: real observations of this split are compared.

    Raises:
      ConfigError: no such agent, or several and none named.
      ExportError: torch is missing, or the file cannot be written.
    """
    places = [
        (s, k)
        for s, k, its_symbol, its_seed in run.agents
        if symbol in (None, its_symbol) and seed in (None, its_seed)
    ]
    if len(places) != 1:
        known = ", ".join(
            f"{its_symbol} seed {its_seed}" for *_, its_symbol, its_seed in run.agents
        )
        raise ConfigError(
            f"symbol={symbol!r}, seed={seed!r} names {len(places)} agents of: {known}"
        )
    [(s, k)] = places
    observations = sample_observations(run.program, run.best_params, split)
    sharpe = float(run.best_sharpe[s, k])
    metrics = {"validation_sharpe": sharpe if math.isfinite(sharpe) else None}
    return export_agent(
        run.program,
        run.best_params,
        observations,
        s,
        k,
        Path(path),
        split=split,
        metrics=metrics,
    )
