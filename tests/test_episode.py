"""Statistics of stretches of steps: each number again from a plain list of steps, by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference_simulator import COMPONENTS, ENDED, FORCED
from trading_episodes import ENV

from agents.rollout import Diary, keep_diary
from envs.episode import EpisodeStatistics, StepRecord, no_statistics, tally
from envs.execution import Fill
from envs.reward import RewardComponents

LENGTH, BLOCKS = 5, 6


def random_steps(seed: int, length: int) -> StepRecord:
    """Steps that no account would take, so that every field counts by itself."""
    rng = np.random.default_rng(seed)

    def number() -> np.ndarray:
        return rng.normal(0.0, 1.0, length).astype(np.float32)

    def integer(end: int) -> np.ndarray:
        return rng.integers(0, end, length, np.int32)

    closed = rng.random(length) < 0.6
    return StepRecord(
        action=integer(7),
        executed=integer(7),
        reason=integer(16),
        streak=integer(7),
        fill=Fill(
            shares=number(),
            price=number(),
            value=np.abs(number()),
            costs=np.abs(number()),
            realized_profit=number(),
            closed=closed,
            trade_profit=np.where(closed, number(), np.float32(0.0)),
        ),
        is_long=rng.random(length) < 0.5,
        equity=number(),
        drawdown=np.abs(number()),
        reward=number(),
        components=RewardComponents(**{name: number() for name in COMPONENTS}),
    )


def without_prices(steps: StepRecord) -> StepRecord:
    """The same steps beyond the data: all money is NaN."""
    return jax.tree.map(lambda x: np.full_like(x, np.nan) if x.dtype == np.float32 else x, steps)


def by_hand(steps: StepRecord, rows: Sequence[int]) -> dict[str, Any]:
    """The statistics of an episode of these rows of `steps`; at least one."""
    s = jax.tree.map(lambda x: np.asarray(x)[np.asarray(rows)], steps)
    profit = s.fill.trade_profit.astype(np.float64)
    forced, ended = np.isin(s.reason, list(FORCED)), np.isin(s.reason, list(ENDED))
    parts = {name: getattr(s.components, name).astype(np.float64) for name in COMPONENTS}
    return {
        "steps": len(rows),
        "policy_counts": np.bincount(s.action, minlength=7),
        "executed_counts": np.bincount(s.executed, minlength=7),
        "reason_counts": np.bincount(s.reason, minlength=16),
        "repeat_violations": np.sum(s.streak > 3),
        "voluntary_exits": np.sum(s.fill.closed & ~forced & ~ended),
        "forced_exits": np.sum(s.fill.closed & forced),
        "ended_exits": np.sum(s.fill.closed & ended),
        "winning_trades": np.sum(profit > 0),
        "gross_profit": profit[profit > 0].sum(),
        "gross_loss": -profit[profit < 0].sum(),
        "costs": s.fill.costs.sum(),
        "traded_value": s.fill.value.sum(),
        "long_steps": s.is_long.sum(),
        "max_drawdown": s.drawdown.max(),
        "reward": s.reward.sum(),
        "components": {name: values.sum() for name, values in parts.items()},
        "magnitudes": {name: np.abs(values).sum() for name, values in parts.items()},
        "final_equity": s.equity[-1],
    }


def check(statistics: EpisodeStatistics, steps: StepRecord, rows: Sequence[int]) -> None:
    """Every field, and no field forgotten."""
    expected = by_hand(steps, rows)
    actual = {
        name: vars(value) if isinstance(value, RewardComponents) else value
        for name, value in vars(statistics).items()
    }
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


tally_jitted = jax.jit(tally)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=1, max_size=7))
def test_pieces_of_an_episode_add_up(seed: int, pieces: list[int]) -> None:
    """Told in pieces, among steps of no episode that may well be NaN."""
    steps = random_steps(seed, sum(pieces))
    other = without_prices(random_steps(seed + 1, LENGTH))
    rng = np.random.default_rng(seed)
    statistics, first = no_statistics(ENV), 0
    for piece in pieces:
        at = first + np.arange(piece)
        before = int(rng.integers(0, LENGTH - piece + 1))
        padded = np.full(LENGTH, -1)
        padded[before : before + piece] = at
        counted = padded >= 0
        rows = jax.tree.map(lambda x, y: np.where(counted, x[padded], y), steps, other)  # noqa: B023
        statistics = tally_jitted(statistics, rows, counted)
        first += piece
        check(statistics, steps, np.arange(first))


def test_no_steps_change_nothing() -> None:
    before = tally(no_statistics(ENV), random_steps(0, LENGTH), jnp.ones(LENGTH, bool))
    steps = without_prices(random_steps(1, LENGTH))
    after = tally(before, steps, jnp.zeros(LENGTH, bool))
    chex.assert_trees_all_equal(after, before)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, no_statistics(ENV))


keep_diary_jitted = jax.jit(keep_diary)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), arrays(bool, (BLOCKS, LENGTH)))
def test_a_diary_is_kept_across_blocks(seed: int, done: np.ndarray) -> None:
    """Blocks with any number of ends at any step, against a list of the steps since the last."""
    steps = random_steps(seed, BLOCKS * LENGTH)
    entropies = np.random.default_rng(seed).random(BLOCKS * LENGTH).astype(np.float32)
    diary = Diary(statistics=no_statistics(ENV), entropy_sum=jnp.float32(0.0))
    under_way: list[int] = []
    for block, ends in enumerate(done):
        at = block * LENGTH + np.arange(LENGTH)
        rows = jax.tree.map(lambda x: x[at], steps)  # noqa: B023
        diary, finished = keep_diary_jitted(diary, rows, entropies[at], ends)
        last: list[int] = []
        for step, end in zip(at, ends, strict=True):
            under_way.append(step)
            if end:
                last, under_way = under_way, []
        assert finished.count == ends.sum()
        for told, listed in ((finished.diary, last), (diary, under_way)):
            assert float(told.entropy_sum) == pytest.approx(entropies[listed].sum(), rel=1e-5)
            if listed:
                check(told.statistics, steps, listed)
            else:
                assert not any(leaf.any() for leaf in jax.tree.leaves(told))
