"""Runs written by hand, and everything that an MLflow store has of them, by MLflow's own client.

Points are worked out from the tables anew, with pandas.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tools import library

from jaxtrader.outputs import OutputLayout

MlflowClient = library("mlflow.tracking").MlflowClient

ROOT = Path(__file__).resolve().parents[1]
NAME = "20260131T235959Z"
REPORT = "20260201T000500Z"
STARTED = 1_769_903_999_250  # ms: 2026-01-31T23:59:59.250Z
REPORTED = 1_769_904_300_000
ENDED = 1_769_904_400_000
STEPS = 128  # an update
POLICY = b"a policy"
RUNNING = {"status": "running", "ended": None, "reports": []}
MEANS = {"episode_reward_mean": "reward", "episode_log_return_mean": "log_return"}

# mlflow 3.17.2 under SQLAlchemy 2.1.
ignores_mlflows_warning = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated"
)


# ------------------------------------------------------------------------- a run written by hand


def updates_table(seed: int, symbols: list[str], first: int, last: int) -> pd.DataFrame:
    """Rows of the table of updates, with all that a field of it can be."""
    rng = np.random.default_rng(seed)
    rows = []
    for update in range(1, last + 1):
        for symbol in symbols:
            values = rng.standard_normal(2) * 10.0 ** rng.integers(-9, 9)
            rows.append(
                {
                    "symbol": symbol,
                    "seed": seed,
                    "update": update,
                    "steps": update * STEPS,
                    "reward_mean": values[0],
                    "loss": {3: math.inf, 4: math.nan, 5: -math.inf}.get(update, values[1]),
                    "guard_triggered": update % 3 == 0,
                    "guard_rescues": update // 3,
                    "validation_sharpe": values[1] if update % 2 == 0 else math.nan,
                }
            )
    table = pd.DataFrame(rows)
    return table[table["update"] >= first]


def episodes_table(seed: int, symbols: list[str], first: int, last: int) -> pd.DataFrame:
    """Rows of the telemetry table: none in every fourth update, else one to three a symbol."""
    rng = np.random.default_rng(seed + 1)
    rows = []
    for update in range(1, last + 1):
        for symbol in symbols:
            for env in range(0 if update % 4 == 0 else 1 + update % 3):
                reward, log_return = rng.standard_normal(2)
                rows.append(
                    {
                        "symbol": symbol,
                        "seed": seed,
                        "update": update,
                        "steps_done": update * STEPS,
                        "env": env,
                        "reward": reward,
                        "log_return": math.nan if update == 2 else log_return,
                    }
                )
    table = pd.DataFrame(rows)
    return table[table["update"] >= first]


def write_rows(layout, seed, symbols, last, first=1):
    """Writes or appends whole updates."""
    layout.logs(seed).mkdir(parents=True, exist_ok=True)
    for path, table in (
        (layout.updates(seed), updates_table(seed, symbols, first, last)),
        (layout.telemetry(seed), episodes_table(seed, symbols, first, last)),
    ):
        text = table.to_csv(index=False, header=first == 1, lineterminator="\n")
        with path.open("w" if first == 1 else "a", encoding="utf-8") as file:
            file.write(text)


def description(**changes) -> dict:
    """What a run says of itself."""
    return {
        "name": NAME,
        "key": "8c0ffee8",
        "study": "stage5",
        "sessions": 1,
        "status": "finished",
        "started": "2026-01-31T23:59:59.250+00:00",
        "ended": "2026-02-01T00:06:40.000+00:00",
        "command": ["python", "-m", "experiments.stage5", "--output-dir", "a b"],
        "agent_type": "symbol",
        "symbols": ["SPY"],
        "seeds": [42, 7],
        "curriculum_stage": "none",
        "reward_version": "3.1",
        "config": {"ppo": {"learning_rate": 3e-4, "total_timesteps": 640}, "data": {"x": [1, 2]}},
        "data": {"kind": "synthetic", "timeframe": "1Hour", "fingerprint": "f1"},
        "environment": {
            "git_commit": "abc123+dirty",
            "versions": {"python": "3.11.7", "jax": "0.10.2"},
            "machine": {"platform": "Linux", "backend": "cpu"},
            "packages": {"numpy": "2.4.6"},
        },
        "episode_means": MEANS,
        "reports": [REPORT],
        "format_version": 1,
    } | changes


def describe(layout, **changes) -> None:
    """Writes the description of a run."""
    run = description(**changes)
    path = layout.run_record(run["name"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run), encoding="utf-8")
    for seed in run["seeds"]:
        layout.logs(seed).mkdir(parents=True, exist_ok=True)
        layout.run_name(seed).write_text(run["name"] + "\n")


def agent(symbol: str, seed: int, **changes) -> dict:
    """One agent of a report's summary, as far as it matters here."""
    return {
        "symbol": symbol,
        "seed": seed,
        "passed": False,
        "gates": [
            {"metric": "voluntary_trade_rate", "value": 0.5, "passed": True, "bound": ">= 0.10"},
            {"metric": "forced_exit_ratio", "value": 0.9, "passed": False, "bound": "<= 0.10"},
        ],
        "warnings": ["look at this"],
        "halted": None,
        "evaluation": {
            "split": "test",
            "first_timestamp": "2025-03-21T14:30:00+00:00",
            "total_return": seed / 1000,
            "ended_early": False,
            "performance": {"sharpe_ratio": 1.25, "profit_factor": None},
        },
        "policy": {"sha256": hashlib.sha256(POLICY + symbol.encode()).hexdigest()},
    } | changes


