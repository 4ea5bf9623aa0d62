"""Files that are complete or absent, and folders that are never overwritten."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from jaxtrader.errors import JaxtraderError


def timestamp() -> str:
    """Now in UTC, as folder names have it: 20260131T235959Z."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file aside and renames it into place.

    Args:
      content: bytes, or text to be encoded as UTF-8.

    Raises:
      JaxtraderError: the folder cannot be written; whatever was there before is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise JaxtraderError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another "
            "--output-dir. Earlier files are intact"
        ) from error


def move_aside(path: Path) -> Path | None:
    """Renames an existing file or folder to `<name>.until-<timestamp>`; None when there is none.

    Raises:
      JaxtraderError: it cannot be renamed.
    """
    if not path.exists():
        return None
    kept = unused(path.with_name(f"{path.name}.until-{timestamp()}"))
    try:
        path.rename(kept)
    except OSError as error:
        raise JaxtraderError(
            f"{path}: cannot be moved aside ({error.strerror}); choose another --output-dir"
        ) from error
    return kept


def unused(path: Path) -> Path:
    """`path`, or `<path>-2`, `<path>-3`, ..., whichever is the first that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
