"""The compiled environment played over many scripted episodes at once, ready to be compared.

Every episode has its own prices, rules and script, and all of them run in one compiled program:
episode e trades symbol e of a market of E symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from reference_simulator import BUY_FRACTION, ReferenceParameters, ReferenceSimulator

from envs.actions import Directives, trading_limits
from envs.curriculum import StartDistribution
from envs.episode import EpisodeStatistics, no_statistics, step_record, tally
from envs.execution import execution_params
from envs.market import Market
from envs.reward import WEIGHT_PRESETS, reward_params
from envs.trading import TradingEnv, TradingParams, TradingState, Transition


@dataclass(frozen=True)
class Episode:
    """One script on one price path: what either simulator needs to play it."""

    opens: np.ndarray  # [T]
    closes: np.ndarray  # [T]
    scores: np.ndarray  # [N, 7]; the policy takes the action with the highest
    tradable: np.ndarray | None = None  # [T]
    session: np.ndarray | None = None  # [T]
    start_bar: int = 0
    stop_bar: int | None = None  # the last bar when None
    masked: bool = False  # whether the policy chooses among legal actions only
    rules: ReferenceParameters = field(default_factory=ReferenceParameters)

    @property
    def last_bar(self) -> int:
        return len(self.closes) - 1

    def reference(self) -> ReferenceSimulator:
        """A float64 simulator at the start of the episode, on the prices as float32 holds them."""
        simulator = ReferenceSimulator(
            np.float32(self.opens),
            np.float32(self.closes),
            self.tradable,
            self.session,
            self.rules,
        )
        simulator.reset(self.start_bar, self.last_bar if self.stop_bar is None else self.stop_bar)
        return simulator


def script(actions: Sequence[int]) -> np.ndarray:
    """Scores that choose exactly these actions, f32[N, 7]."""
    return np.eye(7, dtype=np.float32)[np.asarray(actions, int)]


@struct.dataclass
class Played:
    """Rows of E episodes; a row after an episode's end goes on with the dead account."""

    action: jax.Array  # i32[E, N] policy action
    mask: jax.Array  # bool[E, N, 7] legality at the decision
    state: TradingState  # [E, N] after the step
    account: jax.Array  # f32[E, N, 12] account half of the observation, after the step
    outcome: Transition  # [E, N]
    statistics: EpisodeStatistics  # [E] of the steps up to the episode's end


def env_rules(rules: ReferenceParameters) -> dict[str, Any]:
    """The reference's parameters as the fields of `TradingParams`."""
    weights = dict.fromkeys(WEIGHT_PRESETS["professional"], 0.0) | dict(rules.weights)
    reward = reward_params(
        weights=weights,
        pnl_scale=rules.pnl_scale,
        discount=rules.gamma,
        reward_clip=rules.reward_clip,
    )
    return {
        "execution": execution_params(
            commission=rules.commission,
            slippage=rules.slippage,
            cost_multiplier=rules.cost_multiplier,
            lot_size=rules.lot_size,
            initial_cash=rules.initial_cash,
            fill=rules.fill,
        ),
        "limits": trading_limits(
            buy_fractions=tuple(BUY_FRACTION.values()),
            position_cap=rules.position_cap,
            max_exposure=rules.max_exposure,
            add_threshold=rules.add_threshold,
            max_adds=rules.max_adds,
            min_notional=rules.min_notional / rules.initial_cash,
            max_trades_per_session=int(min(rules.daily_trade_limit, 2**30)),
            max_repeats=rules.repeat_limit,
            stop_loss=rules.stop_loss,
            take_profit=rules.take_profit,
            max_holding=int(min(rules.max_holding, 2**30)),
            max_drawdown=rules.max_drawdown,
            bankruptcy_equity=rules.bankruptcy_equity,
        ),
        "reward": reward,
        "directives": Directives(
            risk_multiplier=jnp.float32(rules.risk_multiplier),
            allow_new_risk=jnp.bool_(rules.allow_new_risk),
        ),
    }


def _padded(rows: Sequence[np.ndarray], length: int, dtype: Any) -> np.ndarray:
    """Rows of different lengths, repeated at the end: [E, length]."""
    return np.stack([np.pad(row, (0, length - len(row)), "edge") for row in rows]).astype(dtype)


