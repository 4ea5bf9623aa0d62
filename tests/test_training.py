"""The host loop: what it computes depends on seed, settings and data, and on nothing else."""

import dataclasses
import io
import math
import os
import shutil
import signal
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pandas as pd
import pytest
from learners import bits
from rich.console import Console
from small_runs import (
    CONFIG,
    QUIET,
    SEEDS,
    STEPS_PER_UPDATE,
    UPDATES,
    after_calls,
    market,
    one_update_a_call,
    program,
    trained,
    with_settings,
)

import jaxtrader.program as programs
from agents.learner import HALT_REASONS, HALTED_NON_FINITE, RUNNING, Learner
from jaxtrader import training
from jaxtrader.checkpoints import AgentCheckpoints
from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.outputs import OutputLayout
from jaxtrader.program import build_program, hyperparameters, ppo_shape, updates_for
from jaxtrader.recording import record_updates
from jaxtrader.runs import restore_run, start_run
from jaxtrader.training import Interrupted, cleared_gates, train

TOTAL = UPDATES * STEPS_PER_UPDATE


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Two symbols, three seeds, never interrupted; and its files."""
    folder = tmp_path_factory.mktemp("straight")
    run = trained(program(), folder=folder)
    return SimpleNamespace(run=run, folder=folder)


def tables(folder):
    """Every table of a run by its path, as bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.csv")}


def agent(run, s, k):
    """The state of one agent, or of several, in NumPy."""
    return jax.tree.map(lambda x: x[s, k], bits(run.state))


def assert_same_run(run, other):
    """Everything that a run has come to, bit for bit."""
    assert run.update == other.update
    chex.assert_trees_all_equal(bits(run.state), bits(other.state))
    chex.assert_trees_all_equal(run.best_params, other.best_params)
    np.testing.assert_array_equal(run.best_update, other.best_update)
    np.testing.assert_array_equal(run.best_sharpe, other.best_sharpe)
    pd.testing.assert_frame_equal(run.updates_table(), other.updates_table())
    pd.testing.assert_frame_equal(run.episodes_table(), other.episodes_table())


# ------------------------------------------------------------------------- the record of a run


def test_tables_hold_every_update_and_episode(straight):
    run = straight.run
    updates, episodes = run.updates_table(), run.episodes_table()
    assert len(updates) == 2 * 3 * UPDATES
    per_agent = updates.groupby(["symbol", "seed"])["update"].apply(list)
    assert set(per_agent.index) == {(symbol, seed) for symbol in ("AAA", "BBB") for seed in SEEDS}
    assert all(numbers == list(range(1, UPDATES + 1)) for numbers in per_agent)
    assert (updates["steps"] == updates["update"] * STEPS_PER_UPDATE).all()
    # Two environments whose episodes of 64 steps end in every rollout of 64 steps, the first ones
    # of the second environment earlier.
    counted = episodes.groupby(["symbol", "seed", "update"]).size()
    assert counted.min() >= 2
    assert (episodes["steps_done"] == episodes["update"] * STEPS_PER_UPDATE).all()
    assert episodes["steps"].between(1, 64).all()
    losses = ["policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm"]
    assert np.isfinite(updates[losses]).all(axis=None)
    assert (updates["grad_norm"] > 0).all()


def test_validation_every_second_update_and_at_the_end(straight):
    updates = straight.run.updates_table()
    validated = updates[updates["validation_sharpe"].notna()]
    assert set(validated["update"]) <= {2, 4, 6, 7}
    assert set(straight.run.best_update.ravel()) <= {2, 4, 6, 7}
    best = validated.groupby(["symbol", "seed"])["validation_sharpe"].max()
    for s, k, symbol, seed in straight.run.agents:
        assert straight.run.best_sharpe[s, k] == best[symbol, seed]


def test_total_steps_are_rounded_up_to_whole_updates():
    assert ppo_shape(CONFIG).steps_per_update == STEPS_PER_UPDATE
    assert [updates_for(CONFIG, steps) for steps in (1, 127, 128, 129, 896)] == [1, 1, 1, 2, 7]
    run = start_run(program("BBB"), (1337,), 1, None)
    train(run, 129, QUIET)
    assert (run.update, run.steps) == (2, 256)


