"""Does it learn? The share of a known optimum that PPO reaches, on bars that it never saw.

    python -m benchmarks.learning                        # the planted trend, all defaults
    python -m benchmarks.learning --markets all          # the whole family
    python -m benchmarks.learning --reward professional  # another reward, judged by money alike
    python -m benchmarks.learning --markets null         # nothing to learn: nothing may be gained
    python -m benchmarks.learning --config throughput    # a preset, or settings of your own
    python -m benchmarks.learning --precision bfloat16   # what half the digits cost
    python -m benchmarks.learning --peers --seeds 1 2    # who is first: ours or Stable-Baselines3

A planted market is a Markov chain that moves prices and shows in the features, so the best that any
policy can expect is computed by dynamic programming (envs.oracle). The share is of what the optimal
plan earns on the same bars. Exit status: 0 when every seed reaches 90 % of it on every market (and
nobody gains on the null market), else 1. With `--peers`: 0 when every seed of ours reaches 90 % and
Stable-Baselines3's PPO takes at least 30 times as long.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.measure import write_results
from benchmarks.peers.race import race
from jaxtrader.config import PPOConfig, TrainingConfig, load_config, replace_settings
from jaxtrader.data.planted import PROBES, null, planted_dataset
from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.evaluation.probes import (
    Probe,
    learn_probe,
    log_wealth_out_of_sample,
    probe_config,
)
from jaxtrader.runtime import use_compilation_cache, use_cpu_cores, use_full_precision
from jaxtrader.telemetry import audit_warnings, reward_audit

GOAL = 0.90
NULL_HISTORIES = 20
NULL_BARS = (24_000, 2_000, 25_601)


@dataclass(frozen=True)
class Lesson:
    """What learning a market takes."""

    timesteps: int = PPOConfig().total_timesteps  # of each seed
    ppo: dict[str, Any] = field(default_factory=dict)  # settings that differ from the defaults


# In small minibatches a weak signal drowns in noise, which ten epochs then learn by heart.
LARGE_BATCHES = {"num_envs": 64, "batch_size": 1024, "num_epochs": 4, "learning_rate": 6e-4}
LESSONS = {
    "trend": Lesson(),
    "costly": Lesson(),
    "trap": Lesson(),
    "faint": Lesson(4_000_000, LARGE_BATCHES),
    "hidden": Lesson(2_000_000, LARGE_BATCHES),
    "regime": Lesson(2_000_000, LARGE_BATCHES),
    "null": Lesson(100_000),
}


@dataclass(frozen=True)
class Arguments:
    """Train on planted markets and compare with their exact optimum."""

    markets: tuple[
        Literal["trend", "faint", "hidden", "costly", "regime", "trap", "null", "all"], ...
    ] = ("trend",)
    """Markets to learn; see jaxtrader/data/planted.py."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Seeds, trained together in one program. The null market has 20 histories and one seed."""
    timesteps: int | None = None
    """Environment steps of each seed. Default: by market (see LESSONS), or those of --config."""
    config: Path | None = None
    """YAML file with settings, or the name of a preset. Default: settings by market (LESSONS)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic in training; judged is in float32."""
    history: int = 1
    """Which history of the markets to learn and to be judged on. The settings were chosen on 0."""
    reward: Literal["log_wealth", "professional", "differential_sharpe"] = "log_wealth"
    """Reward that is maximised; judged is always the money."""
    peers: bool = False
    """Measure instead who is first at 90 %, ours or Stable-Baselines3's PPO, in seconds of training
    on the same bars; needs pip install -e '.[peers]'. Some minutes for each seed."""
    peer_seconds: float = 1800.0
    """With --peers: training after which a run of Stable-Baselines3 gives up."""
    output: Path | None = None
    """JSON file to write; none: print only."""


def report_probe(probe: Probe, console: Console) -> dict[str, Any]:
    """Prints one market's table; returns it for JSON."""
    shares, intervals = probe.shares, probe.intervals()
    name = probe.market.name
    table = Table("market", "seed", "share of the optimum", "95 % interval", "", title=None)
    for seed, share, (low, high) in zip(probe.run.seeds, shares, intervals, strict=True):
        verdict = "learnt" if share >= GOAL else "not learnt"
        table.add_row(name, str(seed), f"{share:.3f}", f"{low:.3f} to {high:.3f}", verdict)
    console.print(table)
    training = probe.run.episodes_table().sort_values("update", kind="stable")
    audit = reward_audit(training)
    console.print(
        f"{name} ({probe.market.summary}): optimum {probe.optimum:.5f} expected, "
        f"{probe.optimal.mean():.5f} attained on these {probe.optimal.size} test episodes; "
        f"{probe.run.steps:,} steps per seed, {probe.seconds:.0f} s with compilation"
    )
    correlation, parts = audit["rank_correlation"], audit["component_shares"]
    if correlation is not None:
        assert isinstance(parts, dict)
        console.print(
            f"reward against money in training: rank correlation {correlation:.2f}; shares "
            + ", ".join(f"{part} {share:.0%}" for part, share in parts.items())
        )
    warnings = audit_warnings(audit, training)
    for warning in warnings:
        console.print(f"warning: {warning}")
    return {
        "market": name,
        "seeds": list(probe.run.seeds),
        "steps_per_seed": probe.run.steps,
        "shares": shares.tolist(),
        "intervals": intervals.tolist(),
        "optimum_expected": probe.optimum,
        "optimum_attained": float(probe.optimal.mean()),
        "episodes": probe.optimal.size,
        "seconds": probe.seconds,
        "reward_audit": audit,
        "warnings": warnings,
        "passed": bool((shares >= GOAL).all()),
    }


