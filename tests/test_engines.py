"""The same orders on the same bars, executed by another engine: backtesting.py.

Its orders are whole shares that we placed; its fills, commissions, trades and equity are its own.
Both modes of ours have a twin there: the next open is its default, and `trade_on_close` is our
`same_close`. What it calls spread is not our slippage: it worsens the entry only, and sales of a
long position fill at the raw price. The difference is one known charge, which is tested too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from backtesting import Backtest, Strategy
from reference_simulator import Action, ReferenceParameters
from trading_episodes import Episode, Played, play, script

A = Action
DOLLARS = 10_000.0
COMMISSION = 1e-3  # ten basis points a side
ROUND_TRIPS = 10
# Ten trades of every kind: whole, staged, added to, short and long.
TRIPS = (
    [A.BUY_SMALL, A.SELL_ALL],
    [A.BUY_LARGE, A.HOLD, A.HOLD, A.SELL_ALL, A.HOLD],
    [A.BUY_MEDIUM, A.ADD_POSITION, A.SELL_ALL],
    [A.BUY_LARGE, A.SELL_PARTIAL, A.SELL_ALL, A.HOLD],
    [A.BUY_SMALL, A.ADD_POSITION, A.SELL_PARTIAL, A.ADD_POSITION, A.SELL_ALL],
    [A.BUY_MEDIUM, A.HOLD, A.SELL_ALL],
    [A.BUY_LARGE, A.SELL_PARTIAL, A.HOLD, A.SELL_PARTIAL, A.HOLD, A.SELL_ALL],
    [A.BUY_LARGE, A.SELL_ALL],
    [A.BUY_SMALL, A.HOLD, A.HOLD, A.HOLD, A.SELL_ALL, A.HOLD],
    [A.BUY_MEDIUM, A.ADD_POSITION, A.ADD_POSITION, A.SELL_ALL],
)
RULES = ReferenceParameters(
    commission=COMMISSION,
    slippage=0.0,
    lot_size=1.0,
    initial_cash=DOLLARS,
    add_threshold=-1.0,
    stop_loss=10.0,
    take_profit=10.0,
    position_cap=1.0,
)


@functools.cache
def bars() -> tuple[np.ndarray, np.ndarray]:
    """Sixty opens and closes around 20 dollars, with gaps of several percent."""
    rng = np.random.default_rng(11)
    gaps, moves = 0.03 * rng.standard_normal((2, 60))
    closes = 20.0 * np.exp(np.cumsum(gaps + moves))
    opens = np.append(20.0, closes[:-1]) * np.exp(gaps)
    return np.float32(opens), np.float32(closes)


@dataclass(frozen=True)
class Ours:
    """What the environment did, in dollars and shares."""

    orders: np.ndarray  # [N] shares bought (+) and sold (-) by the decision at close 1 + n
    prices: np.ndarray  # [N] fill prices
    equity: np.ndarray  # [N] at close 2 + n
    trade_profits: np.ndarray  # [ROUND_TRIPS]


@functools.cache
def ours(fill: str, slippage: float, double: bool) -> Ours:
    """Starts at the close of bar 1, the first at which backtesting.py asks its strategy."""
    opens, closes = bars()
    actions = [action for trip in TRIPS for action in trip]
    episode = Episode(
        opens,
        closes,
        script(actions),
        start_bar=1,
        rules=replace(RULES, fill=fill, slippage=slippage),
    )
    played: Played = play([episode], double=double)
    steps = len(closes) - 2
    executed = played.outcome.executed[0, :steps]
    assert executed[: len(actions)].tolist() == actions
    filled, closed = played.outcome.fill, played.outcome.fill.closed[0, :steps]
    return Ours(
        orders=filled.shares[0, :steps] * DOLLARS,
        prices=filled.price[0, :steps],
        equity=played.state.account.equity[0, :steps] * DOLLARS,
        trade_profits=filled.trade_profit[0, :steps][closed] * DOLLARS,
    )


def theirs(orders: np.ndarray, *, on_close: bool, spread: float) -> pd.Series:
    """backtesting.py's statistics of the same orders."""
    opens, closes = (np.float64(prices) for prices in bars())
    frame = pd.DataFrame(
        {
            "Open": opens,
            "High": np.maximum(opens, closes),
            "Low": np.minimum(opens, closes),
            "Close": closes,
        },
        index=pd.date_range("2024-01-01", periods=len(closes), freq="h"),
    )

    class Replay(Strategy):
        """Places each order at the close of its bar."""

        def init(self) -> None:
            pass

        def next(self) -> None:
            step = len(self.data) - 2
            quantity = round(float(orders[step])) if step < len(orders) else 0
            if quantity > 0:
                self.buy(size=quantity)
            if quantity < 0:
                self.sell(size=-quantity)

    test = Backtest(
        frame,
        Replay,
        cash=DOLLARS,
        commission=COMMISSION,
        spread=spread,
        trade_on_close=on_close,
        finalize_trades=False,
    )
    return test.run()


