"""Which copy of a volume stays, which volumes of a study, and which are kept out as test sets.

Decided for all data sets of a workspace together, from what each volume was judged to be on its
own, so that the outcome depends on nothing that was decided before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prect.errors import ManifestError
from prect.manifests.copies import DUPLICATE_SHARE, Candidate, Copies, find_copies
from prect.manifests.sources import SOURCES_SCHEMA, Verdict


@dataclass(frozen=True)
class Policy:
    """What the card of a data set says about its place among others."""

    precedence: int
    """Of two copies, the one in the data set with the lower number stays."""
    one_per_study: bool
    """Whether one volume of each study is kept."""


class _Decision(NamedTuple):
    verdict: Verdict
    code: str
    reason: str
    duplicate_of: str = ""


_Decisions = dict[int, _Decision]
"""By position among the candidates, for those that are not simply used."""
_CODE_OF = {
    "series": "duplicate.series",
    "voxels": "duplicate.voxels",
    "overlap": "duplicate.overlap",
    "": "duplicate.series",  # a copy of a copy, by series at one of the two steps
}
"""By the evidence that ties a duplicate to the volume that is kept."""
_GRAVE = frozenset(
    {
        "dicom.incomplete_folder",
        "geometry.unit_spacing",
        "metaimage.assumed_orientation",
        "metaimage.no_orientation",
        "metaimage.units",
        "nifti.assumed_orientation",
        "nifti.units",
        "nrrd.assumed_orientation",
    }
)
"""Remarks that size or orientation may be wrong or slices missing, which a copy may have right."""
_COLUMNS = tuple(name for name in Candidate._fields if name != "benchmark")
_DECIDED = ("verdict", "code", "reason", "duplicate_of")
_JUDGED = ("judged", "judged_code", "judged_reason")


def resolve(
    tables: Mapping[str, pa.Table], policies: Mapping[str, Policy], excluded: Sequence[str]
) -> dict[str, pa.Table]:
    """Decide anew which volumes are used.

    Rows that were not judged accepted or warned keep what they were judged; of them only those of
    test sets and DICOM series of too few slices tell anything of others. In this order: test sets,
    their copies and the patients of both are excluded; series scattered over folders are rejected;
    reformats, and all but one volume of a study where the card asks for that, are excluded; of
    copies, one stays. That is one without grave remarks, then of the data set of lowest precedence,
    then without any remark, then the largest, then the first by data set and case.
    ``duplicate_of`` of a duplicate is a volume that is used, that of a copy of a test set a volume
    of it, used or not.

    Args:
        tables: source manifests by data set; columns that play no part may be absent.
        policies: of each of them.
        excluded: ``DATASET`` or ``DATASET:SPLIT`` of test sets to keep out.

    Returns:
        The same tables, rows in the same order, with verdict, code, reason and duplicate_of.

    Raises:
        ManifestError: an excluded data set or split is unknown, or a sketch is malformed.
    """
    benchmarks = [_benchmark(name, tables) for name in excluded]
    candidates, places, sketches = _ranked(tables, policies, benchmarks)
    copies = find_copies(candidates, places, sketches)
    decisions: _Decisions = {
        position: _Decision(Verdict(c.judged), c.judged_code, c.judged_reason)
        for position, c in enumerate(candidates)
        if not c.usable
    }
    _exclude_benchmarks(copies, decisions)
    _reject_scattered(copies, decisions)
    _choose_in_studies(copies, policies, decisions)
    _choose_copies(copies, decisions)
    by_place = {places[position]: decision for position, decision in decisions.items()}
    return _decided(tables, by_place)


def _benchmark(name: str, tables: Mapping[str, pa.Table]) -> tuple[str, str]:
    """Data set and split (empty for all of it) that a name stands for."""
    dataset, _, split = name.partition(":")
    if dataset not in tables:
        raise ManifestError(
            f"the test set {dataset!r} is not in the workspace: ingest it first, since only then "
            "can its copies be found"
        )
    splits = sorted(set(tables[dataset]["split"].to_pylist()) - {""})
    if split and split not in splits:
        raise ManifestError(
            f"{dataset} has no split {split!r}, "
            + (f"only {', '.join(splits)}" if splits else "since it was not ingested with a list")
        )
    return dataset, split


def _ranked(
    tables: Mapping[str, pa.Table],
    policies: Mapping[str, Policy],
    benchmarks: Sequence[tuple[str, str]],
) -> tuple[list[Candidate], list[int], pa.ChunkedArray]:
    """Rows that take part, the ones to keep first; their places in all tables; all sketches."""
    columns = [*_COLUMNS, "sketch"]
    schema = pa.schema([SOURCES_SCHEMA.field(name) for name in columns])
    joined = pa.concat_tables([schema.empty_table(), *(t.select(columns) for t in tables.values())])
    places = np.flatnonzero(_taking_part(joined, benchmarks))
    fields = [joined[name].take(pa.array(places)).to_pylist() for name in _COLUMNS]
    rows = [
        c._replace(benchmark=_part(c, benchmarks))
        for c in map(Candidate._make, zip(*fields, [""] * len(places), strict=True))
    ]

    def rank(row: int) -> tuple[bool, bool, int, bool, int, str, str, str]:
        c = rows[row]
        grave, warned = not _GRAVE.isdisjoint(c.warnings), c.judged == Verdict.WARNED
        precedence = policies[c.dataset].precedence
        return not c.usable, grave, precedence, warned, -c.voxels, c.dataset, c.case, c.source

    order = sorted(range(len(rows)), key=rank)
    return [rows[row] for row in order], [int(places[row]) for row in order], joined["sketch"]


def _taking_part(joined: pa.Table, benchmarks: Sequence[tuple[str, str]]) -> NDArray[np.bool_]:
    """(N,) whether each row is usable, of a test set, or of too few slices of a DICOM series."""

    def equal(name: str, value: str) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = pc.equal(joined[name], value).to_numpy()
        return same

    chosen = equal("judged_code", "geometry.too_small") & ~equal("series", "")
    chosen &= equal("format", "dicom") & equal("judged", Verdict.REJECTED.value)
    for verdict in Verdict:
        if verdict.usable:
            chosen |= equal("judged", verdict.value)
    for dataset, split in benchmarks:
        chosen |= equal("dataset", dataset) & (equal("split", split) if split else True)
    return chosen


def _part(c: Candidate, benchmarks: Sequence[tuple[str, str]]) -> str:
    """What of the first test set that a row belongs to is kept out; empty if it is of none."""
    for dataset, split in benchmarks:
        if c.dataset == dataset and split in ("", c.split):
            return f"split {split} of {dataset}" if split else dataset
    return ""


def _exclude_benchmarks(copies: Copies, decisions: _Decisions) -> None:
    """Exclude test sets, their copies and the copies of these, and other scans of the patients.

    Volumes of a test set that are not usable anyway keep their verdict; their copies go as well.
    """
    root = {position: position for position, c in enumerate(copies.candidates) if c.benchmark}
    for position in root.keys() - decisions.keys():
        reason = f"{copies.candidates[position].benchmark} is kept out of pre-training"
        decisions[position] = _Decision(Verdict.EXCLUDED, "leakage.benchmark", reason)
    waiting = list(root)
    for known in waiting:
        for position in (*copies.linked(known), *copies.of_series(known)):
            if position not in decisions:
                root[position] = root[known]
                decisions[position] = _copy_of_benchmark(copies, position, known, root[known])
                waiting.append(position)
    patients: dict[tuple[str, str], str] = {}
    for position in root:
        c = copies.candidates[position]
        whose = f"{c.name}, a {'' if c.benchmark else 'copy of a '}volume of a test set"
        patients.setdefault((c.dataset, c.patient), whose)
    for position, c in enumerate(copies.candidates):
        if position not in decisions and c.patient and (c.dataset, c.patient) in patients:
            reason = f"the patient of {patients[c.dataset, c.patient]}"
            decisions[position] = _Decision(Verdict.EXCLUDED, "leakage.benchmark_patient", reason)


def _copy_of_benchmark(copies: Copies, position: int, known: int, root: int) -> _Decision:
    name = copies.candidates[root].name
    reason = f"{_evidence(copies, position, known)}, " + (
        "a volume of a test set" if known == root else f"a copy of {name} of a test set"
    )
    return _Decision(Verdict.EXCLUDED, "leakage.benchmark_copy", reason, name)


def _reject_scattered(copies: Copies, decisions: _Decisions) -> None:
    reason = "other folders of the data set hold other slices of the same series"
    for position in copies.scattered - decisions.keys():
        decisions[position] = _Decision(Verdict.REJECTED, "selection.scattered_series", reason)


def _choose_in_studies(
    copies: Copies, policies: Mapping[str, Policy], decisions: _Decisions
) -> None:
    """Exclude reformats beside an original, and all but one volume where the card says so."""
    studies: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for position, c in enumerate(copies.candidates):
        if c.study and position not in decisions:
            studies[c.dataset, c.patient, c.study].append(position)
    for (dataset, _, _), members in studies.items():
        best = min(members, key=lambda member: _preference(copies.candidates[member]))
        kept = copies.candidates[best]
        for member in members:
            c = copies.candidates[member]
            if c.kind == "reformat" and kept.kind == "original":
                reason = f"a reformat; {kept.name} is an original series of the same study"
                decisions[member] = _Decision(Verdict.EXCLUDED, "selection.reformat", reason)
            elif policies[dataset].one_per_study and copies.same[member] != copies.same[best]:
                reason = (
                    f"of its study {kept.name} is kept: {_described(kept)}, this: {_described(c)}"
                )
                decisions[member] = _Decision(
                    Verdict.EXCLUDED, "selection.other_reconstruction", reason
                )


def _preference(c: Candidate) -> tuple[bool, int, float, str]:
    """Less is better: originals, many slices, close slices."""
    return c.kind != "original", -sum(c.shape[2:]), sum(c.spacing[2:]), c.case


def _described(c: Candidate) -> str:
    slices = f"{sum(c.shape[2:])} slices at {sum(c.spacing[2:]):g} mm"
    return f"{slices} ({c.kind})" if c.kind else slices


def _choose_copies(copies: Copies, decisions: _Decisions) -> None:
    """Go through the candidates, the ones to keep first, and drop copies of those kept."""
    kept_of: dict[int, tuple[int, int]] = {}  # same volume: the one kept, and the first met
    kept_with: dict[int, int] = {}  # same voxels: the one kept
    for position in range(len(copies.candidates)):
        if position in decisions:
            continue
        if copies.same[position] in kept_of:
            kept, met = kept_of[copies.same[position]]
            decisions[position] = _duplicate(copies, position, met, kept)
            continue
        near = copies.neighbours.get(copies.voxels[position], {}).items()
        copied = [group for group, share in near if share >= DUPLICATE_SHARE]
        found = min((kept_with[group] for group in copied if group in kept_with), default=position)
        kept_of[copies.same[position]] = (found, position)
        if found == position:
            kept_with[copies.voxels[position]] = position
        else:
            decisions[position] = _duplicate(copies, position, found, found)


def _duplicate(copies: Copies, position: int, met: int, kept: int) -> _Decision:
    """A duplicate of ``met``, which is kept or itself a duplicate of ``kept``."""
    name = copies.candidates[kept].name
    if met == kept:
        return _Decision(
            Verdict.DUPLICATE,
            _CODE_OF[copies.link(position, kept)],
            f"{_evidence(copies, position, kept)}, which is kept",
            name,
        )
    reason = f"{_evidence(copies, position, met)}; {_evidence(copies, met, kept)}, which is kept"
    return _Decision(Verdict.DUPLICATE, "duplicate.overlap", reason, name)


def _evidence(copies: Copies, position: int, other: int) -> str:
    name = copies.candidates[other].name
    link = copies.link(position, other)
    if link == "series":
        return f"the same series and shape as {name}"
    if link == "voxels":
        return f"the same voxels as {name}"
    if link == "overlap":
        share = 100 * copies.share(position, other)
        return f"{share:.0f} % of the patterns compared in common with {name}"
    if not copies.candidates[other].shape:
        return f"the same series as {name}, whose shape could not be read"
    return f"a copy of a copy of {name}"


def _decided(
    tables: Mapping[str, pa.Table], decisions: Mapping[int, _Decision]
) -> dict[str, pa.Table]:
    """The tables with the decisions, by place in all of them, and else what was judged."""
    results = {}
    begin = 0
    for dataset, table in tables.items():
        rows = range(begin, begin + len(table))
        judged = zip(*(table[name].to_pylist() for name in _JUDGED), strict=True)
        values = [
            decisions.get(row, (*before, "")) for row, before in zip(rows, judged, strict=True)
        ]
        decided = table
        for place, name in enumerate(_DECIDED):
            column = pa.array([str(value[place]) for value in values], pa.string())
            index = table.schema.get_field_index(name)
            decided = decided.set_column(index, SOURCES_SCHEMA.field(name), column)
        results[dataset] = decided
        begin += len(table)
    return results
