"""Parquet tables that are written whole and read by column."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prect.errors import ManifestError


def write_table(path: Path, schema: pa.Schema, rows: list[dict[str, Any]]) -> None:
    """Write rows as `write_arrow` does."""
    write_arrow(path, pa.Table.from_pylist(rows, schema=schema))


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table to a temporary sibling of ``path``, flush it to disk, rename it.

    A reader sees the table of before or the one of after, never a part.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, data: pa.Buffer | bytes) -> None:
    """Write a file to a temporary sibling, flush it to disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a table and hold it to its schema.

    Raises:
        ManifestError: the file is missing, is not Parquet, or lacks a column of the schema.
    """
    try:
        table = pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error
    wanted = columns if columns is not None else schema.names
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise ManifestError(
            f"{path} lacks the columns {', '.join(missing)}; it was not written by this release"
        )
    return table.select(wanted)
