"""Files that are complete or absent, and folders that are never overwritten."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from jaxtrader.errors import JaxtraderError


def timestamp() -> str:
    """Now in UTC, as folder names have it: 20260131T235959Z."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def write_whole(path: Path, text: str) -> None:
    """Writes a text file aside and renames it into place.

    Raises:
      JaxtraderError: the folder cannot be written; whatever was there before is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise JaxtraderError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another "
            "--output-dir. Earlier files are intact"
        ) from error


def move_aside(path: Path) -> Path | None:
    """Renames an existing file or folder to `<name>.until-<timestamp>`; None when there is none."""
    if not path.exists():
        return None
    kept = path.with_name(f"{path.name}.until-{timestamp()}")
    number = 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.until-{timestamp()}-{number}")
    path.rename(kept)
    return kept
