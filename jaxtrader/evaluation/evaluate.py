"""Deterministic evaluation: one pass over a whole split, and episodes with random starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd

from agents.playback import Playback, Steps
from envs.actions import END_REASONS, FORCED_REASONS, Action, Reason
from jaxtrader.data.markets import split_offset
from jaxtrader.errors import ConfigError
from jaxtrader.evaluation.metrics import (
    ClosedTrades,
    Performance,
    buy_and_hold_equity,
    daily_returns,
    performance,
    sharpe_ratio,
)
from jaxtrader.hosts import to_host
from jaxtrader.program import Program
from jaxtrader.telemetry import episode_means, episode_table, reward_audit


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One agent on one split: what it did, what came of it, and buy-and-hold beside it.

    Money is in dollars of an account that starts with `initial_cash`.
    """

    symbol: str
    seed: int
    split: str
    steps: pd.DataFrame  # one row per bar of the full split, index `timestamp` of the decision bar
    trades: pd.DataFrame  # closed trades of the full split
    equity: pd.Series  # at each close, start included; index `timestamp`
    close: pd.Series  # price at the same closes; index `timestamp`
    benchmark: pd.Series  # buy-and-hold of the symbol on the same bars, under the same costs
    performance: Performance
    benchmark_performance: Performance
    episodes: pd.DataFrame  # telemetry of the episodes with random starts
    full_split: pd.DataFrame  # telemetry of the full split, one row
    ended_early: bool  # whether bankruptcy or the drawdown breaker ended the full split

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Telemetry means over the random-start episodes: what the gates judge."""
        return episode_means(self.episodes)

    @cached_property
    def audit(self) -> dict[str, object]:
        """Is the reward money? On the random-start episodes."""
        return reward_audit(self.episodes)


def full_split_bars(program: Program, split: str) -> tuple[np.ndarray, np.ndarray]:
    """First decision bar and stop bar of every symbol's full split, int[S, 1] each."""
    starts = program.params[split].starts
    return to_host((starts.first_bar, starts.last_bar))


def play_full_split(
    program: Program, params: Any, split: str
) -> tuple[Playback, np.ndarray, np.ndarray]:
    """One greedy pass over a whole split, [S, K, ...] with one episode each.

    Returns:
      (playback, first decision bars int[S, 1], stop bars int[S, 1]).
    """
    trading = program.params[split]
    first, last = full_split_bars(program, split)
    steps = trading.market.close.shape[-1] - program.dataset.receptive_field  # of the longest
    return program.play(params, trading, first, last, steps), first, last


def validation_sharpe(program: Program, params: Any, split: str = "validation") -> np.ndarray:
    """Sharpe ratio of daily returns over the full split, float64[S, K]; NaN where undefined.

    Args:
      params: network parameters of all agents, [S, K, ...].
    """
    playback, starts, stops = play_full_split(program, params, split)
    equity, valid = to_host((playback.steps.equity, playback.steps.valid))
    offset = split_offset(program.dataset, split)
    symbols, seeds = equity.shape[:2]
    sharpe = np.full((symbols, seeds), np.nan)
    for s in range(symbols):
        for k in range(seeds):
            bars = offset[s] + np.arange(starts[s, 0], stops[s, 0] + 1)
            curve = _over_the_split(equity[s, k, valid[s, k, :, 0], 0], len(bars))
            returns = daily_returns(curve, program.dataset.session[s, bars])
            sharpe[s, k] = sharpe_ratio(returns, program.dataset.periods_per_year[s])
    return sharpe


