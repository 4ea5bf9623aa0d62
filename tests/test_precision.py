"""Switches of the networks: a frozen encoder, bfloat16, and gradient checkpointing."""

import dataclasses
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import NETWORKS, bits, hyperparameters, ppo_params, run, tiny
from markets import params_for, planted_signs, random_walk
from small_runs import CONFIG, QUIET, STEPS_PER_UPDATE, market

import jaxtrader.deployment as deployment
import jaxtrader.program as programs
from agents.learner import Learner
from agents.networks import ActorCritic, NetworkConfig
from agents.ppo import Blocks, new_optimizer_state, ppo_loss
from envs.trading import NUM_ACCOUNT_FEATURES
from jaxtrader import training
from jaxtrader.config import replace_settings
from jaxtrader.program import Program, build_program
from jaxtrader.runs import start_run
from jaxtrader.training import train

SWITCHES = [
    {"frozen_encoder": True},
    {"precision": "bfloat16"},
    {"gradient_checkpointing": True},
    {"frozen_encoder": True, "precision": "bfloat16"},
]


def named(switches):
    return "-".join(map(str, switches.values()))


def networks(**switches) -> ActorCritic:
    return ActorCritic(dataclasses.replace(NETWORKS.config, **switches))


def learner(**switches) -> Learner:
    """The tiny learner but for its networks' switches."""
    return dataclasses.replace(tiny().learner, networks=networks(**switches))


def start(**switches):
    """The tiny learner's initial state, for a learner of other switches."""
    state, hyper = tiny().init(jax.random.key(7), tiny().env_params, hyperparameters()), None
    hyper = hyperparameters()
    optimizer = new_optimizer_state(networks(**switches), state.params, hyper.ppo)
    return dataclasses.replace(state, opt_state=optimizer)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def blocks_of(count: int, length: int, first_bar: int, bars: int, seed: int = 2) -> Blocks:
    """A minibatch with everything invented."""
    rng = np.random.default_rng(seed)

    def normal(*tail):
        return jnp.asarray(rng.standard_normal((count, length, *tail)), jnp.float32)

    return Blocks(
        symbol=jnp.zeros(count, jnp.int32),
        first_bar=jnp.asarray(rng.integers(first_bar, bars - length, count), jnp.int32),
        account=normal(NUM_ACCOUNT_FEATURES),
        mask=jnp.ones((count, length, 7), bool),
        action=jnp.asarray(rng.integers(0, 7, (count, length)), jnp.int32),
        log_prob=-2.0 + 0.1 * normal(),
        advantage=normal(),
        returns=normal(),
    )


@pytest.mark.parametrize("switches", SWITCHES, ids=named)
def test_the_state_keeps_its_types(switches):
    """Whatever the networks compute in, what an update changes is float32, and strongly typed."""
    changed, setup, hyper = learner(**switches), tiny(), hyperparameters()

    def init_and_update(key):
        before = changed.init(key, setup.env_params, hyper)
        table = changed.embeddings(before.params, setup.env_params)
        return before, changed.update(before, setup.env_params, hyper, table), table

    before, (after, metrics), table = jax.eval_shape(init_and_update, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    for path, leaf in jax.tree_util.tree_leaves_with_path((before, after)):
        assert not leaf.weak_type, jax.tree_util.keystr(path)
        assert leaf.dtype != jnp.bfloat16, jax.tree_util.keystr(path)
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics.loss)} == {jnp.dtype("float32")}
    assert (table is not None) == switches.get("frozen_encoder", False)
    if table is not None:
        assert table.dtype == switches.get("precision", "float32")


# ------------------------------------------------------------------------------ frozen encoder


@pytest.fixture(scope="module")
def frozen():
    """Three updates that read a table, and three that encode what they need themselves."""
    changed, setup = learner(frozen_encoder=True), tiny()
    state = start(frozen_encoder=True)
    table = jax.jit(changed.embeddings)(state.params, setup.env_params)
    update = jax.jit(changed.update)

    def updates(*table):
        after = state
        for _ in range(3):
            after, metrics = update(after, setup.env_params, hyperparameters(), *table)
        return bits((after, metrics))

    return SimpleNamespace(before=bits(state), table=table, with_it=updates(table), alone=updates())


def test_a_frozen_encoder_stays_as_it_is_to_the_bit(frozen):
    before, after = frozen.before.params, frozen.with_it[0].params
    chex.assert_trees_all_equal(after["encoder"], before["encoder"])
    assert size(before["encoder"]) > 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["heads"], before["heads"])
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert frozen.with_it[0].update == 3


