"""What a workspace holds: counts that add up, from the manifests alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from prect.manifests.sources import (
    code_examples,
    count_codes,
    count_verdicts,
    read_source_table,
)
from prect.manifests.sources import usable as usable_rows
from prect.manifests.stores import CACHE_SCHEMA, read_cache_table, read_quarantine
from prect.workspace import Workspace


@dataclass(frozen=True)
class DatasetStatus:
    """One data set: candidates = the sum of verdicts; usable = stored + quarantined + pending."""

    dataset: str
    candidates: int
    verdicts: dict[str, int]
    codes: dict[str, int]
    """Reason codes of the candidates that are not usable."""
    examples: dict[str, str]
    """For each of these codes, one candidate and why."""
    usable: int
    stored: int
    quarantined: int
    quarantine_codes: dict[str, int]
    pending: int
    """Usable, neither stored nor quarantined yet."""
    orphans: int
    """Stores on disk whose source is no longer usable, or gone from the source manifest."""
    patients: int
    bytes: int
    """Bytes of the stores."""
    source_bytes: int
    """Bytes of the foreign files that are stored."""


def dataset_status(workspace: Workspace, dataset: str) -> DatasetStatus:
    """The status of one ingested data set.

    Raises:
        ManifestError: a manifest is missing or damaged.
    """
    columns = ["case", "verdict", "code", "source", "reason"]
    sources = read_source_table(workspace.sources(dataset), columns)
    usable = set(sources["case"].filter(pa.array(usable_rows(sources))).to_pylist())
    path = workspace.cache_manifest(dataset)
    counted = ["case", "patient", "bytes", "source_bytes"]
    rows = read_cache_table(path, counted) if path.exists() else CACHE_SCHEMA.empty_table()
    stored = set(rows["case"].to_pylist())
    failed = [
        row
        for row in read_quarantine(workspace.quarantine(dataset))
        if row.case in usable and row.case not in stored
    ]
    return DatasetStatus(
        dataset=dataset,
        candidates=len(sources),
        verdicts=count_verdicts(sources),
        codes=count_codes(sources),
        examples=code_examples(sources) | {row.code: f"{row.case}: {row.reason}" for row in failed},
        usable=len(usable),
        stored=len(usable & stored),
        quarantined=len(failed),
        quarantine_codes=dict(Counter(row.code for row in failed).most_common()),
        pending=len(usable) - len(usable & stored) - len(failed),
        orphans=len(workspace.stored_cases(dataset) - usable),
        patients=pc.count_distinct(rows["patient"]).as_py(),
        bytes=pc.sum(rows["bytes"]).as_py() or 0,
        source_bytes=pc.sum(rows["source_bytes"]).as_py() or 0,
    )


def workspace_status(workspace: Workspace) -> dict[str, object]:
    """The status of every data set, and the totals."""
    datasets = [dataset_status(workspace, name) for name in workspace.datasets()]
    summed = (
        "candidates",
        "usable",
        "stored",
        "quarantined",
        "pending",
        "orphans",
        "bytes",
        "source_bytes",
    )
    return {
        "workspace": str(workspace.root),
        "datasets": [asdict(status) for status in datasets],
        "totals": {name: sum(getattr(status, name) for status in datasets) for name in summed},
    }
