"""A policy as one TorchScript file: feature scaler, networks and legality mask in the graph.

Writing a policy needs numpy beside torch; loading one needs torch and Python alone.
"""

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jaxtrader.errors import ExportError

if TYPE_CHECKING:  # a machine that only serves policies has no jax
    from agents.networks import NetworkConfig

FORMAT_VERSION = 1  # raised whenever an older `load_policy` could misread the file

_METADATA_FILE = "metadata.json"  # inside the TorchScript archive
_ILLEGAL_LOGIT = -1e9  # agents.networks.ILLEGAL_LOGIT
_NORM_EPSILON = 1e-6  # agents.networks.NORM_EPSILON
_GIVEN_KEYS = frozenset(
    {
        "action_names",
        "account_feature_names",
        "training_data_fingerprint",
        "metrics",
        "git_commit",
    }
)
_OWN_KEYS = frozenset({"format_version", "feature_names", "receptive_field", "scaler", "config"})


@dataclass(frozen=True)
class PolicyManifest:
    """What `<path>.manifest.json` says of the policy beside it."""

    sha256: str  # of the policy file, hexadecimal
    format_version: int
    metadata: dict[str, Any]  # as embedded in the policy file


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy ready to serve.

    `module(features, account, mask)` returns `(action, probabilities, value)`, and
    `module.logits(features, account, mask)` the masked logits; see `PolicyModule`. The networks
    are small: `torch.set_num_threads(1)` serves a few observations at a time fastest.
    """

    module: torch.jit.ScriptModule
    metadata: dict[str, Any]


# -------------------------------------------------------------------------------------- the graph


def _pyramid(dilations: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The rows of its input that each layer reads as past and as present.

    Only the last bar's embedding is wanted, so that a layer is computed at the bars which the
    layers above it reach from there, and not at the whole window.
    """
    needed = [sum(dilations)]  # the last bar of a window of R = 1 + sum(dilations)
    rows: list[tuple[list[int], list[int]]] = []
    for layer in reversed(range(len(dilations))):
        dilation = dilations[layer]
        reached = sorted({bar - dilation for bar in needed} | set(needed))
        inputs = reached if layer > 0 else range(1 + sum(dilations))
        row = {bar: position for position, bar in enumerate(inputs)}
        rows.append(([row[bar - dilation] for bar in needed], [row[bar] for bar in needed]))
        needed = reached
    return rows[::-1]


class _CausalLayer(nn.Module):
    """One dilated causal convolution of width two: f32[B, N, C] to f32[B, N', C']."""

    past: torch.Tensor
    present: torch.Tensor

    def __init__(self, dense: nn.Linear, past: list[int], present: list[int], residual: bool):
        super().__init__()
        self.dense = dense
        self.residual = residual
        self.register_buffer("past", torch.tensor(past))  # i64[N'] rows of the input
        self.register_buffer("present", torch.tensor(present))  # i64[N']

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        present = x.index_select(1, self.present)
        pair = torch.cat([x.index_select(1, self.past), present], dim=-1)
        y = torch.relu(self.dense(pair))
        return y + present if self.residual else y


