"""PPO: the masked policy, the loss, and the loop over epochs and minibatches."""

import itertools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from learners import NETWORKS, ppo_params
from markets import random_walk
from test_advantages import explicit_sum

import agents.ppo
from agents.networks import entropy, greedy, log_prob, mask_logits, sample
from agents.ppo import (
    Blocks,
    LossParts,
    PPOShape,
    advantages_and_returns,
    learning_rate_at,
    new_optimizer_state,
    optimize,
    ppo_loss,
    standardized,
    to_blocks,
)
from agents.rollout import Rollout
from envs.trading import NUM_ACCOUNT_FEATURES

ALL_MASKS = np.array(list(itertools.product([False, True], repeat=7)))  # the first one is empty
MARKET = random_walk(2, 40, 3, seed=11)


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    """Accelerators round the factors of a matrix product unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def params():
    return jax.jit(NETWORKS.init, static_argnums=1)(jax.random.key(0), 3)


def probabilities(logits, mask):
    """Softmax over the legal actions alone, in float64; an empty mask permits HOLD."""
    p = np.zeros(7)
    legal = np.flatnonzero(mask) if mask.any() else np.array([0])
    p[legal] = scipy.special.softmax(np.asarray(logits, np.float64)[legal])
    return p


# -------------------------------------------------------------------- the masked categorical


def random_logits(shape, seed=0, scale=3.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_probabilities_and_entropy_for_every_mask():
    raw = random_logits((128, 7)) + jnp.where(ALL_MASKS, 0.0, 40.0)  # what is illegal tempts
    logits = mask_logits(raw, jnp.asarray(ALL_MASKS))
    nats = entropy(logits)
    chex.assert_shape(nats, (128,))
    every_action = jnp.broadcast_to(jnp.arange(7), (128, 7))
    all_probabilities = np.exp(log_prob(jnp.repeat(logits[:, None], 7, axis=1), every_action))
    for row, (mask, before) in enumerate(zip(ALL_MASKS, np.asarray(raw), strict=True)):
        expected, actual = probabilities(before, mask), all_probabilities[row]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)
        assert (actual[expected == 0.0] == 0.0).all()  # exactly, not nearly
        np.testing.assert_allclose(nats[row], scipy.stats.entropy(expected), rtol=1e-5, atol=1e-6)
    assert float(jnp.exp(log_prob(logits[0], jnp.int32(0)))) == 1.0


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_masked_entropy_has_a_gradient_for_every_mask(scale):
    raw = random_logits((128, 7), seed=1, scale=scale)

    def nats(raw, mask):
        return entropy(mask_logits(raw, mask))

    gradient = jax.vmap(jax.grad(nats))(raw, jnp.asarray(ALL_MASKS))
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[~ALL_MASKS] == 0.0).all()
    for row, mask in enumerate(ALL_MASKS):
        # dH / dz_i = -p_i (log p_i + H)
        p = probabilities(raw[row], mask)
        expected = -p * (np.log(np.where(p > 0, p, 1.0)) + scipy.stats.entropy(p))
        np.testing.assert_allclose(gradient[row], expected * mask, rtol=1e-3, atol=2e-5)


def test_no_illegal_action_is_ever_drawn():
    raw = random_logits((128, 7), seed=2) + jnp.where(ALL_MASKS, 0.0, 40.0)
    logits = jnp.broadcast_to(mask_logits(raw, jnp.asarray(ALL_MASKS)), (2000, 128, 7))
    drawn = np.asarray(sample(jax.random.uniform(jax.random.key(3), (2000, 128)), logits))
    chex.assert_type(drawn, np.int32)
    legal = np.where(ALL_MASKS.any(axis=1, keepdims=True), ALL_MASKS, np.arange(7) == 0)
    assert legal[np.arange(128), drawn].all()
    assert legal[np.arange(128), np.asarray(greedy(logits[0]))].all()
    for row in (0b0111001, 0b1111111, 0b1000010):
        p = probabilities(raw[row], ALL_MASKS[row])
        counts = np.bincount(drawn[:, row], minlength=7)[p > 0]
        assert scipy.stats.chisquare(counts, 2000 * p[p > 0]).pvalue > 1e-4


BELOW_ONE = np.nextafter(np.float32(1.0), np.float32(0.0))


def test_a_draw_inverts_the_distribution_function():
    """On a grid of uniforms, against cumulative sums in float64.

    Where a uniform meets a sum to the rounding of float32, either neighbour is right.
    """
    raw = random_logits((128, 7), seed=4) + jnp.where(ALL_MASKS, 0.0, 40.0)
    uniforms = np.append(np.arange(4096, dtype=np.float32) / 4096, BELOW_ONE)
    logits = mask_logits(raw, jnp.asarray(ALL_MASKS))
    draw = jax.jit(jax.vmap(jax.vmap(sample, (None, 0)), (0, None)))
    drawn = np.asarray(draw(uniforms, logits))
    for row, (mask, before) in enumerate(zip(ALL_MASKS, np.asarray(raw), strict=True)):
        reached = np.cumsum(probabilities(before, mask))
        expected = np.searchsorted(reached, uniforms, side="right")
        distance = np.abs(reached[:-1] - uniforms[:, None]).min(axis=1)
        clear = (distance > 1e-6) | (uniforms == 0.0)
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(drawn[clear, row], expected[clear])


def test_the_first_and_the_last_uniform_draw_legal_actions():
    """Whatever sums and products round to, also at the widest odds that the heads can give."""
    rng = np.random.default_rng(5)
    mask = ALL_MASKS[rng.integers(0, 128, 200_000)]
    raw = np.where(rng.random((200_000, 1)) < 0.5, 20.0, 1.0) * rng.uniform(-0.5, 0.5, mask.shape)
    logits = mask_logits(jnp.asarray(np.where(mask, raw, 40.0), jnp.float32), jnp.asarray(mask))
    allowed = np.where(mask.any(axis=1, keepdims=True), mask, np.arange(7) == 0)
    for uniform in (0.0, np.float32(2.0**-23), np.float32(1.0 - 2.0**-23), BELOW_ONE):
        drawn = np.asarray(jax.jit(sample)(jnp.full(200_000, uniform, jnp.float32), logits))
        assert np.take_along_axis(allowed, drawn[:, None], axis=1).all(), uniform
        if uniform == 0.0:
            np.testing.assert_array_equal(drawn, allowed.argmax(axis=1))
        assert (drawn[~mask.any(axis=1)] == 0).all()


def test_the_value_ignores_the_mask(params):
    embedding, account = random_logits((128, 8)), random_logits((128, NUM_ACCOUNT_FEATURES))
    _, free = NETWORKS.heads(params, embedding, account, jnp.ones((128, 7), bool))
    _, masked = NETWORKS.heads(params, embedding, account, jnp.asarray(ALL_MASKS))
    np.testing.assert_array_equal(free, masked)


def test_the_heads_are_two_small_perceptrons(params):
    """In NumPy: the account's own layer, then one hidden layer each for actor and critic.

    Logits are squashed to within 10; they are made large here for it to matter.
    """
    rng = np.random.default_rng(4)
    heads = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32),
        params["heads"],
    )
    heads["actor"]["kernel"] *= 10.0
    embedding, account = random_logits((5, 8)), random_logits((5, NUM_ACCOUNT_FEATURES))

    def layer(name, x):
        return x @ np.asarray(heads[name]["kernel"], np.float64) + np.asarray(heads[name]["bias"])

    own = np.maximum(layer("account", np.asarray(account)), 0.0)
    joint = np.concatenate([np.asarray(embedding), own], axis=1)
    unbounded = layer("actor", np.maximum(layer("actor_hidden", joint), 0.0))
    assert np.abs(unbounded).max() > 10.0 > np.median(np.abs(unbounded))
    expected_logits = 10.0 * np.tanh(unbounded / 10.0)
    expected_value = layer("critic", np.maximum(layer("critic_hidden", joint), 0.0))[:, 0]
    logits, value = NETWORKS.heads({"heads": heads}, embedding, account, jnp.ones((5, 7), bool))
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------- the loss


class GivenOutputs:
    """Networks whose logits and values are the parameters themselves."""

    def table_is_less(self, market, num_blocks, length):
        return False

    def block_encoder(self, params, market, num_blocks, length, table=None):
        return lambda symbol, first_bar: None

    def heads(self, params, embedding, account, mask):
        return mask_logits(params["logits"], mask), params["value"]

    def split(self, params):
        return params, {}


GIVEN = GivenOutputs()
grad_of_loss = jax.jit(jax.value_and_grad(ppo_loss, has_aux=True), static_argnums=1)


def blocks_of(mask, action, old_log_prob, advantage, returns):
    """Blocks [B, C] of these steps, anywhere in the market."""
    count, length = np.shape(action)
    return Blocks(
        symbol=jnp.zeros(count, jnp.int32),
        first_bar=jnp.arange(count, dtype=jnp.int32),
        account=jnp.zeros((count, length, NUM_ACCOUNT_FEATURES)),
        mask=jnp.asarray(mask, bool),
        action=jnp.asarray(action, jnp.int32),
        log_prob=jnp.asarray(old_log_prob, jnp.float32),
        advantage=jnp.asarray(advantage, jnp.float32),
        returns=jnp.asarray(returns, jnp.float32),
    )


def loss_of(logits, value, blocks, ppo, entropy_coef):
    """((loss, parts), gradient) for given outputs of the networks."""
    blocks = blocks.replace(advantage=standardized(blocks.advantage))
    outputs = {"logits": jnp.asarray(logits, jnp.float32), "value": jnp.asarray(value, jnp.float32)}
    return grad_of_loss(outputs, GIVEN, MARKET, blocks, ppo, jnp.float32(entropy_coef))


def test_the_loss_by_hand():
    """Two steps, two legal and equally likely actions, ratios of 1.5 and 0.5, both clipped."""
    mask = np.zeros((1, 2, 7), bool)
    mask[..., [0, 1]] = True
    old = np.log([[0.5 / 1.5, 0.5 / 0.5]])
    blocks = blocks_of(mask, [[0, 1]], old, [[3.0, 1.0]], [[0.0, 0.0]])
    ppo = ppo_params(clip_ratio=0.2, value_coef=0.5)
    (loss, parts), _ = loss_of(np.zeros((1, 2, 7)), [[1.0, 2.0]], blocks, ppo, 0.01)
    # Advantages become 1 and -1: min(1.5, 1.2) and min(-0.5, -0.8).
    np.testing.assert_allclose(parts.policy_loss, -(1.2 - 0.8) / 2, rtol=1e-5)
    np.testing.assert_allclose(parts.value_loss, 0.5 * (1 + 4) / 2, rtol=1e-6)
    np.testing.assert_allclose(parts.entropy, 0.6931472, rtol=1e-6)
    # (0.5 - ln 1.5 - 0.5 - ln 0.5) / 2
    np.testing.assert_allclose(parts.approx_kl, 0.1438410, rtol=1e-5)
    assert float(parts.clip_fraction) == 1.0
    np.testing.assert_allclose(loss, -0.2 + 0.5 * 1.25 - 0.01 * 0.6931472, rtol=1e-5)


def reference_loss(logits, value, steps, clip, value_coef, entropy_coef):
    """One step at a time, in float64: (loss, policy, value, entropy, kl, clipped share)."""
    advantages = np.array([step.advantage for step in steps], np.float64)
    standardised = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    rows = []
    for z, v, step, advantage in zip(logits, value, steps, standardised, strict=True):
        p = probabilities(z, step.mask)
        ratio = p[step.action] / np.exp(step.old_log_prob)
        nearest = min(max(ratio, 1 - clip), 1 + clip)
        rows.append(
            (
                -min(ratio * advantage, nearest * advantage),
                (v - step.returns) ** 2 / 2,
                scipy.stats.entropy(p),
                ratio - 1 - np.log(ratio),
                float(ratio < 1 - clip or ratio > 1 + clip),
            )
        )
    policy, error, nats, kl, clipped = np.mean(rows, axis=0)
    return policy + value_coef * error - entropy_coef * nats, policy, error, nats, kl, clipped


def random_steps(seed, count):
    """Steps with every kind of mask, off policy by up to a factor of about two."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((count, 7))
    steps = []
    for z in logits:
        mask = ALL_MASKS[rng.integers(0, 128)]
        p = probabilities(z, mask)
        action = rng.choice(7, p=p)
        steps.append(
            SimpleNamespace(
                mask=mask,
                action=action,
                old_log_prob=np.log(p[action]) + 0.3 * rng.standard_normal(),
                advantage=2.0 + 3.0 * rng.standard_normal(),
                returns=rng.standard_normal(),
            )
        )
    return logits, rng.standard_normal(count), steps