def write_report(layout, agents: list[dict], name: str = REPORT) -> None:
    """Writes a report with its policies."""
    folder = layout.report(name)
    folder.mkdir(parents=True)
    summary = {
        "created": name,
        "training": {"updates": 5, "steps_per_seed": 5 * STEPS, "steps_per_second": None},
        "agents": agents,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "summary.md").write_text("# read me")
    (folder / "equity.png").write_bytes(b"\x89PNG")
    for each in agents:
        policy, manifest = layout.policy_files(each["symbol"], each["seed"])
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_bytes(POLICY + each["symbol"].encode())
        manifest.write_text(json.dumps({"sha256": each["policy"]["sha256"]}))


def write_run(root: Path, *, symbols=("SPY",), seeds=(42, 7), last=5, **changes) -> OutputLayout:
    """A whole run that has ended: description, tables, report and policies."""
    layout, symbols, seeds = OutputLayout(root), list(symbols), list(seeds)
    describe(layout, symbols=symbols, seeds=seeds, **changes)
    for seed in seeds:
        write_rows(layout, seed, symbols, last)
    write_report(layout, [agent(symbol, seed) for symbol in symbols for seed in seeds])
    return layout


# ------------------------------------------------------------------------------ what a store has


def table_points(path: Path, started: int, prefix, keep, steps: str) -> dict:
    """(metric, step) -> (value, time) of a table, read anew by pandas."""
    table = pd.read_csv(path, dtype={"symbol": str}, keep_default_na=False, na_values=[""])
    found = {}
    for (update, symbol), rows in table.groupby(["update", "symbol"]):
        for metric, column in keep(table).items():
            value = float(rows[column].astype(float).mean(skipna=False))
            if math.isfinite(value):
                step = int(rows[steps].iloc[0])
                found[prefix(symbol) + metric, step] = (value, started + int(update))
    return found


def expected_points(folder: Path, run: dict, several: bool) -> dict:
    """Of one seed's two tables; `run` is the description."""
    started = round(pd.Timestamp(run["started"]).timestamp() * 1000)

    def prefix(symbol):
        return f"{symbol.replace('^', '_5e_').replace('=', '_3d_')}/" if several else ""

    def columns(table):
        return {f"train/{c}": c for c in table.columns.difference(
            ["symbol", "seed", "update", "steps"])}  # fmt: skip

    means = {f"episodes/{metric}": column for metric, column in run["episode_means"].items()}
    updates = table_points(folder / "updates.csv", started, prefix, columns, "steps")
    episodes = table_points(
        folder / "telemetry.csv", started, prefix, lambda table: means, "steps_done"
    )
    return updates | episodes


