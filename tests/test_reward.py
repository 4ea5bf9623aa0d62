"""Reward components of the compiled environment: worked examples, weights, and its promises."""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from reference_simulator import COMPONENTS, COSTS, WEIGHTS, Action, ReferenceParameters
from reward_cases import CASES, RewardCase
from trading_episodes import Episode, Played, play, script

from envs.reward import (
    FREE_STREAK,
    ReturnMoments,
    RewardComponents,
    differential_sharpe,
    no_returns,
    reward_params,
)

A = Action


# ----------------------------------------------------------------------------- the table of rewards


def episode_of(case: RewardCase) -> Episode:
    return Episode(
        opens=np.asarray(case.opens, float),
        closes=np.asarray(case.closes, float),
        tradable=None if case.tradable is None else np.asarray(case.tradable),
        stop_bar=case.stop_bar,
        scores=script(case.actions),
        rules=ReferenceParameters(**case.parameters),
    )


@functools.cache
def table() -> dict[str, tuple[Played, int]]:
    """All cases, played at once: the batch and the row of each by name."""
    rows = {}
    for fill in ("next_open", "same_close"):
        cases = [case for case in CASES if case.parameters.get("fill", "next_open") == fill]
        played = play([episode_of(case) for case in cases])
        rows |= {case.name: (played, row) for row, case in enumerate(cases)}
    return rows


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_reward_case(case: RewardCase) -> None:
    played, row = table()[case.name]
    components = played.outcome.components
    for name, value in case.expected.items():
        found = getattr(components, name)[row, case.step]
        # A return is a difference of prices that float32 holds to 6e-8, in units of a percent.
        assert found == pytest.approx(value, rel=2e-5, abs=2e-5), name
    if case.reward is not None:
        reward = played.outcome.reward[row, case.step]
        assert reward == pytest.approx(case.reward, rel=2e-5, abs=2e-5)


def test_components_sum_to_the_reward_before_clipping() -> None:
    """With the weights of the preset, at every step of every case."""
    clipped = 0
    for case in CASES:
        played, row = table()[case.name]
        weights = ReferenceParameters(**case.parameters).weights
        steps = len(case.actions)
        parts = {
            name: np.float64(getattr(played.outcome.components, name)[row, :steps])
            for name in COMPONENTS
        }
        total = sum(weights.get(name, 0.0) * values for name, values in parts.items())
        reward = played.outcome.reward[row, :steps]
        np.testing.assert_allclose(reward, np.clip(total, -10, 10), rtol=1e-6, atol=1e-6)
        clipped += np.sum(np.abs(total) > 10)
    assert clipped >= 10


# --------------------------------------------------------------------------------- weights, presets


@pytest.mark.parametrize("preset", list(WEIGHTS))
def test_preset_weights(preset: str) -> None:
    """As published, every other component at zero, clipped at ten."""
    params = reward_params(preset)
    for name in RewardComponents.names():
        expected = WEIGHTS[preset].get(name, 0.0)
        assert float(getattr(params.weights, name)) == pytest.approx(expected), name
    assert RewardComponents.names() == COMPONENTS
    assert float(params.reward_clip) == 10.0
    assert float(params.pnl_scale) == pytest.approx(0.01)
    assert FREE_STREAK == 3


def test_bad_reward_parameters_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown reward preset 'profesional'"):
        reward_params("profesional")
    with pytest.raises(ValueError, match="pnl"):
        reward_params(weights={"pnl": 1.0})
    with pytest.raises(ValueError, match="must be > 0"):
        reward_params(pnl_scale=0.0)
    with pytest.raises(ValueError, match="must be > 0"):
        reward_params(reward_clip=-1.0)


# ------------------------------------------------------------------------------- no split pays more

SIZES = st.sampled_from([A.BUY_SMALL, A.BUY_MEDIUM, A.BUY_LARGE])


@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(
    data=st.data(),
    size=SIZES,
    adds=st.integers(0, 2),
    gain=st.floats(0.025, 0.4),
    costs=st.sampled_from(list(COSTS)),
    lot_size=st.sampled_from([0.0, 1.0]),
)
def test_no_split_of_an_exit_pays_more_than_a_tenth_extra(
    data: st.DataObject, size: Action, adds: int, gain: float, costs: str, lot_size: float
) -> None:
    """Sold in one piece, or in up to nine at the same price, with pauses in between.

    With a gain the pieces are paid at most 1.1 times the whole; sold at a loss they cost at least
    0.8 of it and at most 1.1.
    """
    loss = data.draw(st.booleans(), label="loss")
    exit_price = 100.0 * (1.0 - gain if loss else 1.0 + gain)
    opening = [size, *[A.ADD_POSITION] * adds]
    rules = ReferenceParameters(
        **COSTS[costs],
        lot_size=lot_size,
        initial_cash=1e6,
        position_cap=1.0,
        stop_loss=10.0,
        take_profit=10.0,
        add_threshold=-1.0,
        reward_clip=1e6,
    )
    prices = np.asarray([100.0] * (len(opening) + 1) + [exit_price] * 40)
    episodes, paths = [], []
    for _ in range(24):
        partials = data.draw(st.integers(0, 8))
        exits: list[Action] = []
        for number in range(partials):
            # More than three in a row are refused.
            pause = (number % 3 == 2) or data.draw(st.booleans())
            exits += [A.SELL_PARTIAL, A.HOLD] if pause else [A.SELL_PARTIAL]
        exits = exits if paths else []
        paths.append([*exits, A.SELL_ALL])
        actions = [*opening, *paths[-1]]
        episodes.append(Episode(prices, prices, script(actions), rules=rules))
    played = play(episodes)
    first = len(opening)
    paid = played.outcome.components.realized_pnl[:, first:].astype(float).sum(axis=1)
    whole, pieces = paid[0], paid[1:]
    assert np.all(played.outcome.executed[:, first - 1] == opening[-1])
    assert np.all(played.state.position.shares[:, first + 20] == 0.0)
    assert math.copysign(1.0, whole) == (-1.0 if loss else 1.0)
    ratio = pieces / whole
    assert ratio.max() <= 1.1 * (1 + 1e-5)
    assert ratio.min() >= 0.8 * (1 - 1e-5)