def test_minibatches_that_do_not_cover_the_rollout_are_refused():
    with pytest.raises(ConfigError, match="is not a multiple of batch_size = 96"):
        with_settings(program(), "ppo", batch_size=96)


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,), (2**32,)])
def test_seeds_that_cannot_be_told_apart_are_refused(tmp_path, seeds):
    with pytest.raises(ConfigError, match="give different integers"):
        start_run(program("BBB"), seeds, TOTAL, OutputLayout(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- same seed, same bits


def test_the_same_seeds_give_the_same_bits_whatever_the_chunks(straight, monkeypatch, tmp_path):
    """Here one update a call; in the fixture as many as fit before a checkpoint."""
    one_update_a_call(monkeypatch)
    run = trained(program(), folder=tmp_path)
    assert_same_run(run, straight.run)
    assert tables(tmp_path) == tables(straight.folder)


def shorter():
    """The shorter of the two symbols, without the other."""
    return dataclasses.replace(market("BBB"), scaler=market().scaler)


def test_a_seed_alone_equals_the_same_seed_among_three(straight):
    """To the bit: on a CPU the agents of one program follow each other.

    It also is the shorter of two symbols, padded on the right to the length of the longer. (One
    scaler serves all symbols of a dataset, so the symbol alone is given the scaler of both.)
    """
    alone = build_program(CONFIG, shorter())
    padded = program().params["train"].market.close.shape[-1]
    assert alone.params["train"].market.close.shape[-1] < padded

    run = trained(alone, (1337,))
    s, k = 1, SEEDS.index(1337)
    chex.assert_trees_all_equal(agent(run, 0, 0), agent(straight.run, s, k))
    assert run.best_sharpe[0, 0] == straight.run.best_sharpe[s, k]
    for table, among in (
        (run.updates_table(), straight.run.updates_table()),
        (run.episodes_table(), straight.run.episodes_table()),
    ):
        own = among[(among["symbol"] == "BBB") & (among["seed"] == 1337)]
        pd.testing.assert_frame_equal(table, own.reset_index(drop=True))


def test_agents_of_different_seeds_and_symbols_differ(straight):
    kernels = straight.run.state.params["heads"]["actor"]["kernel"]
    flat = np.asarray(kernels).reshape(6, -1)
    assert len({row.tobytes() for row in flat}) == 6


@pytest.mark.slow
def test_abreast_equals_one_after_the_other_to_rounding(straight):
    """`vmap` multiplies matrices in other pieces.

    Parameters of order 1 have moved by some 5e-3 in 28 steps of Adam. Measured differences are
    6e-8 to a few 1e-6: Adam divides gradients by their own size, which makes the rounding of the
    smallest ones count. A seed alone and among three, both with `vmap`, are as far apart.
    """
    vectorized = build_program(CONFIG, shorter(), vectorize=True)
    # To the checker of jax 0.10.2 a transposed key is a used one, and `vmap` transposes the keys
    # that a scan walks over. One agent's program, the same one, is checked everywhere else.
    with jax.debug_key_reuse(False):
        run = trained(vectorized)
    own, other = agent(run, 0, slice(None)), agent(straight.run, 1, slice(None))
    chex.assert_trees_all_close(own.params, other.params, rtol=0, atol=2e-5)
    chex.assert_trees_all_equal(own.key, other.key)
    chex.assert_trees_all_equal(
        own.walkers.diary.statistics.executed_counts,
        other.walkers.diary.statistics.executed_counts,
    )
    one, two = (
        each.updates_table().query("symbol == 'BBB'").sort_values(["seed", "update"])
        for each in (run, straight.run)
    )
    for column in ("policy_loss", "value_loss", "entropy", "grad_norm", "reward_mean"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------- interruptions


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One symbol and one seed, never interrupted."""
    folder = tmp_path_factory.mktemp("single")
    return SimpleNamespace(run=trained(program("BBB"), (1337,), folder=folder), folder=folder)


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_interrupted_and_resumed_equals_uninterrupted(single, tmp_path, monkeypatch, stop_after):
    """Before the first checkpoint, between two, and at one."""
    one_update_a_call(monkeypatch)
    layout = OutputLayout(tmp_path)
    run = start_run(program("BBB"), (1337,), TOTAL, layout)
    with pytest.raises(Interrupted, match=f"after update {stop_after} of 7; the state is saved"):
        train(run, TOTAL, QUIET, should_stop=after_calls(stop_after))
    run.close()

    resumed = restore_run(program("BBB"), (1337,), layout, to_train=True)
    assert resumed.update == stop_after
    train(resumed, TOTAL, QUIET)
    assert_same_run(resumed, single.run)
    assert tables(tmp_path) == tables(single.folder)


def test_twice_interrupted(single, tmp_path, monkeypatch):
    one_update_a_call(monkeypatch)
    layout = OutputLayout(tmp_path)
    run = start_run(program("BBB"), (1337,), TOTAL, layout)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(run, TOTAL, QUIET, should_stop=after_calls(3))
        run.close()
        run = restore_run(program("BBB"), (1337,), layout, to_train=True)
    assert run.update == 6
    train(run, TOTAL, QUIET)
    assert_same_run(run, single.run)
    assert tables(tmp_path) == tables(single.folder)


def test_killed_between_two_agents_checkpoints(straight, tmp_path, monkeypatch):
    """Of two symbols and three seeds; tables and some agents are ahead of the others."""

    class Killed(BaseException):
        pass

    save, saved = AgentCheckpoints.save, []

    def killed_at_the_ninth(self, *arguments):
        saved.append(self.folder)
        if len(saved) == 6 + 3:  # six agents at update 2, then two at update 4
            raise Killed
        save(self, *arguments)

    monkeypatch.setattr(AgentCheckpoints, "save", killed_at_the_ninth)
    run = start_run(program(), SEEDS, TOTAL, OutputLayout(tmp_path))
    with pytest.raises(Killed):
        train(run, TOTAL, QUIET)
    run.close()
    for path in tmp_path.rglob("updates.csv"):  # and the kill has cut a line short
        path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.undo()

    resumed = restore_run(program(), SEEDS, OutputLayout(tmp_path), to_train=True)
    assert resumed.update == 2
    train(resumed, TOTAL, QUIET)
    assert_same_run(resumed, straight.run)
    assert tables(tmp_path) == tables(straight.folder)


@pytest.mark.parametrize("saved", [0, 1, 5, 6])
def test_killed_in_the_first_round_of_checkpoints(straight, tmp_path, monkeypatch, capsys, saved):
    """Until all six agents have one, the update that all have in common is the beginning."""

    class Killed(BaseException):
        pass

    save, calls = AgentCheckpoints.save, []

    def killed(self, *arguments):
        calls.append(self)
        if len(calls) == saved + 1:
            raise Killed
        save(self, *arguments)

    monkeypatch.setattr(AgentCheckpoints, "save", killed)
    run = start_run(program(), SEEDS, TOTAL, OutputLayout(tmp_path))
    with pytest.raises(Killed):
        train(run, TOTAL, QUIET)
    run.close()
    monkeypatch.undo()

    resumed = restore_run(program(), SEEDS, OutputLayout(tmp_path), to_train=True)
    said = " ".join(capsys.readouterr().err.split())
    assert ("starting from the beginning" in said) == (saved < 6)
    assert resumed.update == (0 if saved < 6 else 2)
    train(resumed, TOTAL, QUIET)
    resumed.close()
    assert_same_run(resumed, straight.run)
    now = {name: table for name, table in tables(tmp_path).items() if ".until-" not in name}
    assert now == tables(straight.folder)


def test_one_process_trains_a_seed_in_a_folder(tmp_path):
    """Another is refused before it has touched anything; looking on is permitted."""
    layout = OutputLayout(tmp_path)
    run = start_run(program("BBB"), (1337, 5), TOTAL, layout)
    train(run, 2 * STEPS_PER_UPDATE, QUIET)
    before = sorted(tmp_path.rglob("*"))
    for attempt in (
        lambda: start_run(program("BBB"), (5, 7), TOTAL, layout),
        lambda: start_run(program("AAA"), (5,), TOTAL, layout),  # into the same tables
        lambda: restore_run(program("BBB"), (1337, 5), layout, to_train=True),
    ):
        with pytest.raises(JaxtraderError, match=r"another process trains seed (5|1337) there"):
            attempt()
        assert sorted(tmp_path.rglob("*")) == before
    start_run(program("BBB"), (7,), TOTAL, layout).close()

    looking = restore_run(program("BBB"), (1337, 5), layout, to_train=False)
    assert looking.update == 2
    looking.close()
    train(run, TOTAL, QUIET)
    run.close()
    again = restore_run(program("BBB"), (1337, 5), layout, to_train=True)
    assert again.update == UPDATES
    again.close()


def test_control_c_ends_the_call_under_way_and_saves(tmp_path):
    """The real signal, in the middle of a call; the handler from before is back afterwards."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        return False

    run = start_run(program("BBB"), (1337,), TOTAL, OutputLayout(tmp_path))
    with pytest.raises(Interrupted, match=r"--resume, or in Python .*resume=True") as caught:
        train(run, TOTAL, QUIET, should_stop=interrupt)
    assert caught.value.run is run
    assert signal.getsignal(signal.SIGINT) is before
    run.close()
    restored = restore_run(program("BBB"), (1337,), OutputLayout(tmp_path), to_train=False)
    assert restored.update == run.update


def test_an_interruption_in_memory_says_that_nothing_is_saved(single):
    """Nor does it name an option that could not bring anything back; but the run is there."""
    run = start_run(program("BBB"), (1337,), TOTAL, None)
    with pytest.raises(
        Interrupted, match=r"of 7; nothing is saved, .* the `run` of this"
    ) as caught:
        train(run, TOTAL, QUIET, should_stop=after_calls(1))
    assert "resume" not in str(caught.value)
    assert caught.value.run is not None
    train(caught.value.run, TOTAL, QUIET)
    assert_same_run(caught.value.run, single.run)


def test_a_new_run_moves_the_old_one_aside(tmp_path):
    layout = OutputLayout(tmp_path)
    small = program("BBB")
    trained(small, (1337,), updates=2, folder=tmp_path).close()
    old = tables(tmp_path)
    layout.policy("BBB", 1337).write_text("a policy")

    start_run(small, (1337,), TOTAL, layout).close()
    assert not layout.updates(1337).exists()
    kept = {path.name: path for path in tmp_path.rglob("*.until-*")}
    assert {name.split(".until-")[0] for name in kept} == {
        "1337",
        "seed_1337",
        "policy_seed_1337.pt",
    }
    assert sorted(tables(tmp_path).values()) == sorted(old.values())
    [folder] = [path for name, path in kept.items() if name.startswith("seed_1337")]
    assert (folder / "2" / "state").is_dir()


def test_compile_time_is_counted_once(tmp_path, monkeypatch):
    """A run that is extended has two training loops and one compilation."""
    clock = iter(np.cumsum([0.0, 31.0] + [0.0, 1.0] * 20))  # the first call takes 31 s, others 1
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(clock)))
    one_update_a_call(monkeypatch)
    run = start_run(program("BBB"), (1337,), TOTAL, None)
    train(run, 3 * STEPS_PER_UPDATE, QUIET)
    assert run.compile_seconds == pytest.approx(30.0)
    assert run.train_seconds == pytest.approx(2.0)
    assert run.steps_per_second == pytest.approx(STEPS_PER_UPDATE)
    train(run, 5 * STEPS_PER_UPDATE, QUIET)
    assert run.compile_seconds == pytest.approx(30.0)
    assert run.train_seconds == pytest.approx(4.0)


# --------------------------------------------------------------------------------- compilation


def test_one_trace_serves_a_whole_run_and_every_hyperparameter(straight, monkeypatch):
    """However many updates a call does, and whichever leaf of the hyperparameters changes."""
    traced = []
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda *a: traced.append(1) or update(*a))
    for section, changes in (
        ("ppo", {"learning_rate": 1e-3, "gamma": 0.9, "clip_ratio": 0.1, "target_kl": 0.01}),
        ("ppo", {"entropy_coef": 0.1, "final_entropy_coef": 0.0, "entropy_hold": 0.2}),
        ("guard", {"enabled": False}),
        ("environment", {"costs": "stage5", "stop_loss": 0.03, "lot_size": 1.0}),
        ("reward", {"preset": "log_wealth"}),
        ("checkpoints", {"every": 3}),
    ):
        changed = with_settings(program(), section, **changes)
        run = trained(changed, updates=4)  # calls of 1 and of more updates
        assert run.update == 4
    assert traced == []


