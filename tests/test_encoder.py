"""The market encoder: one function whether it reads a sequence, a window or a block."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import ppo_params
from markets import random_walk

from agents.networks import ActorCritic, NetworkConfig
from agents.ppo import Blocks, ppo_loss
from envs.market import Market, window
from envs.trading import NUM_ACCOUNT_FEATURES

# Rounding of a few dozen float32 products, summed in an order that depends on the shapes.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}

NETWORKS = ActorCritic(NetworkConfig(channels=8, dilations=(1, 2, 4), hidden=8, account_hidden=8))
R = NETWORKS.receptive_field  # 8
BARS, FEATURES = 40, 3


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    """Accelerators round the factors of a matrix product unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def market() -> Market:
    return random_walk(2, BARS, FEATURES, seed=3)


@pytest.fixture(scope="module")
def params():
    return random_params(NETWORKS, 1)


def random_params(networks, seed):
    """Parameters of the right shapes. Unlike the initial ones, their biases are not zero."""
    shapes = jax.eval_shape(lambda key: networks.init(key, FEATURES), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        scale = 0.2 if path[-1].key == "bias" else (2.0 / leaf.shape[0]) ** 0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def all_windows(market, receptive_field=R):
    """[S, T - R + 1, R, F], one per bar that has a full one."""
    bars = jnp.arange(receptive_field - 1, market.num_bars)
    per_bar = jax.vmap(window, (None, None, 0, None))
    return jax.vmap(per_bar, (None, 0, None, None))(
        market, jnp.arange(market.num_symbols), bars, receptive_field
    )


# ------------------------------------------------------------------------ what it computes


def convolved(params, features, dilations):
    """Zero-padded causal convolutions in float64, [T, F] to [T, D]; garbage in the first R - 1.

    The last step scales each embedding to a root mean square of 1.
    """
    x = np.asarray(features, np.float64)
    for layer, dilation in enumerate(dilations):
        weights = params["encoder"][f"layer_{layer}"]
        kernel = np.asarray(weights["kernel"], np.float64)
        inputs, outputs = kernel.shape[0] // 2, kernel.shape[1]
        y = np.tile(np.asarray(weights["bias"], np.float64), (len(x), 1))
        for i in range(inputs):
            for o in range(outputs):
                taps = np.zeros(dilation + 1)
                taps[0] = kernel[inputs + i, o]  # lag 0
                taps[dilation] = kernel[i, o]
                y[:, o] += np.convolve(x[:, i], taps)[: len(x)]
        y = np.maximum(y, 0.0)
        x = y if layer == 0 else y + x
    return x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("dilations", [(1, 2, 4), (3,), (1, 3), (1, 2, 4, 8, 16)])
def test_it_is_a_stack_of_dilated_causal_convolutions(dilations):
    networks = ActorCritic(NetworkConfig(channels=6, dilations=dilations))
    params = random_params(networks, 2)
    features = random_walk(1, 50, FEATURES, seed=4).features[0]
    expected = convolved(params, features, dilations)
    embedding = jax.jit(networks.encode)(params, features)
    chex.assert_shape(embedding, (50 - sum(dilations), 6))
    np.testing.assert_allclose(embedding, expected[sum(dilations) :], **CLOSE)


def test_the_default_receptive_field_covers_a_day_of_hourly_bars():
    assert ActorCritic().receptive_field == 32
    assert NetworkConfig(dilations=(1, 2, 4)).receptive_field == 8
    assert NetworkConfig(dilations=(3,)).receptive_field == 4


def test_a_sequence_without_one_full_window_is_an_error(params):
    with pytest.raises(ValueError, match=r"7 bars .* receptive field of 8"):
        NETWORKS.encode(params, jnp.zeros((R - 1, FEATURES)))


# --------------------------------------------------------------------- sequence and window


def test_sequence_and_window_agree_at_every_bar_with_history(params, market):
    windows = all_windows(market)
    chex.assert_shape(windows, (2, BARS - R + 1, R, FEATURES))
    by_window = NETWORKS.encode(params, windows)
    chex.assert_shape(by_window, (2, BARS - R + 1, 1, 8))
    by_sequence = NETWORKS.encode_market(params, market)
    chex.assert_shape(by_sequence, (2, BARS - R + 1, 8))
    np.testing.assert_allclose(by_sequence, by_window[:, :, 0], **CLOSE)
    assert float(jnp.abs(by_sequence).mean()) > 0.1  # and they are not both nothing


def test_sequence_and_window_agree_in_the_gradient_of_a_loss(params, market):
    windows = all_windows(market)
    rng = np.random.default_rng(0)
    target = jnp.asarray(rng.standard_normal((2, BARS - R + 1, 8)), jnp.float32)

    def loss_of(embedding):
        return jnp.mean(jnp.sin(embedding - target) ** 2)

    def by_sequence(params):
        return loss_of(NETWORKS.encode_market(params, market))

    def by_window(params):
        return loss_of(NETWORKS.encode(params, windows)[:, :, 0])

    loss_a, grads_a = jax.jit(jax.value_and_grad(by_sequence))(params)
    loss_b, grads_b = jax.jit(jax.value_and_grad(by_window))(params)
    np.testing.assert_allclose(loss_a, loss_b, rtol=1e-6)
    chex.assert_trees_all_close(grads_a, grads_b, **CLOSE)
    assert all(float(jnp.abs(g).max()) > 1e-4 for g in jax.tree.leaves(grads_a["encoder"]))


# ------------------------------------------------------------------------- finite and causal


@pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 3), (2, 5)])
def test_the_receptive_field_is_exactly_as_long_as_it_says(dilations):
    networks = ActorCritic(NetworkConfig(channels=8, dilations=dilations))
    params = random_params(networks, 3)
    length = networks.receptive_field
    features = random_walk(1, 30, FEATURES, seed=6).features[0]
    encode = jax.jit(networks.encode)
    before = np.asarray(encode(params, features))

    def moved(lag, bar):
        """Whether the embedding of `bar` changes in any bit with the features `lag` before it."""
        shaken = features.at[bar - lag].add(3.0)
        after = np.asarray(encode(params, shaken))
        return not np.array_equal(after[bar - length + 1], before[bar - length + 1])

    bars = range(length, 30)
    assert not any(moved(length, bar) for bar in bars)
    assert any(moved(length - 1, bar) for bar in bars)
    assert all(moved(0, bar) for bar in bars)


