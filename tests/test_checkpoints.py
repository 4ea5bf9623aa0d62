"""Checkpoints: which are kept, that they hold what they say, and what happens to damaged ones."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners import bits
from small_runs import (
    QUIET,
    STEPS_PER_UPDATE,
    after_calls,
    market,
    one_update_a_call,
    program,
    trained,
    with_settings,
)

from envs import RewardStep
from jaxtrader import runs
from jaxtrader.checkpoints import (
    FORMAT_VERSION,
    AgentCheckpoints,
    DamagedCheckpointError,
    check_meta,
)
from jaxtrader.config import CheckpointConfig, TrainingConfig
from jaxtrader.errors import CheckpointError
from jaxtrader.evaluation.evaluate import validation_sharpe
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import build_program
from jaxtrader.runs import restore_run, start_run, stored_config
from jaxtrader.training import Interrupted, train

ROOT = Path(__file__).resolve().parents[1]
SEED = 1337
NAN, INF = math.nan, math.inf


def saved_state():
    """A state of every leaf type that a real one has; small, so that saving is quick."""
    return {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8), 3),
        "update": jnp.int32(3),
        "params": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7},
        "halted": jnp.bool_(True),
        "nan": jnp.float32(NAN),
    }


def save_all(folder, sharpes, keep_best=3):
    """One checkpoint for every Sharpe ratio, at updates 10, 20, ..."""
    checkpoints = AgentCheckpoints(folder, keep_best)
    for i, sharpe in enumerate(sharpes, start=1):
        checkpoints.save(10 * i, saved_state(), {"data": "x"}, sharpe)
    return checkpoints


# ------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("sharpes", "kept", "best"),
    [
        ([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, -1.0], [10, 30, 50, 60, 70], 10),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [30, 40, 50], 50),  # the latest two are among the best
        ([1.0, NAN, 2.0, NAN, 0.5, NAN, NAN], [10, 30, 50, 60, 70], 30),
        ([NAN, -5.0, NAN, NAN], [20, 30, 40], 20),  # a NaN is worse than any number
        ([1.0, INF, 0.5, 0.2, 0.1], [10, 30, 40, 50], 10),  # so is an infinity
        ([NAN, NAN], [10, 20], 20),  # all undefined: the latest
        ([1.0, 1.0, 0.0], [10, 20, 30], 20),  # of equals, the later
    ],
)
def test_the_best_three_and_the_latest_two_are_kept(tmp_path, sharpes, kept, best):
    checkpoints = save_all(tmp_path, sharpes)
    assert set(kept) <= set(checkpoints.updates())
    if not any(math.isnan(s) for s in sharpes):  # fillers may be kept where numbers are few
        assert checkpoints.updates() == kept
    assert checkpoints.ranking()[0] == best
    again = AgentCheckpoints(tmp_path)
    assert again.updates() == checkpoints.updates()
    assert again.ranking() == checkpoints.ranking()


def test_the_ranking_is_by_sharpe_then_by_time(tmp_path):
    checkpoints = save_all(tmp_path, [2.0, NAN, 3.0, 2.0], keep_best=9)
    assert checkpoints.ranking() == [30, 40, 10, 20]
    assert checkpoints.ranking(last=20) == [10, 20]
    assert checkpoints.validation_sharpe(30) == 3.0
    assert math.isnan(checkpoints.validation_sharpe(20))


def test_the_number_of_best_ones_is_a_setting(tmp_path):
    assert save_all(tmp_path, [5.0, 4.0, 3.0, 2.0, 1.0], keep_best=1).updates() == [10, 40, 50]


def test_forgetting_what_came_later(tmp_path):
    checkpoints = save_all(tmp_path, [1.0, 2.0, 3.0])
    checkpoints.forget_after(10)
    assert checkpoints.updates() == [10]
    checkpoints.save(20, saved_state(), {}, 0.5)  # the way is free again
    assert AgentCheckpoints(tmp_path).updates() == [10, 20]


def test_an_empty_folder_says_how_to_go_on(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint found; train first"):
        AgentCheckpoints(tmp_path).ranking()


# ------------------------------------------------------------------------------ what it holds


def test_a_state_comes_back_bit_for_bit_with_typed_keys(tmp_path):
    state = saved_state()
    checkpoints = AgentCheckpoints(tmp_path)
    checkpoints.save(10, state, {"list": [1, 2], "number": 0.1}, 1.5)

    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    restored = AgentCheckpoints(tmp_path).restore(10, like)
    assert restored.update == 10
    assert restored.meta == {
        "list": [1, 2],
        "number": 0.1,
        "update": 10,
        "format_version": FORMAT_VERSION,
        "competes_for_best": True,
        "validation_sharpe": 1.5,
        "state": {
            "halted": "bool[]",
            "key": "key<fry>[]",
            "keys": "key<fry>[3]",
            "nan": "float32[]",
            "params/kernel": "float32[2, 3]",
            "update": "int32[]",
        },
    }
    chex.assert_trees_all_equal(bits(restored.state), bits(state))
    for name in ("key", "keys"):
        assert restored.state[name].dtype == state[name].dtype == jax.random.key(0).dtype
    assert restored.state["nan"].dtype == jnp.float32
    own, back = (jax.random.uniform(key) for key in (state["key"], restored.state["key"]))
    assert own == back


# A machine with two devices, of which the second does the work.
SAVED_ON_ANOTHER_DEVICE = """
import sys
from pathlib import Path
import jax
from test_checkpoints import AgentCheckpoints, saved_state