class PolicyModule(nn.Module):
    """`agents.networks.ActorCritic` on one window, with the scaler before it and the mask after.

    B observations, windows of R bars, F features, A account features, 7 actions. `features` are
    raw (not scaled), float32 or float64: they are scaled in float64, exactly as
    `jaxtrader.data.Scaler` does. A mask without a legal action permits HOLD alone.

    Raises:
        torch.jit.Error: (once scripted) a shape or dtype is not as documented, or an input holds
            NaN or infinity. The message says which.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    hold: torch.Tensor

    def __init__(
        self,
        dense: dict[str, nn.Linear],
        dilations: Sequence[int],
        mean: Sequence[float],
        scale: Sequence[float],
        clip: float,
        logit_cap: float,
    ) -> None:
        """Takes the linear layers by their path in the flax parameters, and the scaler."""
        super().__init__()
        self.encoder = nn.ModuleList(
            _CausalLayer(dense[f"encoder/layer_{layer}"], past, present, residual=layer > 0)
            for layer, (past, present) in enumerate(_pyramid(dilations))
        )
        self.account = dense["heads/account"]
        self.actor_hidden = dense["heads/actor_hidden"]
        self.critic_hidden = dense["heads/critic_hidden"]
        self.actor = dense["heads/actor"]
        self.critic = dense["heads/critic"]

        self.receptive_field = 1 + sum(dilations)
        self.num_features = len(mean)
        self.num_account_features = self.account.in_features
        self.num_actions = self.actor.out_features
        self.clip = clip
        self.logit_cap = logit_cap
        self.illegal_logit = _ILLEGAL_LOGIT
        self.norm_epsilon = _NORM_EPSILON
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))  # f64[F]
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))  # f64[F]
        self.register_buffer("hold", torch.arange(self.num_actions) == 0)  # bool[7]

    def forward(
        self, features: torch.Tensor, account: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Action i64[B], probabilities f32[B, 7] and value f32[B].

        The action is the most probable one, the first of them on a tie.

        Args:
            features: raw windows, the last bar being the one to decide at, f32 or f64[B, R, F].
            account: the account half of the observation, f32 or f64[B, A].
            mask: bool[B, 7], True where an action is legal.
        """
        logits, value = self.evaluate(features, account, mask)
        return logits.argmax(dim=-1), torch.softmax(logits, dim=-1), value

    @torch.jit.export
    def logits(
        self, features: torch.Tensor, account: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Masked logits f32[B, 7], -1e9 where an action is illegal. Arguments as `forward`."""
        return self.evaluate(features, account, mask)[0]

    def evaluate(
        self, features: torch.Tensor, account: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked logits f32[B, 7] and value f32[B]. Arguments as `forward`."""
        self.check(features, account, mask)
        scaled = (features.to(torch.float64) - self.mean) / self.scale
        x = scaled.clamp(-self.clip, self.clip).to(torch.float32)
        for layer in self.encoder:
            x = layer(x)
        own = torch.relu(self.account(account.to(torch.float32)))
        embedding = x[:, 0]
        mean_square = embedding.square().mean(dim=-1, keepdim=True)
        embedding = embedding * torch.rsqrt(mean_square + self.norm_epsilon)
        joint = torch.cat([embedding, own], dim=-1)
        logits = self.actor(torch.relu(self.actor_hidden(joint)))
        logits = self.logit_cap * torch.tanh(logits / self.logit_cap)
        value = self.critic(torch.relu(self.critic_hidden(joint)))[:, 0]
        legal = torch.where(mask.any(dim=-1, keepdim=True), mask, self.hold)
        return torch.where(legal, logits, self.illegal_logit), value

    def check(self, features: torch.Tensor, account: torch.Tensor, mask: torch.Tensor) -> None:
        """Raises ValueError unless the arguments are as `forward` documents them."""
        bars, width = self.receptive_field, self.num_features
        if features.dim() != 3 or features.size(1) != bars or features.size(2) != width:
            raise ValueError(f"features must be [B, {bars}, {width}], got {features.shape}")
        batch = features.size(0)
        if account.dim() != 2 or account.size(1) != self.num_account_features:
            raise ValueError(
                f"account must be [B, {self.num_account_features}], got {account.shape}"
            )
        if mask.dim() != 2 or mask.size(1) != self.num_actions:
            raise ValueError(f"mask must be [B, {self.num_actions}], got {mask.shape}")
        if account.size(0) != batch or mask.size(0) != batch:
            raise ValueError(
                "features, account and mask must hold the same number of observations, got "
                f"{batch}, {account.size(0)} and {mask.size(0)}"
            )
        if mask.dtype != torch.bool:
            raise ValueError("mask must be bool: True where an action is legal")
        if features.dtype != torch.float32 and features.dtype != torch.float64:
            raise ValueError("features must be float32 or float64")
        if account.dtype != torch.float32 and account.dtype != torch.float64:
            raise ValueError("account must be float32 or float64")
        if not bool(torch.isfinite(features).all()):
            raise ValueError("features hold NaN or infinity: fill or leave out such windows")
        if not bool(torch.isfinite(account).all()):
            raise ValueError("account holds NaN or infinity")


# ---------------------------------------------------------------------------------------- writing


def export_policy(
    path: str | os.PathLike[str],
    params: Mapping[str, Any],
    config: "NetworkConfig",
    *,
    feature_names: Sequence[str],
    mean: Sequence[float],
    scale: Sequence[float],
    clip: float,
    metadata: Mapping[str, Any],
) -> PolicyManifest:
    """Writes the policy to `path` and then its manifest to `<path>.manifest.json`.

    Each file is complete or absent. See `PolicyModule` for what the policy takes and returns.

    Args:
        path: where the TorchScript file goes, customarily `*.pt`.
        params: `ActorCritic.init`'s tree for one symbol, float32.
        config: the sizes that `params` were made with.
        feature_names: F names, in the order of the features' last axis.
        mean: f64[F], subtracted from the raw features, in their units.
        scale: f64[F], > 0, which the difference is divided by, in the features' units.
        clip: the scaled features are clipped to ±clip, in deviations.
        metadata: `action_names` and `account_feature_names` in the networks' order,
            `training_data_fingerprint`, `metrics` and `git_commit`, and any further keys. JSON
            must be able to hold it; a metric that does not exist is None.

    Returns:
        The manifest that was written.

    Raises:
        ExportError: `params`, the names, the scaler or `metadata` do not fit together, or a file
            cannot be written.
    """
    path = Path(path)
    _check_scaler(feature_names, mean, scale, clip)
    dense = _linear_layers(params, config, len(feature_names))
    mean, scale, clip = [float(m) for m in mean], [float(s) for s in scale], float(clip)
    text = _metadata_text(
        metadata,
        {
            "format_version": FORMAT_VERSION,
            "feature_names": list(feature_names),
            "receptive_field": 1 + sum(config.dilations),
            "scaler": {"mean": mean, "scale": scale, "clip": clip},
            "config": asdict(config),
        },
    )
    embedded = json.loads(text)
    _check_names(embedded, "action_names", dense["heads/actor"].out_features)
    _check_names(embedded, "account_feature_names", dense["heads/account"].in_features)

    archive = io.BytesIO()
    with _quiet_torchscript():
        policy = PolicyModule(dense, config.dilations, mean, scale, clip, config.logit_cap)
        module = torch.jit.script(policy.eval())
        torch.jit.save(module, archive, _extra_files={_METADATA_FILE: text})
    data = archive.getvalue()

    manifest = PolicyManifest(hashlib.sha256(data).hexdigest(), FORMAT_VERSION, embedded)
    write_complete(path, data)
    write_complete(_manifest_path(path), (json.dumps(asdict(manifest), indent=2) + "\n").encode())
    return manifest


def write_complete(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, making its folder; whatever happens, the file is whole or absent.

    Raises:
        ExportError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error}); choose another path") from error


