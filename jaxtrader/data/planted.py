"""Markets with a planted signal: what the next bar will do is known in law, so an optimum is too.

Each is a Markov chain. The state at the close of a bar shows in the features (at once, or only
together with the bars before it) and fixes the law of the next bar's return, so that exact dynamic
programming (`envs.oracle`) yields the best that any policy can earn. What a learner earns of it
says how well it learns, with no market luck left in the question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from envs.oracle import Outlook
from jaxtrader.data.builders import DEFAULT_RECEPTIVE_FIELD
from jaxtrader.data.dataset import Dataset
from jaxtrader.data.scaler import Scaler
from jaxtrader.errors import ConfigError

_FIRST_BAR = np.datetime64("2000-01-01", "us")
_BARS_PER_SESSION = 24  # it trades round the clock


@dataclass(frozen=True, eq=False)
class PlantedMarket:
    """A Markov chain of Z states that drives returns and features.

    In state z at the close of bar t the next bar returns `drift[z] ± deviation[z]`, either with
    probability 1/2 (two points: expectations are exact sums), and the chain moves on by
    `transition[z]`, independently. Bars open where the one before closed.
    """

    name: str
    summary: str  # one sentence: what a policy must learn
    transition: np.ndarray  # float64[Z, Z] rows sum to 1
    drift: np.ndarray  # float64[Z] mean simple return of the next bar
    deviation: np.ndarray  # float64[Z] its standard deviation
    emission: np.ndarray  # float64[Z, E] what E features show of the state
    noise_features: int = 2  # further features, standard normal and meaningless
    costs: str = "retail"  # preset of `envs.execution`
    cost_multiplier: float = 1.0

    @property
    def num_states(self) -> int:
        return len(self.drift)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The E telling features stand behind the meaningless ones."""
        telling = self.emission.shape[1]
        noise = [f"noise_{i}" for i in range(self.noise_features)]
        return (*noise, *(f"signal_{i}" for i in range(telling)))

    def draw(self, seed: int, bars: int) -> PlantedPath:
        """One history of `bars` bars; the same arguments give the same history."""
        key = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, key])))
        threshold = np.cumsum(self.transition, axis=1)[:, :-1]
        states = np.empty(bars, np.int32)
        states[0] = rng.choice(self.num_states, p=stationary(self.transition))
        for bar, draw in enumerate(rng.random(bars - 1), start=1):
            states[bar] = np.searchsorted(threshold[states[bar - 1]], draw, side="right")
        sign = rng.choice([-1.0, 1.0], bars - 1)
        before = states[:-1]
        returns = self.drift[before] + sign * self.deviation[before]
        close = 100.0 * np.cumprod(np.concatenate([[1.0], 1.0 + returns]))
        noise = rng.standard_normal((bars, self.noise_features))
        features = np.concatenate([noise, self.emission[states]], axis=1).astype(np.float32)
        return PlantedPath(states, close, features)

    def outlook(self) -> Outlook:
        """The law of the next bar for `envs.oracle`: the same at every bar, B = 2 x successors."""
        successors = int((self.transition > 0).sum(axis=1).max())
        # The most probable first; what is left over beyond a state's successors has probability 0.
        following = np.argsort(-self.transition, axis=1, kind="stable")[:, :successors]
        probability = np.take_along_axis(self.transition, following, axis=1)
        up, down = 1.0 + self.drift + self.deviation, 1.0 + self.drift - self.deviation
        move = np.stack([up, down], axis=1).repeat(successors, axis=1)
        return Outlook(
            probability=jnp.asarray(np.tile(0.5 * probability, 2)[None], jnp.float32),
            gap=jnp.ones((1, *move.shape), jnp.float32),
            move=jnp.asarray(move[None], jnp.float32),
            next_state=jnp.asarray(np.tile(following, 2)[None], jnp.int32),
            tradable=jnp.ones(1, bool),
        )


@dataclass(frozen=True, eq=False)
class PlantedPath:
    """What was drawn."""

    states: np.ndarray  # int32[T] state at the close of each bar
    close: np.ndarray  # float64[T]
    features: np.ndarray  # float32[T, F]