def test_an_update_is_traced_once(monkeypatch):
    """For the shapes of its metrics and for the loop over updates."""
    traced = []
    update = Learner.update
    monkeypatch.setattr(Learner, "update", lambda *a: traced.append(1) or update(*a))
    with_settings(program("BBB"), "network", hidden=17).lower_updates(1)
    assert traced == [1]


def test_episodes_are_those_of_the_environments_that_are_watched():
    """One of each of two groups of two: environments 0 and 2."""
    grouped = with_settings(program("BBB"), "ppo", num_envs=4, env_shards=2)
    learner = dataclasses.replace(grouped.learner, telemetry_envs=2)
    agent = jax.tree.map(lambda x: x[0], grouped.params["train"])
    hyper = hyperparameters(grouped.config, 1)
    state = jax.eval_shape(learner.init, jax.random.key(0), agent, hyper)
    shapes = jax.eval_shape(learner.update, state, agent, hyper)[1]
    metrics = jax.tree.map(lambda x: np.ones((1, 1, 3, *x.shape), x.dtype), shapes)
    kept = []
    run = SimpleNamespace(
        program=dataclasses.replace(grouped, learner=learner),
        seeds=(5,),
        state=SimpleNamespace(halt=np.zeros((1, 1), int), halted_at=np.zeros((1, 1), int)),
        recorded_episodes=np.zeros((1, 1), int),
        journal=SimpleNamespace(append=lambda seed, updates, episodes: kept.append(episodes)),
    )
    record_updates(run, metrics, first_update=1, n=2, sharpe=None)
    blocks = learner.shape.num_blocks
    assert kept[0]["env"].tolist() == [0, 2] * blocks * 2


