"""Stable-Baselines3's PPO with this library's network, hyperparameters and environment.

The policy is SB3's own `ActorCriticPolicy` behind a features extractor that is our encoder and our
account MLP in torch.
"""

# ruff: noqa: TID253 (this room exists for torch and Stable-Baselines3)

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from torch import nn

from agents.networks import NORM_EPSILON, ActorCritic, NetworkConfig, Params
from benchmarks.peers.comparison import Contender
from benchmarks.peers.windowed import check_that_neighbours_pair
from jaxtrader.adapters.gymnasium import GymTradingEnv, GymTradingVectorEnv
from jaxtrader.config import TrainingConfig
from jaxtrader.data import Dataset
from jaxtrader.data.scaler import Scaler
from jaxtrader.runtime import use_compilation_cache

REWARD_CLIP = 10.0  # of normalised rewards, as in agents.normalize
ALL_THREADS = torch.get_num_threads()  # as many as torch takes if nobody tells it otherwise


class WindowEncoder(nn.Module):
    """`benchmarks.peers.windowed.PairingEncoder` in torch: a third of the time of `nn.Conv1d`."""

    def __init__(self, network: NetworkConfig, num_features: int):
        """Raises ConfigError for dilations that do not double."""
        super().__init__()
        check_that_neighbours_pair(network)
        widths = [num_features, *[network.channels] * (len(network.dilations) - 1)]
        self.layers = nn.ModuleList(
            nn.Linear(2 * width, network.channels) for width in widths[: len(network.dilations)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """f32[B, R, F] to f32[B, channels]."""
        for number, layer in enumerate(self.layers):
            y = torch.relu(layer(x.reshape(len(x), x.shape[1] // 2, -1)))
            x = y if number == 0 else y + x[:, 1::2]
        x = x[:, 0]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)


class MarketExtractor(BaseFeaturesExtractor):
    """What actor and critic see of f32[B, R * F + A]: the embedding and the account's features."""

    def __init__(
        self, observation_space: gymnasium.spaces.Box, network: NetworkConfig, num_features: int
    ):
        super().__init__(observation_space, network.channels + network.account_hidden)
        self.num_features = num_features
        self.window = network.receptive_field
        self.encoder = WindowEncoder(network, num_features)
        probe = torch.zeros(1, *observation_space.shape)
        num_account = self.halves(probe)[1].shape[-1]
        self.account = nn.Linear(num_account, network.account_hidden)

    def halves(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(market half f32[B, R, F], account half f32[B, A])."""
        size = self.window * self.num_features
        market = observations[:, :size].reshape(-1, self.window, self.num_features)
        return market, observations[:, size:]

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        market, account = self.halves(observations)
        return torch.cat([self.encoder(market), torch.relu(self.account(account))], dim=-1)


class VectorAdapter(VecEnv):
    """`GymTradingVectorEnv`, one compiled step for all environments, in SB3's form."""

    def __init__(self, envs: GymTradingVectorEnv):
        self.envs = envs
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        observations, _ = self.envs.reset(seed=self._seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, infos = self.envs.step(self._actions)
        done = terminated | truncated
        own: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            own[i]["terminal_observation"] = infos["final_obs"][i]
            own[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, rewards.astype(np.float32), done, own

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.envs, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Of a method that returns one row for each environment, the rows."""
        return list(getattr(self.envs, method_name)(*method_args, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def single_environment(market: Dataset, config: TrainingConfig) -> GymTradingEnv:
    """One of our environments, in whatever process it is made."""
    use_compilation_cache()
    return GymTradingEnv(market, config)


def adapter_environments(
    kind: type[DummyVecEnv | SubprocVecEnv | VectorAdapter],
    market: Dataset,
    config: TrainingConfig,
) -> VecEnv:
    """As many of our environments as the config has, on its training split."""
    count = config.ppo.num_envs
    if issubclass(kind, VectorAdapter):
        return kind(GymTradingVectorEnv(count, market, config))
    return kind([partial(single_environment, market, config)] * count)


def embedded_market(config: TrainingConfig, market: Dataset) -> Dataset:
    """`market` with the embedding of each bar, by a new encoder, in place of its features.

    The adapter's observation is then one embedding and the account half.
    """
    networks = ActorCritic(config.network)
    params = jax.jit(networks.init, static_argnums=1)(jax.random.key(0), len(market.feature_names))
    features = np.stack([market.scaler.transform(raw) for raw in market.raw_features])
    table = np.full((*features.shape[:2], config.network.channels), np.nan, np.float32)
    table[:, networks.receptive_field - 1 :] = jax.jit(networks.encode)(params, features)
    size = config.network.channels
    return replace(
        market,
        raw_features=table,
        feature_names=tuple(f"embedding_{i}" for i in range(size)),
        # No number is above the root of their count, where their root mean square is 1.
        scaler=Scaler(np.zeros(size), np.ones(size), clip=size**0.5),
        receptive_field=1,
    )


class TimedEnvironments(VecNormalize):
    """Rewards over the running deviation of the return, as in agents.normalize; and the time."""

    seconds = 0.0

    def step(self, actions: np.ndarray) -> Any:
        began = time.perf_counter()
        outcome = super().step(actions)
        self.seconds += time.perf_counter() - began
        return outcome


class TimedPPO(PPO):
    """PPO that knows how long it has been learning."""

    seconds = 0.0

    def train(self) -> None:
        began = time.perf_counter()
        super().train()
        self.seconds += time.perf_counter() - began


def learner(
    envs: VecEnv,
    config: TrainingConfig,
    num_features: int,
    *,
    network: NetworkConfig | None = None,
    extractor: type[MarketExtractor] = MarketExtractor,
    algorithm: type[PPO] = TimedPPO,
    learning_rate: float | Callable[[float], float] | None = None,
    seed: int = 0,
) -> Any:
    """SB3's PPO with the settings of `config`; torch gets the number of threads that suits it.

    Args:
      num_features: F of the observations.
      network: by default the config's.
      learning_rate: a function is given the share of training that remains.
    """
    settings, network = config.ppo, network or config.network
    model = algorithm(
        "MlpPolicy",
        TimedEnvironments(
            envs,
            norm_obs=False,
            norm_reward=settings.reward_normalization == "running_mean",
            clip_reward=REWARD_CLIP,
            gamma=settings.gamma,
        ),
        learning_rate=learning_rate or settings.learning_rate,
        n_steps=settings.rollout_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.num_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_ratio,
        ent_coef=settings.entropy_coef,
        vf_coef=settings.value_coef / 2,  # SB3 does not halve the squared error
        max_grad_norm=settings.max_grad_norm,
        target_kl=settings.target_kl,
        policy_kwargs={
            "features_extractor_class": extractor,
            "features_extractor_kwargs": {"network": network, "num_features": num_features},
            "net_arch": [network.hidden],
            "activation_fn": nn.ReLU,
        },
        seed=seed,
        device="cpu",
    )
    use_fastest_threads(model)
    return model


def use_fastest_threads(model: Any) -> None:
    """One thread or all, whichever is sooner done with a minibatch.

    Networks this small hardly gain from a second one, and beside other work on the machine threads
    that wait for each other can be ten times slower than one alone.
    """
    observations = torch.zeros(model.batch_size, *model.observation_space.shape)
    actions = torch.zeros(model.batch_size)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        for _ in range(20):
            values, log_prob, _ = model.policy.evaluate_actions(observations, actions)
            (values.sum() + log_prob.sum()).backward()
            model.policy.zero_grad()
        return time.perf_counter() - began

    seconds(1)
    torch.set_num_threads(min((1, ALL_THREADS), key=seconds))


def contender(model: TimedPPO) -> Contender:
    """A learner to be timed; its details are of its last update."""
    envs = cast(TimedEnvironments, model.env)
    steps = model.n_steps * model.n_envs
    total = 0.0

    def advance() -> int:
        nonlocal total
        model.seconds = envs.seconds = 0.0
        began = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        total = time.perf_counter() - began
        return steps

    def details() -> dict[str, float]:
        environment, learning = envs.seconds / total, model.seconds / total
        acting = 1.0 - environment - learning
        return {
            "share of time in the environment": environment,
            "in acting": acting,
            "in learning": learning,
            "torch threads": torch.get_num_threads(),
        }

    return Contender(advance, details, envs.close)


def network_parameters(policy: Any) -> Params:
    """A policy's weights as `agents.networks.ActorCritic` takes them.

    SB3's logits have no cap: ours is monotone, so the most probable action is the same.
    """

    def dense(layer: nn.Linear) -> Params:
        # A copy: JAX may take NumPy's memory, which is torch's, for its own.
        return {
            "kernel": jnp.array(layer.weight.detach().numpy().T),
            "bias": jnp.array(layer.bias.detach().numpy()),
        }

    extractor, hidden = policy.features_extractor, policy.mlp_extractor
    layers = enumerate(extractor.encoder.layers)
    return {
        "encoder": {f"layer_{number}": dense(layer) for number, layer in layers},
        "heads": {
            "account": dense(extractor.account),
            "actor_hidden": dense(hidden.policy_net[0]),
            "critic_hidden": dense(hidden.value_net[0]),
            "actor": dense(policy.action_net),
            "critic": dense(policy.value_net),
        },
    }