def test_the_optimizer_of_a_frozen_encoder_knows_the_heads_alone(frozen):
    heads, encoder = (size(frozen.before.params[name]) for name in ("heads", "encoder"))
    moments = [leaf for leaf in jax.tree.leaves(frozen.with_it[0].opt_state) if leaf.ndim]
    assert [leaf.size for leaf in moments] == [heads, heads]
    learning = [leaf for leaf in jax.tree.leaves(start().opt_state) if leaf.ndim]
    assert [leaf.size for leaf in learning] == [heads + encoder] * 2


def test_updates_with_a_table_equal_those_without(frozen):
    """To the rounding of some thirty products, summed in an order that depends on the shapes."""
    (state, metrics), (expected, expected_metrics) = frozen.with_it, frozen.alone
    chex.assert_trees_all_close(state.params, expected.params, rtol=0, atol=1e-5)
    chex.assert_trees_all_close(metrics.loss, expected_metrics.loss, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_equal(state.walkers.state.bar, expected.walkers.state.bar)


def test_an_update_with_a_table_encodes_nothing(frozen, monkeypatch):
    def refuse(*_):
        raise AssertionError("encodes")

    setup, changed = tiny(), learner(frozen_encoder=True)
    state = jax.eval_shape(lambda: start(frozen_encoder=True))
    arguments = state, setup.env_params, hyperparameters()
    monkeypatch.setattr(ActorCritic, "encode", refuse)
    jax.eval_shape(changed.update, *arguments, frozen.table)
    with pytest.raises(AssertionError, match="encodes"):
        jax.eval_shape(changed.update, *arguments)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_table_is_made_once_a_run(monkeypatch, is_frozen):
    """And handed to every call of the program. The calls are not carried out."""
    config = replace_settings(CONFIG, "network", frozen_encoder=is_frozen)
    program = build_program(config, market("BBB"))
    made, used = [], []
    embeddings, run_updates = Program.embeddings, Program.run_updates

    def made_too(*arguments):
        made.append(embeddings(*arguments))
        return made[-1]

    def not_run(self, agents, params, hyper, n, tables=None):
        used.append(tables)
        shapes = jax.eval_shape(
            lambda agents: run_updates(self, agents, params, hyper, n, tables), agents
        )
        return agents, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1])

    monkeypatch.setattr(Program, "embeddings", made_too)
    monkeypatch.setattr(Program, "run_updates", not_run)
    monkeypatch.setattr(training, "_validate", lambda run: np.full((1, 1), np.nan))
    run = start_run(program, (1337,), 5 * STEPS_PER_UPDATE, None)
    train(run, 5 * STEPS_PER_UPDATE, QUIET)
    assert len(made) == 1
    assert (made[0] is not None) == is_frozen
    assert len(used) > 2  # at least up to every second update, where a checkpoint is due
    assert all(tables is made[0] for tables in used)


# ------------------------------------------------------------------------------------ bfloat16


@pytest.fixture(scope="module")
def minibatch():
    """Parameters, a market of one symbol, and invented blocks of it."""
    params = jax.jit(NETWORKS.init, static_argnums=1)(jax.random.key(0), 3)
    return params, random_walk(1, 200, 3, seed=4), blocks_of(32, 8, NETWORKS.receptive_field, 200)


def loss_and_gradient(networks, minibatch):
    def loss(params, market, blocks):
        return ppo_loss(params, networks, market, blocks, ppo_params(), jnp.float32(0.01))

    (value, parts), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*minibatch)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    return float(value), parts, flat


def test_what_is_bfloat16_and_what_is_not(minibatch):
    params, market, blocks = minibatch
    half = networks(precision="bfloat16")

    def forward(params):
        table = half.encode_market(params, market)
        embedding = half.embedding_at(table, blocks.symbol, blocks.first_bar)
        return table, half.heads(params, embedding, blocks.account[:, 0], blocks.mask[:, 0])

    table, (logits, value) = jax.eval_shape(forward, params)
    assert (table.dtype, logits.dtype, value.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    # And half of the arithmetic is not done in the other precision after all.
    program = jax.jit(forward).lower(params).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    # Two layers of the encoder, the account's, and a hidden one each of actor and critic.
    assert sum("bf16>" in line.split("->")[1] for line in products) == 5
    assert sum("f32>" in line.split("->")[1] for line in products) == 2  # logits and value


def test_loss_and_gradient_of_bfloat16_are_close_to_those_of_float32(minibatch):
    """A product's factors are rounded to 2^-9 of themselves; the loss is a mean of 256 steps."""
    value, parts, gradient = loss_and_gradient(NETWORKS, minibatch)
    half_value, half_parts, half_gradient = loss_and_gradient(
        networks(precision="bfloat16"), minibatch
    )
    assert half_value != value
    np.testing.assert_allclose(half_value, value, atol=0.01)
    chex.assert_trees_all_close(half_parts, parts, rtol=0.03, atol=0.01)
    cosine = gradient @ half_gradient / np.linalg.norm(gradient) / np.linalg.norm(half_gradient)
    assert 0.995 < cosine < 0.9999999
    np.testing.assert_allclose(np.linalg.norm(half_gradient), np.linalg.norm(gradient), rtol=0.03)


@pytest.fixture(scope="module")
def both_precisions():
    """Programs that differ in nothing but the precision of training."""
    half = replace_settings(CONFIG, "network", precision="bfloat16")
    return [build_program(config, market("BBB")) for config in (half, CONFIG)]


def network_params(program: Program):
    shapes = jax.eval_shape(
        lambda key: program.learner.networks.init(key, len(program.dataset.feature_names)),
        jax.random.key(0),
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, 1, *x.shape), x.dtype), shapes)


