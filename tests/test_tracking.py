"""Uploading runs to MLflow: every point is the table's, whatever fails in between and however often
it is sent."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import mlflow_runs
import pytest
from mlflow_runs import (
    ENDED,
    NAME,
    PARENT,
    POLICY,
    REPORT,
    REPORTED,
    RUNNING,
    STARTED,
    STEPS,
    Seen,
    agent,
    check_tables,
    describe,
    description,
    ignores_mlflows_warning,
    sqlite,
    unused_port,
    updates_table,
    write_report,
    write_rows,
    write_run,
)
from tools import library

from jaxtrader.cli import main
from jaxtrader.errors import JaxtraderError, TrackingError
from jaxtrader.outputs import OutputLayout
from jaxtrader.tracking import store as stores
from jaxtrader.tracking import upload as uploads
from jaxtrader.tracking.follow import follow
from jaxtrader.tracking.projection import GrowingTable, metric_symbol
from jaxtrader.tracking.record import read_record, run_names, trained_together
from jaxtrader.tracking.store import told_apart
from jaxtrader.tracking.upload import Upload, upload_once

pytestmark = [pytest.mark.usefixtures("mlflow_environment"), ignores_mlflows_warning]
# ------------------------------------------------------------------------------------ one upload


def test_every_point_is_the_tables(root):
    layout = write_run(root)
    said = upload_once(layout, NAME)
    assert said == f"uploaded. To look: mlflow ui --backend-store-uri {sqlite(root)}"
    seen = Seen(sqlite(root))
    assert set(seen.runs()) == {PARENT, "seed 42", "seed 7"}
    check_tables(seen, layout)
    # Not finite: no point, and its neighbours are there.
    steps = {step // STEPS for metric, step in seen.points("seed 42") if metric == "train/loss"}
    assert steps == {1, 2}
    evaluated = {k: v for k, v in seen.points("seed 42").items() if k[0].startswith("test/")}
    assert evaluated == {
        ("test/total_return", 640): (0.042, REPORTED),
        ("test/performance/sharpe_ratio", 640): (1.25, REPORTED),
    }
    assert seen.points(PARENT) == {
        ("training/updates", 640): (5.0, REPORTED),
        ("training/steps_per_seed", 640): (640.0, REPORTED),
        ("agents", 640): (2.0, REPORTED),
        ("agents_passed", 640): (0.0, REPORTED),
    }


def test_several_symbols_have_names_of_their_own(root):
    symbols = ("^GSPC", "BRK.B", "EURUSD=X", "A_B-c")
    layout = write_run(root, symbols=symbols)
    upload_once(layout, NAME)
    seen = Seen(sqlite(root))
    assert set(seen.runs()) == {f"4 symbols {NAME}", "seed 42", "seed 7"}
    check_tables(seen, layout, several=True)
    assert ("_5e_GSPC/test/total_return", 640) in seen.points("seed 42")
    assert seen.artifacts("seed 7") >= {f"policies/{symbol}/policy_seed_7.pt" for symbol in symbols}
    assert seen.artifact("seed 7", "policies/^GSPC/policy_seed_7.pt") == POLICY + b"^GSPC"


def test_a_symbol_in_a_metrics_name_is_legal_and_nobody_elses():
    from mlflow.utils.validation import _validate_metric_name

    symbols = ["^GSPC", "BRK.B", "EURUSD=X", "A_B-c", "SPY", "=SPY", "^SPY"]
    names = [metric_symbol(symbol) for symbol in symbols]
    assert len(set(names)) == len(symbols)
    for name in names:
        _validate_metric_name(f"{name}/train/loss")
    assert metric_symbol("SPY") == "SPY"


def test_parent_and_children_say_what_they_are(root):
    layout = write_run(root)
    upload_once(layout, NAME)
    seen = Seen(sqlite(root))
    parent = seen.run(PARENT)
    for name, own in (
        (PARENT, {"seeds": "42 7"}),
        ("seed 42", {"seed": "42", "mlflow.parentRunId": parent.info.run_id}),
        ("seed 7", {"seed": "7", "mlflow.parentRunId": parent.info.run_id}),
    ):
        run = seen.run(name)
        expected = own | {
            "agent_type": "symbol",
            "curriculum_stage": "none",
            "reward_version": "3.1",
            "git_commit": "abc123+dirty",
            "mlflow.source.git.commit": "abc123",
            "command": "python -m experiments.stage5 --output-dir 'a b'",
            "mlflow.source.name": "stage5",
            "data.kind": "synthetic",
            "data.fingerprint": "f1",
            "version.jax": "0.10.2",
            "machine.backend": "cpu",
            "gates": "failed",
            "halted": "none",
        }
        assert expected.items() <= run.data.tags.items()
        assert run.data.params["ppo.learning_rate"] == "0.0003"
        assert run.data.params["symbols"] == "SPY"
        assert (run.info.status, run.info.start_time, run.info.end_time) == (
            "FINISHED", STARTED, ENDED,
        )  # fmt: skip
    assert parent.data.tags["gates.failed"] == (
        "SPY seed 42: forced_exit_ratio; SPY seed 7: forced_exit_ratio"
    )
    assert seen.run("seed 7").data.tags["warnings"] == "SPY seed 7: look at this"
    assert seen.run("seed 7").data.params["seed"] == "7"
    assert "mlflow.parentRunId" not in parent.data.tags


def test_artifacts_are_the_files(root):
    layout = write_run(root)
    (layout.logs(7) / "evaluation_test.csv").write_text("symbol,reward\nSPY,1\n")
    upload_once(layout, NAME)
    seen = Seen(sqlite(root))
    assert seen.artifacts(PARENT) == {
        "run.json", "environment.json", f"reports/{REPORT}/summary.json",
        f"reports/{REPORT}/summary.md", f"reports/{REPORT}/equity.png",
    }  # fmt: skip
    assert seen.artifacts("seed 7") == {
        "tables/updates.csv", "tables/telemetry.csv", "tables/evaluation_test.csv",
        "policies/SPY/policy_seed_7.pt", "policies/SPY/policy_seed_7.pt.manifest.json",
    }  # fmt: skip
    assert json.loads(seen.artifact(PARENT, "run.json")) == description()
    assert json.loads(seen.artifact(PARENT, "environment.json")) == description()["environment"]
    assert seen.artifact("seed 7", "tables/updates.csv") == layout.updates(7).read_bytes()
    assert (root / "mlartifacts").is_dir()
    assert not Path("mlruns").exists()


def test_a_folder_with_an_odd_name(tmp_path, empty_mlflow_database):
    root = tmp_path / "a b%41#c+é?d=e"
    root.mkdir()
    shutil.copy(empty_mlflow_database, root / "mlflow.db")
    layout = write_run(root, seeds=[42])
    said = upload_once(layout, NAME)
    uri = f"sqlite:///{tmp_path}/a b%2541%23c+é%3Fd=e/mlflow.db"
    assert said.endswith(f"--backend-store-uri '{uri}'")
    seen = Seen(uri)
    check_tables(seen, layout, seeds=[42])
    assert seen.artifact("seed 42", "tables/updates.csv") == layout.updates(42).read_bytes()
    assert list((root / "mlartifacts").rglob("updates.csv"))


def test_what_is_long_is_cut_and_still_there(root):
    config = {"ppo": {"long": "x" * 9000}}
    warnings_ = [{**agent("SPY", 42), "warnings": ["w" * 9000]}]
    layout = write_run(root, config=config, seeds=[42], reports=["20260201T000600Z"])
    write_report(layout, warnings_, "20260201T000600Z")
    upload_once(layout, NAME)
    run = Seen(sqlite(root)).run("seed 42")
    assert run.data.params["ppo.long"] == "x" * 5999 + "…"
    assert run.data.tags["warnings"].startswith("SPY seed 42: www")
    assert run.data.tags["warnings"].endswith("w…")


def test_twice_is_once(root):
    layout = write_run(root)
    upload_once(layout, NAME)
    once = Seen(sqlite(root)).everything()
    assert upload_once(layout, NAME).startswith("uploaded")
    assert Seen(sqlite(root)).everything() == once
    # Also when all is sent again, because something about the run has changed.
    again = "20260201T000900Z"
    write_report(layout, [agent("SPY", 42)], again)
    describe(layout, reports=[REPORT, again])
    upload_once(layout, NAME)
    seen = Seen(sqlite(root))
    check_tables(seen, layout)
    assert {run.info.run_id for run in seen.runs().values()} == {run[0] for run in once.values()}
    assert f"reports/{again}/summary.json" in seen.artifacts(PARENT)


def test_a_report_made_while_a_run_that_is_all_there_is_followed(root):
    layout = write_run(root)
    upload_once(layout, NAME)
    upload = Upload(layout)
    step(upload, layout)
    assert upload.complete
    again = "20260201T000900Z"
    write_report(layout, [agent("SPY", 42)], again)
    describe(layout, reports=[REPORT, again])
    step(upload, layout, ended=True)
    assert upload.complete
    assert f"reports/{again}/summary.json" in Seen(sqlite(root)).artifacts(PARENT)
    check_tables(Seen(sqlite(root)), layout)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_call_and_gone_on_with(root, tmp_path_factory, monkeypatch, after):
    """The n-th attempt dies before (or just after) its n-th writing call, until one is through."""
    layout = write_run(root, seeds=[42], last=40)
    straight = tmp_path_factory.mktemp("straight")
    shutil.copy(root / "mlflow.db", straight)
    reference = write_run(straight, seeds=[42], last=40)
    monkeypatch.setattr(uploads, "_PER_CALL", 60)
    upload_once(reference, NAME)
    calls = []

    def dying(name, real):
        def method(self, *arguments, **keywords):
            calls.append(name)
            dies = len(calls) == limit
            if dies and not after:
                raise Killed
            result = real(self, *arguments, **keywords)
            if dies:
                raise Killed
            return result

        return method

    for name in (
        "create_experiment", "create_run", "log_batch", "log_text", "log_artifact", "update_run",
        "log_artifacts", "set_terminated", "delete_run",
    ):  # fmt: skip
        monkeypatch.setattr(
            mlflow_runs.MlflowClient, name, dying(name, getattr(mlflow_runs.MlflowClient, name))
        )
    for limit in range(1, 200):  # noqa: B007
        calls.clear()
        try:
            upload_once(layout, NAME)
        except Killed:
            continue
        break
    assert limit > 20
    seen, expected = Seen(sqlite(root)), Seen(sqlite(straight))
    check_tables(seen, layout, seeds=[42])
    for name in (PARENT, "seed 42"):
        assert seen.points(name) == expected.points(name)
        assert seen.artifacts(name) == expected.artifacts(name)
        assert seen.run(name).data.params == expected.run(name).data.params
        assert seen.run(name).info.status == "FINISHED"
    trash = seen.client.search_runs([seen.experiment], run_view_type=2)
    assert trash == []
    calls.clear()
    upload_once(layout, NAME)
    assert calls == []


# ------------------------------------------------------------------------------- a run that grows


def test_rows_are_taken_whole_and_once(tmp_path):
    table = GrowingTable(tmp_path / "t.csv")
    assert table.lines() == []
    table.path.write_text("a,b\n1,2")
    assert table.take(table.lines()) == []
    table.path.write_text("a,b\n1,2\n3,")
    assert table.take(table.lines()) == [{"a": "1", "b": "2"}]
    assert table.take(table.lines()) == []
    table.path.write_text('a,b\n1,2\n3,"x, y"\n5,6\n')
    assert table.take(table.lines()[:1]) == [{"a": "3", "b": "x, y"}]
    assert table.take(table.lines()) == [{"a": "5", "b": "6"}]
    assert table.offset == table.path.stat().st_size
    assert table.sha256 == hashlib.sha256(table.path.read_bytes()).hexdigest()


def step(upload: Upload, layout: OutputLayout, *, ended: bool = False) -> None:
    upload.step(read_record(layout, NAME), ended=ended)


def test_sent_as_it_grows_and_at_once_is_the_same(root):
    layout = OutputLayout(root)
    describe(layout, **RUNNING)
    upload = Upload(layout)
    step(upload, layout)  # before the first row
    seen = Seen(sqlite(root))
    assert {run.info.status for run in seen.runs().values()} == {"RUNNING"}
    for first, last in ((1, 1), (2, 4), (5, 9)):
        for seed in (42, 7):
            write_rows(layout, seed, ["SPY"], last, first)
        step(upload, layout)
        rows = {s // STEPS for m, s in seen.points("seed 7") if m == "train/reward_mean"}
        assert rows == set(range(1, last + 1))
        # More episodes of the last update that has any may come: its mean is not told yet.
        some = [u for u in range(1, last + 1) if u % 4]
        means = {s // STEPS for m, s in seen.points("seed 7") if m.endswith("reward_mean")
                 and m.startswith("episodes/")}  # fmt: skip
        assert means == set(some[:-1])
    assert not upload.complete
    describe(layout, reports=[])
    step(upload, layout, ended=True)
    assert upload.complete
    check_tables(seen, layout)
    assert "gates" not in seen.run("seed 7").data.tags  # there is no report


def test_an_update_whose_episodes_are_half_written_has_no_mean_yet(root):
    layout = write_run(root, seeds=[42], last=5, **RUNNING)
    whole = layout.telemetry(42).read_bytes()
    layout.telemetry(42).write_bytes(whole[: whole.rfind(b"\n", 0, -1) - 3])
    upload = Upload(layout)
    step(upload, layout)
    layout.telemetry(42).write_bytes(whole)
    step(upload, layout)
    step(upload, layout, ended=True)  # killed, perhaps in the middle of them
    assert ("episodes/episode_reward_mean", 640) not in Seen(sqlite(root)).points("seed 42")
    check_tables(Seen(sqlite(root)), layout, seeds=[42])
    describe(layout, seeds=[42])
    upload_once(layout, NAME)
    assert ("episodes/episode_reward_mean", 640) in Seen(sqlite(root)).points("seed 42")
    check_tables(Seen(sqlite(root)), layout, seeds=[42])


@pytest.mark.parametrize("same_process", [False, True])
def test_a_resumed_run_goes_on_in_the_same_runs(root, same_process):
    """It goes back to its checkpoint, and comes by again with the same rows."""
    layout = write_run(root, last=9, **RUNNING)
    upload = Upload(layout)
    step(upload, layout, ended=True)  # killed
    before = Seen(sqlite(root))
    assert {run.info.status for run in before.runs().values()} == {"KILLED"}
    ids = {name: run.info.run_id for name, run in before.runs().items()}

    for seed in (42, 7):
        write_rows(layout, seed, ["SPY"], 6)
    describe(layout, sessions=2, **RUNNING)
    if not same_process:
        upload = Upload(layout)
        step(upload, layout)
        assert {run.info.status for run in Seen(sqlite(root)).runs().values()} == {"RUNNING"}
    for first, last in ((7, 8), (9, 12)):
        for seed in (42, 7):
            write_rows(layout, seed, ["SPY"], last, first)
        if not same_process:
            step(upload, layout)
    describe(layout, sessions=2)
    upload = Upload(layout)
    step(upload, layout, ended=True)
    seen = Seen(sqlite(root))
    check_tables(seen, layout)
    assert {name: run.info.run_id for name, run in seen.runs().items()} == ids
    assert {run.info.status for run in seen.runs().values()} == {"FINISHED"}


def test_a_resumed_run_that_goes_another_way_is_replaced(root):
    """Of one seed only; the other's run stays."""
    layout = write_run(root, last=9, **RUNNING)
    step(Upload(layout), layout, ended=True)
    ids = {name: run.info.run_id for name, run in Seen(sqlite(root)).runs().items()}
    write_rows(layout, 42, ["SPY"], 6)
    later = updates_table(1000, ["SPY"], 7, 12).assign(seed=42)
    with layout.updates(42).open("a") as file:
        file.write(later.to_csv(index=False, header=False, lineterminator="\n"))
    write_rows(layout, 7, ["SPY"], 12)
    describe(layout, sessions=2)
    step(Upload(layout), layout, ended=True)
    seen = Seen(sqlite(root))
    check_tables(seen, layout)
    now = {name: run.info.run_id for name, run in seen.runs().items()}
    assert {name for name in ids if now[name] != ids[name]} == {"seed 42"}
    assert seen.run("seed 42").data.tags["mlflow.parentRunId"] == ids[PARENT]


