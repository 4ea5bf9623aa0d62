"""A whole update: same bits for the same seed, one trace, frozen agents, and that it learns."""

import dataclasses
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import (
    NETWORKS,
    bits,
    guard_params,
    hyperparameters,
    member,
    ppo_params,
    run,
    start_three,
    tiny,
)
from markets import params_for, planted_signs
from test_advantages import explicit_sum

from agents.entropy import GuardParams
from agents.learner import (
    HALT_REASONS,
    HALTED_BY_GUARD,
    HALTED_NON_FINITE,
    RUNNING,
    Hyperparameters,
    Learner,
    action_histogram,
)
from agents.normalize import new_return_scale

SEED = 1337


def start(seed=SEED, hyper=None):
    setup = tiny()
    return setup.init(jax.random.key(seed), setup.env_params, hyper or hyperparameters())


def updates(state, count, hyper=None):
    setup = tiny()
    return run(setup.update, state, setup.env_params, hyper or hyperparameters(), count)


# ------------------------------------------------------------------------------ same bits


def test_the_same_seed_gives_the_same_bits():
    first, second = updates(start(), 3), updates(start(), 3)
    chex.assert_trees_all_equal(bits(first), bits(second))
    assert int(first[-1][0].update) == 3
    assert int(first[-1][0].halt) == RUNNING
    chex.assert_tree_all_finite(bits(first))


def test_another_seed_gives_others():
    a, b = bits(updates(start(), 1)[0][0]), bits(updates(start(seed=42), 1)[0][0])
    assert not np.array_equal(a.walkers.state.bar, b.walkers.state.bar)
    assert all(
        not np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    )


def test_an_update_does_not_draw_what_the_one_before_drew():
    first = updates(start(), 1)[0][0]
    again = start().replace(key=first.key, update=first.update)
    second = updates(again, 1)[0][0]  # the same policy in the same states
    drawn = [bits(state).walkers.diary.statistics.policy_counts for state in (first, second)]
    assert not np.array_equal(*drawn)


def test_a_state_put_aside_goes_on_with_the_same_bits():
    """All that an update reads and changes is in the state: a killed run can resume."""
    history = updates(start(), 4)
    raw = bits(history[1][0])
    put_aside = jax.tree.map(jnp.asarray, raw)
    put_aside = put_aside.replace(key=jax.random.wrap_key_data(put_aside.key))
    resumed = updates(put_aside, 2)
    chex.assert_trees_all_equal(bits(resumed), bits(history[2:]))


def test_a_seed_alone_agrees_with_the_same_seed_among_three():
    """To rounding: a batched matrix product need not add in the order of a single one.

    The differences are those of float32 (6e-8 relative for one operation) after three updates of
    two epochs; Adam divides by the gradient's own size and so passes on the *relative* error of a
    gradient, however small the gradient. Everything discrete agrees exactly.
    """
    setup, hyper = tiny(), hyperparameters()
    states, hypers = start_three((42, SEED, 9001), [hyper] * 3)
    at_start = member(bits(states), 1)
    chex.assert_trees_all_equal(discrete(at_start), discrete(bits(start(SEED))))

    three = bits(run(setup.update_three, states, setup.env_params, hypers, 3)[-1][0])
    among, alone = member(three, 1), bits(updates(start(SEED), 3)[-1][0])
    chex.assert_trees_all_equal(discrete(among), discrete(alone))
    assert difference(among.params, alone.params) < 1e-5
    # And the three seeds are three: the streams do not all come from the first key.
    assert difference(member(three, 0).params, among.params) > 0.1
    assert difference(member(three, 2).params, among.params) > 0.1


def discrete(state):
    """Bars, symbols, actions, counters and the key: everything that does not round."""
    return [leaf for leaf in jax.tree.leaves(state) if not np.issubdtype(leaf.dtype, np.floating)]


def difference(tree, expected):
    """Largest difference in any leaf, relative to the leaf's largest entry."""

    def relative(a, b):
        return np.abs(a - b).max() / np.abs(b).max()

    return max(jax.tree.leaves(jax.tree.map(relative, tree, expected)))


# --------------------------------------------------------------------------- one program


def test_changed_hyperparameters_and_later_updates_compile_nothing():
    """`tiny().update` fails by itself when it is traced a second time."""
    setup = tiny()
    other = hyperparameters(
        ppo=ppo_params(
            learning_rate=1e-4,
            final_learning_rate=1e-5,
            discount=0.9,
            trace_decay=0.5,
            clip_ratio=0.1,
            value_coef=1.0,
            max_grad_norm=1.0,
            target_kl=0.02,
        ),
        guard=guard_params(threshold=0.3, patience=3, boost=2.0),
        entropy_coef=0.1,
        final_entropy_coef=0.05,
        hold=0.1,
        total_updates=77,
    )
    baseline = updates(start(), 2)
    changed = updates(start(), 2, other)
    costly = setup.env_params.replace(
        execution=setup.env_params.execution.replace(cost_multiplier=jnp.float32(1.5))
    )
    setup.update(start(), costly, other)
    assert setup.update._cache_size() == 1
    assert difference(bits(changed[-1][0].params), bits(baseline[-1][0].params)) > 1e-4


