"""The Python API and what an import may cost. The README's example runs in test_docs.py."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pandas as pd
import pytest
from learners import bits
from small_runs import (
    CONFIG,
    QUIET,
    SEEDS,
    STEPS_PER_UPDATE,
    after_calls,
    market,
    one_update_a_call,
)

import jaxtrader as jt
from envs import RewardStep
from jaxtrader import api, training
from jaxtrader.config import EnvironmentConfig
from jaxtrader.errors import CheckpointError, ConfigError, DataError
from jaxtrader.training import Interrupted

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *path: Path, cwd: Path) -> subprocess.CompletedProcess:
    """Runs code in a fresh Python that finds packages in `path`, then in the checkout."""
    found = os.pathsep.join(map(str, (*path, ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": found, "JAX_PLATFORMS": "cpu", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


# -------------------------------------------------------------------------------- small steps


@pytest.fixture(scope="module")
def run():
    return jt.train(market(), SEEDS, CONFIG, total_timesteps=200, quiet=True)


def test_the_names_are_there_and_no_others():
    for name in jt.__all__:
        assert getattr(jt, name) is getattr(jt, name)
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        jt.evaluat  # noqa: B018
    assert set(jt.__all__) <= set(jt._HOMES)


def test_markets_follow_their_config():
    dataset = jt.synthetic_market(("AAA",), CONFIG)
    assert dataset.fingerprint == jt.synthetic_market(("AAA",), CONFIG).fingerprint
    assert dataset.symbols == ("AAA",)
    assert dataset.receptive_field == CONFIG.network.receptive_field
    assert dataset.n_bars.tolist() == [CONFIG.data.synthetic_sessions * 7]
    assert dataset.provenance["kind"] == "synthetic"
    with pytest.raises(DataError, match="nowhere"):
        jt.load_market("nowhere")


def test_training(run):
    assert run.update == 2  # 200 steps are two updates of 128
    assert run.seeds == SEEDS
    assert len(run.updates_table()) == 12
    assert len(run.episodes_table()) >= 12


def test_evaluations_come_by_symbol_then_seed(run):
    evaluations = jt.evaluate(run)
    found = [(e.symbol, e.seed) for e in evaluations]
    assert found == [(symbol, seed) for symbol in ("AAA", "BBB") for seed in SEEDS]
    for evaluation in evaluations:
        assert evaluation.split == "test"
        assert evaluation.equity.iloc[0] == 100_000.0
        assert len(evaluation.episodes) == CONFIG.evaluation.episodes


def test_a_config_that_does_not_fit_the_market_is_refused():
    with pytest.raises(ConfigError, match="receptive field of 8 bars, and the network's dilations"):
        jt.train(market("BBB"), config=jt.TrainingConfig(), quiet=True)
    with pytest.raises(ConfigError, match="give different integers"):
        jt.train(market("BBB"), seeds=(1, 1), config=CONFIG, quiet=True)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: jt.load_market("DIR", "SPY"), r"symbols = 'SPY': give a list, \['SPY'\]"),
        (lambda: jt.synthetic_market("SYNTH"), r"symbols = 'SYNTH': give a list, \['SYNTH'\]"),
        (lambda: jt.train(market(), seeds=42), r"seeds = 42: give a list, \[42\]"),
        (lambda: jt.train(market(), config="a.yaml"), r"config = 'a\.yaml': .*load_config reads"),
        (lambda: jt.train(market(), reward="log_wealth"), r"give a function; .*reward\.preset"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_kind_it_should_be(call, says):
    with pytest.raises(ConfigError, match=says):
        call()


@pytest.mark.parametrize(
    ("choice", "agents"),
    [({}, 6), ({"seed": 1337}, 2), ({"symbol": "AAA"}, 3), ({"symbol": "SPY", "seed": 5}, 0)],
)
def test_an_ambiguous_export_names_the_agents(run, tmp_path, choice, agents):
    with pytest.raises(ConfigError, match=f"names {agents} agents of: AAA seed 1337") as caught:
        jt.export_policy(run, tmp_path / "policy.pt", **choice)
    assert "BBB seed 7" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_exported_agent_loads_where_there_is_no_jax(run, tmp_path):
    path = tmp_path / "policy.pt"
    exported = jt.export_policy(run, path, symbol="BBB", seed=5)
    assert exported.parity.passed
    assert exported.manifest.metadata["symbol"] == "BBB"
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("jax", "jaxlib", "flax", "pandas", "yaml")))
import jaxtrader as jt
policy = jt.load_policy({str(path)!r})
print(policy.metadata["symbol"], policy.metadata["receptive_field"])
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BBB", "8"]


@pytest.mark.parametrize(("split", "nearest"), [("tset", "test"), ("valid", "validation")])
def test_an_unknown_split_is_an_error_that_names_the_nearest(run, tmp_path, split, nearest):
    for attempt in (
        lambda: jt.evaluate(run, split),
        lambda: jt.export_policy(run, tmp_path / "policy.pt", symbol="AAA", seed=5, split=split),
    ):
        with pytest.raises(ConfigError, match=f"split = '{split}': did you mean '{nearest}'") as c:
            attempt()
        assert "train, validation, test" in str(c.value)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------- interruptions


SETTINGS = {"seeds": (1337,), "config": CONFIG, "total_timesteps": 4 * STEPS_PER_UPDATE}


def interrupted(monkeypatch, calls, **settings):
    """`jaxtrader.train`, and Ctrl-C after so many calls of the program; what it raised."""
    with monkeypatch.context() as patch:
        one_update_a_call(patch)
        stopped = functools.partial(training.train, should_stop=after_calls(calls))
        patch.setattr(api, "train_run", stopped)
        with pytest.raises(Interrupted) as caught:
            jt.train(market("BBB"), **SETTINGS, **settings, quiet=True)
    return caught.value


def likes_cash(step: RewardStep) -> jax.Array:
    return step.account_after.cash


@pytest.mark.parametrize("reward", [None, pytest.param(likes_cash, marks=pytest.mark.slow)])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, reward):
    message = str(interrupted(monkeypatch, 3, reward=reward, output_dir=tmp_path))
    assert "after update 3 of 4; the state is saved" in message
    assert "jaxtrader.train(..., resume=True)" in message

    again = {**SETTINGS, "reward": reward, "quiet": True}
    resumed = jt.train(market("BBB"), **again, output_dir=tmp_path, resume=True)
    assert not list(tmp_path.rglob("*.until-*"))
    straight = jt.train(market("BBB"), **again)
    chex.assert_trees_all_equal(bits(resumed.state), bits(straight.state))
    chex.assert_trees_all_equal(resumed.best_params, straight.best_params)
    pd.testing.assert_frame_equal(resumed.updates_table(), straight.updates_table())
    pd.testing.assert_frame_equal(resumed.episodes_table(), straight.episodes_table())
    [record] = (json.loads(path.read_text()) for path in tmp_path.rglob("run.json"))
    assert (record["sessions"], record["status"]) == (2, "finished")


def test_what_cannot_be_resumed_says_why_and_lets_go_of_the_folder(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="resume=True needs output_dir"):
        jt.train(market("BBB"), **SETTINGS, resume=True, quiet=True)
    go_on = functools.partial(jt.train, market("BBB"), output_dir=tmp_path, resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="no checkpoints of BBB seed 1337"):
        go_on(**SETTINGS)
    interrupted(monkeypatch, 2, output_dir=tmp_path)
    costly = dataclasses.replace(CONFIG, environment=EnvironmentConfig(episode_length=32))
    # The exception is kept, as a notebook does, and with it all that its frames hold.
    with pytest.raises(CheckpointError, match=r"environment\.episode_length = 64") as kept:
        go_on(**{**SETTINGS, "config": costly})
    assert go_on(**SETTINGS).update == 4
    del kept


def test_without_a_folder_the_interrupted_run_is_in_the_exception(monkeypatch):
    early = interrupted(monkeypatch, 1)
    assert "nothing is saved" in str(early)
    assert "resume" not in str(early)
    with pytest.raises(CheckpointError, match="interrupted after update 1, before the first val"):
        jt.evaluate(early.run)
    late = interrupted(monkeypatch, 2)
    assert late.run.updates_table()["update"].tolist() == [1, 2]
    [evaluation] = jt.evaluate(late.run)
    training.train(late.run, SETTINGS["total_timesteps"], QUIET)
    straight = jt.train(market("BBB"), **SETTINGS, quiet=True)
    chex.assert_trees_all_equal(bits(late.run.state), bits(straight.state))
    assert np.isfinite(evaluation.equity).all()


# ---------------------------------------------------------------------------------- importing


HEAVY = ("jax", "torch", "flax", "orbax", "pandas", "matplotlib", "mlflow", "gymnax")


def test_importing_jaxtrader_imports_nothing_heavy(tmp_path):
    code = f"import jaxtrader, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_training_needs_no_torch(tmp_path):
    """Only an export does, and says how to get it."""
    code = """
import sys
sys.modules["torch"] = None
import jaxtrader as jt, experiments.stage5
assert callable(jt.train) and callable(jt.export_policy)
try:
    jt.load_policy("policy.pt")
except jt.JaxtraderError as error:
    print(error)
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pip install -e '.[export]'" in done.stdout


@pytest.mark.parametrize("name", ["envs", "agents"])
def test_another_package_of_a_siblings_name_is_an_error_that_names_it(tmp_path, name):
    other = tmp_path / name
    other.mkdir()
    (other / "__init__.py").write_text("")
    done = python("import jaxtrader", tmp_path, cwd=ROOT.parent)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: jaxtrader needs its own package {name!r}")
    assert str(other / "__init__.py") in message
    assert "rename or move that one" in message


def test_a_folder_of_a_siblings_name_without_code_does_no_harm(tmp_path):
    (tmp_path / "agents").mkdir()  # say, of agents' notes: a namespace package at most
    done = python("import jaxtrader; print('fine')", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
