"""Exported policies: equal to the JAX networks, served by torch alone, and refused when damaged."""

import copy
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from tools import library

from agents.networks import ILLEGAL_LOGIT, NORM_EPSILON, ActorCritic, NetworkConfig
from envs.actions import NUM_ACTIONS, Action
from envs.trading import ACCOUNT_FEATURES, NUM_ACCOUNT_FEATURES
from jaxtrader.data.scaler import Scaler
from jaxtrader.errors import ExportError

torch = library("torch")

from jaxtrader.export import (  # noqa: E402
    FORMAT_VERSION,
    LoadedPolicy,
    ParityProcess,
    PolicyManifest,
    check_parity,
    export_policy,
    load_policy,
    parity,
    torchscript,
    write_parity_data,
)

ROOT = Path(__file__).resolve().parents[1]
NUM_FEATURES = 23
FEATURE_NAMES = tuple(f"feature_{i}" for i in range(NUM_FEATURES))
CONFIG = NetworkConfig()
METADATA = {
    "action_names": [action.name for action in Action],
    "account_feature_names": list(ACCOUNT_FEATURES),
    "training_data_fingerprint": "sha256:0123",
    "metrics": {"sharpe": 1.25, "sortino": None, "trades": 17},
    "git_commit": "bef6bfc",
    "symbol": "ACME",
}
rng = np.random.default_rng(1337)
SCALER = Scaler(  # features of very different sizes
    mean=10 ** rng.uniform(-3, 4, NUM_FEATURES) * rng.choice([-1, 1], NUM_FEATURES),
    scale=10 ** rng.uniform(-4, 3, NUM_FEATURES),
    clip=5.0,
)


def make_params(config=CONFIG, num_features=NUM_FEATURES, seed=0):
    """Parameters as after training: noise on every one, biases too.

    Much larger logits could not agree to an absolute 1e-5: beyond 32, a float32 number is 4e-6 from
    the next one.
    """
    noise = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (leaf + noise.normal(0, 0.2, leaf.shape)).astype(np.float32),
        jax.device_get(ActorCritic(config).init(jax.random.key(seed), num_features)),
    )


def export(path, params=None, config=CONFIG, scaler=SCALER, metadata=METADATA, **changes):
    arguments = {
        "feature_names": [f"feature_{i}" for i in range(len(scaler.mean))],
        "mean": scaler.mean,
        "scale": scaler.scale,
        "clip": scaler.clip,
        "metadata": metadata,
    }
    params = make_params(config) if params is None else params
    return export_policy(path, params, config, **(arguments | changes))