def test_a_resumed_run_is_the_same_program(single, tmp_path):
    """Restored arrays must not differ from new ones in what the compiler looks at."""
    shutil.copytree(single.folder, tmp_path / "run")
    compiled = programs._run_updates._cache_size()
    run = restore_run(program("BBB"), (1337,), OutputLayout(tmp_path / "run"), to_train=True)
    train(run, TOTAL + STEPS_PER_UPDATE, QUIET)
    assert run.update == UPDATES + 1
    assert programs._run_updates._cache_size() == compiled


def test_a_changed_coefficient_changes_the_result(straight):
    changed = trained(with_settings(program(), "ppo", learning_rate=1e-3), updates=1)
    one = np.asarray(changed.state.params["heads"]["actor"]["kernel"])
    assert not np.array_equal(one, straight.run.state.params["heads"]["actor"]["kernel"])


# ----------------------------------------------------------------------------------- halted agents


@pytest.fixture(scope="module")
def poisoned():
    """BBB's training bars hold a NaN in every row."""
    dataset = market()
    features = dataset.raw_features.copy()
    first, last = dataset.splits["train"]
    features[1, first[1] : last[1] + 1, 4] = np.nan
    return trained(build_program(CONFIG, dataclasses.replace(dataset, raw_features=features)))


def test_a_nan_halts_its_own_agents_with_reason_and_update(poisoned):
    halted = poisoned.halted()
    assert set(halted) == {f"BBB seed {seed}" for seed in SEEDS}
    reason = HALT_REASONS[HALTED_NON_FINITE]
    assert set(halted.values()) == {f"halted at update 1: {reason}"}