_, device = jax.devices()
state = jax.device_put(saved_state(), device)
assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(state))
AgentCheckpoints(Path(sys.argv[1])).save(10, state, {}, 1.0)
"""


def test_what_was_saved_on_another_device_is_whole(tmp_path):
    """One that is not there where it is restored, like the GPU of another machine."""
    done = subprocess.run(
        [sys.executable, "-c", SAVED_ON_ANOTHER_DEVICE, str(tmp_path)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    state = saved_state()
    for like in (state, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)):
        restored = AgentCheckpoints(tmp_path, read_only=True).restore(10, like).state
        chex.assert_trees_all_equal(bits(restored), bits(state))
        for leaf in jax.tree.leaves(restored):
            key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            assert leaf.devices() == {jax.devices()[0]} if key else isinstance(leaf, np.ndarray)


def test_a_description_is_read_without_the_arrays(tmp_path):
    checkpoints = save_all(tmp_path, [1.0])
    shutil.rmtree(tmp_path / "10" / "state")
    assert checkpoints.read_meta(10)["data"] == "x"


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(1, "use the version that trained it"), (FORMAT_VERSION + 1, "upgrade jaxtrader")],
)
def test_another_format_is_refused_by_its_number(tmp_path, version, remedy):
    checkpoints = save_all(tmp_path, [1.0])
    path = tmp_path / "10" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "format_version": version}))
    sums = tmp_path / "10" / "sha256.json"
    if version == 1:  # which had none
        sums.unlink()
        with pytest.raises(CheckpointError, match=f"has checkpoint format {version}, .*{remedy}"):
            checkpoints.updates()
        return
    own = {"meta/metadata": hashlib.sha256(path.read_bytes()).hexdigest()}
    sums.write_text(json.dumps(json.loads(sums.read_text()) | own))
    with pytest.raises(CheckpointError, match=f"has checkpoint format {version}, .*{remedy}"):
        checkpoints.restore(10, saved_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"kernel": jnp.zeros((3, 3))}}, r"params/kernel = 'float32\[2, 3\]', and now"),
        ({"update": jnp.float32(3)}, r"update = 'int32\[\]', and now it is 'float32\[\]'"),
        ({"more": jnp.int32(0)}, r"more = None, and now it is 'int32\[\]'"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused_by_name(tmp_path, change, message):
    """Left to itself, Orbax would cast the second without a word."""
    checkpoints = save_all(tmp_path, [1.0])
    with pytest.raises(CheckpointError, match=rf"was made with state\.{message}") as caught:
        checkpoints.restore(10, {**saved_state(), **change})
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_difference_is_named_with_both_values():
    check_meta({"seed": 1, "more": 2}, {"seed": 1}, "here")
    with pytest.raises(CheckpointError) as caught:
        check_meta({"seed": 1}, {"seed": 2}, "folder/10")
    message = str(caught.value)
    assert "folder/10: was made with seed = 1, and now it is 2" in message
    assert "--output-dir" in message
    with pytest.raises(CheckpointError, match="was made with seed = None"):
        check_meta({}, {"seed": 2}, "here")


@pytest.mark.parametrize(
    ("stored", "now", "message"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "x.b = 2, and now it is 3"),
        ({"a": 1}, {"a": 1, "b": 3}, "x.b = None, and now it is 3"),
        ({"a": 1, "b": 2}, {"a": 1}, "x.b = 2, and now it is None"),
        (["close", "rsi"], ["close", "macd"], "x[1] = 'rsi', and now it is 'macd'"),
        (["close", "rsi"], ["close"], "x[1] = 'rsi', and now it is None"),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "x.a.b[1] = 2, and now it is 3"),
        ([1], {"a": 1}, "x = [1], and now it is {'a': 1}"),
    ],
)
def test_a_difference_within_a_section_is_named_alone(stored, now, message):
    with pytest.raises(CheckpointError) as caught:
        check_meta({"x": stored}, {"x": now}, "here")
    assert f"here: was made with {message}; " in str(caught.value)


def damage(folder: Path) -> None:
    """Every file of a checkpoint's arrays loses its second half."""
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damage_is_an_error_of_its_own(tmp_path):
    checkpoints = save_all(tmp_path, [1.0, 2.0])
    damage(tmp_path / "10")
    with pytest.raises(DamagedCheckpointError, match="10: cannot be restored, it is damaged"):
        checkpoints.restore(10, saved_state())
    (tmp_path / "20" / "meta" / "metadata").write_text("{")
    with pytest.raises(DamagedCheckpointError, match="its file meta/metadata was changed"):
        checkpoints.restore(20, saved_state())


