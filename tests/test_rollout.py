"""Rollouts: every number stored is found again by walking the same market by hand."""

import collections
import functools
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from learners import NETWORKS
from markets import params_for, random_walk
from reference_simulator import COMPONENTS, COSTS, ReferenceParameters, ReferenceSimulator

from agents.networks import entropy, log_prob
from agents.rollout import collect, start_walkers
from envs.actions import Reason
from envs.trading import NUM_ACCOUNT_FEATURES, TradingEnv

ENVS, BLOCKS, LENGTH, EPISODE = 6, 7, 4, 12
WINDOW = NETWORKS.receptive_field  # 4
LIMITS = {"max_drawdown": 0.004, "bankruptcy_equity": 0.994}  # a crash of this market ends it all
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    """Accelerators round the factors of a matrix product unless told not to."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def walk():
    """One rollout in a market wild enough to ruin accounts in the middle of blocks."""
    market = random_walk(2, 90, 3, volatility=0.12, seed=21)
    params = params_for(market, episode_length=EPISODE, receptive_field=WINDOW, limits=LIMITS)
    env = TradingEnv(params, window=WINDOW)
    weights = jax.jit(NETWORKS.init, static_argnums=1)(jax.random.key(5), 3)
    # A policy with opinions: the initial one mostly holds whatever it sees.
    weights["heads"]["actor"]["kernel"] *= 20.0
    weights["heads"]["actor"]["bias"] *= 0.0

    def start(recorded_envs, groups=1):
        return start_walkers(jax.random.key(6), env, params, ENVS, LENGTH, recorded_envs, groups)

    walkers = start(ENVS)

    @partial(jax.jit, static_argnames="groups")
    def rollout(key, weights, params, walkers, groups=1):
        return collect(key, NETWORKS, weights, env, params, walkers, BLOCKS, LENGTH, groups=groups)

    after, stored = rollout(jax.random.key(7), weights, params, walkers)
    return SimpleNamespace(
        env=env,
        params=params,
        weights=weights,
        start=start,
        walkers=walkers,
        after=after,
        stored=stored,
        rollout=rollout,
        replay=functools.cache(lambda: replay(env, params, weights, walkers, after, stored)),
    )


def replay(env, params, weights, walkers, after, stored):
    """Steps every environment in turn with the stored actions; one record a step.

    What is random is taken from the rollout: the actions, and where an episode starts after a
    truncation. Everything else is computed again, the policy from the window of the observation.
    """
    transition = jax.jit(env.transition)
    fresh = jax.jit(env.initial_state)

    @jax.jit
    def look(state):
        observation = env.observe(None, state, None, params)
        features = observation[:-NUM_ACCOUNT_FEATURES].reshape(WINDOW, -1)
        account, mask = observation[-NUM_ACCOUNT_FEATURES:], env.action_mask(state, params)
        embedding = NETWORKS.encode(weights, features)[0]
        logits, value = NETWORKS.heads(weights, embedding, account, mask)
        return account, mask, logits, value

    records = {}
    for n in range(ENVS):
        state = jax.tree.map(lambda leaf, n=n: leaf[n], walkers.state)
        for k in range(BLOCKS):
            for c in range(LENGTH):
                account, mask, logits, value = look(state)
                action = stored.action[k, c, n]
                before = state
                state, outcome = transition(state, action, params)
                record = SimpleNamespace(
                    before=before,
                    account=account,
                    mask=mask,
                    value=value,
                    logits=logits,
                    log_prob=log_prob(logits, action),
                    entropy=entropy(logits),
                    outcome=outcome,
                    state=state,
                    final_value=look(state)[3],
                )
                records[k, c, n] = record
                if outcome.truncated:
                    last = k == BLOCKS - 1
                    symbol = after.state.symbol[n] if last else stored.symbol[k + 1, n]
                    bar = after.state.bar[n] if last else stored.first_bar[k + 1, n]
                    state = fresh(symbol, bar, bar + EPISODE)
                elif outcome.terminated:
                    state = fresh(state.symbol, state.bar, state.stop_bar)
        records["end", n] = (state, look(state))
    return records


def each(walk):
    """(k, c, n, record) of every step."""
    for key, record in walk.replay().items():
        if key[0] != "end":
            yield *key, record


# ------------------------------------------------------------------------------ what happened


def test_shapes(walk):
    stored = walk.stored
    shape = (BLOCKS, LENGTH, ENVS)
    for name in ("action", "executed", "log_prob", "entropy", "value", "reward", "terminated"):
        chex.assert_shape(getattr(stored, name), shape)
    chex.assert_shape(stored.account, (*shape, NUM_ACCOUNT_FEATURES))
    chex.assert_shape(stored.mask, (*shape, 7))
    chex.assert_shape([stored.symbol, stored.first_bar, stored.final_value], (BLOCKS, ENVS))
    chex.assert_shape(stored.last_value, (ENVS,))
    chex.assert_type([stored.symbol, stored.first_bar, stored.action, stored.executed], jnp.int32)
    chex.assert_tree_all_finite(stored)


def test_the_crash_market_ruins_accounts_in_the_middle_of_blocks(walk):
    """The tests below say something only if all this happened."""
    terminated, truncated = np.asarray(walk.stored.terminated), np.asarray(walk.stored.truncated)
    assert terminated[:, :-1].sum() >= 5
    assert truncated.sum() >= 10
    assert (terminated & truncated).sum() >= 1
    assert not (terminated | truncated)[:, -1].all()
    ruins = {int(r.before.conduct.ruin) for *_, r in each(walk)}
    assert {Reason.BANKRUPTCY, Reason.DRAWDOWN_BREAKER} <= ruins
    assert len(set(np.asarray(walk.stored.executed).ravel().tolist())) >= 6
    assert np.asarray(walk.stored.finished.count).max() >= 2  # two ends within one block


def test_blocks_are_contiguous(walk):
    """Through ruin and all: a block is one stretch of bars of one symbol."""
    for k, c, n, record in each(walk):
        assert int(record.before.symbol) == int(walk.stored.symbol[k, n])
        assert int(record.before.bar) == int(walk.stored.first_bar[k, n]) + c


def test_episodes_are_truncated_in_the_last_step_of_a_block_only(walk):
    assert not np.asarray(walk.stored.truncated)[:, :-1].any()
    for k, c, n, record in each(walk):
        assert bool(walk.stored.truncated[k, c, n]) == (
            int(record.before.bar) + 1 == int(record.before.stop_bar)
        )


def test_after_ruin_a_fresh_account_goes_on_from_the_same_bar(walk):
    records, seen = walk.replay(), 0
    for k, c, n, record in each(walk):
        if not record.outcome.terminated or record.outcome.truncated or c == LENGTH - 1:
            continue
        seen += 1
        after = records[k, c + 1, n].before
        assert int(after.bar) == int(record.state.bar)
        assert int(after.stop_bar) == int(record.state.stop_bar)
        assert int(after.time) == 0
        # As seen by the policy: all cash, no drawdown, nothing remembered, buys legal.
        account = np.asarray(walk.stored.account[k, c + 1, n])
        np.testing.assert_array_equal(account, np.eye(NUM_ACCOUNT_FEATURES)[6])
        expected = [True, True, True, True, False, False, False]
        np.testing.assert_array_equal(walk.stored.mask[k, c + 1, n], expected)
    assert seen >= 5


def test_after_a_truncation_the_next_block_starts_within_the_distribution(walk):
    starts, seen = walk.params.starts, set()
    for k, c, n, record in each(walk):
        if record.outcome.truncated and k + 1 < BLOCKS:
            symbol, bar = int(walk.stored.symbol[k + 1, n]), int(walk.stored.first_bar[k + 1, n])
            assert int(starts.first_bar[symbol]) <= bar
            assert bar + EPISODE <= int(starts.last_bar[symbol])
            seen.add((symbol, bar))
        elif c == LENGTH - 1 and k + 1 < BLOCKS:
            assert int(walk.stored.symbol[k + 1, n]) == int(record.before.symbol)
            assert int(walk.stored.first_bar[k + 1, n]) == int(record.before.bar) + 1
    assert len(seen) >= 6
    assert {symbol for symbol, _ in seen} == {0, 1}


# ------------------------------------------------------------------------- what was stored


def test_what_the_policy_saw_and_said_is_recomputed_from_windows(walk):
    stored = walk.stored
    for k, c, n, record in each(walk):
        at = (k, c, n)
        np.testing.assert_allclose(stored.account[at], record.account, **CLOSE)
        np.testing.assert_array_equal(stored.mask[at], record.mask)
        np.testing.assert_allclose(stored.log_prob[at], record.log_prob, **CLOSE)
        np.testing.assert_allclose(stored.value[at], record.value, **CLOSE)
        np.testing.assert_allclose(stored.entropy[at], record.entropy, **CLOSE)
        assert stored.mask[at][stored.action[at]]


def test_what_the_environment_answered_is_recomputed(walk):
    stored = walk.stored
    for k, c, n, record in each(walk):
        at = (k, c, n)
        assert int(stored.executed[at]) == int(record.outcome.executed)
        assert bool(stored.terminated[at]) == bool(record.outcome.terminated)
        assert bool(stored.truncated[at]) == bool(record.outcome.truncated)
        np.testing.assert_allclose(stored.reward[at], record.outcome.reward, **CLOSE)


def test_the_final_value_is_of_the_observation_before_the_reset(walk):
    records, different = walk.replay(), 0
    for k in range(BLOCKS):
        for n in range(ENVS):
            record = records[k, LENGTH - 1, n]
            np.testing.assert_allclose(walk.stored.final_value[k, n], record.final_value, **CLOSE)
            if record.outcome.truncated and k + 1 < BLOCKS:
                after_reset = float(walk.stored.value[k + 1, 0, n])
                different += abs(after_reset - float(record.final_value)) > 0.01
    assert different >= 5


def test_the_last_value_and_the_walkers_are_those_after_the_last_step(walk):
    records = walk.replay()
    _, following = walk.rollout(jax.random.key(8), walk.weights, walk.params, walk.after)
    for n in range(ENVS):
        state, (account, mask, _, value) = records["end", n]
        np.testing.assert_allclose(walk.stored.last_value[n], value, **CLOSE)
        mine = jax.tree.map(lambda leaf, n=n: leaf[n], walk.after.state)
        chex.assert_trees_all_close(mine, state, **CLOSE)
        # And the next rollout sets out from there.
        assert int(following.symbol[0, n]) == int(state.symbol)
        assert int(following.first_bar[0, n]) == int(state.bar)
        np.testing.assert_allclose(following.account[0, 0, n], account, **CLOSE)
        np.testing.assert_array_equal(following.mask[0, 0, n], mask)
        np.testing.assert_allclose(following.value[0, 0, n], value, **CLOSE)


# -------------------------------------------------------------------------------- episodes


def episodes_of(walk):
    """[(env, steps of the episode as (k, c), complete)], split where an episode ended."""
    terminated, truncated = np.asarray(walk.stored.terminated), np.asarray(walk.stored.truncated)
    episodes = []
    for n in range(ENVS):
        steps = []
        for k in range(BLOCKS):
            for c in range(LENGTH):
                steps.append((k, c))
                if terminated[k, c, n] or truncated[k, c, n]:
                    episodes.append((n, steps))
                    steps = []
    return episodes


def test_finished_episodes_are_those_of_an_independent_simulator(walk):
    """A float64 engine that shares no code with the library plays every episode again."""
    market, finished = walk.params.market, walk.stored.finished
    last = {(steps[-1][0], n): steps for n, steps in episodes_of(walk)}  # the last one of a block
    count = collections.Counter((steps[-1][0], n) for n, steps in episodes_of(walk))
    rules = ReferenceParameters(
        **COSTS["retail"],
        max_drawdown=LIMITS["max_drawdown"],
        bankruptcy_equity=LIMITS["bankruptcy_equity"],
    )
    for k in range(BLOCKS):
        for n in range(ENVS):
            diary = jax.tree.map(lambda leaf, at=(k, n): np.asarray(leaf[at]), finished.diary)
            s = diary.statistics
            assert int(finished.count[k, n]) == count[k, n]
            if not count[k, n]:
                chex.assert_trees_all_equal(diary, jax.tree.map(np.zeros_like, diary))
                continue
            steps = last[k, n]
            first = walk.replay()[(*steps[0], n)].before
            symbol = int(first.symbol)
            simulator = ReferenceSimulator(
                np.asarray(market.open[symbol]),
                np.asarray(market.close[symbol]),
                np.asarray(market.tradable[symbol]),
                np.asarray(market.session[symbol]),
                rules,
            )
            simulator.reset(int(first.bar), int(first.stop_bar))
            records = [simulator.step(int(walk.stored.action[(*at, n)])) for at in steps]
            assert simulator.done
            assert min(record.margin for record in records) > 1e-6  # no decision hangs on a bit

            def histogram(values, size):
                return np.bincount(values, minlength=size)

            assert int(s.steps) == len(records)
            np.testing.assert_array_equal(
                s.policy_counts, histogram([r.policy_action for r in records], 7)
            )
            np.testing.assert_array_equal(
                s.executed_counts, histogram([r.executed_action for r in records], 7)
            )
            np.testing.assert_array_equal(
                s.reason_counts, histogram([r.reason for r in records], 16)
            )
            assert int(s.repeat_violations) == sum(r.streak > 3 for r in records)
            assert int(s.long_steps) == sum(r.shares > 0 for r in records)
            kinds = collections.Counter(trade.kind for trade in simulator.ledger)
            assert int(s.voluntary_exits) == kinds["voluntary"]
            assert int(s.forced_exits) == kinds["forced"]
            assert int(s.ended_exits) == kinds["ended"]
            profits = np.array([trade.net_profit for trade in simulator.ledger] or [0.0])
            assert int(s.winning_trades) == (profits > 0).sum()
            money = {"rtol": 1e-4, "atol": 1e-6}
            np.testing.assert_allclose(s.gross_profit, profits[profits > 0].sum(), **money)
            np.testing.assert_allclose(s.gross_loss, -profits[profits < 0].sum(), **money)
            np.testing.assert_allclose(s.costs, sum(r.fill_costs for r in records), **money)
            np.testing.assert_allclose(s.final_equity, records[-1].equity, rtol=1e-6)
            np.testing.assert_allclose(s.max_drawdown, max(r.drawdown for r in records), atol=1e-6)
            np.testing.assert_allclose(s.reward, sum(r.reward for r in records), **CLOSE)
            for name in COMPONENTS:
                values = [r.components[name] for r in records]
                scale = {"rtol": 1e-3, "atol": 1e-3 * max(1.0, np.abs(values).max())}
                np.testing.assert_allclose(getattr(s.components, name), sum(values), **scale)
                np.testing.assert_allclose(
                    getattr(s.magnitudes, name), np.abs(values).sum(), **scale
                )
            nats = sum(float(walk.stored.entropy[(*at, n)]) for at in steps)
            np.testing.assert_allclose(diary.entropy_sum, nats, rtol=1e-5)


def test_an_unfinished_episode_keeps_its_diary_for_the_next_rollout(walk):
    diary = walk.after.diary
    for n in range(ENVS):
        ends = [steps[-1] for env, steps in episodes_of(walk) if env == n]
        order = [(k, c) for k in range(BLOCKS) for c in range(LENGTH)]
        open_steps = order[order.index(ends[-1]) + 1 :]
        nats = sum(float(walk.stored.entropy[(*at, n)]) for at in open_steps)
        np.testing.assert_allclose(diary.entropy_sum[n], nats, rtol=1e-5, atol=1e-7)
        actions = [int(walk.stored.action[(*at, n)]) for at in open_steps]
        assert int(diary.statistics.steps[n]) == len(actions)
        counts = np.bincount(np.asarray(actions, int), minlength=7)
        np.testing.assert_array_equal(diary.statistics.policy_counts[n], counts)
        reward = sum(float(walk.stored.reward[(*at, n)]) for at in open_steps)
        np.testing.assert_allclose(diary.statistics.reward[n], reward, **CLOSE)


@pytest.mark.parametrize(
    ("groups", "asked_for", "recorded"), [(1, 4, [0, 1, 2, 3]), (2, 3, [0, 1, 3, 4])]
)
def test_what_is_recorded_changes_nothing_else(walk, groups, asked_for, recorded):
    """Diaries of fewer are the first ones, as many of each group; the rest is the same to the bit.

    Diaries themselves to rounding: XLA computes what they sum together with the sums.
    """
    walkers = walk.start(asked_for, groups)
    after, stored = walk.rollout(jax.random.key(7), walk.weights, walk.params, walkers, groups)
    chex.assert_trees_all_equal(walkers.state, walk.walkers.state)
    chex.assert_trees_all_equal(after.state, walk.after.state)
    first = jax.tree.map(lambda leaf: leaf[np.array(recorded)], walk.after.diary)
    chex.assert_trees_all_close(after.diary, first, **CLOSE)
    finished = jax.tree.map(lambda leaf: leaf[:, np.array(recorded)], walk.stored.finished)
    assert np.asarray(finished.count).sum() >= 10
    chex.assert_trees_all_close(stored.finished, finished, **CLOSE)
    chex.assert_trees_all_equal(
        stored.replace(finished=finished), walk.stored.replace(finished=finished)
    )


def test_no_more_is_recorded_than_there_is(walk):
    for groups in (1, 2, 6):
        chex.assert_trees_all_equal(walk.start(ENVS + 100, groups), walk.walkers)


# ------------------------------------------------------------------------------------ draws


def test_actions_are_drawn_by_their_probabilities_and_each_by_itself(walk):
    """An action tells between which two numbers the uniform lay that drew it."""
    low, high = np.zeros((2, BLOCKS, LENGTH, ENVS))
    for k, c, n, record in each(walk):
        reached = np.cumsum(scipy.special.softmax(np.asarray(record.logits, np.float64)))
        action = int(walk.stored.action[k, c, n])
        low[k, c, n], high[k, c, n] = np.append(0.0, reached)[[action, action + 1]]
    # Their middles have a mean of 1/2 and at most the variance of a uniform, 1/12.
    middles = (low + high) / 2
    assert abs(middles.mean() - 0.5) < 4.0 / np.sqrt(12 * middles.size)
    for axis, name in enumerate(("blocks", "steps", "environments")):
        shared = low.max(axis) < high.min(axis)  # one uniform would explain them all
        assert shared.mean() < 0.5, f"one uniform for all {name}"


# ---------------------------------------------------------------------------------- starts


def test_first_episodes_end_at_different_block_boundaries(walk):
    state = walk.walkers.state
    lengths = np.asarray(state.stop_bar - state.bar)
    np.testing.assert_array_equal(lengths, [12, 8, 4, 12, 8, 4])
    starts = walk.params.starts
    assert (np.asarray(state.bar) >= np.asarray(starts.first_bar)[state.symbol]).all()
    assert (np.asarray(state.stop_bar) <= np.asarray(starts.last_bar)[state.symbol]).all()
    assert len(set(zip(state.symbol.tolist(), state.bar.tolist(), strict=True))) == ENVS
    # From then on, as many are truncated at one boundary as at another.
    np.testing.assert_array_equal(
        np.asarray(walk.stored.truncated)[:, -1].sum(axis=1), [2] * BLOCKS
    )


def test_walkers_start_flat_and_know_what_is_legal(walk):
    first = walk.stored.account[0, 0]
    np.testing.assert_array_equal(first, np.tile(np.eye(NUM_ACCOUNT_FEATURES)[6], (ENVS, 1)))
    np.testing.assert_array_equal(walk.stored.mask[0, 0], np.tile(np.arange(7) < 4, (ENVS, 1)))
    blank = jax.tree.map(np.zeros_like, walk.walkers.diary)
    blank = blank.replace(statistics=blank.statistics.replace(final_equity=np.ones(ENVS)))
    chex.assert_trees_all_equal(walk.walkers.diary, blank)


def test_the_key_decides_what_is_drawn(walk):
    def actions(seed):
        _, stored = walk.rollout(jax.random.key(seed), walk.weights, walk.params, walk.walkers)
        return np.asarray(stored.action)

    np.testing.assert_array_equal(actions(7), walk.stored.action)
    assert not np.array_equal(actions(8), walk.stored.action)
