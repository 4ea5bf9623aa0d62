"""The training's side: keeps the run's description, and has it uploaded while it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from envs.reward import REWARD_VERSION
from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.files import new_folder, timestamp
from jaxtrader.outputs import OutputLayout
from jaxtrader.provenance import git_commit, machine, packages, versions
from jaxtrader.runs import TrainingRun, jsonable
from jaxtrader.telemetry import EPISODE_MEANS
from jaxtrader.tracking.follow import NOT_ALL
from jaxtrader.tracking.record import RunRecord, Status, trained_together, upload_command
from jaxtrader.tracking.store import mlflow_is_installed, waiting_for
from jaxtrader.training import Interrupted

SECONDS_BETWEEN_LOOKS = 5.0  # of the uploading process at the run's files

Tracking = Literal["auto", "on", "off"]


@contextlib.contextmanager
def recorded(
    layout: OutputLayout,
    study: str,
    command: Sequence[str],
    console: Console,
    tracking: Tracking,
) -> Iterator[Session]:
    """Keeps the record of what one command does, up to how it ended.

    Args:
      study: the experiment in MLflow, unless MLFLOW_EXPERIMENT_NAME names another.
      command: for the person who wants to repeat it.
      tracking: whether MLflow follows; "auto" where it is installed.

    Raises:
      ConfigError: tracking is "on" and mlflow is not installed.
      JaxtraderError: the output folder cannot be written.
    """
    session = Session(layout, study, command, console, tracking)
    try:
        yield session
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        with contextlib.suppress(JaxtraderError):  # what the person must hear is `error`
            session.end("interrupted" if stopped else "failed")
        raise
    session.end("finished")


class Session:
    """What one command adds to the record of a run."""

    def __init__(
        self,
        layout: OutputLayout,
        study: str,
        command: Sequence[str],
        console: Console,
        tracking: Tracking,
    ):
        """Writes nothing yet."""
        installed = mlflow_is_installed()
        if tracking == "on" and not installed:
            raise ConfigError(
                "tracking is on and mlflow is not installed: pip install -e '.[tracking]' in the "
                "checkout, or leave it off: every run can be uploaded later"
            )
        self._layout = layout
        self._study = study
        self._command = list(command)
        self._console = console
        self._follows = installed and tracking != "off"
        self._hints = not installed and tracking == "auto"
        self._record: RunRecord | None = None
        self._training = False
        self._follower: _Follower | None = None
        self._lock = contextlib.ExitStack()

    def trains(self, run: TrainingRun, *, resumed: bool) -> None:
        """Training is about to begin, or to go on from what the tables of its seeds hold.

        Raises:
          JaxtraderError: the output folder cannot be written.
        """
        earlier = trained_together(self._layout, run.seeds) if resumed else None
        now = _description(run, self._study, self._command)
        if earlier and (earlier.symbols, earlier.seeds) == (now.symbols, now.seeds):
            now = dataclasses.replace(
                now,
                name=earlier.name,
                key=earlier.key,
                study=earlier.study,
                sessions=earlier.sessions + 1,
                started=earlier.started,
                reports=earlier.reports,
            )
        else:
            now = dataclasses.replace(now, name=new_folder(self._layout.runs / timestamp()).name)
        self._training = True
        for seed in run.seeds:
            now.claim(self._layout, seed)
        self._take(now)

    def evaluates(self, run: TrainingRun) -> None:
        """A report of what was trained before is about to be made.

        Raises:
          JaxtraderError: the run's description cannot be read or written.
        """
        record = trained_together(self._layout, run.seeds)
        if record is None or record.is_alive(self._layout):
            if self._follows:
                self._console.print(
                    "not in MLflow: the tables of these seeds are not those of one run that has "
                    "ended",
                    soft_wrap=True,
                )
            return
        if record.status == "running":
            record = dataclasses.replace(record, status="killed")
        self._take(record)

    def reports(self, folder: Path) -> None:
        """A report of the run has been written.

        Raises:
          JaxtraderError: the output folder cannot be written.
        """
        if self._record is not None:
            names = [*self._record.reports, folder.name]
            self._write(dataclasses.replace(self._record, reports=names))

    def end(self, status: Status) -> None:
        """The command ends: notes how, and waits until what there is has been uploaded.

        Raises:
          JaxtraderError: the output folder cannot be written.
        """
        if self._record is None:
            return
        try:
            if self._training:
                ended = _iso(datetime.now(UTC))
                self._write(dataclasses.replace(self._record, status=status, ended=ended))
        finally:
            self._lock.close()
            if self._follower is not None:
                self._follower.finish()
        if self._hints:
            command = upload_command(self._layout, self._record.name)
            hint = f"for MLflow: pip install -e '.[tracking]' in the checkout, then {command}"
            self._console.print(hint, markup=False, highlight=False, soft_wrap=True)

    def _take(self, record: RunRecord) -> None:
        path = self._layout.run_lock(record.name)
        self._lock.enter_context(waiting_for(path, "records this run"))
        self._write(record)
        if not self._follows:
            return
        try:
            self._follower = _Follower(self._layout, record, self._console)
        except OSError as error:  # no memory, no processes: no reason not to train
            command = upload_command(self._layout, record.name)
            self._console.print(
                f"warning: MLflow does not follow ({error}). Later: {command}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def _write(self, record: RunRecord) -> None:
        record.write(self._layout)
        self._record = record


class _Follower:
    """The uploading process, as its parent sees it."""

    def __init__(self, layout: OutputLayout, record: RunRecord, console: Console):
        self._console = console
        self._command = upload_command(layout, record.name)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "jaxtrader.tracking.follow"),
                *(str(layout.root), record.name, str(record.sessions)),
                str(SECONDS_BETWEEN_LOOKS),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # passwords may be in what libraries print there
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # a Ctrl-C is for the training, which then ends both
            text=True,
        )
        self._relay = threading.Thread(target=self._print_what_it_says, daemon=True)
        self._relay.start()

    def finish(self) -> None:
        """Tells it that nothing more is written, and waits for it; Ctrl-C stops it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            with self._console.status("uploading to MLflow (Ctrl-C leaves the rest for later)"):
                status = self._process.wait()
        except KeyboardInterrupt:
            self._process.terminate()
            status = self._process.wait()
        self._relay.join()
        self._process.stdout.close()
        if status not in (0, NOT_ALL):
            self._print(
                f"not all is in MLflow: the upload was stopped. Send it with: {self._command}"
            )

    def _print_what_it_says(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._print(line.rstrip("\n"))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _description(run: TrainingRun, study: str, command: Sequence[str]) -> RunRecord:
    """Of a run that begins now; it has no name yet."""
    dataset = run.program.dataset
    return RunRecord(
        name="",
        key=uuid.uuid4().hex,
        study=study,
        sessions=1,
        status="running",
        started=_iso(datetime.now(UTC)),
        ended=None,
        command=list(command),
        agent_type="symbol",
        symbols=list(dataset.symbols),
        seeds=list(run.seeds),
        curriculum_stage="none",
        reward_version=run.program.reward_function or REWARD_VERSION,
        config=jsonable(run.program.config.to_dict()),
        data={
            "kind": dataset.provenance["kind"],
            "timeframe": dataset.timeframe,
            "fingerprint": dataset.fingerprint,
        },
        environment={
            "git_commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "packages": packages(),
        },
        episode_means=EPISODE_MEANS,
        reports=[],
    )


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
