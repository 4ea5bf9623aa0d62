"""One symbol, one account: the environment a symbol agent lives in."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.actions import (
    NUM_ACTIONS,
    Action,
    Conduct,
    Directives,
    Reason,
    TradingLimits,
    legal_actions,
    new_conduct,
    next_streak,
    order_budget,
    sanitize,
    session_trades,
)
from envs.curriculum import StartDistribution
from envs.environment import Environment, EnvParams, EnvState
from envs.execution import ExecutionParams, Fill, execute
from envs.market import Market, Quote, close_price, quote, window
from envs.position import Account, Position, flat_position, new_account
from envs.reward import (
    CustomComponents,
    ReturnMoments,
    RewardComponents,
    RewardFunction,
    RewardParams,
    RewardStep,
    no_returns,
    reward_components,
    with_custom,
)

ACCOUNT_FEATURES = (
    "is_long",
    "unrealized_return",
    "bars_held",
    "weight",
    "adds",
    "partial_taken",
    "cash_share",
    "exposure",
    "drawdown",
    "return_since_start",
    "streak",
    "session_trades",
)
"""Names of the account half of the observation, in order."""
NUM_ACCOUNT_FEATURES = len(ACCOUNT_FEATURES)


@struct.dataclass
class TradingState(EnvState):
    """Indices into the market and everything that the agent's actions have changed."""

    symbol: jax.Array  # i32[]
    bar: jax.Array  # i32[] the last closed bar: the agent decides at its close
    stop_bar: jax.Array  # i32[] the bar at whose close the episode is truncated
    position: Position
    account: Account
    conduct: Conduct
    moments: ReturnMoments


@struct.dataclass
class TradingParams(EnvParams):
    """The market and its rules; every number a traced leaf."""

    market: Market
    starts: StartDistribution
    execution: ExecutionParams
    limits: TradingLimits
    reward: RewardParams
    directives: Directives


@struct.dataclass
class Transition:
    """What one step did. Scalars per environment."""

    reward: jax.Array  # f32[] weighted and clipped
    components: RewardComponents  # unweighted
    terminated: jax.Array  # bool[]
    truncated: jax.Array  # bool[]
    executed: jax.Array  # i32[] executed action
    reason: jax.Array  # i32[] why it differs from the policy's
    fill: Fill


