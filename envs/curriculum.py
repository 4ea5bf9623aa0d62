"""Where episodes start."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


@struct.dataclass
class StartDistribution:
    """Uniform over symbols, then over the start bars that leave room for a whole episode."""

    first_bar: jax.Array  # i32[S] first decision bar
    last_bar: jax.Array  # i32[S] last bar that may be marked

    def sample(
        self, key: jax.Array, episode_length: jax.Array, shape: tuple[int, ...] = ()
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws (symbol, bar, stop_bar), i32[...] of `shape` each."""
        key_symbol, key_bar = jax.random.split(key)
        symbol = jax.random.randint(key_symbol, shape, 0, self.first_bar.shape[0])
        last_start = self.last_bar[symbol] - episode_length
        bar = jax.random.randint(key_bar, shape, self.first_bar[symbol], last_start + 1)
        return symbol, bar, bar + episode_length


def start_distribution(
    first_bar: np.ndarray, last_bar: np.ndarray, episode_length: int, receptive_field: int
) -> StartDistribution:
    """Checks the ranges on the host, where an error can still speak.

    Args:
      first_bar, last_bar: int[S] inclusive ranges of bars, one per symbol.
      episode_length: steps.
      receptive_field: bars of features behind each decision.

    Raises:
      ValueError: when a symbol has no room for an episode, or no full window before its first bar.
    """
    first_bar, last_bar = np.asarray(first_bar), np.asarray(last_bar)
    for symbol, (first, last) in enumerate(zip(first_bar, last_bar, strict=True)):
        if last - first < episode_length:
            raise ValueError(
                f"symbol {symbol} has {last - first} steps between bars {first} and {last}: "
                f"an episode needs {episode_length}. Shorten episode_length or use more data"
            )
        if first < receptive_field - 1:
            raise ValueError(
                f"symbol {symbol} starts at bar {first}: a window of {receptive_field} bars needs "
                f"at least bar {receptive_field - 1}"
            )
    return StartDistribution(
        first_bar=jnp.asarray(first_bar, jnp.int32), last_bar=jnp.asarray(last_bar, jnp.int32)
    )