def python_scalars():
    """Hyperparameters as someone in a hurry would write them."""
    strong = hyperparameters()
    return jax.tree.map(lambda leaf: leaf.item(), strong)


@pytest.mark.parametrize("hyper", [hyperparameters(), python_scalars()], ids=["arrays", "python"])
def test_the_state_keeps_its_types(hyper):
    """A weak type in the carry would be a second trace, or an error inside a scan."""
    setup = tiny()
    assert isinstance(hyper, Hyperparameters)
    assert isinstance(hyper.guard, GuardParams)
    before = jax.eval_shape(setup.learner.init, jax.random.key(0), setup.env_params, hyper)
    after, metrics = jax.eval_shape(setup.learner.update, before, setup.env_params, hyper)
    for path, leaf in jax.tree_util.tree_leaves_with_path((before, after)):
        assert not leaf.weak_type, jax.tree_util.keystr(path)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    chex.assert_tree_shape_suffix((metrics.loss, metrics.learning_rate, metrics.entropy_coef), ())
    # Counters are integers, so that they count beyond 2^24.
    for counter in (after.update, after.halt, after.halted_at, after.guard.rescues):
        chex.assert_type(counter, jnp.int32)


def test_several_updates_fit_in_one_scan():
    setup, hyper = tiny(), hyperparameters()

    def two(state):
        def step(state, _):
            return setup.learner.update(state, setup.env_params, hyper)

        return jax.lax.scan(step, state, length=2)

    state, metrics = jax.eval_shape(two, jax.eval_shape(start))
    chex.assert_shape(metrics.reward_mean, (2,))
    chex.assert_shape(state.update, ())


def test_every_buffer_of_a_donated_state_is_used_again():
    setup = tiny()
    donating = jax.jit(setup.learner.update, donate_argnums=0)
    arguments = jax.eval_shape(start), setup.env_params, hyperparameters()
    # Lowering warns, which is an error here, of buffers that no output can take over.
    program = donating.lower(*arguments).as_text()
    assert program.count("tf.aliasing_output") == len(jax.tree.leaves(arguments[0]))


# ------------------------------------------------------------------------------ schedules


def test_schedules_run_over_the_updates_and_then_stay():
    hyper = hyperparameters(
        ppo=ppo_params(learning_rate=1e-3, final_learning_rate=2e-4),
        entropy_coef=0.02,
        final_entropy_coef=0.0,
        hold=0.5,
        total_updates=4,
    )
    history = updates(start(), 6, hyper)
    rates = [float(metrics.learning_rate) for _, metrics in history]
    np.testing.assert_allclose(rates, [1e-3, 8e-4, 6e-4, 4e-4, 2e-4, 2e-4], rtol=1e-5)
    coefficients = [float(metrics.entropy_coef) for _, metrics in history]
    np.testing.assert_allclose(coefficients, [0.02, 0.02, 0.02, 0.01, 0.0, 0.0], atol=1e-7)


# ------------------------------------------------------------------------------- freezing


def broken_critic(state):
    params = jax.tree.map(lambda leaf: leaf, state.params)
    params["heads"]["critic"]["kernel"] = params["heads"]["critic"]["kernel"].at[0, 0].set(jnp.nan)
    return state.replace(params=params), tiny().env_params


def broken_price(state):
    params = tiny().env_params
    market = params.market.replace(close=params.market.close.at[:, 20:60].set(jnp.nan))
    return state, params.replace(market=market)


def broken_feature(state):
    params = tiny().env_params
    market = params.market.replace(features=params.market.features.at[:, :, 1].set(jnp.inf))
    return state, params.replace(market=market)


@pytest.mark.parametrize("damage", [broken_critic, broken_price, broken_feature])
def test_an_agent_whose_loss_is_not_finite_stays_as_it_was(damage):
    setup = tiny()
    healthy = updates(start(), 2)[-1][0]
    before, env_params = damage(healthy)
    after, metrics = setup.update(before, env_params, hyperparameters())
    assert int(after.halt) == int(metrics.halt) == HALTED_NON_FINITE
    assert int(after.halted_at) == 3
    assert "finite" in HALT_REASONS[HALTED_NON_FINITE]
    unmarked = after.replace(halt=before.halt, halted_at=before.halted_at)
    chex.assert_trees_all_equal(bits(unmarked), bits(before))
    # Frozen for good: mending the market does not wake it.
    later, metrics = setup.update(after, setup.env_params, hyperparameters())
    assert int(metrics.halt) == HALTED_NON_FINITE
    chex.assert_trees_all_equal(bits(later), bits(after))


