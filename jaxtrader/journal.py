"""The record of training: one table of updates and one of episodes, kept on disk as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from jaxtrader.errors import JaxtraderError
from jaxtrader.files import write_whole


class TableFile:
    """A CSV file that only ever grows, except when a resumed run goes back to its checkpoint."""

    def __init__(self, path: Path | None):
        """`path` None keeps the table in memory alone."""
        self.path = path
        self._parts: list[pd.DataFrame] = []

    @property
    def table(self) -> pd.DataFrame:
        """Everything recorded so far."""
        return pd.concat(self._parts, ignore_index=True) if self._parts else pd.DataFrame()

    def append(self, rows: pd.DataFrame) -> None:
        """Adds rows.

        Raises:
          JaxtraderError: the file cannot be written.
        """
        if rows.empty:
            return
        if self.path is not None:
            first = not self.path.exists()
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8", newline="") as file:
                    rows.to_csv(file, index=False, header=first, lineterminator="\n")
            except OSError as error:
                raise JaxtraderError(
                    f"{self.path}: cannot be written ({error.strerror}); free space or choose "
                    "another --output-dir"
                ) from error
        self._parts.append(rows)

    def rewind(self, update: int) -> None:
        """Reads the file back and drops rows later than `update`, and a last line cut short.

        Raises:
          JaxtraderError: the file is missing or is not the table it should be.
        """
        assert self.path is not None
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise JaxtraderError(
                f"{self.path}: is needed to resume and cannot be read ({error.strerror}); restore "
                "it, or train anew into another --output-dir"
            ) from error
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        header = lines[0].rstrip("\n").split(",") if lines else []
        if "update" not in header:
            raise JaxtraderError(f"{self.path}: has no column 'update'; it is not a run's table")
        column = header.index("update")
        kept = lines[:1] + [x for x in lines[1:] if int(x.split(",")[column]) <= update]
        write_whole(self.path, "".join(kept))
        self._parts = [pd.read_csv(self.path)] if len(kept) > 1 else []
        if len(kept) == 1:  # a header alone: the next append writes it again
            self.path.unlink()


class Journal:
    """The tables of all seeds."""

    def __init__(self, seeds: Sequence[int], paths: dict[int, tuple[Path, Path]] | None):
        """Args: `paths`: (updates, telemetry) of each seed; None keeps both in memory."""
        none = (None, None)
        self.updates = {seed: TableFile(paths[seed][0] if paths else none[0]) for seed in seeds}
        self.episodes = {seed: TableFile(paths[seed][1] if paths else none[1]) for seed in seeds}

    def append(self, seed: int, updates: pd.DataFrame, episodes: pd.DataFrame) -> None:
        """Adds what one seed's agents did in one call."""
        self.updates[seed].append(updates)
        self.episodes[seed].append(episodes)

    def rewind(self, update: int) -> None:
        """Back to the state after `update`."""
        for table in [*self.updates.values(), *self.episodes.values()]:
            if table.path is not None and table.path.exists():
                table.rewind(update)
