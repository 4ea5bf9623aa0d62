"""One agent's whole training state, and the update that advances it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents.entropy import (
    EntropySchedule,
    GuardParams,
    GuardState,
    check_entropy,
    entropy_coefficient,
    histogram_entropy,
    new_guard,
)
from agents.networks import ActorCritic, Params
from agents.normalize import ReturnScale, new_return_scale, normalize_rewards, update_return_scale
from agents.ppo import (
    LossParts,
    PPOParams,
    PPOShape,
    advantages_and_returns,
    learning_rate_at,
    new_optimizer_state,
    optimize,
    steps_first,
    to_blocks,
)
from agents.rollout import FinishedEpisodes, Rollout, Walkers, collect, start_walkers
from envs.actions import NUM_ACTIONS
from envs.trading import TradingEnv, TradingParams

RUNNING, HALTED_BY_GUARD, HALTED_NON_FINITE = 0, 1, 2
HALT_REASONS = {
    RUNNING: "running",
    HALTED_BY_GUARD: "action entropy stayed low after every rescue of the entropy guard",
    HALTED_NON_FINITE: "the loss or its gradient was not finite",
}


@struct.dataclass
class TrainState:
    """Everything that an update reads and changes, for one agent; all of it is checkpointed."""

    key: jax.Array  # typed key of the seed; each update folds its number in
    update: jax.Array  # i32[] updates done; steps = update * steps_per_update, on the host
    params: Params
    opt_state: optax.OptState
    walkers: Walkers
    return_scale: ReturnScale
    guard: GuardState
    halt: jax.Array  # i32[] RUNNING, or why the agent is frozen
    halted_at: jax.Array  # i32[] update at which it was


@struct.dataclass
class Hyperparameters:
    """All traced."""

    ppo: PPOParams
    entropy: EntropySchedule
    guard: GuardParams
    total_updates: jax.Array  # i32[] length of the schedules


@struct.dataclass
class UpdateMetrics:
    """What the host sees of one update of one agent."""

    loss: LossParts
    learning_rate: jax.Array  # f32[]
    entropy_coef: jax.Array  # f32[]
    action_entropy: jax.Array  # f32[] nats, histogram of the rollout's executed actions
    policy_entropy: jax.Array  # f32[] nats, histogram of its policy actions
    reward_mean: jax.Array  # f32[] per step, before normalisation
    explained_variance: jax.Array  # f32[] of the returns by the values
    guard: GuardState
    halt: jax.Array  # i32[]
    finished: FinishedEpisodes  # [K, M]; of M environments


@dataclass(frozen=True)
class Learner:
    """The static parts of training; its methods are pure functions of their arguments."""

    env: TradingEnv
    networks: ActorCritic
    shape: PPOShape
    telemetry_envs: int = 64  # environments whose episodes are reported one by one

    def init(self, key: jax.Array, env_params: TradingParams, hyper: Hyperparameters) -> TrainState:
        """A new agent from its seed's key."""
        key_state, key_params, key_walkers = jax.random.split(key, 3)
        params = self.networks.init(key_params, env_params.market.num_features)
        return TrainState(
            key=key_state,
            update=jnp.int32(0),
            params=params,
            opt_state=new_optimizer_state(self.networks, params, hyper.ppo),
            walkers=start_walkers(
                key_walkers,
                self.env,
                env_params,
                self.shape.num_envs,
                self.shape.block_length,
                self.telemetry_envs,
                self.shape.env_shards,
            ),
            return_scale=new_return_scale(self.shape.num_envs),
            guard=new_guard(),
            halt=jnp.int32(RUNNING),
            halted_at=jnp.int32(0),
        )

    def embeddings(self, params: Params, env_params: TradingParams) -> jax.Array | None:
        """A frozen encoder's table, [symbols, bars - R + 1, D]; None where the encoder learns."""
        if not self.networks.config.frozen_encoder:
            return None
        return self.networks.encode_market(params, env_params.market)

    def update(
        self,
        state: TrainState,
        env_params: TradingParams,
        hyper: Hyperparameters,
        table: jax.Array | None = None,
    ) -> tuple[TrainState, UpdateMetrics]:
        """Collect, estimate, optimise, guard. A halted agent stays bit for bit as it is.

        Args:
          table: the frozen encoder's embeddings, made once for all updates.
        """
        key_collect, key_optimize = jax.random.split(jax.random.fold_in(state.key, state.update))
        walkers, rollout = collect(
            key_collect,
            self.networks,
            state.params,
            self.env,
            env_params,
            state.walkers,
            self.shape.num_blocks,
            self.shape.block_length,
            table,
            self.shape.env_shards,
        )
        rewards, return_scale = self._normalized(rollout, state.return_scale, hyper)
        advantages, returns = advantages_and_returns(rollout, rewards, hyper.ppo)

        progress = jnp.minimum(state.update / jnp.maximum(hyper.total_updates, 1), 1.0)
        learning_rate = learning_rate_at(hyper.ppo, progress)
        entropy_coef = entropy_coefficient(
            hyper.entropy(progress), state.guard, hyper.guard, hyper.entropy.initial
        )
        params, opt_state, loss, finite = optimize(
            key_optimize,
            self.networks,
            state.params,
            state.opt_state,
            env_params.market,
            to_blocks(rollout, advantages, returns, self.shape.env_shards),
            self.shape,
            hyper.ppo,
            learning_rate,
            entropy_coef,
            table,
        )

        action_entropy = histogram_entropy(action_histogram(rollout.executed))
        guard = check_entropy(state.guard, action_entropy, state.update + 1, hyper.guard)
        new = TrainState(
            key=state.key,
            update=state.update + 1,
            params=params,
            opt_state=opt_state,
            walkers=walkers,
            return_scale=return_scale,
            guard=guard,
            halt=jnp.where(guard.exhausted, HALTED_BY_GUARD, RUNNING).astype(jnp.int32),
            halted_at=jnp.where(guard.exhausted, state.update + 1, 0).astype(jnp.int32),
        )
        state = self._freeze(state, new, finite)
        metrics = UpdateMetrics(
            loss=loss,
            learning_rate=learning_rate,
            entropy_coef=entropy_coef,
            action_entropy=action_entropy,
            policy_entropy=histogram_entropy(action_histogram(rollout.action)),
            reward_mean=jnp.mean(rollout.reward),
            explained_variance=1.0
            - jnp.var(returns - rollout.value) / jnp.maximum(jnp.var(returns), 1e-8),
            # An update that is thrown away has rescued nobody.
            guard=replace(state.guard, triggered=state.guard.triggered & finite),
            halt=state.halt,
            finished=rollout.finished,
        )
        return state, metrics

    def _normalized(
        self, rollout: Rollout, scale: ReturnScale, hyper: Hyperparameters
    ) -> tuple[jax.Array, ReturnScale]:
        if not self.shape.normalize_rewards:
            return rollout.reward, scale
        done = rollout.terminated | rollout.truncated
        scale = update_return_scale(
            scale, steps_first(rollout.reward), steps_first(done), hyper.ppo.discount
        )
        return normalize_rewards(rollout.reward, scale), scale

    @staticmethod
    def _freeze(old: TrainState, new: TrainState, finite: jax.Array) -> TrainState:
        """`new`, unless the agent had halted before or this update broke it: then `old`."""
        was_halted = old.halt != RUNNING
        broke = ~was_halted & ~finite
        keep = was_halted | broke
        # The key is the same in both; to jax.debug_key_reuse, selecting would use it.
        kept = jax.tree.map(
            lambda a, b: jnp.where(keep, a, b), replace(old, key=None), replace(new, key=None)
        )
        return replace(
            kept,
            key=old.key,
            halt=jnp.where(broke, HALTED_NON_FINITE, kept.halt),
            halted_at=jnp.where(broke, old.update + 1, kept.halted_at),
        )


def action_histogram(actions: jax.Array) -> jax.Array:
    """Counts of i32[...] actions, i32[7]."""
    is_action = actions[..., None] == jnp.arange(NUM_ACTIONS)
    return jnp.sum(is_action, axis=tuple(range(actions.ndim)))
