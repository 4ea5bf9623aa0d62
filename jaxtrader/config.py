"""Typed settings: one dataclass a subject, filled from YAML and the command line alike."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import math
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from agents.networks import NetworkConfig
from envs.reward import RewardComponents
from jaxtrader.errors import ConfigError

T = TypeVar("T")

SPLITS = ("train", "validation", "test")
_LARGEST_INTEGER = 2**31 - 1  # the compiled programs count in 32 bits
# What a message shows of a value is bounded: a few lines of YAML can stand for gigabytes of it.
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 100, 100


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} = {_short.repr(value)}: must be {rule}")


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value > 0, name, value, "greater than 0")


def _require_not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value >= 0, name, value, "0 or more")


def _require_share(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(0.0 <= value <= 1.0, name, value, "between 0 and 1")


def _require_representable(section: str, settings: object) -> None:
    for name, value in vars(settings).items():
        values = value.values() if isinstance(value, dict) else value
        for number in values if isinstance(value, dict | tuple) else [value]:
            if isinstance(number, float):
                _require(math.isfinite(number), f"{section}.{name}", value, "finite")
            elif isinstance(number, int) and name != "total_timesteps":
                rule = f"at most {_LARGEST_INTEGER}"
                _require(abs(number) <= _LARGEST_INTEGER, f"{section}.{name}", value, rule)


def _require_known(where: str, keys: Iterable[Any], known: Sequence[str]) -> None:
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(str(key)[:100], known, n=1, cutoff=0.0)
            raise ConfigError(
                f"{where}: unknown key {_short.repr(key)}; did you mean {nearest[0]!r}? "
                f"Known keys: {', '.join(known)}"
            )


def check_split(split: str) -> None:
    """Raises ConfigError for what is not one of `SPLITS`; it names the nearest."""
    if split not in SPLITS:
        nearest = difflib.get_close_matches(str(split)[:100], SPLITS, n=1, cutoff=0.0)
        raise ConfigError(
            f"split = {_short.repr(split)}: did you mean {nearest[0]!r}? "
            f"Choose one of {', '.join(SPLITS)}"
        )


@dataclass(frozen=True)
class DataConfig:
    """Which bars, and how they are split in time."""

    timeframe: str = "1Hour"
    train_share: float = 0.70
    validation_share: float = 0.15
    test_share: float = 0.15
    # "shared" cuts all symbols at the same two moments, so that none trains on days that another is
    # tested on; "own" cuts each by its own bars, for symbols whose histories hardly overlap.
    split_clock: Literal["shared", "own"] = "shared"
    synthetic_seed: int = 0  # of the embedded market, used where no data folder is given
    synthetic_sessions: int = 900

    def __post_init__(self) -> None:
        shares = (self.train_share, self.validation_share, self.test_share)
        _require_positive(
            self, "train_share", "validation_share", "test_share", "synthetic_sessions"
        )
        _require_not_negative(self, "synthetic_seed")
        _require(
            math.isclose(sum(shares), 1.0),
            "train_share + validation_share + test_share",
            sum(shares),
            "1",
        )


@dataclass(frozen=True)
class EnvironmentConfig:
    """The market's rules. Rates are per side; money limits are shares of equity."""

    episode_length: int = 256  # steps
    costs: Literal["retail", "stage5", "free"] = "retail"
    commission: float | None = None  # overrides the preset
    slippage: float | None = None  # overrides the preset
    cost_multiplier: float = 1.0
    fill: Literal["next_open", "same_close"] = "next_open"
    lot_size: float = 0.0  # real shares; 0 permits fractions
    initial_cash: float = 100_000.0  # dollars
    buy_small: float = 0.025
    buy_medium: float = 0.06
    buy_large: float = 0.09
    position_cap: float = 0.20
    max_exposure: float = 1.0
    add_threshold: float = 0.02
    max_adds: int = 2
    min_notional: float = 1.0  # dollars
    max_trades_per_session: int = 50
    max_repeats: int = 3
    stop_loss: float = 0.05
    take_profit: float = 0.10
    max_holding: int = 140  # bars
    max_drawdown: float = 0.25
    bankruptcy_equity: float = 0.50

    def __post_init__(self) -> None:
        _require_positive(
            self, "episode_length", "initial_cash", "position_cap", "stop_loss", "take_profit",
            "max_adds", "max_holding", "max_repeats", "max_trades_per_session", "max_drawdown",
        )  # fmt: skip
        _require_share(
            self, "buy_small", "buy_medium", "buy_large", "position_cap", "max_exposure",
            "bankruptcy_equity",
        )  # fmt: skip
        _require_not_negative(self, "lot_size", "cost_multiplier", "min_notional")
        for name in ("commission", "slippage"):
            if getattr(self, name) is not None:
                _require_share(self, name)