def test_whichever_file_is_damaged_nothing_wrong_comes_back(tmp_path):
    """One file at a time: gone, empty, cut short, or with some bits turned in its middle.

    It is an error that makes way for an earlier checkpoint, and that one is whole.
    """
    whole = tmp_path / "whole"
    save_all(whole, [1.0, 2.0]).close()
    expected = bits(saved_state())
    for file in sorted(path for path in (whole / "20").rglob("*") if path.is_file()):
        content = file.read_bytes()
        middle = len(content) // 2
        turned = content[:middle] + bytes(b ^ 0x15 for b in content[middle:][:8])
        for damaged in (None, b"", content[:middle], turned + content[len(turned) :]):
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            broken = copy / file.relative_to(whole)
            broken.unlink()
            if damaged is not None:
                broken.write_bytes(damaged)
            checkpoints = AgentCheckpoints(copy, read_only=True)
            listed = set(checkpoints.ranking())
            assert listed == ({10} if damaged is None and file.name == "sha256.json" else {10, 20})
            chex.assert_trees_all_equal(
                bits(checkpoints.restore(10, saved_state()).state), expected
            )
            with pytest.raises(DamagedCheckpointError, match=re.escape(str(copy / "20"))):
                checkpoints.restore(20, saved_state())
            checkpoints.close()


def test_a_bit_turned_in_the_numbers_is_noticed(tmp_path):
    """Orbax itself would restore it."""
    state = {"big": jax.random.normal(jax.random.key(1), (64, 64))}
    checkpoints = AgentCheckpoints(tmp_path)
    checkpoints.save(10, state, {}, 1.0)
    largest = max((tmp_path / "10").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))
    with pytest.raises(DamagedCheckpointError, match=rf"{largest.name} was changed"):
        checkpoints.restore(10, state)


def test_a_damaged_description_is_not_passed_over_in_silence(tmp_path):
    """It may have been the best: it comes first, so that its user hears of it; and it is kept no
    longer than any other that is not among the best."""
    checkpoints = save_all(tmp_path, [9.0, 1.0, 2.0])
    (tmp_path / "10" / "meta" / "metadata").write_text("{}")
    assert checkpoints.ranking() == [10, 30, 20]
    with pytest.raises(DamagedCheckpointError):
        checkpoints.validation_sharpe(10)
    checkpoints.save(40, saved_state(), {}, 0.0)
    assert checkpoints.updates() == [20, 30, 40]


