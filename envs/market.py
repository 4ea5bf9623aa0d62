"""What the agents cannot change: prices, calendar and features, resident on the device."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Market:
    """Exogenous data of S symbols over T bars. Passed as an argument, never closed over.

    Each symbol has its own time axis, padded on the right; which bars an episode may visit is
    the business of `envs.curriculum.StartDistribution`.
    """

    open: jax.Array  # f32[S, T] price of the first trade in the bar
    close: jax.Array  # f32[S, T] price of the last trade in the bar
    tradable: jax.Array  # bool[S, T] whether orders fill in this bar
    session: jax.Array  # i32[S, T] ordinal of the trading session, non-decreasing
    features: jax.Array  # f32[S, T, F] scaled, causal: row t depends on bars <= t only

    @property
    def num_symbols(self) -> int:
        return self.open.shape[0]

    @property
    def num_bars(self) -> int:
        return self.open.shape[1]

    @property
    def num_features(self) -> int:
        return self.features.shape[2]


@struct.dataclass
class Quote:
    """What one step needs to know of the market: bar t, and bar t + 1 where orders fill."""

    close: jax.Array  # f32[] close of bar t, at which the decision is made
    next_open: jax.Array  # f32[] open of bar t + 1
    next_close: jax.Array  # f32[] close of bar t + 1, at which equity is marked
    next_tradable: jax.Array  # bool[] whether orders fill in bar t + 1
    same_session: jax.Array  # bool[] whether t and t + 1 belong to one session


def _at(values: jax.Array, symbol: jax.Array, bar: jax.Array) -> jax.Array:
    """`values[symbol, bar]`, where an index outside the data reads as NaN and never as a neighbour.

    JAX clamps out-of-range indices by default, which at the edge of the data is look-ahead.
    """
    fill = jnp.nan if jnp.issubdtype(values.dtype, jnp.floating) else False
    return values.at[symbol, bar].get(mode="fill", fill_value=fill, wrap_negative_indices=False)


def quote(market: Market, symbol: jax.Array, bar: jax.Array) -> Quote:
    """Prices around the decision at the close of `bar` (i32[]) for `symbol` (i32[])."""
    return Quote(
        close=_at(market.close, symbol, bar),
        next_open=_at(market.open, symbol, bar + 1),
        next_close=_at(market.close, symbol, bar + 1),
        next_tradable=_at(market.tradable, symbol, bar + 1),
        same_session=market.session[symbol, bar] == market.session[symbol, bar + 1],
    )


def window(market: Market, symbol: jax.Array, bar: jax.Array, length: int) -> jax.Array:
    """Features of the `length` bars that end with `bar`: f32[length, F]; NaN before the data."""
    bars = bar - length + 1 + jnp.arange(length)
    return market.features.at[symbol, bars].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
