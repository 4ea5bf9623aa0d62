"""The environment as Gymnasium's and Stable-Baselines3's users meet it.

Three oracles: the checkers of both libraries; JAX episodes played by one `lax.scan` over
`step_env`, which must agree to the last bit; and Gymnasium's own `SyncVectorEnv` over single
environments, which says what a vector environment has to return.
"""

from __future__ import annotations

import copy
import functools
import json
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import chex
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from test_episode import by_hand

from envs.actions import Action, Reason
from envs.episode import step_record
from envs.reward import WEIGHT_PRESETS, RewardStep
from envs.trading import TradingEnv, TradingParams, Transition
from jaxtrader.adapters import gymnasium as adapter  # registers the name
from jaxtrader.adapters import lanes
from jaxtrader.config import RewardConfig, TrainingConfig
from jaxtrader.data import Dataset
from jaxtrader.errors import ConfigError
from jaxtrader.program import trading_params

NAME = "jaxtrader/Trading-v0"
EPISODE = small_runs.CONFIG.environment.episode_length
A = Action


def settings_with(**environment: Any) -> TrainingConfig:
    """The small settings, with other rules."""
    rules = replace(small_runs.CONFIG.environment, **environment)
    return replace(small_runs.CONFIG, environment=rules)


CONFIGS = {
    "truncation": small_runs.CONFIG,
    # Any loss worth mentioning ends the episode.
    "termination": settings_with(max_drawdown=0.001),
    "whole_shares": settings_with(lot_size=1.0, max_repeats=1, stop_loss=0.01, add_threshold=0.0),
    "same_close": settings_with(fill="same_close", costs="stage5"),
    "log_wealth": replace(small_runs.CONFIG, reward=RewardConfig(preset="log_wealth")),
}


def make(config: str = "truncation", **arguments: Any) -> Any:
    """One environment without Gymnasium's wrappers."""
    market = arguments.pop("market", None) or small_runs.market("BBB")
    return gymnasium.make(NAME, market=market, config=CONFIGS[config], **arguments).unwrapped


def make_vec(num_envs: int, config: str = "truncation", **arguments: Any) -> Any:
    market = small_runs.market("BBB")
    return gymnasium.make_vec(
        NAME, num_envs=num_envs, market=market, config=CONFIGS[config], **arguments
    )


