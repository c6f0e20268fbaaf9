"""The source manifest: one row for every candidate volume that ingest has judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prect.manifests.parquet import read_table, write_arrow

Buffer = bytes  # a column of the row below is named bytes


class Verdict(StrEnum):
    """What ingest decided about a candidate."""

    ACCEPTED = "accepted"
    WARNED = "warned"
    REJECTED = "rejected"
    DUPLICATE = "duplicate"
    EXCLUDED = "excluded"

    @property
    def usable(self) -> bool:
        """Whether build-cache takes the volume."""
        return self in (Verdict.ACCEPTED, Verdict.WARNED)


@dataclass(frozen=True)
class SourceRow:
    """One candidate volume: what its files say, and what was decided."""

    dataset: str
    case: str
    """Id of the case, 16 hexadecimal digits; also the name of its store."""
    verdict: str
    """The decision in force, duplicates and exclusions considered."""
    code: str
    """Reason code ``family.detail``; empty when the volume is accepted without remark."""
    reason: str
    format: str
    """nifti, metaimage, nrrd, dicom; else the kind of file that no reader takes."""
    source: str
    """Path of the file, or of the folder of a DICOM series, relative to ``root``."""
    root: str
    """Folder that was given as ``--source``."""
    members: tuple[str, ...] = ()
    """DICOM: the files of the series, relative to ``source``, ordered along the slice normal."""
    judged: str = ""
    """Verdict on the files alone, before duplicates and exclusions."""
    judged_code: str = ""
    judged_reason: str = ""
    duplicate_of: str = ""
    """``dataset/case`` of the copy that is kept."""
    patient: str = ""
    """Salted hash of the patient id."""
    study: str = ""
    """Salted hash of the study id."""
    series: str = ""
    """Salted hash of the series id; the same id gives the same hash in every data set."""
    stack: str = ""
    """What tells the volumes of one DICOM series apart; the same in every copy of the volume."""
    kind: str = ""
    """DICOM: original, reformat or derived."""
    split: str = ""
    """Split of the list that named the volume, as the list calls it."""
    source_digest: str = ""
    """BLAKE2b-128 over the bytes of the files in order."""
    voxel_digest: str = ""
    """Digest of the int16 voxels whatever their orientation; spacing is ignored."""
    sketch: Buffer = b""
    """Fuzzy hash that crops and re-saved copies share; see `prect.manifests.sketches`."""
    bytes: int = 0
    mtime_ns: int = 0
    shape: tuple[int, ...] = ()
    """Voxels along the file's own index axes (i, j, k)."""
    spacing: tuple[float, ...] = ()
    """Millimetres along (i, j, k)."""
    orientation: str = ""
    """Closest anatomical directions of (i, j, k), for example LPS."""
    slope: float = 1.0
    """HU = slope * decoded value + intercept: the card's correction, 1 and 0 without one."""
    intercept: float = 0.0
    warnings: tuple[str, ...] = field(default=())
    """Codes of every remark on a volume that is usable all the same."""
    item: str = ""
    """What was looked at as one: a file, or a folder of DICOM files with a slash at its end."""
    state: str = ""
    """Digest of names, sizes and times of the item's files when it was judged."""
    rules: str = ""
    """Digest of the limits and of the card under which it was judged."""


_SPECIAL = {
    "sketch": pa.binary(),
    "bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "members": pa.list_(pa.string()),
    "shape": pa.list_(pa.int32()),
    "spacing": pa.list_(pa.float64()),
    "slope": pa.float64(),
    "intercept": pa.float64(),
    "warnings": pa.list_(pa.string()),
}
SOURCES_SCHEMA = pa.schema(
    [(column.name, _SPECIAL.get(column.name, pa.string())) for column in fields(SourceRow)]
)
_LISTS = ("members", "shape", "spacing", "warnings")


def to_table(rows: Iterable[SourceRow]) -> pa.Table:
    """Rows as a table of `SOURCES_SCHEMA`."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=SOURCES_SCHEMA)


def to_rows(table: pa.Table) -> list[SourceRow]:
    """The rows of a table of `SOURCES_SCHEMA`."""
    return [
        SourceRow(**(row | {name: tuple(row[name]) for name in _LISTS}))
        for row in table.to_pylist()
    ]


def write_sources(path: Path, table: pa.Table) -> None:
    """Write the manifest of one data set, sorted by source path."""
    write_arrow(path, in_order(table))


def in_order(table: pa.Table) -> pa.Table:
    """The rows by source, then by case."""
    return table.sort_by([("source", "ascending"), ("case", "ascending")])


def read_source_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read the manifest of one data set by column.

    Raises:
        ManifestError: the file is missing or not a source manifest of this release.
    """
    return read_table(path, SOURCES_SCHEMA, columns)


def read_sources(path: Path) -> list[SourceRow]:
    """Read the manifest of one data set.

    Raises:
        ManifestError: the file is missing or not a source manifest of this release.
    """
    return to_rows(read_source_table(path))


def usable(table: pa.Table) -> NDArray[np.bool_]:
    """(N,) bool, True for rows that build-cache takes; needs the column ``verdict``."""
    wanted = pa.array([verdict.value for verdict in Verdict if verdict.usable])
    mask: NDArray[np.bool_] = pc.is_in(table["verdict"], wanted).to_numpy()
    return mask


def count_verdicts(table: pa.Table) -> dict[str, int]:
    """Number of rows for every verdict, zero included, in the order of `Verdict`."""
    counts = Counter(table["verdict"].to_pylist())
    return {verdict.value: counts[verdict.value] for verdict in Verdict}


def count_codes(table: pa.Table) -> dict[str, int]:
    """Number of rows that are not usable for every reason code, most frequent first."""
    codes = table["code"].filter(pa.array(~usable(table))).to_pylist()
    return dict(Counter(codes).most_common())


def code_examples(table: pa.Table) -> dict[str, str]:
    """For every reason code of rows that are not usable, the source and sentence of the first."""
    examples: dict[str, str] = {}
    rest = table.select(["code", "source", "reason"]).filter(pa.array(~usable(table)))
    columns = (rest[name].to_pylist() for name in rest.column_names)
    for code, source, reason in zip(*columns, strict=True):
        examples.setdefault(code, f"{source}: {reason}")
    return examples