@dataclass(frozen=True)
class RewardConfig:
    """A preset and what differs from it."""

    preset: Literal["professional", "log_wealth", "differential_sharpe"] = "professional"
    weights: dict[str, float] = field(default_factory=dict)  # component name -> weight
    pnl_scale: float = 0.01
    reward_clip: float = 10.0

    def __post_init__(self) -> None:
        _require_positive(self, "pnl_scale", "reward_clip")
        _require_known("weights", self.weights, RewardComponents.names())


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation, by the guide's names."""

    total_timesteps: int = 400_000  # environment steps of each seed
    num_envs: int = 8
    rollout_steps: int = 512  # per environment and update
    batch_size: int = 256  # steps in a minibatch
    num_epochs: int = 10
    learning_rate: float = 3e-4
    final_learning_rate: float | None = 0.0  # reached linearly; none: constant
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_ratio: float = 0.2
    value_coef: float = 0.5
    entropy_coef: float = 0.01
    final_entropy_coef: float | None = None  # reached linearly after the hold; none: constant
    entropy_hold: float = 0.5  # share of training before the entropy coefficient moves
    max_grad_norm: float = 0.5
    target_kl: float | None = None  # ends an update's epochs once exceeded
    reward_normalization: Literal["running_mean", "none"] = "running_mean"
    block_length: int = 64  # most contiguous steps encoded in one pass
    # Most steps of a minibatch that go through the networks at a time; the gradient is that of the
    # whole minibatch. Fewer take less memory. None: all.
    microbatch_size: int | None = None
    # Groups of environments that may lie on devices of their own. Each gives every minibatch an
    # equal part, so this decides what is computed, and the number of devices does not.
    env_shards: int = 1

    def __post_init__(self) -> None:
        _require_positive(
            self, "total_timesteps", "num_envs", "rollout_steps", "batch_size", "num_epochs",
            "learning_rate", "clip_ratio", "max_grad_norm", "block_length", "env_shards",
        )  # fmt: skip
        _require_share(self, "gamma", "gae_lambda", "entropy_hold")
        _require_not_negative(self, "value_coef", "entropy_coef")
        for name in ("final_learning_rate", "final_entropy_coef"):
            if getattr(self, name) is not None:
                _require_not_negative(self, name)
        for name in ("target_kl", "microbatch_size"):
            if getattr(self, name) is not None:
                _require_positive(self, name)
        most = self.num_envs * self.rollout_steps * _LARGEST_INTEGER
        steps = self.total_timesteps
        _require(steps <= most, "total_timesteps", steps, f"at most {most}")