def stationary(transition: np.ndarray) -> np.ndarray:
    """The chain's long-run distribution, float64[Z]."""
    count = len(transition)
    equations = np.concatenate([transition.T - np.eye(count), np.ones((1, count))])
    solution, *_ = np.linalg.lstsq(equations, np.append(np.zeros(count), 1.0), rcond=None)
    shares = np.maximum(solution, 0.0)
    return shares / shares.sum()


def planted_dataset(
    market: PlantedMarket,
    seed: int = 0,
    *,
    histories: int = 1,
    bars: tuple[int, int, int] = (24_000, 4_000, 24_000),
    receptive_field: int = DEFAULT_RECEPTIVE_FIELD,
) -> tuple[Dataset, np.ndarray]:
    """Histories of `market` as a dataset that can be trained on.

    Args:
      seed: of the first history; those after it are drawn with the next seeds.
      histories: S independent histories, each a symbol of its own.
      bars: of train, validation and test, one after the other in each history.

    Returns:
      (dataset with symbols named after the market, states int32[S, T] that drove the bars).

    Raises:
      ConfigError: no history, or a split of fewer than 2 bars.
    """
    if histories < 1 or min(bars) < 2:
        raise ConfigError(f"histories {histories} and bars {bars}: at least 1 and 2 are needed")
    count = sum(bars) + 3 * receptive_field - 1
    paths = [market.draw(seed + i, count) for i in range(histories)]
    ends = np.cumsum(np.asarray(bars) + receptive_field) - 2
    splits = {
        name: (np.full(histories, end - own + 1, np.int32), np.full(histories, end, np.int32))
        for name, end, own in zip(("train", "validation", "test"), ends, bars, strict=True)
    }
    close = np.stack([path.close for path in paths])
    open_ = np.concatenate([close[:, :1], close[:, :-1]], axis=1)
    features = np.stack([path.features for path in paths])
    first, last = (int(bar[0]) for bar in splits["train"])
    symbols = (
        (market.name,) if histories == 1 else tuple(f"{market.name}_{i}" for i in range(histories))
    )
    shape = close.shape
    clock = np.arange(count)
    stamps = (_FIRST_BAR + clock * np.timedelta64(1, "h")).astype(np.int64)
    dataset = Dataset(
        symbols=symbols,
        timeframe="1Hour",
        timestamps=np.tile(stamps, (histories, 1)),
        n_bars=np.full(histories, count, np.int32),
        open=open_,
        high=np.maximum(open_, close),
        low=np.minimum(open_, close),
        close=close,
        volume=np.ones(shape),
        tradable=np.ones(shape, bool),
        session=np.tile(clock // _BARS_PER_SESSION, (histories, 1)).astype(np.int32),
        raw_features=features,
        feature_names=market.feature_names,
        scaler=Scaler.fit(features[:, first : last + 1].reshape(-1, features.shape[-1])),
        splits=splits,
        periods_per_year=np.full(histories, 365, np.int32),
        receptive_field=receptive_field,
        provenance={
            "kind": "synthetic",
            "symbols": {
                symbol: {
                    "source": f"planted market {market.name!r}, seed {seed + i}, bars {bars}",
                    "notes": [],
                }
                for i, symbol in enumerate(symbols)
            },
            "notes": [],
        },
    )
    return dataset, np.stack([path.states for path in paths])


def _persistent(levels: int, stay: float) -> np.ndarray:
    """A chain that stays with probability `stay` and otherwise moves to any other state alike."""
    move = (1.0 - stay) / (levels - 1)
    return np.full((levels, levels), move) + (stay - move) * np.eye(levels)


def _balanced(transition: np.ndarray, drift: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """`drift` with that of state 0 set so that log prices wander without a trend of their own.

    Else they would leave float32's range on a long history.
    """
    share = stationary(transition)
    growth = drift - (drift**2 + deviation**2) / 2  # of log prices, to second order
    return drift - np.eye(len(drift))[0] * (share @ growth) / share[0]


def _trend(name: str, summary: str, strength: float, noise_features: int = 2) -> PlantedMarket:
    levels = np.array([-1.0, 0.0, 1.0])
    return PlantedMarket(
        name=name,
        summary=summary,
        transition=_persistent(3, 0.9),
        drift=strength * levels,
        deviation=np.full(3, _DEVIATION),
        emission=levels[:, None],
        noise_features=noise_features,
    )


def trend() -> PlantedMarket:
    """Up, flat and down spells of ten bars on average; one feature tells which it is."""
    return _trend("trend", "hold the position while the signal is up", _DRIFT)


def faint() -> PlantedMarket:
    """As `trend`, with a third of its drift in the same noise."""
    return _trend("faint", "hear a signal of a sixth of the noise", _DRIFT / 3)


def hidden() -> PlantedMarket:
    """As `trend`, with the signal behind 22 features of noise."""
    return _trend("hidden", "find the one telling feature among 23", _DRIFT, noise_features=22)


def costly() -> PlantedMarket:
    """Rises of two kinds, told apart by the features, at eight times the usual costs.

    Long rises pay for their round trip of 1.2 %, short ones do not.
    """
    transition = np.array([[0.80, 0.16, 0.04], [0.40, 0.60, 0.00], [0.06, 0.00, 0.94]])
    deviation = np.full(3, _DEVIATION)
    return PlantedMarket(
        name="costly",
        summary="leave alone what does not pay for its costs",
        transition=transition,
        drift=_balanced(transition, np.array([0.0, _DRIFT, _DRIFT]), deviation),
        deviation=deviation,
        emission=np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        cost_multiplier=8.0,
    )


def regime(length: int = 6) -> PlantedMarket:
    """A signal whose meaning turns over: what it means was announced up to `length` bars ago.

    Every `length` bars the regime is drawn anew and shown in that bar alone. In one regime the
    signal points the right way, in the other it points the wrong way at half the strength.
    """
    signs = (-1, 1)
    states = [(s, g, age) for s in signs for g in signs for age in range(length)]
    place = {state: i for i, state in enumerate(states)}
    transition = np.zeros((len(states), len(states)))
    for (signal, sign, age), i in place.items():
        for next_signal in signs:
            moves = 0.9 if next_signal == signal else 0.1
            nexts = [sign] if age + 1 < length else signs
            for next_sign in nexts:
                j = place[next_signal, next_sign, (age + 1) % length]
                transition[i, j] += moves / len(nexts)
    return PlantedMarket(
        name="regime",
        summary="remember which way the signal points",
        transition=transition,
        drift=np.array([_DRIFT * signal * max(sign, -0.5) for signal, sign, _ in states]),
        deviation=np.full(len(states), _DEVIATION),
        emission=np.array([[s, g if age == 0 else 0] for s, g, age in states], float),
    )


def trap(rise: int = 4) -> PlantedMarket:
    """Calm that pays a little, then a rise of `rise` bars that pays more, then a crash.

    The feature shows that a rise is under way and not how old it is: who holds as long as it is on
    gives back all that calm and rise have brought; who counts its bars can leave in time.
    """
    count = rise + 2  # calm, the bars of the rise, the bar before the crash
    transition = np.zeros((count, count))
    transition[0, :2] = 0.85, 0.15
    transition[np.arange(1, count), (np.arange(1, count) + 1) % count] = 1.0
    deviation = np.full(count, _DEVIATION / 2)
    return PlantedMarket(
        name="trap",
        summary="leave a rise before its crash",
        transition=transition,
        drift=_balanced(transition, np.array([0.0, *[2 * _DRIFT] * rise, -0.05]), deviation),
        deviation=deviation,
        emission=np.array([[0.0], *[[1.0]] * (count - 1)]),
    )


def null() -> PlantedMarket:
    """A martingale: no drift, and features that mean nothing. Nobody can earn anything here."""
    return PlantedMarket(
        name="null",
        summary="nothing to learn: whoever gains here cheats",
        transition=np.ones((1, 1)),
        drift=np.zeros(1),
        deviation=np.full(1, _DEVIATION),
        emission=np.zeros((1, 0)),
        noise_features=3,
    )


_DRIFT, _DEVIATION = 0.004, 0.008  # of a bar
PROBES: dict[str, Callable[[], PlantedMarket]] = {
    probe.__name__: probe for probe in (trend, faint, hidden, costly, regime, trap)
}