def test_the_future_changes_no_bit_of_the_past(params, market):
    encode_market = jax.jit(NETWORKS.encode_market)
    before = np.asarray(encode_market(params, market))
    for bar in (R - 1, 17, BARS - 2):
        for future in (1e6, jnp.nan):
            shaken = market.replace(features=market.features.at[:, bar + 1 :].set(future))
            after = np.asarray(encode_market(params, shaken))
            known = bar - R + 2
            assert np.array_equal(after[:, :known], before[:, :known])
            assert not np.array_equal(after[:, known], before[:, known])


def test_symbols_do_not_see_each_other(params, market):
    before = np.asarray(NETWORKS.encode_market(params, market))
    shaken = market.replace(features=market.features.at[1].add(1.0))
    after = np.asarray(NETWORKS.encode_market(params, shaken))
    assert np.array_equal(after[0], before[0])
    assert not np.array_equal(after[1], before[1])


# --------------------------------------------------------------------------- the table's rows


def test_a_bar_reads_its_own_row_of_the_table(params, market):
    table = NETWORKS.encode_market(params, market)
    for symbol in range(2):
        for bar in (R - 1, R, 20, BARS - 1):
            alone = NETWORKS.encode(params, window(market, symbol, bar, R))[0]
            row = NETWORKS.embedding_at(table, jnp.int32(symbol), jnp.int32(bar))
            np.testing.assert_allclose(row, alone, **CLOSE)


def test_bars_and_symbols_outside_the_table_read_as_nan(params, market):
    table = NETWORKS.encode_market(params, market)
    inside = jnp.arange(-3, BARS + 4)
    rows = NETWORKS.embedding_at(table, jnp.zeros_like(inside), inside)
    has_window = (inside >= R - 1) & (inside < BARS)
    np.testing.assert_array_equal(np.isnan(rows).all(axis=1), ~has_window)
    np.testing.assert_array_equal(np.isnan(rows).any(axis=1), ~has_window)
    for symbol in (-1, 2):
        assert np.isnan(NETWORKS.embedding_at(table, jnp.int32(symbol), jnp.int32(20))).all()


# ------------------------------------------------------------------------------- the blocks

LENGTH = 4  # steps a block
SYMBOL = jnp.array([0, 1, 1, 0, 1])
FIRST_BAR = jnp.array([R - 1, 9, 30, BARS - LENGTH, 11])


def encode_blocks(params, market, symbol, first_bar):
    encode = NETWORKS.block_encoder(params, market, len(symbol), LENGTH)
    return encode(symbol, first_bar)


def encoded_bars(monkeypatch, params, market, blocks):
    """Bars that `block_encoder` runs through the encoder for the first `blocks` of the blocks."""
    bars = []
    encode = ActorCritic.encode

    def spy(self, params, features):
        bars.append(int(np.prod(features.shape[:-1])))
        return encode(self, params, features)

    monkeypatch.setattr(ActorCritic, "encode", spy)
    args = (params, market, SYMBOL[:blocks], FIRST_BAR[:blocks])
    jax.eval_shape(encode_blocks, *args)
    monkeypatch.undo()
    assert len(bars) == 1
    return bars[0]


def test_the_fewer_bars_are_encoded(monkeypatch, params, market):
    a_block = LENGTH + R - 1
    short = jax.tree.map(lambda x: x[:, :20], market)  # 2 x 20 bars are less than 4 blocks of 11
    assert encoded_bars(monkeypatch, params, market, 5) == 5 * a_block
    assert encoded_bars(monkeypatch, params, short, 5) == 2 * 20
    assert encoded_bars(monkeypatch, params, short, 3) == 3 * a_block