def as_blocks(steps, length):
    def column(name):
        values = np.array([getattr(step, name) for step in steps])
        return values.reshape(-1, length, *values.shape[1:])

    names = ("mask", "action", "old_log_prob", "advantage", "returns")
    return blocks_of(*[column(name) for name in names])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.5), st.floats(0.0, 2.0), st.floats(0.0, 0.1))
def test_the_loss_equals_a_float64_reference(seed, clip, value_coef, entropy_coef):
    logits, value, steps = random_steps(seed, 24)
    ppo = ppo_params(clip_ratio=clip, value_coef=value_coef)
    (loss, parts), gradient = loss_of(
        logits.reshape(6, 4, 7), value.reshape(6, 4), as_blocks(steps, 4), ppo, entropy_coef
    )
    expected = reference_loss(logits, value, steps, clip, value_coef, entropy_coef)
    actual = (loss, *[getattr(parts, name) for name in PARTS])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(gradient["logits"]).all()


PARTS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


def test_the_gradient_equals_finite_differences_of_the_reference():
    logits, value, steps = random_steps(5, 12)
    rates = (0.2, 0.5, 0.03)
    ppo = ppo_params(clip_ratio=rates[0], value_coef=rates[1])
    _, gradient = loss_of(
        logits.reshape(3, 4, 7), value.reshape(3, 4), as_blocks(steps, 4), ppo, rates[2]
    )

    def slope(outputs, index, change):
        ends = []
        for sign in (1, -1):
            moved = [array.copy() for array in outputs]
            moved[change][index] += sign * 1e-6
            ends.append(reference_loss(*moved, steps, *rates)[0])
        return (ends[0] - ends[1]) / 2e-6

    outputs = (logits, value)
    by_logit = [[slope(outputs, (row, i), 0) for i in range(7)] for row in range(12)]
    by_value = [slope(outputs, (row,), 1) for row in range(12)]
    np.testing.assert_allclose(gradient["logits"].reshape(12, 7), by_logit, rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(gradient["value"].reshape(12), by_value, rtol=2e-3, atol=2e-6)
    assert np.abs(by_logit).max() > 0.01


def test_the_kl_estimate_is_of_the_old_policy_from_the_new():
    """With every action of a uniform old policy seen once, the estimate has no sampling error."""
    logits = random_logits((1, 7), seed=8, scale=1.0)
    new = probabilities(logits[0], np.ones(7, bool))
    blocks = blocks_of(
        np.ones((1, 7, 7)), [range(7)], np.full((1, 7), -np.log(7)), [range(7)], [[0.0] * 7]
    )
    (_, parts), _ = loss_of(
        np.tile(logits[:, None], (1, 7, 1)), np.zeros((1, 7)), blocks, ppo_params(), 0.0
    )
    expected = scipy.stats.entropy(np.full(7, 1 / 7), new)
    np.testing.assert_allclose(parts.approx_kl, expected, rtol=1e-4)


def test_equal_advantages_push_nowhere():
    """Standardising a constant must not divide by zero."""
    logits, value, steps = random_steps(6, 8)
    for step in steps:
        step.advantage = 3.0
    (loss, parts), gradient = loss_of(
        logits.reshape(2, 4, 7), value.reshape(2, 4), as_blocks(steps, 4), ppo_params(), 0.0
    )
    assert np.isfinite(loss)
    assert float(parts.policy_loss) == 0.0
    np.testing.assert_array_equal(gradient["logits"], np.zeros((2, 4, 7)))


@pytest.mark.parametrize("masks", [ALL_MASKS, ALL_MASKS[:1].repeat(128, 0)], ids=["all", "empty"])
def test_gradients_are_finite_through_the_networks_for_every_mask(params, masks):
    rng = np.random.default_rng(9)
    action = [rng.choice(np.flatnonzero(m)) if m.any() else 0 for m in masks]
    blocks = blocks_of(
        masks.reshape(16, 8, 7),
        np.reshape(action, (16, 8)),
        -2.0 + 0.1 * rng.standard_normal((16, 8)),
        rng.standard_normal((16, 8)),
        rng.standard_normal((16, 8)),
    )
    blocks = blocks.replace(
        first_bar=blocks.first_bar + NETWORKS.receptive_field,
        account=jnp.asarray(rng.standard_normal((16, 8, NUM_ACCOUNT_FEATURES)), jnp.float32),
    )
    (loss, parts), gradient = grad_of_loss(
        params, NETWORKS, MARKET, blocks, ppo_params(), jnp.float32(0.05)
    )
    chex.assert_tree_all_finite((loss, parts, gradient))
    assert float(optax.tree.norm(gradient)) > 0.01


# ------------------------------------------------------------- epochs, minibatches, one step

SHAPE = PPOShape(
    num_envs=4,
    num_blocks=3,
    block_length=4,
    num_epochs=2,
    blocks_per_minibatch=4,
    normalize_rewards=True,
)


def test_counts_of_a_shape():
    assert SHAPE.rollout_steps == 12
    assert SHAPE.steps_per_update == 48
    assert SHAPE.minibatches == 3
    with pytest.raises(ValueError, match=r"4 environments x 3 blocks .* minibatches of 5"):
        PPOShape(4, 3, 4, 2, 5, True)


def fake(monkeypatch, kl=lambda clock: 0.0, loss=lambda clock, params, blocks: 0.0):
    """Replaces loss and optimiser by ones that keep a diary.

    Parameter `clock` counts the minibatches applied, and `diary[b]` has a one in octal digit c
    when block b was in the minibatch applied at time c. `entropy` reports the clock.
    """

    def fake_loss(params, networks, market, blocks, ppo, entropy_coef, table, passes):
        clock = jax.lax.stop_gradient(params["clock"])
        write = jnp.sum(params["diary"][blocks.symbol]) * 8.0**clock
        parts = LossParts(*[jnp.float32(0.0)] * 6).replace(approx_kl=kl(clock), entropy=clock)
        return write + params["clock"] + loss(clock, params, blocks), parts

    monkeypatch.setattr(agents.ppo, "ppo_loss", fake_loss)
    monkeypatch.setattr(agents.ppo, "optimizer", lambda ppo, learning_rate: optax.sgd(-1.0))


def keep_diary(target_kl=float("inf"), seed=0):
    """(diary as octal digits [block, minibatch], final clock, mean parts, finite)."""
    zeros = np.zeros((12, 4))
    blocks = blocks_of(np.ones((12, 4, 7)), zeros, zeros, zeros, zeros)
    blocks = blocks.replace(symbol=jnp.arange(12))
    start = {"clock": jnp.float32(0.0), "diary": jnp.zeros(12), "spare": jnp.float32(0.0)}

    @jax.jit
    def run(key, ppo):
        state = new_optimizer_state(GIVEN, start, ppo)
        args = (GIVEN, start, state, MARKET, blocks, SHAPE, ppo)
        return optimize(key, *args, ppo.learning_rate, jnp.float32(0.0))

    final, _, parts, finite = run(jax.random.key(seed), ppo_params(target_kl=target_kl))
    written = np.asarray(final["diary"]).astype(int)
    digits = np.stack([written // 8**c % 8 for c in range(6)], axis=1)
    return digits, float(final["clock"]), parts, bool(finite)


def test_every_block_is_seen_once_an_epoch_in_an_order_of_its_own(monkeypatch):
    fake(monkeypatch)
    digits, clock, _, finite = keep_diary()
    assert finite
    assert clock == 6.0
    np.testing.assert_array_equal(digits[:, :3].sum(axis=1), np.ones(12))
    np.testing.assert_array_equal(digits[:, 3:].sum(axis=1), np.ones(12))
    np.testing.assert_array_equal(digits.sum(axis=0), np.full(6, 4))
    assert not np.array_equal(digits[:, :3], digits[:, 3:])
    assert not np.array_equal(digits, keep_diary(seed=1)[0])


@pytest.mark.parametrize(
    ("target_kl", "applied"), [(-1.0, 1), (0.0, 2), (2.5, 4), (4.0, 6), (float("inf"), 6)]
)
def test_no_minibatch_follows_the_one_that_exceeds_the_kl_limit(monkeypatch, target_kl, applied):
    fake(monkeypatch, kl=lambda clock: clock)  # the c-th minibatch measures c
    digits, clock, parts, finite = keep_diary(target_kl)
    assert finite
    assert clock == applied
    np.testing.assert_array_equal(digits.sum(axis=0), [4] * applied + [0] * (6 - applied))
    np.testing.assert_allclose(parts.approx_kl, (applied - 1) / 2)  # a mean over those applied


def not_a_number(clock, params, blocks):
    return jnp.where(clock == 2.0, jnp.nan, 0.0)


def vertical(clock, params, blocks):
    """At 2 the loss is finite and its slope is not."""
    return jnp.sqrt(jnp.where(clock == 2.0, params["spare"], 1.0))


@pytest.mark.parametrize("broken", [not_a_number, vertical])
def test_a_minibatch_that_is_not_finite_is_not_applied_and_is_the_last(monkeypatch, broken):
    fake(monkeypatch, loss=broken)
    digits, clock, parts, finite = keep_diary()
    assert not finite
    assert clock == 2.0
    np.testing.assert_array_equal(digits.sum(axis=0), [4, 4, 0, 0, 0, 0])
    np.testing.assert_allclose(parts.entropy, 0.5)


def test_one_bad_block_stops_the_update_where_it_comes_up(monkeypatch):
    """Even though minibatches after it are as good as those before."""
    fake(monkeypatch)
    healthy, *_ = keep_diary()
    fake(monkeypatch, loss=lambda _, __, blocks: jnp.where(blocks.symbol == 5, jnp.nan, 0).sum())
    digits, clock, _, finite = keep_diary()
    assert not finite
    assert clock == np.argmax(healthy[5])
    np.testing.assert_array_equal(digits, np.where(np.arange(6) < clock, healthy, 0))


def network_blocks(params, seed=10):
    """Twelve on-policy blocks of the real networks, with invented advantages."""
    rng = np.random.default_rng(seed)
    mask = np.ones((12, 4, 7), bool)
    mask[..., 6] = False
    blocks = blocks_of(
        mask,
        rng.integers(0, 6, (12, 4)),
        np.zeros((12, 4)),
        rng.standard_normal((12, 4)),
        rng.standard_normal((12, 4)),
    )
    blocks = blocks.replace(
        symbol=jnp.asarray(rng.integers(0, 2, 12), jnp.int32),
        first_bar=jnp.asarray(rng.integers(3, 36, 12), jnp.int32),
        account=jnp.asarray(rng.standard_normal((12, 4, NUM_ACCOUNT_FEATURES)), jnp.float32),
    )
    embedding = NETWORKS.block_encoder(params, MARKET, 12, 4)(blocks.symbol, blocks.first_bar)
    logits, _ = NETWORKS.heads(params, embedding, blocks.account, blocks.mask)
    return blocks.replace(log_prob=log_prob(logits, blocks.action))


def adam_count(opt_state):
    return int(optax.tree.get(opt_state, "count"))


def test_the_kl_limit_with_the_real_loss(params):
    blocks = jax.jit(network_blocks)(params)

    @jax.jit
    def run(key, ppo, blocks):
        state = new_optimizer_state(NETWORKS, params, ppo)
        args = (NETWORKS, params, state, MARKET, blocks, SHAPE, ppo)
        return optimize(key, *args, ppo.learning_rate, jnp.float32(0.01))

    def applied(target_kl, blocks=blocks):
        ppo = ppo_params(learning_rate=0.05, target_kl=target_kl)
        _, opt_state, parts, finite = run(jax.random.key(0), ppo, blocks)
        assert finite
        assert float(parts.grad_norm) > 0.0
        return adam_count(opt_state)

    off_policy = blocks.replace(log_prob=blocks.log_prob - 0.1)
    assert applied(float("inf")) == 6
    assert applied(-1.0) == 1
    assert applied(0.0, off_policy) == 1
    counts = [applied(limit) for limit in (1e-4, 1e-3, 1e-2, 1e-1, 1e3)]
    assert counts == sorted(counts)
    assert counts[0] < 6


@pytest.mark.parametrize("groups", [1, 4])
def test_one_minibatch_an_epoch_is_adam_on_the_clipped_gradient(params, groups):
    """Two epochs, against Adam in NumPy (Kingma & Ba 2015, algorithm 1).

    The gradient is that of the whole minibatch, its advantages standardised over all of it, also
    where groups of environments work out their own parts.
    """
    shape = PPOShape(4, 3, 4, 2, 12, True, env_shards=groups)
    blocks = jax.jit(network_blocks)(params)
    rate, coefficient = 0.01, jnp.float32(0.02)
    ppo = ppo_params(learning_rate=rate, max_grad_norm=0.3)
    advantage = np.asarray(blocks.advantage, np.float64)
    z = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ready = blocks.replace(advantage=jnp.asarray(z, jnp.float32))
    grad = jax.jit(
        lambda p: jax.grad(ppo_loss, has_aux=True)(p, NETWORKS, MARKET, ready, ppo, coefficient)
    )

    @jax.jit
    def run(key):
        state = new_optimizer_state(NETWORKS, params, ppo)
        args = (NETWORKS, params, state, MARKET, blocks, shape, ppo)
        return optimize(key, *args, ppo.learning_rate, coefficient)

    final, _, parts, _ = run(jax.random.key(0))

    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    mean = variance = jax.tree.map(np.zeros_like, expected)
    norms = []
    for step in (1, 2):
        gradient, _ = grad(jax.tree.map(jnp.float32, expected))
        gradient = jax.tree.map(lambda g: np.asarray(g, np.float64), gradient)
        norms.append(np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient))))
        clipped = jax.tree.map(lambda g: g * min(1.0, 0.3 / norms[-1]), gradient)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, clipped)
        variance = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, variance, clipped)
        first, second = 1 - 0.9**step, 1 - 0.999**step  # the bias corrections
        change = jax.tree.map(
            lambda m, v, a=first, b=second: (m / a) / (np.sqrt(v / b) + 1e-5), mean, variance
        )
        expected = jax.tree.map(lambda p, d: p - rate * d, expected, change)
    assert min(norms) > 0.3  # the limit on the norm was in force
    np.testing.assert_allclose(parts.grad_norm, np.mean(norms), rtol=1e-3)
    chex.assert_trees_all_close(final, jax.tree.map(np.float32, expected), atol=2e-4)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), final, params)
    assert min(jax.tree.leaves(moved)) > 0.005


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 3e-4), (0.25, 2.5e-4), (0.5, 2e-4), (1.0, 1e-4)]
)
def test_the_learning_rate_goes_in_a_straight_line(progress, rate):
    ppo = ppo_params(learning_rate=3e-4, final_learning_rate=1e-4)
    np.testing.assert_allclose(learning_rate_at(ppo, jnp.float32(progress)), rate, rtol=1e-6)


