"""The cache manifest: one row for every stored volume, and the rows of volumes that failed.

The cache manifest can be shared: it holds hashed ids, shapes and digests, but no file
name and no header text. It is an index; the stores' own attributes are the truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prect.errors import ManifestError
from prect.manifests.columns import StringColumn
from prect.manifests.parquet import read_table, write_arrow, write_table
from prect.manifests.sources import read_source_table, usable
from prect.units import HU_MAX, HU_MIN
from prect.workspace import Workspace


@dataclass(frozen=True)
class CacheRow:
    """One stored volume."""

    dataset: str
    case: str
    patient: str
    """Salted hash of the patient id."""
    series: str
    source_digest: str
    profile: str
    """Digest of the harmonisation profile."""
    shape: tuple[int, int, int]
    """Voxels of level 0, (z, y, x)."""
    spacing: tuple[float, float, float]
    """Millimetres of level 0, (z, y, x)."""
    levels: int
    bytes: int
    """Bytes of the whole store on disk."""
    source_bytes: int
    """Bytes of the foreign file or series."""
    made_from: str = ""
    """Digest of the source's bytes and of what ingest made of them; see `made_from`."""
    intensity: str = "hu"
    """What is stored, in words: ``hu``, or the window."""
    hu_low: int = HU_MIN
    """Lowest HU that the store tells apart."""
    hu_high: int = HU_MAX
    """Highest HU that the store tells apart."""
    hu_step: int = 1
    """HU from one stored value to the next."""
    digest: str = ""
    """Digest of the store's attributes, which hold the digests of all its other files."""


CACHE_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("case", pa.string()),
        ("patient", pa.string()),
        ("series", pa.string()),
        ("source_digest", pa.string()),
        ("profile", pa.string()),
        ("shape", pa.list_(pa.int32(), 3)),
        ("spacing", pa.list_(pa.float64(), 3)),
        ("levels", pa.int32()),
        ("bytes", pa.int64()),
        ("source_bytes", pa.int64()),
        ("made_from", pa.string()),
        ("intensity", pa.string()),
        ("hu_low", pa.int32()),
        ("hu_high", pa.int32()),
        ("hu_step", pa.int32()),
        ("digest", pa.string()),
    ]
)


def made_from(
    source_digest: str,
    patient: str,
    series: str,
    rescale: tuple[float, float],
    shape: Sequence[int],
    spacing: Sequence[float],
    orientation: str,
) -> str:
    """Digest of a source: of its bytes, and of what ingest made of the same bytes.

    A store is stale when the card has since given its volume another patient or other HU.

    Args:
        source_digest: of the bytes.
        patient: salted hash.
        series: salted hash.
        rescale: slope and intercept of the card's correction.
        shape: voxels, (i, j, k).
        spacing: millimetres, (i, j, k).
        orientation: closest directions of (i, j, k).

    Returns:
        BLAKE2b-64, hexadecimal.
    """
    slope, intercept = rescale
    parts = [
        *(source_digest, patient, series, orientation),
        *(f"{float(number):.9g}" for number in (slope, intercept)),
        *(str(int(n)) for n in shape),
        *(f"{float(mm):.5f}" for mm in spacing),
    ]
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class QuarantineRow:
    """One volume that ingest accepted and build-cache could not store."""

    dataset: str
    case: str
    source_digest: str
    profile: str
    code: str
    reason: str
    made_from: str = ""
    """As of a store: the failure stands as long as the source is judged to be the same."""


QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in QuarantineRow.__dataclass_fields__])


def cache_table(rows: Iterable[CacheRow]) -> pa.Table:
    """Rows as a table of `CACHE_SCHEMA`."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=CACHE_SCHEMA)


def cache_rows(table: pa.Table) -> list[CacheRow]:
    """The rows of a table of `CACHE_SCHEMA`."""
    return [
        CacheRow(**(row | {"shape": tuple(row["shape"]), "spacing": tuple(row["spacing"])}))
        for row in table.to_pylist()
    ]


def write_cache_table(path: Path, table: pa.Table) -> None:
    """Write the cache manifest of one data set, sorted by case."""
    write_arrow(path, table.sort_by("case"))


def write_cache_rows(path: Path, rows: Iterable[CacheRow]) -> None:
    """Write the cache manifest of one data set, sorted by case."""
    write_cache_table(path, cache_table(rows))


def read_cache_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the cache manifest of one data set by column.

    Raises:
        ManifestError: the file is missing or not a cache manifest of this release.
    """
    return read_table(path, CACHE_SCHEMA, columns)


def read_cache_rows(path: Path) -> list[CacheRow]:
    """Read the cache manifest of one data set.

    Raises:
        ManifestError: the file is missing or not a cache manifest of this release.
    """
    return cache_rows(read_cache_table(path))


def write_quarantine(path: Path, rows: Iterable[QuarantineRow]) -> None:
    """Write the quarantine of one data set, sorted by case."""
    ordered = sorted(rows, key=lambda row: row.case)
    write_table(path, QUARANTINE_SCHEMA, [asdict(row) for row in ordered])


