"""Performance figures of an equity curve and of its closed trades, in float64 NumPy.

Risk and return are measured on *daily* returns, whatever the bar size, and agree with
empyrical-reloaded to 1e-6 where that defines them. Two things differ. A ratio over nothing is
`nan` here and infinite there: Sharpe of returns that do not vary, Sortino of returns without a
loss. A return that is not finite is an error here and skipped there.

`nan` always means *undefined* (too few days, no trades, nothing to divide by), never zero.
Money may be in any unit, as long as equity, profits, costs and traded values share it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxtrader.errors import DataError

Float64Array = NDArray[np.float64]

TRADING_DAYS = 252.0
"""Daily returns in a year on an exchange; use 365 for markets that never close."""

# A return is a ratio of two float64 equities minus one: it is exact to a few units of rounding at
# 1.0. A spread or a downside below this is rounding, and dividing by it would print 1e15.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


# --- from bars to days ---------------------------------------------------------------------------


def daily_equity(equity: ArrayLike, session: ArrayLike) -> Float64Array:
    """Equity at the close of each session, after the equity the account started with.

    `equity[0]` is the starting equity: bar 0 is where the first decision is taken, so nothing was
    at risk before its close. It comes first in the result. If bar 0 is also its session's last bar
    (always so for daily data) it is not repeated, as a day that could not trade is not a return.

    Args:
      equity: f[T] equity marked at each bar's close, above 0.
      session: i[T] ordinal of each bar's trading session, non-decreasing.

    Returns:
      f64[D + 1]: the start, then one mark for each of the D sessions that hold a bar after bar 0.

    Raises:
      DataError: empty or mismatched arrays, equity that is not finite and positive, or sessions
        that go backwards.
    """
    marks = _finite(equity, "equity")
    sessions = np.asarray(session)
    if sessions.shape != marks.shape:
        raise DataError(
            f"session has shape {sessions.shape}, equity has {marks.shape}: give one per bar"
        )
    if marks.size == 0:
        raise DataError("equity is empty: give at least the starting equity")
    if np.any(marks <= 0):
        bar = int(np.argmax(marks <= 0))
        raise DataError(f"equity[{bar}] is {marks[bar]}: returns need equity above 0")
    if np.any(sessions[1:] < sessions[:-1]):
        bar = 1 + int(np.argmax(sessions[1:] < sessions[:-1]))
        raise DataError(f"session goes backwards at bar {bar}: sort the bars by time")
    closes = np.append(sessions[1:] != sessions[:-1], True)
    closes[0] = True  # the start is a mark whether or not its session closes there
    return marks[closes]


def daily_returns(equity: ArrayLike, session: ArrayLike) -> Float64Array:
    """Simple returns between the marks of `daily_equity`: `e[d] / e[d - 1] - 1`.

    The first return runs from the starting equity to the close of the first session.

    Args:
      equity: f[T] equity marked at each bar's close, above 0; `equity[0]` is the start.
      session: i[T] ordinal of each bar's trading session, non-decreasing.

    Returns:
      f64[D] simple returns, as fractions.

    Raises:
      DataError: as `daily_equity`.
    """
    marks = daily_equity(equity, session)
    return marks[1:] / marks[:-1] - 1.0


# --- risk and return, on daily returns -----------------------------------------------------------


def sharpe_ratio(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """Annualised mean over deviation: `mean(r) / std(r, ddof=1) * sqrt(periods_per_year)`.

    The risk-free rate is 0. Source: Sharpe (1994), "The Sharpe Ratio", J. Portfolio Management 21.

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: periods in a year; 252 for exchange days, 365 for calendar days.

    Returns:
      The ratio, dimensionless; `nan` under 2 returns or when they do not vary.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    values = _returns(returns)
    if values.size < 2 or np.ptp(values) <= _ROUNDING:
        return math.nan
    return float(values.mean() / values.std(ddof=1) * _root_year(periods_per_year))