def lowered(program: Program, what: str) -> str:
    """The text of a program before it is compiled."""
    params, trading = network_params(program), program.params["test"]
    fixed = program.learner, program.placement
    bars = jnp.zeros((1, 4), jnp.int32)
    if what == "evaluation":
        return programs._play.lower(*fixed, params, trading, bars, bars, 64).as_text()
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, 1)))
    return deployment._observe.lower(*fixed, params, trading, keys, 2, 64).as_text()


@pytest.mark.parametrize("what", ["evaluation", "export"])
def test_evaluation_and_export_compute_in_float32_in_any_case(both_precisions, what):
    half, full = (lowered(program, what) for program in both_precisions)
    assert "bf16" not in half
    assert half == full
    assert "stablehlo.dot_general" in full


@pytest.mark.slow
def test_bfloat16_learns_a_market_whose_next_move_is_in_plain_sight():
    """The same market, and the same bar, as for float32: tests/test_learner.py explains them."""
    env_params = params_for(
        planted_signs(2, 80, move=0.05, seed=1),
        costs="free",
        reward="log_wealth",
        limits={"stop_loss": 10.0, "take_profit": 10.0, "max_drawdown": 0.99},
    )
    rates = ppo_params(learning_rate=0.01, final_learning_rate=0.01)
    hyper = hyperparameters(ppo=rates, total_updates=80)
    update = jax.jit(learner(precision="bfloat16").update)
    history = run(update, start(), env_params, hyper, 80)
    rewards = [float(metrics.reward_mean) for _, metrics in history]
    assert abs(np.mean(rewards[:2])) < 0.08
    assert np.mean(rewards[-10:]) > 0.12


# ------------------------------------------------------------------------ gradient checkpointing


def test_checkpointing_changes_neither_loss_nor_gradient(minibatch):
    value, parts, gradient = loss_and_gradient(NETWORKS, minibatch)
    again, parts_again, gradient_again = loss_and_gradient(
        networks(gradient_checkpointing=True), minibatch
    )
    np.testing.assert_allclose(again, value, rtol=1e-6)
    chex.assert_trees_all_close(parts_again, parts, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient_again, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("market_bars", [64 * 1024, 6_000], ids=["blocks", "market"])
def test_checkpointing_keeps_less_for_a_third_more_arithmetic(market_bars):
    """Of a minibatch of 16,384 steps, where its blocks are encoded and where the whole market is.

    What the forward pass leaves for the backward one, and what the compiler is asked for: that for
    a CPU does not comply, so that its own account of memory would tell nothing.
    """
    history = random_walk(1, market_bars, 8)
    blocks = jax.eval_shape(lambda: blocks_of(256, 64, 40, 4_000))

    def kept_and_computed(**switches) -> tuple[int, float, int]:
        networks = ActorCritic(NetworkConfig(**switches))
        params = jax.eval_shape(lambda key: networks.init(key, 8), jax.random.key(0))

        def loss(params, market, blocks):
            return ppo_loss(params, networks, market, blocks, ppo_params(), jnp.float32(0.01))[0]

        def kept(params, market, blocks):
            return jax.vjp(lambda params: loss(params, market, blocks), params)[1]

        left = jax.tree.leaves(jax.eval_shape(kept, params, history, blocks))
        program = jax.jit(jax.grad(loss)).lower(params, history, blocks)
        barriers = program.as_text().count("optimization_barrier")
        size = sum(x.size * x.dtype.itemsize for x in left)
        return size, program.cost_analysis()["flops"], barriers

    bytes_kept, operations, barriers = kept_and_computed()
    lean, repeated, more_barriers = kept_and_computed(gradient_checkpointing=True)
    assert lean < 0.2 * bytes_kept
    assert 1.3 < repeated / operations < 1.4
    # Without another an accelerator's compiler, too, would merge what is computed twice.
    assert more_barriers > barriers
