"""Files from strangers: nothing in them is executed, and no path in them leads elsewhere."""

import ast
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from small_runs import CONFIG, program, trained

from experiments import stage5
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.config import TrainingConfig, load_config
from jaxtrader.data import read_bars
from jaxtrader.errors import CheckpointError, ConfigError, DataError, ExportError
from jaxtrader.export import load_policy
from jaxtrader.export.parity import _read_parity_data
from jaxtrader.files import write_whole
from jaxtrader.outputs import OutputLayout
from jaxtrader.runs import restore_run, stored_config

ROOT = Path(__file__).resolve().parents[1]
SEED = 1337


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def trap(tmp_path):
    """A pickle that would leave a mark; it is proven to work, and checked not to have."""
    marker = tmp_path / "executed"
    content = pickle.dumps(Trap(marker))
    pickle.loads(content)  # noqa: S301
    marker.rmdir()
    yield content
    assert not marker.exists()


_watching: list[list[tuple]] = []  # audit hooks cannot be taken away again, but ignored


def _watch(event: str, details: tuple) -> None:
    for heard in _watching:
        if event in ("pickle.find_class", "open", "os.system", "subprocess.Popen"):
            heard.append((event, *details))


@pytest.fixture
def heard():
    """What Python reports of itself: unpickled names, opened files, commands."""
    if not hasattr(_watch, "installed"):
        sys.addaudithook(_watch)
        _watch.installed = True
    events: list[tuple] = []
    _watching.append(events)
    yield events
    _watching.remove(events)


# --------------------------------------------------------------------------------------- pickles


def policy(path: Path, content: bytes) -> Path:
    """A policy file with a manifest that vouches for it."""
    path.write_bytes(content)
    manifest = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "format_version": 1,
        "metadata": {},
    }
    path.with_name(f"{path.name}.manifest.json").write_text(json.dumps(manifest))
    return path


def test_a_pickle_that_calls_itself_a_policy(trap, tmp_path):
    with pytest.raises(ExportError, match=r"policy\.pt: not a TorchScript file"):
        load_policy(policy(tmp_path / "policy.pt", trap))


@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl", "attributes.pkl"])
def test_a_pickle_within_a_policy(trap, tmp_path, member):
    """In the archive of TorchScript, and in that of `torch.save`."""
    path = tmp_path / "policy.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (
            ("data.pkl", pickle.dumps({})),
            ("constants.pkl", pickle.dumps(())),
            ("version", b"3\n"),
            ("byteorder", b"little"),
        ):
            archive.writestr(f"archive/{name}", trap if name == member else content)
        if member == "attributes.pkl":
            archive.writestr(f"archive/{member}", trap)
    with pytest.raises(ExportError, match=r"policy\.pt: not a TorchScript file"):
        load_policy(policy(path, path.read_bytes()))


def test_a_pickle_within_parity_data(trap, tmp_path):
    path = tmp_path / "observations.npz"
    arrays = dict.fromkeys(("account", "mask", "logits", "value"), np.zeros(1))
    np.savez(path, features=np.array([Trap(tmp_path / "executed")], object), **arrays)
    with pytest.raises(ExportError, match="not parity data"):
        _read_parity_data(str(path))


def parquet(folder: Path, table: pa.Table) -> None:
    path = folder / "historical" / "SPY" / "1Hour" / "data.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)


def bars_table(**more) -> pa.Table:
    stamps = pa.array([1_700_000_000_000_000], pa.timestamp("us", "UTC"))
    prices = {name: [10.0] for name in ("open", "high", "low", "close", "volume")}
    return pa.table({"timestamp": stamps, **prices, **more})


def test_a_pickle_within_parquet(trap, tmp_path, heard):
    """As an extension type, which Arrow once unpickled, in a column read and in one left alone."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": trap,
    }
    table = bars_table(more=[1.0])
    fields = [
        pa.field(field.name, field.type, metadata=metadata)
        if field.name in ("close", "more")
        else field
        for field in table.schema
    ]
    table = table.cast(pa.schema(fields, metadata={b"pandas": trap.hex().encode()}))
    parquet(tmp_path, table)
    assert read_bars(tmp_path, "SPY").close.tolist() == [10.0]
    assert not [event for event in heard if event[0] == "pickle.find_class"]


# In a process of its own: of what it cannot read, TensorStore leaves threads behind that fail
# whenever they please.
RESTORED_WITH_A_PICKLE = """
import contextlib, hashlib, json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.errors import CheckpointError

