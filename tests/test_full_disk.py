"""A disk that is full, and one that may not be written to: said clearly, and nothing is lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pandas as pd
import pytest
from learners import bits
from small_runs import (
    QUIET,
    STEPS_PER_UPDATE,
    UPDATES,
    one_update_a_call,
    program,
    trained,
)
from tools import lacking

from experiments import stage5
from jaxtrader import api
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.errors import CheckpointError, ExportError, JaxtraderError
from jaxtrader.evaluation.evaluate import evaluate_agents
from jaxtrader.files import write_whole
from jaxtrader.outputs import OutputLayout
from jaxtrader.reporting.figures import equity_figure
from jaxtrader.runs import restore_run, start_run
from jaxtrader.training import train

ROOT = Path(__file__).resolve().parents[1]
SEED = 1337
TOTAL = UPDATES * STEPS_PER_UPDATE


def mount(*arguments: str) -> None:
    """Ends the test where that may not be done."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        lacking("there is no mount command")
    if done.returncode != 0:
        lacking(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path):
    """Makes a folder one that may not be written to, in earnest: root heeds no permissions."""
    mounted = []

    def make(folder: Path) -> None:
        if os.geteuid() != 0:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
            return
        for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
            mount(*options, str(folder))
            mounted.append(folder)

    yield make
    if mounted:
        subprocess.run(["umount", "--lazy", str(mounted[0])], check=True)
    for path in tmp_path.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("required", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)]
)
def test_where_nothing_can_be_mounted(tmp_path, monkeypatch, required, outcome):
    monkeypatch.setenv("JAXTRADER_REQUIRE_ALL", required)
    with pytest.raises(outcome, match="mount"):
        mount("-t", "no such file system", "x", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(outcome, match="there is no mount command"):
        mount("-t", "tmpfs", "tmpfs", str(tmp_path))


def fill(disk: Path, leave: int) -> Path:
    """Takes all but `leave` bytes."""
    usage = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(usage.f_bavail * usage.f_frsize - leave))
    return ballast


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run that no disk interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    run = trained(program("BBB"), (SEED,), folder=folder)
    run.close()
    return folder, run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def tables(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".csv")}


@pytest.mark.parametrize(
    ("leave", "what"),
    [
        (0, "telemetry.csv: cannot be written"),
        (64 << 10, "no space left for the checkpoint of update 4"),
    ],
)
def test_a_disk_that_fills_up_in_training(disk, straight, monkeypatch, leave, what):
    one_update_a_call(monkeypatch)
    layout = OutputLayout(disk)
    calls = 0

    def fill_up():
        nonlocal calls
        calls += 1
        if calls == 3:
            fill(disk, leave)
        return False

    run = start_run(program("BBB"), (SEED,), TOTAL, layout)
    with pytest.raises(JaxtraderError, match=what) as caught:
        train(run, TOTAL, QUIET, should_stop=fill_up)
    assert str(disk) in str(caught.value)
    assert "--output-dir" in str(caught.value)
    assert "space" in str(caught.value)
    run.close()

    checkpoints = AgentCheckpoints(layout.checkpoints("BBB", SEED), read_only=True)
    assert checkpoints.updates() == [2]
    checkpoints.close()
    (disk / "ballast").unlink()
    resumed = restore_run(program("BBB"), (SEED,), layout, to_train=True)
    assert resumed.update == 2
    train(resumed, TOTAL, QUIET)
    resumed.close()
    chex.assert_trees_all_equal(bits(resumed.state), bits(straight[1].state))
    chex.assert_trees_all_equal(resumed.best_params, straight[1].best_params)
    np.testing.assert_array_equal(resumed.best_update, straight[1].best_update)
    assert tables(disk) == tables(straight[0])
    assert not [path for path in disk.rglob("*") if "tmp" in path.name]


# In a process of its own, for TensorStore leaves threads behind that fail whenever they please.
SAVED_ON_A_FULL_DISK = """
import sys
from pathlib import Path
import chex, jax, jax.numpy as jnp
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.errors import CheckpointError
from test_full_disk import fill

disk, leave = Path(sys.argv[1]), int(sys.argv[2])
state = {f"layer {i}": jax.random.normal(jax.random.key(i), (50, 50)) for i in range(9)}
checkpoints = AgentCheckpoints(disk / "agent")
checkpoints.save(10, state, {}, 1.0)
ballast = fill(disk, leave)
AgentCheckpoints._require_space = lambda *arguments: None  # the space was there, and then not
try:
    checkpoints.save(20, state, {}, 2.0)
except CheckpointError as error:
    print(error)
for read_only in (True, False):
    again = AgentCheckpoints(disk / "agent", read_only=read_only)
    assert again.updates() == [10]
    chex.assert_trees_all_equal(again.restore(10, state).state, state)
ballast.unlink()
again.forget_after(10)
again.save(20, state, {}, 2.0)
assert again.updates() == [10, 20]
chex.assert_trees_all_equal(again.restore(20, state).state, state)
print("whole")
"""