def test_a_setting_that_a_resumed_run_was_given_anew(root):
    layout = write_run(root, **RUNNING)
    step(Upload(layout), layout, ended=True)
    describe(layout, sessions=2, config={"ppo": {"learning_rate": 3e-4, "total_timesteps": 999}})
    upload_once(layout, NAME)
    for run in Seen(sqlite(root)).runs().values():
        assert run.data.params["ppo.total_timesteps"] == "640"
        assert run.data.tags["resumed.ppo.total_timesteps"] == "999"
        assert "resumed.ppo.learning_rate" not in run.data.tags


def test_a_run_that_a_later_one_moved_aside_is_still_uploaded(root):
    layout = write_run(root)
    own = {seed: layout.updates(seed).read_bytes() for seed in (42, 7)}
    policies = layout.agents("SPY")
    for path in list(policies.iterdir()):
        path.rename(path.with_name(f"{path.name}.until-20260202T000000Z"))
        path.write_bytes(b"another run's " + path.name.encode())
    for seed in (42, 7):
        layout.logs(seed).rename(layout.logs(seed).with_name(f"{seed}.until-20260202T000000Z"))
    later = "20260202T000001Z"
    describe(layout, name=later, key="d00d", reports=[])
    for seed in (42, 7):
        write_rows(layout, seed, ["SPY"], 2)
    assert main(["upload-runs", str(root)]) == 0
    seen = Seen(sqlite(root))
    runs = seen.client.search_runs([seen.experiment])
    assert len(runs) == 6
    [first] = [r for r in runs if r.data.tags["jaxtrader.run"] == "8c0ffee8"
               and r.data.tags.get("seed") == "7"]  # fmt: skip
    [second] = [r for r in runs if r.data.tags["jaxtrader.run"] == "d00d"
                and r.data.tags.get("seed") == "7"]  # fmt: skip
    path = seen.client.download_artifacts(first.info.run_id, "tables/updates.csv")
    assert Path(path).read_bytes() == own[7]
    policy = seen.client.download_artifacts(first.info.run_id, "policies/SPY/policy_seed_7.pt")
    assert Path(policy).read_bytes() == POLICY + b"SPY"
    history = seen.client.get_metric_history(second.info.run_id, "train/reward_mean")
    assert len(history) == 2