root, trap = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
state = {"weights": jnp.arange(3.0), "key": jax.random.key(1)}
checkpoints = AgentCheckpoints(root)
checkpoints.save(10, state, {"data": "!!python/object/apply:os.system ['true']"}, 1.0)
folder = root / "10"
sums = folder / "sha256.json"
files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
extra = {folder / "state" / "extra.pkl": None, folder / "pickle.pkl": None}
refused = []
sys.addaudithook(lambda event, _: refused.append(event) if event == "pickle.find_class" else None)
for path, content in {**files, **extra}.items():
    if path == sums:
        continue
    path.write_bytes(trap)
    named = {path.relative_to(folder).as_posix(): hashlib.sha256(trap).hexdigest()}
    sums.write_text(json.dumps(json.loads(files[sums]) | named))
    again = AgentCheckpoints(root, read_only=True)
    with contextlib.suppress(CheckpointError):
        again.restore(10, state)
    path.unlink() if content is None else path.write_bytes(content)
    sums.write_bytes(files[sums])
AgentCheckpoints(root).restore(10, state)
assert not refused, refused
print(len(files))
"""


def test_a_pickle_among_a_checkpoints_files(trap, tmp_path):
    """Every file in turn, the list of sums made to agree; and beside them as one more file."""
    (tmp_path / "trap.pkl").write_bytes(trap)
    done = subprocess.run(
        [sys.executable, "-c", RESTORED_WITH_A_PICKLE, tmp_path / "agent", tmp_path / "trap.pkl"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


# ---------------------------------------------------------------------------------------- paths

ESCAPES = [
    "../elsewhere",
    "..",
    ".",
    "",
    "/etc",
    "SPY/../..",
    "a\\b",
    "SPY\n",
    "a\0b",
    "~",
    "x" * 99,
]


@pytest.mark.parametrize("symbol", ESCAPES)
def test_no_symbol_leads_out_of_the_output_folder(tmp_path, symbol):
    layout = OutputLayout(tmp_path)
    for path in (layout.checkpoints, layout.policy, layout.policy_files):
        with pytest.raises(DataError, match="is not a symbol"):
            path(symbol, SEED)


@pytest.mark.parametrize("option", ["--skip-training", "--resume"])
def test_no_symbol_on_the_command_line_does(tmp_path, monkeypatch, capsys, option):
    """What lies outside may look like a checkpoint: it is neither read nor cleared up."""
    for function in ("use_compilation_cache", "be_deterministic", "use_full_precision"):
        monkeypatch.setattr(stage5, function, lambda: None)
    (tmp_path / "data" / "historical").mkdir(parents=True)
    outside = tmp_path / "outside" / f"seed_{SEED}" / "7.orbax-checkpoint-tmp"
    outside.mkdir(parents=True)
    output = tmp_path / "run" / "models" / "rl" / "symbol_agents"
    output.mkdir(parents=True)
    status = stage5.main(
        [
            "--data-dir", str(tmp_path / "data"), "--symbols", "../../../../outside",
            "--seeds", str(SEED), "--output-dir", str(tmp_path / "run"), option,
        ]
    )  # fmt: skip
    assert status == 2
    assert "is not a symbol" in " ".join(capsys.readouterr().err.split())
    assert outside.is_dir()
    assert list(output.iterdir()) == []


def forged(folder: Path, update: int, **changes) -> None:
    """Changes a checkpoint's description, and the list of sums with it."""
    meta, sums = folder / str(update) / "meta" / "metadata", folder / str(update) / "sha256.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | changes))
    own = {"meta/metadata": hashlib.sha256(meta.read_bytes()).hexdigest()}
    sums.write_text(json.dumps(json.loads(sums.read_text()) | own))


