"""How much of what could be earned does a learner earn? Answered where the optimum is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from scipy import stats

from envs.oracle import replay, solve
from jaxtrader.config import TrainingConfig, replace_settings
from jaxtrader.data import Dataset
from jaxtrader.data.markets import split_offset
from jaxtrader.data.planted import PlantedMarket, planted_dataset, stationary
from jaxtrader.errors import ConfigError
from jaxtrader.program import Program, build_program
from jaxtrader.runs import TrainingRun, start_run
from jaxtrader.training import train

BARS = (150_000, 4_000, 102_401)  # train, validation, test: room to learn, not to memorise


@dataclass(frozen=True, eq=False)
class Probe:
    """One planted market learnt by K seeds."""

    market: PlantedMarket
    run: TrainingRun
    optimum: float  # expected log wealth of the optimal policy over one episode
    optimal: np.ndarray  # float64[E] log wealth of the optimal policy in each test episode
    learnt: np.ndarray  # float64[K, E] that of each seed's final policy in the same episodes
    seconds: float  # of training, compilation included

    @property
    def shares(self) -> np.ndarray:
        """Of the optimal policy's mean log wealth on the same fresh bars, float64[K]."""
        return self.learnt.mean(axis=1) / self.optimal.mean()

    def intervals(self, confidence: float = 0.95) -> np.ndarray:
        """Bootstrap intervals of `shares` over episodes, float64[K, 2] (Efron 1987, percentile)."""

        def share(learnt: np.ndarray, optimal: np.ndarray, axis: int = -1) -> np.ndarray:
            return learnt.mean(axis=axis) / optimal.mean(axis=axis)

        bounds = [
            stats.bootstrap(
                (learnt, self.optimal),
                share,
                paired=True,
                confidence_level=confidence,
                method="percentile",
                n_resamples=2_000,
                rng=np.random.default_rng(0),
            ).confidence_interval
            for learnt in self.learnt
        ]
        return np.array([[low, high] for low, high in bounds])


def probe_config(market: PlantedMarket, config: TrainingConfig | None = None) -> TrainingConfig:
    """`config` (by default all defaults and the reward `log_wealth`) at the market's costs."""
    if config is None:
        config = replace_settings(TrainingConfig(), "reward", preset="log_wealth")
    return replace_settings(
        config, "environment", costs=market.costs, cost_multiplier=market.cost_multiplier
    )


def learn_probe(
    market: PlantedMarket,
    seeds: Sequence[int],
    total_timesteps: int,
    config: TrainingConfig | None = None,
    *,
    history: int = 0,
    bars: tuple[int, int, int] = BARS,
    console: Console | None = None,
) -> Probe:
    """Trains on a history of `market` and plays learnt and optimal policies on fresh bars.

    Both play the same test episodes, one after the other over the whole split, under all rules of
    the environment; the learnt policies are the final ones and greedy.

    Args:
      total_timesteps: of each seed.
      config: see `probe_config`.
      history: seed of the bars. Whoever chooses settings by the shares on one history should judge
        them on another.
      bars: of train, validation and test. N steps take N + 1 bars; what is left of the last after
        whole episodes is not played.

    Raises:
      ConfigError: a test split too short for an episode, or settings that the environment refuses.
    """
    config = probe_config(market, config)
    dataset, states = planted_dataset(market, history, bars=bars)
    program = build_program(config, dataset, num_seeds=len(seeds))
    run, seconds = _timed_training(program, tuple(seeds), total_timesteps, console)
    starts, steps = whole_episodes(program)
    optimum, optimal = plan_log_wealth(program, market, states, starts, steps)
    return Probe(
        market=market,
        run=run,
        optimum=optimum,
        optimal=optimal,
        learnt=play_log_wealth(run, starts, steps)[0],
        seconds=seconds,
    )


def log_wealth_out_of_sample(
    dataset: Dataset,
    seeds: Sequence[int],
    total_timesteps: int,
    config: TrainingConfig,
    console: Console | None = None,
) -> np.ndarray:
    """Mean log wealth per test episode of the final greedy policy of every agent, float64[S, K].

    For control experiments: train on `dataset`, play its test split in whole episodes.
    """
    program = build_program(config, dataset, num_seeds=len(seeds))
    run, _ = _timed_training(program, tuple(seeds), total_timesteps, console)
    return play_log_wealth(run, *whole_episodes(program)).mean(axis=-1)


def _timed_training(
    program: Program, seeds: tuple[int, ...], total_timesteps: int, console: Console | None
) -> tuple[TrainingRun, float]:
    began = time.perf_counter()
    run = start_run(program, seeds, total_timesteps, None)
    train(run, total_timesteps, console or Console(quiet=True))
    return run, time.perf_counter() - began


def whole_episodes(program: Program) -> tuple[np.ndarray, int]:
    """(first decision bars int[E] of whole episodes end to end over the test split, steps)."""
    steps = program.config.environment.episode_length
    starts = program.params["test"].starts
    first, last = int(starts.first_bar.max()), int(starts.last_bar.min())
    if last - first < steps:
        raise ConfigError(f"a test split of {last - first} steps has no episode of {steps}")
    return np.arange(first, last - steps + 1, steps), steps


def play_log_wealth(run: TrainingRun, starts: np.ndarray, steps: int) -> np.ndarray:
    """Log wealth of every agent's current greedy policy in each test episode, float64[S, K, E]."""
    program = run.program
    bars = np.tile(starts, (len(program.dataset.symbols), 1))
    played = program.play(run.state.params, program.params["test"], bars, bars + steps, steps)
    return np.log(np.asarray(played.statistics.final_equity, np.float64))


def plan_log_wealth(
    program: Program, market: PlantedMarket, states: np.ndarray, starts: np.ndarray, steps: int
) -> tuple[float, np.ndarray]:
    """The optimal plan's log wealth: expected over one episode, and in each test episode.

    Args:
      program: on the dataset that `planted_dataset` made of `market`.
      states: int32[1, T] that drove its bars.
      starts: int[E] first decision bars.

    Returns:
      (float, float64[E]).
    """
    params = jax.tree.map(lambda x: x[0], program.params["test"])
    plan = solve(market.outlook(), params, steps)
    seen = states[0, split_offset(program.dataset, "test")[0] :]
    information = jnp.asarray(np.stack([seen[bar : bar + steps] for bar in starts]))
    stops = jnp.asarray(starts + steps, jnp.int32)
    replays = jax.vmap(replay, (None, None, None, None, 0, 0))(
        plan, program.learner.env, params, jnp.int32(0), stops, information
    )
    expected = float(stationary(market.transition) @ np.asarray(plan.value, np.float64))
    return expected, np.asarray(replays.log_wealth, np.float64)
