"""From the metrics of the compiled program to the rows of the journal."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pandas as pd

from agents.learner import RUNNING, UpdateMetrics
from agents.rollout import first_of_groups
from jaxtrader.hosts import to_host
from jaxtrader.runs import TrainingRun
from jaxtrader.telemetry import episode_table, host_table


def record_updates(
    run: TrainingRun,
    metrics: UpdateMetrics,
    first_update: int,
    n: int,
    sharpe: np.ndarray | None,
) -> None:
    """Appends n updates of every agent to the journal."""
    shape = run.program.learner.shape
    steps_per_update = shape.steps_per_update
    watched = metrics.finished.count.shape[-1]
    environments = first_of_groups(np.arange(shape.num_envs), watched, shape.env_shards)
    weights = to_host(run.program.params["train"].reward.weights)
    halt, halted_at = to_host((run.state.halt, run.state.halted_at))
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
            rows = _episodes(agent, own, symbol, seed, numbers, steps_per_update, environments)
            # A halted agent is frozen: what the program says of it afterwards is no news.
            last = halted_at[s, k] if halt[s, k] != RUNNING else numbers[-1]
            table = table.assign(validation_sharpe=validated)
            updates.append(table[table["update"] <= last])
            episodes.append(rows[rows["update"] <= last])
            run.recorded_episodes[s, k] += len(episodes[-1])
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
    environments: np.ndarray,
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
        "env": environments[env],
    }
    return episode_table(rows.diary.statistics, rows.diary.entropy_sum, weights, frame)