def test_what_is_gone_from_the_disk_is_named(root):
    layout = write_run(root)
    layout.policy("SPY", 42).write_bytes(b"another")
    shutil.rmtree(layout.logs(7))
    describe(layout, reports=["20260101T000000Z", REPORT])
    layout.run_name(7).unlink()
    upload_once(layout, NAME)
    seen = Seen(sqlite(root))
    missing = seen.run(PARENT).data.tags["jaxtrader.missing"]
    assert missing == "report 20260101T000000Z, SPY/policy_seed_42.pt, tables of seed 7"
    assert {run.info.status for run in seen.runs().values()} == {"FINISHED"}
    check_tables(seen, layout, seeds=[42])


# ------------------------------------------------------------------------------------ descriptions


def test_a_description_that_is_none_is_named(root, capsys):
    layout = write_run(root)
    path = layout.run_record(NAME)
    whole = path.read_text()
    for text, said in (
        (whole[:100], "is no description of a run"),
        ("[]", "is no description of a run"),
        (whole.replace('"seeds"', '"sedes"'), "sedes"),
        (whole.replace(REPORT, "../../../etc"), "it names"),
        (whole.replace('"format_version": 1', '"format_version": 2'), "upgrade this one"),
        (whole.replace("2026-01-31T23", "yesterday"), "is no description of a run"),
        ("\udcff", "is no description of a run"),
    ):
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(JaxtraderError, match=r"run\.json") as caught:
            read_record(layout, NAME)
        assert said in str(caught.value)
        assert main(["upload-runs", str(root)]) == 2
        assert "run.json" in capsys.readouterr().out
    assert Seen(sqlite(root)).runs() == {}