def random_starts(
    program: Program, split: str, episodes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop bars of `episodes` episodes for every symbol, int[S, E], without repeats.

    Raises:
      ConfigError: the split has fewer starts than episodes asked for.
    """
    first, last = full_split_bars(program, split)
    length = program.config.environment.episode_length
    generator = np.random.default_rng(seed)
    starts = []
    for symbol, low, high in zip(program.dataset.symbols, first[:, 0], last[:, 0], strict=True):
        room = high - length - low + 1
        if episodes > room:
            raise ConfigError(
                f"evaluation episodes = {episodes}: the {split} split of {symbol} has only {room} "
                f"different starts for episodes of {length} steps"
            )
        starts.append(low + np.sort(generator.choice(room, episodes, replace=False)))
    return np.stack(starts), np.stack(starts) + length


def evaluate_agents(
    program: Program,
    params: Any,
    seeds: tuple[int, ...],
    split: str,
    episodes: int,
    seed: int = 0,
) -> list[list[Evaluation]]:
    """Evaluates every agent with the greedy policy under the training cost model.

    Args:
      params: network parameters of all agents, [S, K, ...].
      seeds: names of the K seeds.
      split: "train", "validation" or "test".
      episodes: number of random-start episodes; each is counted once.
      seed: of their starts.

    Returns:
      evaluations by symbol, then by seed.
    """
    trading = program.params[split]
    full, _, _ = play_full_split(program, params, split)
    starts, stops = random_starts(program, split, episodes, seed)
    random = program.play(params, trading, starts, stops, program.config.environment.episode_length)
    full, random = to_host((full, random))

    def pick(playback: Playback, s: int, k: int) -> Playback:
        return jax.tree.map(lambda x: x[s, k], playback)

    return [
        [
            _evaluation(program, pick(full, s, k), pick(random, s, k), s, seed_name, split, starts)
            for k, seed_name in enumerate(seeds)
        ]
        for s in range(len(program.dataset.symbols))
    ]


def _evaluation(
    program: Program,
    full: Playback,
    random: Playback,
    s: int,
    seed: int,
    split: str,
    random_starts: np.ndarray,
) -> Evaluation:
    dataset, cash = program.dataset, program.config.environment.initial_cash
    offset = int(split_offset(dataset, split)[s])
    first_bar, last_bar = (int(bars[s, 0]) for bars in full_split_bars(program, split))
    timestamps = pd.to_datetime(dataset.timestamps[s], unit="us", utc=True)
    year = float(dataset.periods_per_year[s])

    fill_delay = 1 if program.config.environment.fill == "next_open" else 0
    steps = _step_table(full.steps, cash, timestamps, offset, fill_delay)
    trades = _trade_table(steps)
    split_bars = slice(offset + first_bar, offset + last_bar + 1)
    equity = _over_the_split(steps["equity"].to_numpy() / cash, last_bar - first_bar + 1)
    execution = jax.tree.map(lambda x: float(x[s]), program.params[split].execution)
    multiplier = execution.cost_multiplier
    benchmark = buy_and_hold_equity(
        dataset.open[s, split_bars],
        dataset.close[s, split_bars],
        execution.commission * multiplier,
        execution.slippage * multiplier,
        dataset.tradable[s, split_bars],
    )
    session = dataset.session[s, split_bars]
    weights = jax.tree.map(lambda x: x[s], program.params[split].reward.weights)
    telemetry = {
        name: episode_table(
            playback.statistics,
            np.asarray(playback.entropy_sum),
            weights,
            {
                "symbol": np.full(len(start), dataset.symbols[s]),
                "start": timestamps[offset + start].strftime("%Y-%m-%dT%H:%MZ"),
            },
        )
        for name, playback, start in (
            ("full", full, np.array([first_bar])),
            ("random", random, random_starts[s]),
        )
    }
    return Evaluation(
        symbol=dataset.symbols[s],
        seed=seed,
        split=split,
        steps=steps,
        trades=trades,
        equity=pd.Series(equity * cash, timestamps[split_bars], name="equity"),
        close=pd.Series(dataset.close[s, split_bars], timestamps[split_bars], name="close"),
        benchmark=pd.Series(benchmark * cash, timestamps[split_bars], name="buy_and_hold"),
        performance=performance(
            equity,
            session,
            ClosedTrades(
                trades["profit"].to_numpy(),
                trades["costs"].to_numpy(),
                trades["bars_held"].to_numpy(),
            ),
            traded_value=steps["fill_value"].to_numpy() / cash,
            weights=(1.0 - steps["cash"] / steps["equity"]).clip(lower=0.0).to_numpy()[:, None],
            benchmark_equity=benchmark,
            periods_per_year=year,
        ),
        benchmark_performance=_hold_performance(
            benchmark,
            session,
            execution.commission * multiplier,
            execution.slippage * multiplier,
            year,
        ),
        episodes=telemetry["random"],
        full_split=telemetry["full"],
        ended_early=bool(full.terminated[0]) and len(steps) < last_bar - first_bar,
    )


def _over_the_split(marks: np.ndarray, bars: int) -> np.ndarray:
    """Equity at the close of each of `bars` bars from 1 at the start: float64[bars].

    After an early end the account holds cash: every figure spans the whole split.
    """
    equity = np.concatenate([[1.0], marks])
    return np.concatenate([equity, np.full(bars - len(equity), equity[-1])])


def _hold_performance(
    equity: np.ndarray, session: np.ndarray, commission: float, slippage: float, year: float
) -> Performance:
    """Figures of `buy_and_hold_equity`, which is one trade of the whole account."""
    bought = 1.0 / ((1.0 + slippage) * (1.0 + commission))  # at raw prices, of an equity of 1
    sold = equity[-1] / ((1.0 - slippage) * (1.0 - commission))
    costs = (1.0 - bought) + (sold - equity[-1])
    one = ClosedTrades(
        np.array([equity[-1] - 1.0]), np.array([costs]), np.array([len(equity) - 2.0])
    )
    return performance(
        equity, session, one, traded_value=np.array([bought, sold]), periods_per_year=year
    )


def _step_table(
    steps: Steps, cash: float, timestamps: pd.DatetimeIndex, offset: int, fill_delay: int
) -> pd.DataFrame:
    """The one episode of `steps` ([T, 1] leaves) as a table in dollars.

    Args:
      offset: dataset bar that is bar 0 of the split's market.
      fill_delay: bars from the decision to the bar in which it fills.
    """
    rows = np.asarray(steps.valid)[:, 0]
    column = {name: np.asarray(getattr(steps, name))[rows, 0] for name in _STEP_COLUMNS}
    table = pd.DataFrame(
        {
            "action": [Action(a).name for a in column["action"]],
            "executed": [Action(a).name for a in column["executed"]],
            "reason": [Reason(r).name for r in column["reason"]],
            **{name: column[name].astype(np.float64) for name in ("reward", "entropy", "value")},
            "fill_price": column["fill_price"].astype(np.float64),
            **{name: column[name].astype(np.float64) * cash for name in _MONEY_COLUMNS},
            "closed": column["closed"],
        },
        index=timestamps[offset + column["bar"]].rename("timestamp"),
    )
    table.insert(0, "fill_time", timestamps[offset + column["bar"] + fill_delay])
    return table


_MONEY_COLUMNS = (
    "fill_shares", "fill_value", "costs", "trade_profit", "cash", "shares", "equity",
)  # fmt: skip
_STEP_COLUMNS = (
    "bar", "action", "executed", "reason", "reward", "entropy", "value", "fill_price", "closed",
    *_MONEY_COLUMNS,
)  # fmt: skip


def _exit_kind(reason: str) -> str:
    if Reason[reason] in FORCED_REASONS:
        return "forced"
    return "ended" if Reason[reason] in END_REASONS else "voluntary"


def _trade_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Closed trades, each from its first buy to the sale that left the account flat."""
    trade = steps["closed"].shift(fill_value=False).cumsum()
    rows = []
    bar = pd.Series(np.arange(len(steps)), steps.index)
    for _, fills in steps[steps["executed"] != Action.HOLD.name].groupby(trade):
        last = fills.iloc[-1]
        if not last["closed"]:
            continue
        bought = fills[fills["fill_shares"] > 0]
        held = int(bar[fills.index[-1]] - bar[fills.index[0]])
        rows.append(
            {
                "entry_time": fills["fill_time"].iloc[0],
                "exit_time": last["fill_time"],
                "size": fills["executed"].iloc[0],
                "adds": len(bought) - 1,
                "partial_sales": int((fills["executed"] == Action.SELL_PARTIAL.name).sum()),
                "shares": bought["fill_shares"].sum(),
                "entry_price": bought["fill_price"].iloc[0],
                "exit_price": last["fill_price"],
                "profit": last["trade_profit"],
                "costs": fills["costs"].sum(),
                "bars_held": held,
                "exit": _exit_kind(last["reason"]),
                "reason": last["reason"],
            }
        )
    columns = [
        "entry_time", "exit_time", "size", "adds", "partial_sales", "shares", "entry_price",
        "exit_price", "profit", "costs", "bars_held", "exit", "reason",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    numeric = ["shares", "entry_price", "exit_price", "profit", "costs"]
    return table.astype(dict.fromkeys(numeric, np.float64) | {"bars_held": np.int64})
