"""The host loop: the only Python loop in training. It calls the compiled program and does the I/O.

Not jittable, and not meant to be: everything that is lives in `agents.learner`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.console import Console

from agents.learner import HALT_REASONS, RUNNING, TrainState, UpdateMetrics
from jaxtrader.checkpoints import AgentCheckpoints, DamagedCheckpointError
from jaxtrader.config import TrainingConfig
from jaxtrader.errors import CheckpointError, JaxtraderError
from jaxtrader.evaluation.evaluate import validation_sharpe
from jaxtrader.files import move_aside
from jaxtrader.gates import STAGE5_GATES
from jaxtrader.journal import Journal
from jaxtrader.layout import OutputLayout
from jaxtrader.program import (
    MAX_UPDATES_PER_CALL,
    Program,
    agent_keys,
    hyperparameters,
    updates_for,
)
from jaxtrader.progress import AgentStatus, TrainingProgress
from jaxtrader.provenance import git_commit, versions
from jaxtrader.telemetry import episode_means, episode_table, host_table

SECONDS_PER_CALL = 2.0  # what a call of several updates aims at, so that the progress bar moves


class Interrupted(JaxtraderError):
    """The person pressed Ctrl-C; the state is saved."""


@dataclass(eq=False)
class TrainingRun:
    """Agents [S, K] and the record of their training."""

    program: Program
    seeds: tuple[int, ...]
    state: TrainState
    update: int
    journal: Journal
    checkpoints: dict[tuple[int, int], AgentCheckpoints]  # (symbol, seed) places; empty: in memory
    best_update: np.ndarray  # int[S, K]
    best_sharpe: np.ndarray  # float[S, K], on the validation split; -inf before the first
    best_params: Any  # network parameters [S, K, ...] on the host
    compile_seconds: float = 0.0  # first call less one later call of the same length
    train_seconds: float = 0.0  # time in the compiled program after the first call
    timed_steps: int = 0  # environment steps of all agents in that time

    @property
    def agents(self) -> Iterator[tuple[int, int, str, int]]:
        """(symbol place, seed place, symbol, seed) of every agent."""
        for s, symbol in enumerate(self.program.dataset.symbols):
            for k, seed in enumerate(self.seeds):
                yield s, k, symbol, seed

    @property
    def steps(self) -> int:
        """Environment steps of each seed so far."""
        return self.update * self.program.learner.shape.steps_per_update

    @property
    def steps_per_second(self) -> float:
        """Environment steps of all agents a second, without compilation; NaN in the first call."""
        return self.timed_steps / self.train_seconds if self.train_seconds else math.nan

    def halted(self) -> dict[str, str]:
        """Reason by agent, for those that were stopped."""
        halt, at = jax.device_get((self.state.halt, self.state.halted_at))
        return {
            agent_name(self.program, symbol, seed): (
                f"halted at update {at[s, k]}: {HALT_REASONS[int(halt[s, k])]}"
            )
            for s, k, symbol, seed in self.agents
            if halt[s, k] != RUNNING
        }

    def updates_table(self) -> pd.DataFrame:
        """One row per agent and update."""
        return pd.concat([t.table for t in self.journal.updates.values()], ignore_index=True)

    def episodes_table(self) -> pd.DataFrame:
        """One row per training episode of every agent."""
        return pd.concat([t.table for t in self.journal.episodes.values()], ignore_index=True)

    def close(self) -> None:
        """Lets go of the checkpoint folders."""
        for checkpoints in self.checkpoints.values():
            checkpoints.close()


def agent_name(program: Program, symbol: str, seed: int) -> str:
    """How a person tells agents apart."""
    return f"seed {seed}" if len(program.dataset.symbols) == 1 else f"{symbol} seed {seed}"


def start_run(
    program: Program, seeds: tuple[int, ...], total_timesteps: int, layout: OutputLayout | None
) -> TrainingRun:
    """New agents. What an earlier run left in the same place is moved aside."""
    symbols = program.dataset.symbols
    keys = agent_keys(symbols, seeds)
    if layout is not None:
        for seed in seeds:
            move_aside(layout.logs(seed))
            for symbol in symbols:
                move_aside(layout.checkpoints(symbol, seed))
                for file in layout.policy_files(symbol, seed):
                    move_aside(file)
    hyper = hyperparameters(program.config, updates_for(program.config, total_timesteps))
    state = program.initialize(keys, program.params["train"], hyper)
    return _run(program, seeds, state, 0, layout)


def restore_run(
    program: Program, seeds: tuple[int, ...], layout: OutputLayout, *, to_train: bool
) -> TrainingRun:
    """The agents at the latest update of which every one has a readable checkpoint.

    Args:
      to_train: whether training goes on from there: later checkpoints and rows of the tables,
        which only some agents have, are then dropped. Otherwise nothing on disk is touched.

    Raises:
      CheckpointError: no such update, or checkpoints of other settings or data.
    """
    symbols = program.dataset.symbols
    for symbol in symbols:
        for seed in seeds:
            _require_checkpoints(layout, symbol, seed)
    shape = jax.eval_shape(
        program.initialize,
        agent_keys(symbols, seeds),
        program.params["train"],
        hyperparameters(program.config, 1),
    )
    run = _run(program, seeds, shape, 0, layout)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), shape)
    common = set.intersection(*(set(c.updates()) for c in run.checkpoints.values()))
    if not common:
        folders = ", ".join(str(c.folder) for c in run.checkpoints.values())
        raise CheckpointError(
            f"no update has a checkpoint of every agent in {folders}; train first (without "
            "--resume or --skip-training)"
        )
    expected = run_identity(program)
    problems = []
    for update in sorted(common, reverse=True):
        try:
            restored = {
                place: checkpoints.restore(update, like, expected)
                for place, checkpoints in run.checkpoints.items()
            }
        except DamagedCheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            _warn(f"falling back to update {update}: {problem}")
        rows = [[restored[s, k].state for k in range(len(seeds))] for s in range(len(symbols))]
        run.state = _stack([_stack(row) for row in rows])
        run.update = update
        run.journal.load(update)
        if to_train:
            for checkpoints in run.checkpoints.values():
                checkpoints.forget_after(update)
            run.journal.rewrite()
        _recall_best(run, like)
        return run
    raise CheckpointError(
        f"no checkpoint can be restored; train anew (without --resume): {'; '.join(problems)}"
    )


def stored_config(layout: OutputLayout, symbol: str, seed: int) -> TrainingConfig:
    """The settings with which an agent's best checkpoint was trained.

    Raises:
      CheckpointError: there is none.
    """
    folder = _require_checkpoints(layout, symbol, seed)
    checkpoints = AgentCheckpoints(folder)
    try:
        best = checkpoints.ranking()[0]
        meta = checkpoints.read_meta(best)
    finally:
        checkpoints.close()
    return TrainingConfig.from_dict(meta["config"], f"{folder}/{best}")


def _require_checkpoints(layout: OutputLayout, symbol: str, seed: int) -> Path:
    folder = layout.checkpoints(symbol, seed)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no checkpoints of {symbol} seed {seed}; train first (without --resume or "
            "--skip-training), or name the --output-dir of the run that did"
        )
    return folder


def _warn(message: str) -> None:
    Console(stderr=True).print(message, markup=False, soft_wrap=True)


def _stack(states: list[Any]) -> Any:
    """Stacks leaf by leaf, through the host.

    Restored arrays are committed to a device and new ones are not: mixed up, they would have the
    same program compiled twice.
    """

    def stack(*leaves: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
            data = stack(*map(jax.random.key_data, leaves))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaves[0]))
        return jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves]))

    return jax.tree.map(stack, *states)


def _run(
    program: Program,
    seeds: tuple[int, ...],
    state: TrainState,
    update: int,
    layout: OutputLayout | None,
) -> TrainingRun:
    symbols = program.dataset.symbols
    shape = (len(symbols), len(seeds))
    checkpoints, paths = {}, None
    if layout is not None:
        keep = program.config.checkpoints.keep_best
        checkpoints = {
            (s, k): AgentCheckpoints(layout.checkpoints(symbol, seed), keep)
            for s, symbol in enumerate(symbols)
            for k, seed in enumerate(seeds)
        }
        paths = {seed: (layout.updates(seed), layout.telemetry(seed)) for seed in seeds}
    return TrainingRun(
        program=program,
        seeds=seeds,
        state=state,
        update=update,
        journal=Journal(seeds, paths),
        checkpoints=checkpoints,
        best_update=np.full(shape, -1),
        best_sharpe=np.full(shape, -math.inf),
        best_params=None,
    )


def run_identity(program: Program) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it."""
    config = program.config.to_dict()
    return {
        "data_fingerprint": program.dataset.fingerprint,
        "feature_names": list(program.dataset.feature_names),
        **{
            section: _jsonable(config[section])
            for section in ("environment", "reward", "network", "guard")
        },
        "ppo": _jsonable({k: v for k, v in config["ppo"].items() if k != "total_timesteps"}),
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, list | tuple) else value


