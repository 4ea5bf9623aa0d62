"""Training with MLflow beside it: what a run says of itself, and what survives servers that die."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mlflow_runs import (
    MEANS,
    NAME,
    PARENT,
    POLICY,
    REPORT,
    ROOT,
    RUNNING,
    STEPS,
    Seen,
    Server,
    check_tables,
    command,
    describe,
    eventually,
    ignores_mlflows_warning,
    run_command,
    sqlite,
    write_rows,
    write_run,
)
from rich.console import Console
from small_runs import CONFIG, market

from jaxtrader import training
from jaxtrader.cli import main
from jaxtrader.errors import ConfigError, JaxtraderError, TrackingError
from jaxtrader.outputs import OutputLayout
from jaxtrader.tracking import session as sessions
from jaxtrader.tracking import store as stores
from jaxtrader.tracking.follow import follow
from jaxtrader.tracking.record import read_record, run_names, trained_together
from jaxtrader.tracking.session import recorded
from jaxtrader.tracking.upload import upload_once
from jaxtrader.training import Interrupted

pytestmark = [pytest.mark.usefixtures("mlflow_environment"), ignores_mlflows_warning]


@pytest.fixture(autouse=True)
def hand_written_tables(monkeypatch):
    """They have only these columns."""
    monkeypatch.setattr(sessions, "EPISODE_MEANS", MEANS)


# ------------------------------------------------------------------------------- the training side


def stub(seeds=(42, 7), symbols=("SPY",)):
    """As much of a `TrainingRun` as a description takes."""
    dataset = SimpleNamespace(
        symbols=tuple(symbols),
        provenance={"kind": "synthetic"},
        timeframe="1Hour",
        fingerprint="f1",
    )
    config = SimpleNamespace(to_dict=lambda: {"ppo": {"learning_rate": 3e-4}})
    program = SimpleNamespace(dataset=dataset, config=config, reward_function=None)
    return SimpleNamespace(program=program, seeds=tuple(seeds))


def console() -> Console:
    return Console(file=io.StringIO(), width=10_000)


def said(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def record(root, *, run=None, study="stage5", tracking="off", show=None, **options):
    """A session that has begun."""
    layout, show = OutputLayout(root), show or console()
    held = contextlib.ExitStack()
    session = held.enter_context(recorded(layout, study, ["train", "it"], show, tracking))
    session.trains(run or stub(), resumed=options.get("resumed", False))
    return held, session, layout


def only_record(layout):
    [name] = run_names(layout)
    return read_record(layout, name)


def test_nothing_of_the_environment_variables_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    with recorded(OutputLayout(tmp_path), "stage5", ["x"], Console(quiet=True), "off") as session:
        session.trains(stub(), resumed=False)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hush-hush" not in path.read_bytes()


@pytest.mark.parametrize(
    ("error", "status", "in_mlflow"),
    [
        (None, "finished", "FINISHED"),
        (Interrupted("stopped after update 3"), "interrupted", "KILLED"),
        (KeyboardInterrupt(), "interrupted", "KILLED"),
        (JaxtraderError("disk full"), "failed", "FAILED"),
        (RuntimeError("a bug"), "failed", "FAILED"),
    ],
)
def test_how_it_ended(root, error, status, in_mlflow):
    layout = OutputLayout(root)
    with (
        contextlib.suppress(type(error)) if error else contextlib.nullcontext(),
        recorded(layout, "stage5", ["train"], console(), "off") as session,
    ):
        session.trains(stub(), resumed=False)
        assert only_record(layout).status == "running"
        assert only_record(layout).is_alive(layout)
        if error:
            raise error
    run = only_record(layout)
    assert (run.status, run.is_alive(layout)) == (status, False)
    assert run.started <= run.ended
    upload_once(layout, run.name)
    runs = Seen(sqlite(root)).runs()
    assert {each.info.status for each in runs.values()} == {in_mlflow}
    assert len(runs) == 3


def test_the_description_is_of_this_run(tmp_path):
    held, _, layout = record(tmp_path)
    run = only_record(layout)
    assert (run.symbols, run.seeds, run.command) == (["SPY"], [42, 7], ["train", "it"])
    assert (run.agent_type, run.curriculum_stage, run.reward_version) == ("symbol", "none", "3.1")
    assert run.data == {"kind": "synthetic", "timeframe": "1Hour", "fingerprint": "f1"}
    assert run.environment["versions"]["python"] == sys.version.split()[0]
    assert run.environment["packages"]["numpy"] == np.__version__
    assert run.environment["machine"]["backend"] == "cpu"
    assert run.episode_means == MEANS
    assert trained_together(layout, [7, 42]) == run
    held.close()


def test_resumed_it_is_the_same_run_and_begun_anew_another(tmp_path):
    first, session, layout = record(tmp_path)
    session.reports(layout.report(REPORT))
    first.close()
    begun = only_record(layout)
    second, session, _ = record(tmp_path, resumed=True, study="training")  # by jaxtrader.train
    gone_on = only_record(layout)
    second.close()
    for field in ("name", "key", "study", "started", "reports"):
        assert getattr(gone_on, field) == getattr(begun, field)
    assert (gone_on.status, gone_on.ended, gone_on.sessions) == ("running", None, 2)
    assert gone_on.reports == [REPORT]
    for run, resumed in ((stub(), False), (stub([42]), True), (stub(symbols=["QQQ"]), True)):
        held, *_ = record(tmp_path, run=run, resumed=resumed)
        held.close()
    runs = [read_record(layout, name) for name in run_names(layout)]
    assert len({run.key for run in runs}) == len(runs) == 4


def test_a_later_report_belongs_to_the_training(tmp_path):
    held, _, layout = record(tmp_path)
    held.close()
    trained = only_record(layout)
    with recorded(layout, "stage5", ["evaluate"], console(), "off") as session:
        session.evaluates(stub([7]))
        session.reports(layout.report(REPORT))
    assert only_record(layout).reports == [REPORT]
    assert (only_record(layout).ended, only_record(layout).status) == (trained.ended, "finished")
    assert only_record(layout).command == ["train", "it"]


def stands_in(monkeypatch, code: str) -> list[subprocess.Popen]:
    """Has another program run in the uploading process's place."""
    started, popen = [], subprocess.Popen

    def start(words, **options):
        started.append(popen([sys.executable, "-c", code], **options))
        return started[-1]

    monkeypatch.setattr(sessions.subprocess, "Popen", start)
    return started


