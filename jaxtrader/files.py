"""Files that are complete or absent, and folders that are written to by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from jaxtrader.errors import JaxtraderError

# What Windows and some network folders answer: such a place keeps what it keeps.
_CANNOT_SYNC = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP)


def timestamp() -> str:
    """Now in UTC, as folder names have it: 20260131T235959Z."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file aside and renames it into place, to outlast even a power cut.

    Args:
      content: bytes, or text to be encoded as UTF-8.

    Raises:
      JaxtraderError: the folder cannot be written; whatever was there before is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(aside)
        os.replace(aside, path)
        sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise JaxtraderError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another "
            "--output-dir. Earlier files are intact"
        ) from error


@contextlib.contextmanager
def staged(into: Path) -> Iterator[dict[Path, Path]]:
    """Several files at once: written aside, and put into place when all are complete.

    Yields:
      An empty dictionary, to be filled: the path that a file is to have, and where it was written
      in `staging_folder(into)`.

    Raises:
      JaxtraderError: the folder cannot be written, or the place of a file is taken by a folder.
    """
    files: dict[Path, Path] = {}
    try:
        yield files
        for path in files:
            if path.is_dir():
                raise JaxtraderError(f"{path}: is a folder; rename or remove it")
            path.parent.mkdir(parents=True, exist_ok=True)
        for path, aside in files.items():
            os.replace(aside, path)
            sync(path.parent)
    except OSError as error:
        raise JaxtraderError(
            f"{into}: cannot be written ({error.strerror}: {error.filename}); free space or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(staging_folder(into), ignore_errors=True)


def staging_folder(into: Path) -> Path:
    """Where `staged` keeps files until all are complete."""
    return into / f".staged.{os.getpid()}.tmp"


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, would outlast a power cut.

    Raises:
      OSError: the disk fails.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Removes what a killed process wrote aside for files in `folder` and never renamed.

    Only for files that no other process writes now.

    Raises:
      JaxtraderError: the folder cannot be written.
    """
    for leftover in folder.glob(f".{pattern}.tmp"):
        try:
            leftover.unlink(missing_ok=True)
        except OSError as error:
            raise JaxtraderError(
                f"{leftover}: cannot be removed ({error.strerror}); make the folder writable, or "
                "choose another --output-dir"
            ) from error


class Lock:
    """A file that one process at a time can hold; the kernel frees it however that process ends."""

    def __init__(self, path: Path, purpose: str):
        """Takes the lock, or fails at once.

        Args:
          purpose: what the holder does, for the message: "trains seed 42 into out/".

        Raises:
          JaxtraderError: another holder has it, or the file cannot be written.
        """
        self._descriptor = -1
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise JaxtraderError(
                f"{path}: cannot be written ({error.strerror}); free space or choose another "
                "--output-dir. Earlier files are intact"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise JaxtraderError(
                f"{path}: another process {purpose}; wait until it is done, stop it, or choose "
                "another --output-dir"
            ) from error
        except OSError:  # a network folder that cannot lock
            self.close()

    def close(self) -> None:
        """Lets go. The file stays: removing it could take it from under the next holder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = close


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


def new_folder(path: Path) -> Path:
    """Makes the folder `path`, or `<path>-2`, ... where another process has made it already.

    Raises:
      JaxtraderError: it cannot be made.
    """
    while True:
        folder = unused(path)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise JaxtraderError(
                f"{folder}: cannot be made ({error.strerror}); free space or choose another "
                "--output-dir. Earlier files are intact"
            ) from error


def unused(path: Path) -> Path:
    """`path`, or `<path>-2`, `<path>-3`, ..., whichever is the first that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
