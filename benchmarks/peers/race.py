"""Who is first at a share of a planted optimum? Wall seconds of training, ours and SB3's.

Both learn the same bars with the same network, reward, episodes and hyperparameters, and both are
judged by the same compiled evaluation: greedy episodes end to end over test bars. It runs after
every update, and the clock stands still meanwhile.
"""

from __future__ import annotations

import importlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from agents.networks import ActorCritic, Params
from agents.ppo import learning_rate_at
from benchmarks.peers.comparison import EXTRA
from envs.actions import Action
from jaxtrader.config import TrainingConfig
from jaxtrader.data.planted import PlantedMarket, planted_dataset
from jaxtrader.evaluation.probes import BARS, plan_log_wealth, probe_config, whole_episodes
from jaxtrader.program import Program, agent_keys, build_program, hyperparameters, updates_for

BAR = 30.0  # least ratio of SB3's seconds to ours


@dataclass(frozen=True)
class Trainee:
    """One agent in training."""

    update: Callable[[], Any]
    params: Callable[[], Params]
    networks: ActorCritic


@dataclass(frozen=True)
class Run:
    """How far one agent got."""

    learner: str
    seed: int
    setup_seconds: float  # to make and compile everything; later seeds find much of it made
    seconds: float  # of training until the goal, or until it gave up
    steps: int  # environment steps in that time
    share: float  # of the optimum, at the end
    reached: bool