class TradingEnv(Environment[TradingState, TradingParams]):
    """Trades one symbol on one account, long only.

    Observation: f32[window * F + 12], the features of the last `window` bars (oldest first, row
    major) and the account half (`ACCOUNT_FEATURES`), all dimensionless. The legality
    mask of a state is `action_mask(state, params)`.

    Action: i32 in 0..6, `envs.actions.Action`. An illegal action is refused and counted.

    Time: at the close of bar t the agent decides; the order fills at the open of bar t + 1; equity
    is marked at its close.

    Reward: `envs.reward`. Terminated: bankruptcy or the drawdown breaker, once the position is
    sold. Truncated: `stop_bar`, where an open position is sold with reason EPISODE_END or
    END_OF_DATA.

    Auto-reset: after a truncation the environment draws a new start from `params.starts`. After a
    termination a new account goes on from the same bar towards the same `stop_bar`: the market half
    stays contiguous, which is what lets the learner encode a rollout block in one pass.
    """

    def __init__(
        self,
        default_params: TradingParams,
        window: int = 32,
        reward: RewardFunction | None = None,
    ):
        """Both switches are static.

        Args:
          window: bars of features in an observation.
          reward: gives the component `custom`; the parameters are then made with
            `reward_params(custom=True)`.
        """
        self._default_params = default_params
        self.window = window
        self.reward = reward

    def __eq__(self, other: object) -> bool:
        """Environments of one window and reward function compile to one program.

        Their default parameters may differ.
        """
        return isinstance(other, TradingEnv) and self._static == other._static

    def __hash__(self) -> int:
        return hash(self._static)

    @property
    def _static(self) -> tuple[type, int, RewardFunction | None]:
        return (TradingEnv, self.window, self.reward)

    @property
    def default_params(self) -> TradingParams:
        return self._default_params

    @property
    def components(self) -> type[RewardComponents]:
        """Type of the components of its reward."""
        return RewardComponents if self.reward is None else CustomComponents

    @property
    def num_actions(self) -> int:
        return NUM_ACTIONS

    def initial_state(self, symbol: jax.Array, bar: jax.Array, stop_bar: jax.Array) -> TradingState:
        """A flat account at the close of `bar`; arguments i32[]."""
        return TradingState(
            time=jnp.int32(0),
            symbol=jnp.asarray(symbol, jnp.int32),
            bar=jnp.asarray(bar, jnp.int32),
            stop_bar=jnp.asarray(stop_bar, jnp.int32),
            position=flat_position(),
            account=new_account(),
            conduct=new_conduct(),
            moments=no_returns(),
        )

    def reset_env(self, key: jax.Array, params: TradingParams) -> tuple[jax.Array, TradingState]:
        state = self.initial_state(*params.starts.sample(key, params.max_steps_in_episode))
        return self.observe(None, state, None, params), state

    def transition(
        self, state: TradingState, action: jax.Array, params: TradingParams
    ) -> tuple[TradingState, Transition]:
        """One step without observation or auto-reset.

        Args:
          action: i32[] policy action.
        """
        return self.advance(state, action, self.quote(state.symbol, state.bar, params), params)

    def quote(self, symbol: jax.Array, bar: jax.Array, params: TradingParams) -> Quote:
        """What the market shows around the decisions at the closes of `bar` for `symbol`.

        Bars do not depend on actions: whoever steps through a stretch of them looks them all up at
        once. Arguments are i32[...] of shapes that broadcast.
        """
        fill = params.execution.fill
        return quote(params.market, symbol, bar, params.starts.last_bar, fill)

    def advance(
        self, state: TradingState, action: jax.Array, market_quote: Quote, params: TradingParams
    ) -> tuple[TradingState, Transition]:
        """`transition` with the quote at hand: the only step function there is."""
        action = jnp.asarray(action, jnp.int32)
        legal = self.action_mask(state, params, market_quote.close)
        order, reason = sanitize(
            action,
            legal,
            state.position,
            state.account,
            state.conduct,
            market_quote,
            self._end_reason(state, market_quote),
            params.execution.lot,
            params.limits,
            params.directives,
        )
        budget = order_budget(
            order, state.position, state.account, params.limits, params.directives
        )
        executed, position, account, fill = execute(
            order, budget, state.position, state.account, market_quote, params.execution
        )
        reason = jnp.where(order != executed, Reason.BELOW_MINIMUM, reason)
        position = replace(position, bars_held=position.bars_held + position.is_long)
        account = account.mark(position.value(market_quote.next_close))
        conduct = self._remember(state, action, executed, market_quote)
        conduct = replace(conduct, ruin=self._ruin(conduct.ruin, account, params.limits))
        terminated = (conduct.ruin != Reason.NONE) & ~position.is_long
        step = RewardStep(
            before=state.position,
            after=position,
            account_before=state.account,
            account_after=account,
            conduct=conduct,
            action=action,
            executed=executed,
            reason=reason,
            fill=fill,
            close=market_quote.close,
            next_close=market_quote.next_close,
            time=state.time,
            terminated=terminated,
        )
        components, moments = reward_components(step, state.moments, params.reward)
        if self.reward is not None:
            components = with_custom(components, self.reward, step)
        clip = params.reward.reward_clip
        reward = jnp.clip(components.total(params.reward.weights), -clip, clip)
        state = replace(
            state,
            time=state.time + 1,
            bar=state.bar + 1,
            position=position,
            account=account,
            conduct=conduct,
            moments=moments,
        )
        return state, Transition(
            reward=reward,
            components=components,
            terminated=terminated,
            truncated=self.is_truncated(state, params),
            executed=executed,
            reason=reason,
            fill=fill,
        )

    def step_env(
        self, key: jax.Array, state: TradingState, action: jax.Array, params: TradingParams
    ) -> tuple[jax.Array, TradingState, jax.Array, jax.Array, dict[str, Any]]:
        state, outcome = self.transition(state, action, params)
        info = {
            "components": outcome.components,
            "executed_action": outcome.executed,
            "reason": outcome.reason,
            "fill": outcome.fill,
        }
        observation = self.observe(None, state, action, params)
        return observation, state, outcome.reward, outcome.terminated, info

    def auto_reset(
        self,
        key: jax.Array,
        state: TradingState,
        terminated: jax.Array,
        truncated: jax.Array,
        params: TradingParams,
    ) -> TradingState:
        symbol, bar, stop_bar = params.starts.sample(key, params.max_steps_in_episode)
        fresh = self.initial_state(
            jnp.where(truncated, symbol, state.symbol),
            jnp.where(truncated, bar, state.bar),
            jnp.where(truncated, stop_bar, state.stop_bar),
        )
        done = terminated | truncated
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, state)

    def observe(
        self,
        key: jax.Array | None,
        state: TradingState,
        action: jax.Array | None,
        params: TradingParams,
    ) -> jax.Array:
        features = window(params.market, state.symbol, state.bar, self.window)
        return jnp.concatenate([features.reshape(-1), self.account_features(state, params)])

    def account_features(
        self, state: TradingState, params: TradingParams, close: jax.Array | None = None
    ) -> jax.Array:
        """The account half of the observation, f32[12] in the order of `ACCOUNT_FEATURES`.

        Each is divided by the limit or scale that makes its usual range about [-1, 1].

        Args:
          close: f32[] price at `state.bar`, where it has been looked up already.
        """
        position, account, limits = state.position, state.account, params.limits
        close = self._close(state, params) if close is None else close
        value = position.value(close)
        cash_share = account.cash / account.equity
        return jnp.stack(
            [
                position.is_long.astype(jnp.float32),
                position.unrealized_return(close) / limits.stop_loss,
                position.bars_held / limits.max_holding,
                value / account.equity / limits.position_cap,
                position.adds / limits.max_adds,
                position.partial_taken.astype(jnp.float32),
                cash_share,
                1.0 - cash_share,
                account.drawdown / limits.max_drawdown,
                (account.equity - 1.0) / limits.stop_loss,
                state.conduct.streak / limits.max_repeats,
                state.conduct.session_trades / limits.max_trades_per_session,
            ]
        ).astype(jnp.float32)

    def action_mask(
        self, state: TradingState, params: TradingParams, close: jax.Array | None = None
    ) -> jax.Array:
        """Legal actions in `state`, bool[7]; `close` as in `account_features`."""
        close = self._close(state, params) if close is None else close
        return legal_actions(state.position, state.account, close, params.limits, params.directives)

    def is_terminated(self, state: TradingState, params: TradingParams) -> jax.Array:
        return (state.conduct.ruin != Reason.NONE) & ~state.position.is_long

    def is_truncated(self, state: TradingState, params: TradingParams) -> jax.Array:
        return state.bar >= state.stop_bar

    def action_space(self, params: TradingParams) -> Any:
        """gymnax's `Discrete(7)`; needs the `gymnax` extra."""
        from gymnax.environments import spaces

        return spaces.Discrete(NUM_ACTIONS)

    def observation_space(self, params: TradingParams) -> Any:
        """gymnax's `Box` of shape (window * F + 12,); needs the `gymnax` extra."""
        from gymnax.environments import spaces

        size = self.window * params.market.num_features + NUM_ACCOUNT_FEATURES
        return spaces.Box(-jnp.inf, jnp.inf, (size,), jnp.float32)

    def state_space(self, params: TradingParams) -> Any:
        """gymnax's `Dict` of the state's leaves by path; needs the `gymnax` extra."""
        from gymnax.environments import spaces

        shape = jax.eval_shape(self.initial_state, jnp.int32(0), jnp.int32(0), jnp.int32(0))
        leaves, _ = jax.tree_util.tree_flatten_with_path(shape)
        return spaces.Dict(
            {
                jax.tree_util.keystr(path): spaces.Box(-jnp.inf, jnp.inf, leaf.shape, leaf.dtype)
                for path, leaf in leaves
            }
        )

    @staticmethod
    def _close(state: TradingState, params: TradingParams) -> jax.Array:
        return close_price(params.market, state.symbol, state.bar)

    @staticmethod
    def _end_reason(state: TradingState, market_quote: Quote) -> jax.Array:
        reason = jnp.where(market_quote.last, Reason.END_OF_DATA, Reason.EPISODE_END)
        return jnp.where(state.bar + 1 >= state.stop_bar, reason, Reason.NONE).astype(jnp.int32)

    @staticmethod
    def _remember(
        state: TradingState, action: jax.Array, executed: jax.Array, market_quote: Quote
    ) -> Conduct:
        conduct = state.conduct
        trades = session_trades(conduct, market_quote) + (executed != Action.HOLD)
        if not market_quote.fills_next:
            trades = jnp.where(market_quote.new_session, 0, trades)
        return replace(
            conduct,
            last_action=action,
            streak=next_streak(conduct, action),
            session_trades=trades,
            last_executed=jnp.where(
                jnp.arange(NUM_ACTIONS) == executed, state.time, conduct.last_executed
            ),
        )

    @staticmethod
    def _ruin(latched: jax.Array, account: Account, limits: TradingLimits) -> jax.Array:
        broken = account.drawdown >= limits.max_drawdown
        ruin = jnp.where((latched == Reason.NONE) & broken, Reason.DRAWDOWN_BREAKER, latched)
        bankrupt = account.equity <= limits.bankruptcy_equity
        return jnp.where(bankrupt, Reason.BANKRUPTCY, ruin).astype(jnp.int32)
