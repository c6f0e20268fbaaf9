"""The source manifest: one row for every candidate volume that ingest has judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

import pyarrow as pa

from prect.manifests.parquet import read_table, write_table


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
    """One candidate volume and its verdict."""

    dataset: str
    case: str
    """Id of the case, 16 hexadecimal digits; also the name of its store."""
    verdict: str
    code: str
    """Reason code ``family.detail``; empty when the volume is accepted without remark."""
    reason: str
    format: str
    """nifti, metaimage, nrrd, dicom, archive."""
    source: str
    """Path of the file, or of the folder of a DICOM series, relative to ``root``."""
    root: str
    """Folder that was given as ``--source``."""
    members: tuple[str, ...] = ()
    """DICOM: the files of the series, relative to ``source``, ordered along the slice normal."""
    patient: str = ""
    """Salted hash of the patient id."""
    series: str = ""
    """Salted hash of the series id."""
    source_digest: str = ""
    """Digest of the content: file bytes, or the instance UIDs and sizes of a DICOM series."""
    bytes: int = 0
    mtime_ns: int = 0
    shape: tuple[int, ...] = ()
    """Voxels along the file's own index axes (i, j, k)."""
    spacing: tuple[float, ...] = ()
    """Millimetres along (i, j, k)."""
    orientation: str = ""
    """Closest anatomical directions of (i, j, k), for example LPS."""
    warnings: tuple[str, ...] = field(default=())
    """Codes of every remark on a volume that is usable all the same."""


SOURCES_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("case", pa.string()),
        ("verdict", pa.string()),
        ("code", pa.string()),
        ("reason", pa.string()),
        ("format", pa.string()),
        ("source", pa.string()),
        ("root", pa.string()),
        ("members", pa.list_(pa.string())),
        ("patient", pa.string()),
        ("series", pa.string()),
        ("source_digest", pa.string()),
        ("bytes", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("shape", pa.list_(pa.int32())),
        ("spacing", pa.list_(pa.float64())),
        ("orientation", pa.string()),
        ("warnings", pa.list_(pa.string())),
    ]
)
_LISTS = ("members", "shape", "spacing", "warnings")


def write_sources(path: Path, rows: Iterable[SourceRow]) -> None:
    """Write the manifest of one data set, sorted by source path."""
    ordered = sorted(rows, key=lambda row: (row.source, row.case))
    write_table(path, SOURCES_SCHEMA, [asdict(row) for row in ordered])


def read_sources(path: Path) -> list[SourceRow]:
    """Read the manifest of one data set.

    Raises:
        ManifestError: the file is missing or not a source manifest.
    """
    table = read_table(path, SOURCES_SCHEMA)
    return [
        SourceRow(**(row | {name: tuple(row[name]) for name in _LISTS}))
        for row in table.to_pylist()
    ]


def count_verdicts(rows: Sequence[SourceRow]) -> dict[str, int]:
    """Number of rows for every verdict, zero included, in the order of `Verdict`."""
    counts = Counter(row.verdict for row in rows)
    return {verdict.value: counts[verdict.value] for verdict in Verdict}


def code_examples(rows: Iterable[SourceRow]) -> dict[str, str]:
    """For every reason code of rows that are not usable, the source and sentence of the first."""
    examples: dict[str, str] = {}
    for row in rows:
        if not Verdict(row.verdict).usable:
            examples.setdefault(row.code, f"{row.source}: {row.reason}")
    return examples


def count_codes(rows: Iterable[SourceRow]) -> dict[str, int]:
    """Number of rows that are not usable for every reason code, most frequent first."""
    counts = Counter(row.code for row in rows if not Verdict(row.verdict).usable)
    return dict(counts.most_common())
