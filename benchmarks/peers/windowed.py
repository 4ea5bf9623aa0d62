"""PPO in JAX as it is usually written (PureJaxRL: Lu et al. 2022): observations stored, rows dealt.

The same environment, network, loss, optimiser and order of work as `agents.learner`, but for the
one idea that this library adds: here every observation is a window of bars of its own, and is
encoded by itself wherever it turns up, in the rollout and in each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from agents.advantages import gae
from agents.learner import Hyperparameters
from agents.networks import (
    ActorCritic,
    NetworkConfig,
    Params,
    entropy,
    log_prob,
    root_mean_square_normalized,
)
from agents.normalize import ReturnScale, new_return_scale, normalize_rewards, update_return_scale
from agents.ppo import PPOParams, optimizer
from envs.trading import NUM_ACCOUNT_FEATURES, TradingEnv, TradingParams, TradingState
from jaxtrader.config import PPOConfig
from jaxtrader.errors import ConfigError

_ORTHOGONAL = nn.initializers.orthogonal(2.0**0.5)


@struct.dataclass
class Rows:
    """Single steps, in any order: what a minibatch is made of."""

    observation: jax.Array  # f32[..., R * F + A]
    mask: jax.Array  # bool[..., 7]
    action: jax.Array  # i32[...]
    log_prob: jax.Array  # f32[...] under the policy that acted
    advantage: jax.Array  # f32[...]
    returns: jax.Array  # f32[...]


@struct.dataclass
class WindowedState:
    """Everything that an update reads and changes."""

    key: jax.Array
    params: Params
    opt_state: optax.OptState
    env_state: TradingState  # [N, ...]
    observation: jax.Array  # f32[N, R * F + A]
    return_scale: ReturnScale


class DenseEncoder(nn.Module):
    """`agents.networks.MarketEncoder` of flax's dense layers, each on a row and an earlier one."""

    channels: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """f32[..., L, F] to f32[..., L - R + 1, channels]."""
        x = features
        for layer, dilation in enumerate(self.dilations):
            y = nn.relu(self.joined(x, dilation, f"layer_{layer}"))
            x = y if layer == 0 else y + x[..., dilation:, :]
        return root_mean_square_normalized(x)

    def joined(self, x: jax.Array, dilation: int, name: str) -> jax.Array:
        both = jnp.concatenate([x[..., :-dilation, :], x[..., dilation:, :]], axis=-1)
        return nn.Dense(self.channels, kernel_init=_ORTHOGONAL, name=name)(both)


class ConvolutionEncoder(DenseEncoder):
    """The same with flax's dilated convolution."""

    def joined(self, x: jax.Array, dilation: int, name: str) -> jax.Array:
        return nn.Conv(
            self.channels,
            kernel_size=(2,),
            kernel_dilation=(dilation,),
            padding="VALID",
            kernel_init=_ORTHOGONAL,
            name=name,
        )(x)