def sortino_ratio(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """Annualised mean over downside: `mean(r) * sqrt(periods_per_year) / sqrt(mean(min(r, 0)^2))`.

    The downside averages over *all* days, gains counting as 0; the required return is 0.
    Source: Sortino and Price (1994), "Performance Measurement in a Downside Risk Framework".

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: periods in a year.

    Returns:
      The ratio, dimensionless; `nan` under 2 returns or when no return is negative.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    values = _returns(returns)
    if values.size < 2 or values.min() >= -_ROUNDING:
        return math.nan
    downside = math.sqrt(float(np.mean(np.square(np.minimum(values, 0.0)))))
    return float(values.mean() / downside * _root_year(periods_per_year))


def annual_volatility(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """Annualised standard deviation: `std(r, ddof=1) * sqrt(periods_per_year)`.

    Source: empyrical, `annual_volatility` with alpha = 2.

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: periods in a year.

    Returns:
      A fraction a year; 0 when returns do not vary, `nan` under 2 returns.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    values = _returns(returns)
    if values.size < 2:
        return math.nan
    return float(values.std(ddof=1) * _root_year(periods_per_year))


def max_drawdown(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """The deepest fall below the running peak: `min(w / cummax(w) - 1)`, `w = cumprod(1 + r)`.

    The peak includes the start (w = 1), so a loss on the first day counts. Measured on the returns
    given: between daily closes the account may have been lower. Source: empyrical, `max_drawdown`.

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: not used; here so that every figure is called alike.

    Returns:
      A fraction from -1 to 0, *negative* for a loss; 0 when never under water, `nan` without
      returns.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    del periods_per_year
    values = _returns(returns)
    if values.size == 0:
        return math.nan
    wealth = np.cumprod(np.concatenate(([1.0], 1.0 + values)))
    return float(np.min(wealth / np.maximum.accumulate(wealth) - 1.0))


def annual_return(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """Compound annual growth rate: `prod(1 + r) ** (periods_per_year / D) - 1`.

    Under a year of returns this extrapolates. Source: empyrical, `annual_return` (its `cagr`).

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: periods in a year.

    Returns:
      A fraction a year; `nan` without returns, `inf` beyond float64.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    values = _returns(returns)
    if values.size == 0:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.prod(1.0 + values) ** (_year(periods_per_year) / values.size) - 1.0)


def calmar_ratio(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """Growth rate over the deepest fall: `annual_return / |max_drawdown|`.

    Over all the returns given, not the last 36 months of Young (1991), "Calmar Ratio: A Smoother
    Tool"; the same as empyrical, `calmar_ratio`.

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: periods in a year.

    Returns:
      The ratio, dimensionless; `nan` without a drawdown, or when the growth rate overflows.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    drawdown = max_drawdown(returns)
    if not drawdown < 0.0:  # also without returns, where it is nan
        return math.nan
    ratio = annual_return(returns, periods_per_year) / -drawdown
    return ratio if math.isfinite(ratio) else math.nan


def cvar_95(returns: ArrayLike, periods_per_year: float = TRADING_DAYS) -> float:
    """Expected return of the worst 5 % of days: the mean of the `floor((D - 1) / 20) + 1` lowest.

    Not annualised. Source: Rockafellar and Uryasev (2000), "Optimization of Conditional
    Value-at-Risk"; the tail is counted as in empyrical, `conditional_value_at_risk`.

    Args:
      returns: f[D] simple returns of equal periods, as fractions.
      periods_per_year: not used; here so that every figure is called alike.

    Returns:
      A fraction a day, negative for a loss; `nan` without returns.

    Raises:
      DataError: a return that is not finite or is below -1.
    """
    del periods_per_year
    values = _returns(returns)
    if values.size == 0:
        return math.nan
    last = (values.size - 1) // 20
    return float(np.mean(np.partition(values, last)[: last + 1]))


def benchmark_excess(
    returns: ArrayLike, benchmark_returns: ArrayLike, periods_per_year: float = TRADING_DAYS
) -> float:
    """Difference of growth rates: `annual_return(returns) - annual_return(benchmark_returns)`.

    With `buy_and_hold_equity` of an index over the same bars and costs as the benchmark, this is
    what the policy added to owning the index.

    Args:
      returns: f[D] simple returns of the strategy, as fractions.
      benchmark_returns: f[D] simple returns of the benchmark over the same periods.
      periods_per_year: periods in a year.

    Returns:
      A fraction a year; `nan` without returns.

    Raises:
      DataError: the two differ in length, or a return is not finite or is below -1.
    """
    strategy, benchmark = _returns(returns), _returns(benchmark_returns, "benchmark_returns")
    if strategy.size != benchmark.size:
        raise DataError(
            f"{strategy.size} returns against {benchmark.size} of the benchmark: "
            "measure both over the same bars"
        )
    excess = annual_return(strategy, periods_per_year) - annual_return(benchmark, periods_per_year)
    return float(excess)


# --- trades --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ClosedTrades:
    """One entry per closed trade: from the buy that opened a position to the sale that emptied it.

    Forced and end-of-episode sales close a trade like any other.

    Raises:
      DataError: fields that differ in length, are not 1-D, or hold a value that is not finite, a
        negative cost or a negative duration.
    """

    profit: Float64Array  # f64[N] money, net of every cost of the trade
    cost: Float64Array  # f64[N] money, slippage and commission of all its fills, at least 0
    bars_held: Float64Array  # f64[N] bars marked while the position was open

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = _finite(getattr(self, field.name), f"ClosedTrades.{field.name}")
            object.__setattr__(self, field.name, values)
        if not self.profit.shape == self.cost.shape == self.bars_held.shape:
            raise DataError(
                f"ClosedTrades has {self.profit.size} profits, {self.cost.size} costs and "
                f"{self.bars_held.size} durations: give one of each per trade"
            )
        for name in ("cost", "bars_held"):
            _not_negative(getattr(self, name), f"ClosedTrades.{name}")

    def __len__(self) -> int:
        return self.profit.size


def hit_rate(profit: ArrayLike) -> float:
    """Share of closed trades that made money: `mean(profit > 0)`. Breaking even is no hit.

    Args:
      profit: f[N] net profit of each closed trade, money.

    Returns:
      A fraction from 0 to 1; `nan` without trades.

    Raises:
      DataError: a profit that is not finite.
    """
    values = _finite(profit, "profit")
    return float(np.mean(values > 0)) if values.size else math.nan


def profit_factor(profit: ArrayLike) -> float:
    """Money won over money lost: `sum(max(profit, 0)) / sum(max(-profit, 0))`.

    Source: TradeStation's Strategy Performance Report, "Profit Factor", which is net of costs too.

    Args:
      profit: f[N] net profit of each closed trade, money.

    Returns:
      The ratio, dimensionless; `inf` when there are wins and no loss, `nan` when there is neither.

    Raises:
      DataError: a profit that is not finite.
    """
    values = _finite(profit, "profit")
    won, lost = float(values[values > 0].sum()), float(-values[values < 0].sum())
    if lost > 0:
        return won / lost
    return math.inf if won > 0 else math.nan


def average_duration(bars_held: ArrayLike) -> float:
    """Mean number of bars a closed trade was held: `mean(bars_held)`.

    Args:
      bars_held: [N] bars marked while each position was open.

    Returns:
      Bars; `nan` without trades.

    Raises:
      DataError: a duration that is negative or not finite.
    """
    values = _not_negative(_finite(bars_held, "bars_held"), "bars_held")
    return float(values.mean()) if values.size else math.nan


def trades_per_year(trades: int, days: int, periods_per_year: float = TRADING_DAYS) -> float:
    """Closed trades a year: `trades / (days / periods_per_year)`.

    Args:
      trades: closed trades.
      days: daily returns they were made over.
      periods_per_year: daily returns in a year.

    Returns:
      Trades a year, 0 when none closed; `nan` without days.
    """
    return trades * _year(periods_per_year) / days if days > 0 else math.nan


def turnover(
    traded_value: ArrayLike,
    equity: ArrayLike,
    days: int,
    periods_per_year: float = TRADING_DAYS,
) -> float:
    """Buys and sales a year, in account sizes: `sum(traded_value) / years / mean(equity)`.

    Both ways: putting the whole account into a share and taking it out again is 2. Years are
    `days / periods_per_year`. (empyrical has no such figure; pyfolio's `get_turnover` is one way.)

    Args:
      traded_value: f[M] value of each fill, bought or sold, money, at least 0; or their sum.
      equity: f[T] equity marked at each bar's close, money.
      days: daily returns the fills were made over.
      periods_per_year: daily returns in a year.

    Returns:
      Multiples of mean equity a year; `nan` without days.

    Raises:
      DataError: a value that is negative or not finite, or mean equity that is not positive.
    """
    fills = np.atleast_1d(np.asarray(traded_value, dtype=np.float64))
    traded = float(_not_negative(_finite(fills, "traded_value"), "traded_value").sum())
    marks = _finite(equity, "equity")
    if marks.size == 0 or not marks.mean() > 0:
        raise DataError("turnover needs mean equity above 0: give the equity of every bar")
    if days <= 0:
        return math.nan
    return float(traded * _year(periods_per_year) / days / marks.mean())


def cost_ratio(profit: ArrayLike, cost: ArrayLike) -> float:
    """Share of what trading earned that went on costs: `sum(cost) / gross profit`.

    Gross profit is what the winning trades made before costs, `sum(max(profit + cost, 0))`, as the
    numerator of a profit factor is, so that the ratio exists for a strategy that loses money too.
    Where every trade wins it is exactly the share of profit lost between gross and net.

    Args:
      profit: f[N] net profit of each closed trade, money.
      cost: f[N] slippage and commission of each closed trade, money, at least 0.

    Returns:
      A fraction, above 1 when costs exceed what was won; `nan` when no trade won before costs.

    Raises:
      DataError: the two differ in length, or hold a value that is not finite or a negative cost.
    """
    net = _finite(profit, "profit")
    costs = _not_negative(_finite(cost, "cost"), "cost")
    if net.shape != costs.shape:
        raise DataError(f"{net.size} profits and {costs.size} costs: give one of each per trade")
    gross = net + costs
    gross_profit = float(gross[gross > 0].sum())
    return float(costs.sum()) / gross_profit if gross_profit > 0 else math.nan


def herfindahl_index(weights: ArrayLike) -> float:
    """Concentration of what is invested: `sum(v^2)`, `v = w / sum(w)` over the positions.

    Cash is no position: half in one share and half in cash is as concentrated (1) as all in that
    share. From 1/S, equal weights in S symbols, to 1. For a series, the mean over the bars with
    anything invested. Source: Hirschman (1964), "The Paternity of an Index", AER 54.

    Args:
      weights: f[S] or f[T, S] position value over equity (any common unit), at least 0.

    Returns:
      A fraction; `nan` when nothing is ever invested.

    Raises:
      DataError: weights that are negative or not finite, or neither 1-D nor 2-D.
    """
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise DataError(f"weights has shape {values.shape}: give [S] or [T, S]")
    flat = _finite(values.reshape(-1), "weights")
    values = np.atleast_2d(_not_negative(flat, "weights").reshape(values.shape))
    invested = values.sum(axis=1)
    held = invested > 0
    if not held.any():
        return math.nan
    shares = values[held] / invested[held, None]
    return float(np.square(shares).sum(axis=1).mean())


# --- benchmark -----------------------------------------------------------------------------------


def buy_and_hold_equity(
    open: ArrayLike,
    close: ArrayLike,
    commission: float,
    slippage: float,
    tradable: ArrayLike | None = None,
) -> Float64Array:
    """Equity of an account that buys with everything it has and sells at the end.

    The environment's convention, with a position of 100 %: a decision at the close of bar t fills
    at the open of bar t + 1 and equity is marked at that bar's close.

    - bar 0: decides to buy; equity is the start, 1.
    - bar 1: buys `n = 1 / (open[1] * (1 + slippage) * (1 + commission))` shares, spending all.
    - bars 1 to T - 2: equity is `n * close[t]`.
    - bar T - 1: the sale decided at the close of T - 2 fills at `open[T - 1]`; the account is flat,
      and equity is the cash, `n * open[T - 1] * (1 - slippage) * (1 - commission)`, whatever the
      last close.

    With T <= 2 a purchase would fall on the last bar, where nothing is bought: equity stays 1. The
    purchase waits for the first tradable bar; a last bar that is not tradable leaves the position
    open, marked at its last close.

    Args:
      open: f[T] prices, above 0 (the last known price where a bar is not tradable).
      close: f[T] prices, above 0.
      commission: rate on traded value, each side, after any cost multiplier.
      slippage: fraction of the price, each side, after any cost multiplier.
      tradable: bool[T] whether orders fill on each bar; all of them by default.

    Returns:
      f64[T] equity at each close, in units of the starting equity; `[0]` is 1.

    Raises:
      DataError: arrays that are empty or differ in length, prices that are not finite and above 0,
        or rates outside [0, 1).
    """
    opens, closes = _prices(open, "open"), _prices(close, "close")
    bars = closes.size
    fills = np.ones(bars, dtype=bool) if tradable is None else np.asarray(tradable, dtype=bool)
    if bars == 0 or not opens.shape == closes.shape == fills.shape:
        raise DataError(
            f"open, close and tradable have shapes {opens.shape}, {closes.shape} and "
            f"{fills.shape}: give one value per bar, and at least one bar"
        )
    for name, rate in (("commission", commission), ("slippage", slippage)):
        if not 0.0 <= rate < 1.0:
            raise DataError(f"{name} is {rate}: give a fraction from 0 to below 1 (5 bps = 0.0005)")
    equity = np.ones(bars, dtype=np.float64)
    entries = np.flatnonzero(fills[1 : bars - 1]) + 1
    if entries.size == 0:
        return equity
    entry = int(entries[0])
    shares = 1.0 / (opens[entry] * (1.0 + slippage) * (1.0 + commission))
    equity[entry:] = shares * closes[entry:]
    if fills[-1]:
        equity[-1] = shares * opens[-1] * (1.0 - slippage) * (1.0 - commission)
    return equity


# --- all of them ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Performance:
    """Every figure of one equity curve; `nan` is undefined, see each figure's own function."""

    days: int  # daily returns behind the figures
    closed_trades: int  # trades behind the figures
    periods_per_year: float  # daily returns in a year
    annual_return: float  # fraction a year, compound
    annual_volatility: float  # fraction a year
    sharpe_ratio: float
    sortino_ratio: float
    max_drawdown: float  # fraction, negative for a loss
    calmar_ratio: float
    cvar_95: float  # fraction a day, negative for a loss
    hit_rate: float  # fraction of closed trades
    profit_factor: float  # inf when no trade lost
    average_duration: float  # bars
    trades_per_year: float
    turnover: float  # mean equities a year, both ways
    cost_ratio: float  # fraction of gross profit
    herfindahl_index: float  # fraction, nan when no weights were given
    benchmark_excess: float  # fraction a year, nan when no benchmark was given

    def to_dict(self) -> dict[str, int | float | None]:
        """Fields by name, safe for strict JSON: `nan` and infinite values become `None`.

        A `None` profit factor beside a hit rate above 0 therefore means that no trade lost;
        beside a `None` or zero hit rate, that there was nothing to measure.
        """
        return {
            name: value if math.isfinite(value) else None
            for name, value in dataclasses.asdict(self).items()
        }


def performance(
    equity: ArrayLike,
    session: ArrayLike,
    trades: ClosedTrades,
    *,
    traded_value: ArrayLike,
    weights: ArrayLike | None = None,
    benchmark_equity: ArrayLike | None = None,
    periods_per_year: float = TRADING_DAYS,
) -> Performance:
    """Every figure of one run over contiguous bars.

    Args:
      equity: f[T] equity marked at each bar's close, above 0; `equity[0]` is the start.
      session: i[T] ordinal of each bar's trading session, non-decreasing.
      trades: the closed trades, in the money of `equity`.
      traded_value: f[M] value of each fill, bought or sold, in the money of `equity`; or their sum.
      weights: f[S] or f[T, S] position value over equity; none leaves the Herfindahl index `nan`.
      benchmark_equity: f[T] equity of the benchmark on the same bars, as `buy_and_hold_equity`
        gives; none leaves the benchmark excess `nan`.
      periods_per_year: daily returns in a year; 252 for exchanges, 365 for crypto.

    Returns:
      All figures.

    Raises:
      DataError: as the figures' own functions.
    """
    returns = daily_returns(equity, session)
    days, year = returns.size, _year(periods_per_year)
    excess = math.nan
    if benchmark_equity is not None:
        excess = benchmark_excess(returns, daily_returns(benchmark_equity, session), year)
    return Performance(
        days=days,
        closed_trades=len(trades),
        periods_per_year=year,
        annual_return=annual_return(returns, year),
        annual_volatility=annual_volatility(returns, year),
        sharpe_ratio=sharpe_ratio(returns, year),
        sortino_ratio=sortino_ratio(returns, year),
        max_drawdown=max_drawdown(returns),
        calmar_ratio=calmar_ratio(returns, year),
        cvar_95=cvar_95(returns),
        hit_rate=hit_rate(trades.profit),
        profit_factor=profit_factor(trades.profit),
        average_duration=average_duration(trades.bars_held),
        trades_per_year=trades_per_year(len(trades), days, year),
        turnover=turnover(traded_value, equity, days, year),
        cost_ratio=cost_ratio(trades.profit, trades.cost),
        herfindahl_index=math.nan if weights is None else herfindahl_index(weights),
        benchmark_excess=excess,
    )


# --- checks --------------------------------------------------------------------------------------


def _finite(values: ArrayLike, name: str) -> Float64Array:
    """`values` as f64[N], or a DataError naming the first that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}: give a 1-D array")
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{name}[{row}] is {array[row]}: every value must be finite")
    return array


def _not_negative(values: Float64Array, name: str) -> Float64Array:
    if np.any(values < 0):
        row = int(np.argmax(values < 0))
        raise DataError(f"{name}[{row}] is {values[row]}: it cannot be negative")
    return values


def _prices(values: ArrayLike, name: str) -> Float64Array:
    prices = _finite(values, name)
    if np.any(prices <= 0):
        bar = int(np.argmax(prices <= 0))
        raise DataError(f"{name}[{bar}] is {prices[bar]}: prices must be above 0")
    return prices


def _returns(values: ArrayLike, name: str = "returns") -> Float64Array:
    returns = _finite(values, name)
    if np.any(returns < -1):
        day = int(np.argmax(returns < -1))
        raise DataError(f"{name}[{day}] is {returns[day]}: nothing loses more than all of it (-1)")
    return returns


def _year(periods_per_year: float) -> float:
    if not 0 < periods_per_year < math.inf:
        raise DataError(f"periods_per_year is {periods_per_year}: give 252, or 365 for crypto")
    return float(periods_per_year)


def _root_year(periods_per_year: float) -> float:
    return math.sqrt(_year(periods_per_year))