def test_a_name_leads_nowhere_else(tmp_path):
    layout = write_run(tmp_path)
    layout.run_name(42).write_text("../../../etc")
    assert trained_together(layout, [42]) is None
    assert read_record(layout, NAME).tables(layout, 42) is None


def test_seeds_that_were_trained_apart_have_no_run_in_common(tmp_path):
    layout = write_run(tmp_path)
    describe(layout, name="20260202T000001Z", seeds=[1])
    assert trained_together(layout, [42, 7]) == read_record(layout, NAME)
    assert trained_together(layout, [7]) == read_record(layout, NAME)
    assert trained_together(layout, [7, 1]) is None
    assert trained_together(layout, [8]) is None


def test_runs_are_asked_for_by_name(root, capsys):
    layout = write_run(root)
    describe(layout, name="20260202T000001Z", key="d00d", seeds=[1], symbols=["QQQ"], reports=[])
    assert run_names(layout) == [NAME, "20260202T000001Z"]
    assert main(["upload-runs", str(root), "--runs", NAME]) == 0
    assert set(Seen(sqlite(root)).runs()) == {PARENT, "seed 42", "seed 7"}
    capsys.readouterr()
    assert main(["upload-runs", str(root), "--runs", NAME[:-1]]) == 2
    assert f"is it {NAME}?" in " ".join(capsys.readouterr().err.split())
    assert main(["upload-runs", str(root / "logs")]) == 2
    assert "no run is described there; name the --output-dir" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_experiment_is_named_by_mlflows_variable(root, monkeypatch):
    layout = write_run(root)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    upload_once(layout, NAME)
    seen = Seen(sqlite(root), "mine")
    assert set(seen.runs()) == {PARENT, "seed 42", "seed 7"}
    seen.client.delete_experiment(seen.experiment)
    describe(layout, sessions=2)
    with pytest.raises(TrackingError, match="'mine' was deleted there; restore it, or name"):
        upload_once(layout, NAME)