def test_the_other_agents_do_not_notice(poisoned, straight):
    chex.assert_trees_all_equal(
        agent(poisoned, 0, slice(None)), agent(straight.run, 0, slice(None))
    )
    for table, clean in (
        (poisoned.updates_table(), straight.run.updates_table()),
        (poisoned.episodes_table(), straight.run.episodes_table()),
    ):
        own, expected = (t[t["symbol"] == "AAA"].reset_index(drop=True) for t in (table, clean))
        pd.testing.assert_frame_equal(own, expected)


def test_a_halted_agent_keeps_its_parameters_and_adds_no_rows(poisoned, straight):
    params = np.asarray(poisoned.state.params["heads"]["actor"]["kernel"])
    assert np.isfinite(params).all()
    updates, episodes = poisoned.updates_table(), poisoned.episodes_table()
    assert updates.loc[updates["symbol"] == "BBB", "update"].tolist() == [1, 1, 1]
    assert (updates.loc[updates["symbol"] == "BBB", "halt"] == HALTED_NON_FINITE).all()
    assert (updates.loc[updates["symbol"] == "AAA", "halt"] == RUNNING).all()
    assert set(episodes.loc[episodes["symbol"] == "BBB", "update"]) <= {1}


def broken_run(folder, bad_update, symbols=("BBB",)):
    """One seed; BBB's bars turn bad before an update. And what its training said."""
    clean = program(*symbols)
    own = dataclasses.replace(clean, params=dict(clean.params))
    run, calls = start_run(own, (1337,), TOTAL, OutputLayout(folder)), []

    def spoil():
        calls.append(1)
        if len(calls) == bad_update - 1:
            params = own.params["train"]
            features = params.market.features.at[-1].set(np.nan)  # of BBB, the last symbol
            market = params.market.replace(features=features)
            own.params["train"] = params.replace(market=market)
        return False

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        one_update_a_call(patch)
        train(run, TOTAL, Console(file=said, width=200), should_stop=spoil)
    run.close()
    return SimpleNamespace(run=run, folder=folder, said=said.getvalue())


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return broken_run(tmp_path_factory.mktemp("broken"), bad_update=6)


