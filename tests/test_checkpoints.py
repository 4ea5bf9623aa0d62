"""Checkpoints: which are kept, that they hold what they say, and what happens to damaged ones."""

import dataclasses
import functools
import json
import math
import shutil
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
    }
    chex.assert_trees_all_equal(bits(restored.state), bits(state))
    for name in ("key", "keys"):
        assert restored.state[name].dtype == state[name].dtype == jax.random.key(0).dtype
    assert restored.state["nan"].dtype == jnp.float32
    own, back = (jax.random.uniform(key) for key in (state["key"], restored.state["key"]))
    assert own == back


def test_a_description_is_read_without_the_arrays(tmp_path):
    checkpoints = save_all(tmp_path, [1.0])
    shutil.rmtree(tmp_path / "10" / "state")
    assert checkpoints.read_meta(10)["data"] == "x"


def test_another_format_is_refused_by_its_number(tmp_path):
    checkpoints = save_all(tmp_path, [1.0])
    path = tmp_path / "10" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(CheckpointError, match="has checkpoint format 2, and this version"):
        checkpoints.restore(10, saved_state())


def test_a_difference_is_named_with_both_values():
    check_meta({"seed": 1, "more": 2}, {"seed": 1}, "here")
    with pytest.raises(CheckpointError) as caught:
        check_meta({"seed": 1}, {"seed": 2}, "folder/10")
    message = str(caught.value)
    assert "folder/10: was made with seed = 1, and now it is 2" in message
    assert "--output-dir" in message
    with pytest.raises(CheckpointError, match="was made with seed = None"):
        check_meta({}, {"seed": 2}, "here")


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
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        checkpoints.restore(20, saved_state())


def test_a_save_that_fails_says_that_earlier_ones_are_intact(tmp_path, monkeypatch):
    checkpoints = save_all(tmp_path, [1.0])

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match="update 20 could not be saved") as caught:
        checkpoints.save(20, saved_state(), {}, 1.0)
    assert "No space left" in str(caught.value)
    assert "earlier checkpoints are intact" in str(caught.value)


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "seed_1").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints"):
        AgentCheckpoints(tmp_path / "seed_1")
    assert (tmp_path / "seed_1").read_text() == "mine"


def test_leftovers_of_a_killed_save_are_no_checkpoints(tmp_path):
    save_all(tmp_path, [1.0]).close()
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp-123")
    assert AgentCheckpoints(tmp_path).updates() == [10]


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


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (lambda: with_settings(small(), "network", hidden=12), "network"),
        (other_features, "data_fingerprint"),
        (other_data, "data_fingerprint"),
        (lambda: with_settings(small(), "reward", preset="log_wealth"), "reward"),
        (lambda: with_settings(small(), "environment", costs="free"), "environment"),
        (lambda: with_settings(small(), "ppo", learning_rate=1e-3), "ppo"),
        (lambda: with_settings(small(), "guard", threshold=0.1), "guard"),
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
    with pytest.raises(CheckpointError, match="no checkpoints of BBB seed 5"):
        restore_run(small(), (SEED, 5), copied, to_train=False)
    copied.checkpoints("BBB", 5).mkdir()
    with pytest.raises(CheckpointError, match="no update has a checkpoint of every agent"):
        restore_run(small(), (SEED, 5), copied, to_train=False)


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