def test_the_first_reason_to_halt_stands():
    state, env_params = broken_critic(start())
    halted = state.replace(halt=jnp.int32(HALTED_BY_GUARD), halted_at=jnp.int32(7))
    after, metrics = tiny().update(halted, env_params, hyperparameters())
    assert int(metrics.halt) == HALTED_BY_GUARD
    chex.assert_trees_all_equal(bits(after), bits(halted))


def test_a_broken_agent_leaves_its_neighbours_alone():
    def two_updates(broken):
        states, hypers = start_three((1, 2, 3), [hyperparameters()] * 3)
        kernel = states.params["heads"]["critic"]["kernel"]
        states.params["heads"]["critic"]["kernel"] = kernel.at[1, 0, 0].add(broken)
        return bits(run(tiny().update_three, states, tiny().env_params, hypers, 2))

    history, expected = two_updates(jnp.nan), two_updates(0.0)
    np.testing.assert_array_equal(history[0][0].halt, [RUNNING, HALTED_NON_FINITE, RUNNING])
    np.testing.assert_array_equal(history[1][0].halted_at, [0, 1, 0])
    for other in (0, 2):
        chex.assert_trees_all_equal(member(history, other), member(expected, other))


# ---------------------------------------------------------------------- reward normalisation


@pytest.mark.parametrize("switch", [True, False])
def test_rewards_are_normalised_or_left_alone(switch):
    learner = dataclasses.replace(
        tiny().learner, shape=dataclasses.replace(tiny().learner.shape, normalize_rewards=switch)
    )
    rewards = 5.0 + np.random.default_rng(0).standard_normal((4, 4, 6)).astype(np.float32)
    never = jnp.zeros(rewards.shape, bool)
    rollout = SimpleNamespace(reward=jnp.asarray(rewards), terminated=never, truncated=never)
    before = new_return_scale(6)
    normalized, after = learner._normalized(rollout, before, hyperparameters())
    chex.assert_shape(normalized, rewards.shape)
    if not switch:
        np.testing.assert_array_equal(normalized, rewards)
        chex.assert_trees_all_equal(after, before)
        return
    returns = np.zeros((16, 6))
    for t, reward in enumerate(rewards.reshape(16, 6)):
        returns[t] = reward + (0.99 * returns[t - 1] if t else 0.0)
    np.testing.assert_allclose(normalized, rewards / returns.std(), rtol=1e-4)
    assert int(after.batches) == 1


# ---------------------------------------------------------------------------------- metrics


def test_action_histogram():
    actions = jnp.asarray([[0, 6, 3], [3, 3, 0]])
    np.testing.assert_array_equal(action_histogram(actions), [2, 0, 0, 3, 0, 0, 1])


def test_metrics_of_an_update():
    setup = tiny()
    state, metrics = updates(start(), 1)[0]
    finished = metrics.finished
    chex.assert_shape(finished.count, (4, 6))
    chex.assert_shape(finished.diary.statistics.policy_counts, (4, 6, 7))
    np.testing.assert_array_equal(  # staggered: episodes of 12, 8 and 4 steps come first
        np.asarray(finished.diary.statistics.steps)[0][np.asarray(finished.count)[0] > 0], [4, 4]
    )
    assert 0.0 < float(metrics.action_entropy) <= np.log(7)
    assert 0.0 < float(metrics.policy_entropy) <= np.log(7)
    assert float(metrics.explained_variance) < 1.0
    assert int(state.return_scale.batches) == 1
    fewer = Learner(setup.learner.env, NETWORKS, setup.learner.shape, telemetry_envs=2)
    arguments = setup.env_params, hyperparameters()
    fresh = jax.eval_shape(fewer.init, jax.random.key(0), *arguments)
    shapes = jax.eval_shape(fewer.update, fresh, *arguments)[1].finished
    chex.assert_tree_shape_prefix(shapes, (4, 2))


