"""Brings an MLflow store up to what a run has on disk. Done twice, it changes nothing.

What the store has is asked of the store: its runs are found by a tag with the run's key, and each
child run's tag `jaxtrader.sent` says how much of its tables is there and what that hashed to. It
travels in the call that carries the points before it, and MLflow drops points that it has: killed
anywhere and begun again, an upload ends the same.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jaxtrader.errors import JaxtraderError
from jaxtrader.files import Lock
from jaxtrader.outputs import OutputLayout
from jaxtrader.tracking.projection import (
    GrowingTable,
    Point,
    episode_points,
    evaluation_points,
    parameters,
    tags,
    training_points,
    update_points,
    verdict_tags,
)
from jaxtrader.tracking.record import RunRecord, milliseconds, read_record
from jaxtrader.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

T = TypeVar("T")

KEY_TAG = "jaxtrader.run"
SENT_TAG = "jaxtrader.sent"
COMPLETE_TAG = "jaxtrader.complete"  # sha256 of the description of which all has been sent
MISSING_TAG = "jaxtrader.missing"  # files that the description names and the disk does not have

_NOTE = (
    "Steps are environment steps of a seed. A value that is not finite has no point: the tables "
    "among a seed's artifacts have them all. Times only keep the order of updates."
)
_PER_CALL = 800  # points; MLflow takes 1000 points, parameters and tags together
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}  # all others were killed


@dataclass
class _Child:
    """One seed's run in the store, and how much of its tables has been read."""

    run: str
    folder: Path | None  # of its tables
    sent: dict[str, Any]  # by earlier uploads, and not yet found in the tables; else empty
    episodes_to: int  # the last update whose episodes have been sent
    updates: GrowingTable = field(init=False)
    episodes: GrowingTable = field(init=False)
    unfinished: list[dict[str, str]] = field(default_factory=list)  # episodes of a later update

    def __post_init__(self) -> None:
        folder = self.folder or Path("missing")
        self.updates = GrowingTable(folder / "updates.csv")
        self.episodes = GrowingTable(folder / "telemetry.csv")

    def progress(self) -> dict[str, str]:
        """The tag that says it."""
        sent = {
            "updates_bytes": self.updates.offset,
            "updates_sha256": self.updates.sha256,
            "episodes_to": self.episodes_to,
        }
        return {SENT_TAG: json.dumps(sent)}