def test_two_uploads_of_one_run_at_once(root):
    layout = write_run(root)
    with (
        stores.waiting_for(layout.upload_lock(NAME), "uploads"),
        pytest.raises(JaxtraderError, match="another process is uploading this run; wait"),
    ):
        upload_once(layout, NAME)
    upload_once(layout, NAME)


def test_what_a_run_that_is_still_trained_has(root):
    layout = write_run(root, **RUNNING)
    with stores.waiting_for(layout.run_lock(NAME), "records"):
        assert upload_once(layout, NAME).startswith("is being trained; uploaded so far")
        seen = Seen(sqlite(root))
        assert {run.info.status for run in seen.runs().values()} == {"RUNNING"}
    moment = layout.updates(7).stat().st_mtime + 100
    os.utime(layout.updates(7), (moment, moment))
    assert upload_once(layout, NAME).startswith("uploaded")  # its process is gone: killed
    for run in seen.runs().values():
        assert (run.info.status, run.info.end_time) == ("KILLED", round(moment * 1000))
    check_tables(seen, layout)


# ---------------------------------------------------------------------------------- secrets, errors


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000/x", "http://host:5000/x"),
        ("https://host/user/me@home/x", "https://host/user/me@home/x"),
        ("https://me:s3cr%21t@host", "https://***@host"),
        ("https://t0ken@host/x", "https://***@host/x"),
        ("https://host/x?t0ken", "https://host/x?***"),
        ("databricks://profile", "databricks://profile"),
        ("postgresql+psycopg://me:s3cr%21t@host:1/db", "postgresql+psycopg://***@host:1/db"),
        ("postgresql://me:s3#cr!t@host/db", "postgresql://***@host/db"),
        ("postgresql://me:s3/cr!t@host/db", "postgresql://***@host/db"),
        ("mysql://me:s3?cr!t@[::1]:7/db?a=1", "mysql://***@[::1]:7/db?***"),
        ("postgresql://me@work:s3cr!t@host/db", "postgresql://***@host/db"),
        ("postgresql://host/db?password=s3cr!t", "postgresql://host/db?***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Ds3cr!t", "mssql+pyodbc:///?***"),
        ("sqlite:////a/b c.db", "sqlite:////a/b c.db"),
        ("sqlite:////home/me@work/[a#b.db", "sqlite:////home/me@work/[a#b.db"),
    ],
)
def test_a_uri_is_shown_without_what_logs_in(uri, shown):
    assert told_apart(uri)[0] == shown
    assert bool(told_apart(uri)[1]) == (uri != shown)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:s3[cr!t@host/db",  # MLflow cannot read it
        "postgresql://me:s3@cr!t@host/db",
        "postgresql://me:s3@cr/!t@host/db",
        "postgresql://m/e:s3cr!t@host/db",
        "postgresql://host:s3cr!t/db",
        "postgresql:me:s3cr!t@host",
        "http://me:s3#cr!t@host",
        "http://me:s3/cr!t@host",
        "http://me:s3?cr!t@host",
        "http://me:s3[cr!t@host",
        "http://me:s3@cr/!t@host",
        "me:s3cr!t@host:5000",
    ],
)
def test_a_uri_whose_password_ends_nobody_knows_where_is_not_shown(
    tmp_path, monkeypatch, capsys, uri
):
    layout = write_run(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["upload-runs", str(tmp_path)]) == 2
    ended = threading.Event()
    ended.set()
    assert not follow(layout, NAME, 1, 0.001, ended)
    by_command, by_follower = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    for line in (by_command, by_follower):
        assert f"begins with {uri.partition(':')[0]}://***, cannot be read" in line
        assert "written %40 %3A %2F %23 %5B" in line
        assert "s3" not in line
        assert "!t" not in line


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:s3cr%21t@{}",
        "postgresql+psycopg://me:s3cr%21t@{}/db?sslpassword=s3cr!t",
        "postgresql+psycopg://me:s3cr#/?t@{}/db",
    ],
)
def test_a_store_that_is_down_is_named_without_its_password(tmp_path, monkeypatch, uri):
    if uri.startswith("postgresql"):
        library("psycopg")
    layout = write_run(tmp_path)
    place = f"127.0.0.1:{unused_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(place))
    with pytest.raises(TrackingError) as caught:
        upload_once(layout, NAME)
    assert place in str(caught.value)
    assert "refused" in str(caught.value)
    assert "s3cr" not in str(caught.value)
    assert caught.value.__cause__ is None  # its text has the password
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nonsense://x", "unsupported URI 'nonsense://x'"),
        ("file:///tmp/mlruns", "maintenance mode"),
        ("sqlite:////proc/x/mlflow.db", "/proc/x"),
    ],
)
def test_a_store_that_is_none_is_told_in_a_line(tmp_path, monkeypatch, capsys, uri, said):
    write_run(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["upload-runs", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert said in out
    assert out.count("\n") == 1


def test_a_table_that_is_none_is_named(root):
    layout = write_run(root)
    whole = layout.telemetry(7).read_text()
    for text in (
        whole.replace("log_return", "return"),
        whole + "SPY,7,6\n",
        whole + "SPY,7,6,7,8,x,y\n",
    ):
        layout.telemetry(7).write_text(text)
        with pytest.raises(JaxtraderError, match=r"7/telemetry\.csv: is not what .*restore it"):
            upload_once(layout, NAME)
    layout.telemetry(7).write_text(whole)
    upload_once(layout, NAME)
    check_tables(Seen(sqlite(root)), layout)


def test_folders_beside_a_policy_are_passed_over(root):
    layout = write_run(root)
    for path in layout.policy_files("SPY", 42):
        path.with_name(f"{path.name}.old").mkdir()
        path.rename(path.with_name(f"{path.name}.until-20260202T000000Z"))
    upload_once(layout, NAME)
    seen = Seen(sqlite(root))
    assert seen.artifact("seed 42", "policies/SPY/policy_seed_42.pt") == POLICY + b"SPY"
    assert "policies/SPY/policy_seed_42.pt.manifest.json" in seen.artifacts("seed 42")
    assert "jaxtrader.missing" not in seen.run(PARENT).data.tags


def test_a_file_that_cannot_be_read_is_named_and_the_other_runs_are_uploaded(root, capsys):
    layout = write_run(root, seeds=[42])
    describe(layout, name="20260202T000001Z", key="d00d", seeds=[7], reports=[])
    layout.updates(42).unlink()
    layout.updates(42).mkdir()
    assert main(["upload-runs", str(root)]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert f"{NAME}: not all is in MLflow: [Errno 21] Is a directory: '{layout.updates(42)}'" in (
        first
    )
    assert "; check the path, its permissions" in first
    assert second.startswith("20260202T000001Z: uploaded")


def test_a_folder_that_cannot_be_looked_at_is_named(tmp_path, capsys):
    folder = tmp_path / ("x" * 300)
    assert main(["upload-runs", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno 36] File name too long: ")
    assert str(folder) in error
    assert "; check the path, its permissions and the free space" in error


def test_a_summary_that_cannot_be_read_is_named(root):
    layout = write_run(root)
    (layout.report(REPORT) / "summary.json").write_text("{")
    with pytest.raises(
        JaxtraderError, match=r"summary\.json: cannot be read .*; restore it, or rem"
    ):
        upload_once(layout, NAME)
