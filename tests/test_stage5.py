"""The stage-5 command from end to end, on a tiny configuration."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pandas as pd
import pytest
import yaml
from small_runs import CONFIG, SEEDS, STEPS_PER_UPDATE, write_bars

from experiments import stage5
from jaxtrader import api
from jaxtrader.config import TrainingConfig
from jaxtrader.deployment import ExportedPolicy
from jaxtrader.errors import DataError, ExportError
from jaxtrader.gates import STAGE5_GATES, GateResult
from jaxtrader.outputs import OutputLayout
from jaxtrader.reporting import summary as summaries

ROOT = Path(__file__).resolve().parents[1]
SEED = 1337
UPDATES = 20
STEPS = UPDATES * STEPS_PER_UPDATE


@pytest.fixture(scope="module", autouse=True)
def leave_this_process_as_it_is():
    """What the command does to its own process would recompile other tests' programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage5, "use_compilation_cache", lambda: None)
        patch.setattr(stage5, "be_deterministic", lambda: None)
        patch.setattr(stage5, "use_full_precision", lambda: None)
        yield


def settings(folder: Path, **ppo) -> Path:
    """A YAML file with the tiny configuration."""
    values = json.loads(json.dumps(CONFIG.to_dict()))
    values["ppo"] |= {"total_timesteps": STEPS, **ppo}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def stage5_main(*arguments) -> SimpleNamespace:
    """Runs the command in this process; MLflow has tests of its own."""
    arguments = ("--tracking", "off", *arguments)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = stage5.main([str(argument) for argument in arguments])
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue())


def one_line(text: str) -> str:
    return " ".join(text.split())


def reports(folder: Path) -> list[Path]:
    return sorted((folder / "reports" / "stage5_validation").iterdir())


def read_summary(folder: Path) -> dict:
    return json.loads((reports(folder)[-1] / "summary.json").read_text(encoding="utf-8"))


def figures(summary: dict) -> list[dict]:
    """What a run has come to, without where its files are."""
    agents = json.loads(json.dumps(summary["agents"]))
    for agent in agents:
        if agent["policy"]:
            del agent["policy"]["path"]
            del agent["policy"]["sha256"]  # the commit is inside the file, and its name is a clock
    return agents


