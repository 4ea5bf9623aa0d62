"""The record of training: one table of updates and one of episodes, kept on disk as it grows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxtrader.errors import JaxtraderError
from jaxtrader.files import sync, write_whole


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

    @property
    def tail(self) -> pd.DataFrame:
        """The rows recorded last, in one piece."""
        return self._parts[-1] if self._parts else pd.DataFrame()

    def append(self, rows: pd.DataFrame) -> None:
        """Adds rows.

        Raises:
          JaxtraderError: the file cannot be written.
        """
        if rows.empty:
            return
        if self._parts and list(self._parts[0].columns) != list(rows.columns):
            differ = set(self._parts[0].columns) ^ set(rows.columns)
            raise JaxtraderError(
                f"{self.path}: has other columns than are to be added ({', '.join(sorted(differ))} "
                "in one of the two); train on with the version that began it, or anew into "
                "another --output-dir"
            )
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

    def sync(self) -> None:
        """Has the rows outlast a power cut.

        Raises:
          JaxtraderError: the disk fails.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            sync(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise JaxtraderError(
                f"{self.path}: cannot be written ({error.strerror}); free space or choose another "
                "--output-dir"
            ) from error

    def load(self, update: int) -> None:
        """Reads the rows up to `update` back; a last line that a kill cut short is left out.

        A file that is not there is an empty table.

        Raises:
          JaxtraderError: the file cannot be read or is not the table it should be.
        """
        self._parts = []
        if self.path is None or not self.path.exists():
            return
        try:
            text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if not whole:  # not even the header was finished
                return
            _check_widths(whole)
            # Only an empty field is no number: NA and 700 are symbols.
            types = {"symbol": str, "seed": int, "update": int}
            with np.errstate(all="raise"):  # 1e999 is no update
                table = pd.read_csv(
                    io.StringIO(whole), dtype=types, keep_default_na=False, na_values=[""]
                )
            if not set(types) <= set(table.columns):
                raise ValueError(f"its columns are {', '.join(table.columns)}")
            self._parts = [table[table["update"] <= update]]
        except (OSError, ValueError, ArithmeticError) as error:
            raise JaxtraderError(
                f"{self.path}: is needed to go on and cannot be read ({error}); restore it, or "
                "train anew into another --output-dir"
            ) from error

    def rewrite(self) -> None:
        """Makes the file hold what the table holds.

        Raises:
          JaxtraderError: the file cannot be written.
        """
        if self.path is None:
            return
        if len(self.table):
            write_whole(self.path, self.table.to_csv(index=False, lineterminator="\n"))
            return
        try:  # the next append writes the header
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise JaxtraderError(
                f"{self.path}: cannot be removed ({error.strerror}); make the folder writable, or "
                "choose another --output-dir"
            ) from error


def _check_widths(text: str) -> None:
    """Raises ValueError for a row cut short: pandas would make it a whole one, of NaN."""
    commas = [line.count(",") for line in text.splitlines()]
    for row, count in enumerate(commas):
        if count != commas[0]:
            raise ValueError(f"line {row + 1} has {count + 1} fields and not {commas[0] + 1}")


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

    def sync(self) -> None:
        """Has all rows outlast a power cut: a checkpoint of what they tell of is about to be."""
        for table in self._tables():
            table.sync()

    def load(self, update: int) -> None:
        """Reads all rows up to `update` back from disk."""
        for table in self._tables():
            table.load(update)

    def rewrite(self) -> None:
        """Makes the files hold what the tables hold."""
        for table in self._tables():
            table.rewrite()

    def _tables(self) -> list[TableFile]:
        return [*self.updates.values(), *self.episodes.values()]
