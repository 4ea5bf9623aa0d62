"""What a training says of itself on disk, and where its tables are."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jaxtrader.errors import ConfigError, JaxtraderError
from jaxtrader.files import Lock, write_whole
from jaxtrader.outputs import OutputLayout

FORMAT_VERSION = 1
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")  # of runs and of reports

# One that was killed says "running" until somebody notices.
Status = Literal["running", "finished", "failed", "interrupted", "killed"]


@dataclass(frozen=True)
class RunRecord:
    """One training: all its seeds and symbols, from its start through every resumption."""

    name: str  # when it began, as folder names have it
    key: str  # unlike the name, unique in a store that many output folders share
    study: str  # what runs of one kind have in common: "stage5"
    sessions: int  # how many commands have trained it: 1, and one more for each that resumed it
    status: Status
    started: str  # ISO 8601, UTC
    ended: str | None
    command: list[str]  # of the latest session
    agent_type: str
    symbols: list[str]
    seeds: list[int]
    curriculum_stage: str
    reward_version: str
    config: dict[str, Any]
    data: dict[str, Any]  # kind, timeframe, fingerprint
    environment: dict[str, Any]  # git_commit, versions, machine, packages: never os.environ
    episode_means: dict[str, str]  # metric -> the column of the telemetry table it is a mean of
    reports: list[str]  # names of the reports made of it, the latest last
    format_version: int = FORMAT_VERSION

    def write(self, layout: OutputLayout) -> None:
        """Writes the description.

        Raises:
          JaxtraderError: the folder cannot be written.
        """
        write_whole(layout.run_record(self.name), self.to_json())

    def to_json(self) -> str:
        """The description as its file has it."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def sha256(self) -> str:
        """Of everything the description says."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def started_ms(self) -> int:
        """Milliseconds since 1970."""
        return milliseconds(self.started)

    def claim(self, layout: OutputLayout, seed: int) -> None:
        """Notes beside a seed's tables that they are this run's.

        Raises:
          JaxtraderError: the folder cannot be written.
        """
        write_whole(layout.run_name(seed), self.name + "\n")

    def tables(self, layout: OutputLayout, seed: int) -> Path | None:
        """The folder of a seed's tables, also where a later run has moved it aside."""
        here = layout.logs(seed)
        for folder in (here, *sorted(here.parent.glob(f"{seed}.until-*"))):
            if _claim(folder / layout.run_name(seed).name) == self.name:
                return folder
        return None

    def is_alive(self, layout: OutputLayout) -> bool:
        """Whether the process that records it is still there."""
        try:
            Lock(layout.run_lock(self.name), "records this run").close()
        except JaxtraderError:
            return True
        return False


def read_record(layout: OutputLayout, name: str) -> RunRecord:
    """Reads a description.

    Raises:
      JaxtraderError: it is missing, malformed or of another version.
    """
    path = layout.run_record(name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format_version"] > FORMAT_VERSION:
            raise JaxtraderError(f"{path}: was written by a newer jaxtrader: upgrade this one")
        record = RunRecord(**values)
        names = [record.name, *record.reports]
        if record.name != name or not all(map(_NAME.fullmatch, names)):
            raise ValueError(f"it names {', '.join(names)}")
        record.seeds[:] = map(int, record.seeds)
        milliseconds(record.started)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise JaxtraderError(
            f"{path}: is no description of a run ({error!r}); restore it, or remove it to leave "
            "that run out"
        ) from error
    return record


def run_names(layout: OutputLayout, asked: Sequence[str] = ()) -> list[str]:
    """Names of the runs under an output folder, the oldest first; or those asked for.

    Raises:
      ConfigError: there is none, or not one of that name.
    """
    known = sorted(p.name for p in layout.runs.glob("*") if layout.run_record(p.name).is_file())
    if not known:
        raise ConfigError(
            f"{layout.runs}: no run is described there; name the --output-dir of the training"
        )
    for name in asked:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(f"--runs {name}: no such run in {layout.runs}; is it {nearest[0]}?")
    return list(asked) or known


def trained_together(layout: OutputLayout, seeds: Sequence[int]) -> RunRecord | None:
    """The run whose tables those of `seeds` are; None where they are not of one known run.

    Raises:
      JaxtraderError: its description cannot be read.
    """
    claims = {_claim(layout.run_name(seed)) for seed in seeds}
    [name] = claims if len(claims) == 1 else [None]
    if name is None or not layout.run_record(name).is_file():
        return None
    return read_record(layout, name)


def upload_command(layout: OutputLayout, name: str) -> str:
    """What to type to upload a run."""
    return f"python -m jaxtrader upload-runs {shlex.quote(str(layout.root))} --runs {name}"


def milliseconds(moment: str) -> int:
    """ISO 8601, or the name of a run or report, to milliseconds since 1970."""
    if _NAME.fullmatch(moment):
        moment = moment.partition("-")[0]
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def _claim(path: Path) -> str | None:
    try:
        name = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return name if _NAME.fullmatch(name) else None
