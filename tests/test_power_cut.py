"""A power cut: of every file what had been synced survives, and of every folder the names."""

import os
import shutil
import stat
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
from learners import bits
from small_runs import (
    QUIET,
    STEPS_PER_UPDATE,
    UPDATES,
    program,
    trained,
)

from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.files import write_whole
from jaxtrader.outputs import OutputLayout
from jaxtrader.runs import restore_run, start_run
from jaxtrader.training import train

SEED = 1337
TOTAL = UPDATES * STEPS_PER_UPDATE


class Disk:
    """The least that a disk may hold after a power cut, by what `os.fsync` was called on.

    A file that nobody synced is empty, and so is a folder. A file renamed is still the same file.
    """

    def __init__(self, monkeypatch):
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, set[str]] = {}
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = set(os.listdir(descriptor))
        else:
            self._contents[status.st_ino] = os.pread(descriptor, status.st_size, 0)

    def after_the_cut(self, folder: Path, copy: Path) -> None:
        """What is left of `folder`."""
        copy.mkdir(parents=True)
        for path in folder.iterdir():
            if path.name not in self._names.get(folder.stat().st_ino, ()):
                continue
            if path.is_dir():
                self.after_the_cut(path, copy / path.name)
            else:
                (copy / path.name).write_bytes(self._contents.get(path.stat().st_ino, b""))


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_a_disk_forgets_what_was_not_synced(disk, tmp_path):
    """Of the model."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.csv").write_text("written")
    disk.after_the_cut(tmp_path / "run", tmp_path / "nothing")
    assert list((tmp_path / "nothing").iterdir()) == []


def test_a_file_written_whole_is_the_new_one(disk, tmp_path):
    path = tmp_path / "reports" / "summary.md"
    for number, text in enumerate(("first\n", "second, and longer\n")):
        write_whole(path, text)
        disk.after_the_cut(path.parent, tmp_path / str(number))
        assert (tmp_path / str(number) / "summary.md").read_text() == text


def test_every_checkpoint_is_whole_once_it_is_saved(disk, tmp_path):
    state = {"key": jax.random.key(7), "kernel": jnp.arange(600.0).reshape(20, 30) / 7}
    checkpoints = AgentCheckpoints(tmp_path / "agent", keep_best=1)
    for update in (10, 20, 30):  # the first goes when the third comes
        checkpoints.save(update, state, {}, float(update))
        disk.after_the_cut(tmp_path / "agent", tmp_path / str(update))
        left = AgentCheckpoints(tmp_path / str(update), read_only=True)
        assert left.updates() == [u for u in (10, 20, 30) if update - 10 <= u <= update]
        for each in left.updates():
            chex.assert_trees_all_equal(bits(left.restore(each, state).state), bits(state))
        left.close()


def test_a_run_goes_on_to_the_same_bits(disk, tmp_path, monkeypatch, capsys):
    """The cut comes when two updates are in the tables and not yet in a checkpoint."""

    class Cut(BaseException):
        pass

    save = AgentCheckpoints.save

    def cut_at_update_6(self, update, *arguments):
        if update == 6:
            raise Cut
        save(self, update, *arguments)

    straight = trained(program("BBB"), (SEED,), folder=tmp_path / "straight")
    before, after = OutputLayout(tmp_path / "before"), OutputLayout(tmp_path / "after")
    monkeypatch.setattr(AgentCheckpoints, "save", cut_at_update_6)
    run = start_run(program("BBB"), (SEED,), TOTAL, before)
    with pytest.raises(Cut):
        train(run, TOTAL, QUIET)
    run.close()
    monkeypatch.setattr(AgentCheckpoints, "save", save)
    for place in (lambda layout: layout.checkpoints("BBB", SEED), lambda layout: layout.logs(SEED)):
        disk.after_the_cut(place(before), place(after))
    shutil.rmtree(before.root)

    resumed = restore_run(program("BBB"), (SEED,), after, to_train=True)
    assert resumed.update == 4
    assert capsys.readouterr().err == ""
    train(resumed, TOTAL, QUIET)
    chex.assert_trees_all_equal(bits(resumed.state), bits(straight.state))
    for table in (OutputLayout.updates, OutputLayout.telemetry):
        whole = table(OutputLayout(tmp_path / "straight"), SEED)
        assert table(after, SEED).read_bytes() == whole.read_bytes()