# --------------------------------------------------------------------- from rollout to blocks


def coded_rollout(blocks=3, length=4, envs=2):
    """A rollout whose every entry tells where it stands: 100 x block + 10 x step + env."""
    k, c, n = np.meshgrid(range(blocks), range(length), range(envs), indexing="ij")
    code = (100 * k + 10 * c + n).astype(np.float32)
    rng = np.random.default_rng(12)
    truncated = np.zeros(code.shape, bool)
    truncated[:, -1] = rng.random((blocks, envs)) < 0.5
    filler = dict.fromkeys(Rollout.__dataclass_fields__)
    return Rollout(
        **filler
        | {
            "symbol": jnp.asarray(100 * k[:, 0] + n[:, 0]),
            "first_bar": jnp.asarray(1000 + 100 * k[:, 0] + n[:, 0]),
            "account": jnp.asarray(code[..., None] + np.arange(12) / 100, jnp.float32),
            "mask": jnp.asarray(code[..., None] % 7 == np.arange(7)),
            "action": jnp.asarray(code, jnp.int32),
            "log_prob": jnp.asarray(-code),
            "value": jnp.asarray(rng.standard_normal(code.shape), jnp.float32),
            "reward": jnp.asarray(rng.standard_normal(code.shape), jnp.float32),
            "terminated": jnp.asarray(rng.random(code.shape) < 0.2),
            "truncated": jnp.asarray(truncated),
            "final_value": jnp.asarray(rng.standard_normal((blocks, envs)), jnp.float32),
            "last_value": jnp.asarray(rng.standard_normal(envs), jnp.float32),
        }
    )