def test_a_loss_that_is_not_finite_stops_the_seed_and_says_when(broken):
    reason = f"halted at update 6: {HALT_REASONS[HALTED_NON_FINITE]}"
    assert broken.run.halted() == {"seed 1337": reason}
    assert broken.said.count(f"seed 1337 {reason}; its last good state is kept") == 1
    assert broken.run.updates_table()["update"].tolist() == [1, 2, 3, 4, 5, 6]


def test_training_ends_once_every_agent_has_halted(broken):
    """At the next checkpoint; here the update that broke it was the last before one."""
    assert broken.run.update == 6 < UPDATES
    assert f"every agent has halted: trained to update 6 of {UPDATES}" in broken.said


def test_the_last_good_state_is_kept_and_used(broken, single, tmp_path):
    """What update 5 left is what the checkpoint of 6 holds, and what is evaluated."""
    run = broken.run
    assert run.best_update[0, 0] in (2, 4, 6)
    for leaf in jax.tree.leaves((run.state.params, run.state.opt_state, run.best_params)):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()
    shutil.copytree(broken.folder, tmp_path / "run")
    layout = OutputLayout(tmp_path / "run")
    for to_train in (False, True):
        back = restore_run(program("BBB"), (1337,), layout, to_train=to_train)
        assert back.update == 6
        assert back.halted() == run.halted()
        chex.assert_trees_all_equal(bits(back.state), bits(run.state))
        chex.assert_trees_all_equal(back.best_params, run.best_params)
        np.testing.assert_array_equal(back.best_update, run.best_update)
        np.testing.assert_array_equal(back.best_sharpe, run.best_sharpe)
        back.close()
    # The checkpoint of update 4, from before, is that of the run that nothing happened to.
    checkpoints = AgentCheckpoints(layout.checkpoints("BBB", 1337), read_only=True)
    like = jax.tree.map(lambda x: x[0, 0], run.state)
    clean = AgentCheckpoints(OutputLayout(single.folder).checkpoints("BBB", 1337), read_only=True)
    for update in set(checkpoints.updates()) & set(clean.updates()) & {2, 4}:
        one, two = (each.restore(update, like).state for each in (checkpoints, clean))
        chex.assert_trees_all_equal(bits(one), bits(two))
    halted = checkpoints.restore(6, like).state
    assert (int(halted.update), int(halted.halted_at)) == (5, 6)