def contents(*folders: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One seed on the synthetic market, from start to end; its folder is not to be written to."""
    folder = tmp_path_factory.mktemp("study")
    config = settings(folder)
    arguments = ("--config", config, "--seeds", SEED, "--output-dir", folder / "run")
    result = stage5_main(*arguments)
    assert result.err == ""
    return SimpleNamespace(
        result=result, config=config, root=folder / "run", summary=read_summary(folder / "run")
    )


@pytest.fixture
def copied(study, tmp_path):
    """A copy of that folder to play with."""
    shutil.copytree(study.root, tmp_path / "run")
    return tmp_path / "run"


def quick(study, folder, *arguments):
    """The command on the same market, with nothing to train."""
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", folder)
    return stage5_main(*options, "--skip-training", *arguments)


@pytest.fixture
def known_parity(study, monkeypatch):
    """Exports are replaced by what the study has shown, for tests that are about other things."""
    parity = study.summary["agents"][0]["policy"]["parity"]
    known = SimpleNamespace(**parity)

    def export_agent(program, params, observations, s, k, path, process, **options):
        manifest = SimpleNamespace(sha256="0" * 64)
        return ExportedPolicy(path, manifest, known)

    monkeypatch.setattr(stage5, "export_agent", export_agent)
    monkeypatch.setattr(stage5, "sample_observations", lambda *arguments: None)


# ---------------------------------------------------------------------------------- one whole run


def test_the_status_is_the_gates(study):
    agents = study.summary["agents"]
    assert study.result.status == (0 if study.summary["passed"] else 1)
    assert study.summary["passed"] == all(agent["passed"] for agent in agents)
    for agent in agents:
        assert agent["passed"] == all(gate["passed"] for gate in agent["gates"])
        for gate, expected in zip(agent["gates"], STAGE5_GATES, strict=True):
            assert gate["metric"] == expected.metric
            assert gate["value"] == agent["evaluation"]["telemetry"][gate["metric"]]
            assert gate["passed"] == expected.passes(gate["value"])
    assert "all gates" in study.result.out


def test_the_start_says_what_is_trained_on(study):
    banner = one_line(study.result.out)
    assert "SYNTHETIC data: 1 symbol, 840 bars of 1Hour" in banner
    assert "2000-01-03 to 2000-06-22" in banner
    for split in ("train", "validation", "test"):
        assert re.search(rf"{split}: [\d,]+ bars", banner)
    assert "costs retail, fill next_open, reward professional" in banner
    assert banner.index("SYNTHETIC") < banner.index("update 2/20")


def test_files_lie_where_the_readme_says(study):
    root = study.root
    [report] = reports(root)
    assert re.fullmatch(r"\d{8}T\d{6}Z", report.name)
    assert {path.name for path in report.iterdir()} == {
        "summary.json",
        "summary.md",
        "report.html",
        "equity_SYNTH.png",
    }
    logs = root / "logs" / "stage5" / str(SEED)
    names = {"telemetry.csv", "updates.csv", "evaluation_test.csv", "run.txt"}
    assert {path.name for path in logs.iterdir()} == names
    agents = root / "models" / "rl" / "symbol_agents" / "SYNTH"
    assert {path.name for path in agents.iterdir()} == {
        f"seed_{SEED}",
        f"policy_seed_{SEED}.pt",
        f"policy_seed_{SEED}.pt.manifest.json",
    }
    kept = sorted(int(path.name) for path in (agents / f"seed_{SEED}").iterdir())
    assert kept[-2:] == [18, 20]
    assert 2 <= len(kept) <= 5
    assert study.summary["agents"][0]["checkpoint"]["update"] in kept
    assert (report / "equity_SYNTH.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]


def test_the_tables_hold_what_was_trained(study):
    layout = OutputLayout(study.root)
    updates = pd.read_csv(layout.updates(SEED))
    assert updates["update"].tolist() == list(range(1, UPDATES + 1))
    episodes = pd.read_csv(layout.telemetry(SEED))
    assert episodes["update"].between(1, UPDATES).all()
    late = episodes[episodes["update"] > 15]
    telemetry = study.summary["agents"][0]["training_telemetry"]
    assert telemetry["episode_reward_mean"] == pytest.approx(late["reward"].mean())
    assert len(pd.read_csv(layout.evaluation(SEED, "test"))) == 4


def validate(summary: dict) -> None:
    jsonschema.Draft202012Validator(summaries.schema()).validate(summary)


def test_the_summary_obeys_its_schema(study):
    validate(study.summary)
    text = (reports(study.root)[0] / "summary.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity


def test_the_schema_is_one_and_describes_every_property():
    schema = summaries.schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def walk(node, where):
        if not isinstance(node, dict):
            return
        for name, child in node.get("properties", {}).items():
            assert child.get("description"), f"{where}/{name} has no description"
        if "properties" in node:
            assert node["additionalProperties"] is False, where
        for key, child in node.items():
            for item in child if isinstance(child, list) else [child]:
                walk(item, f"{where}/{key}")

    walk(schema, "#")


def test_the_schema_refuses_what_is_not_in_it(study):
    for change in (
        {"new_key": 1},
        {"schema_version": 2},
        {"passed": None},
        {"agents": []},
        {"training": {}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validate({**study.summary, **change})


def test_the_summary_says_what_was_run(study):
    summary = study.summary
    assert summary["created"] == reports(study.root)[0].name
    assert summary["command"][:3] == ["python", "-m", "experiments.stage5"]
    assert summary["command"][-1] == str(study.root)
    assert summary["data"]["kind"] == "synthetic"
    stored = TrainingConfig.from_dict(summary["config"])
    assert stored.network == CONFIG.network
    assert stored.ppo.total_timesteps == STEPS
    training = summary["training"]
    assert (training["updates"], training["steps_per_seed"]) == (UPDATES, STEPS)
    assert (training["skipped"], training["extended_to"]) == (False, None)
    assert training["steps_per_second"] > 0


def test_the_markdown_has_every_agent_and_figure(study):
    text = (reports(study.root)[0] / "summary.md").read_text()
    [agent] = study.summary["agents"]
    assert f"SYNTH seed {SEED}" in text
    assert "SYNTHETIC" in text
    for gate in agent["gates"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {gate['metric']} "))
        assert f"{gate['value']:.3f} {'pass' if gate['passed'] else '**FAIL**'}" in line
    assert f"{agent['evaluation']['total_return']:+.2%}" in text
    assert f"{agent['evaluation']['buy_and_hold']['total_return']:+.2%}" in text
    assert "buy and hold" in text
    assert agent["policy"]["path"] in text
    for warning in agent["warnings"]:
        assert warning in text
    widths = {}
    for line in text.splitlines():
        if line.startswith("|"):
            widths.setdefault(line.count("|"), []).append(line)
    assert all(len(lines) >= 3 for lines in widths.values())  # no row shorter than its table


def test_the_command_in_the_markdown_can_be_pasted(study, copied, known_parity):
    folder = copied.parent / "with a space"
    copied.rename(folder)
    quick(study, folder)
    text = (reports(folder)[-1] / "summary.md").read_text()
    assert f"--output-dir '{folder}'" in text
    assert "Needs the checkpoints that an earlier run left in the output folder." in text


def test_the_exported_policy_is_the_agent(study):
    import jaxtrader as jt

    [agent] = study.summary["agents"]
    policy = agent["policy"]
    assert policy["parity"]["passed"]
    assert policy["parity"]["jax_absent"]
    assert policy["parity"]["observations"] >= 10_000
    assert policy["parity"]["largest_logit_difference"] < 1e-5
    loaded = jt.load_policy(policy["path"])
    assert loaded.metadata["training_data_fingerprint"] == study.summary["data"]["fingerprint"]
    assert loaded.metadata["training_data_kind"] == "synthetic"
    assert loaded.metadata["metrics"] == agent["evaluation"]["performance"]
    manifest = json.loads(Path(policy["path"] + ".manifest.json").read_text())
    assert manifest["sha256"] == policy["sha256"]


# -------------------------------------------------------------------------------------- gates


def judged(monkeypatch, passed: bool) -> None:
    def check_gates(metrics):
        return [
            GateResult(g.metric, float(metrics[g.metric]), passed, g.bound) for g in STAGE5_GATES
        ]

    monkeypatch.setattr(summaries, "check_gates", check_gates)


@pytest.mark.parametrize("passed", [True, False])
def test_gates_decide_the_status(study, copied, known_parity, monkeypatch, passed):
    judged(monkeypatch, passed)
    result = quick(study, copied)
    assert result.status == (0 if passed else 1)
    assert ("pass" if passed else "FAIL") in result.out
    assert ("the run is complete; its exit status is 1" in one_line(result.out)) != passed
    text = (reports(copied)[-1] / "summary.md").read_text()
    assert ("**passed**" if passed else "**failed**") in text


def test_an_agent_that_never_traded_is_not_left_to_be_puzzled_out(
    study, copied, known_parity, monkeypatch
):
    """A short training leaves a policy that mostly holds: its greedy form only holds."""
    said = "it never traded: after 2,560 steps the likeliest action is HOLD"
    assert not any(w.startswith(said) for w in study.summary["agents"][0]["warnings"])
    evaluate_agents = stage5.evaluate_agents

    def idle(*arguments):
        [[evaluation]] = evaluate_agents(*arguments)
        episodes = evaluation.episodes.assign(closed_trades=0)
        changes = {"trades": evaluation.trades.iloc[:0], "episodes": episodes}
        return [[dataclasses.replace(evaluation, **changes)]]

    monkeypatch.setattr(stage5, "evaluate_agents", idle)
    result = quick(study, copied)
    assert read_summary(copied)["agents"][0]["warnings"][0].startswith(said)
    assert f"warning: {said}" in one_line(result.out)


def test_a_policy_that_cannot_be_written_costs_the_status_and_not_the_report(
    study, copied, known_parity, monkeypatch
):
    def fail(*arguments, **keywords):
        raise ExportError("policy.pt: no space left")

    judged(monkeypatch, passed=True)
    monkeypatch.setattr(stage5, "export_agent", fail)
    again = quick(study, copied)
    assert again.status == 1
    assert "not exported" in again.out
    [agent] = read_summary(copied)["agents"]
    assert agent["policy"] is None
    assert any("no space left" in warning for warning in agent["warnings"])


def test_a_policy_that_differs_from_jax_costs_the_status(study, copied, known_parity, monkeypatch):
    parity = study.summary["agents"][0]["policy"]["parity"]
    differing = SimpleNamespace(**parity | {"passed": False, "largest_logit_difference": 0.5})

    def differ(program, params, observations, s, k, path, process, **options):
        return ExportedPolicy(path, SimpleNamespace(sha256="0" * 64), differing)

    judged(monkeypatch, passed=True)
    monkeypatch.setattr(stage5, "export_agent", differ)
    again = quick(study, copied)
    assert again.status == 1
    assert "parity FAIL" in again.out


def test_skip_training_refuses_settings_it_would_ignore(study, copied):
    again = quick(study, copied, "--environment.costs", "free")
    assert again.status == 2
    assert "--environment.*" in again.err


def test_pytest_has_a_say(study, copied, known_parity, monkeypatch):
    """It runs on this report; when it fails, so does the command."""
    judged(monkeypatch, True)
    asked = []

    def run(command, **options):
        asked.append((command, options["env"][stage5.REPORT_VARIABLE]))
        return SimpleNamespace(returncode=len(asked) - 1)

    monkeypatch.setattr(stage5.subprocess, "run", run)
    assert quick(study, copied, "--run-pytest").status == 0
    assert quick(study, copied, "--run-pytest").status == 1
    (command, report), _ = asked
    assert command[1:4] == ["-m", "pytest", "-q"]
    assert command[4:] == ["tests/test_stage5_validation.py"]
    assert Path(report) in reports(copied)


@pytest.mark.slow
def test_run_pytest_validates_the_report(study, copied, known_parity, monkeypatch, capfd):
    judged(monkeypatch, True)
    assert quick(study, copied, "--run-pytest").status == 0
    assert " passed" in capfd.readouterr().out


# -------------------------------------------------------------------------- existing checkpoints


def test_skip_training_repeats_the_evaluation_and_touches_no_training(study, copied, tmp_path):
    """With the settings stored beside the checkpoints, whatever --config says of training."""
    trained = (copied / "models" / "rl" / "symbol_agents" / "SYNTH" / f"seed_{SEED}",)
    tables = [copied / "logs" / "stage5" / str(SEED) / f"{t}.csv" for t in ("telemetry", "updates")]
    before = contents(*trained), [table.read_bytes() for table in tables]
    other = settings(tmp_path, learning_rate=0.5, num_envs=4)
    result = stage5_main(
        "--config", other, "--seeds", SEED, "--output-dir", copied, "--skip-training"
    )
    assert result.err == ""
    assert (contents(*trained), [table.read_bytes() for table in tables]) == before
    summary = read_summary(copied)
    validate(summary)
    assert len(reports(copied)) == 2
    assert summary["training"]["skipped"] is True
    assert summary["training"]["steps_per_second"] is None
    assert summary["config"] == study.summary["config"]
    assert figures(summary) == figures(study.summary)


def test_skip_training_on_another_split(study, copied, known_parity):
    result = quick(study, copied, "--evaluation-split", "validation", "--evaluation-episodes", 7)
    summary = read_summary(copied)
    assert result.status in (0, 1)
    assert summary["agents"][0]["evaluation"]["split"] == "validation"
    assert summary["agents"][0]["evaluation"]["random_start_episodes"] == 7
    assert (copied / "logs" / "stage5" / str(SEED) / "evaluation_validation.csv").is_file()


def test_the_share_of_what_perfect_foresight_would_have_earned(study, copied, known_parity):
    result = quick(study, copied, "--evaluation.perfect-foresight")
    assert result.err == ""
    summary = read_summary(copied)
    validate(summary)
    evaluation = summary["agents"][0]["evaluation"]
    foresight = evaluation["perfect_foresight"]
    attained, bound = foresight["attained_log_wealth"], foresight["bound_log_wealth"]
    assert 0.0 < attained < bound
    earned = math.log1p(evaluation["total_return"])
    assert earned < attained
    shares = sorted([earned / attained, earned / bound])
    assert [foresight["captured_at_least"], foresight["captured_at_most"]] == pytest.approx(shares)
    text = (reports(copied)[-1] / "summary.md").read_text()
    row = next(line for line in text.splitlines() if line.endswith(f"| {math.expm1(bound):+.2%} |"))
    assert row.startswith(f"| SYNTH seed {SEED} | ")
    assert f"| {math.expm1(attained):+.2%} |" in row


def test_a_split_too_long_for_the_oracle_is_a_warning(study, copied, known_parity, monkeypatch):
    def refuse(program, s, split):
        raise DataError("the split is too long")

    monkeypatch.setattr(stage5, "foresight_ceiling", refuse)
    result = quick(study, copied, "--evaluation.perfect-foresight")
    [agent] = read_summary(copied)["agents"]
    assert agent["evaluation"]["perfect_foresight"] is None
    assert "no comparison with perfect foresight: the split is too long" in agent["warnings"]
    assert "the split is too long" in one_line(result.out)
    assert "With perfect foresight" not in (reports(copied)[-1] / "summary.md").read_text()


def test_skip_training_without_the_logs(study, copied, known_parity):
    """Models alone are enough to evaluate."""
    shutil.rmtree(copied / "logs")
    result = quick(study, copied)
    assert result.err == ""
    summary = read_summary(copied)
    validate(summary)
    assert summary["agents"][0]["training_telemetry"] == {}
    assert summary["agents"][0]["evaluation"] == study.summary["agents"][0]["evaluation"]


def test_a_new_run_moves_the_old_one_aside(study, copied, known_parity):
    old = contents(copied)
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", copied)
    result = stage5_main(*options, "--total-timesteps", 100)
    assert result.status in (0, 1)
    new = contents(copied)
    assert not Counter(old.values()) - Counter(new.values())  # every old file is still somewhere
    assert len(reports(copied)) == 2
    assert read_summary(copied)["training"]["updates"] == 1
    for name in (
        f"logs/stage5/{SEED}.until-*",
        f"models/rl/symbol_agents/SYNTH/seed_{SEED}.until-*",
    ):
        assert len(list(copied.glob(name))) == 1


# ------------------------------------------------------------------------------ going on


@pytest.mark.slow
def test_control_c_and_resume_end_like_an_uninterrupted_run(study, tmp_path, known_parity):
    """Another process is interrupted; what it left is gone on with here."""
    folder = tmp_path / "run"
    arguments = ["--config", study.config, "--seeds", SEED, "--output-dir", folder]
    options = ("--nondeterministic", "--tracking", "off")
    process = subprocess.Popen(
        [sys.executable, "-um", "experiments.stage5", *map(str, arguments), *options],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("update "):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(r"stopped after update \d+ of 20; the state is saved", err)
    assert "Go on with the same command and --resume" in err
    assert "Traceback" not in err

    result = stage5_main(*arguments, "--resume")
    assert "resuming after update" in result.out
    resumed, straight = read_summary(folder), study.summary
    expected = figures(straight)
    for agent, known in zip(figures(resumed), expected, strict=True):
        del agent["policy"], known["policy"]
        assert agent == known
    for name in ("telemetry.csv", "updates.csv"):
        path = Path("logs") / "stage5" / str(SEED) / name
        assert (folder / path).read_bytes() == (study.root / path).read_bytes()


def test_extended_when_the_gates_are_cleared(study, tmp_path, known_parity, monkeypatch):
    monkeypatch.setattr(stage5, "cleared_gates", lambda run, steps: {f"seed {SEED}": True})
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", tmp_path)
    result = stage5_main(*options, "--total-timesteps", 4 * 128, "--extend-to", 6 * 128)
    assert "all agents cleared entropy and voluntary trades: on to 768" in one_line(result.out)
    summary = read_summary(tmp_path)
    validate(summary)
    assert (summary["training"]["extended_to"], summary["training"]["updates"]) == (768, 6)


def test_not_extended_when_an_agent_has_not_cleared_them(
    study, tmp_path, known_parity, monkeypatch
):
    monkeypatch.setattr(
        stage5, "cleared_gates", lambda run, steps: {"seed 1": True, "seed 2": False}
    )
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", tmp_path)
    result = stage5_main(*options, "--total-timesteps", 4 * 128, "--extend-to", 6 * 128)
    assert "not extended: entropy or voluntary trade rate not cleared by seed 2" in result.out
    summary = read_summary(tmp_path)
    assert (summary["training"]["extended_to"], summary["training"]["updates"]) == (None, 4)


# ---------------------------------------------------------------------------- several symbols


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_bars(tmp_path_factory.mktemp("data"))


def test_real_bars_several_symbols_and_seeds(study, data_dir, tmp_path, known_parity):
    result = stage5_main(
        "--config", settings(tmp_path), "--data-dir", data_dir, "--symbols", "AAA", "BBB",
        "--seeds", *SEEDS, "--total-timesteps", 4 * 128, "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert result.err == ""
    assert "REAL data: 2 symbols" in result.out
    summary = read_summary(tmp_path / "run")
    validate(summary)
    assert summary["data"]["kind"] == "real"
    agents = [(agent["symbol"], agent["seed"]) for agent in summary["agents"]]
    assert agents == [(symbol, seed) for symbol in ("AAA", "BBB") for seed in SEEDS]
    folder = reports(tmp_path / "run")[0]
    text = (folder / "summary.md").read_text()
    assert all(f"{symbol} seed {seed}" in text for symbol, seed in agents)
    assert {path.name for path in folder.glob("*.png")} == {"equity_AAA.png", "equity_BBB.png"}
    layout = OutputLayout(tmp_path / "run")
    for seed in SEEDS:
        rows = pd.read_csv(layout.evaluation(seed, "test"))
        assert rows["symbol"].tolist() == ["AAA"] * 4 + ["BBB"] * 4
        assert set(pd.read_csv(layout.updates(seed))["symbol"]) == {"AAA", "BBB"}


def test_a_halted_agent_is_reported(study, tmp_path, known_parity, monkeypatch):
    def poisoned(arguments, config):
        dataset = api.synthetic_market(arguments.symbols, config)
        features = dataset.raw_features.copy()
        first, last = dataset.splits["train"]
        features[0, first[0] : last[0] + 1, 0] = np.nan
        return dataclasses.replace(dataset, raw_features=features)

    monkeypatch.setattr(stage5, "load_data", poisoned)
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", tmp_path)
    result = stage5_main(*options, "--total-timesteps", 4 * 128)
    reason = "halted at update 1: the loss or its gradient was not finite"
    assert result.status in (0, 1)
    assert f"warning: {reason}" in one_line(result.out)
    summary = read_summary(tmp_path)
    validate(summary)
    assert summary["agents"][0]["halted"] == reason
    assert reason in summary["agents"][0]["warnings"]
    assert reason in (reports(tmp_path)[0] / "summary.md").read_text()


# -------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--symbols", "AAA"], ["--symbols AAA needs --data-dir", "leave --symbols out"]),
        (["--data-dir", "DATA", "--symbols", "AAB"], ["no such symbol", "AAA"]),
        (["--data-dir", "DATA"], ["SPY: no such symbol"]),
        (["--data-dir", "nowhere", "--symbols", "AAA"], ["nowhere", "historical/<SYMBOL>"]),
        (["--data-dir", "DATA", "--symbols", "AAA", "AAA"], ["names one twice"]),
        (["--data-dir", "DATA", "--symbols", "AAA", "--data.timeframe", "5Min"], ["1Hour"]),
        (["--seeds", "1", "1"], ["--seeds 1 1: names one twice"]),
        (["--seeds", "-1"], ["give integers from 0 to 2^32 - 1"]),
        (["--config", "absent.yaml"], ["absent.yaml: cannot be read", "phase3_ppo_baseline"]),
        (["--config", "WRONG"], ["unknown key 'learning_rte'", "did you mean 'learning_rate'"]),
        (["--ppo.gamma", "2"], ["gamma = 2.0: must be between 0 and 1"]),
        (["--ppo.batch-size", "96"], ["is not a multiple of batch_size = 96"]),
        (["--total-timesteps", "0"], ["total_timesteps = 0: must be greater than 0"]),
        (["--n-envs", "0"], ["num_envs = 0: must be greater than 0"]),
        (["--data.synthetic-sessions", "20"], ["give more bars", "each split needs 65"]),
        (["--environment.episode-length", "640"], ["a shorter episode"]),
        (["--evaluation-episodes", "999"], ["evaluation episodes = 999", "different starts"]),
        (["--evaluation.seed", "-1"], ["seed = -1: must be 0 or more"]),
        (["--extend-to", "100"], ["--extend-to 100 must be more than the first run's 2560 steps"]),
        (["--skip-training", "--resume"], ["leave out --resume"]),
        (["--skip-training"], ["no checkpoints of SYNTH seed 1337", "train first"]),
        (["--resume"], ["no checkpoints of SYNTH seed 1337", "--output-dir"]),
        (["--run-pytest", "--pytest-args", "tests/absent.py"], ["there is no tests/absent.py"]),
    ],
)  # fmt: skip
def test_bad_input_is_status_2_and_named_before_anything_is_written(
    study, data_dir, tmp_path, monkeypatch, arguments, expected
):
    monkeypatch.chdir(tmp_path)  # where no data/ lies
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("ppo: {learning_rte: 1}\n")
    named = {"DATA": str(data_dir), "WRONG": str(wrong)}
    folder = tmp_path / "run"
    result = stage5_main(
        "--config", study.config, "--seeds", SEED, "--output-dir", folder,
        *(named.get(argument, argument) for argument in arguments),
    )  # fmt: skip
    assert result.status == 2
    message = one_line(result.err)
    assert message.startswith("error: ")
    for text in expected:
        assert text in message
    assert not folder.exists()


def test_bars_in_the_folder_at_hand_are_found(data_dir, tmp_path, monkeypatch):
    """With --symbols and without --data-dir; without either, the market is synthetic."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(data_dir)
    found = stage5.parse_arguments(["--symbols", "AAA"])
    assert (found.data_dir, found.symbols) == (Path("data"), ("AAA",))
    found = stage5.parse_arguments([])
    assert (found.data_dir, found.symbols) == (None, ("SYNTH",))
    found = stage5.parse_arguments(["--data-dir", str(data_dir)])
    assert found.symbols == ("SPY",)


def test_the_command_line_is_over_the_file_is_over_the_defaults(tmp_path):
    path = settings(tmp_path, learning_rate=0.01, num_epochs=3)
    found = stage5.parse_arguments(
        ["--config", str(path), "--ppo.learning-rate", "0.02", "--n-envs", "4"]
    ).settings
    assert (found.ppo.learning_rate, found.ppo.num_envs, found.ppo.num_epochs) == (0.02, 4, 3)
    assert found.ppo.clip_ratio == 0.2
    again = stage5.parse_arguments([f"--config={path}"]).settings
    assert again.ppo.learning_rate == 0.01


def test_an_unknown_option_is_status_2_and_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        stage5.main(["--totl-timesteps", "5"])
    assert caught.value.code == 2
    assert "--total-timesteps" in one_line(capsys.readouterr().err)


def test_other_settings_than_the_checkpoints_are_status_2(study, copied):
    """Resuming with them; --skip-training takes the stored ones."""
    before = contents(copied)
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", copied, "--resume")
    result = stage5_main(*options, "--network.hidden", 12)
    assert result.status == 2
    assert "was made with network.hidden = 16, and now it is 12" in one_line(result.err)
    assert contents(copied) == before


def test_an_output_folder_that_cannot_be_written_is_status_2(study, tmp_path):
    (tmp_path / "file").write_text("mine")
    options = ("--config", study.config, "--seeds", SEED)
    result = stage5_main(*options, "--output-dir", tmp_path / "file")
    assert result.status == 2
    assert "choose another --output-dir" in one_line(result.err)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_torch_is_told_before_training(study, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxtrader.export.torchscript", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    options = ("--config", study.config, "--seeds", SEED, "--output-dir", tmp_path / "run")
    result = stage5_main(*options)
    assert result.status == 2
    assert "pip install -e '.[export]'" in one_line(result.err)
    assert not (tmp_path / "run").exists()


def test_control_c_after_training_says_how_to_go_on(study, copied, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage5, "evaluate_agents", interrupted)
    result = quick(study, copied)
    assert result.status == 130
    assert "--skip-training" in result.err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        stage5.main(["--help"])
    assert caught.value.code == 0
    text = one_line(capsys.readouterr().out.replace("│", " "))
    for option in dataclasses.fields(stage5.Arguments):
        if option.name != "settings":
            assert f"--{option.name.replace('_', '-')}" in text
    for phrase in (
        "Exit status: 0 when every agent passes every gate",
        "--ppo.learning-rate",
        "historical/<SYMBOL>/<timeframe>/data.parquet",
        "Go on from the latest checkpoints",
        "python -m experiments.stage5 --seeds 42 1337 9001",
    ):
        assert phrase in text
