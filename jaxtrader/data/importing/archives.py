"""The bytes of a file, or of those in an archive: within limits, and unpacked nowhere."""

from __future__ import annotations

import gzip
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jaxtrader.errors import DataError

LARGEST = 2**31  # bytes of an archive once unpacked; a century of minutes is a tenth of it
LARGEST_RATIO = 500  # unpacked to packed: texts of prices reach 30
_CHUNK = 2**20
_MANY = 200_000
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError,
    RuntimeError, struct.error, UnicodeError, ValueError, OverflowError,
)  # fmt: skip


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """A file with bars."""

    path: Path  # of the file itself, or of the archive that it is in
    name: str  # within the archive; "" for a file itself
    content: bytes

    @property
    def file(self) -> str:
        """The file's own name."""
        return Path(self.name or self.path).name

    @property
    def where(self) -> str:
        """The place, for people."""
        return f"{self.path} ({self.name})" if self.name else str(self.path)


def members(path: Path) -> Iterator[Member]:
    """The file at `path`, or each text in it where it is a .zip or .gz.

    Nothing is written to disk, so a name that leads out of a folder leads nowhere.

    Raises:
        DataError: it cannot be read, is damaged, locked with a password, or holds more than
            `LARGEST` bytes a file or `LARGEST_RATIO` times what it weighs.
    """
    try:
        if path.suffix.lower() == ".zip":
            yield from _unzipped(path)
        elif path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                yield Member(path, "", _limited(stream, path.stat().st_size, str(path)))
        else:
            with path.open("rb") as stream:
                yield Member(path, "", _limited(stream, LARGEST, str(path)))
    except _BROKEN as error:
        raise DataError(
            f"{path}: cannot be read ({error or type(error).__name__}); if it is damaged, write or "
            "download it again"
        ) from error


def _unzipped(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        files = [each for each in archive.infolist() if not each.is_dir()]
        texts = [each for each in files if each.filename.lower().endswith((".csv", ".txt"))]
        if len(files) > _MANY:
            raise DataError(f"{path}: {len(files):,} files in one archive; unpack it first")
        if not texts:
            names = ", ".join(each.filename[:60] for each in files[:3]) or "nothing"
            raise DataError(f"{path}: no .csv or .txt in it, but {names}")
        left = LARGEST
        size = path.stat().st_size  # what an archive says of its members need not be true
        for each in texts:
            where = f"{path} ({each.filename[:100]})"
            with archive.open(each) as stream:
                content = _limited(stream, min(each.compress_size, size), where, left)
            left -= len(content)
            yield Member(path, each.filename, content)


def _limited(stream: _Readable, packed: int, where: str, most: int = LARGEST) -> bytes:
    """All of a stream, unless that is more than an honest one can hold."""
    most = min(most, max(packed * LARGEST_RATIO, _CHUNK))
    content = bytearray()
    while chunk := stream.read(_CHUNK):
        content += chunk
        if len(content) > most:
            raise DataError(
                f"{where}: unpacks to more than {most:,} bytes, from {packed:,}; if it is what it "
                "should be, unpack and split it first"
            )
    return bytes(content)