def many(blocks):
    """Blocks, over and over, until encoding the whole market is cheaper."""
    return jnp.tile(blocks, (2,) + (1,) * (blocks.ndim - 1))


def by_windows(networks, params, market, symbol, first_bar, block_length):
    """What `block_encoder` computes, one window a step: the form used for serving."""
    bars = first_bar[:, None] + jnp.arange(block_length)
    per_step = jax.vmap(window, (None, None, 0, None))
    windows = jax.vmap(per_step, (None, 0, 0, None))(market, symbol, bars, networks.receptive_field)
    return networks.encode(params, windows)[:, :, 0]


def test_blocks_table_and_windows_agree(params, market):
    """Forward, and the gradient of a loss."""
    weights = np.random.default_rng(1).standard_normal((5, LENGTH, 8)).astype(np.float32)

    def mean_loss(embedding, weights):
        return jnp.mean(jnp.cos(weights * embedding))

    def blocks_loss(params):
        embedding = encode_blocks(params, market, SYMBOL, FIRST_BAR)
        return mean_loss(embedding, weights), embedding

    def table_loss(params):
        embedding = encode_blocks(params, market, many(SYMBOL), many(FIRST_BAR))
        return mean_loss(embedding, many(weights)), embedding[:5]

    def windows_loss(params):
        embedding = by_windows(NETWORKS, params, market, SYMBOL, FIRST_BAR, LENGTH)
        return mean_loss(embedding, weights), embedding

    results = [
        jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        for loss in (windows_loss, blocks_loss, table_loss)
    ]
    chex.assert_shape(results[0][0][1], (5, LENGTH, 8))
    assert np.isfinite(results[0][0][1]).all()
    for other in results[1:]:
        chex.assert_trees_all_close(results[0], other, **CLOSE)


def random_blocks(seed=2):
    """PPO minibatch of the five blocks, with everything else invented."""
    rng = np.random.default_rng(seed)
    shape = (5, LENGTH)

    def normal(*tail):
        return jnp.asarray(rng.standard_normal(shape + tail), jnp.float32)

    return Blocks(
        symbol=SYMBOL,
        first_bar=FIRST_BAR,
        account=normal(NUM_ACCOUNT_FEATURES),
        mask=jnp.ones((*shape, 7), bool),
        action=jnp.asarray(rng.integers(0, 7, shape), jnp.int32),
        log_prob=-2.0 + 0.1 * normal(),
        advantage=normal(),
        returns=normal(),
    )


def test_the_ppo_loss_is_the_same_by_blocks_by_table_and_by_windows(monkeypatch, params, market):
    blocks = random_blocks()

    def loss(blocks):
        grad = jax.value_and_grad(ppo_loss, has_aux=True)
        return jax.jit(grad, static_argnums=1)(
            params, NETWORKS, market, blocks, ppo_params(), jnp.float32(0.01)
        )

    by_block, by_table = loss(blocks), loss(jax.tree.map(many, blocks))
    used = []

    def block_encoder(self, params, market, num_blocks, length, table=None):
        used.append(True)
        return lambda symbol, first_bar: by_windows(self, params, market, symbol, first_bar, length)

    monkeypatch.setattr(ActorCritic, "block_encoder", block_encoder)
    expected = loss(blocks)
    assert used
    assert float(expected[0][0]) > 0.1
    chex.assert_trees_all_close(by_block, expected, **CLOSE)
    chex.assert_trees_all_close(by_table, expected, **CLOSE)


def test_steps_without_a_full_window_are_nan_in_every_form(params, market):
    """And only they: a clamped index would hand them a neighbour's bars."""
    first_bar = jnp.array([R - 1 - LENGTH, R - 3, BARS - 2, BARS + 1, 15])
    bars = np.asarray(first_bar)[:, None] + np.arange(LENGTH)
    missing = (bars < R - 1) | (bars >= BARS)

    def embeddings(params):
        return (
            encode_blocks(params, market, SYMBOL, first_bar),
            encode_blocks(params, market, many(SYMBOL), many(first_bar))[:5],
            by_windows(NETWORKS, params, market, SYMBOL, first_bar, LENGTH),
        )

    for embedding in jax.jit(embeddings)(params):
        np.testing.assert_array_equal(np.isnan(embedding).all(axis=-1), missing)
        np.testing.assert_array_equal(np.isnan(embedding).any(axis=-1), missing)


def test_a_new_policy_mostly_holds():
    """At odds of e^3 against every other legal action, within what the action layer's gain adds."""
    networks = ActorCritic()
    params = networks.init(jax.random.key(0), 4)
    rng = np.random.default_rng(0)
    embedding, account = rng.standard_normal((500, 32)), rng.standard_normal((500, 12))
    flat = np.array([True, True, True, True, False, False, False])
    logits, _ = networks.heads(params, embedding, account, np.tile(flat, (500, 1)))
    hold = np.asarray(jax.nn.softmax(logits))[:, 0]
    np.testing.assert_allclose(hold.mean(), np.exp(3) / (np.exp(3) + 3), atol=0.03)
