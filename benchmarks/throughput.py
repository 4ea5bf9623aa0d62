"""Steps per second: the environment alone, with the policy, and with learning.

    python -m benchmarks.throughput                                    # all sweeps, some minutes
    python -m benchmarks.throughput --envs 8 64 512 --seeds --symbols  # environments alone
    python -m benchmarks.throughput --config throughput --envs 2048 --seeds 2 --symbols

Three sweeps on the embedded synthetic market: environments of one agent; agents of several seeds;
agents of several symbols, the latter two with the environments of the config. Each figure is the
median of timed calls after a warm-up call, in environment steps of all environments and agents a
second. Compare columns of one run; other work on the machine changes them all.

Rollouts are shortened where there would be more than two million steps in one, and minibatches
grow with the rollout, so that an epoch never has more of them than the config asks for.

Operations and bytes of a step are counted (`benchmarks.costs`), the machine's ceilings are measured
on the spot, and the shares say how much of them was reached. The knee is the smallest number of
environments that comes within a fifth of the best.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from agents.learner import Learner, TrainState
from agents.rollout import collect, new_accounts, new_episodes
from benchmarks.costs import COLUMNS, Ceilings, Cost, costs, measured_ceilings
from benchmarks.measure import seconds_per_call, write_results
from envs.actions import NUM_ACTIONS
from envs.market import Quote
from envs.trading import TradingParams, TradingState
from jaxtrader import api
from jaxtrader.config import TrainingConfig, default_config_path, load_config, replace_settings
from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.placement import over_agents
from jaxtrader.program import Program, agent_keys, build_program, hyperparameters
from jaxtrader.runtime import use_compilation_cache, use_cpu_cores

MOST_STEPS = 2**21  # of one rollout
KNEE = 0.8  # share of the best
TITLES: dict[str, str] = dict(
    zip(COLUMNS, ("environment only", "+ policy", "+ learning"), strict=True)
)


@dataclass(frozen=True)
class Arguments:
    """Measure environment, rollout and training steps per second."""

    envs: tuple[int, ...] = (1, 8, 64, 512, 4096, 65_536)
    """Environments of one agent; one row each."""
    seeds: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of seeds; one row each."""
    symbols: tuple[int, ...] = (1, 4, 16)
    """Numbers of symbols; one row each."""
    repeats: int = 3
    """Timed calls of which the median counts."""
    config: Path = field(default_factory=default_config_path)
    """YAML file with settings, or the name of a preset."""
    output: Path | None = None
    """JSON file to write; none: print only."""
    plot: Path | None = None
    """PNG file to draw; none: no plot."""


Walk = tuple[TradingState, jax.Array]
"""Accounts [N], and sums f32[N] of what agents were shown and paid, which has it all computed."""


def start_walk(state: TradingState) -> Walk:
    """Before the first step of N environments."""
    return state, jnp.zeros(state.bar.shape[0])


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
        state = new_accounts(env, state, env.is_terminated(state, params))
        account = account_features(state, params, quote.close)
        mask = action_mask(state, params, quote.close)
        after, outcome = advance(state, action, quote, params)
        sums += account.sum(axis=-1) + mask.sum(axis=-1) + outcome.reward
        return (after, sums), outcome.truncated

    def block(carry: tuple[jax.Array, Walk], _: None) -> tuple[tuple[jax.Array, Walk], None]:
        key, walk = carry
        key, key_actions, key_starts = jax.random.split(key, 3)
        bars = walk[0].bar + jnp.arange(length)[:, None]
        # One random number an action, as in training; `randint` draws two.
        actions = jnp.int32(NUM_ACTIONS * jax.random.uniform(key_actions, bars.shape))
        quotes = env.quote(walk[0].symbol, bars, params)
        (state, sums), truncated = jax.lax.scan(step, walk, (actions, quotes))
        state = new_accounts(env, state, env.is_terminated(state, params))
        return (key, (new_episodes(key_starts, env, params, state, truncated[-1]), sums)), None

    return jax.lax.scan(block, (key, walk), length=learner.shape.num_blocks)[0][1]


