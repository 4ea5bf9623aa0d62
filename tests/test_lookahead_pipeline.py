"""The look-ahead probe over the whole way: bars, features, scaler, network, actions and fills."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.networks import ActorCritic
from agents.playback import play
from jaxtrader.config import TrainingConfig
from jaxtrader.data import dataset_from_bars, read_bars, synthetic_bars
from jaxtrader.data.lookahead import noise_after
from jaxtrader.program import build_program

NETWORKS = ActorCritic()
PLAY = jax.jit(play, static_argnums=(0, 2, 6))
DATA_DIR = os.environ.get("JAXTRADER_DATA_DIR")


def playback(bars, params, scaler, split):
    """What the greedy policy did on `split`, and the market it saw. The scaler is the first run's:
    it is fitted on the training bars, which the noise below does not touch."""
    dataset = dataset_from_bars([bars], minimum_bars=257)
    if scaler is not None:
        assert dataset.scaler.to_dict() == scaler.to_dict()
    program = build_program(TrainingConfig(), dataset)
    trading = jax.tree.map(lambda x: x[0], program.params[split])
    first, last = trading.starts.first_bar, trading.starts.last_bar
    steps = int(last[0] - first[0])
    result = PLAY(NETWORKS, params, program.learner.env, trading, first, last, steps)
    offset = int(dataset.splits[split][0][0]) - (dataset.receptive_field - 1)
    return dataset, jax.device_get((trading.market, result.steps)), offset


def probe(bars):
    dataset = dataset_from_bars([bars], minimum_bars=257)
    params = NETWORKS.init(jax.random.key(0), dataset.raw_features.shape[2])
    # An untrained actor holds whatever it sees: sharper logits without a bias make it trade.
    actor = params["heads"]["actor"]
    actor["kernel"], actor["bias"] = 30.0 * actor["kernel"], jnp.zeros_like(actor["bias"])
    base, (market, steps), offset = playback(bars, params, None, "test")
    start = offset + base.receptive_field - 1
    assert (steps.executed != 0).sum() > 5  # the probe sees trades
    for t in np.linspace(start + 5, len(bars.close) - 8, 6).astype(int):
        _, (noisy_market, noisy), _ = playback(
            noise_after(bars, int(t)), params, base.scaler, "test"
        )
        known = slice(0, int(t) - offset + 1)
        np.testing.assert_array_equal(market.features[0, known], noisy_market.features[0, known])
        # Decisions at the closes of bars up to t, and everything booked by the close of bar t.
        decided = int(t) - start + 1
        for name in ("bar", "action", "entropy", "value"):
            before, after = getattr(steps, name), getattr(noisy, name)
            np.testing.assert_array_equal(before[:decided], after[:decided], err_msg=name)
        booked = decided - 1
        for name in ("executed", "reason", "reward", "fill_price", "cash", "shares", "equity"):
            before, after = getattr(steps, name), getattr(noisy, name)
            np.testing.assert_array_equal(before[:booked], after[:booked], err_msg=name)
        # And the noise is seen where it may be seen: the probe is not blind.
        assert not np.array_equal(steps.equity[decided:], noisy.equity[decided:])


def test_nothing_up_to_t_depends_on_bars_after_t():
    probe(synthetic_bars(sessions=420))


@pytest.mark.real_data
@pytest.mark.skipif(DATA_DIR is None, reason="JAXTRADER_DATA_DIR is not set")
def test_nothing_up_to_t_depends_on_bars_after_t_on_real_spy():
    probe(read_bars(DATA_DIR, "SPY"))


def test_training_holds_no_bar_of_the_later_splits():
    dataset = dataset_from_bars([synthetic_bars(sessions=420)], minimum_bars=257)
    program = build_program(TrainingConfig(), dataset)
    bars = program.params["train"].market.open.shape[-1]
    last = int(dataset.splits["train"][1][0])
    first = int(dataset.splits["train"][0][0]) - (dataset.receptive_field - 1)
    assert bars == last - first + 1
    np.testing.assert_array_equal(
        program.params["train"].market.close[0, 0],
        jnp.asarray(dataset.close[0, first : last + 1], jnp.float32),
    )
