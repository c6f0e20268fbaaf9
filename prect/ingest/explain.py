"""Every check of one volume, made again, with what was measured and the limit."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prect.errors import ManifestError
from prect.ingest.discover import Item, item_at
from prect.ingest.findings import Finding
from prect.ingest.judge import Candidate, Judge
from prect.manifests.cards import load_card
from prect.manifests.codes import CODES, Effect
from prect.manifests.sources import SourceRow, read_sources
from prect.workspace import Workspace

_FAMILIES = {
    "nifti": ("nifti", "volume"),
    "metaimage": ("metaimage", "volume"),
    "nrrd": ("nrrd", "volume"),
    "dicom": ("dicom",),
}
_OF_EVERY_FORMAT = ("geometry", "content", "hu")


class Outcome(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    WARNED = "warned"
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Line:
    """One check of the volume."""

    code: str
    outcome: Outcome
    measured: str
    limit: str
    sentence: str
    """Why it did not pass; else what the check looks for."""


@dataclass(frozen=True)
class Explanation:
    """A row of the manifest and the checks behind it."""

    row: SourceRow
    lines: tuple[Line, ...]


def explain(workspace: Workspace, dataset: str, case: str) -> Explanation:
    """Look at one volume again and tell the result of every check.

    Args:
        workspace: where the manifest lies.
        dataset: name of an ingested data set.
        case: case id, or the path relative to the source folder.

    Raises:
        ManifestError: the manifest has no such case, or its files are gone.
    """
    row = _row(workspace, dataset, case)
    judge = Judge(load_card(workspace.card(dataset)), Path(row.root), workspace.salt())
    candidate = _candidate(judge, row)
    examination = judge.examine(candidate)
    rejected = examination.rejection is not None
    lines = [_line(finding) for finding in examination.findings]
    named = {line.code for line in lines}
    families = (*_FAMILIES.get(row.format, ()), *_OF_EVERY_FORMAT)
    for code in CODES.values():
        if code.effect is Effect.QUARANTINE or code.name in named:
            continue
        if code.name.partition(".")[0] in families:
            # What raises and did not raise has passed, as long as the reader came to its end.
            outcome = Outcome.NOT_REACHED if rejected else Outcome.PASSED
            lines.append(Line(code.name, outcome, "", "", code.sentence))
    order = list(CODES)
    return Explanation(row, tuple(sorted(lines, key=lambda line: order.index(line.code))))


def _row(workspace: Workspace, dataset: str, case: str) -> SourceRow:
    path = workspace.sources(dataset)
    if not path.exists():
        known = ", ".join(workspace.datasets()) or "none"
        raise ManifestError(f"data set {dataset!r} has not been ingested (ingested: {known})")
    wanted = case.removeprefix(f"{dataset}/")
    rows = read_sources(path)
    sources = _spellings(case, {row.root for row in rows})
    matching = [row for row in rows if row.case == wanted or row.source in sources]
    if not matching:
        raise ManifestError(
            f"data set {dataset!r} has no case {case!r}; give an id, the path of a file or the "
            f"folder of a series; the columns `case` and `source` of {path} list them"
        )
    if len(matching) > 1:
        ids = ", ".join(row.case for row in matching)
        raise ManifestError(f"{case!r} holds {len(matching)} volumes; give one of the ids: {ids}")
    return matching[0]


def _spellings(text: str, roots: set[str]) -> set[str]:
    """What a path, relative to a source folder or to the current one, is called in the manifest."""
    sources = {Path(text).as_posix()}
    for root in map(Path, roots):
        for path in (Path(text).resolve(), (root / text).resolve()):
            if path.is_relative_to(root):
                sources.add(path.relative_to(root).as_posix())
    return sources


def _candidate(judge: Judge, row: SourceRow) -> Candidate:
    item: Item | None = item_at(judge.root, judge.card, os.fsdecode(row.item))
    if item is not None:
        for candidate in judge.candidates(item, Counter()):
            if judge.case_id(candidate) == row.case:
                return candidate
    raise ManifestError(f"{row.source} is no longer what ingest saw under {row.root}; ingest again")


def _line(finding: Finding) -> Line:
    outcome = Outcome.PASSED
    if not finding.passed:
        outcome = Outcome.WARNED if finding.effect == "warn" else Outcome.FAILED
    sentence = finding.reason or CODES[finding.code].sentence
    return Line(finding.code, outcome, finding.measured, finding.limit, sentence)
