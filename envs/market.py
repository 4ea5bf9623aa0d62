"""What the agents cannot change: prices, calendar and features, resident on the device."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Market:
    """Exogenous data of S symbols over T bars. Passed as an argument, never closed over.

    Each symbol has its own time axis, padded on the right; which bars an episode may visit is
    the business of `envs.curriculum.StartDistribution`. Features are finite everywhere, padding
    included: a NaN that no loss reads still reaches the encoder's gradient, as 0 x NaN.
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
    """What a step needs to know of the market around the decision at the close of bar t."""

    close: jax.Array  # f32[] close of bar t, at which the decision is made
    next_close: jax.Array  # f32[] close of bar t + 1, at which equity is marked
    new_session: jax.Array  # bool[] whether bar t + 1 opens a session
    last: jax.Array  # bool[] whether bar t + 1 is the symbol's last, or lies beyond it
    fill_price: jax.Array  # f32[] raw price at which orders fill
    fill_tradable: jax.Array  # bool[] whether orders fill at all
    fills_next: bool = struct.field(pytree_node=False)  # in bar t + 1, or already in bar t


def _at(values: jax.Array, symbol: jax.Array, bar: jax.Array) -> jax.Array:
    """`values[symbol, bar]`, where an index outside the data reads as NaN and never as a neighbour.

    JAX clamps out-of-range indices by default, which at the edge of the data is look-ahead.
    """
    missing = jnp.nan if jnp.issubdtype(values.dtype, jnp.floating) else False
    return values.at[symbol, bar].get(mode="fill", fill_value=missing, wrap_negative_indices=False)


FILL_MODES = ("next_open", "same_close")


def close_price(market: Market, symbol: jax.Array, bar: jax.Array) -> jax.Array:
    """Close of `bar` (i32[]) for `symbol` (i32[]), f32[]; NaN outside the data."""
    return _at(market.close, symbol, bar)


def quote(
    market: Market, symbol: jax.Array, bar: jax.Array, last_bar: jax.Array, fill: str = "next_open"
) -> Quote:
    """Prices around the decisions at the closes of `bar` for `symbol`.

    Args:
      symbol, bar: i32[...], of shapes that broadcast; so are the quote's.
      last_bar: i32[S] last bar that may be marked, by symbol.
      fill: static. "next_open" fills at the open of the next bar; "same_close" at the very close
        that the decision has seen, which is optimistic and there to compare with engines that do.
    """
    fills_next = fill == "next_open"
    close = close_price(market, symbol, bar)
    return Quote(
        close=close,
        next_close=close_price(market, symbol, bar + 1),
        new_session=_at(market.session, symbol, bar) != _at(market.session, symbol, bar + 1),
        last=bar + 1 >= last_bar[symbol],
        fill_price=_at(market.open, symbol, bar + 1) if fills_next else close,
        fill_tradable=_at(market.tradable, symbol, bar + fills_next),
        fills_next=fills_next,
    )


def window(market: Market, symbol: jax.Array, bar: jax.Array, length: int) -> jax.Array:
    """Features of the `length` bars that end with `bar`: f32[length, F]; NaN before the data."""
    bars = bar - length + 1 + jnp.arange(length)
    return market.features.at[symbol, bars].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