def test_no_name_in_a_checkpoints_list_of_sums_is_opened(tmp_path, heard):
    secret = tmp_path / "secret"
    secret.write_text("mine")
    state = {"weights": jnp.arange(3.0)}
    checkpoints = AgentCheckpoints(tmp_path / "agent")
    checkpoints.save(10, state, {}, 1.0)
    sums = tmp_path / "agent" / "10" / "sha256.json"
    digest = hashlib.sha256(b"mine").hexdigest()
    heard.clear()
    for name in ("../../secret", str(secret)):
        sums.write_text(json.dumps(json.loads(sums.read_text()) | {name: digest}))
        with pytest.raises(CheckpointError, match="is missing"):
            checkpoints.restore(10, state)
    assert not [event for event in heard if event[0] == "open" and "secret" in str(event[1])]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trained(program("BBB"), (SEED,), updates=2, folder=folder).close()
    return folder


def test_no_setting_in_a_checkpoint_leads_out_of_the_data(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    layout = OutputLayout(tmp_path / "run")
    config = json.loads(json.dumps(CONFIG.to_dict()))
    config["data"]["timeframe"] = "../../../etc"
    forged(layout.checkpoints("BBB", SEED), 2, config=config)
    stored = stored_config(layout, "BBB", SEED)
    (tmp_path / "historical" / "BBB").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is not a number followed by Min, Hour or Day"):
        read_bars(tmp_path, "BBB", stored.data.timeframe)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "expected keys and values, found None"),
        ({"ppo": {"gamma": "!!python/name:os.system"}}, "ppo: gamma: expected float"),
        ({"ppo": {"gamma": 1e400}}, "gamma = inf"),
        ({"__class__": "os.system"}, "unknown key '__class__'"),
        ({"ppo": {"of_the_future": 1}}, "unknown key 'of_the_future'; did you mean"),
    ],
)
def test_settings_in_a_checkpoint_are_checked_like_any_others(finished, tmp_path, config, message):
    shutil.copytree(finished, tmp_path / "run")
    layout = OutputLayout(tmp_path / "run")
    folder = layout.checkpoints("BBB", SEED)
    forged(folder, 2, config=config)
    with pytest.raises(ConfigError, match=message) as caught:
        stored_config(layout, "BBB", SEED)
    assert str(folder / "2") in str(caught.value)
    with pytest.raises(ConfigError, match=message):
        restore_run(program("BBB"), (SEED,), layout, to_train=False)


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    """Folders that are links are followed: whoever owns the output folder put them there."""
    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").symlink_to(outside)
    write_whole(tmp_path / "run" / "summary.json", "theirs")
    assert outside.read_text() == "mine"
    assert (tmp_path / "run" / "summary.json").read_text() == "theirs"
    assert not (tmp_path / "run" / "summary.json").is_symlink()


# ------------------------------------------------------------------------------------ the sources

# By the name of the call: what it must say to be harmless.
HARMLESS_WITH = {
    "np.load": "allow_pickle=False",
    "np.savez": "allow_pickle=False",
    "torch.load": "weights_only=True",
    "yaml.load": "Loader=_Loader",
}
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "pd.read_pickle", "os.system",
    "eval", "exec", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "marshal.loads",
}  # fmt: skip


def test_no_source_has_a_call_that_would_execute_what_it_reads():
    calls = 0
    for package in ("jaxtrader", "envs", "agents", "experiments", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name, where = ast.unparse(node.func), f"{path}:{node.lineno}"
                assert name not in FORBIDDEN, where
                said = {f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords}
                assert "shell=True" not in said, where
                if name in HARMLESS_WITH:
                    calls += 1
                    assert HARMLESS_WITH[name] in said, where
    assert calls >= 3


def test_settings_are_plain_values(tmp_path):
    """What the loader makes of every tag of YAML itself is data, and none of it is a setting."""
    path = tmp_path / "settings.yaml"
    path.write_text("data: {synthetic_seed: !!int '3'}\nppo: {gamma: !!float '0.9'}\n")
    config = load_config(path)
    assert (config.data.synthetic_seed, config.ppo.gamma) == (3, 0.9)
    for tag in ("!!binary aGVsbG8=", "!!set {a, b}", "!!timestamp 2024-01-01", "!!omap [a: 1]"):
        path.write_text(f"ppo: {{gamma: {tag}}}\n")
        with pytest.raises(ConfigError, match="ppo: gamma: expected float"):
            load_config(path)
    assert yaml.safe_load("1") == 1  # the library itself is as it was
    assert TrainingConfig() == TrainingConfig.from_dict({})
