"""The training environment behind Gymnasium's interface: one account, or N in one program.

::

    import gymnasium
    import jaxtrader as jt
    import jaxtrader.adapters  # registers the environment

    env = gymnasium.make("jaxtrader/Trading-v0", market=jt.synthetic_market(), split="train")
    observation, info = env.reset(seed=42)
    terminated = truncated = False
    while not (terminated or truncated):
        action = env.action_space.sample(info["action_mask"].astype("int8"))
        observation, reward, terminated, truncated, info = env.step(action)
    print(info["equity"], info["statistics"]["costs"])

    envs = gymnasium.make_vec("jaxtrader/Trading-v0", num_envs=64)  # one compiled step for all

A step is `envs.trading.TradingEnv.transition`, the one that trains and evaluates. Around it:

- Observation: float32[R * F + 12], the F features of the last R bars, oldest first, then
  `envs.trading.ACCOUNT_FEATURES`. Features lie within the scaler's clip; the account half has no
  bounds but those of float32.
- Action: an integer in 0..6, `envs.actions.Action`. The sanitizer refuses an illegal one, as in
  training; `action_masks()`, which MaskablePPO of sb3-contrib asks for, says which are legal.
- Reward: the total of the preset's components, clipped, not normalised.
- Info: `action_mask`, bool[7], and `equity`, in units of the initial equity. After a step also
  `executed_action`; `reason`, the name of an `envs.actions.Reason`; and `components`, the reward's,
  unweighted. After an episode's last step also `statistics`, an `envs.episode.EpisodeStatistics`.
- Randomness: where an episode starts, and nothing else. `reset(seed=...)` seeds `np_random`, and
  every reset draws one number from it: the episode is the one that
  `TradingEnv.reset(jax.random.key(np_random.integers(2**32, dtype=np.uint32)))` begins.

Every array returned is a copy that no later step writes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import logger
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.actions import NUM_ACTIONS
from envs.reward import RewardFunction
from envs.trading import NUM_ACCOUNT_FEATURES
from jaxtrader.adapters.infos import batched, choose, fields, objects, single, state_info, step_info
from jaxtrader.adapters.lanes import Lanes, Snapshot
from jaxtrader.adapters.picture import EpisodePicture
from jaxtrader.api import synthetic_market
from jaxtrader.config import TrainingConfig, check_split
from jaxtrader.data import Dataset
from jaxtrader.data.markets import split_offset
from jaxtrader.errors import ConfigError
from jaxtrader.program import trading_params

_RENDERING = {"render_modes": ["rgb_array"], "render_fps": 10}
_NO_EPISODE = "no episode is running: call reset() before step()"
_IN_RANGE = f"from 0 to {NUM_ACTIONS - 1}, see envs.actions.Action"


class GymTradingEnv(gymnasium.Env[np.ndarray, np.int64]):
    """One account in one symbol. After an episode's last step, `reset` comes before `step`."""

    metadata = {**_RENDERING}  # noqa: RUF012

    def __init__(
        self,
        market: Dataset | None = None,
        config: TrainingConfig | None = None,
        split: str = "train",
        symbol: str | None = None,
        reward: RewardFunction | None = None,
        render_mode: str | None = None,
    ):
        """Compiles nothing that an environment of the same shapes has compiled before.

        Args:
          market: of `jaxtrader.load_market` or `jaxtrader.synthetic_market`; by default the latter.
          config: its `environment` and `reward` sections count, and `ppo.gamma` for potential-based
            shaping; without `market`, also what `synthetic_market` reads.
          split: "train", "validation" or "test".
          symbol: may be left out where the market has only one.
          reward: a function of `envs.RewardStep` to f32[], in place of the config's preset.
          render_mode: "rgb_array", or None.

        Raises:
          ConfigError: unknown split, symbol or render mode, or settings that contradict the data.
        """
        self.observation_space, self._lanes, self._pictures = _open(
            market, config, split, symbol, reward, render_mode, 1
        )
        self.action_space = Discrete(NUM_ACTIONS)
        self.render_mode = render_mode
        self._running = False
        self._masks = np.zeros((1, NUM_ACTIONS), bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode: (observation, info).

        Raises:
          ConfigError: for any option, since there are none.
        """
        super().reset(seed=seed)
        _refuse(options)
        snapshot = self._lanes.begin(np.array([_draw(self.np_random)]), np.array([True]))
        self._running = True
        self._masks = snapshot.action_mask
        for picture in self._pictures:
            picture.begin(_row(snapshot, 0))
        return snapshot.observation[0], single(state_info(snapshot))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One bar: (observation, reward, terminated, truncated, info). Both flags can be true.

        Raises:
          ResetNeeded: before the first `reset`, and after an episode's last step.
          InvalidAction: `action` is not one integer in 0..6.
        """
        if not self._running:
            raise ResetNeeded(_NO_EPISODE)
        if not self.action_space.contains(np.asarray(action)):
            raise InvalidAction(f"action = {action!r}: must be one integer {_IN_RANGE}")
        snapshot, transition = self._lanes.advance(np.array([action]))
        terminated, truncated = bool(transition.terminated[0]), bool(transition.truncated[0])
        self._running = not (terminated or truncated)
        self._masks = snapshot.action_mask
        for picture in self._pictures:
            picture.advance(int(action), _row(snapshot, 0), _row(transition, 0))
        info = state_info(snapshot) | step_info(transition)
        if not self._running:
            info |= {"statistics": fields(self._lanes.statistics())}
        reward = transition.reward.item(0)
        return snapshot.observation[0], reward, terminated, truncated, single(info)

    def action_masks(self) -> np.ndarray:
        """Legal actions of the current state, bool[7]; none before the first `reset`."""
        return self._masks[0].copy()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The episode up to now as a picture, uint8[480, 640, 3]; None without a render mode.

        Raises:
          ResetNeeded: before the first `reset`.
        """
        frames = _frames(self._pictures)
        return frames[0] if frames else None


class GymTradingVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """N accounts in one symbol, each in an episode of its own, stepped by one compiled program.

    Environment i does what a `GymTradingEnv` does that is reset with environment i's seed. On a CPU
    the two agree to the last bit, but for the reward components `log_wealth` and `unrealized_pnl`,
    which the compiler rounds differently for different N.

    An episode that ends is followed by the next within the same step (`AutoresetMode.SAME_STEP`):
    the observation, the action mask and the equity returned are the new episode's first, and the
    ended one's last are in `final_obs` and `final_info`.
    """

    metadata = {**_RENDERING, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        market: Dataset | None = None,
        config: TrainingConfig | None = None,
        split: str = "train",
        symbol: str | None = None,
        reward: RewardFunction | None = None,
        render_mode: str | None = None,
    ):
        """`num_envs` is N; the other arguments and the errors are those of `GymTradingEnv`."""
        super().__init__()
        if num_envs < 1:
            raise ConfigError(f"num_envs = {num_envs!r}: must be 1 or more")
        self.single_observation_space, self._lanes, self._pictures = _open(
            market, config, split, symbol, reward, render_mode, num_envs
        )
        self.single_action_space = Discrete(NUM_ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self._seeded = [seeding.np_random() for _ in range(num_envs)]
        self._running = False
        self._masks = np.zeros((num_envs, NUM_ACTIONS), bool)

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each environment's generator."""
        return tuple(generator for generator, _ in self._seeded)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """What each environment's generator was last seeded with."""
        return tuple(seed for _, seed in self._seeded)

    def reset(  # type: ignore[override]
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode everywhere: (observations, infos).

        Args:
          seed: one for each environment, where None leaves its generator alone; a single number is
            the first environment's, and the others count on from it.

        Raises:
          ConfigError: the number of seeds is not N; or for any option, since there are none.
        """
        _refuse(options)
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(f"seed: {len(seed)} seeds for {self.num_envs} environments")
        self._seeded = [
            old if new is None else seeding.np_random(new)
            for old, new in zip(self._seeded, seed, strict=True)
        ]
        everywhere = np.ones(self.num_envs, bool)
        snapshot = self._begin(everywhere)
        self._running = True
        self._masks = snapshot.action_mask
        return snapshot.observation, batched(state_info(snapshot), everywhere)

    def step(  # type: ignore[override]
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One bar everywhere: (observations, rewards, terminations, truncations, infos).

        Raises:
          ResetNeeded: before the first `reset`.
          InvalidAction: `actions` are not N integers in 0..6.
        """
        if not self._running:
            raise ResetNeeded(_NO_EPISODE)
        actions = np.asarray(actions)
        if actions.dtype == bool or not self.action_space.contains(actions):
            count = self.num_envs
            raise InvalidAction(f"actions = {actions!r}: must be {count} integers {_IN_RANGE}")
        snapshot, transition = self._lanes.advance(actions)
        for i, picture in enumerate(self._pictures):
            picture.advance(int(actions[i]), _row(snapshot, i), _row(transition, i))
        done = transition.terminated | transition.truncated
        observations = snapshot.observation
        current, step = state_info(snapshot), step_info(transition)
        infos = batched(step, ~done)
        if done.any():
            final_info = {**current, **step, "statistics": fields(self._lanes.statistics())}
            final = {"final_obs": objects(observations), "final_info": final_info}
            infos |= batched(final, done)
            fresh = self._begin(done)
            observations = choose(done, fresh.observation, observations)
            new = state_info(fresh)
            current = {key: choose(done, new[key], value) for key, value in current.items()}
        self._masks = current["action_mask"]
        infos |= batched(current, np.ones_like(done))
        rewards = transition.reward.astype(np.float64)
        return observations, rewards, transition.terminated, transition.truncated, infos

    def action_masks(self) -> np.ndarray:
        """Legal actions of the current states, bool[N, 7]; none before the first `reset`."""
        return self._masks.copy()

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Each environment's current episode as a picture, uint8[480, 640, 3].

        Raises:
          ResetNeeded: before the first `reset`.
        """
        return tuple(_frames(self._pictures)) or None

    def _begin(self, where: np.ndarray) -> Snapshot:
        """Episodes that begin in the environments `where`, bool[N]; all are in the snapshot."""
        seeds = np.zeros(self.num_envs, np.uint32)
        for i in np.flatnonzero(where):
            seeds[i] = _draw(self._seeded[i][0])
        snapshot = self._lanes.begin(seeds, where)
        for i, picture in enumerate(self._pictures):
            if where[i]:
                picture.begin(_row(snapshot, i))
        return snapshot


def _open(
    market: Dataset | None,
    config: TrainingConfig | None,
    split: str,
    symbol: str | None,
    reward: RewardFunction | None,
    render_mode: str | None,
    num_envs: int,
) -> tuple[Box, Lanes, list[EpisodePicture]]:
    """What either environment is made of: observation space, lanes, and a picture for each lane."""
    config = TrainingConfig() if config is None else config
    market = synthetic_market(config=config) if market is None else market
    if symbol is None and len(market.symbols) == 1:
        symbol = market.symbols[0]
    check_split(split)
    for name, value, known in (
        ("symbol", symbol, market.symbols),
        ("render_mode", render_mode, (None, *_RENDERING["render_modes"])),
    ):
        if value not in known:
            raise ConfigError(f"{name} = {value!r}: choose one of {', '.join(map(str, known))}")
    s = market.symbols.index(symbol)
    params = trading_params(config, market, split, custom_reward=reward is not None)
    params = jax.tree.map(lambda leaf: leaf[s], params)
    bars = slice(split_offset(market, split)[s], market.splits[split][1][s] + 1)
    pictures = [
        EpisodePicture(
            symbol=market.symbols[s],
            close=market.close[s, bars],
            timestamps=market.timestamps[s, bars],
            history=market.receptive_field,
            episode_length=config.environment.episode_length,
            fills_next=config.environment.fill == "next_open",
        )
        for _ in range(num_envs if render_mode else 0)
    ]
    high = np.full(market.receptive_field * len(market.feature_names), market.scaler.clip)
    high = np.append(high, np.full(NUM_ACCOUNT_FEATURES, np.finfo(np.float32).max))
    space = Box(-high.astype(np.float32), high.astype(np.float32))
    return space, Lanes(params, market.receptive_field, num_envs, reward), pictures


def _refuse(options: dict[str, Any] | None) -> None:
    if options:
        raise ConfigError(f"options = {options!r}: reset has none")


def _draw(generator: np.random.Generator) -> np.uint32:
    """The seed of an episode's key."""
    return generator.integers(2**32, dtype=np.uint32)


def _frames(pictures: Sequence[EpisodePicture]) -> list[np.ndarray]:
    if not pictures:
        logger.warn('nothing is rendered: make the environment with render_mode="rgb_array"')
    if not all(picture.begun for picture in pictures):
        raise ResetNeeded("there is nothing to draw: call reset() before render()")
    return [picture.draw() for picture in pictures]


def _row(arrays: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], arrays)