# ------------------------------------------------------------------------------------- telescoping


def test_shaping_telescopes() -> None:
    """Summed with powers of gamma, the potentials of an episode cancel: it starts and ends flat.

    gamma Phi(s1) - Phi(s0) + gamma (gamma Phi(s2) - Phi(s1)) + ... = gamma^N Phi(sN) - Phi(s0).
    """
    rng = np.random.default_rng(3)
    episodes = []
    for gamma in (0.9, 0.99, 1.0) * 8:
        closes = 100.0 * np.exp(np.cumsum(0.02 * rng.standard_normal(60)))
        opens = np.append(100.0, closes[:-1]) * np.exp(0.01 * rng.standard_normal(60))
        scores = rng.standard_normal((59, 7)).astype(np.float32)
        rules = ReferenceParameters(gamma=gamma)
        episodes.append(Episode(opens, closes, scores, masked=True, rules=rules))
    played = play(episodes)
    shaping = played.outcome.components.unrealized_pnl[:, :59].astype(float)
    ended_flat = played.state.position.shares[:, 58] == 0.0
    assert ended_flat.all()
    for row, episode in enumerate(episodes):
        powers = episode.rules.gamma ** np.arange(59)
        assert np.abs(shaping[row]).max() > 1.0
        assert powers @ shaping[row] == pytest.approx(0.0, abs=2e-3)
        # Cut short at any step, what is left is the last potential.
        position, close = played.state.position, np.float32(episode.closes)[1:]
        profit = position.shares[row, :59] * close - position.cost_basis[row, :59]
        potential = 100.0 * profit / np.maximum(position.peak_basis[row, :59], 1e-9)
        partial_sums = np.cumsum(powers * shaping[row])
        left = episode.rules.gamma ** np.arange(1, 60) * potential
        np.testing.assert_allclose(partial_sums, left, atol=2e-3)


# -------------------------------------------------------------------------------------- Sharpe


def test_differential_sharpe_by_hand() -> None:
    """Returns 2 %, -1 %, 3 %, 0 at rate 0.1, by Moody & Saffell's equation 15.

    A, B before each: 0, 0; 0.002, 0.00004; 0.0008, 0.000046; 0.00372, 0.0001314.
    2nd: (0.00004 x -0.012 - 0.001 x 0.00006) / (0.00004 - 0.000004)^1.5 = -5.4e-7 / 2.16e-7.
    3rd: (0.000046 x 0.0292 - 0.0004 x 0.000854) / (0.000046 - 0.00000064)^1.5
       = 1.0016e-6 / 3.0549713e-7.
    4th: (0.0001314 x -0.00372 - 0.00186 x -0.0001314) / (0.0001314 - 0.0000138384)^1.5
       = -2.44404e-7 / 1.27467156e-6.
    """
    expected = [0.0, -2.5, 3.2785905, -0.1917388]
    moments, rate, ratios = no_returns(), jnp.float32(0.1), []
    for step_return in (0.02, -0.01, 0.03, 0.0):
        ratio, moments = differential_sharpe(moments, jnp.float32(step_return), rate)
        ratios.append(float(ratio))
    np.testing.assert_allclose(ratios, expected, rtol=1e-5)
    assert float(moments.first) == pytest.approx(0.9 * 0.00372, rel=1e-5)
    assert float(moments.second) == pytest.approx(0.9 * 0.0001314, rel=1e-5)


def test_differential_sharpe_is_the_derivative_of_the_sharpe_ratio() -> None:
    """The ratio A / sqrt(B - A^2) of moments that are moved by eta, differentiated at eta = 0."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        returns = 0.01 * rng.standard_normal(5)
        first, second = returns[:4].mean(), (returns[:4] ** 2).mean()

        def sharpe(eta: float, first: float = first, second: float = second, r: float = returns[4]):
            mean, square = first + eta * (r - first), second + eta * (r**2 - second)
            return mean / math.sqrt(square - mean**2)

        slope = (sharpe(1e-6) - sharpe(-1e-6)) / 2e-6
        moments = ReturnMoments(first=jnp.float32(first), second=jnp.float32(second))
        ratio, _ = differential_sharpe(moments, jnp.float32(returns[4]), jnp.float32(0.01))
        assert float(ratio) == pytest.approx(slope, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("returns", [[0.0] * 5, [0.01], [6e-8, 0.01]])
def test_differential_sharpe_without_a_variance_is_zero(returns: list[float]) -> None:
    """Before the first return, and after one that is a rounding error of the equity."""
    moments = no_returns()
    for step_return in returns:
        ratio, moments = differential_sharpe(moments, jnp.float32(step_return), jnp.float32(0.01))
        assert float(ratio) == 0.0