def act(learner: Learner, state: TrainState, params: TradingParams) -> TrainState:
    """One rollout of an agent, all of whose experience is made use of, but not to learn."""
    key, key_collect = jax.random.split(state.key)
    walkers, rollout = collect(
        key_collect, learner.networks, state.params, learner.env, params, state.walkers,
        learner.shape.num_blocks, learner.shape.block_length,
        learner.embeddings(state.params, params),
    )  # fmt: skip
    # What nothing is made of, XLA would leave out.
    total = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(rollout))
    scale = state.return_scale
    scale = replace(scale, mean=scale.mean + 0.0 * total)
    return replace(state, key=key, walkers=walkers, return_scale=scale)


def scaled(config: TrainingConfig, num_envs: int) -> TrainingConfig:
    """The settings with another number of environments; see the module."""
    ppo = config.ppo
    minibatches = max(ppo.num_envs * ppo.rollout_steps // ppo.batch_size, 1)
    rollout_steps = ppo.rollout_steps
    while num_envs * rollout_steps > MOST_STEPS and rollout_steps % 2 == 0:
        rollout_steps //= 2
    steps = num_envs * rollout_steps
    return replace_settings(
        config,
        "ppo",
        num_envs=num_envs,
        rollout_steps=rollout_steps,
        batch_size=max(steps // minibatches, min(ppo.batch_size, steps)),
    )


def measure(program: Program, num_seeds: int, repeats: int) -> dict[str, tuple[float, float]]:
    """By column, (steps a second of all agents together, seconds of the first call beyond that)."""
    learner, placement, params = program.learner, program.placement, program.params["train"]
    hyper = hyperparameters(program.config, 100_000)
    symbols = program.dataset.symbols

    def start() -> TrainState:
        return program.initialize(agent_keys(symbols, tuple(range(num_seeds))), params, hyper)

    @partial(jax.jit, donate_argnums=0)
    def wander(walkers: tuple[jax.Array, Walk], params: TradingParams) -> tuple[jax.Array, Walk]:
        def agent(walker: tuple[jax.Array, Walk], params: TradingParams):
            key, key_walk = jax.random.split(walker[0])
            return key, walk(learner, params, walker[1], key_walk)

        return over_agents(agent, placement)(walkers, params)

    @partial(jax.jit, donate_argnums=0)
    def play(agents: TrainState, params: TradingParams) -> TrainState:
        return over_agents(partial(act, learner), placement)(agents, params)

    agents = start()
    tables, once = program.embeddings(agents.params, params), jnp.int32(1)
    walks = jax.vmap(jax.vmap(start_walk))(agents.walkers.state)
    calls = {
        "environment": (lambda x: wander(x, params), (agents.key, walks)),
        "rollout": (lambda x: play(x, params), start()),
        "training": (
            lambda x: program.run_updates(x, params, hyper, once, tables)[0],
            start(),
        ),
    }
    steps = learner.shape.steps_per_update * len(symbols) * num_seeds
    found = {}
    for column, (call, carry) in calls.items():
        first, later, _ = seconds_per_call(call, carry, repeats)
        found[column] = (steps / later, first - later)
    return found


def row(
    config: TrainingConfig, num_seeds: int, num_symbols: int, repeats: int, ceilings: Ceilings
) -> dict[str, Any]:
    """One line of a table, as JSON holds it."""
    symbols = tuple(f"SYNTH{number}" for number in range(num_symbols))
    market = api.synthetic_market(symbols, config)
    program = build_program(config, market, num_seeds=num_seeds)
    alone = api.synthetic_market(symbols[:1], config)
    taken = costs(build_program(config, alone, devices=jax.devices()[:1]))
    found = measure(program, num_seeds, repeats)
    columns = {
        column: {
            "steps_per_second": rate,
            "compile_seconds": compiled,
            **asdict(taken[column]),
            **shares(taken[column], rate, ceilings),
        }
        for column, (rate, compiled) in found.items()
    }
    ppo = config.ppo
    return {
        "envs": ppo.num_envs,
        "seeds": num_seeds,
        "symbols": num_symbols,
        "rollout_steps": ppo.rollout_steps,
        "batch_size": ppo.batch_size,
        "devices": program.placement.mesh.size,
        "columns": columns,
    }


def shares(cost: Cost, steps_per_second: float, ceilings: Ceilings) -> dict[str, Any]:
    """How much of the ceilings was reached."""
    return {
        "limit": cost.limit(ceilings),
        "share_of_limit": cost.least_seconds(ceilings) * steps_per_second,
        "share_of_matmul_ceiling": cost.flops * steps_per_second / ceilings.flops_per_second,
    }


def knee(rows: Sequence[Mapping[str, Any]], column: str) -> int:
    """The smallest number of environments with `KNEE` of the most steps a second."""
    rates = {row["envs"]: row["columns"][column]["steps_per_second"] for row in rows}
    return min(envs for envs, rate in rates.items() if rate >= KNEE * max(rates.values()))


def table(sweep: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Steps a second by column, and what share of its ceiling each column has reached."""
    table = Table(sweep, *TITLES.values(), "of the ceiling")
    for row in rows:
        columns = row["columns"].values()
        table.add_row(
            f"{row[sweep]:,}",
            *(f"{each['steps_per_second']:,.0f}" for each in columns),
            " ".join(f"{each['share_of_limit']:.0%}" for each in columns),
        )
    return table


def draw(path: Path, sweeps: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Steps a second of every sweep, both axes logarithmic, with the knee in each column."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(sweeps), 3.8), layout="constrained")
    axes = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for ax, (sweep, rows) in zip(axes, sweeps.items(), strict=True):
        at = [row[sweep] for row in rows]
        for column, title in TITLES.items():
            rates = [row["columns"][column]["steps_per_second"] for row in rows]
            [line] = ax.loglog(at, rates, "o-", markersize=4, label=title)
            if sweep == "envs":
                where = at.index(knee(rows, column))
                ax.plot(at[where], rates[where], "o", markersize=10, mfc="none", c=line.get_color())
        ax.set_xlabel(sweep)
        ax.set_xticks(at, [f"{each:,}" for each in at])
        ax.minorticks_off()
        ax.grid(which="major", alpha=0.3)
    axes[0].set_ylabel("steps per second")
    if "envs" in sweeps:
        axes[0].plot([], [], "o", markersize=10, mfc="none", c="grey", label="knee")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = tyro.cli(Arguments, args=argv, description=__doc__, prog="benchmarks.throughput")
    counts = (*arguments.envs, *arguments.seeds, *arguments.symbols)
    console = Console()
    try:
        if not counts or arguments.repeats < 1 or min(counts) < 1:
            raise ConfigError(
                f"--envs {arguments.envs} --seeds {arguments.seeds} --symbols {arguments.symbols} "
                f"--repeats {arguments.repeats}: give 1 or more each"
            )
        use_compilation_cache()
        use_cpu_cores(max((1, *arguments.seeds, *arguments.symbols)))
        config = load_config(arguments.config)
        ceilings = measured_ceilings(config.network.precision)
        console.print(
            f"ceilings: {ceilings.flops_per_second / 1e9:,.0f} GFLOP/s, "
            f"{ceilings.bytes_per_second / 1e9:,.0f} GB/s"
        )
        settings = {
            "envs": [(scaled(config, envs), 1, 1) for envs in arguments.envs],
            "seeds": [(config, seeds, 1) for seeds in arguments.seeds],
            "symbols": [(config, 1, symbols) for symbols in arguments.symbols],
        }
        sweeps: dict[str, list[dict[str, Any]]] = {}
        for sweep, several in settings.items():
            for each in several:
                with console.status(f"{sweep}: {len(sweeps.get(sweep, ())) + 1} of {len(several)}"):
                    measured = row(*each, arguments.repeats, ceilings)
                sweeps.setdefault(sweep, []).append(measured)
    except JaxtraderError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    for sweep, rows in sweeps.items():
        console.print(table(sweep, rows))
    console.print(
        "Steps per second; at the right, for each column, the share of what the scarcer of "
        "arithmetic and memory would allow at the ceilings above.",
        soft_wrap=True,
    )
    knees: dict[str, int] = {}
    if "envs" in sweeps:
        knees = {column: knee(sweeps["envs"], column) for column in COLUMNS}
        console.print(
            f"knee, {KNEE:.0%} of the best: "
            + ", ".join(f"{TITLES[column]} {envs:,}" for column, envs in knees.items())
            + " environments",
            soft_wrap=True,
        )
    if arguments.plot is not None:
        draw(arguments.plot, sweeps)
        console.print(f"drawn: {arguments.plot}")
    write_results(
        arguments.output,
        "throughput",
        {
            "repeats": arguments.repeats,
            "config": config.to_dict(),
            "ceilings": asdict(ceilings),
            "knees": knees,
            **sweeps,
        },
        console,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
