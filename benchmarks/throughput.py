"""Steps per second: the environment alone, with the policy, and with learning.

    python -m benchmarks.throughput --n-envs 8 64 512

Each figure is the median over repeats of one compiled call after a warm-up call, in environment
steps of all environments a second, for one agent on the embedded synthetic market. Compare columns
of one run; other work on the machine changes them all.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from agents.learner import Learner
from agents.rollout import Walkers, collect, new_accounts, new_episodes
from envs.actions import NUM_ACTIONS
from envs.market import Quote
from envs.trading import NUM_ACCOUNT_FEATURES, TradingParams, TradingState
from jaxtrader import api
from jaxtrader.config import TrainingConfig, default_config_path, load_config, replace_settings
from jaxtrader.data import Dataset
from jaxtrader.errors import JaxtraderError
from jaxtrader.files import timestamp, write_whole
from jaxtrader.program import build_program, hyperparameters
from jaxtrader.provenance import git_commit, machine, versions
from jaxtrader.reporting.summary import strict
from jaxtrader.runtime import use_compilation_cache


@dataclass(frozen=True)
class Arguments:
    """Measure environment, rollout and training steps per second."""

    n_envs: tuple[int, ...] = (8, 64, 512)
    """Environments of one agent; one row each."""
    repeats: int = 5
    """Timed calls of which the median counts."""
    config: Path = field(default_factory=default_config_path)
    """YAML file with settings."""
    output: Path | None = None
    """JSON file to write; none: print only."""


Walk = tuple[TradingState, tuple[jax.Array, jax.Array, jax.Array]]
"""Accounts [N], and sums of what their agents were shown and paid, which has it all computed."""


def start_walk(state: TradingState) -> Walk:
    """Before the first step of N environments."""
    count = state.bar.shape[0]
    sums = (jnp.zeros((count, NUM_ACCOUNT_FEATURES)), jnp.zeros((count, NUM_ACTIONS)))
    return state, (*sums, jnp.zeros(count))


def walk(learner: Learner, params: TradingParams, walk: Walk, key: jax.Array) -> Walk:
    """One rollout's steps of N environments with uniformly random actions and no networks.

    Account half, mask and reward are worked out at every step as in training.
    """
    env, length = learner.env, learner.shape.block_length
    advance = jax.vmap(env.advance, (0, 0, 0, None))
    account_features = jax.vmap(env.account_features, (0, None, 0))
    action_mask = jax.vmap(env.action_mask, (0, None, 0))

    def step(walk: Walk, inputs: tuple[jax.Array, Quote]) -> tuple[Walk, jax.Array]:
        (state, sums), (action, quote) = walk, inputs
        account = account_features(state, params, quote.close)
        mask = action_mask(state, params, quote.close)
        after, outcome = advance(state, action, quote, params)
        sums = jax.tree.map(jnp.add, sums, (account, mask, outcome.reward))
        return (new_accounts(env, after, outcome.terminated), sums), outcome.truncated

    def block(carry: tuple[jax.Array, Walk], _: None) -> tuple[tuple[jax.Array, Walk], None]:
        key, walk = carry
        key, key_actions, key_starts = jax.random.split(key, 3)
        bars = walk[0].bar + jnp.arange(length)[:, None]
        actions = jax.random.randint(key_actions, bars.shape, 0, NUM_ACTIONS)
        quotes = env.quote(walk[0].symbol, bars, params)
        (state, sums), truncated = jax.lax.scan(step, walk, (actions, quotes))
        return (key, (new_episodes(key_starts, env, params, state, truncated[-1]), sums)), None

    return jax.lax.scan(block, (key, walk), length=learner.shape.num_blocks)[0][1]


def seconds_per_call(call: Callable[[Any], Any], carry: Any, repeats: int) -> tuple[float, float]:
    """(first call, median of the later calls) of a function that maps a carry to the next."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        carry = jax.block_until_ready(call(carry))
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])


def measure(config: TrainingConfig, market: Dataset, repeats: int) -> dict[str, float]:
    """Steps a second of one agent with the given settings, by column."""
    program = build_program(config, market)
    learner = program.learner
    params = jax.tree.map(lambda x: x[0], program.params["train"])
    hyper = hyperparameters(config, 1_000)
    state = jax.jit(learner.init)(jax.random.key(0), params, hyper)
    key = jax.random.key(1)

    walk_call = jax.jit(partial(walk, learner))
    accounts = start_walk(state.walkers.state)

    @jax.jit
    def rollout_call(walkers: Walkers, params: TradingParams) -> Walkers:
        walkers, rollout = collect(
            key, learner.networks, state.params, learner.env, params, walkers,
            learner.shape.num_blocks, learner.shape.block_length,
        )  # fmt: skip
        # The rollout is part of the work: without a use of it XLA would drop most of it.
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(rollout))
        return Walkers(
            jax.tree.map(lambda x: x + 0.0 * total if x.dtype == jnp.float32 else x, walkers.state),
            walkers.diary,
        )

    update_call = jax.jit(lambda state, params: learner.update(state, params, hyper)[0])

    steps = learner.shape.steps_per_update
    figures = {}
    for name, call, carry in (
        ("environment", lambda s: walk_call(params, s, key), accounts),
        ("rollout", lambda w: rollout_call(w, params), state.walkers),
        ("training", lambda s: update_call(s, params), state),
    ):
        first, later = seconds_per_call(call, carry, repeats)
        figures[f"{name}_steps_per_second"] = steps / later
        figures[f"{name}_compile_seconds"] = first - later
    return figures


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmarks.throughput")
    use_compilation_cache()
    console = Console()
    table = Table("environments", "environment only", "+ policy", "+ learning")
    rows = []
    try:
        base = load_config(arguments.config)
        market = api.synthetic_market(config=base)
        for n_envs in arguments.n_envs:
            config = replace_settings(base, "ppo", num_envs=n_envs)
            figures = measure(config, market, arguments.repeats)
            rows.append({"n_envs": n_envs, **figures})
            table.add_row(
                f"{n_envs:,}",
                *(
                    f"{figures[f'{name}_steps_per_second']:,.0f}"
                    for name in ("environment", "rollout", "training")
                ),
            )
    except JaxtraderError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    console.print(table)
    console.print("steps per second, medians")
    if arguments.output is not None:
        result = {
            "benchmark": "throughput",
            "created": timestamp(),
            "git_commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "repeats": arguments.repeats,
            "config": base.to_dict(),
            "rows": rows,
        }
        write_whole(arguments.output, json.dumps(strict(result), indent=2) + "\n")
        console.print(f"written: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
