"""Small invented markets and the parameters to trade them, for tests that need *a* market."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from envs.actions import neutral_directives, trading_limits
from envs.curriculum import start_distribution
from envs.execution import execution_params
from envs.market import Market
from envs.reward import reward_params
from envs.trading import TradingParams

BARS_PER_SESSION = 7


def market_of(opens: np.ndarray, closes: np.ndarray, features: np.ndarray) -> Market:
    """A market of [S, T] prices and [S, T, F] features that trades on every bar."""
    num_symbols, num_bars = closes.shape
    session = np.arange(num_bars) // BARS_PER_SESSION
    return Market(
        open=jnp.asarray(opens, jnp.float32),
        close=jnp.asarray(closes, jnp.float32),
        tradable=jnp.ones((num_symbols, num_bars), bool),
        session=jnp.asarray(np.tile(session, (num_symbols, 1)), jnp.int32),
        features=jnp.asarray(features, jnp.float32),
    )


def random_walk(
    num_symbols: int = 2,
    num_bars: int = 80,
    num_features: int = 3,
    *,
    volatility: float = 0.01,
    seed: int = 0,
) -> Market:
    """Prices that walk at random, and features that are noise."""
    rng = np.random.default_rng(seed)
    shape = (num_symbols, num_bars)
    closes = 100.0 * np.exp(np.cumsum(volatility * rng.standard_normal(shape), axis=1))
    previous = np.concatenate([np.full((num_symbols, 1), 100.0), closes[:, :-1]], axis=1)
    opens = previous * np.exp(0.2 * volatility * rng.standard_normal(shape))
    return market_of(opens, closes, rng.standard_normal((*shape, num_features)))


def planted_signs(
    num_symbols: int = 2,
    num_bars: int = 80,
    num_features: int = 3,
    *,
    move: float = 0.05,
    seed: int = 0,
) -> Market:
    """Prices of which the first feature tells the sign of the next bar's move of `move`.

    A bar opens at the previous close, so an order decided at close t earns all of bar t + 1.
    Every other move takes back the one before it: prices stay in range. `num_bars` is even.
    """
    rng = np.random.default_rng(seed)
    first = rng.choice([-1.0, 1.0], (num_symbols, num_bars // 2))
    signs = np.stack([first, -first], axis=2).reshape(num_symbols, num_bars)
    closes = 100.0 * np.cumprod(1.0 + move * signs, axis=1)
    opens = closes / (1.0 + move * signs)
    features = rng.standard_normal((num_symbols, num_bars, num_features))
    features[:, :-1, 0] = signs[:, 1:]
    return market_of(opens, closes, features)


def params_for(
    market: Market,
    *,
    episode_length: int = 12,
    receptive_field: int = 4,
    costs: str = "retail",
    reward: str = "professional",
    limits: dict[str, Any] | None = None,
) -> TradingParams:
    """Parameters for episodes of `episode_length` steps anywhere in `market`."""
    first_bar = np.full(market.num_symbols, receptive_field - 1)
    last_bar = np.full(market.num_symbols, market.num_bars - 1)
    return TradingParams(
        max_steps_in_episode=jnp.int32(episode_length),
        market=market,
        starts=start_distribution(first_bar, last_bar, episode_length, receptive_field),
        execution=execution_params(costs),
        limits=trading_limits(**(limits or {})),
        reward=reward_params(reward),
        directives=neutral_directives(),
    )
