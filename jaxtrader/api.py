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
from typing import Any

from rich.console import Console

from agents.networks import ActorCritic
from envs.reward import RewardFunction
from jaxtrader.config import TrainingConfig, check_split, replace_settings
from jaxtrader.data import FEATURE_NAMES, Dataset, load_dataset, synthetic_dataset
from jaxtrader.deployment import (
    ExportedPolicy,
    export_agent,
    require_torch,
    sample_observations,
)
from jaxtrader.errors import CheckpointError, ConfigError
from jaxtrader.evaluation.evaluate import Evaluation, evaluate_agents
from jaxtrader.program import build_program
from jaxtrader.runs import TrainingRun, output_layout, restore_run, start_run
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
    config = _settings(config)
    data = config.data
    return load_dataset(
        data_dir,
        _several("symbols", symbols),
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
    config = _settings(config)
    data = config.data
    return synthetic_dataset(
        _several("symbols", symbols),
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
    resume: bool = False,
    tracking: Tracking = "off",
    quiet: bool = False,
) -> TrainingRun:
    """Trains one agent per symbol and seed, all in one program.

    Args:
      reward: a function of `envs.RewardStep` to f32[], in place of the config's reward preset.
        Single weights in `config.reward.weights` are added to it; scale and clip stand.
      total_timesteps: environment steps of each seed; by default the config's.
      output_dir: where checkpoints and tables go; None keeps everything in memory.
      resume: go on from the latest checkpoints in `output_dir`, to the same bits as if nothing had
        interrupted them. Otherwise what an earlier run left there is moved aside.
      tracking: "on" has MLflow follow what goes to `output_dir`, and "auto" where it is installed.
        `python -m jaxtrader upload-runs` uploads any run in `output_dir` later.
      quiet: no progress display.

    Returns:
      the run: `run.updates_table()` and `run.episodes_table()` are its record, and `evaluate` and
      `export_policy` take it from there.

    Raises:
      jaxtrader.training.Interrupted: Ctrl-C; go on with `resume`. Without `output_dir` the state is
        in its `run` alone.
      ConfigError: settings that contradict each other or the data, or `resume` without
        `output_dir`.
      CheckpointError: nothing there to resume, or checkpoints of other settings or data.
      JaxtraderError: the folder cannot be written, or another process trains there.
    """
    seeds = _several("seeds", seeds)
    if reward is not None and not callable(reward):
        raise ConfigError(
            f"reward = {reward!r}: give a function; the config's reward.preset chooses a preset"
        )
    config = replace_settings(_settings(config), "ppo", total_timesteps=total_timesteps)
    program = build_program(config, market, reward=reward, num_seeds=len(seeds))
    steps = config.ppo.total_timesteps
    layout, console = output_layout(output_dir), Console(quiet=quiet)
    if layout is None and tracking == "on":
        raise ConfigError("tracking='on' needs output_dir: MLflow is sent what lies there")
    if layout is None and resume:
        raise ConfigError("resume=True needs output_dir: the folder of the run to go on with")
    with contextlib.ExitStack() as stack:
        session = layout and stack.enter_context(
            recorded(layout, "training", ["jaxtrader.train"], console, tracking)
        )
        if layout and resume:
            run = restore_run(program, tuple(seeds), layout, to_train=True)
        else:
            run = start_run(program, tuple(seeds), steps, layout)
        stack.callback(run.close)  # another run may now train into the same folder
        if session:
            session.trains(run, resumed=resume)
        train_run(run, steps, console)
    return run


def evaluate(
    run: TrainingRun, split: str = "test", episodes: int | None = None
) -> list[Evaluation]:
    """Evaluates the checkpoint of every agent that did best on the validation split.

    Deterministic: one pass over the whole split from a flat start, and `episodes` episodes with
    random starts, under the costs of training.

    Args:
      split: "train", "validation" or "test".

    Returns:
      one `Evaluation` per symbol and seed, in that order.

    Raises:
      ConfigError: no such split, or too few bars in it for so many episodes.
      CheckpointError: the run was interrupted before its first checkpoint.
    """
    check_split(split)
    settings = run.program.config.evaluation
    by_symbol = evaluate_agents(
        run.program,
        _best_params(run),
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
      ConfigError: no such split, no such agent, or several and none named.
      CheckpointError: the run was interrupted before its first checkpoint.
      ExportError: torch is missing, or the file cannot be written.
    """
    check_split(split)
    require_torch()
    from jaxtrader.export import ParityProcess

    params = _best_params(run)
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
            f"symbol={symbol!r}, seed={seed!r} names {len(places)} agents of: {known}. "
            "Name one by symbol= and seed="
        )
    [(s, k)] = places
    observations = sample_observations(run.program, params, split)
    sharpe = float(run.best_sharpe[s, k])
    metrics = {"validation_sharpe": sharpe if math.isfinite(sharpe) else None}
    with ParityProcess() as process:
        return export_agent(
            run.program, params, observations, s, k, Path(path), process, split=split,
            metrics=metrics,
        )  # fmt: skip


def _settings(config: TrainingConfig | None) -> TrainingConfig:
    if config is not None and not isinstance(config, TrainingConfig):
        raise ConfigError(
            f"config = {config!r}: give settings, as jaxtrader.load_config reads from a file"
        )
    return config or TrainingConfig()


def _several(name: str, values: Any) -> Any:
    if isinstance(values, str | int):
        raise ConfigError(f"{name} = {values!r}: give a list, [{values!r}]")
    return values


def _best_params(run: TrainingRun) -> Any:
    if run.best_params is None:
        every = run.program.config.checkpoints.every
        raise CheckpointError(
            f"the run has no checkpoint yet to choose from: it was interrupted after update "
            f"{run.update}, before the first validation (checkpoints.every = {every})"
        )
    return run.best_params