def test_losses_of_an_update_that_holds_and_does_not_learn():
    """Certain to hold and at a learning rate of zero: everything follows from the values alone."""
    setup = tiny()
    env_params = setup.env_params.replace(max_steps_in_episode=jnp.int32(64))
    still = ppo_params(learning_rate=0.0, final_learning_rate=0.0, discount=0.9, trace_decay=0.8)
    state = setup.init(jax.random.key(3), env_params, hyperparameters())
    state.params["heads"]["actor"]["bias"] = jnp.float32([1e4] + 6 * [-1e4])
    before = bits(state)
    after, metrics = setup.update(state, env_params, hyperparameters(ppo=still))
    chex.assert_trees_all_equal(bits(after).params, before.params)
    assert float(metrics.policy_entropy) == float(metrics.reward_mean) == 0.0

    # Sixteen steps from the first bar of each walker, none of which ends an episode.
    walkers = before.walkers.state
    bars = walkers.bar[:, None] + np.arange(17)
    assert (bars[:, -1] < walkers.stop_bar).all()
    windows = bars[..., None] + np.arange(-NETWORKS.receptive_field + 1, 1)
    features = env_params.market.features[walkers.symbol[:, None, None], windows]
    embedding = NETWORKS.encode(state.params, features)[:, :, 0]
    flat = np.tile(np.eye(12, dtype=np.float32)[6], (6, 17, 1))  # all cash, all else zero
    _, values = NETWORKS.heads(state.params, embedding, flat, np.ones((6, 17, 7), bool))
    values = np.asarray(values).T
    never = np.zeros((16, 6), bool)
    advantages = explicit_sum(
        {
            "rewards": np.zeros((16, 6)),
            "values": values[:-1],
            "terminated": never,
            "truncated": never,
            "final_values": np.zeros((16, 6)),
            "last_value": values[-1],
        },
        0.9,
        0.8,
    )
    returns = advantages + values[:-1]
    np.testing.assert_allclose(metrics.loss.value_loss, 0.5 * np.mean(advantages**2), rtol=1e-4)
    np.testing.assert_allclose(metrics.loss.policy_loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(metrics.loss.entropy, 0.0, atol=1e-5)
    np.testing.assert_allclose(
        metrics.explained_variance, 1.0 - advantages.var() / returns.var(), rtol=1e-3
    )


def test_the_guard_watches_what_is_executed():
    """Where nothing trades everything executed is HOLD, whatever the policy says."""
    market = tiny().env_params.market
    halted = tiny().env_params.replace(
        market=market.replace(tradable=jnp.zeros_like(market.tradable))
    )
    _, metrics = tiny().update(start(), halted, hyperparameters())
    assert float(metrics.action_entropy) == 0.0
    assert float(metrics.policy_entropy) > 0.2
    assert float(metrics.reward_mean) == 0.0


# ----------------------------------------------------------------------------- it does learn


def test_it_learns_a_market_whose_next_move_is_in_plain_sight():
    """Up 5 % or down 5 %, told one bar ahead, and nothing to pay."""
    env_params = params_for(
        planted_signs(2, 80, move=0.05, seed=1),
        costs="free",
        reward="log_wealth",
        limits={"stop_loss": 10.0, "take_profit": 10.0, "max_drawdown": 0.99},
    )
    rates = ppo_params(learning_rate=0.01, final_learning_rate=0.01)
    hyper = hyperparameters(ppo=rates, total_updates=80)
    history = run(tiny().update, start(), env_params, hyper, 80)
    rewards = [float(metrics.reward_mean) for _, metrics in history]
    # The initial policy knows nothing. 9 % of equity in every rise of 5 %, which is every other
    # bar, is worth ln(1 + 0.09 x 0.05) / 0.01 / 2 = 0.22 a step.
    assert abs(np.mean(rewards[:2])) < 0.08
    assert np.mean(rewards[-10:]) > 0.12


def test_the_guard_rescues_agents_that_collapse_without_it():
    """At costs that eat up most trades, some seeds stop trading before they learn which ones pay.

    The guard has its default threshold, boost, floor and ceiling.
    """
    env_params = params_for(
        planted_signs(2, 80, move=0.05, seed=1),
        costs="free",
        reward="log_wealth",
        limits={"stop_loss": 10.0, "take_profit": 10.0, "max_drawdown": 0.99},
    )
    env_params = env_params.replace(
        execution=env_params.execution.replace(commission=jnp.float32(0.0125))
    )

    def late(seed: int, threshold: float) -> tuple[float, float]:
        """Mean entropy of executed actions, and mean reward, in the last ten of 70 updates."""
        hyper = hyperparameters(
            ppo=ppo_params(learning_rate=0.015, final_learning_rate=0.015),
            guard=guard_params(threshold=threshold, warm_up=2, cool_down=10),
            total_updates=70,
        )
        state = tiny().init(jax.random.key(seed), env_params, hyper)
        metrics = [m for _, m in run(tiny().update, state, env_params, hyper, 70)[-10:]]
        return (
            float(np.mean([m.action_entropy for m in metrics])),
            float(np.mean([m.reward_mean for m in metrics])),
        )

    seeds = (43, 65, 87)
    unguarded = {seed: late(seed, threshold=-1.0) for seed in seeds}
    collapsed = [seed for seed in seeds if unguarded[seed][0] < 0.22]
    assert collapsed, f"nothing to rescue: {unguarded}"
    for seed in collapsed:
        nats, reward = late(seed, threshold=0.22)
        assert nats > 0.22
        assert reward > max(0.0, unguarded[seed][1])