def actions_for(seed: int, length: int, *shape: int) -> np.ndarray:
    """Any action at any time, HOLD more often than others: most positions live for a while."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, 7, (length, *shape))
    return np.where(rng.random((length, *shape)) < 0.5, 0, actions)


# ---------------------------------------------------------------------------------------- checkers


def test_gymnasium_checks_the_environment() -> None:
    """Also with each render mode, and without a warning."""
    check_env(make())


def test_gymnasium_checks_the_default_environment() -> None:
    check_env(gymnasium.make(NAME).unwrapped)


def test_stable_baselines_checks_the_environment() -> None:
    from stable_baselines3.common.env_checker import check_env

    check_env(make(render_mode="rgb_array"), warn=True, skip_render_check=False)


def test_spaces_say_what_comes() -> None:
    env = make()
    market = small_runs.market("BBB")
    size = market.receptive_field * len(market.feature_names)
    assert env.observation_space.shape == (size + 12,)
    assert env.observation_space.dtype == np.float32
    assert np.all(env.observation_space.high[:size] == 5.0)  # the scaler's default clip
    assert np.all(np.isfinite(env.observation_space.high))
    assert np.array_equal(env.observation_space.low, -env.observation_space.high)
    assert env.action_space == gymnasium.spaces.Discrete(7)


# ------------------------------------------------------------------------------ against JAX itself


@dataclass(frozen=True)
class Episode:
    """Rows of one episode, from its reset on; step i leads from row i to row i + 1."""

    observation: np.ndarray  # [N + 1, ...]
    mask: np.ndarray  # [N + 1, 7]
    equity: np.ndarray  # [N + 1]
    reward: np.ndarray  # [N]
    terminated: np.ndarray  # [N]
    truncated: np.ndarray  # [N]
    executed: np.ndarray  # [N]
    reason: np.ndarray  # [N]
    components: dict[str, np.ndarray]  # [N]
    statistics: dict[str, Any]  # of all steps, summed in float64

    @property
    def length(self) -> int:
        """Steps until it ended."""
        return int(np.argmax(self.terminated | self.truncated)) + 1


@functools.partial(jax.jit, static_argnums=0)
def _jax_rows(window: int, params: TradingParams, key: jax.Array, actions: jax.Array) -> Any:
    env = TradingEnv(params, window)
    first, state = env.reset_env(key, params)
    seen = (first, env.action_mask(state, params), state.account.equity)

    def step(state: Any, action: jax.Array) -> Any:
        observation, state, reward, terminated, info = env.step_env(key, state, action, params)
        row = (observation, env.action_mask(state, params), state.account.equity)
        truncated = env.is_truncated(state, params)
        outcome = Transition(
            reward=reward,
            components=info["components"],
            terminated=terminated,
            truncated=truncated,
            executed=info["executed_action"],
            reason=info["reason"],
            fill=info["fill"],
        )
        return state, (row, outcome, step_record(action, state, outcome))

    return seen, jax.lax.scan(step, state, actions)[1]


def params_of(config: TrainingConfig, market: Dataset, split: str = "train") -> TradingParams:
    return jax.tree.map(lambda x: x[0], trading_params(config, market, split))


def jax_episode(config: str, key: jax.Array, actions: np.ndarray, split: str = "train") -> Episode:
    market = small_runs.market("BBB")
    params = params_of(CONFIGS[config], market, split)
    rows = _jax_rows(market.receptive_field, params, key, jnp.asarray(actions, jnp.int32))
    first, (after, outcome, steps) = jax.device_get(rows)
    seen = [np.concatenate([a[None], b]) for a, b in zip(first, after, strict=True)]
    last = int(np.argmax(outcome.terminated | outcome.truncated))
    return Episode(
        *seen,
        outcome.reward,
        outcome.terminated,
        outcome.truncated,
        outcome.executed,
        outcome.reason,
        vars(outcome.components),
        by_hand(steps, np.arange(last + 1)),
    )


def key_of(generator: np.random.Generator) -> jax.Array:
    """The key of the next episode, as the module's first page promises."""
    return jax.random.key(generator.integers(2**32, dtype=np.uint32))


@pytest.mark.parametrize(
    ("config", "split"), [*((config, "train") for config in CONFIGS), ("truncation", "test")]
)
def test_an_episode_is_the_jax_episode_bit_for_bit(config: str, split: str) -> None:
    env = make(config, split=split)
    generator = gymnasium.utils.seeding.np_random(11)[0]
    observation, info = env.reset(seed=11)
    ends = []
    for episode in range(4):
        actions = actions_for(episode, EPISODE)
        expected = jax_episode(config, key_of(generator), actions, split)
        for row in range(expected.length + 1):
            np.testing.assert_array_equal(observation, expected.observation[row])
            np.testing.assert_array_equal(info["action_mask"], expected.mask[row])
            np.testing.assert_array_equal(env.action_masks(), expected.mask[row])
            assert info["equity"] == expected.equity[row]
            if row == expected.length:
                break
            observation, reward, terminated, truncated, info = env.step(actions[row])
            assert reward == expected.reward[row]
            assert terminated is bool(expected.terminated[row])
            assert truncated is bool(expected.truncated[row])
            assert info["executed_action"] == expected.executed[row]
            assert info["reason"] == Reason(expected.reason[row]).name
            for name, values in expected.components.items():
                assert info["components"][name] == values[row]
            assert ("statistics" in info) == (terminated or truncated)
        assert list(info["statistics"]) == list(expected.statistics)
        chex.assert_trees_all_close(info["statistics"], expected.statistics, rtol=1e-4, atol=1e-4)
        ends.append(terminated)
        observation, info = env.reset()
    assert any(ends) == (config == "termination")