def _linear_layers(
    params: Mapping[str, Any], config: "NetworkConfig", num_features: int
) -> dict[str, nn.Linear]:
    """Every dense layer of `params` as a torch layer, by path; their shapes are checked."""
    import numpy as np

    found = {path: np.asarray(array) for path, array in _leaves(params)}

    def width(path: str, axis: int) -> int:  # sizes that the configuration does not fix
        return found[path].shape[axis] if path in found and found[path].ndim == 2 else -1

    channels, joint = config.channels, config.channels + config.account_hidden
    sizes = {
        f"encoder/layer_{layer}": (2 * (channels if layer else num_features), channels)
        for layer in range(len(config.dilations))
    } | {
        "heads/account": (width("heads/account/kernel", 0), config.account_hidden),
        "heads/actor_hidden": (joint, config.hidden),
        "heads/critic_hidden": (joint, config.hidden),
        "heads/actor": (config.hidden, width("heads/actor/kernel", 1)),
        "heads/critic": (config.hidden, 1),
    }
    expected = {f"{path}/kernel": size for path, size in sizes.items()} | {
        f"{path}/bias": (size[1],) for path, size in sizes.items()
    }
    if found.keys() != expected.keys():
        raise ExportError(
            f"params: missing {sorted(expected.keys() - found.keys())}, "
            f"unknown {sorted(found.keys() - expected.keys())}; "
            "pass the whole tree of the ActorCritic that has this configuration"
        )
    for path, shape in expected.items():
        array = found[path]
        if array.shape != shape:
            raise ExportError(
                f"params {path}: shape {array.shape} where {num_features} features and the "
                f"configuration make {shape}; export one symbol, with its own configuration"
            )
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ExportError(f"params {path}: must be finite float32, is {array.dtype}")

    return {
        path: _linear(
            torch.from_numpy(found[f"{path}/kernel"].T.copy()),  # torch keeps [out, in]
            torch.from_numpy(found[f"{path}/bias"].copy()),
        )
        for path in sizes
    }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every array of a nested mapping with its path."""
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            yield from _leaves(branch, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", branch


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, device="meta")  # draws nothing from torch's generator
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _check_scaler(
    feature_names: Sequence[str], mean: Sequence[float], scale: Sequence[float], clip: float
) -> None:
    if len(set(feature_names)) != len(feature_names):
        raise ExportError("feature_names: a name occurs twice; every feature needs its own")
    for name, numbers in (("mean", mean), ("scale", scale)):
        if len(numbers) != len(feature_names):
            raise ExportError(
                f"{name}: has {len(numbers)} entries and feature_names {len(feature_names)}; "
                "pass the scaler that the policy was trained with"
            )
        for feature, number in zip(feature_names, numbers, strict=True):
            if not math.isfinite(number) or (name == "scale" and number <= 0):
                raise ExportError(f"{name} of feature {feature!r}: {number} makes no scaler")
    if not (math.isfinite(clip) and clip > 0):
        raise ExportError(f"clip: must be above 0 and finite, got {clip}")


def _check_names(metadata: Mapping[str, Any], key: str, count: int) -> None:
    names = metadata[key]
    if not isinstance(names, list) or len(names) != count or len(set(map(str, names))) != count:
        raise ExportError(f"metadata[{key!r}]: must be {count} different names, got {names}")


def _metadata_text(given: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Both halves of the metadata as one JSON object."""
    missing = sorted(_GIVEN_KEYS - given.keys())
    if missing:
        raise ExportError(f"metadata: {missing} missing; pass None for what is not known")
    reserved = sorted(_OWN_KEYS & given.keys())
    if reserved:
        raise ExportError(f"metadata: {reserved} are written by export_policy; leave them out")
    for key, value in given.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ExportError(
                f"metadata[{key!r}]: JSON cannot hold it ({error}); use Python's own numbers, and "
                "None for a number that does not exist"
            ) from error
    return json.dumps({**own, **given}, indent=2)


