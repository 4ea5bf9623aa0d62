"""From settings and data to the compiled programs: the one place where both become arrays.

Agents are laid out as [symbols, seeds]; each sees only its own symbol's market.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.entropy import EntropySchedule, GuardParams
from agents.learner import Hyperparameters, Learner, TrainState, UpdateMetrics
from agents.networks import ActorCritic
from agents.playback import Playback, play
from agents.ppo import PPOParams, PPOShape
from envs.actions import neutral_directives, trading_limits
from envs.curriculum import start_distribution
from envs.execution import execution_params
from envs.reward import RewardFunction, reward_params
from envs.trading import TradingEnv, TradingParams
from jaxtrader.config import SPLITS, TrainingConfig
from jaxtrader.data import Dataset
from jaxtrader.data.markets import split_market
from jaxtrader.errors import ConfigError
from jaxtrader.placement import Placement, device_mesh, over_agents

MAX_UPDATES_PER_CALL = 50  # length of the metrics buffer of one compiled call


def ppo_shape(config: TrainingConfig) -> PPOShape:
    """Static shape of training.

    A block is the largest stretch of at most `block_length` steps that divides rollouts, episodes
    and minibatches.

    Raises:
      ConfigError: when a rollout cannot be dealt into whole minibatches, or a minibatch into whole
        passes.
    """
    ppo = config.ppo
    common = math.gcd(ppo.rollout_steps, config.environment.episode_length, ppo.batch_size)
    block = max(d for d in range(1, min(common, ppo.block_length) + 1) if common % d == 0)
    steps = ppo.num_envs * ppo.rollout_steps
    if steps % ppo.batch_size:
        raise ConfigError(
            f"num_envs x rollout_steps = {steps} is not a multiple of batch_size = "
            f"{ppo.batch_size}: the minibatches would not cover the rollout. Change one of the "
            f"three; {ppo.num_envs * ppo.batch_size} steps a rollout would do"
        )
    blocks_per_minibatch = ppo.batch_size // block
    for name, value in (
        ("num_envs", ppo.num_envs),
        (f"batch_size / {block}, the blocks of a minibatch,", blocks_per_minibatch),
    ):
        if value % ppo.env_shards:
            raise ConfigError(
                f"{name} = {value} is not a multiple of env_shards = {ppo.env_shards}: every "
                "group of environments gives each minibatch the same number of blocks"
            )
    share = ppo.batch_size // ppo.env_shards
    at_once = min(ppo.microbatch_size or share, share)
    if share % at_once or at_once % block:
        fitting = max(n for n in range(block, max(at_once, block) + 1, block) if share % n == 0)
        raise ConfigError(
            f"microbatch_size = {ppo.microbatch_size}: the {share} steps of a minibatch"
            f"{' that a group of environments gives' if ppo.env_shards > 1 else ''}, in blocks of "
            f"{block}, cannot be dealt into equal parts of so many; {fitting} would do"
        )
    return PPOShape(
        num_envs=ppo.num_envs,
        num_blocks=ppo.rollout_steps // block,
        block_length=block,
        num_epochs=ppo.num_epochs,
        blocks_per_minibatch=blocks_per_minibatch,
        env_shards=ppo.env_shards,
        passes=share // at_once,
        normalize_rewards=ppo.reward_normalization == "running_mean",
    )


def updates_for(config: TrainingConfig, total_timesteps: int) -> int:
    """Updates that cover `total_timesteps` environment steps of one seed, rounded up."""
    return math.ceil(total_timesteps / ppo_shape(config).steps_per_update)


def hyperparameters(config: TrainingConfig, total_updates: int) -> Hyperparameters:
    """The traced coefficients of training."""
    ppo, guard = config.ppo, config.guard
    steps_per_update = ppo_shape(config).steps_per_update

    def rate(value: float | None, otherwise: float = math.inf) -> jax.Array:
        return jnp.float32(otherwise if value is None else value)

    def updates(steps: int) -> jax.Array:
        return jnp.int32(max(1, math.ceil(steps / steps_per_update)))

    return Hyperparameters(
        ppo=PPOParams(
            learning_rate=rate(ppo.learning_rate),
            final_learning_rate=rate(ppo.final_learning_rate, ppo.learning_rate),
            discount=rate(ppo.gamma),
            trace_decay=rate(ppo.gae_lambda),
            clip_ratio=rate(ppo.clip_ratio),
            value_coef=rate(ppo.value_coef),
            max_grad_norm=rate(ppo.max_grad_norm),
            target_kl=rate(ppo.target_kl),
        ),
        entropy=EntropySchedule(
            initial=rate(ppo.entropy_coef),
            final=rate(ppo.final_entropy_coef, ppo.entropy_coef),
            hold=rate(ppo.entropy_hold),
        ),
        guard=GuardParams(
            # No entropy is negative: a disabled guard watches for the impossible.
            threshold=jnp.float32(guard.threshold if guard.enabled else -1.0),
            patience=jnp.int32(guard.patience),
            warm_up=updates(guard.warm_up_steps),
            cool_down=updates(guard.cool_down_steps),
            boost=rate(guard.boost),
            floor=rate(guard.floor),
            ceiling=rate(guard.ceiling),
            max_rescues=jnp.int32(guard.max_rescues),
        ),
        total_updates=jnp.int32(total_updates),
    )


def trading_params(
    config: TrainingConfig, dataset: Dataset, split: str, *, custom_reward: bool = False
) -> TradingParams:
    """The environment's parameters on one split, stacked over symbols: leaves [S, ...].

    The market of a split holds its bars and the R - 1 bars before them, and nothing later.

    Args:
      custom_reward: whether the environment has a reward function, which then takes the place of
        the config's preset.

    Raises:
      ConfigError: for settings the environment refuses.
    """
    environment = config.environment
    market, first_bar, last_bar = jax.device_get(split_market(dataset, split))
    episode_length = environment.episode_length

    def one(symbol: int) -> TradingParams:
        return TradingParams(
            max_steps_in_episode=jnp.int32(episode_length),
            market=jax.tree.map(lambda x: x[symbol][None], market),
            starts=start_distribution(
                first_bar[symbol : symbol + 1],
                last_bar[symbol : symbol + 1],
                episode_length,
                dataset.receptive_field,
            ),
            execution=execution_params(
                environment.costs,
                commission=environment.commission,
                slippage=environment.slippage,
                cost_multiplier=environment.cost_multiplier,
                lot_size=environment.lot_size,
                initial_cash=environment.initial_cash,
                fill=environment.fill,
            ),
            limits=trading_limits(
                buy_fractions=(
                    environment.buy_small,
                    environment.buy_medium,
                    environment.buy_large,
                ),
                position_cap=environment.position_cap,
                max_exposure=environment.max_exposure,
                add_threshold=environment.add_threshold,
                max_adds=environment.max_adds,
                min_notional=environment.min_notional / environment.initial_cash,
                max_trades_per_session=environment.max_trades_per_session,
                max_repeats=environment.max_repeats,
                stop_loss=environment.stop_loss,
                take_profit=environment.take_profit,
                max_holding=environment.max_holding,
                max_drawdown=environment.max_drawdown,
                bankruptcy_equity=environment.bankruptcy_equity,
            ),
            reward=reward_params(
                config.reward.preset,
                weights=config.reward.weights,
                custom=custom_reward,
                pnl_scale=config.reward.pnl_scale,
                discount=config.ppo.gamma,
                reward_clip=config.reward.reward_clip,
            ),
            directives=neutral_directives(),
        )

    try:
        per_symbol = [one(symbol) for symbol in range(len(dataset.symbols))]
    except ValueError as error:
        raise ConfigError(f"{split} split of {', '.join(dataset.symbols)}: {error}") from error
    # On the host, as above: on a device each leaf would be a program of its own to compile.
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *per_symbol)


# Compiled once per learner (which compares by value) and argument shapes, not once per program.


@partial(jax.jit, static_argnames=("learner", "placement"))
def _initialize(
    learner: Learner,
    placement: Placement,
    keys: jax.Array,
    params: TradingParams,
    hyper: Hyperparameters,
) -> TrainState:
    return placement.keep_states(over_agents(learner.init, placement)(keys, params, hyper))


@partial(jax.jit, static_argnames=("learner", "placement"))
def _embed(learner: Learner, placement: Placement, params: Any, trading: TradingParams) -> Any:
    return over_agents(learner.embeddings, placement)(params, trading)


@partial(jax.jit, static_argnames="learner", inline=True)
def _update(
    learner: Learner,
    state: TrainState,
    params: TradingParams,
    hyper: Hyperparameters,
    table: jax.Array | None,
) -> tuple[TrainState, UpdateMetrics]:
    """`learner.update`, traced once for its shapes and for the loop over updates."""
    return learner.update(state, params, hyper, table)


@partial(jax.jit, static_argnames=("learner", "placement"), donate_argnames="agents")
def _run_updates(
    learner: Learner,
    placement: Placement,
    agents: TrainState,
    tables: jax.Array | None,
    params: TradingParams,
    hyper: Hyperparameters,
    n: jax.Array,
) -> tuple[TrainState, UpdateMetrics]:
    def agent(
        agent: tuple[TrainState, jax.Array | None],
        params: TradingParams,
        hyper: Hyperparameters,
        n: jax.Array,
    ) -> tuple[TrainState, UpdateMetrics]:
        state, table = agent
        shapes = jax.eval_shape(partial(_update, learner), state, params, hyper, table)[1]
        buffer = jax.tree.map(
            lambda s: jnp.zeros((MAX_UPDATES_PER_CALL, *s.shape), s.dtype), shapes
        )

        def body(i: jax.Array, carry: tuple[TrainState, UpdateMetrics]):
            state, buffer = carry
            state, metrics = _update(learner, state, params, hyper, table)
            return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffer, metrics)

        return jax.lax.fori_loop(0, n, body, (state, buffer))

    agents, metrics = over_agents(agent, placement)((agents, tables), params, hyper, n)
    return placement.keep_states(agents), metrics


@partial(jax.jit, static_argnames=("learner", "placement", "num_steps"))
def _play(
    learner: Learner,
    placement: Placement,
    params: Any,
    trading: TradingParams,
    starts: jax.Array,
    stops: jax.Array,
    num_steps: int,
) -> Playback:
    def agent(params: Any, trading_and_bars: tuple) -> Playback:
        trading, starts, stops = trading_and_bars
        networks = learner.networks.full_precision
        return play(networks, params, learner.env, trading, starts, stops, num_steps)

    return over_agents(agent, placement)(params, (trading, starts, stops))


@dataclass(frozen=True, eq=False)
class Program:
    """All agents' training and evaluation on one dataset, compiled once each."""

    config: TrainingConfig
    dataset: Dataset
    learner: Learner
    params: dict[str, TradingParams]  # split -> leaves [S, ...]
    placement: Placement

    @property
    def reward_function(self) -> str | None:
        """Name of a custom reward's function, with its module; None without one."""
        function = self.learner.env.reward
        if function is None:
            return None
        named = function if hasattr(function, "__qualname__") else type(function)
        return f"{named.__module__}.{named.__qualname__}"

    def initialize(
        self, keys: jax.Array, params: TradingParams, hyper: Hyperparameters
    ) -> TrainState:
        """New agents [S, K] from their keys [S, K]."""
        place = self.placement
        return _initialize(
            self.learner, place, place.by_agent(keys), params, place.everywhere(hyper)
        )

    def embeddings(self, params: Any, trading: TradingParams) -> jax.Array | None:
        """The tables of frozen encoders, made once for all updates; None where encoders learn.

        Args:
          params: network parameters [S, K, ...].

        Returns:
          [S, K, 1, bars - R + 1, D].
        """
        return _embed(self.learner, self.placement, params, trading)

    def run_updates(
        self,
        agents: TrainState,
        params: TradingParams,
        hyper: Hyperparameters,
        n: jax.Array,
        tables: jax.Array | None = None,
    ) -> tuple[TrainState, UpdateMetrics]:
        """Agents after n updates, and their metrics. `agents` are donated: do not use them again.

        The metrics are [S, K, MAX_UPDATES_PER_CALL, ...], of which the first n count. n is traced
        (i32[]): one program serves every n.

        Args:
          tables: what `embeddings` returned.
        """
        hyper, n = self.placement.everywhere((hyper, n))
        return _run_updates(self.learner, self.placement, agents, tables, params, hyper, n)

    def lower_updates(self, num_seeds: int) -> jax.stages.Lowered:
        """What `run_updates` compiles for so many seeds; nothing is computed or allocated.

        For programs that are on one device.
        """
        params = jax.eval_shape(lambda: self.params["train"])
        hyper = jax.eval_shape(lambda: hyperparameters(self.config, 1))
        keys = jax.eval_shape(lambda: agent_keys(self.dataset.symbols, tuple(range(num_seeds))))
        agents = _initialize.eval_shape(self.learner, self.placement, keys, params, hyper)
        tables = _embed.eval_shape(self.learner, self.placement, agents.params, params)
        n = jax.ShapeDtypeStruct((), jnp.int32)
        return _run_updates.lower(self.learner, self.placement, agents, tables, params, hyper, n)

    def play(
        self,
        params: Any,
        trading: TradingParams,
        starts: np.ndarray,
        stops: np.ndarray,
        num_steps: int,
    ) -> Playback:
        """Greedy episodes of every agent, [S, K, ...].

        Args:
          params: network parameters [S, K, ...].
          starts, stops: int[S, E] first decision bar and stop bar of E episodes.
          num_steps: static, at least the longest episode.
        """
        place = self.placement
        bars = (jnp.asarray(starts, jnp.int32), jnp.asarray(stops, jnp.int32))
        return _play(
            self.learner, place, place.by_agent(params), trading, *place.by_symbol(bars), num_steps
        )