class UnmaskedActorCritic(ActorCritic):
    """A policy that may choose what is illegal, as one that trained without masks does."""

    @property
    def full_precision(self) -> ActorCritic:
        return self

    def heads(
        self, params: Params, embedding: jax.Array, account: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return super().heads(params, embedding, account, jnp.ones_like(mask))


class Judge:
    """Plays greedy episodes on the test bars of a planted market."""

    def __init__(self, program: Program, market: PlantedMarket, states: np.ndarray):
        self._program = program
        self._starts, self._steps = whole_episodes(program)
        _, optimal = plan_log_wealth(program, market, states, self._starts, self._steps)
        self._optimal = optimal.mean()

    def share(self, trainee: Trainee) -> float:
        """What its current policy earns of what the optimal plan earns."""
        learner = replace(self._program.learner, networks=trainee.networks)
        params = jax.tree.map(lambda x: jnp.asarray(x)[None, None], trainee.params())
        starts = self._starts[None]
        played = replace(self._program, learner=learner).play(
            params, self._program.params["test"], starts, starts + self._steps, self._steps
        )
        equity = np.asarray(played.statistics.final_equity, np.float64)
        return float(np.log(equity).mean() / self._optimal)


def ours(program: Program, seed: int, updates: int) -> Trainee:
    """An agent of this library, compiled."""
    program = build_program(program.config, program.dataset)  # part of the set-up
    params, hyper = program.params["train"], hyperparameters(program.config, updates)
    agents = program.initialize(agent_keys(program.dataset.symbols, (seed,)), params, hyper)

    def train(n: int) -> None:
        nonlocal agents
        agents, _ = jax.block_until_ready(program.run_updates(agents, params, hyper, jnp.int32(n)))

    train(0)
    return Trainee(
        lambda: train(1),
        lambda: jax.tree.map(lambda x: x[0, 0], agents.params),
        program.learner.networks,
    )


def stable_baselines(program: Program, seed: int, updates: int, *, masked: bool = False) -> Trainee:
    """SB3's PPO on the adapter that steps all environments at once, which is SB3's fastest.

    Args:
      masked: MaskablePPO of sb3-contrib, told what is legal, from a start that mostly holds: what
        our agents have beyond PPO.
    """
    import torch

    from benchmarks.peers import stable_baselines as sb3

    algorithm = importlib.import_module("sb3_contrib").MaskablePPO if masked else sb3.TimedPPO
    config, dataset = program.config, program.dataset
    envs = sb3.adapter_environments(sb3.VectorAdapter, dataset, config)
    envs.reset()
    envs.step(np.zeros(envs.num_envs, int))  # compiles it
    model = sb3.learner(envs, config, len(dataset.feature_names), algorithm=algorithm, seed=seed)
    if masked:
        with torch.no_grad():
            model.policy.action_net.bias[Action.HOLD] = config.network.hold_bias
    schedule = hyperparameters(config, updates).ppo
    per_update = program.learner.shape.steps_per_update

    def learning_rate(_: float) -> float:
        # SB3 asks after a rollout for the share that remains of the current call's steps.
        updates_done = model.num_timesteps / per_update - 1
        return float(learning_rate_at(schedule, jnp.float32(updates_done / updates)))

    model.lr_schedule = learning_rate
    return Trainee(
        lambda: model.learn(per_update, reset_num_timesteps=False),
        lambda: sb3.network_parameters(model.policy),
        (ActorCritic if masked else UnmaskedActorCritic)(config.network),
    )


LEARNERS: dict[str, Callable[[Program, int, int], Trainee]] = {
    "ours": ours,
    "sb3": stable_baselines,
    "sb3-masked": partial(stable_baselines, masked=True),
}
DIFFERS = {
    "sb3": "PPO without legality masks (an illegal action does nothing), without hold bias, logit "
    "cap and entropy guard",
    "sb3-masked": "MaskablePPO of sb3-contrib with our masks and our hold bias, without logit cap "
    "and entropy guard",
}


def train_to_goal(
    name: str, judge: Judge, program: Program, seed: int, updates: int, goal: float, budget: float
) -> Run:
    """Trains until the policy's share is at least `goal`, or updates or `budget` seconds are up."""
    began = time.perf_counter()
    trainee = LEARNERS[name](program, seed, updates)
    setup = time.perf_counter() - began
    seconds, share, done = 0.0, -math.inf, 0
    while share < goal and done < updates and seconds < budget:
        began = time.perf_counter()
        trainee.update()
        seconds += time.perf_counter() - began
        done += 1
        share = judge.share(trainee)
    steps = done * program.learner.shape.steps_per_update
    return Run(name, seed, setup, seconds, steps, share, share >= goal)


def race(
    market: PlantedMarket,
    config: TrainingConfig,
    seeds: Sequence[int],
    timesteps: int,
    *,
    history: int,
    goal: float,
    budget: float,
    console: Console,
    bars: tuple[int, int, int] = BARS,
) -> dict[str, Any]:
    """Runs every learner on every seed and prints who took how long; returns that for JSON.

    Args:
      config: see `jaxtrader.evaluation.probes.probe_config`.
      timesteps: of each seed, which learning rates are scheduled for.
      goal: share of the optimum.
      budget: seconds of training that each of SB3's runs has.

    Raises:
      ConfigError: no seed, or one given twice, or settings that the environment refuses.
    """
    agent_keys((market.name,), tuple(seeds))  # or there is something wrong with the seeds
    config = probe_config(market, config)
    dataset, states = planted_dataset(
        market, history, bars=bars, receptive_field=config.network.receptive_field
    )
    program = build_program(config, dataset)
    judge = Judge(program, market, states)
    updates = updates_for(config, timesteps)
    runs: dict[str, list[Run]] = {}
    absent = {}
    for name in LEARNERS:
        limit = math.inf if name == "ours" else budget
        try:
            for seed in seeds:
                run = train_to_goal(name, judge, program, seed, updates, goal, limit)
                runs.setdefault(name, []).append(run)
                console.print(f"{market.name}: {_told(run, goal)}", highlight=False)
        except ModuleNotFoundError as error:
            absent[name] = f"not measured: {error.name} is not installed: {EXTRA}"
            console.print(f"{market.name}: {name} {absent[name]}", markup=False, highlight=False)
    others = [name for name in runs if name != "ours"] if _all_reached(runs["ours"]) else []
    rows = {name: _compared(runs["ours"], runs[name]) for name in others}
    for name, row in rows.items():
        least = "" if row["reached"] else "at least "
        console.print(
            f"{market.name}: ours was {least}{row['ratio']:.0f} times as fast as {name} in training"
            f", {least}{row['ratio_with_setup']:.1f} times with set-up and compilation. "
            f"{name}: {DIFFERS[name]}",
            highlight=False,
        )
    return {
        "market": market.name,
        "goal": goal,
        "bar": BAR,
        "runs": [asdict(run) for group in runs.values() for run in group],
        "comparisons": rows,
        "not_measured": absent,
        "passed": "sb3" in rows and rows["sb3"]["ratio"] >= BAR,
    }


def _all_reached(runs: Sequence[Run]) -> bool:
    return all(run.reached for run in runs)


def _told(run: Run, goal: float) -> str:
    verdict = f"reached {goal:.0%}" if run.reached else f"gave up at {run.share:.1%}"
    return (
        f"{run.learner} seed {run.seed} {verdict} of the optimum after {run.seconds:.1f} s of "
        f"training ({run.steps:,} steps), set up in {run.setup_seconds:.1f} s"
    )


def _compared(ours: Sequence[Run], theirs: Sequence[Run]) -> dict[str, Any]:
    """Medians over seeds. Set-up is the first seed's, which compiled; it is nobody's second."""

    def ratio(setup: Callable[[Sequence[Run]], float]) -> float:
        pairs = zip(ours, theirs, strict=True)
        return statistics.median(
            (setup(theirs) + b.seconds) / (setup(ours) + a.seconds) for a, b in pairs
        )

    return {
        "ratio": ratio(lambda runs: 0.0),
        "ratio_with_setup": ratio(lambda runs: runs[0].setup_seconds),
        "reached": _all_reached(theirs),
    }