def test_what_does_not_compete_ranks_last_and_is_kept_as_the_latest_only(tmp_path):
    checkpoints = AgentCheckpoints(tmp_path, keep_best=1)
    for update, sharpe in ((10, NAN), (11, None), (20, NAN), (21, None)):
        checkpoints.save(update, saved_state(), {}, sharpe)
    assert checkpoints.updates() == [20, 21]
    assert checkpoints.ranking() == [20, 21]
    checkpoints.save(30, saved_state(), {}, -1.0)
    checkpoints.save(31, saved_state(), {}, None)
    assert checkpoints.ranking() == [30, 31]


def test_a_removal_that_is_cut_short_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    """The rename has happened, some of the files are gone, and then comes the kill."""

    class Killed(BaseException):
        pass

    def killed(folder):
        [file, *_] = (path for path in Path(folder).rglob("metadata") if path.is_file())
        file.unlink()
        raise Killed

    checkpoints = save_all(tmp_path, [1.0, 2.0, 3.0], keep_best=1)
    assert checkpoints.updates() == [20, 30]
    monkeypatch.setattr("jaxtrader.checkpoints.shutil.rmtree", killed)
    with pytest.raises(Killed):
        checkpoints.save(40, saved_state(), {}, 4.0)
    monkeypatch.undo()
    for read_only in (True, False):
        again = AgentCheckpoints(tmp_path, 1, read_only=read_only)
        assert again.updates() == [30, 40]
        for update in again.updates():
            again.restore(update, saved_state())
        assert any(tmp_path.rglob("20")) == read_only  # whoever may write clears up
        again.close()


def test_saving_an_earlier_update_is_an_error(tmp_path):
    """Orbax would leave it out and say nothing."""
    checkpoints = save_all(tmp_path, [1.0, 2.0])
    with pytest.raises(CheckpointError, match=r"update 15 could not .*later ones: \[10, 20\]"):
        checkpoints.save(15, saved_state(), {}, 1.0)
    assert checkpoints.updates() == [10, 20]


def test_a_save_that_fails_says_that_earlier_ones_are_intact(tmp_path, monkeypatch):
    checkpoints = save_all(tmp_path, [1.0])

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match="update 20 could not be saved") as caught:
        checkpoints.save(20, saved_state(), {}, 1.0)
    assert "No space left" in str(caught.value)
    assert "earlier checkpoints are intact" in str(caught.value)


def test_a_long_reason_keeps_its_end(tmp_path, monkeypatch):
    """TensorStore names the place over and over before it comes to what is wrong."""
    path = tmp_path / "out" / "of" / "the" / "way" / "state.orbax-checkpoint-tmp" / "manifest.ocdbt"

    def full(*arguments, **options):
        raise ValueError(f'Error writing "{path}": ' * 12 + "No space left on device [code='28']")

    checkpoints = save_all(tmp_path, [1.0])
    monkeypatch.setattr(checkpoints._manager, "save", full)
    monkeypatch.setattr(checkpoints._manager, "restore", full)
    for attempt in (
        lambda: checkpoints.save(20, saved_state(), {}, 1.0),
        lambda: checkpoints.restore(10, saved_state()),
    ):
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            attempt()
        assert f'Error writing "{path.parent.parent}' in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "seed_1").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints"):
        AgentCheckpoints(tmp_path / "seed_1")
    assert (tmp_path / "seed_1").read_text() == "mine"


def test_leftovers_of_a_killed_save_are_no_checkpoints(tmp_path):
    save_all(tmp_path, [1.0]).close()
    leftover = tmp_path / "20.orbax-checkpoint-tmp-123"
    shutil.copytree(tmp_path / "10", leftover)
    # To a reader they may as well be what another process is saving.
    looking = AgentCheckpoints(tmp_path, read_only=True)
    assert looking.updates() == [10]
    looking.close()
    assert leftover.is_dir()
    checkpoints = AgentCheckpoints(tmp_path)
    assert checkpoints.updates() == [10]
    checkpoints.save(20, saved_state(), {}, 1.0)
    assert not leftover.exists()


# -------------------------------------------------------------------------- in a training run