@pytest.mark.parametrize("leave", [0, 60 << 10])
def test_a_disk_that_fills_up_while_orbax_saves(disk, leave):
    done = subprocess.run(
        [sys.executable, "-c", SAVED_ON_A_FULL_DISK, str(disk), str(leave)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    message, last = done.stdout.splitlines()
    assert last == "whole"
    assert f"{disk / 'agent'}: checkpoint of update 20 could not be saved" in message
    assert "No space left" in message
    assert "earlier checkpoints are intact" in message
    assert "--output-dir" in message


def test_a_full_disk_when_the_report_is_due(disk, straight):
    """Reports and policies from before stay, and of the new ones there is nothing half done."""
    _, run = straight
    report = disk / "reports" / "before"
    write_whole(report / "summary.md", "from before")
    path = disk / "policy.pt"
    path.write_bytes(b"from before")
    evaluations = evaluate_agents(program("BBB"), run.best_params, run.seeds, "test", 4)
    fill(disk, 0)
    before = contents(disk)
    for attempt in (
        lambda: write_whole(report / "summary.md", "new " * 2000),
        lambda: write_whole(disk / "reports" / "now" / "summary.json", "new " * 2000),
        lambda: equity_figure(evaluations[0], report / "equity.png", "title"),
    ):
        with pytest.raises(JaxtraderError, match=r"cannot be written \(No space left") as caught:
            attempt()
        assert str(disk) in str(caught.value)
        assert "Earlier files are intact" in str(caught.value)
    with pytest.raises(ExportError, match="No space left"):
        api.export_policy(run, path)
    assert contents(disk) == before


@pytest.fixture
def finished(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "finished")
    write_whole(tmp_path / "finished" / "reports" / "before" / "summary.md", "from before")
    return tmp_path / "finished"


def test_an_output_folder_that_may_not_be_written_to(finished, straight, read_only):
    """Refused before anything is trained, and everything in it stays; looking is permitted."""
    read_only(finished)
    before = contents(finished)
    layout = OutputLayout(finished)
    for attempt in (
        lambda: start_run(program("BBB"), (SEED,), TOTAL, layout),
        lambda: start_run(program("BBB"), (5,), TOTAL, layout),
        lambda: restore_run(program("BBB"), (SEED,), layout, to_train=True),
        lambda: write_whole(finished / "reports" / "now" / "summary.md", "new"),
        lambda: api.export_policy(straight[1], layout.policy("BBB", SEED)),
    ):
        with pytest.raises(JaxtraderError, match=r"Read-only|Permission denied") as caught:
            attempt()
        assert str(finished) in str(caught.value)
        assert "choose another" in str(caught.value)
    run = restore_run(program("BBB"), (SEED,), layout, to_train=False)
    assert run.update == UPDATES
    pd.testing.assert_frame_equal(run.updates_table(), straight[1].updates_table())
    run.close()
    assert contents(finished) == before


def test_a_folder_that_becomes_read_only_in_training(straight, tmp_path, read_only, monkeypatch):
    one_update_a_call(monkeypatch)
    layout = OutputLayout(tmp_path / "run")
    run = start_run(program("BBB"), (SEED,), TOTAL, layout)
    calls = 0

    def close_down():
        nonlocal calls
        calls += 1
        if calls == 3:
            read_only(tmp_path / "run")
        return False

    with pytest.raises(JaxtraderError, match=r"Read-only|Permission denied|READ_ONLY"):
        train(run, TOTAL, QUIET, should_stop=close_down)
    run.close()
    checkpoints = AgentCheckpoints(layout.checkpoints("BBB", SEED), read_only=True)
    assert checkpoints.updates() == [2]
    checkpoints.close()


def test_a_checkpoint_folder_that_cannot_be_made(tmp_path, read_only):
    (tmp_path / "run").mkdir()
    read_only(tmp_path / "run")
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints") as caught:
        AgentCheckpoints(tmp_path / "run" / "agent")
    assert "--output-dir" in str(caught.value)


def test_the_command_ends_with_status_2_and_the_reason(finished, read_only, monkeypatch, capsys):
    for function in ("use_compilation_cache", "be_deterministic", "use_full_precision"):
        monkeypatch.setattr(stage5, function, lambda: None)
    read_only(finished)
    status = stage5.main(["--seeds", "3", "--output-dir", str(finished)])
    assert status == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: ")
    assert str(finished) in error
    assert "choose another --output-dir" in error


def test_a_disk_that_fails_where_nobody_expects_it_is_status_2(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(5, "Input/output error", "somewhere/file")

    for function in ("use_compilation_cache", "be_deterministic", "use_full_precision"):
        monkeypatch.setattr(stage5, function, lambda: None)
    monkeypatch.setattr(stage5, "load_data", fail)
    assert stage5.main(["--output-dir", str(tmp_path)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "error: [Errno 5] Input/output error: 'somewhere/file'; check the path" in error