# ---------------------------------------------------------------------------------------- reading


def load_policy(path: str | os.PathLike[str], verify: bool = True) -> LoadedPolicy:
    """Loads an exported policy onto the CPU.

    Args:
        path: the TorchScript file.
        verify: compare the file with the sha256 and the metadata in `<path>.manifest.json`. False
            is for a file that came without its manifest from a source you trust.

    Raises:
        ExportError: a file is missing, was changed or cut short, is of a newer or unknown format,
            or is no exported policy.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error}); export the policy first") from error
    manifest = _read_manifest(path) if verify else None
    if manifest is not None:
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest.sha256:
            raise ExportError(
                f"{path}: its sha256 is {digest}, and {_manifest_path(path).name} says "
                f"{manifest.sha256}: it was changed or cut short; copy both files again, or export "
                "the policy again"
            )
    module, metadata = _read_archive(path, data)
    if manifest is not None and manifest.metadata != metadata:
        raise ExportError(
            f"{_manifest_path(path)}: its metadata are not those in {path.name}; "
            "copy both files again, or export the policy again"
        )
    return LoadedPolicy(module, metadata)


def _read_manifest(path: Path) -> PolicyManifest:
    """The manifest of the policy at `path`."""
    where = _manifest_path(path)
    try:
        entries = json.loads(where.read_bytes())
    except FileNotFoundError as error:
        raise ExportError(
            f"{where}: missing, so that {path.name} cannot be verified; copy the manifest from "
            "where the policy was exported, or pass verify=False if you trust the file"
        ) from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{where}: no JSON ({error}); copy it again") from error
    _check_format(where, entries)
    try:
        return PolicyManifest(**entries)
    except TypeError as error:
        raise ExportError(f"{where}: not a policy's manifest ({error}); copy it again") from error


def _read_archive(path: Path, data: bytes) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The module and the metadata in the bytes of the file at `path`."""
    extra: dict[str, Any] = {_METADATA_FILE: b""}
    try:
        with _quiet_torchscript():
            module = torch.jit.load(io.BytesIO(data), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"{path}: not a TorchScript file, or cut short; copy it again, or export the policy "
            f"again (torch says: {str(error).splitlines()[0]})"
        ) from error
    try:
        metadata = json.loads(extra[_METADATA_FILE])
    except ValueError as error:
        raise ExportError(
            f"{path}: a TorchScript file without {_METADATA_FILE}, so not one that export_policy "
            "wrote; export the policy again"
        ) from error
    _check_format(path, metadata)
    return module, metadata


def _check_format(where: Path, entries: Any) -> None:
    version = entries.get("format_version") if isinstance(entries, dict) else None
    if type(version) is not int or version < 1:
        raise ExportError(f"{where}: unknown format version {version!r}; export the policy again")
    if version > FORMAT_VERSION:
        raise ExportError(
            f"{where}: format version {version} is newer than the {FORMAT_VERSION} that this "
            "jaxtrader reads; upgrade jaxtrader"
        )


def _manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


@contextmanager
def _quiet_torchscript() -> Iterator[None]:
    """Hides that torch would rather have `torch.export`, which needs more than torch to serve."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"`torch\.jit\.[a-z_]+` is deprecated", DeprecationWarning
        )
        yield
