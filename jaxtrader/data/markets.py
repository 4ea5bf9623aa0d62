"""One split of a dataset as a market on the device, cut so that nothing later is even there."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from envs.market import Market
from jaxtrader.data.dataset import Dataset


def split_offset(dataset: Dataset, split: str) -> np.ndarray:
    """Dataset bar that is bar 0 of the split's market, int[S]."""
    return dataset.splits[split][0] - (dataset.receptive_field - 1)


def split_market(dataset: Dataset, split: str) -> tuple[Market, np.ndarray, np.ndarray]:
    """The split's bars with the R - 1 bars of history before its first decision.

    Returns:
      (market with leaves [S, T'], first decision bar int[S], last bar int[S]), in the market's own
      bar numbers. Shorter symbols are padded on the right with untradable bars and zero features:
      a NaN in a row that no loss reads would still reach the encoder's gradient, as 0 x NaN. So is
      the shorter of the validation and the test split, so that one compiled pass serves both.
    """
    _, last = dataset.splits[split]
    offset = split_offset(dataset, split)
    lengths = last - offset + 1
    alike = ("train",) if split == "train" else ("validation", "test")
    bars = np.arange(
        max((dataset.splits[name][1] - split_offset(dataset, name) + 1).max() for name in alike)
    )
    rows = np.minimum(offset[:, None] + bars, last[:, None])
    inside = bars < lengths[:, None]
    symbols = np.arange(len(dataset.symbols))[:, None]
    features = np.stack([dataset.scaler.transform(raw) for raw in dataset.raw_features])
    market = Market(
        open=jnp.asarray(dataset.open[symbols, rows], jnp.float32),
        close=jnp.asarray(dataset.close[symbols, rows], jnp.float32),
        tradable=jnp.asarray(dataset.tradable[symbols, rows] & inside),
        session=jnp.asarray(dataset.session[symbols, rows], jnp.int32),
        features=jnp.asarray(
            np.where(inside[..., None], features[symbols, rows], 0.0), jnp.float32
        ),
    )
    first = np.full(len(lengths), dataset.receptive_field - 1)
    return market, first, lengths - 1
