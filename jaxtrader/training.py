"""The host loop: the only Python loop in training. It calls the compiled program and does the I/O.

Not jittable, and not meant to be: everything that is lives in `agents.learner`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from agents.learner import RUNNING
from jaxtrader.errors import JaxtraderError
from jaxtrader.evaluation.evaluate import validation_sharpe
from jaxtrader.gates import STAGE5_GATES
from jaxtrader.hosts import agreed, anywhere, is_first, to_host
from jaxtrader.memory import explained
from jaxtrader.program import (
    MAX_UPDATES_PER_CALL,
    hyperparameters,
    updates_for,
)
from jaxtrader.progress import AgentStatus, TrainingProgress
from jaxtrader.provenance import git_commit, machine, versions
from jaxtrader.recording import record_updates
from jaxtrader.runs import TrainingRun, agent_name, jsonable, run_identity
from jaxtrader.telemetry import episode_means

SECONDS_PER_CALL = 2.0  # what a call of several updates aims at, so that the progress bar moves


class Interrupted(JaxtraderError):
    """The person pressed Ctrl-C; the state is saved, or without an output folder in `run` alone."""

    def __init__(self, message: str, run: TrainingRun | None = None):
        """`run` is what was interrupted, as it was after the call that was under way."""
        super().__init__(message)
        self.run = run


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

    Training ends early, at a checkpoint, once every agent has halted.

    Raises:
      Interrupted: Ctrl-C; the state after the call that was under way is saved first, where there
        is an output folder.
      CheckpointError, JaxtraderError: the output folder cannot be written.
      DeviceMemoryError: the device is full; the message says which setting to lower, and to what.
    """
    program = run.program
    total = updates_for(program.config, total_timesteps)
    hyper = hyperparameters(program.config, total)
    tables = program.embeddings(run.state.params, program.params["train"])
    steps_per_update = program.learner.shape.steps_per_update * len(list(run.agents))
    every = program.config.checkpoints.every
    compiles = run.compile_seconds == 0.0
    seconds_per_update, latest_sharpe, stop = math.inf, None, False
    announced: set[str] = set()

    with (
        _deferred_interrupt() as interrupted,
        TrainingProgress(total, console) as progress,
    ):
        # Checked where checkpoints are due, so that a run's end does not depend on its timing.
        while run.update < total and not (run.update % every == 0 and _all_halted(run)):
            to_checkpoint = every - run.update % every
            affordable = max(1, int(SECONDS_PER_CALL / seconds_per_update))
            n = agreed(min(to_checkpoint, total - run.update, affordable, MAX_UPDATES_PER_CALL))
            began = time.perf_counter()
            with explained(program, len(run.seeds)):
                run.state, metrics = program.run_updates(
                    run.state, program.params["train"], hyper, jnp.int32(n), tables
                )
                metrics = to_host(metrics)
            seconds = time.perf_counter() - began
            if run.compile_seconds == 0.0:
                run.compile_seconds = seconds
            else:
                seconds_per_update = seconds / n
                run.train_seconds += seconds
                run.timed_steps += n * steps_per_update
            stop = anywhere(bool(interrupted) or (should_stop is not None and should_stop()))
            first_update = run.update + 1
            run.update += n
            due = run.update % every == 0 or run.update == total
            sharpe = _validate(run) if due else None
            record_updates(run, metrics, first_update, n, sharpe)
            for name, reason in run.halted().items():
                if name not in announced:
                    announced.add(name)
                    console.print(f"{name} {reason}; its last good state is kept", soft_wrap=True)
            if due or stop:
                _save(run, sharpe)
            latest_sharpe = latest_sharpe if sharpe is None else sharpe
            progress.show(run.update, run.steps_per_second, _statuses(run, latest_sharpe))
            if stop:
                break
    if run.update < total and not stop:
        console.print(f"every agent has halted: trained to update {run.update} of {total}")
    if compiles and run.train_seconds:
        run.compile_seconds -= run.train_seconds / run.timed_steps * steps_per_update
    if stop:
        kept = (
            "the state is saved. Go on with the same command and --resume, or in Python with "
            "jaxtrader.train(..., resume=True)"
            if anywhere(bool(run.checkpoints))
            else "nothing is saved, for no output folder was given; what there is, is the `run` of "
            "this exception"
        )
        raise Interrupted(f"stopped after update {run.update} of {total}; {kept}", run)


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


def _all_halted(run: TrainingRun) -> bool:
    return bool((to_host(run.state.halt) != RUNNING).all())


def _validate(run: TrainingRun) -> np.ndarray:
    """Validates the current parameters and remembers those that are the best so far.

    Returns:
      Sharpe ratios [S, K]; NaN where undefined, -inf where an agent halted before the validation
      that came before: its parameters have been judged already.
    """
    params = run.state.params
    sharpe = validation_sharpe(run.program, params)
    halt, halted_at = to_host((run.state.halt, run.state.halted_at))
    stale = (halt != RUNNING) & (halted_at <= run.update - run.program.config.checkpoints.every)
    sharpe = np.where(stale, -math.inf, sharpe)
    score = np.where(np.isfinite(sharpe), sharpe, -math.inf)
    better = (score >= run.best_sharpe) & ~stale
    host = to_host(params)
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


def _save(run: TrainingRun, sharpe: np.ndarray | None) -> None:
    # On the device, picking an agent would compile a program for every shape of array.
    state = to_host(run.state)
    # To the key checker, picking one of several keys uses them all; saving uses none.
    state = dataclasses.replace(state, key=jax.random.clone(state.key))
    if not run.checkpoints or not is_first():
        return
    run.journal.sync()  # before any checkpoint that says these rows are there
    meta = {
        **run_identity(run.program),
        "config": jsonable(run.program.config.to_dict()),
        "seeds": list(run.seeds),
        "git_commit": git_commit(),
        "versions": versions(),
        "device": machine()["device"],
    }
    for (s, k), checkpoints in run.checkpoints.items():
        agent = jax.tree.map(lambda x, s=s, k=k: x[s, k], state)
        own = -math.inf if sharpe is None else float(sharpe[s, k])
        about = {**meta, "recorded_episodes": int(run.recorded_episodes[s, k])}
        checkpoints.save(run.update, agent, about, None if own == -math.inf else own)


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