def test_control_c_while_the_rest_is_uploaded(tmp_path, monkeypatch):
    started = stands_in(monkeypatch, "import time; time.sleep(600)")
    show = console()
    held, _, layout = record(tmp_path, tracking="on", show=show)
    [process] = started
    wait = process.wait

    def interrupted(timeout=None):
        process.wait = wait
        raise KeyboardInterrupt

    process.wait = interrupted
    held.close()
    assert process.returncode == -signal.SIGTERM
    [line] = said(show)
    assert line.startswith("not all is in MLflow: the upload was stopped. Send it with: ")
    assert line.endswith(f"upload-runs {tmp_path} --runs {only_record(layout).name}")
    assert only_record(layout).status == "finished"


def test_an_uploading_process_that_dies_is_told(tmp_path, monkeypatch):
    stands_in(monkeypatch, "import sys; print('MLflow: there', flush=True); sys.exit('a bug')")
    show = console()
    held, *_ = record(tmp_path, tracking="on", show=show)
    held.close()
    first, second = said(show)
    assert first == "MLflow: there"
    assert second.startswith("not all is in MLflow: the upload was stopped. Send it with: ")


def test_a_process_that_cannot_be_started_stops_no_training(tmp_path, monkeypatch):
    def fail(*arguments, **keywords):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(sessions.subprocess, "Popen", fail)
    show = console()
    write_run(tmp_path)
    with recorded(OutputLayout(tmp_path), "stage5", ["train"], show, "on") as session:
        session.evaluates(stub())
    [line] = said(show)
    assert line.startswith("warning: MLflow does not follow ([Errno 12] Cannot allocate memory)")
    assert line.endswith(f"python -m jaxtrader upload-runs {tmp_path} --runs {NAME}")


def test_a_later_report_of_a_run_that_was_killed(root):
    layout = write_run(root, **RUNNING)
    with recorded(layout, "stage5", ["evaluate"], console(), "off") as session:
        session.evaluates(stub())
        session.reports(layout.report(REPORT))
    assert (only_record(layout).status, only_record(layout).reports) == ("killed", [REPORT])