def test_the_episodes_compared_are_not_dull() -> None:
    """They trade in every way, are refused for several reasons, and end in both ways."""
    generator = gymnasium.utils.seeding.np_random(11)[0]
    executed, reasons, lengths = set(), set(), set()
    for config in CONFIGS:
        for episode in range(4):
            rows = jax_episode(config, key_of(generator), actions_for(episode, EPISODE))
            executed |= set(rows.executed[: rows.length])
            reasons |= {Reason(reason) for reason in rows.reason[: rows.length]}
            lengths.add(rows.length)
    assert executed == set(Action)
    assert reasons >= {
        Reason.NONE, Reason.ILLEGAL, Reason.REPEAT_LIMIT, Reason.STOP_LOSS, Reason.EPISODE_END,
        Reason.DRAWDOWN_BREAKER,
    }  # fmt: skip
    assert max(lengths) == EPISODE
    assert min(lengths) < EPISODE


def test_a_loop_over_the_jax_environments_own_step_says_the_same() -> None:
    """`TradingEnv.step`, which resets by itself and keeps the last observation in its info."""
    market = small_runs.market("BBB")
    jax_env = TradingEnv(params_of(CONFIGS["truncation"], market), market.receptive_field)
    env = make()
    observation, _ = env.reset(seed=5)
    first, state = jax_env.reset(key_of(gymnasium.utils.seeding.np_random(5)[0]))
    np.testing.assert_array_equal(observation, first)
    for number, action in enumerate(actions_for(5, EPISODE)):
        observation, reward, terminated, truncated, _ = env.step(action)
        key = jax.random.key(number)
        _, state, jax_reward, *ends, info = jax_env.step(key, state, jnp.int32(action))
        np.testing.assert_array_equal(observation, info["final_observation"])
        assert reward == jax_reward
        assert [terminated, truncated] == [bool(end) for end in ends]
    assert truncated


def test_prices_and_features_are_the_markets() -> None:
    """The features of an observation are the scaled rows of the dataset up to a bar, and of a
    split's bars only."""
    market = small_runs.market("BBB")
    scaled = np.clip(
        (market.raw_features[0] - market.scaler.mean) / market.scaler.scale, -5.0, 5.0
    ).astype(np.float32)
    width, rows = len(market.feature_names), market.receptive_field
    env = make(split="validation")
    first, last = (int(bars[0]) for bars in market.splits["validation"])
    starts = set()
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        window = observation[:-12].reshape(rows, width)
        [start] = [
            bar
            for bar in range(first, last + 1)
            if np.array_equal(scaled[bar - rows + 1 : bar + 1], window)
        ]
        assert first <= start <= last - EPISODE
        starts.add(start)
    assert len(starts) > 5


def gained(step: RewardStep) -> jax.Array:
    """A reward of one's own."""
    return 1e3 * (step.account_after.equity - step.account_before.equity)


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_reward_of_ones_own_is_paid(vectorised: bool) -> None:
    env = make_vec(1, reward=gained) if vectorised else make(reward=gained)
    equity = env.reset(seed=1)[1]["equity"]
    for action in (A.BUY_LARGE, A.HOLD, A.HOLD, A.SELL_ALL):
        _, reward, *_, info = env.step([action] if vectorised else action)
        assert reward == pytest.approx(1e3 * (info["equity"] - equity), abs=1e-3)
        np.testing.assert_array_equal(info["components"]["custom"], reward)
        assert np.all(reward != 0)
        equity = info["equity"]


# ---------------------------------------------------------------------------------- the vector one


def own_info(infos: dict[str, Any], i: int) -> dict[str, Any]:
    """Environment i's info out of a vector environment's, by Gymnasium's `_key` masks."""
    return {
        key: own_info(value, i) if isinstance(value, dict) else value[i]
        for key, value in infos.items()
        if not key.startswith("_") and infos[f"_{key}"][i]
    }


# Rounded differently for different numbers of environments, and what is made from them.
ROUNDED = ("log_wealth", "unrealized_pnl")