def learn_null(
    config: TrainingConfig, timesteps: int, history: int, console: Console
) -> dict[str, Any]:
    """20 agents, each on a martingale of its own: their mean gain must not be above zero."""
    market = null()
    dataset, _ = planted_dataset(
        market, history * NULL_HISTORIES, histories=NULL_HISTORIES, bars=NULL_BARS
    )
    rows = {}
    # From a start that mostly holds, most agents never come to trade here, which proves little.
    config = replace_settings(config, "network", hold_bias=0.0)
    for costs in ("retail", "free"):
        settings = replace_settings(probe_config(market, config), "environment", costs=costs)
        gains = log_wealth_out_of_sample(dataset, (1,), timesteps, settings)[:, 0]
        interval = stats.t.interval(
            0.95, len(gains) - 1, loc=gains.mean(), scale=max(stats.sem(gains), 1e-12)
        )
        idle = int((gains == 0.0).sum())
        rows[costs] = {
            "gains": gains.tolist(),
            "never_traded": idle,
            "mean": float(gains.mean()),
            "interval": [float(bound) for bound in interval],
            "passed": bool(interval[0] <= 0.0),
        }
        console.print(
            f"null market, {costs} costs, {len(gains)} agents, of which {idle} never traded out of "
            f"sample: mean log gain of an episode {gains.mean():+.6f}, 95 % interval "
            f"{interval[0]:+.6f} to {interval[1]:+.6f}: "
            + ("nothing gained" if interval[0] <= 0 else "GAINED: something leaks")
        )
    return {
        "market": market.name,
        "histories": NULL_HISTORIES,
        "steps_per_seed": timesteps,
        "costs": rows,
        "passed": all(row["passed"] for row in rows.values()),
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmarks.learning")
    began = time.perf_counter()
    use_compilation_cache()
    use_full_precision()
    use_cpu_cores(len(arguments.seeds))
    console = Console()
    family = [*PROBES] if arguments.peers else [*PROBES, "null"]
    names = family if "all" in arguments.markets else list(arguments.markets)
    rows = []
    try:
        if arguments.timesteps is not None and arguments.timesteps < 1:
            raise ConfigError(f"--timesteps {arguments.timesteps}: give at least 1")
        if not arguments.peer_seconds > 0:
            raise ConfigError(f"--peer-seconds {arguments.peer_seconds}: give more than 0")
        if arguments.peers and "null" in names:
            raise ConfigError("--peers: on the null market there is nothing to reach")
        config = TrainingConfig() if arguments.config is None else load_config(arguments.config)
        config = replace_settings(config, "reward", preset=arguments.reward)
        config = replace_settings(config, "network", precision=arguments.precision)
        for name in names:
            lesson = LESSONS[name]
            if arguments.config is not None:
                lesson = Lesson(config.ppo.total_timesteps)
            settings = replace_settings(config, "ppo", **lesson.ppo)
            steps = arguments.timesteps or lesson.timesteps
            if arguments.peers:
                row = race(
                    PROBES[name](),
                    settings,
                    arguments.seeds,
                    steps,
                    history=arguments.history,
                    goal=GOAL,
                    budget=arguments.peer_seconds,
                    console=console,
                )
            elif name == "null":
                row = learn_null(settings, steps, arguments.history, console)
            else:
                market = PROBES[name]()
                probe = learn_probe(
                    market,
                    arguments.seeds,
                    steps,
                    settings,
                    history=arguments.history,
                    console=console,
                )
                row = report_probe(probe, console)
            rows.append({**row, "ppo_settings": lesson.ppo})
    except JaxtraderError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    for row in rows:
        console.print(f"{row['market']}: {'passed' if row['passed'] else 'FAILED'}")
    seconds = time.perf_counter() - began
    console.print(f"{seconds:.0f} s in all")
    write_results(
        arguments.output,
        "learning",
        {
            "reward": arguments.reward,
            "history": arguments.history,
            "config": config.to_dict(),
            "seconds": seconds,
            "rows": rows,
        },
        console,
    )
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