def profit_per_trip(trades: pd.DataFrame) -> np.ndarray:
    """Profits by round trip: it books every entry and every partial exit as a trade of its own."""
    trades = trades.sort_values(["EntryBar", "ExitBar"])
    flat_from = trades["ExitBar"].cummax().shift(fill_value=-1)
    trip = (trades["EntryBar"] >= flat_from).cumsum()
    return trades["PnL"].groupby(trip).sum().to_numpy()


@pytest.mark.parametrize(
    ("double", "decimals"), [(True, 4), (False, 2)], ids=["f64_to_4_decimals", "f32_to_the_cent"]
)
@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_trades_and_equity_agree(fill: str, double: bool, decimals: int) -> None:
    """Of an account of 10,000 dollars. Float32 holds 10,000 to 0.0006."""
    mine = ours(fill, 0.0, double)
    np.testing.assert_allclose(mine.orders, np.round(mine.orders), atol=1e-3)
    stats = theirs(mine.orders, on_close=fill == "same_close", spread=0.0)
    equity = stats["_equity_curve"]["Equity"].to_numpy()[2:]
    tolerance = 0.5 * 10.0**-decimals
    np.testing.assert_allclose(mine.equity, equity, rtol=0, atol=tolerance)
    trades = stats["_trades"]
    assert len(mine.trade_profits) == ROUND_TRIPS
    np.testing.assert_allclose(mine.trade_profits, profit_per_trip(trades), rtol=0, atol=tolerance)
    assert np.abs(mine.trade_profits).max() > 10.0
    # Each of its entries is one of our buys, in the same bar and at the same price.
    bought = np.flatnonzero(mine.orders > 0)
    entry_bars = sorted(set(trades["EntryBar"]))
    assert entry_bars == (bought + (1 if fill == "same_close" else 2)).tolist()
    entry_prices = trades.groupby("EntryBar")["EntryPrice"].first()
    np.testing.assert_allclose(mine.prices[bought], entry_prices, rtol=1e-6)


def test_spread_is_slippage_on_the_way_in_only() -> None:
    """Entries agree; our sales pay the slippage as well, and that is the whole difference."""
    slippage = 2.5e-3
    mine = ours("next_open", slippage, True)
    stats = theirs(mine.orders, on_close=False, spread=slippage)
    trades = stats["_trades"]
    bought, sold = np.flatnonzero(mine.orders > 0), np.flatnonzero(mine.orders < 0)
    entry_prices = trades.groupby("EntryBar")["EntryPrice"].first()
    np.testing.assert_allclose(mine.prices[bought], entry_prices, rtol=1e-12)
    exit_prices = trades.groupby("ExitBar")["ExitPrice"].first()
    np.testing.assert_allclose(mine.prices[sold], exit_prices * (1 - slippage), rtol=1e-12)
    charged = -mine.orders[sold] * exit_prices * slippage * (1 - COMMISSION)
    equity = stats["_equity_curve"]["Equity"].to_numpy()
    assert equity[-1] - mine.equity[-1] == pytest.approx(charged.sum(), abs=1e-6)
    difference = profit_per_trip(trades).sum() - mine.trade_profits.sum()
    assert difference == pytest.approx(charged.sum(), abs=1e-6)