class PairingEncoder(nn.Module):
    """The same on windows alone, of which only the last embedding counts.

    With dilations of 1, 2, 4, ... that depends on every second row of each layer's output:
    neighbours are paired and nothing else is computed, a third of the arithmetic.
    """

    channels: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """f32[..., R, F] to f32[..., 1, channels]."""
        x = features
        for layer in range(len(self.dilations)):
            pairs = x.reshape(*x.shape[:-2], x.shape[-2] // 2, -1)
            dense = nn.Dense(self.channels, kernel_init=_ORTHOGONAL, name=f"layer_{layer}")
            y = nn.relu(dense(pairs))
            x = y if layer == 0 else y + x[..., 1::2, :]
        return root_mean_square_normalized(x)


def check_that_neighbours_pair(network: NetworkConfig) -> None:
    """Raises ConfigError for dilations that do not double."""
    doubling = tuple(2**layer for layer in range(len(network.dilations)))
    if network.dilations != doubling:
        raise ConfigError(
            f"network.dilations = {network.dilations}: this peer's encoder pairs neighbours, for "
            f"which dilations must double: {doubling}"
        )


@dataclass(frozen=True)
class WindowActorCritic(ActorCritic):
    """The library's networks with another encoder."""

    encoder: type[nn.Module] = DenseEncoder

    @property
    def _encoder(self) -> nn.Module:
        return self.encoder(self.config.channels, self.config.dilations)  # type: ignore[call-arg]

    def init(self, key: jax.Array, num_features: int) -> Params:
        bars = jnp.zeros((self.receptive_field, num_features))
        params = super().init(key, num_features)
        return {**params, "encoder": self._encoder.init(key, bars)["params"]}

    def encode(self, params: Params, features: jax.Array) -> jax.Array:
        return cast(jax.Array, self._encoder.apply({"params": params["encoder"]}, features))


def windowed_policy(
    networks: ActorCritic, params: Params, observation: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Masked logits f32[..., 7] and value f32[...] of observations f32[..., R * F + A]."""
    market = observation[..., :-NUM_ACCOUNT_FEATURES]
    account = observation[..., -NUM_ACCOUNT_FEATURES:]
    windows = market.reshape(*market.shape[:-1], networks.receptive_field, -1)
    embedding = networks.encode(params, windows)[..., 0, :]
    return networks.heads(params, embedding, account, mask)


def windowed_loss(
    params: Params, networks: ActorCritic, rows: Rows, ppo: PPOParams, entropy_coef: jax.Array
) -> jax.Array:
    """PPO's loss (Schulman et al. 2017) over one minibatch, f32[]; see `agents.ppo.ppo_loss`."""
    logits, value = windowed_policy(networks, params, rows.observation, rows.mask)
    ratio = jnp.exp(log_prob(logits, rows.action) - rows.log_prob)
    advantage = (rows.advantage - rows.advantage.mean()) / (rows.advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1.0 - ppo.clip_ratio, 1.0 + ppo.clip_ratio)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = 0.5 * jnp.square(value - rows.returns).mean()
    return policy_loss + ppo.value_coef * value_loss - entropy_coef * entropy(logits).mean()


def _optimizer(ppo: PPOParams) -> optax.GradientTransformation:
    """The library's, which sees the parameters as one vector."""
    return optax.flatten(optimizer(ppo, ppo.learning_rate))


@dataclass(frozen=True)
class WindowedPPO:
    """Static parts; the methods are pure functions of their arguments."""

    env: TradingEnv
    networks: ActorCritic
    config: PPOConfig

    def init(
        self, key: jax.Array, env_params: TradingParams, hyper: Hyperparameters
    ) -> WindowedState:
        """A new agent."""
        key, key_params, key_reset = jax.random.split(key, 3)
        params = self.networks.init(key_params, env_params.market.num_features)
        keys = jax.random.split(key_reset, self.config.num_envs)
        observation, env_state = jax.vmap(self.env.reset, (0, None))(keys, env_params)
        return WindowedState(
            key=key,
            params=params,
            opt_state=_optimizer(hyper.ppo).init(params),
            env_state=env_state,
            observation=observation,
            return_scale=new_return_scale(self.config.num_envs),
        )

    def update(
        self, state: WindowedState, env_params: TradingParams, hyper: Hyperparameters
    ) -> WindowedState:
        """Collect, estimate, optimise."""
        state, rows = self.collect(state, env_params, hyper.ppo)
        tx = _optimizer(hyper.ppo)
        grad = jax.grad(windowed_loss)

        def minibatch(carry: tuple[Any, Any], ids: jax.Array):
            params, opt_state = carry
            batch = jax.tree.map(lambda x: x[ids], rows)
            grads = grad(params, self.networks, batch, hyper.ppo, hyper.entropy.initial)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        def epoch(carry: tuple[Any, Any], key: jax.Array):
            ids = jax.random.permutation(key, rows.action.shape[0])
            return jax.lax.scan(minibatch, carry, ids.reshape(-1, self.config.batch_size))

        key, key_epochs = jax.random.split(state.key)
        keys = jax.random.split(key_epochs, self.config.num_epochs)
        (params, opt_state), _ = jax.lax.scan(epoch, (state.params, state.opt_state), keys)
        return replace(state, key=key, params=params, opt_state=opt_state)

    def collect(
        self, state: WindowedState, env_params: TradingParams, ppo: PPOParams
    ) -> tuple[WindowedState, Rows]:
        """Steps all environments; the rollout's T * N steps as rows, with their advantages."""
        num_envs, params = self.config.num_envs, state.params

        def policy(observation: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            return windowed_policy(self.networks, params, observation, mask)

        def step(carry: tuple[jax.Array, TradingState, jax.Array], _):
            key, env_state, observation = carry
            key, key_action, key_step = jax.random.split(key, 3)
            mask = jax.vmap(self.env.action_mask, (0, None))(env_state, env_params)
            logits, value = policy(observation, mask)
            action = jax.random.categorical(key_action, logits)
            keys = jax.random.split(key_step, num_envs)
            after, env_state, reward, terminated, truncated, info = jax.vmap(
                self.env.step, (0, 0, 0, None)
            )(keys, env_state, action, env_params)
            # Encoded only in the few steps in which an episode is cut.
            final_value = jax.lax.cond(
                truncated.any(),
                lambda: policy(info["final_observation"], mask)[1],
                lambda: jnp.zeros_like(value),
            )
            stored = {
                "observation": observation,
                "mask": mask,
                "action": action,
                "log_prob": log_prob(logits, action),
            }
            done = (terminated, truncated)
            return (key, env_state, after), (stored, reward, value, done, final_value)

        carry = (state.key, state.env_state, state.observation)
        carry, outcome = jax.lax.scan(step, carry, length=self.config.rollout_steps)
        (key, env_state, observation), (stored, reward, value, done, final_value) = carry, outcome
        mask = jax.vmap(self.env.action_mask, (0, None))(env_state, env_params)
        _, last_value = policy(observation, mask)
        return_scale = state.return_scale
        if self.config.reward_normalization == "running_mean":
            return_scale = update_return_scale(
                return_scale, reward, done[0] | done[1], ppo.discount
            )
            reward = normalize_rewards(reward, return_scale)
        advantage, returns = gae(
            reward, value, *done, final_value, last_value, ppo.discount, ppo.trace_decay
        )
        rows = Rows(**stored, advantage=advantage, returns=returns)
        state = replace(
            state,
            key=key,
            env_state=env_state,
            observation=observation,
            return_scale=return_scale,
        )
        return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