def read_quarantine(path: Path) -> list[QuarantineRow]:
    """Read the quarantine of one data set; empty when nothing was ever quarantined."""
    if not path.exists():
        return []
    return [QuarantineRow(**row) for row in read_table(path, QUARANTINE_SCHEMA).to_pylist()]


@dataclass(frozen=True)
class CacheTable:
    """Stored volumes by column, as training uses them; N rows in the order (dataset, case)."""

    dataset: StringColumn
    case: StringColumn
    patient: StringColumn
    shape: NDArray[np.int32]
    """(N, 3) voxels of level 0, (z, y, x)."""
    spacing: NDArray[np.float64]
    """(N, 3) millimetres of level 0, (z, y, x)."""
    levels: NDArray[np.int32]
    """(N,) number of levels."""
    hu_range: NDArray[np.int32]
    """(N, 2) lowest and highest HU that a store tells apart."""
    profile: StringColumn
    source_digest: StringColumn
    made_from: StringColumn
    store_digest: StringColumn
    """Of the stores' attributes, and so of every byte of them."""
    digest: str
    """Digest of all rows in order: the manifest digest that samples and checkpoints refer to."""

    def __len__(self) -> int:
        return len(self.case)

    def store(self, workspace: Workspace, row: int) -> Path:
        """Path of the store of one row."""
        return workspace.store(self.dataset[row], self.case[row])


_TABLE_COLUMNS = [
    "dataset",
    "case",
    "patient",
    "shape",
    "spacing",
    "levels",
    "hu_low",
    "hu_high",
    "digest",
    "profile",
    "source_digest",
    "made_from",
]


def _still_usable(workspace: Workspace, dataset: str, cases: pa.ChunkedArray) -> pa.Array:
    """(N,) bool, False for stored cases that ingest has decided against since they were built.

    A data set that came without its source manifest, as stores that are passed on do, is
    taken as it is.
    """
    path = workspace.sources(dataset)
    if not path.exists():
        return pa.array(np.ones(len(cases), dtype=np.bool_))
    decided = read_source_table(path, ["case", "verdict"])
    against = decided["case"].filter(pa.array(~usable(decided))).combine_chunks()
    return pc.invert(pc.is_in(cases, value_set=against))


def load_cache_table(workspace: Workspace, datasets: Sequence[str]) -> CacheTable:
    """Load the cache manifests of ``datasets`` as one table.

    Volumes that ingest has made duplicates or excluded since they were built are left out.

    Raises:
        ManifestError: no data set is named, one has no cache manifest, or all are empty.
    """
    if not datasets:
        raise ManifestError("no data set is named; give at least one that build-cache has stored")
    tables = []
    for dataset in sorted(set(datasets)):
        path = workspace.cache_manifest(dataset)
        if not path.exists():
            raise ManifestError(
                f"data set {dataset!r} has no stores in {workspace.root}; "
                f"run: prect build-cache {dataset}"
            )
        table = read_table(path, CACHE_SCHEMA, _TABLE_COLUMNS)
        tables.append(table.filter(_still_usable(workspace, dataset, table["case"])))
    table = pa.concat_tables(tables).combine_chunks()
    if table.num_rows == 0:
        raise ManifestError(
            f"the data sets {', '.join(sorted(set(datasets)))} hold no stored volume"
        )
    columns = {name: table[name].combine_chunks() for name in _TABLE_COLUMNS}
    strings = {
        name: _strings(column)
        for name, column in columns.items()
        if pa.types.is_string(column.type)
    }
    # A store that was built again with other versions of the libraries holds the same voxels.
    store_digest = strings.pop("digest")
    shape = columns["shape"].flatten().to_numpy(zero_copy_only=False).reshape(-1, 3)
    spacing = columns["spacing"].flatten().to_numpy(zero_copy_only=False).reshape(-1, 3)
    levels = columns["levels"].to_numpy(zero_copy_only=False)
    hu_range = np.stack([columns[name].to_numpy() for name in ("hu_low", "hu_high")], axis=1)
    return CacheTable(
        **strings,
        store_digest=store_digest,
        hu_range=hu_range,
        shape=shape,
        spacing=spacing,
        levels=levels,
        digest=_table_digest(strings, shape, spacing, levels),
    )


def _strings(column: pa.Array) -> StringColumn:
    """An Arrow column of strings, which must hold no null."""
    wide = column.cast(pa.large_string())
    _, offsets, text = wide.buffers()
    if len(wide) == 0 or text is None:
        return StringColumn.of([""] * len(wide))
    ends = np.frombuffer(offsets, dtype=np.int64)[wide.offset : wide.offset + len(wide) + 1]
    data = np.frombuffer(text, dtype=np.uint8)
    # A copy of its own, since the buffers are those of the whole table.
    return StringColumn(ends - ends[0], data[ends[0] : ends[-1]].copy())


def _table_digest(
    strings: dict[str, StringColumn],
    shape: NDArray[np.int32],
    spacing: NDArray[np.float64],
    levels: NDArray[np.int32],
) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(strings):
        digest.update(strings[name].joined(b"\x1f"))
        digest.update(b"\x1e")
    for array in (shape, spacing, levels):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
