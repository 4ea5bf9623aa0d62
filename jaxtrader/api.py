"""The Python API: load a market, train, evaluate, look, export.

::

    import jaxtrader as jt

    market = jt.synthetic_market()
    run = jt.train(market, seeds=(42,), total_timesteps=40_000)
    [evaluation] = jt.evaluate(run, split="test")
    evaluation.equity, evaluation.trades          # pandas
    jt.export_policy(run, "policy.pt")
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from agents.networks import ActorCritic
from envs.reward import RewardFunction
from jaxtrader.config import TrainingConfig, replace_settings
from jaxtrader.data import FEATURE_NAMES, Dataset, load_dataset, synthetic_dataset
from jaxtrader.deployment import ExportedPolicy, export_agent, sample_observations
from jaxtrader.errors import ConfigError
from jaxtrader.evaluation.evaluate import Evaluation, evaluate_agents
from jaxtrader.program import build_program
from jaxtrader.runs import TrainingRun, output_layout, start_run
from jaxtrader.tracking.session import Tracking, recorded
from jaxtrader.training import train as train_run


def load_market(
    data_dir: str | Path,
    symbols: Sequence[str] = ("SPY",),
    config: TrainingConfig | None = None,
    *,
    feature_names: Sequence[str] = FEATURE_NAMES,
) -> Dataset:
    """Real bars from `data_dir/historical/<SYMBOL>/<timeframe>/data.parquet`.

    Args:
      config: its `data` section has the timeframe and the shares of the splits.
      feature_names: what the agents see, in order; `jaxtrader.data.feature` registers more.

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
        feature_names=tuple(feature_names),
        split_clock=data.split_clock,
    )


def synthetic_market(
    symbols: Sequence[str] = ("SYNTH",),
    config: TrainingConfig | None = None,
    *,
    feature_names: Sequence[str] = FEATURE_NAMES,
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
        feature_names=tuple(feature_names),
    )


def train(
    market: Dataset,
    seeds: Sequence[int] = (42,),
    config: TrainingConfig | None = None,
    *,
    reward: RewardFunction | None = None,
    total_timesteps: int | None = None,
    output_dir: str | Path | None = None,
    tracking: Tracking = "off",
    quiet: bool = False,
) -> TrainingRun:
    """Trains one agent per symbol and seed, all in one program.

    Args:
      reward: a function of `envs.RewardStep` to f32[], in place of the config's reward preset.
        Single weights in `config.reward.weights` are added to it; scale and clip stand.
      total_timesteps: environment steps of each seed; by default the config's.
      output_dir: where checkpoints and tables go; None keeps everything in memory.
      tracking: "on" has MLflow follow what goes to `output_dir`, and "auto" where it is installed.
        `python -m jaxtrader upload-runs` uploads any run in `output_dir` later.
      quiet: no progress display.

    Returns:
      the run: `run.updates_table()` and `run.episodes_table()` are its record, and `evaluate` and
      `export_policy` take it from there.
    """
    config = replace_settings(config or TrainingConfig(), "ppo", total_timesteps=total_timesteps)
    program = build_program(config, market, reward=reward)
    steps = config.ppo.total_timesteps
    layout, console = output_layout(output_dir), Console(quiet=quiet)
    if layout is None and tracking == "on":
        raise ConfigError("tracking='on' needs output_dir: MLflow is sent what lies there")
    with contextlib.ExitStack() as stack:
        session = layout and stack.enter_context(
            recorded(layout, "training", ["jaxtrader.train"], console, tracking)
        )
        run = start_run(program, tuple(seeds), steps, layout)
        stack.callback(run.close)  # another run may now train into the same folder
        if session:
            session.trains(run, resumed=False)
        train_run(run, steps, console)
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
