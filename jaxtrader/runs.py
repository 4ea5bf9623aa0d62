"""A training run: its agents, its record, and how it begins or is taken up again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from rich.console import Console

from agents.learner import HALT_REASONS, RUNNING, TrainState
from jaxtrader.checkpoints import AgentCheckpoints, DamagedCheckpointError, check_meta
from jaxtrader.config import TrainingConfig
from jaxtrader.errors import CheckpointError
from jaxtrader.files import Lock, move_aside, remove_leftovers
from jaxtrader.hosts import is_first, to_host, wait_for_all
from jaxtrader.journal import Journal
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import (
    Program,
    agent_keys,
    hyperparameters,
    updates_for,
)
from jaxtrader.provenance import machine, versions


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
    best_params: Any  # network parameters [S, K, ...] on the host; None before the first
    recorded_episodes: np.ndarray  # int[S, K] rows that the table of episodes should have
    compile_seconds: float = 0.0  # first call less one later call of the same length
    train_seconds: float = 0.0  # time in the compiled program after the first call
    timed_steps: int = 0  # environment steps of all agents in that time
    locks: tuple[Lock, ...] = ()  # that no other process trains these seeds in the same place

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
        halt, at = to_host((self.state.halt, self.state.halted_at))
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
        """Lets go of the folders; the run cannot be trained any further."""
        for held in (*self.checkpoints.values(), *self.locks):
            held.close()


def agent_name(program: Program, symbol: str, seed: int) -> str:
    """How a person tells agents apart."""
    return f"seed {seed}" if len(program.dataset.symbols) == 1 else f"{symbol} seed {seed}"


def start_run(
    program: Program, seeds: tuple[int, ...], total_timesteps: int, layout: OutputLayout | None
) -> TrainingRun:
    """New agents. What an earlier run left in the same place is moved aside.

    Raises:
      JaxtraderError: another process trains one of the seeds there, or the folder cannot be
        written; what is in it is intact.
    """
    symbols = program.dataset.symbols
    keys = agent_keys(symbols, seeds)
    with _locked(layout, seeds) as locks:
        if layout is not None and is_first():
            # Checkpoints first: a kill in between must not leave any whose tables are gone.
            for symbol in symbols:
                for seed in seeds:
                    move_aside(layout.checkpoints(symbol, seed))
                    for file in layout.policy_files(symbol, seed):
                        move_aside(file)
            for seed in seeds:
                move_aside(layout.logs(seed))
        wait_for_all("what an earlier run left is moved aside")
        hyper = hyperparameters(program.config, updates_for(program.config, total_timesteps))
        state = program.initialize(keys, program.params["train"], hyper)
        return _run(program, seeds, state, 0, layout if is_first() else None, locks)


def restore_run(
    program: Program, seeds: tuple[int, ...], layout: OutputLayout, *, to_train: bool
) -> TrainingRun:
    """The agents at the latest update of which every one has a readable checkpoint.

    Where a kill came before every agent had its first one, that is the beginning.

    Args:
      to_train: whether training goes on from there: later checkpoints and rows of the tables,
        which only some agents have, are then dropped. Otherwise nothing on disk is touched, and
        another process may be training there.

    Raises:
      CheckpointError: no such update, or checkpoints of other settings or data.
      JaxtraderError: to train, and another process does, or the folder cannot be written.
    """
    symbols = program.dataset.symbols
    for symbol in symbols:
        for seed in seeds:
            _require_checkpoints(layout, symbol, seed)
    with _locked(layout if to_train else None, seeds) as locks:
        return _restored(program, seeds, layout, locks, to_train=to_train)


def _restored(
    program: Program,
    seeds: tuple[int, ...],
    layout: OutputLayout,
    locks: tuple[Lock, ...],
    *,
    to_train: bool,
) -> TrainingRun:
    symbols = program.dataset.symbols
    shape = jax.eval_shape(
        program.initialize,
        agent_keys(symbols, seeds),
        program.params["train"],
        hyperparameters(program.config, 1),
    )
    to_write = to_train and is_first()
    run = _run(program, seeds, shape, 0, layout, locks, read_only=not to_write)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), shape)
    found = [set(checkpoints.updates()) for checkpoints in run.checkpoints.values()]
    common = set.intersection(*found)
    if not common and to_train and len(set.union(*found)) <= 1:
        run.close()
        _warn("no agent, or not every one, has a first checkpoint yet: starting from the beginning")
        return start_run(program, seeds, program.config.ppo.total_timesteps, layout)
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
            for checkpoints in run.checkpoints.values():
                _check_identity(checkpoints, update, expected)
            restored = {
                place: checkpoints.restore(update, like)
                for place, checkpoints in run.checkpoints.items()
            }
        except DamagedCheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            _warn(f"falling back to update {update}: {problem}")
        rows = [[restored[s, k].state for k in range(len(seeds))] for s in range(len(symbols))]
        run.state = program.placement.states(_stack([_stack(row) for row in rows]))
        run.update = update
        run.journal.load(update)
        for place, checkpoint in restored.items():
            run.recorded_episodes[place] = checkpoint.meta.get("recorded_episodes", 0)
        if to_train:
            _check_journal(run, layout)
            _warn_of_origin(next(iter(restored.values())).meta)
        wait_for_all("every process has read the checkpoints")
        if to_write:
            for checkpoints in run.checkpoints.values():
                checkpoints.forget_after(update)
            for seed in seeds:
                remove_leftovers(layout.logs(seed))
                for symbol in symbols:
                    remove_leftovers(layout.agents(symbol), f"policy_seed_{seed}.*")
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
    checkpoints = AgentCheckpoints(folder, read_only=True)
    problems = []
    try:
        for best in checkpoints.ranking():
            try:
                return _config_of(checkpoints.read_meta(best), f"{folder}/{best}")
            except DamagedCheckpointError as error:
                problems.append(str(error))
    finally:
        checkpoints.close()
    raise CheckpointError(f"no checkpoint can be restored; train anew: {'; '.join(problems)}")


def _config_of(meta: Mapping[str, Any], where: str) -> TrainingConfig:
    """Settings that are newer than the checkpoint have their defaults, as they did without them."""
    values: Any = meta.get("config")
    return TrainingConfig.from_dict(values, where)


def _check_identity(
    checkpoints: AgentCheckpoints, update: int, expected: Mapping[str, Any]
) -> None:
    """Raises CheckpointError for a checkpoint of other settings, features or data."""
    where = f"{checkpoints.folder}/{update}"
    meta = checkpoints.read_meta(update)
    check_meta({**meta, **_settings_identity(_config_of(meta, where))}, expected, where)


def _warn_of_origin(meta: Mapping[str, Any]) -> None:
    """Says what made the checkpoints, where other bits may come of it."""
    stored, now = meta.get("versions") or {}, versions()
    differ = [
        f"{name} {stored.get(name, 'unknown')}, now {now[name]}"
        for name in now
        if stored.get(name) != now[name]
    ]
    device = machine()["device"]
    if meta.get("device", device) != device:
        _warn(
            f"the checkpoints were made on another device ({meta['device']}, now {device}): expect "
            "the run to end on other bits than an uninterrupted one"
        )
    if differ:
        _warn(
            "the checkpoints were made by other versions, so that the run may not end on the same "
            f"bits as an uninterrupted one: {'; '.join(differ)}"
        )


@contextlib.contextmanager
def _locked(layout: OutputLayout | None, seeds: Sequence[int]) -> Iterator[tuple[Lock, ...]]:
    """Locks for a run to hold; if none comes about, they are let go of.

    At once: a notebook keeps the last exception, and with it whatever its frames hold.
    """
    if layout is None or not is_first():
        yield ()
        return
    with contextlib.ExitStack() as undo:
        locks = [Lock(layout.lock(seed), f"trains seed {seed} there") for seed in seeds]
        for lock in locks:
            undo.callback(lock.close)
        yield tuple(locks)
        undo.pop_all()


def _check_journal(run: TrainingRun, layout: OutputLayout) -> None:
    """A seed's tables hold all symbols of one run: those of another must not be taken for its own.

    Where rows of either table are missing that were written before the checkpoint, it is said: the
    state is whole, and only the record stays incomplete.

    Raises:
      CheckpointError: a later run with other symbols has put its tables in the same place.
    """
    for seed, table in run.journal.updates.items():
        if len(table.table) and set(table.table["symbol"]) != set(run.program.dataset.symbols):
            raise CheckpointError(
                f"{layout.updates(seed)}: is the record of "
                f"{', '.join(sorted(set(table.table['symbol'])))} and not of the run to resume; a "
                "later run moved that one's tables aside: put them back, or train anew"
            )
    halt, halted_at = to_host((run.state.halt, run.state.halted_at))
    goes_on = (
        "training goes on, and the record stays incomplete unless you stop now and put the tables "
        "back"
    )
    for s, k, symbol, seed in run.agents:
        updates, episodes = (
            table.loc[table["symbol"] == symbol, "update"].tolist() if len(table) else []
            for table in (run.journal.updates[seed].table, run.journal.episodes[seed].table)
        )
        last = halted_at[s, k] if halt[s, k] != RUNNING else run.update
        missing = sorted(set(range(1, last + 1)) - set(updates))
        if missing:
            _warn(
                f"{layout.updates(seed)}: lacks {len(missing)} of the {last} updates of {symbol} "
                f"before the checkpoint, the first of them {missing[0]}; {goes_on}"
            )
        recorded = run.recorded_episodes[s, k]
        if len(episodes) < recorded:
            _warn(
                f"{layout.telemetry(seed)}: lacks {recorded - len(episodes)} of the {recorded} "
                f"episodes of {symbol} before the checkpoint; {goes_on}"
            )


def _require_checkpoints(layout: OutputLayout, symbol: str, seed: int) -> Path:
    folder = layout.checkpoints(symbol, seed)
    if not folder.is_dir():
        there = sorted(path.name for path in layout.agents(symbol).glob("seed_*") if path.is_dir())
        others = [name for name in there if ".until-" not in name]
        raise CheckpointError(
            f"{folder}: no checkpoints of {symbol} seed {seed}; there are "
            f"{', '.join(others[:8]) or 'none of other seeds either'}; train first (without "
            "--resume or --skip-training), or name the --output-dir of the run that did"
        )
    return folder


def _warn(message: str) -> None:
    if not is_first():
        return
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
    locks: tuple[Lock, ...],
    *,
    read_only: bool = False,
) -> TrainingRun:
    symbols = program.dataset.symbols
    shape = (len(symbols), len(seeds))
    checkpoints, paths = {}, None
    if layout is not None:
        keep = program.config.checkpoints.keep_best
        checkpoints = {
            (s, k): AgentCheckpoints(
                layout.checkpoints(symbol, seed), keep, read_only=read_only or not is_first()
            )
            for s, symbol in enumerate(symbols)
            for k, seed in enumerate(seeds)
        }
        if is_first():
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
        recorded_episodes=np.zeros(shape, int),
        locks=locks,
    )


def run_identity(program: Program) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it."""
    return {
        "feature_names": list(program.dataset.feature_names),
        **_settings_identity(program.config),
        "reward_function": program.reward_function,
        "data_fingerprint": program.dataset.fingerprint,
    }


def _settings_identity(config: TrainingConfig) -> dict[str, Any]:
    sections = jsonable(config.to_dict())
    del sections["ppo"]["total_timesteps"]
    return {name: sections[name] for name in ("environment", "reward", "network", "guard", "ppo")}


def jsonable(value: Any) -> Any:
    """`value` as JSON gives it back: tuples become lists."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    return [jsonable(item) for item in value] if isinstance(value, list | tuple) else value


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


def output_layout(output_dir: str | Path | None) -> OutputLayout | None:
    """Paths under `output_dir`; None keeps everything in memory."""
    return None if output_dir is None else OutputLayout(Path(output_dir))
