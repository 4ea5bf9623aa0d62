"""Read chosen columns of a parquet file, with the hash of the very bytes that were parsed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrader.errors import DataError


def read_columns(path: Path, columns: tuple[str, ...]) -> tuple[pa.Table, str]:
    """Reads `columns` of `path`, in that order; other columns are left alone.

    Returns:
        The table, and the sha256 (hexadecimal) of the file.

    Raises:
        DataError: the file cannot be read or parsed, lacks a column, has one twice, or has no rows.
    """
    try:
        content = path.read_bytes()
        file = pq.ParquetFile(pa.BufferReader(content))
        names = file.schema_arrow.names
        wrong = [name for name in columns if names.count(name) != 1]
        table = None if wrong else file.read(columns=list(columns)).select(list(columns))
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{path}: not a readable parquet file, perhaps cut short ({error}); "
            "write or download it again"
        ) from error
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