def observe(count, seed, bars=CONFIG.receptive_field, scaler=SCALER):
    """Raw f32 windows, outliers and whole extreme windows among them; accounts; masks."""
    draw = np.random.default_rng(seed)
    deviations = draw.normal(size=(count, bars, len(scaler.mean)))
    deviations[draw.random(deviations.shape) < 0.01] *= 1e3
    deviations[: count // 20] = draw.choice([-1e6, 1e6], deviations[: count // 20].shape)
    features = (scaler.mean + scaler.scale * deviations).astype(np.float32)
    account = draw.normal(size=(count, NUM_ACCOUNT_FEATURES)).astype(np.float32)
    mask = draw.random((count, NUM_ACTIONS)) < draw.random((count, 1))
    return features, account, mask


def oracle(params, features, account, mask, config=CONFIG, scaler=SCALER):
    """What the JAX policy answers: masked logits f32[N, 7] and value f32[N]."""
    network = ActorCritic(config)

    @jax.jit
    def answer(params, features, account, mask):
        embedding = network.encode(params, features)[:, -1]
        return network.heads(params, embedding, account, mask)

    logits, value = answer(params, scaler.transform(features), account, mask)
    return np.asarray(logits), np.asarray(value)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def run(code, *arguments, cwd):
    """Runs Python code in a fresh process, warnings being errors, and returns what it prints."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """Threads that wait for each other on a busy machine make a small network 500 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "policy.pt"
    return path, export(path)


@pytest.fixture
def policy_copy(exported, tmp_path):
    """A policy and its manifest that a test may damage."""
    path, _ = exported
    manifest = path.with_name("policy.pt.manifest.json")
    return (
        Path(shutil.copy(path, tmp_path / "policy.pt")),
        Path(shutil.copy(manifest, tmp_path / "policy.pt.manifest.json")),
    )


# ----------------------------------------------------------------------------- equal to the source


def test_ten_thousand_observations_agree_with_jax_in_a_process_without_jax(exported, tmp_path):
    path, _ = exported
    observations = observe(10_000, seed=1)
    mask = observations[2]
    assert (~mask.any(axis=1)).sum() > 100  # nothing legal: HOLD alone
    assert (mask.sum(axis=1) == 1).sum() > 100
    logits, value = oracle(make_params(), *observations)
    assert np.abs(logits[mask]).max() > 4  # a policy with opinions, far from its initialisation

    write_parity_data(tmp_path / "parity.npz", *observations, logits, value)
    report = check_parity(path, tmp_path / "parity.npz")

    print(report)
    assert report.jax_absent
    assert report.observations == 10_000
    assert report.largest_logit_difference <= 1e-5
    assert report.largest_scaled_value_difference <= 1e-5
    assert report.agreeing_actions == report.clear_actions > 9_900
    assert report.clear_actions + report.near_ties == 10_000
    assert report.passed


def test_parity_counts_what_differs(exported, tmp_path):
    path, _ = exported
    features, account, mask = observe(40, seed=2)
    mask[:] = True
    logits, value = (array.copy() for array in oracle(make_params(), features, account, mask))
    logits[0] = logits[0, ::-1]  # another action is the best one
    logits[1, :] = [1, 1 + 4e-6, 0, 0, 0, 0, 0]  # a tie, nearly
    value[2] += 0.5
    write_parity_data(tmp_path / "parity.npz", features, account, mask, logits, value)
    report = check_parity(path, tmp_path / "parity.npz")

    assert report.near_ties == 1
    assert report.clear_actions == 39
    assert report.agreeing_actions == 38
    assert report.largest_logit_difference > 0.1
    assert report.largest_value_difference == pytest.approx(0.5, abs=1e-5)
    assert not report.passed


def test_parity_does_not_pass_on_nan(exported, tmp_path):
    path, _ = exported
    features, account, mask = observe(4, seed=3)
    mask[:] = True
    logits, value = (array.copy() for array in oracle(make_params(), features, account, mask))
    logits[0, 0] = np.nan
    write_parity_data(tmp_path / "parity.npz", features, account, mask, logits, value)
    report = check_parity(path, tmp_path / "parity.npz")
    assert np.isnan(report.largest_logit_difference)
    assert not report.passed


@pytest.mark.parametrize("dilations", [(1,), (3,), (1, 3, 2), (2, 2, 2), (1, 2, 4, 8, 16, 1)])
def test_any_dilations_and_sizes(dilations, tmp_path):
    config = NetworkConfig(channels=6, dilations=dilations, hidden=9, account_hidden=4)
    params = make_params(config, seed=5)
    observations = observe(200, seed=6, bars=config.receptive_field)
    export(tmp_path / "policy.pt", params, config)
    module = load_policy(tmp_path / "policy.pt").module
    logits, value = oracle(params, *observations, config)
    np.testing.assert_allclose(
        module.logits(*tensors(*observations)).numpy(), logits, rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(module(*tensors(*observations))[2].numpy(), value, atol=1e-5)


def test_action_and_probabilities(exported):
    module = load_policy(exported[0]).module
    features, account, mask = observe(500, seed=7)
    action, probabilities, value = module(*tensors(features, account, mask))
    assert (action.dtype, probabilities.dtype, value.dtype) == (
        torch.int64,
        torch.float32,
        torch.float32,
    )
    assert not any(tensor.requires_grad for tensor in (probabilities, value))

    logits, _ = oracle(make_params(), features, account, mask)
    legal = np.where(mask.any(axis=1, keepdims=True), mask, np.arange(NUM_ACTIONS) == 0)
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True)) * legal
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities.numpy(), expected, atol=1e-5)
    assert (probabilities.numpy()[~legal] == 0).all()
    top = np.sort(np.where(legal, logits, -np.inf), axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-5
    np.testing.assert_array_equal(action.numpy()[clear], expected.argmax(axis=1)[clear])
    assert (action.numpy()[~mask.any(axis=1)] == Action.HOLD).all()
    assert legal[np.arange(500), action.numpy()].all()


def test_a_network_small_enough_to_compute_by_hand(tmp_path):
    config = NetworkConfig(channels=2, dilations=(1,), hidden=1, account_hidden=1, logit_cap=10.0)

    def dense(kernel, bias):
        return {"kernel": np.array(kernel, np.float32), "bias": np.array(bias, np.float32)}

    params = {
        "encoder": {"layer_0": dense([[2, 2], [3, 1]], [0, 3])},
        "heads": {
            "account": dense([[1]], [0]),
            "actor_hidden": dense([[1], [1], [-0.5]], [0]),
            "critic_hidden": dense([[1], [1], [1]], [0]),
            "actor": dense([[0, 1, 2, 3, -1, 0.5, 4]], [0] * 7),
            "critic": dense([[2]], [1]),
        },
    }
    metadata = METADATA | {"account_feature_names": ["cash"]}
    export(tmp_path / "p.pt", params, config, Scaler(np.ones(1), np.full(1, 2.0), 5), metadata)
    module = load_policy(tmp_path / "p.pt").module

    # Scaled bars: (1 - 1) / 2 = 0 and (3 - 1) / 2 = 1 in the first window; in the second the last
    # bar is clipped to 5. The layer makes (3·1, 1·1 + 3) = (3, 4) and (3·5, 1·5 + 3) = (15, 8),
    # whose root mean squares are 5/√2 and 17/√2: embeddings (3, 4)·√2/5 and (15, 8)·√2/17. The
    # account stays 2. Actor: a = 7·√2/5 - 1 = 0.9798990 and 23·√2/17 - 1 = 0.9133371.
    # Critic: 2·(a + 3) + 1.
    features = torch.tensor([[[1.0], [3.0]], [[1.0], [1e9]]])
    account = torch.tensor([[2.0], [2.0]])
    mask = torch.tensor([[True] * 7, [True, True, True, False, False, False, False]])
    action, _, value = module(features, account, mask)
    # Logits are 10·tanh(x / 10), by hand calculator.
    first, second = module.logits(features, account, mask).tolist()
    expected = [0.0, 0.9767747, 1.9350869, 2.8578441, -0.9767747, 0.4895578, 3.7304835]
    assert first == pytest.approx(expected, abs=1e-6)
    assert second[:3] == pytest.approx([0.0, 0.9108165, 1.8066453], abs=1e-6)
    assert second[3:] == [-1e9] * 4
    assert action.tolist() == [6, 2]
    assert value.tolist() == pytest.approx([8.9597980, 8.8266955], abs=2e-6)
    assert torchscript._ILLEGAL_LOGIT == ILLEGAL_LOGIT
    assert torchscript._NORM_EPSILON == NORM_EPSILON


def test_a_batch_of_one_equals_a_batch_of_a_thousand(exported):
    module = load_policy(exported[0]).module
    batch = tensors(*observe(1000, seed=8))
    action, probabilities, value = (tensor[::10] for tensor in module(*batch))
    logits = module.logits(*batch)[::10]
    singles = [[tensor[i : i + 1] for tensor in batch] for i in range(0, 1000, 10)]
    answers = zip(*(module(*single) for single in singles), strict=True)
    single_action, single_probabilities, single_value = (torch.cat(parts) for parts in answers)
    single_logits = torch.cat([module.logits(*single) for single in singles])
    # A matrix product of one row may sum in another order: equal to rounding.
    torch.testing.assert_close(single_logits, logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(single_probabilities, probabilities, rtol=0, atol=1e-5)
    torch.testing.assert_close(single_value, value, rtol=2e-6, atol=1e-5)
    assert torch.equal(single_action, action)


# -------------------------------------------------------------------------- the scaler is in there


def test_the_scaler_is_inside_the_graph(tmp_path):
    other = Scaler(mean=SCALER.mean * -2 + 1, scale=SCALER.scale * 7, clip=5.0)
    export(tmp_path / "one.pt")
    export(tmp_path / "other.pt", scaler=other)
    one, two = (load_policy(tmp_path / name).module for name in ("one.pt", "other.pt"))

    draw = np.random.default_rng(9)
    deviations = draw.normal(size=(300, CONFIG.receptive_field, NUM_FEATURES))
    _, account, mask = observe(300, seed=9)
    raw = [torch.from_numpy(s.mean + s.scale * deviations) for s in (SCALER, other)]  # float64
    rest = tensors(account, mask)
    torch.testing.assert_close(
        one.logits(raw[0], *rest), two.logits(raw[1], *rest), rtol=0, atol=1e-5
    )
    assert (one.logits(raw[0], *rest) - two.logits(raw[0], *rest)).abs().max() > 0.1


def test_the_clip_is_inside_the_graph(exported, tmp_path):
    module = load_policy(exported[0]).module
    _, account, mask = observe(2, seed=10)
    at_clip = np.broadcast_to(
        SCALER.mean + SCALER.clip * SCALER.scale, (2, CONFIG.receptive_field, NUM_FEATURES)
    )
    beyond = at_clip + 1e3 * SCALER.scale
    rest = tensors(account, mask)
    torch.testing.assert_close(
        module.logits(torch.from_numpy(at_clip.copy()), *rest),
        module.logits(torch.from_numpy(beyond), *rest),
        rtol=0,
        atol=1e-6,
    )


def test_a_float64_window_is_scaled_before_it_is_rounded(tmp_path):
    # A feature of 1e8 ± 1: float32 keeps its multiples of 8 only.
    scaler = Scaler(np.full(NUM_FEATURES, 1e8), np.ones(NUM_FEATURES), 5.0)
    export(tmp_path / "policy.pt", scaler=scaler)
    draw = np.random.default_rng(11)
    features = 1e8 + draw.normal(size=(50, CONFIG.receptive_field, NUM_FEATURES))
    _, account, mask = observe(50, seed=11)
    logits, _ = oracle(make_params(), features, account, mask, scaler=scaler)
    module = load_policy(tmp_path / "policy.pt").module
    np.testing.assert_allclose(
        module.logits(*tensors(features, account, mask)).numpy(), logits, rtol=0, atol=1e-5
    )


# ---------------------------------------------------------------------------- torch is all it takes

ALONE = """
import json, sys
absent = ("jax", "jaxlib", "flax", "numpy", "jaxtrader", "envs", "agents")
sys.modules.update(dict.fromkeys(absent))
import warnings
warnings.simplefilter("ignore")  # torch.jit.load is deprecated; torch misses numpy
import torch
extra = {"metadata.json": ""}
module = torch.jit.load(sys.argv[1], _extra_files=extra)
with open(sys.argv[2]) as file:
    features, account, mask = json.load(file)
inputs = torch.tensor(features), torch.tensor(account), torch.tensor(mask)
action, probabilities, value = module(*inputs)
logits = module.logits(*inputs)
answer = [tensor.tolist() for tensor in (action, probabilities, value, logits)]
print(json.dumps([*answer, json.loads(extra["metadata.json"])]))
"""


def test_the_file_alone_is_the_policy(exported, tmp_path):
    path, manifest = exported
    shutil.copy(path, tmp_path / "renamed")  # without its manifest
    observations = observe(20, seed=12)
    (tmp_path / "inputs.json").write_text(json.dumps([array.tolist() for array in observations]))
    printed = run(ALONE, tmp_path / "renamed", tmp_path / "inputs.json", cwd=tmp_path)
    action, probabilities, value, logits, metadata = json.loads(printed)
    expected_logits, expected_value = oracle(make_params(), *observations)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(np.sum(probabilities, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(action, expected_logits.argmax(axis=1))
    assert metadata == manifest.metadata


LIBRARY_WITHOUT_JAX = """
import sys
absent = ("jax", "jaxlib", "flax")
sys.modules.update(dict.fromkeys(absent))
sys.path.insert(0, sys.argv[1])
import jaxtrader.export
assert "torch" not in sys.modules
from jaxtrader.export import load_policy
policy = load_policy(sys.argv[2])
assert not any(sys.modules.get(name) for name in absent)
print(policy.metadata["receptive_field"])
"""


def test_load_policy_needs_no_jax(exported, tmp_path):
    assert run(LIBRARY_WITHOUT_JAX, ROOT, exported[0], cwd=tmp_path).split() == ["32"]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.path.insert(0, sys.argv[1])
import jaxtrader.export
try:
    jaxtrader.export.load_policy
except jaxtrader.export.ExportError as error:
    print(error)
"""


def test_without_torch_the_error_says_how_to_get_it(tmp_path):
    assert "pip install -e '.[export]'" in run(WITHOUT_TORCH, ROOT, cwd=tmp_path)


# ------------------------------------------------------------------------------ metadata, manifest


def test_metadata_and_manifest_round_trip(exported):
    path, manifest = exported
    policy = load_policy(path)
    assert isinstance(policy, LoadedPolicy)
    assert isinstance(manifest, PolicyManifest)
    assert policy.metadata == manifest.metadata
    assert policy.metadata == METADATA | {
        "format_version": 1,
        "feature_names": list(FEATURE_NAMES),
        "receptive_field": 32,
        "scaler": SCALER.to_dict(),
        "config": {
            "channels": 32,
            "dilations": [1, 2, 4, 8, 16],
            "hidden": 64,
            "account_hidden": 32,
            "actor_gain": 0.1,
            "hold_bias": 3.0,
            "logit_cap": 10.0,
            "frozen_encoder": False,
            "precision": "float32",
            "gradient_checkpointing": False,
        },
    }
    restored = Scaler.from_dict(policy.metadata["scaler"])
    np.testing.assert_array_equal(restored.mean, SCALER.mean)

    written = json.loads(path.with_name("policy.pt.manifest.json").read_text())
    assert written == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format_version": FORMAT_VERSION,
        "metadata": policy.metadata,
    }
    assert manifest == PolicyManifest(**written)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "policy.pt",
        "policy.pt.manifest.json",
    ]


def test_the_same_policy_gives_the_same_file(exported, tmp_path):
    assert export(tmp_path / "again" / "policy.pt") == exported[1]


def test_export_warns_of_nothing_and_draws_no_random_number(tmp_path):
    before = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(tmp_path / "policy.pt")
        load_policy(tmp_path / "policy.pt")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_failed_write_leaves_what_was_there(exported, policy_copy, monkeypatch):
    path, manifest = policy_copy
    before = path.read_bytes(), manifest.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torchscript.os, "replace", fail)
    with pytest.raises(ExportError, match=r"policy\.pt: cannot be written \(disk full\)"):
        export(path, make_params(seed=4))
    assert (path.read_bytes(), manifest.read_bytes()) == before
    assert sorted(path.parent.iterdir()) == [path, manifest]


# ---------------------------------------------------------------------------- damaged files refused


def edit(manifest, **changes):
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))


def test_a_tampered_file_is_rejected(policy_copy):
    path, _ = policy_copy
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExportError, match=r"policy\.pt: its sha256 is .* copy both files again"):
        load_policy(path)


@pytest.mark.parametrize("keep", [0, 10, -1, -3000])
def test_a_truncated_file_is_rejected(policy_copy, keep):
    path, _ = policy_copy
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ExportError, match="changed or cut short"):
        load_policy(path)
    with pytest.raises(ExportError, match="not a TorchScript file, or cut short"):
        load_policy(path, verify=False)


def test_a_missing_file_or_manifest_is_named(policy_copy):
    path, manifest = policy_copy
    manifest.unlink()
    with pytest.raises(ExportError, match=r"policy\.pt\.manifest\.json: missing.*verify=False"):
        load_policy(path)
    assert load_policy(path, verify=False).metadata["symbol"] == "ACME"
    path.unlink()
    with pytest.raises(ExportError, match=r"policy\.pt: cannot be read .* export the policy first"):
        load_policy(path)


def test_a_newer_format_is_rejected(policy_copy, monkeypatch):
    path, manifest = policy_copy
    edit(manifest, format_version=2, sha256_of_tomorrow="")
    with pytest.raises(ExportError, match=r"manifest\.json: format version 2 is newer.*upgrade"):
        load_policy(path)
    with monkeypatch.context() as patch:  # the same inside the archive
        patch.setattr(torchscript, "FORMAT_VERSION", 2)
        export(path)
    with pytest.raises(ExportError, match=r"policy\.pt: format version 2 is newer.*upgrade"):
        load_policy(path, verify=False)


@pytest.mark.parametrize("version", [0, "1", 1.0, True, None])
def test_an_unknown_format_is_rejected(policy_copy, version):
    path, manifest = policy_copy
    edit(manifest, format_version=version)
    with pytest.raises(ExportError, match="unknown format version"):
        load_policy(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', "\xff"])
def test_a_damaged_manifest_is_rejected(policy_copy, text):
    path, manifest = policy_copy
    manifest.write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match=r"policy\.pt\.manifest\.json: .*again"):
        load_policy(path)


def test_a_manifest_with_other_metadata_is_rejected(policy_copy):
    path, manifest = policy_copy
    metadata = json.loads(manifest.read_text())["metadata"]
    edit(manifest, metadata=metadata | {"symbol": "OTHER"})
    with pytest.raises(ExportError, match="its metadata are not those in"):
        load_policy(path)


def test_another_torchscript_file_is_rejected(tmp_path):
    archive = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), archive)
    (tmp_path / "linear.pt").write_bytes(archive.getvalue())
    with pytest.raises(ExportError, match=r"without metadata\.json"):
        load_policy(tmp_path / "linear.pt", verify=False)


def test_an_eager_checkpoint_is_rejected(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "eager.pt")
    with pytest.raises(ExportError, match="not a TorchScript file"):
        load_policy(tmp_path / "eager.pt", verify=False)


# ------------------------------------------------------------------------------ mistakes are named


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 31, 23)}, r"features must be \[B, 32, 23\], got \[2, 31, 23\]"),
        ({0: torch.zeros(2, 32, 22)}, r"features must be \[B, 32, 23\]"),
        ({0: torch.zeros(32, 23)}, r"features must be \[B, 32, 23\]"),
        ({1: torch.zeros(2, 11)}, r"account must be \[B, 12\], got \[2, 11\]"),
        ({2: torch.ones(2, 6, dtype=torch.bool)}, r"mask must be \[B, 7\], got \[2, 6\]"),
        ({2: torch.ones(1, 7, dtype=torch.bool)}, "same number of observations, got 2, 2 and 1"),
        ({2: torch.ones(2, 7)}, "mask must be bool"),
        ({0: torch.zeros(2, 32, 23, dtype=torch.float16)}, "features must be float32 or float64"),
        ({1: torch.zeros(2, 12, dtype=torch.int64)}, "account must be float32 or float64"),
        ({0: torch.full((2, 32, 23), torch.nan)}, "features hold NaN"),
        ({0: torch.full((2, 32, 23), torch.inf)}, "features hold NaN or infinity"),
        ({1: torch.full((2, 12), torch.nan)}, "account holds NaN"),
    ],
)
def test_the_graph_checks_its_inputs(exported, change, message):
    module = load_policy(exported[0]).module
    inputs = [torch.zeros(2, 32, 23), torch.zeros(2, 12), torch.ones(2, 7, dtype=torch.bool)]
    module(*inputs)
    for position, tensor in change.items():
        inputs[position] = tensor
    for method in (module, module.logits):
        with pytest.raises(torch.jit.Error, match=message):
            method(*inputs)


def test_an_empty_batch_is_no_mistake(exported):
    module = load_policy(exported[0]).module
    empty = [torch.zeros(0, 32, 23), torch.zeros(0, 12), torch.ones(0, 7, dtype=torch.bool)]
    action, probabilities, value = module(*empty)
    assert (action.shape, probabilities.shape, value.shape) == ((0,), (0, 7), (0,))


def without(key):
    return {name: value for name, value in METADATA.items() if name != key}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_names": FEATURE_NAMES[:-1]}, "mean: has 23 entries and feature_names 22"),
        ({"feature_names": ["a"] * 23}, "feature_names: a name occurs twice"),
        ({"scale": np.zeros(23)}, "scale of feature 'feature_0': 0.0"),
        ({"mean": np.full(23, np.nan)}, "mean of feature 'feature_0': nan"),
        ({"clip": np.inf}, "clip: must be above 0 and finite"),
        ({"metadata": without("git_commit")}, "'git_commit'.* missing"),
        ({"metadata": METADATA | {"scaler": {}}}, "'scaler'.* leave them out"),
        ({"metadata": METADATA | {"metrics": {"sharpe": np.nan}}}, "'metrics'.*JSON cannot hold"),
        ({"metadata": METADATA | {"metrics": np.float32(1)}}, "'metrics'.*JSON cannot hold"),
        ({"metadata": METADATA | {"action_names": ["HOLD"]}}, "'action_names'.*7 different names"),
        ({"metadata": METADATA | {"account_feature_names": None}}, "12 different names"),
        ({"config": NetworkConfig(hidden=65)}, "params heads/actor_hidden/kernel: shape"),
        ({"config": NetworkConfig(dilations=(1, 2))}, "unknown .*encoder/layer_2/bias"),
        ({"params": {"encoder": {}}}, "params: missing .*heads/critic/kernel"),
    ],
)
def test_what_does_not_fit_is_not_exported(changes, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "policy.pt", **({"params": make_params()} | changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda leaf: np.stack([leaf, leaf]), r"heads/actor/bias: shape \(2, 7\)"),
        (lambda leaf: leaf * np.float32(np.nan), "heads/actor/bias: must be finite float32"),
        (lambda leaf: leaf.astype(np.float64), "must be finite float32, is float64"),
    ],
)
def test_parameters_are_checked_one_by_one(damage, message, tmp_path):
    params = copy.deepcopy(make_params())
    params["heads"]["actor"]["bias"] = damage(params["heads"]["actor"]["bias"])
    with pytest.raises(ExportError, match=message):
        export(tmp_path / "policy.pt", params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, 23))}, "parity data need features"),
        ({"value": np.zeros(3)}, "parity data need features"),
        ({"logits": np.zeros((2, 6))}, "parity data need features"),
        ({"mask": np.ones((2, 7))}, "mask must be bool"),
        ({"value": np.zeros(0)}, "parity data need features"),
    ],
)
def test_parity_data_are_checked(change, message, tmp_path):
    data = {
        "features": np.zeros((2, 32, 23)),
        "account": np.zeros((2, 12)),
        "mask": np.ones((2, 7), bool),
        "logits": np.zeros((2, 7)),
        "value": np.zeros(2),
    }
    with pytest.raises(ExportError, match=message):
        write_parity_data(tmp_path / "parity.npz", **(data | change))
    assert not list(tmp_path.iterdir())


def test_a_failed_replay_says_why(policy_copy, tmp_path):
    path, manifest = policy_copy
    with pytest.raises(ExportError, match=r"replay failed:\n.*none\.npz: not parity data"):
        check_parity(path, tmp_path / "none.npz")
    write_parity_data(
        tmp_path / "narrow.npz",
        np.zeros((2, 31, 23), np.float32),
        np.zeros((2, 12), np.float32),
        np.ones((2, 7), bool),
        np.zeros((2, 7), np.float32),
        np.zeros(2, np.float32),
    )
    with pytest.raises(ExportError, match=r"features must be \[B, 32, 23\]"):  # a crash, quoted
        check_parity(path, tmp_path / "narrow.npz")
    manifest.unlink()
    with pytest.raises(ExportError, match=r"manifest\.json: missing"):
        check_parity(path, tmp_path / "narrow.npz")
    with pytest.raises(ExportError, match="tolerance: must be above 0"):
        check_parity(path, tmp_path / "narrow.npz", tolerance=0.0)


def test_one_process_replays_many_and_another_takes_the_place_of_one_that_died(
    exported, tmp_path, monkeypatch
):
    path, _ = exported
    observations = observe(4, seed=4)
    recorded = tmp_path / "parity.npz"
    write_parity_data(recorded, *observations, *oracle(make_params(), *observations))
    with ParityProcess() as process:
        monkeypatch.setattr(parity, "_CHILD", "import os; os.write(2, b'so it ends'); os._exit(3)")
        with pytest.raises(ExportError, match=r"policy\.pt: .* exit status 3:\nso it ends"):
            process.check(path, recorded)
        monkeypatch.undo()
        assert process.check(path, recorded).passed
        with pytest.raises(ExportError, match="not parity data"):
            process.check(path, tmp_path / "none.npz")
        monkeypatch.setattr(parity, "_CHILD", "raise SystemExit")  # no further one is started
        assert process.check(path, recorded).passed