def build_program(
    config: TrainingConfig,
    dataset: Dataset,
    vectorize: bool | None = None,
    reward: RewardFunction | None = None,
    num_seeds: int = 1,
    devices: Sequence[Any] | None = None,
) -> Program:
    """Checks the settings against the data and lays everything out on the devices.

    Args:
      vectorize: see `over_agents`; by default, unless the backend is a CPU.
      reward: takes the place of the config's reward preset; the config's single weights, its scale
        and its clip stand.
      num_seeds: that will be trained, where they are to be spread over several devices.
      devices: to spread them over; by default all there are, those of other hosts too.

    Raises:
      ConfigError: settings that contradict each other or the data, or a reward function that
        returns more than one number.
    """
    networks = ActorCritic(config.network)
    if dataset.receptive_field != networks.receptive_field:
        raise ConfigError(
            f"the dataset was split for a receptive field of {dataset.receptive_field} bars, and "
            f"the network's dilations make {networks.receptive_field}: build the dataset with "
            f"receptive_field={networks.receptive_field}"
        )
    custom = reward is not None
    params = {
        split: trading_params(config, dataset, split, custom_reward=custom) for split in SPLITS
    }
    first_symbol = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), params["train"])
    env = TradingEnv(first_symbol, window=networks.receptive_field, reward=reward)
    if custom:
        _try_reward(env, first_symbol)
    shape = ppo_shape(config)
    learner = Learner(env=env, networks=networks, shape=shape)
    if vectorize is None:
        vectorize = jax.default_backend() != "cpu"
    mesh = device_mesh(len(dataset.symbols), num_seeds, shape.env_shards, devices)
    placement = Placement(mesh, vectorize)
    return Program(config, dataset, learner, placement.by_symbol(params), placement)


def _try_reward(env: TradingEnv, params: TradingParams) -> None:
    """Traces one step, so that a mistake in a reward function is told before the long compile."""
    start = env.initial_state(jnp.int32(0), jnp.int32(0), jnp.int32(1))
    try:
        jax.eval_shape(env.transition, start, jnp.int32(0), params)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def agent_keys(symbols: tuple[str, ...], seeds: tuple[int, ...]) -> jax.Array:
    """Typed keys [S, K]: an agent's stream depends on its seed and its symbol's name alone.

    Raises:
      ConfigError: no seed, one given twice, or one that is no 32-bit number.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= s < 2**32 for s in seeds):
        raise ConfigError(f"seeds {seeds}: give different integers from 0 to 2^32 - 1")
    names = np.asarray([zlib.crc32(symbol.encode()) for symbol in symbols], np.uint32)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    per_symbol = jax.vmap(jax.random.fold_in, (0, None))
    return jax.vmap(per_symbol, (None, 0))(keys, names)
