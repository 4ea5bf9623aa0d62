"""What a symbol holds and what the account owns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Position:
    """One symbol's holding. Money is in units of the initial equity."""

    shares: jax.Array  # f32[] >= 0; shares x price is money
    cost_basis: jax.Array  # f32[] what the shares held cost, costs included
    peak_basis: jax.Array  # f32[] largest cost basis since entry
    realized_profit: jax.Array  # f32[] net profit of the sells since entry
    entry_size: jax.Array  # i32[] the BUY action that opened it (1, 2, 3); 0 when flat
    adds: jax.Array  # i32[] ADD_POSITION fills since entry
    partial_taken: jax.Array  # bool[] whether a SELL_PARTIAL has filled since entry
    bars_held: jax.Array  # i32[] closes marked since entry: 1 at the close of the entry bar

    @property
    def is_long(self) -> jax.Array:
        return self.shares > 0

    def half(self, lot: jax.Array) -> jax.Array:
        """Shares that SELL_PARTIAL sells, f32[]."""
        return round_down_to_lot(0.5 * self.shares, lot)

    def value(self, price: jax.Array) -> jax.Array:
        """Market value at `price`, f32[]."""
        return self.shares * price

    def unrealized_return(self, price: jax.Array) -> jax.Array:
        """Return on the cost basis, entry costs included, exit costs not; 0 when flat."""
        basis = jnp.where(self.is_long, self.cost_basis, 1.0)
        return jnp.where(self.is_long, self.value(price) / basis - 1.0, 0.0)


@struct.dataclass
class Account:
    """The shared purse. Money is in units of the initial equity."""

    cash: jax.Array  # f32[] >= 0
    cash_residual: jax.Array  # f32[] low-order part of cash that float32 cannot hold
    equity: jax.Array  # f32[] cash + shares x close, at the close of the current bar
    peak_equity: jax.Array  # f32[] largest equity since the episode's start, start included

    @property
    def drawdown(self) -> jax.Array:
        """Fall from the peak as a fraction of it, f32[] in [0, 1]."""
        return 1.0 - self.equity / self.peak_equity

    def receive(self, flow: jax.Array) -> "Account":
        """Adds `flow` (negative when paying) by Knuth's two-sum, which keeps what rounding drops.

        Thousands of small flows into a float32 purse would otherwise drift away from the ledger.
        """
        corrected = flow + self.cash_residual
        cash = jnp.maximum(self.cash + corrected, 0.0)
        kept = cash - self.cash
        residual = (self.cash - (cash - kept)) + (corrected - kept)
        return replace(self, cash=cash, cash_residual=residual)

    def mark(self, holdings: jax.Array) -> "Account":
        """Revalues the account with `holdings` (f32[], market value of all shares)."""
        equity = self.cash + holdings
        return replace(self, equity=equity, peak_equity=jnp.maximum(self.peak_equity, equity))


def round_down_to_lot(shares: jax.Array, lot: jax.Array) -> jax.Array:
    """Whole lots of `lot` shares (f32[], both per unit of initial equity); 0 permits fractions.

    A holding of k lots is k x lot only to float32: the tolerance keeps it from losing a lot.
    """
    lots = jnp.floor(shares / jnp.where(lot > 0, lot, 1.0) * (1.0 + 1e-6))
    return jnp.where(lot > 0, lots * lot, shares)


def flat_position() -> Position:
    """No holding."""
    zero, none = jnp.float32(0.0), jnp.int32(0)
    return Position(
        shares=zero,
        cost_basis=zero,
        peak_basis=zero,
        realized_profit=zero,
        entry_size=none,
        adds=none,
        partial_taken=jnp.bool_(False),
        bars_held=none,
    )


def new_account() -> Account:
    """All cash, worth exactly 1."""
    one = jnp.float32(1.0)
    return Account(cash=one, cash_residual=jnp.float32(0.0), equity=one, peak_equity=one)