class Seen:
    """Everything that an MLflow store has."""

    def __init__(self, uri: str, experiment: str = "stage5"):
        self.client = MlflowClient(uri)
        self.name = experiment

    @property
    def experiment(self) -> str | None:
        found = self.client.get_experiment_by_name(self.name)
        return found and found.experiment_id

    def runs(self) -> dict:
        """By name."""
        found = self.client.search_runs([self.experiment]) if self.experiment else []
        assert len({run.info.run_name for run in found}) == len(found), "a run is there twice"
        return {run.info.run_name: run for run in found}

    def run(self, name: str):
        return self.runs()[name]

    def points(self, name: str) -> dict:
        """(metric, step) -> (value, time) of a run, the latest; none may be there twice."""
        run, found, moments = self.run(name), {}, set()
        for metric in run.data.metrics:
            for m in self.client.get_metric_history(run.info.run_id, metric):
                moment = (m.key, m.step, m.timestamp)
                assert moment not in moments, f"{moment} is there twice"
                moments.add(moment)
                latest = found.get((m.key, m.step), (0, 0))[1] < m.timestamp
                found[m.key, m.step] = (m.value, m.timestamp) if latest else found[m.key, m.step]
        return found

    def training_points(self, name: str) -> dict:
        points = self.points(name)
        return {k: v for k, v in points.items() if "train/" in k[0] or "episodes/" in k[0]}

    def artifacts(self, name: str, folder: str | None = None) -> set[str]:
        found = set()
        for item in self.client.list_artifacts(self.run(name).info.run_id, folder):
            inside = self.artifacts(name, item.path) if item.is_dir else {item.path}
            found |= inside
        return found

    def artifact(self, name: str, path: str) -> bytes:
        return Path(self.client.download_artifacts(self.run(name).info.run_id, path)).read_bytes()

    def everything(self) -> dict:
        """To compare two moments."""
        return {
            name: (
                run.info.run_id, run.info.status, run.info.start_time, run.info.end_time,
                run.data.params, run.data.tags, self.points(name),
                {path: self.artifact(name, path) for path in self.artifacts(name)},
            )
            for name, run in self.runs().items()
        }  # fmt: skip


PARENT = f"SPY {NAME}"


def sqlite(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}"


def check_tables(seen: Seen, layout: OutputLayout, seeds=(42, 7), several=False) -> None:
    """Every finite value of the tables is a point, and there are no others.

    Except that the last update's episodes may not all be there where a run was killed.
    """
    [described, *_] = layout.runs.glob("*/run.json")
    run = json.loads(described.read_text())
    for seed in seeds:
        expected = expected_points(layout.logs(seed), run, several)
        if run["status"] not in ("finished", "interrupted"):
            means = [point for point in expected if "episodes/" in point[0]]
            last = max(step for _, step in means)
            expected = {k: v for k, v in expected.items() if k not in means or k[1] < last}
        assert len(expected) > 20
        found = seen.training_points(f"seed {seed}")
        assert found.keys() == expected.keys()
        for point, (value, moment) in expected.items():
            assert found[point][1] == moment
            if "train/" in point[0]:
                assert found[point][0] == value
            else:  # a mean, and nobody prescribes the order of the sum
                assert found[point][0] == pytest.approx(value, rel=1e-14)


# ----------------------------------------------------------------------------------- processes


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def eventually(condition, what: str):
    """Waits for another process."""
    error = None
    for _ in range(1200):
        try:
            if found := condition():
                return found
        except Exception as problem:  # it is not there yet
            error = problem
        time.sleep(0.1)
    pytest.fail(f"waited in vain for {what}: {error!r}")


class Server:
    """A real tracking server on loopback, that can be stopped and started again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = unused_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--host", "127.0.0.1", "--port", str(self.port)),
                    *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
            )
        eventually(self._answers, f"the server; see {self.folder / 'server.log'}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None
            eventually(lambda: not self._listens(), "the server to stop")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _answers(self) -> bool:
        with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return answer.status == 200


def command(*arguments, **options):
    """A real process, in which JAX cannot be imported."""
    code = "import sys; sys.modules['jax'] = None; from jaxtrader.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_command(*arguments) -> str:
    process = command(*arguments)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out + err
    return out