def test_a_halted_agent_has_one_best_however_often_it_is_resumed(tmp_path, monkeypatch):
    """Later checkpoints hold the same parameters again, and do not compete; here none is better,
    for an agent that never trades has no Sharpe ratio."""
    undefined = lambda program, params: np.full((2, 1), np.nan)  # noqa: E731
    monkeypatch.setattr(training, "validation_sharpe", undefined)
    both = ("AAA", "BBB")
    run = broken_run(tmp_path, bad_update=3, symbols=both).run
    assert run.best_update.tolist() == [[7], [4]]  # BBB's was first validated after its halt
    for extra in (0, 2, 4):
        back = restore_run(program(*both), (1337,), OutputLayout(tmp_path), to_train=True)
        assert back.best_update[1] == 4
        train(back, TOTAL + extra * STEPS_PER_UPDATE, QUIET)
        assert back.best_update.tolist() == [[UPDATES + extra], [4]]
        back.close()


# ------------------------------------------------------------------------- whether to go on


def run_with_episodes(episodes):
    """As much of a run as `cleared_gates` looks at; one seed, one symbol."""
    table = pd.DataFrame(episodes)
    dataset = SimpleNamespace(symbols=("SPY",))
    return SimpleNamespace(
        program=SimpleNamespace(dataset=dataset),
        agents=[(0, 0, "SPY", 42)],
        journal=SimpleNamespace(episodes={42: SimpleNamespace(table=table)}),
    )


def episode(steps_done, entropy, voluntary, symbol="SPY"):
    from jaxtrader.telemetry import EPISODE_MEANS

    row = dict.fromkeys(EPISODE_MEANS.values(), 0.0)
    row |= {"policy_action_entropy": entropy, "voluntary_trade_rate": voluntary}
    return {"symbol": symbol, "steps_done": steps_done, **row}


@pytest.mark.parametrize(
    ("episodes", "cleared"),
    [
        ([episode(700, 0.21, 0.2), episode(800, 0.21, 0.0)], True),  # means 0.21 and 0.10
        ([episode(700, 0.19, 0.2), episode(800, 0.20, 0.2)], False),  # mean entropy 0.195
        ([episode(700, 0.30, 0.1), episode(800, 0.30, 0.08)], False),  # mean voluntary 0.09
        # Only the fifth of the run before 80 % counts.
        ([episode(600, 1.0, 1.0), episode(700, 0.0, 0.0), episode(900, 1.0, 1.0)], False),
        ([episode(600, 0.0, 0.0), episode(700, 1.0, 1.0), episode(801, 0.0, 0.0)], True),
        ([episode(700, 1.0, 1.0, symbol="QQQ")], False),
        ([], False),
    ],
)
def test_gates_cleared_by_eighty_percent(episodes, cleared):
    assert cleared_gates(run_with_episodes(episodes), 1000) == {"seed 42": cleared}


# ---------------------------------------------------------------------------------------- errors


def test_a_full_disk_ends_training_with_an_error_of_the_family(tmp_path, monkeypatch):
    from pathlib import Path

    run = start_run(program("BBB"), (1337,), TOTAL, OutputLayout(tmp_path))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(JaxtraderError, match="No space left"):
        train(run, TOTAL, QUIET)
    assert math.isnan(run.steps_per_second)