@dataclass(frozen=True)
class GuardConfig:
    """The entropy guard; steps are environment steps of one seed."""

    enabled: bool = True
    threshold: float = 0.22  # nats
    patience: int = 2  # failing checks in a row
    warm_up_steps: int = 4_000
    cool_down_steps: int = 6_000
    boost: float = 1.7
    floor: float = 0.03
    ceiling: float = 3.0  # multiples of entropy_coef
    max_rescues: int = 2

    def __post_init__(self) -> None:
        _require_positive(self, "patience", "boost", "ceiling")
        _require_not_negative(self, "warm_up_steps", "cool_down_steps", "floor", "max_rescues")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and what is kept."""

    every: int = 10  # updates
    keep_best: int = 3  # by Sharpe ratio on the validation split; the latest is always kept

    def __post_init__(self) -> None:
        _require_positive(self, "every", "keep_best")


@dataclass(frozen=True)
class EvaluationConfig:
    """Deterministic evaluation, out of sample."""

    split: Literal["train", "validation", "test"] = "test"
    episodes: int = 20  # with random starts, beside the full split
    seed: int = 0  # of those starts
    perfect_foresight: bool = True  # compare with the best that whoever had read the bars could do

    def __post_init__(self) -> None:
        _require_positive(self, "episodes")
        _require_not_negative(self, "seed")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a run computes."""

    data: DataConfig = field(default_factory=DataConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        network = self.network  # declared where nothing may raise this family's errors
        for name in ("channels", "hidden", "account_hidden", "actor_gain", "logit_cap"):
            value = getattr(network, name)
            _require(value > 0, f"network.{name}", value, "greater than 0")
        dilations = network.dilations
        valid = len(dilations) > 0 and min(dilations) > 0
        _require(valid, "network.dilations", dilations, "one or more, each greater than 0")
        for section in dataclasses.fields(self):
            _require_representable(section.name, getattr(self, section.name))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as JSON and YAML hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> TrainingConfig:
        """The reverse of `to_dict`; keys that are left out keep their defaults.

        Raises:
          ConfigError: unknown key (naming the nearest one), wrong type or value out of range.
        """
        return _fill(cls, values, source)


def replace_settings(config: TrainingConfig, section: str, **changes: Any) -> TrainingConfig:
    """`config` with fields of one section changed; fields given as None stay as they are."""
    changes = {name: value for name, value in changes.items() if value is not None}
    changed = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **{section: changed})


def default_config_path(name: str = "phase3_ppo_baseline.yaml") -> Path:
    """A configuration shipped with the library: in the installed package, or in the checkout."""
    packaged = Path(str(importlib.resources.files("jaxtrader"))) / "configs" / name
    return packaged if packaged.is_file() else Path(__file__).parents[1] / "configs" / name


class _Loader(yaml.SafeLoader):
    """YAML of plain values; of a key that is given twice the last would win in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(
                        f"key {_short.repr(key.value)} in line {line} is already in line "
                        f"{seen[key.tag, key.value]}; keep one of the two"
                    )
                seen[key.tag, key.value] = line
        return node


def presets() -> dict[str, Path]:
    """The configurations shipped with the library, by name."""
    folder = default_config_path().parent
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(path: str | Path) -> TrainingConfig:
    """Reads a YAML file, or one of `presets` by its name; keys left out keep their defaults.

    Raises:
      ConfigError: missing or malformed file, unknown or repeated key, wrong type or value out of
        range.
    """
    path = presets().get(str(path), Path(path))
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); pass a YAML file with --config, or one of "
            f"{', '.join(presets())}, which lie in {default_config_path().parent}"
        ) from error
    except Exception as error:  # PyYAML lets the errors of its converters through
        raise ConfigError(
            f"{path}: is not valid YAML: {str(error)[:500] or type(error).__name__}"
        ) from error
    return TrainingConfig.from_dict({} if values is None else values, str(path))


def _fill(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {_short.repr(values)}")
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    _require_known(where, values, names)
    filled = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return cls(**filled)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type `hint`, without guessing: only int to float and "3e-4" to float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _fill(hint, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            raise ConfigError(f"{where}: {_short.repr(value)} is not one of {known}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, found {_short.repr(value)}")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected keys and values, found {_short.repr(value)}")
        return {str(k): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 3e-4 (no dot) as a string
            return float(value)
        except (ValueError, OverflowError):
            pass
    elif type(value) is hint:
        return value
    kind = getattr(hint, "__name__", hint)
    raise ConfigError(f"{where}: expected {kind}, found {_short.repr(value)}")