def test_blocks_hold_the_steps_of_one_environment_in_order():
    rollout = coded_rollout()
    code = np.asarray(rollout.action, np.float32)
    blocks = to_blocks(rollout, jnp.asarray(code + 0.25), jnp.asarray(code + 0.5))
    chex.assert_shape(blocks.action, (6, 4))
    chex.assert_shape(blocks.account, (6, 4, 12))
    chex.assert_shape(blocks.mask, (6, 4, 7))
    for b in range(6):
        k, n = int(blocks.symbol[b]) // 100, int(blocks.symbol[b]) % 100
        assert int(blocks.first_bar[b]) == 1000 + 100 * k + n
        expected = [100 * k + 10 * c + n for c in range(4)]
        np.testing.assert_array_equal(blocks.action[b], expected)
        np.testing.assert_array_equal(-blocks.log_prob[b], expected)
        np.testing.assert_array_equal(blocks.advantage[b] - 0.25, expected)
        np.testing.assert_array_equal(blocks.returns[b] - 0.5, expected)
        np.testing.assert_array_equal(np.floor(blocks.account[b, :, 0]), expected)
        np.testing.assert_array_equal(np.argmax(blocks.mask[b], axis=1), np.array(expected) % 7)
    assert len(set(np.asarray(blocks.symbol).tolist())) == 6


def test_advantages_run_through_the_blocks_of_a_rollout():
    rollout = coded_rollout()
    rewards = rollout.reward * 2.0  # what is passed counts, not what the rollout holds
    ppo = ppo_params(discount=0.9, trace_decay=0.8)
    advantages, returns = advantages_and_returns(rollout, rewards, ppo)
    chex.assert_shape([advantages, returns], (3, 4, 2))
    final_values = np.full((3, 4, 2), np.nan)
    final_values[:, -1] = rollout.final_value
    stream = {
        name: np.asarray(array).reshape(12, 2)
        for name, array in (
            ("rewards", rewards),
            ("values", rollout.value),
            ("terminated", rollout.terminated),
            ("truncated", rollout.truncated),
            ("final_values", final_values),
        )
    }
    expected = explicit_sum(stream | {"last_value": rollout.last_value}, 0.9, 0.8)
    np.testing.assert_allclose(advantages.reshape(12, 2), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(returns, advantages + rollout.value, rtol=1e-6)