def assemble(episodes: Sequence[Episode], num_bars: int) -> TradingParams:
    """Parameters whose rules have a leading axis of episodes, on a market of as many symbols."""
    ones = [np.ones(len(e.closes), bool) if e.tradable is None else e.tradable for e in episodes]
    zeros = [np.zeros(len(e.closes)) if e.session is None else e.session for e in episodes]
    last_bar = jnp.asarray([e.last_bar for e in episodes], jnp.int32)
    known = {id(e.rules): env_rules(e.rules) for e in episodes}
    rules = jax.tree.map(lambda *x: np.stack(x), *[known[id(e.rules)] for e in episodes])
    return TradingParams(
        max_steps_in_episode=jnp.int32(num_bars - 1),
        market=Market(
            open=jnp.asarray(_padded([e.opens for e in episodes], num_bars, np.float32)),
            close=jnp.asarray(_padded([e.closes for e in episodes], num_bars, np.float32)),
            tradable=jnp.asarray(_padded(ones, num_bars, bool)),
            session=jnp.asarray(_padded(zeros, num_bars, np.int32)),
            features=jnp.zeros((len(episodes), num_bars, 1), jnp.float32),
        ),
        starts=StartDistribution(first_bar=jnp.zeros_like(last_bar), last_bar=last_bar),
        **jax.tree.map(jnp.asarray, rules),
    )


# Which leaves of the parameters differ among the episodes.
RULES_PER_EPISODE = TradingParams(
    max_steps_in_episode=None,
    market=None,
    starts=None,
    execution=0,
    limits=0,
    reward=0,
    directives=0,
)


@partial(jax.jit, static_argnames="env")
def _play(
    env: TradingEnv,
    params: TradingParams,
    state: TradingState,
    scores: jax.Array,
    masked: jax.Array,
) -> Played:
    @partial(jax.vmap, in_axes=(RULES_PER_EPISODE, 0, 0, 0))
    def episode(params, state, scores, masked):
        def step(state, scores):
            mask = env.action_mask(state, params)
            allowed = mask | ~masked
            action = jnp.argmax(jnp.where(allowed, scores, -jnp.inf)).astype(jnp.int32)
            state, outcome = env.transition(state, action, params)
            account = env.account_features(state, params)
            return state, (action, mask, state, account, outcome)

        _, rows = jax.lax.scan(step, state, scores)
        action, _, states, _, outcome = rows
        done = outcome.terminated | outcome.truncated
        counted = jnp.cumsum(done) - done == 0
        steps = step_record(action, states, outcome)
        return Played(*rows, tally(no_statistics(env), steps, counted))

    return episode(params, state, scores, masked)


class _BareEnv(TradingEnv):
    """An environment without parameters of its own: they come with every call."""

    def __init__(self):
        self.window, self.reward = 1, None


ENV = _BareEnv()
BATCH, BARS = 25, 64  # the shape of short episodes
STEPS = BARS - 1


def play(episodes: Sequence[Episode], *, double: bool = False) -> Played:
    """Plays all episodes from their first to their last bar, as NumPy arrays.

    Scripts that are shorter hold at the end. `double` runs the same program in float64: rules that
    agree to many digits there are the same rules.

    Short episodes run in batches of one shape, so that all tests share a compiled program.
    """
    longest = max(len(episode.closes) for episode in episodes)
    if longest > BARS:
        return _play_batch(episodes, longest, double)
    spare = -len(episodes) % BATCH
    full = [*episodes, *[episodes[-1]] * spare]
    batches = [
        _play_batch(full[first : first + BATCH], BARS, double)
        for first in range(0, len(full), BATCH)
    ]
    count = len(episodes)
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)


def _play_batch(episodes: Sequence[Episode], num_bars: int, double: bool) -> Played:
    scores = np.tile(script([0]), (len(episodes), num_bars - 1, 1))
    for row, episode in zip(scores, episodes, strict=True):
        row[: len(episode.scores)] = episode.scores
    params = assemble(episodes, num_bars)
    state = _initial_states(
        np.arange(len(episodes)),
        np.asarray([e.start_bar for e in episodes]),
        np.asarray([e.last_bar if e.stop_bar is None else e.stop_bar for e in episodes]),
    )
    masked = np.asarray([e.masked for e in episodes])
    if not double:
        return jax.device_get(_play(ENV, params, state, scores, masked))
    with jax.enable_x64(True):
        state = jax.tree.map(_widened, state)
        params = replace(
            jax.tree.map(_decimal, params), market=jax.tree.map(_widened, params.market)
        )
        return jax.device_get(_play(ENV, params, state, scores.astype(np.float64), masked))


_initial_states = jax.jit(jax.vmap(ENV.initial_state))


def _widened(leaf: jax.Array) -> np.ndarray:
    """Floats in float64, the same numbers."""
    numbers = np.asarray(leaf)
    return numbers.astype(np.float64) if numbers.dtype == np.float32 else numbers


def _decimal(leaf: jax.Array) -> np.ndarray:
    """Floats in float64, read as the decimal fractions they stand for: 0.05, not 0.0500000007."""
    numbers = np.asarray(leaf)
    if numbers.dtype != np.float32:
        return numbers
    return np.asarray([float(str(number)) for number in numbers.ravel()]).reshape(numbers.shape)