@functools.cache
def small():
    """One symbol, learning so fast that every checkpoint is another policy."""
    return with_settings(program("BBB"), "ppo", learning_rate=0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of 7 updates with checkpoints at 2, 4, 6 and 7; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    run = trained(small(), (SEED,), folder=folder)
    run.close()
    return folder, run


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that folder to play with."""
    shutil.copytree(finished[0], tmp_path / "copy")
    return OutputLayout(tmp_path / "copy")


def restored(layout, *, to_train=False, program=None):
    return restore_run(program or small(), (SEED,), layout, to_train=to_train)


def test_every_checkpoint_earned_its_sharpe(finished):
    """The stored metric is that of the stored parameters, not of those one update before."""
    layout = OutputLayout(finished[0])
    checkpoints = AgentCheckpoints(layout.checkpoints("BBB", SEED))
    like = jax.tree.map(lambda x: x[0, 0], finished[1].state)
    assert len(checkpoints.updates()) >= 3
    seen = set()
    for update in checkpoints.updates():
        state = checkpoints.restore(update, like).state
        assert int(state.update) == update
        params = jax.tree.map(lambda x: np.asarray(x)[None, None], state.params)
        stored = checkpoints.validation_sharpe(update)
        np.testing.assert_equal(validation_sharpe(small(), params)[0, 0], stored)
        seen.add(stored)
    assert len(seen) > 1


def test_the_run_remembers_the_best_and_so_does_the_disk(finished):
    folder, run = finished
    back = restored(OutputLayout(folder))
    assert back.update == 7
    np.testing.assert_array_equal(back.best_update, run.best_update)
    np.testing.assert_array_equal(back.best_sharpe, run.best_sharpe)
    chex.assert_trees_all_equal(back.best_params, run.best_params)
    chex.assert_trees_all_equal(bits(back.state), bits(run.state))


def test_looking_touches_nothing_on_disk(copied):
    def contents():
        files = [path for path in copied.root.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files}

    before = contents()
    back = restored(copied)
    back.close()
    assert contents() == before


def test_a_damaged_latest_falls_back_and_says_so(copied, finished, capsys):
    damage(copied.checkpoints("BBB", SEED) / "7")
    back = restored(copied, to_train=True)
    assert back.update == 6
    error = " ".join(capsys.readouterr().err.split())
    assert "falling back to update 6" in error
    assert "seed_1337/7: cannot be restored, it is damaged" in error

    train(back, 7 * STEPS_PER_UPDATE, QUIET)
    chex.assert_trees_all_equal(bits(back.state), bits(finished[1].state))
    np.testing.assert_array_equal(back.best_sharpe, finished[1].best_sharpe)


@pytest.mark.parametrize("to_train", [False, True])
def test_a_damaged_best_gives_way_to_the_next_best(finished, tmp_path, capsys, to_train):
    folder, run = finished
    old = AgentCheckpoints(OutputLayout(folder).checkpoints("BBB", SEED))
    layout = OutputLayout(tmp_path)
    checkpoints = AgentCheckpoints(layout.checkpoints("BBB", SEED))
    state = jax.tree.map(lambda x: x[0, 0], run.state)
    for update, sharpe in ((2, 5.0), (4, 1.0), (6, 0.5), (7, 0.1)):
        checkpoints.save(update, state, old.read_meta(7), sharpe)
    assert checkpoints.ranking() == [2, 4, 6, 7]
    checkpoints.close()
    damage(layout.checkpoints("BBB", SEED) / "2")

    back = restored(layout, to_train=to_train)
    assert (back.update, back.best_update[0, 0], back.best_sharpe[0, 0]) == (7, 4, 1.0)
    error = " ".join(capsys.readouterr().err.split())
    assert "taking the next best checkpoint" in error
    assert "seed_1337/2: cannot be restored" in error


def test_nothing_but_damage_is_an_error(copied):
    for path in copied.checkpoints("BBB", SEED).glob("[0-9]*"):
        damage(path)
    with pytest.raises(CheckpointError, match="no checkpoint can be restored; train anew"):
        restored(copied)


def other_features():
    dataset = market("BBB")
    names = (*dataset.feature_names[:-1], "moon_phase")
    return build_program(small().config, dataclasses.replace(dataset, feature_names=names))


def other_data():
    dataset = market("BBB")
    close = dataset.close.copy()
    close[0, 100] *= 1.0001
    return build_program(small().config, dataclasses.replace(dataset, close=close))


def own_reward(step: RewardStep) -> jax.Array:
    return step.account_after.equity


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (lambda: with_settings(small(), "network", hidden=12), "network.hidden"),
        (other_features, "feature_names[22]"),
        (other_data, "data_fingerprint"),
        (lambda: with_settings(small(), "reward", preset="log_wealth"), "reward.preset"),
        (lambda: with_settings(small(), "environment", costs="free"), "environment.costs"),
        (lambda: with_settings(small(), "ppo", learning_rate=1e-3), "ppo.learning_rate"),
        (lambda: with_settings(small(), "ppo", num_envs=4), "ppo.num_envs"),
        (lambda: with_settings(small(), "guard", threshold=0.1), "guard.threshold"),
        (
            lambda: build_program(small().config, market("BBB"), reward=own_reward),
            "reward_function",
        ),
    ],
)
@pytest.mark.parametrize("to_train", [False, True])
def test_checkpoints_of_another_run_are_refused(copied, other, key, to_train):
    before = sorted(copied.root.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        restored(copied, program=other(), to_train=to_train)
    message = str(caught.value)
    assert f"was made with {key} = " in message
    assert "and now it is" in message
    assert "--output-dir" in message
    assert sorted(copied.root.rglob("*")) == before


def test_more_steps_or_other_checkpointing_are_the_same_run(copied):
    longer = with_settings(small(), "ppo", total_timesteps=99_999)
    assert restored(copied, program=longer).update == 7
    often = with_settings(small(), "checkpoints", every=1, keep_best=5)
    assert restored(copied, program=often).update == 7


def test_without_checkpoints_the_error_says_how_to_go_on(tmp_path):
    layout = OutputLayout(tmp_path / "nowhere")
    for attempt in (
        lambda: restored(layout, to_train=True),
        lambda: restored(layout),
        lambda: stored_config(layout, "BBB", SEED),
    ):
        with pytest.raises(CheckpointError, match="no checkpoints of BBB seed 1337") as caught:
            attempt()
        assert "without --resume or --skip-training" in str(caught.value)
        assert "--output-dir" in str(caught.value)
    assert not layout.root.exists()


def test_a_seed_without_checkpoints_is_named(copied):
    with pytest.raises(CheckpointError, match="no checkpoints of BBB seed 5; there are seed_1337"):
        restore_run(small(), (SEED, 5), copied, to_train=False)
    copied.checkpoints("BBB", 5).mkdir()
    with pytest.raises(CheckpointError, match="no update has a checkpoint of every agent"):
        restore_run(small(), (SEED, 5), copied, to_train=False)


@pytest.mark.parametrize("to_train", [False, True])
def test_settings_that_are_newer_than_the_checkpoint_have_their_defaults(copied, to_train):
    """An older version that did not know `guard.max_rescues` trained it."""
    for path in copied.checkpoints("BBB", SEED).glob("[0-9]*"):
        meta, sums = path / "meta" / "metadata", path / "sha256.json"
        stored = json.loads(meta.read_text())
        for section in (stored["config"]["guard"], stored["guard"]):
            del section["max_rescues"]
        meta.write_text(json.dumps(stored))
        own = {"meta/metadata": hashlib.sha256(meta.read_bytes()).hexdigest()}
        sums.write_text(json.dumps(json.loads(sums.read_text()) | own))
    assert stored_config(copied, "BBB", SEED) == small().config
    assert restored(copied, to_train=to_train).update == 7
    with pytest.raises(CheckpointError, match=r"guard\.max_rescues = 2, and now it is 9"):
        restored(copied, program=with_settings(small(), "guard", max_rescues=9))


def test_other_versions_go_on_and_say_so(copied, monkeypatch, capsys):
    assert restored(copied, to_train=True).update == 7
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(runs, "versions", lambda: {"python": "3.99.0", "jax": "9.9", "new": "1"})
    assert restored(copied, to_train=True).update == 7
    error = " ".join(capsys.readouterr().err.split())
    assert "may not end on the same bits" in error
    assert f"jax {jax.__version__}, now 9.9" in error
    assert "new unknown, now 1" in error


def test_another_device_goes_on_and_says_so(copied, monkeypatch, capsys):
    here = jax.devices()[0].device_kind
    monkeypatch.setattr(runs, "machine", lambda: {"device": "TPU v9"})
    assert restored(copied, to_train=True).update == 7
    error = " ".join(capsys.readouterr().err.split())
    assert f"made on another device ({here}, now TPU v9): expect the run to end on other" in error
    assert "other versions" not in error


def test_the_settings_come_from_the_next_best_where_the_best_is_damaged(copied):
    folder = copied.checkpoints("BBB", SEED)
    [best, *others] = AgentCheckpoints(folder, read_only=True).ranking()
    (folder / str(best) / "meta" / "metadata").write_text("")
    assert stored_config(copied, "BBB", SEED) == small().config
    for other in others:
        (folder / str(other) / "meta" / "metadata").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint can be restored; train anew"):
        stored_config(copied, "BBB", SEED)


def test_rows_that_are_gone_from_the_tables_are_missed(copied, capsys):
    """The state is whole and training goes on, but nobody is to believe the record is."""
    path = copied.updates(SEED)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], *lines[5:]]))  # of updates 1 to 7, the third and fourth
    assert restored(copied, to_train=True).update == 7
    error = " ".join(capsys.readouterr().err.split())
    assert f"{path}: lacks 2 of the 7 updates of BBB" in error
    assert "the first of them 3;" in error
    path.unlink()
    assert restored(copied, to_train=True).update == 7
    assert "lacks 7 of the 7 updates" in " ".join(capsys.readouterr().err.split())
    path.write_text(lines[0] + lines[1].replace("BBB", "SPY"))
    with pytest.raises(CheckpointError, match="is the record of SPY and not of the run to resume"):
        restored(copied, to_train=True)


def test_episodes_that_are_gone_from_the_tables_are_missed(copied, capsys):
    """That updates are all there does not make the record complete."""
    path = copied.telemetry(SEED)
    lines = path.read_text().splitlines(keepends=True)
    recorded = len(lines) - 1
    assert recorded > 7
    for left in (recorded - 2, 0):
        path.write_text("".join(lines[: 1 + left]))
        assert restored(copied, to_train=True).update == 7
        error = " ".join(capsys.readouterr().err.split())
        assert f"{path}: lacks {recorded - left} of the {recorded} episodes of BBB" in error
        assert "the record stays incomplete unless you stop now" in error
        assert "updates.csv" not in error
    path.unlink(missing_ok=True)
    back = restored(copied, to_train=True)
    assert f"lacks {recorded} of the {recorded} episodes" in capsys.readouterr().err
    train(back, 9 * STEPS_PER_UPDATE, QUIET)  # what is lost stays lost, and is not forgotten
    back.close()
    found = path.read_text().count("\n") - 1
    assert found > 0
    assert restored(copied, to_train=True).update == 9
    error = " ".join(capsys.readouterr().err.split())
    assert f"lacks {recorded} of the {recorded + found} episodes of BBB" in error


def test_what_a_killed_process_wrote_aside_goes(copied):
    asides = [
        copied.updates(SEED).with_name(".updates.csv.77.tmp"),
        copied.policy("BBB", SEED).with_name(f".policy_seed_{SEED}.pt.77.tmp"),
    ]
    for path in asides:
        path.write_text("half")
    restored(copied)
    assert all(path.exists() for path in asides)
    restored(copied, to_train=True)
    assert not any(path.exists() for path in asides)


def test_the_settings_come_back_from_the_best_checkpoint(finished):
    config = stored_config(OutputLayout(finished[0]), "BBB", SEED)
    assert config == small().config
    assert isinstance(config, TrainingConfig)
    assert config.checkpoints == CheckpointConfig(every=2)


def test_an_interrupted_state_never_competes_for_the_best(tmp_path, monkeypatch):
    """It was saved because of the clock: whether it is good would depend on when."""
    one_update_a_call(monkeypatch)
    layout = OutputLayout(tmp_path)
    run = start_run(small(), (SEED,), 7 * STEPS_PER_UPDATE, layout)
    with pytest.raises(Interrupted):
        train(run, 7 * STEPS_PER_UPDATE, QUIET, should_stop=after_calls(3))
    run.close()
    checkpoints = AgentCheckpoints(layout.checkpoints("BBB", SEED))
    assert checkpoints.updates() == [2, 3]
    assert math.isnan(checkpoints.validation_sharpe(3))
    back = restored(layout)
    assert back.update == 3
    assert back.best_update[0, 0] == 2
