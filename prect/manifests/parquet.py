"""Parquet tables that are written whole and read by column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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


def stream_batches(
    path: Path, schema: pa.Schema, columns: list[str] | None, size: int
) -> Iterator[pa.Table]:
    """The rows of a table in order, ``size`` at a time, so that a large one need not fit in memory.

    Raises:
        ManifestError: the file is missing, is not Parquet, or lacks a column of the schema.
    """
    try:
        with pq.ParquetFile(path) as file:
            wanted = _require(path, file.schema_arrow.names, columns or schema.names)
            for batch in file.iter_batches(size, columns=wanted, use_threads=False):
                yield pa.Table.from_batches([batch]).select(wanted)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error


def read_table(path: Path, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read a table and hold it to its schema.

    Raises:
        ManifestError: the file is missing, is not Parquet, or lacks a column of the schema.
    """
    try:
        table = pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read as Parquet: {error}") from error
    return table.select(_require(path, table.column_names, columns or schema.names))


def _require(path: Path, present: Sequence[str], wanted: list[str]) -> list[str]:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ManifestError(
            f"{path} lacks the columns {', '.join(missing)}; it was not written by this release"
        )
    return wanted
