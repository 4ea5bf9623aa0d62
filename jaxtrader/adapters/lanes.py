"""Episodes of one symbol side by side: one dispatch and one transfer a step, for all of them.

A step has about a hundred numbers for the host, in sixty arrays. Fetched one by one, those take
longer than the step; so the device packs them into one array of 32-bit words, and the host unpacks
what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs.episode import EpisodeStatistics, no_statistics, step_record, tally
from envs.reward import RewardFunction
from envs.trading import TradingEnv, TradingParams, TradingState, Transition


@struct.dataclass
class Snapshot:
    """An account at the close of a bar, before the next decision, as the host sees it."""

    observation: np.ndarray  # f32[window * F + 12]
    action_mask: np.ndarray  # bool[7]
    bar: np.ndarray  # i32[] the last closed bar
    equity: np.ndarray  # f32[] in units of the initial equity


class Lanes:
    """N accounts on one symbol, each in an episode of its own.

    What the methods return are NumPy arrays [N, ...] that belong to the caller.
    """

    def __init__(
        self, params: TradingParams, window: int, count: int, reward: RewardFunction | None = None
    ):
        """Args are those of `TradingEnv`, for one symbol, and `count` is N."""

        # Every lane has rules of its own: the compiler divides a batch by one that all share as a
        # product with its reciprocal, and observations would depend on the number of lanes.
        def rows(rules: Any) -> Any:
            return jax.tree.map(lambda x: jnp.tile(x, (count, *[1] * x.ndim)), rules)

        self._params = replace(params, **{name: rows(getattr(params, name)) for name in _RULES})
        self._static = (window, reward)
        shapes = jax.eval_shape(
            lambda: _new_episode(TradingEnv(params, *self._static), jax.random.key(0), params)
        )
        # Zeros mean nothing: every lane begins before it advances.
        self._lanes = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), shapes)
        self._layouts: dict[str, Any] = {}
        self._words = np.empty((count, 0), np.int32)  # the last step's

    def begin(self, seeds: np.ndarray, where: np.ndarray) -> Snapshot:
        """Starts an episode in some lanes; the key of each is `jax.random.key(seed)`.

        Args:
          seeds: uint32[N].
          where: bool[N], the lanes that begin anew.

        Returns:
          all lanes.
        """
        words = self._run("begin", seeds, where)
        [snapshot] = self._layouts["begin"]
        return _unpacked(snapshot, words)

    def advance(self, actions: np.ndarray) -> tuple[Snapshot, Any]:
        """One step of every lane: where it led, and what it did as a `Transition`.

        Args:
          actions: int[N] policy actions.
        """
        self._words = self._run("advance", actions.astype(np.int32))
        snapshot, transition, _ = self._layouts["advance"]
        return _unpacked(snapshot, self._words), _unpacked(transition, self._words)

    def statistics(self) -> Any:
        """`EpisodeStatistics` up to the last `advance`, whether or not an episode began since."""
        *_, statistics = self._layouts["advance"]
        return _unpacked(statistics, self._words)

    def _run(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        """The report of `_begin` or `_advance`, i32[N, words]."""
        arguments = (self._params, self._lanes, *inputs)
        if name not in self._layouts:
            _, report = jax.eval_shape(partial(_PROGRAMS[name], self._static), *arguments)
            self._layouts[name] = _layout(report)
        self._lanes, words = _packed(name, self._static, *arguments)
        return np.asarray(words)


_Static = tuple[int, RewardFunction | None]  # window and reward of the environment
_Lane = tuple[TradingState, EpisodeStatistics]
_RULES = ("execution", "limits", "reward", "directives")
_AXES: Any = TradingParams(
    max_steps_in_episode=None,  # type: ignore[arg-type]
    market=None,  # type: ignore[arg-type]
    starts=None,  # type: ignore[arg-type]
    **dict.fromkeys(_RULES, 0),  # type: ignore[arg-type]
)


# The environment is made inside the compiled functions: as a static argument it would be kept, and
# its market with it, for as long as the compiled program is.


def _begin(
    static: _Static, params: TradingParams, lanes: _Lane, seeds: jax.Array, where: jax.Array
) -> tuple[_Lane, tuple[Snapshot]]:
    def begin(params: TradingParams, lane: _Lane, seed: jax.Array, anew: jax.Array):
        env = TradingEnv(params, *static)
        fresh = _new_episode(env, jax.random.key(seed), params)
        lane = jax.tree.map(lambda new, old: jnp.where(anew, new, old), fresh, lane)
        return lane, (_snapshot(env, lane[0], params),)

    return jax.vmap(begin, in_axes=(_AXES, 0, 0, 0))(params, lanes, seeds, where)


def _new_episode(env: TradingEnv, key: jax.Array, params: TradingParams) -> _Lane:
    return env.reset_env(key, params)[1], no_statistics(env)


def _advance(
    static: _Static, params: TradingParams, lanes: _Lane, actions: jax.Array
) -> tuple[_Lane, tuple[Snapshot, Transition, EpisodeStatistics]]:
    def advance(params: TradingParams, lane: _Lane, action: jax.Array):
        env = TradingEnv(params, *static)
        state, statistics = lane
        state, transition = env.transition(state, action, params)
        steps = jax.tree.map(lambda x: x[None], step_record(action, state, transition))
        statistics = tally(statistics, steps, jnp.ones(1, bool))
        return (state, statistics), (_snapshot(env, state, params), transition, statistics)

    return jax.vmap(advance, in_axes=(_AXES, 0, 0))(params, lanes, actions)


def _snapshot(env: TradingEnv, state: TradingState, params: TradingParams) -> Snapshot:
    values: dict[str, Any] = {
        "observation": env.observe(None, state, None, params),
        "action_mask": env.action_mask(state, params),
        "bar": state.bar,
        "equity": state.account.equity,
    }
    return Snapshot(**values)


_PROGRAMS: dict[str, Callable[..., Any]] = {"begin": _begin, "advance": _advance}


@partial(jax.jit, static_argnums=(0, 1))
def _packed(name: str, static: _Static, *arguments: Any) -> tuple[_Lane, jax.Array]:
    """A program with its report as i32[N, words]: floats by their bits, the rest by value."""
    lanes, report = _PROGRAMS[name](static, *arguments)

    def words(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        if rows.dtype == jnp.float32:
            return jax.lax.bitcast_convert_type(rows, jnp.int32)
        return rows.astype(jnp.int32)

    return lanes, jnp.concatenate([words(leaf) for leaf in jax.tree.leaves(report)], axis=1)


def _layout(report: Any) -> Any:
    """A report's shapes as a tree of (columns of the words, shape): where its leaves lie."""
    leaves, structure = jax.tree.flatten(report)
    ends = np.cumsum([leaf.size // leaf.shape[0] for leaf in leaves]).tolist()
    columns = map(slice, [0, *ends[:-1]], ends)
    return structure.unflatten(zip(columns, leaves, strict=True))


def _unpacked(part: Any, words: np.ndarray) -> Any:
    """The values of one part of a report, by its layout."""

    def values(place: tuple[slice, jax.ShapeDtypeStruct]) -> np.ndarray:
        columns, leaf = place
        copy = words[:, columns].copy()
        copy = copy.view(np.float32) if leaf.dtype == np.float32 else copy.astype(leaf.dtype)
        return copy.reshape(leaf.shape)

    return jax.tree.map(values, part, is_leaf=lambda x: isinstance(x, tuple))