def check_equal(ours: Any, theirs: Any, num_envs: int, rounded: Sequence[str]) -> None:
    """Two returns of a vector environment: every array, dtypes included, and every info."""
    *arrays, infos = ours
    *their_arrays, their_infos = theirs
    for array, their_array in zip(arrays, their_arrays, strict=True):
        # Of both, only the rewards are in float64.
        exact = array.dtype != np.float64 or "reward" not in rounded
        assert data_equivalence(array, their_array, exact=exact)
    for i in range(num_envs):
        check_equal_infos(own_info(infos, i), own_info(their_infos, i), rounded)


def check_equal_infos(own: Any, their_own: Any, rounded: Sequence[str]) -> None:
    assert own.keys() == their_own.keys()
    for key, value in own.items():
        if isinstance(value, dict):
            check_equal_infos(value, their_own[key], rounded)
        elif key in rounded:
            assert value == pytest.approx(their_own[key], rel=1e-4, abs=1e-5)
        else:
            assert data_equivalence(value, their_own[key], exact=True), key


@pytest.mark.parametrize(
    ("num_envs", "config"),
    [(1, "truncation"), (3, "termination"), (3, "log_wealth"), (8, "whole_shares")],
)
def test_a_vector_environment_is_n_single_ones_bit_for_bit(config: str, num_envs: int) -> None:
    """Through several autoresets of each, some of one environment alone."""
    rounded = (*ROUNDED, "reward") if config == "log_wealth" else ROUNDED
    ours = make_vec(num_envs, config)
    theirs = SyncVectorEnv(
        [functools.partial(make, config) for _ in range(num_envs)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    assert ours.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    check_equal(ours.reset(seed=3), theirs.reset(seed=3), num_envs, rounded)
    assert ours.np_random_seed == theirs.np_random_seed
    ended = 0
    for number, actions in enumerate(actions_for(3, 2 * EPISODE + 10, num_envs)):
        if number < EPISODE:  # in and out at every bar: observations with many trades a session
            flat = ours.action_masks()[:, A.BUY_SMALL]
            actions = np.where(flat, 1 + actions % 3, A.SELL_ALL)
        mine, other = ours.step(actions), theirs.step(actions)
        check_equal(mine, other, num_envs, rounded)
        np.testing.assert_array_equal(ours.action_masks(), theirs.call("action_masks"))
        done = mine[2] | mine[3]
        assert ("final_obs" in mine[4]) == done.any()
        ended += done.sum()
    assert ended >= 2 * num_envs
    check_equal(ours.reset(), theirs.reset(), num_envs, rounded)
    seeds = [None, *range(num_envs - 1)]
    check_equal(ours.reset(seed=seeds), theirs.reset(seed=seeds), num_envs, rounded)
    assert [a.bit_generator.state for a in ours.np_random] == [
        b.bit_generator.state for b in theirs.np_random
    ]


def test_gymnasiums_vector_wrappers_see_each_episode_once() -> None:
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(make_vec(3, "termination"))
    envs.reset(seed=1)
    returns = np.zeros(3)
    seen = 0
    for actions in actions_for(8, EPISODE, 3):
        _, rewards, terminated, truncated, infos = envs.step(actions)
        returns += rewards
        for i in np.flatnonzero(terminated | truncated):
            assert infos["episode"]["r"][i] == pytest.approx(returns[i], abs=1e-9)
            statistics = own_info(infos["final_info"], i)["statistics"]
            assert statistics["reward"] == pytest.approx(returns[i], abs=1e-4)
            assert statistics["steps"] == infos["episode"]["l"][i]
            returns[i] = 0.0
            seen += 1
    assert seen >= 3


# ------------------------------------------------------------------------------------- any actions

ENVIRONMENT = functools.cache(make)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    actions=st.lists(st.integers(0, 6), min_size=1, max_size=EPISODE),
    config=st.sampled_from(sorted(CONFIGS)),
)
def test_whatever_is_done_the_account_adds_up(seed: int, actions: list[int], config: str) -> None:
    env = ENVIRONMENT(config)
    observation, info = env.reset(seed=seed)
    assert info["equity"] == 1.0
    weights = CONFIGS[config].reward.preset
    mask, rewards, executed, reasons = info["action_mask"], [], [], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        done, reason = info["executed_action"], Reason[info["reason"]]
        assert done in (action, A.HOLD, A.SELL_ALL)
        assert mask[done], "what is executed was legal"
        assert (reason == Reason.ILLEGAL) <= (not mask[action])
        if not mask[action]:
            assert done != action or done == A.HOLD
        parts = info["components"]
        total = sum(weight * parts[name] for name, weight in WEIGHT_PRESETS[weights].items())
        assert reward == pytest.approx(np.clip(total, -10, 10), abs=1e-5)
        assert 0.0 < info["equity"] < 2.0
        mask = info["action_mask"]
        assert mask[A.HOLD]
        assert mask[A.BUY_SMALL] != mask[A.SELL_ALL]
        rewards.append(reward)
        executed.append(done)
        reasons.append(reason)
        if terminated or truncated:
            break
    steps = len(rewards)
    assert (steps == EPISODE) <= truncated
    if terminated or truncated:
        statistics = info["statistics"]
        assert statistics["steps"] == steps
        assert (
            statistics["policy_counts"].tolist()
            == np.bincount(actions[:steps], minlength=7).tolist()
        )
        assert statistics["executed_counts"].tolist() == np.bincount(executed, minlength=7).tolist()
        assert statistics["reason_counts"].tolist() == np.bincount(reasons, minlength=16).tolist()
        assert statistics["reward"] == pytest.approx(sum(rewards), abs=1e-3)
        assert statistics["final_equity"] == info["equity"]


def test_seeds_reproduce_and_differ() -> None:
    env = make()
    first = [env.reset(seed=seed)[0] for seed in (1, 2, 3)]
    assert np.array_equal(env.reset(seed=2)[0], first[1])
    follower = env.reset()[0]
    assert not np.array_equal(follower, first[1])
    env.reset(seed=2)
    assert np.array_equal(env.reset()[0], follower)
    assert len({observation.tobytes() for observation in first}) == 3
    # An environment that nobody seeds is not the one before it.
    starts = {make().reset()[0].tobytes() for _ in range(4)}
    assert len(starts) > 1


# --------------------------------------------------------------------------------------- no future


def noisy_after(market: Dataset, bar: int) -> Dataset:
    """Other bars after `bar`, under the same scaler."""
    rng = np.random.default_rng(0)
    late = np.arange(market.open.shape[1]) > bar

    def changed(values: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.where(late.reshape(1, -1, *[1] * (values.ndim - 2)), other, values)

    prices = {
        name: changed(getattr(market, name), 100 * rng.random(market.open.shape) + 50)
        for name in ("open", "high", "low", "close", "volume")
    }
    features = rng.standard_normal(market.raw_features.shape).astype(np.float32)
    return replace(
        market,
        **prices,
        tradable=changed(market.tradable, rng.random(market.open.shape) > 0.3),
        session=changed(market.session, market.session + 7),
        raw_features=changed(market.raw_features, features),
    )


@pytest.mark.parametrize("config", ["truncation", "same_close"])
def test_nothing_returned_or_drawn_sees_the_future(config: str) -> None:
    market = small_runs.market("BBB")
    env = make(config, render_mode="rgb_array")

    def play(env: Any, steps: int) -> tuple[list[Any], np.ndarray]:
        """What `steps` steps and one more return, and the picture before that one."""
        rows: list[Any] = [(*env.reset(seed=4),)]
        for action in actions_for(2, steps):
            rows.append(env.step(action))
        picture = env.render()
        return [*rows, env.step(A.HOLD)], picture

    assert len({row[-1].get("executed_action") for row in play(env, 24)[0]}) > 4
    first_bar = market.splits["train"][0][0] + start_of(env)
    for steps in (0, 1, 7, 24):
        expected, picture = play(env, steps)
        other = make(config, market=noisy_after(market, first_bar + steps), render_mode="rgb_array")
        rows, other_picture = play(other, steps)
        assert data_equivalence(rows[:-1], expected[:-1], exact=True)
        np.testing.assert_array_equal(other_picture, picture)
        # And the noise is there: the next bar's features differ.
        assert not np.array_equal(rows[-1][0], expected[-1][0])


def start_of(env: Any) -> int:
    """First decision of the current episode, in bars after the split's first."""
    window = env._lanes._static[0]
    state, _ = env._lanes._lanes
    return int(state.bar[0] - state.time[0]) - (window - 1)


# ------------------------------------------------------------------------------------- the picture


def pixels_of(picture: np.ndarray, color: str) -> np.ndarray:
    """(row, column) of the pixels of exactly this colour, int[N, 2]."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere(np.all(picture == rgb, axis=2))


GREEN, RED = "#2a9d4a", "#d1495b"


@pytest.mark.parametrize("config", ["truncation", "same_close"])
def test_the_picture_marks_fills_where_they_are(config: str) -> None:
    env = make(config, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (480, 640, 3)
    assert first.dtype == np.uint8
    assert first.min() < 100
    assert np.mean(first == 255) > 0.8
    assert len(pixels_of(first, GREEN)) == len(pixels_of(first, RED)) == 0
    for _ in range(20):
        env.step(A.HOLD)
    assert len(pixels_of(env.render(), GREEN)) == 0
    env.step(A.BUY_LARGE)
    bought = env.render()
    assert len(pixels_of(bought, RED)) == 0
    for _ in range(20):
        env.step(A.HOLD)
    env.step(A.SELL_ALL)
    sold = env.render()
    # The axes span 11 % to 97 % of the width, and the bars before the start to the episode's end.
    before = small_runs.market("BBB").receptive_field - 1
    late = 1 if config == "truncation" else 0  # the fill is in the bar after the decision
    for picture, color, step in ((bought, GREEN, 20), (sold, GREEN, 20), (sold, RED, 41)):
        column = pixels_of(picture, color)[:, 1].mean()
        share = (step + late + before) / (EPISODE + before)
        assert column == pytest.approx(640 * (0.11 + 0.86 * share), abs=1.5)
    assert sold[:, :, :].tobytes() != bought.tobytes()
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), first)


def test_every_environment_of_a_vector_has_its_picture() -> None:
    envs = make_vec(2, render_mode="rgb_array")
    single = make(render_mode="rgb_array")
    envs.reset(seed=[6, 7])
    single.reset(seed=7)
    for action in (A.BUY_SMALL, A.HOLD):
        envs.step([A.HOLD, action])
        single.step(action)
    frames = envs.render()
    assert isinstance(frames, tuple)
    np.testing.assert_array_equal(frames[1], single.render())
    assert not np.array_equal(*frames)


def test_without_a_render_mode_nothing_is_drawn() -> None:
    env, envs = make(), make_vec(2)
    env.reset()
    envs.reset()
    for each in (env, envs):
        with pytest.warns(UserWarning, match='render_mode="rgb_array"'):
            assert each.render() is None


# -------------------------------------------------------------------------------- belongs to caller


def test_no_later_step_writes_to_what_was_returned() -> None:
    for env, action in ((make("termination"), A.BUY_LARGE), (make_vec(3), np.full(3, A.BUY_LARGE))):
        returned = [env.reset(seed=1), env.action_masks()]
        for number in range(EPISODE + 3):
            result = env.step(action if number % 2 else 0 * action)
            returned.append(result)
            if env is not None and not hasattr(env, "num_envs") and (result[2] or result[3]):
                returned.append(env.reset())
        snapshots = copy.deepcopy(returned[:-1])
        env.reset()
        env.step(action)
        assert data_equivalence(returned[:-1], snapshots, exact=True)


def arrays_in(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, np.ndarray | dict):
            yield from arrays_in(part) if isinstance(part, dict) else [part]


def test_what_the_caller_writes_changes_nothing() -> None:
    for make_one, action in ((make, A.HOLD), (functools.partial(make_vec, 3), np.zeros(3, int))):
        env, untouched = make_one(), make_one()
        vandalised = env.reset(seed=1)
        untouched.reset(seed=1)
        for _ in range(3):
            for array in arrays_in(vandalised):
                array[...] = 0
            env.action_masks()[...] = False
            np.testing.assert_array_equal(env.action_masks(), untouched.action_masks())
            vandalised, expected = env.step(action), untouched.step(action)
            assert data_equivalence(vandalised, expected, exact=True)


# ------------------------------------------------------------------------------- copies and specs


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_goes_on_as_the_original_does(copied: Any) -> None:
    env = make(render_mode="rgb_array")
    env.reset(seed=1)
    for action in (A.BUY_SMALL, A.HOLD, A.HOLD):
        env.step(action)
    twin = copied(env)
    np.testing.assert_array_equal(twin.render(), env.render())
    for action in actions_for(1, 10):
        assert data_equivalence(twin.step(action), env.step(action), exact=True)
    assert data_equivalence(twin.reset(), env.reset(), exact=True)
    envs = make_vec(2)
    envs.reset(seed=1)
    twins = copied(envs)
    assert data_equivalence(twins.step([1, 2]), envs.step([1, 2]), exact=True)


def test_specs_make_the_same_environment_again() -> None:
    env = gymnasium.make(NAME, market=small_runs.market("BBB"), config=CONFIGS["termination"])
    twin = gymnasium.make(env.spec)
    env.reset(seed=3)
    twin.reset(seed=3)
    for action in actions_for(3, 10):
        result = env.step(action)
        assert data_equivalence(twin.step(action), result, exact=True)
        if result[2]:
            break
    spec = gymnasium.make(NAME, split="test").spec
    assert spec is not None
    again = gymnasium.make(EnvSpec.from_json(spec.to_json()))
    assert json.loads(spec.to_json())["kwargs"] == {"split": "test"}
    assert np.array_equal(again.reset(seed=1)[0], gymnasium.make(spec).reset(seed=1)[0])


def test_the_name_can_bring_its_module() -> None:
    assert isinstance(gymnasium.make(f"jaxtrader.adapters:{NAME}").unwrapped, adapter.GymTradingEnv)


def test_nothing_is_compiled_twice() -> None:
    """Neither for a second instance, nor for other rates, rules or another split of equal shape."""
    for num_envs in (None, 3):
        for config in ("truncation", "termination", "log_wealth"):
            env = make(config) if num_envs is None else make_vec(num_envs, config)
            env.reset(seed=0)
            env.step(0 if num_envs is None else np.zeros(num_envs, int))
            compiled = lanes._packed._cache_size()
            if config == "truncation":
                expected = compiled
            assert compiled == expected


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "tests"}, ["split = 'tests': did you mean 'test'?", "train, validation, test"]),
        ({"symbol": "SPY"}, ["symbol = 'SPY'", "AAA, BBB"]),
        ({"symbol": None}, ["symbol = None", "AAA, BBB"]),
        ({"render_mode": "human"}, ["render_mode = 'human'", "rgb_array"]),
        ({"config": settings_with(episode_length=5000)}, ["AAA, BBB", "5000"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: Sequence[str]) -> None:
    known: dict[str, Any] = {
        "market": small_runs.market(), "config": small_runs.CONFIG, "symbol": "BBB",
    }  # fmt: skip
    for build in (adapter.GymTradingEnv, adapter.GymTradingVectorEnv):
        with pytest.raises(ConfigError) as caught:
            build(**known | arguments)
        assert all(word in str(caught.value) for word in words)


def test_a_symbol_of_several_is_traded_alone() -> None:
    among, alone = make(market=small_runs.market(), symbol="BBB"), make()
    # Other symbols share the scaler, so the features differ; where episodes start and end does not.
    among.reset(seed=1)
    alone.reset(seed=1)
    for action in actions_for(1, 20):
        _, reward, *_, info = among.step(action)
        _, other_reward, *_, other_info = alone.step(action)
        assert reward == other_reward
        assert info["equity"] == other_info["equity"]


@pytest.mark.parametrize(
    "action", [-1, 7, 3.0, "HOLD", None, True, np.array([1]), np.array([1, 2])]
)
def test_what_is_no_action_is_refused(action: Any) -> None:
    env = make()
    env.reset(seed=1)
    with pytest.raises(InvalidAction, match="from 0 to 6"):
        env.step(action)
    env.step(0)  # and nothing has happened


@pytest.mark.parametrize("action", [3, np.int8(3), np.int32(3), np.array(3), A.BUY_LARGE])
def test_whole_numbers_of_any_kind_are_actions(action: Any) -> None:
    env = make()
    env.reset(seed=1)
    assert env.step(action)[4]["executed_action"] == 3


@pytest.mark.parametrize(
    "actions", [0, [0], [0, 0, 0], [0, 7], [-1, 0], [0.0, 0.0], [True, False], [None, 0]]
)
def test_what_are_no_actions_are_refused(actions: Any) -> None:
    envs = make_vec(2)
    envs.reset(seed=1)
    with pytest.raises(InvalidAction, match="2 integers from 0 to 6"):
        envs.step(actions)


def test_no_step_without_an_episode() -> None:
    env, envs = make("termination", render_mode="rgb_array"), make_vec(2, render_mode="rgb_array")
    for each, action in ((env, 0), (envs, [0, 0])):
        assert not each.action_masks().any()
        with pytest.raises(ResetNeeded, match="call reset"):
            each.step(action)
        with pytest.raises(ResetNeeded, match="call reset"):
            each.render()
    env.reset(seed=1)
    terminated = truncated = False
    while not (terminated or truncated):
        flat = env.action_masks()[A.BUY_LARGE]
        *_, terminated, truncated, _ = env.step(A.BUY_LARGE if flat else A.SELL_ALL)
    assert terminated
    assert not truncated
    env.render()  # the end can be looked at
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    env.reset()
    env.step(0)


def test_resets_have_no_options_and_as_many_seeds_as_environments() -> None:
    for env in (make(), make_vec(2)):
        env.reset(options={})
        with pytest.raises(ConfigError, match="'start'"):
            env.reset(options={"start": 5})
    with pytest.raises(ConfigError, match="3 seeds for 2"):
        make_vec(2).reset(seed=[1, 2, 3])
    with pytest.raises(ConfigError, match="num_envs = 0"):
        make_vec(0)


# ------------------------------------------------------------------------------------- other people


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_library_does_not_import_gymnasium_and_registering_imports_no_jax() -> None:
    done = run_python(
        "import sys, jaxtrader\n"
        "assert 'gymnasium' not in sys.modules\n"
        "import jaxtrader.adapters, gymnasium\n"
        f"gymnasium.spec({NAME!r})\n"
        "assert 'jax' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_gymnasium_is_named_with_its_remedy() -> None:
    done = run_python("import sys\nsys.modules['gymnasium'] = None\nimport jaxtrader.adapters\n")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "pip install -e '.[gymnasium]'" in done.stderr


def test_the_example_runs(capsys: pytest.CaptureFixture) -> None:
    assert adapter.__doc__ is not None
    example = textwrap.dedent(adapter.__doc__.split("::\n\n", 1)[1].split("\n\nA step is ")[0])
    assert "make_vec" in example
    exec(compile(example, "example", "exec"), {})
    equity, costs = map(float, capsys.readouterr().out.split())
    assert 0.5 < equity < 1.5
    assert costs > 0


@pytest.mark.slow
def test_stable_baselines_trains_on_it() -> None:
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    def build() -> Monitor:
        market, config = small_runs.market("BBB"), small_runs.CONFIG
        return Monitor(gymnasium.make(NAME, market=market, config=config))

    envs = DummyVecEnv([build, build])
    model = PPO(
        "MlpPolicy", envs, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu",
        policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(256)
    after = model.policy.state_dict()
    assert model.num_timesteps == 256
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert len(model.ep_info_buffer) == 4
    assert {episode["l"] for episode in model.ep_info_buffer} == {EPISODE}
    # What MaskablePPO of sb3-contrib does to learn what is legal.
    masks = np.stack(envs.env_method("action_masks"))
    assert masks.shape == (2, 7)
    assert masks[:, 0].all()