def test_a_report_of_seeds_trained_apart_says_that_it_is_not_tracked(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "_Follower", pytest.fail)
    layout, show = OutputLayout(tmp_path), console()
    for seed in (42, 7):
        record(tmp_path, run=stub([seed]))[0].close()
    with recorded(layout, "stage5", ["evaluate"], show, "on") as session:
        session.evaluates(stub())
        session.reports(layout.report(REPORT))
    [line] = said(show)
    assert line.startswith("not in MLflow: the tables of these seeds are not those of one run")
    assert all(read_record(layout, name).reports == [] for name in run_names(layout))


def test_without_mlflow(tmp_path, monkeypatch, capsys):
    for module in (sessions, stores):
        monkeypatch.setattr(module, "mlflow_is_installed", lambda: False)
    show = console()
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tracking\]'"):
        record(tmp_path, tracking="on")
    assert list(tmp_path.iterdir()) == []
    held, _, layout = record(tmp_path, tracking="off", show=show)
    held.close()
    assert said(show) == []
    held, *_ = record(tmp_path, tracking="auto", show=show, resumed=True)
    held.close()
    name = only_record(layout).name
    assert said(show) == [
        "for MLflow: pip install -e '.[tracking]' in the checkout, then "
        f"python -m jaxtrader upload-runs {tmp_path} --runs {name}"
    ]
    assert main(["upload-runs", str(tmp_path)]) == 2
    assert "pip install -e '.[tracking]'" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_cannot_be_written_to_is_told_and_how_it_ended_stays_first(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(JaxtraderError, match="choose another"):
        record(tmp_path)
    (tmp_path / "logs").unlink()

    def ends_while_the_folder_is_gone():
        held, _, layout = record(tmp_path)
        with held:
            shutil.rmtree(tmp_path / "logs")
            (tmp_path / "logs").write_text("a file")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        ends_while_the_folder_is_gone()


def test_the_command_line_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["upload-runs", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for phrase in (
        "MLFLOW_TRACKING_URI", "mlflow ui --backend-store-uri", "pip install -e '.[tracking]'",
        "--output-dir of the training", "goes on where it stopped", "--runs",
    ):  # fmt: skip
        assert phrase in text
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert "upload-runs" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["upload-rnus"])
    assert caught.value.code == 2


# ------------------------------------------------------------------------------ while it is trained


def test_a_failing_store_is_told_once_and_what_is_missing_is_sent(tmp_path, monkeypatch, capsys):
    layout = write_run(tmp_path, **RUNNING)
    ended, steps = threading.Event(), []

    class Failing:
        where_to_look = "there"

        def __init__(self, layout):
            pass

        def step(self, record, *, ended):
            steps.append(ended)
            if len(steps) in (2, 3, 5):
                raise TrackingError("MLflow at X: down")
            if len(steps) == 6:
                finish.set()

    finish = ended
    monkeypatch.setattr("jaxtrader.tracking.follow.Upload", Failing)
    assert follow(layout, NAME, 1, 0.001, ended)
    assert steps == [False] * 6 + [True]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "MLflow: there",
        "warning: MLflow at X: down. Training goes on. What is missing is sent when the store "
        f"answers, or later by: python -m jaxtrader upload-runs {tmp_path} --runs {NAME}",
    ]
    assert follow(layout, NAME, 2, 0.001, ended)  # of another session: left to its own follower
    assert len(steps) == 7


@pytest.fixture(scope="session")
def one_server(tmp_path_factory, empty_mlflow_database):
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_mlflow_database, folder)
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture
def server(one_server, monkeypatch):
    """Running, and with an experiment for this test alone."""
    one_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one_server.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"test {time.time_ns()}")
    one_server.seen = lambda: Seen(one_server.uri, os.environ["MLFLOW_EXPERIMENT_NAME"])
    return one_server