def train(
    run: TrainingRun,
    total_timesteps: int,
    console: Console,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Trains all agents until each has seen `total_timesteps` environment steps, rounded up.

    Every `checkpoints.every` updates, and at the end, all agents are validated on the whole
    validation split and saved: a checkpoint's Sharpe ratio is that of the parameters in it. One
    that an interruption makes in between has none, lest it competes for the best and the resumed
    run ends elsewhere than an uninterrupted one.

    Raises:
      Interrupted: Ctrl-C; the state after the call that was under way is saved first.
      CheckpointError, JaxtraderError: the output folder cannot be written.
    """
    program = run.program
    total = updates_for(program.config, total_timesteps)
    hyper = hyperparameters(program.config, total)
    steps_per_update = program.learner.shape.steps_per_update * len(list(run.agents))
    every = program.config.checkpoints.every
    compiles = run.compile_seconds == 0.0
    seconds_per_update, latest_sharpe = math.inf, None

    with (
        _deferred_interrupt() as interrupted,
        TrainingProgress(total, console) as progress,
    ):
        while run.update < total:
            to_checkpoint = every - run.update % every
            affordable = max(1, int(SECONDS_PER_CALL / seconds_per_update))
            n = min(to_checkpoint, total - run.update, affordable, MAX_UPDATES_PER_CALL)
            began = time.perf_counter()
            run.state, metrics = program.run_updates(
                run.state, program.params["train"], hyper, jnp.int32(n)
            )
            metrics = jax.device_get(metrics)
            seconds = time.perf_counter() - began
            if run.compile_seconds == 0.0:
                run.compile_seconds = seconds
            else:
                seconds_per_update = seconds / n
                run.train_seconds += seconds
                run.timed_steps += n * steps_per_update
            stop = bool(interrupted) or (should_stop is not None and should_stop())
            first_update = run.update + 1
            run.update += n
            due = run.update % every == 0 or run.update == total
            sharpe = _validate(run) if due else None
            _record(run, metrics, first_update, n, sharpe)
            if due or stop:
                _save(run, sharpe)
            latest_sharpe = latest_sharpe if sharpe is None else sharpe
            progress.show(run.update, run.steps_per_second, _statuses(run, latest_sharpe))
            if stop:
                break
    if compiles and run.train_seconds:
        run.compile_seconds -= run.train_seconds / run.timed_steps * steps_per_update
    if run.update < total:
        where = "" if run.checkpoints else " (in memory only: no output folder was given)"
        raise Interrupted(
            f"stopped after update {run.update} of {total}; the state is saved{where}. "
            "Go on with the same command and --resume"
        )


def cleared_gates(run: TrainingRun, total_timesteps: int, by: float = 0.8) -> dict[str, bool]:
    """Whether each agent's training episodes had cleared two gates at `by` of the run.

    Judged on the episodes that finished in the fifth of the run before that point: policy action
    entropy and voluntary trade rate at or above their gates. No finished episode: not cleared.
    """
    gates = {g.metric: g for g in STAGE5_GATES}
    watched = ("policy_action_entropy_mean", "voluntary_trade_rate")
    cleared = {}
    for *_, symbol, seed in run.agents:
        episodes = run.journal.episodes[seed].table
        if len(episodes):
            share = episodes["steps_done"] / total_timesteps
            late = (share > by - 0.2) & (share <= by)
            episodes = episodes[(episodes["symbol"] == symbol) & late]
        means = episode_means(episodes) if len(episodes) else {}
        cleared[agent_name(run.program, symbol, seed)] = bool(means) and all(
            gates[metric].passes(means[metric]) for metric in watched
        )
    return cleared


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Notes a first Ctrl-C instead of raising, so that the call under way can be saved."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, previous)  # a second one stops at once

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: a notebook's own handling stands
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, previous)


def _validate(run: TrainingRun) -> np.ndarray:
    """Validates the current parameters and remembers those that are the best so far."""
    params = run.state.params
    sharpe = validation_sharpe(run.program, params)
    score = np.where(np.isfinite(sharpe), sharpe, -math.inf)
    better = score >= run.best_sharpe
    host = jax.device_get(params)
    if run.best_params is None:
        run.best_params, better = host, np.ones_like(better)
    else:
        run.best_params = jax.tree.map(
            lambda new, old: np.where(
                better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old
            ),
            host,
            run.best_params,
        )
    run.best_update = np.where(better, run.update, run.best_update)
    run.best_sharpe = np.where(better, score, run.best_sharpe)
    return sharpe


def _recall_best(run: TrainingRun, like: TrainState) -> None:
    rows: list[list[Any]] = [[None] * len(run.seeds) for _ in run.program.dataset.symbols]
    for (s, k), checkpoints in run.checkpoints.items():
        for best in checkpoints.ranking(run.update):  # run.update itself is known to be whole
            try:
                rows[s][k] = checkpoints.restore(best, like).state.params
            except DamagedCheckpointError as error:
                _warn(f"taking the next best checkpoint: {error}")
                continue
            run.best_update[s, k] = best
            sharpe = checkpoints.validation_sharpe(best)
            run.best_sharpe[s, k] = sharpe if math.isfinite(sharpe) else -math.inf
            break
    run.best_params = jax.device_get(_stack([_stack(row) for row in rows]))


def _save(run: TrainingRun, sharpe: np.ndarray | None) -> None:
    if not run.checkpoints:
        return
    meta = {
        **run_identity(run.program),
        "config": _jsonable(run.program.config.to_dict()),
        "seeds": list(run.seeds),
        "git_commit": git_commit(),
        "versions": versions(),
    }
    for (s, k), checkpoints in run.checkpoints.items():
        # To the key checker, picking one of several keys uses them all; saving uses none.
        copy = dataclasses.replace(run.state, key=jax.random.clone(run.state.key))
        state = jax.tree.map(lambda x, s=s, k=k: x[s, k], copy)
        checkpoints.save(
            run.update, state, meta, math.nan if sharpe is None else float(sharpe[s, k])
        )


def _record(
    run: TrainingRun,
    metrics: UpdateMetrics,
    first_update: int,
    n: int,
    sharpe: np.ndarray | None,
) -> None:
    """Appends n updates of every agent to the journal."""
    steps_per_update = run.program.learner.shape.steps_per_update
    weights = jax.device_get(run.program.params["train"].reward.weights)
    halt, halted_at = jax.device_get((run.state.halt, run.state.halted_at))
    numbers = np.arange(first_update, first_update + n)
    for k, seed in enumerate(run.seeds):
        updates, episodes = [], []
        for s, symbol in enumerate(run.program.dataset.symbols):
            agent = jax.tree.map(lambda x, s=s, k=k: x[s, k, :n], metrics)
            table = _update_table(agent, symbol, seed, numbers, steps_per_update)
            validated = np.full(n, np.nan)
            if sharpe is not None:
                validated[-1] = sharpe[s, k]
            own = jax.tree.map(lambda x, s=s: x[s], weights)
            rows = _episodes(agent, own, symbol, seed, numbers, steps_per_update)
            # A halted agent is frozen: what the program says of it afterwards is no news.
            last = halted_at[s, k] if halt[s, k] != RUNNING else numbers[-1]
            table = table.assign(validation_sharpe=validated)
            updates.append(table[table["update"] <= last])
            episodes.append(rows[rows["update"] <= last])
        run.journal.append(seed, _by_update(updates), _by_update(episodes))


def _by_update(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows in an order that does not depend on how many updates a call happened to do."""
    return pd.concat(tables).sort_values("update", kind="stable")


def _update_table(
    m: UpdateMetrics, symbol: str, seed: int, numbers: np.ndarray, steps_per_update: int
) -> pd.DataFrame:
    return host_table(
        {
            "symbol": np.full(len(numbers), symbol),
            "seed": np.full(len(numbers), seed),
            "update": numbers,
            "steps": numbers * steps_per_update,
            "reward_mean": m.reward_mean,
            **{name: getattr(m.loss, name) for name in m.loss.__dataclass_fields__},
            "explained_variance": m.explained_variance,
            "learning_rate": m.learning_rate,
            "entropy_coef": m.entropy_coef,
            "policy_action_entropy": m.policy_entropy,
            "executed_action_entropy": m.action_entropy,
            "guard_triggered": m.guard.triggered,
            "guard_rescues": m.guard.rescues,
            "halt": m.halt,
            # An environment that finished two episodes in one block reports the last of them.
            "episodes_unreported": np.maximum(m.finished.count - 1, 0).sum(axis=(1, 2)),
        }
    )


def _episodes(
    m: UpdateMetrics,
    weights: Any,
    symbol: str,
    seed: int,
    numbers: np.ndarray,
    steps_per_update: int,
) -> pd.DataFrame:
    update, block, env = np.nonzero(m.finished.count)
    rows = jax.tree.map(lambda x: x[update, block, env], m.finished)
    number = numbers[update]
    frame = {
        "symbol": np.full(len(update), symbol),
        "seed": np.full(len(update), seed),
        "update": number,
        "steps_done": number * steps_per_update,
        "block": block,
        "env": env,
    }
    return episode_table(rows.statistics, rows.entropy_sum, weights, frame)


def _statuses(run: TrainingRun, sharpe: np.ndarray | None) -> dict[str, AgentStatus]:
    """The latest figures of every agent that has not halted before this call, for the display."""
    statuses = {}
    for s, k, symbol, seed in run.agents:
        updates, episodes = (
            table[table["symbol"] == symbol] if len(table) else table
            for table in (run.journal.updates[seed].tail, run.journal.episodes[seed].tail)
        )
        if not len(updates):
            continue
        last = updates.iloc[-1]
        guard = f"{int(last['guard_rescues'])} rescues" if last["guard_rescues"] else "watching"
        statuses[agent_name(run.program, symbol, seed)] = AgentStatus(
            episode_return=float(np.expm1(episodes["log_return"].mean()))
            if len(episodes)
            else math.nan,
            action_entropy=float(last["executed_action_entropy"]),
            guard=guard if last["halt"] == RUNNING else "HALTED",
            validation_sharpe=math.nan if sharpe is None else float(sharpe[s, k]),
        )
    return statuses


def output_layout(output_dir: str | Path | None) -> OutputLayout | None:
    """Paths under `output_dir`; None keeps everything in memory."""
    return None if output_dir is None else OutputLayout(Path(output_dir))