class Upload:
    """The upload of one run by one process; `step` may be called as often as the run grows."""

    def __init__(self, layout: OutputLayout):
        """Connects to the store.

        Raises:
          TrackingError: it cannot be reached.
        """
        self.store = Store(layout.root)
        self._layout = layout
        self._complete = ""  # sha256 of the description of a run that has ended and is all there
        self._experiment = ""
        self._parent = ""
        self._children: dict[int, _Child] = {}
        self._missing: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether the store has all of a run that has ended."""
        return bool(self._complete)

    @property
    def where_to_look(self) -> str:
        """What a person opens or types to see the run, once a step has been taken."""
        return self.store.where_to_look(self._experiment, self._parent)

    def step(self, record: RunRecord, *, ended: bool) -> None:
        """Sends what is new.

        Args:
          record: the run as it describes itself now.
          ended: nobody writes its files any more.

        Raises:
          TrackingError: the store cannot be reached or refuses something. Begin another `Upload`.
          JaxtraderError: a table or a report cannot be read; so do then.
        """
        try:
            self._step(record, ended)
        except OSError as error:
            remedy = "check the path, its permissions and the free space"
            raise JaxtraderError(f"{error}; {remedy}") from error

    def _step(self, record: RunRecord, ended: bool) -> None:
        if not self._parent or self._complete not in ("", record.sha256):
            self._open(record)
        if self._complete:
            return
        for seed in record.seeds:
            if self._recognises(record, seed):
                child = self._children[seed]
                with _named(child.updates.path):
                    self._send_updates(record, child)
                with _named(child.episodes.path):
                    self._send_episodes(record, child)
        if ended:
            self._conclude(record)

    # ------------------------------------------------------------------------------- the runs

    def _open(self, record: RunRecord) -> None:
        """Finds or makes the runs, and says what is known from the start."""
        client = self.store.client
        self._missing = []
        self._experiment = self.store.experiment(record.study)
        known = {
            run.data.tags.get("seed"): run
            for run in client.search_runs(
                [self._experiment], f"tags.`{KEY_TAG}` = '{record.key}'", max_results=1000
            )
        }
        parent = known.get(None) or self._create(record, None)
        self._parent = parent.info.run_id
        complete = parent.data.tags.get(COMPLETE_TAG) == record.sha256
        self._complete = record.sha256 if complete else ""
        if complete:
            return
        self._describe(record, None, parent)
        self._send_description(record)
        for seed in record.seeds:
            run = known.get(str(seed)) or self._create(record, seed)
            self._adopt(record, seed, run)

    def _create(self, record: RunRecord, seed: int | None) -> Run:
        own = {KEY_TAG: record.key, "mlflow.note.content": _NOTE}
        if seed is not None:
            own |= {"seed": str(seed), "mlflow.parentRunId": self._parent}
        many = len(record.symbols) > 3
        symbols = f"{len(record.symbols)} symbols" if many else " ".join(record.symbols)
        name = f"{symbols} {record.name}" if seed is None else f"seed {seed}"
        return self.store.client.create_run(self._experiment, record.started_ms, own, run_name=name)

    def _adopt(self, record: RunRecord, seed: int, run: Run) -> None:
        self._describe(record, seed, run)
        folder = record.tables(self._layout, seed)
        sent = json.loads(run.data.tags.get(SENT_TAG, "{}"))
        self._children[seed] = _Child(run.info.run_id, folder, sent, sent.get("episodes_to", 0))

    def _describe(self, record: RunRecord, seed: int | None, run: Run) -> None:
        """Status, parameters and tags."""
        known, wanted = run.data.params, parameters(record, seed)
        # A parameter is for ever in MLflow: what a resumed run was given anew is a tag.
        changed = {
            f"resumed.{name}": value
            for name, value in wanted.items()
            if known.get(name, value) != value
        }
        if record.status == "running" and run.info.status != "RUNNING":
            self.store.client.update_run(run.info.run_id, "RUNNING")
        absent = {name: value for name, value in wanted.items() if name not in known}
        self._log(run.info.run_id, parameters=absent, tags=tags(record, seed) | changed)

    def _send_description(self, record: RunRecord) -> None:
        environment = json.dumps(record.environment, indent=2)
        self.store.client.log_text(self._parent, record.to_json(), "run.json")
        self.store.client.log_text(self._parent, environment, "environment.json")

    # ------------------------------------------------------------------------------- the rows

    def _recognises(self, record: RunRecord, seed: int) -> bool:
        """Passes over the rows that an earlier upload sent; False while they are not all there.

        They are not there while a resumed run, which has gone back to its checkpoint, has not come
        so far again. When it comes by with other rows (under a changed schedule, say), the run in
        the store is replaced: points cannot be taken back, but runs can.
        """
        child = self._children[seed]
        if child.folder is None:
            return False
        if not child.sent:
            return True
        rows = child.updates.path.read_bytes() if child.updates.path.exists() else b""
        rows = rows[: child.sent["updates_bytes"]]
        if len(rows) < child.sent["updates_bytes"]:
            return False
        if hashlib.sha256(rows).hexdigest() == child.sent["updates_sha256"]:
            child.updates.take(rows.splitlines(keepends=True))
            child.sent = {}
        else:
            self.store.client.delete_run(child.run)
            self._adopt(record, seed, self._create(record, seed))
        return True

    def _send_updates(self, record: RunRecord, child: _Child) -> None:
        lines = child.updates.lines()
        columns = 1 + lines[0].count(b",") if lines else 1
        for some in _parts(lines, max(1, _PER_CALL // columns)):
            rows = child.updates.take(some)
            points = [point for row in rows for point in update_points(record, row)]
            self._log(child.run, points, tags=child.progress())

    def _send_episodes(self, record: RunRecord, child: _Child) -> None:
        rows = [*child.unfinished, *child.episodes.take(child.episodes.lines())]
        by_update = [list(rows) for _, rows in itertools.groupby(rows, lambda row: row["update"])]
        # Those of the last update may not all be there, and a mean can be sent only once.
        whole = record.status in ("finished", "interrupted")
        child.unfinished = by_update.pop() if by_update and not whole else []
        new = [rows for rows in by_update if int(rows[0]["update"]) > child.episodes_to]
        each = max(1, len(record.episode_means) * len(record.symbols))
        for some in _parts(new, max(1, _PER_CALL // each)):
            points = [point for rows in some for point in episode_points(record, rows)]
            child.episodes_to = int(some[-1][0]["update"])
            self._log(child.run, points, tags=child.progress())

    # -------------------------------------------------------------------------------- the end

    def _conclude(self, record: RunRecord) -> None:
        """Reports, tables, policies, verdicts and status of a run that has ended."""
        client = self.store.client
        self._send_description(record)
        agents = []
        for name in record.reports:
            with _named(self._layout.report(name) / "summary.json"):
                agents += self._send_report(record, name)
        latest = {(agent["symbol"], agent["seed"]): agent for agent in agents}
        self._log(self._parent, tags=verdict_tags(list(latest.values())))
        ended = milliseconds(record.ended) if record.ended else self._last_sign(record)
        status = _STATUS.get(record.status, "KILLED")
        for seed, child in self._children.items():
            own = [agent for agent in latest.values() if agent["seed"] == seed]
            self._log(child.run, tags=verdict_tags(own))
            for path in sorted(child.folder.glob("*.csv")) if child.folder else ():
                client.log_artifact(child.run, str(path), "tables")
            if child.folder is None:
                self._missing.append(f"tables of seed {seed}")
            for agent in own:
                self._send_policy(child.run, agent)
            client.set_terminated(child.run, status, ended)
        client.set_terminated(self._parent, status, ended)
        missing = {MISSING_TAG: ", ".join(self._missing)} if self._missing else {}
        self._log(self._parent, tags={**missing, COMPLETE_TAG: record.sha256})
        self._complete = record.sha256

    def _send_report(self, record: RunRecord, name: str) -> list[dict[str, Any]]:
        """A report's files and figures; returns its agents."""
        folder = self._layout.report(name)
        if not folder.is_dir():
            self._missing.append(f"report {name}")
            return []
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JaxtraderError(
                f"{folder}/summary.json: cannot be read ({error}); restore it, or remove the "
                "folder to upload the run without this report"
            ) from error
        self.store.client.log_artifacts(self._parent, str(folder), f"reports/{name}")
        self._log(self._parent, training_points(summary))
        for agent in summary["agents"]:
            if agent["seed"] in self._children:
                points = evaluation_points(record, agent, summary)
                self._log(self._children[agent["seed"]].run, points)
        return summary["agents"]

    def _send_policy(self, run: str, agent: dict[str, Any]) -> None:
        """An agent's policy file and manifest, also where a later run has moved them aside."""
        if agent["policy"] is None:
            return
        sha256 = agent["policy"]["sha256"]
        policy, manifest = self._layout.policy_files(agent["symbol"], agent["seed"])
        found = {
            policy.name: (path for path in _files_like(policy) if _sha256(path) == sha256),
            manifest.name: (
                path for path in _files_like(manifest) if sha256.encode() in path.read_bytes()
            ),
        }
        with tempfile.TemporaryDirectory() as folder:  # under the names they were written by
            for name, paths in found.items():
                path = next(paths, None)
                if path is None:
                    self._missing.append(f"{agent['symbol']}/{name}")
                else:
                    shutil.copyfile(path, Path(folder, name))
            self.store.client.log_artifacts(run, folder, f"policies/{agent['symbol']}")

    def _last_sign(self, record: RunRecord) -> int:
        """When anything was last written of a run whose process was killed; ms since 1970."""
        paths = [self._layout.run_record(record.name)]
        paths += [c.updates.path for c in self._children.values() if c.updates.path.exists()]
        return round(max(path.stat().st_mtime for path in paths) * 1000)

    def _log(
        self,
        run: str,
        points: Sequence[Point] = (),
        *,
        parameters: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Points first: a tag that says they are there must not be there before them."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(p.name, p.value, p.timestamp, p.step) for p in points]
        *full, rest = list(_parts(metrics, _PER_CALL)) or [[]]
        for some in full:
            self.store.client.log_batch(run, some)
        self.store.client.log_batch(
            run,
            rest,
            [Param(name, value) for name, value in (parameters or {}).items()],
            [RunTag(name, value) for name, value in (tags or {}).items()],
        )


def upload_once(layout: OutputLayout, name: str) -> str:
    """Uploads a run by command; returns what a person should know.

    Raises:
      TrackingError: the store cannot be reached or refuses something.
      JaxtraderError: another process is uploading it, or its description cannot be read.
    """
    lock = Lock(layout.upload_lock(name), "is uploading this run")
    try:
        record = read_record(layout, name)
        upload = Upload(layout)
        alive = record.status == "running" and record.is_alive(layout)
        upload.step(record, ended=not alive)
    finally:
        lock.close()
    sent = "uploaded" if upload.complete else "is being trained; uploaded so far"
    return f"{sent}. To look: {upload.where_to_look}"


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file that is not what it should be."""
    try:
        yield
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise JaxtraderError(f"{path}: is not what it should be ({error!r}); restore it") from error


def _files_like(path: Path) -> Iterator[Path]:
    """The file of this path and those with something behind its name."""
    return (each for each in path.parent.glob(f"{path.name}*") if each.is_file())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