@pytest.mark.slow
def test_the_command_uploads_to_a_server_once(server, tmp_path, capsys):
    symbols = ("SPY", "^GSPC")
    layout = write_run(tmp_path, symbols=symbols)
    assert main(["upload-runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{NAME}: uploaded. To look: {server.uri}/#/experiments/")
    seen = server.seen()
    check_tables(seen, layout, several=True)
    once = seen.everything()
    assert once.keys() == {f"SPY ^GSPC {NAME}", "seed 42", "seed 7"}
    assert seen.artifact("seed 7", "policies/^GSPC/policy_seed_7.pt") == POLICY + b"^GSPC"
    assert not (tmp_path / "mlflow.db").exists()
    assert main(["upload-runs", str(tmp_path), "--runs", NAME]) == 0
    assert capsys.readouterr().out == out
    assert server.seen().everything() == once


@pytest.mark.slow
def test_the_command_is_killed_and_run_again(server, tmp_path):
    layout = write_run(tmp_path, last=900)
    process = command("upload-runs", tmp_path)
    eventually(lambda: len(server.seen().runs()["seed 42"].data.metrics) > 0, "points")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "jaxtrader.complete" not in server.seen().run(PARENT).data.tags
    run_command("upload-runs", tmp_path)
    seen = server.seen()
    assert set(seen.runs()) == {PARENT, "seed 42", "seed 7"}
    check_tables(seen, layout)


def updates_in(seen: Seen, name: str = "seed 7") -> int:
    """How far the table of updates has got."""
    return max(step for metric, step in seen.points(name) if metric == "train/reward_mean") // STEPS


def grow(layout, first, last):
    for seed in (42, 7):
        write_rows(layout, seed, ["SPY"], last, first)


@pytest.mark.slow
def test_a_server_that_comes_up_late_gets_everything(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "SECONDS_BETWEEN_LOOKS", 0.2)
    show = console()
    server.stop()
    held, _, layout = record(tmp_path, tracking="auto", show=show)
    with held:
        grow(layout, 1, 3)
        eventually(lambda: len(said(show)) == 1, "the warning")
        server.start()
        grow(layout, 4, 9)
    warned, looked = said(show)
    assert warned.startswith(f"warning: MLflow at {server.uri}: ")
    assert looked.startswith(f"MLflow: {server.uri}/#/")
    seen = server.seen()
    check_tables(seen, layout)
    assert {run.info.status for run in seen.runs().values()} == {"FINISHED"}


def train_until_killed(root: str) -> None:
    """What another process does in the test below."""
    sessions.SECONDS_BETWEEN_LOOKS = 0.2
    sessions.EPISODE_MEANS = MEANS
    held, _, layout = record(Path(root), tracking="on", show=Console())
    with held:
        grow(layout, 1, 5)
        time.sleep(600)


@pytest.mark.slow
def test_a_training_that_is_killed_is_killed_in_mlflow_and_can_be_resumed(root, monkeypatch):
    monkeypatch.setattr(sessions, "SECONDS_BETWEEN_LOOKS", 0.2)
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_tracking_live; "
        f"test_tracking_live.train_until_killed({str(root)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        seen = Seen(sqlite(root))
        eventually(lambda: updates_in(seen) == 5, "the rows")
        assert {run.info.status for run in seen.runs().values()} == {"RUNNING"}
    finally:
        process.kill()
        process.wait()
    layout = OutputLayout(root)
    eventually(lambda: "jaxtrader.complete" in next(
        run for name, run in seen.runs().items() if name.startswith("SPY")
    ).data.tags, "the end")  # fmt: skip
    assert {run.info.status for run in seen.runs().values()} == {"KILLED"}
    check_tables(seen, layout)
    ids = {name: run.info.run_id for name, run in seen.runs().items()}

    held, *_ = record(root, tracking="on", resumed=True)
    with held:
        grow(layout, 1, 4)  # back to the checkpoint
        eventually(lambda: seen.run("seed 7").info.status == "RUNNING", "its going on")
        grow(layout, 5, 8)
    check_tables(seen, layout)
    assert {name: run.info.run_id for name, run in seen.runs().items()} == ids
    assert {run.info.status for run in seen.runs().values()} == {"FINISHED"}


@pytest.fixture
def stage5(monkeypatch):
    """The command, which leaves this process as it is."""
    from experiments import stage5
    from jaxtrader.telemetry import EPISODE_MEANS

    for what in ("use_compilation_cache", "be_deterministic", "use_full_precision"):
        monkeypatch.setattr(stage5, what, lambda: None)
    monkeypatch.setattr(sessions, "EPISODE_MEANS", EPISODE_MEANS)
    monkeypatch.setattr(sessions, "SECONDS_BETWEEN_LOOKS", 0.2)
    monkeypatch.setattr(training, "SECONDS_PER_CALL", 0.0)  # one update a call
    return stage5


@pytest.mark.slow
def test_a_server_that_dies_during_a_real_training(server, stage5, tmp_path, monkeypatch, capsys):
    """Training goes on to its report, and the command that is printed uploads all of it."""
    settings = tmp_path / "tiny.yaml"
    settings.write_text(json.dumps(CONFIG.to_dict()))
    layout, calls, begun = OutputLayout(tmp_path / "run"), [], {}

    def train(run, steps, console):
        def after_each_call():
            calls.append(run.update)
            if len(calls) == 2:
                eventually(lambda: updates_in(server.seen()) >= 1, "points")
                for name, its in server.seen().runs().items():
                    assert its.info.status == "RUNNING"
                    begun[name] = its.info.run_id
                server.stop()
            return False

        training.train(run, steps, console, after_each_call)

    monkeypatch.setattr(stage5, "train", train)
    options = ("--config", settings, "--seeds", 42, 7, "--output-dir", layout.root)
    status = stage5.main([str(word) for word in (*options, "--tracking", "on")])
    out = capsys.readouterr().out
    assert status in (0, 1)
    assert calls == list(range(7))
    assert f"MLflow: {server.uri}/#/experiments/" in out
    assert out.count(f"MLflow at {server.uri}") == 2
    assert out.index("warning: MLflow at") < out.index("report: ")
    later = next(line for line in out.splitlines() if line.startswith("not all is in MLflow"))
    run = only_record(layout)
    assert later.endswith(
        f"Send it with: python -m jaxtrader upload-runs {layout.root} --runs {run.name}"
    )

    server.start()
    for _ in range(2):
        run_command("upload-runs", layout.root, "--runs", run.name)
        seen = server.seen()
        check_tables(seen, layout)
        assert {name: each.info.run_id for name, each in seen.runs().items()} == begun
        assert {each.info.status for each in seen.runs().values()} == {"FINISHED"}
    [report] = run.reports
    parent = f"SYNTH {run.name}"
    assert seen.artifacts(parent) == {"run.json", "environment.json"} | {
        f"reports/{report}/{path.name}" for path in layout.report(report).iterdir()
    }
    assert f"reports/{report}/report.html" in seen.artifacts(parent)
    policy = layout.policy("SYNTH", 7)
    assert seen.artifact("seed 7", f"policies/SYNTH/{policy.name}") == policy.read_bytes()
    summary = json.loads((layout.report(report) / "summary.json").read_text())
    for agent in summary["agents"]:
        points = seen.points(f"seed {agent['seed']}")
        value, _ = points["test/total_return", 7 * STEPS]
        assert value == agent["evaluation"]["total_return"]
        for metric, expected in agent["evaluation"]["telemetry"].items():
            assert points[f"test/telemetry/{metric}", 7 * STEPS][0] == expected
        verdict = seen.run(f"seed {agent['seed']}").data.tags["gates"]
        assert verdict == ("passed" if all(g["passed"] for g in agent["gates"]) else "failed")
    assert seen.run(parent).data.params["ppo.learning_rate"] == str(CONFIG.ppo.learning_rate)


@pytest.mark.slow
def test_training_from_python_is_recorded_and_tracked(root, stage5):
    import jaxtrader as jt

    with pytest.raises(ConfigError, match="tracking='on' needs output_dir"):
        jt.train(market("BBB"), (7,), CONFIG, tracking="on")
    assert not Seen(sqlite(root), "training").runs()
    jt.train(market("BBB"), (7,), CONFIG, output_dir=root, tracking="on", quiet=True)
    seen = Seen(sqlite(root), "training")
    assert {run.info.status for run in seen.runs().values()} == {"FINISHED"}
    check_tables(seen, OutputLayout(root), seeds=[7])
    jt.train(market("BBB"), (7,), CONFIG, output_dir=root, quiet=True)
    assert len(seen.runs()) == 2
    assert main(["upload-runs", str(root)]) == 0
    found = seen.client.search_runs([seen.experiment])
    assert len(found) == 4


@pytest.mark.slow
def test_uploads_that_make_the_database_at_once(tmp_path):
    """Each of another run into one new database."""
    for second in range(3):
        layout = OutputLayout(tmp_path)
        name = f"20260131T00000{second}Z"
        describe(layout, name=name, key=name, seeds=[second], symbols=["SPY"], reports=[])
        write_rows(layout, second, ["SPY"], 5)
    processes = [
        command("upload-runs", tmp_path, "--runs", name)
        for name in run_names(OutputLayout(tmp_path))
    ]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], told
    seen = Seen(sqlite(tmp_path))
    assert len(seen.runs()) == 6
    check_tables(seen, layout, seeds=range(3))
