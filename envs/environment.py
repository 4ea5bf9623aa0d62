"""The base class: gymnax 1.0.1's signatures without importing gymnax.

`reset(key, params) -> (obs, state)` and
`step(key, state, action, params) -> (obs, state, reward, terminated, truncated, info)`, so that
gymnax's wrappers and agents accept our environments. Importing any gymnax module imports all of it
(four seconds), and a bare accelerator image may lack it.
"""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Generic, TypeVar

import jax
from flax import struct


@struct.dataclass
class EnvState:
    """What every environment's state has."""

    time: jax.Array  # i32[] steps since the episode began


@struct.dataclass
class EnvParams:
    """What every environment's parameters have."""

    max_steps_in_episode: jax.Array  # i32[]


StateT = TypeVar("StateT", bound=EnvState)
ParamsT = TypeVar("ParamsT", bound=EnvParams)


class Environment(ABC, Generic[StateT, ParamsT]):
    """Pure functions over a state and its parameters; instances hold static shape only."""

    @property
    @abstractmethod
    def default_params(self) -> ParamsT:
        """Parameters used where none are passed."""

    @abstractmethod
    def reset_env(self, key: jax.Array, params: ParamsT) -> tuple[jax.Array, StateT]:
        """A fresh episode: (observation, state)."""

    @abstractmethod
    def step_env(
        self, key: jax.Array, state: StateT, action: jax.Array, params: ParamsT
    ) -> tuple[jax.Array, StateT, jax.Array, jax.Array, dict[str, Any]]:
        """One transition without auto-reset: (observation, state, reward, terminated, info)."""

    @abstractmethod
    def auto_reset(
        self,
        key: jax.Array,
        state: StateT,
        terminated: jax.Array,
        truncated: jax.Array,
        params: ParamsT,
    ) -> StateT:
        """The state to go on from: `state` itself, or a fresh one where the episode ended."""

    @abstractmethod
    def observe(
        self, key: jax.Array | None, state: StateT, action: jax.Array | None, params: ParamsT
    ) -> jax.Array:
        """What the agent sees in `state`."""

    @abstractmethod
    def is_terminated(self, state: StateT, params: ParamsT) -> jax.Array:
        """Whether the episode ended for a reason within the task, bool[]."""

    @abstractmethod
    def is_truncated(self, state: StateT, params: ParamsT) -> jax.Array:
        """Whether the episode was cut off, bool[]."""

    @property
    def name(self) -> str:
        return type(self).__name__

    # The default parameters are passed on as arguments, not read inside the compiled functions:
    # there they would be baked into the program, market and all.

    def reset(self, key: jax.Array, params: ParamsT | None = None) -> tuple[jax.Array, StateT]:
        """A fresh episode: (observation, state)."""
        return self._reset(key, self.default_params if params is None else params)

    def step(
        self, key: jax.Array, state: StateT, action: jax.Array, params: ParamsT | None = None
    ) -> tuple[jax.Array, StateT, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """One transition, then a fresh episode where this one ended.

        `info["final_observation"]` is the observation before the auto-reset: bootstrap from it with
        `1 - terminated`. Both flags can be true at once.
        """
        return self._step(key, state, action, self.default_params if params is None else params)

    @partial(jax.jit, static_argnames=("self",))
    def _reset(self, key: jax.Array, params: ParamsT) -> tuple[jax.Array, StateT]:
        return self.reset_env(key, params)

    @partial(jax.jit, static_argnames=("self",))
    def _step(
        self, key: jax.Array, state: StateT, action: jax.Array, params: ParamsT
    ) -> tuple[jax.Array, StateT, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        key_step, key_reset, key_observe = jax.random.split(key, 3)
        final_observation, state, reward, terminated, info = self.step_env(
            key_step, state, action, params
        )
        truncated = self.is_truncated(state, params)
        state = self.auto_reset(key_reset, state, terminated, truncated, params)
        info = {
            **info,
            "terminated": terminated,
            "truncated": truncated,
            "final_observation": final_observation,
        }
        observation = self.observe(key_observe, state, action, params)
        return observation, state, reward, terminated, truncated, info
