"""Read chosen columns of a parquet file, with the hash of the very bytes that were parsed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrader.errors import DataError

MOST_ROWS = 50_000_000  # a century of minutes; a few bytes of parquet can claim any number


def read_columns(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[pa.Table, str]:
    """Reads `columns` of `path` in that order, then those of `optional` that it has.

    Returns:
        The table, and the sha256 (hexadecimal) of the file.

    Raises:
        DataError: the file cannot be read or parsed, lacks a column, has one twice, has no rows, or
            claims more than `MOST_ROWS`.
    """
    try:
        content = path.read_bytes()
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        there = [name for name in optional if name in names]
        wanted = [*columns, *there]
        wrong = [name for name in wanted if names.count(name) != 1]
        most = file.metadata.num_rows > MOST_ROWS
        table = None if wrong or most else file.read(columns=wanted).select(wanted)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{path}: not a readable parquet file, perhaps cut short ({error}); "
            "write or download it again"
        ) from error
    if most:
        raise DataError(
            f"{path}: claims {file.metadata.num_rows:,} rows, more than a century of minutes; "
            "write it again, or split it"
        )
    if table is None:
        times = names.count(wrong[0])
        if times > 1:
            raise DataError(
                f"{path}: column {wrong[0]!r} is there {times} times; rename or drop all but one"
            )
        raise DataError(
            f"{path}: column {wrong[0]!r} is missing; the columns are {', '.join(names)}, "
            f"and {', '.join(columns)} are needed: rename or add it"
        )
    if table.num_rows == 0:
        raise DataError(f"{path}: the file has no rows; write it again or leave it out")
    return table, hashlib.sha256(content).hexdigest()
