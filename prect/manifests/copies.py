"""Which volumes are copies of one another, within a data set and across data sets.

Three kinds of evidence: the same DICOM series in the same shape, the same voxels, and sketches
that overlap. The first two say that volumes are the same, so that the copy of a copy is one too.
An overlap does not: two ends of a scan both overlap with the whole and not with each other.
Some exports give unrelated scans one series id, so patients and contents can refute the first.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from prect.manifests.sketches import SKETCH_DTYPE, SKETCH_SIZE, overlaps, unpack
from prect.manifests.sources import Verdict

Key = TypeVar("Key")
Member = TypeVar("Member")

DUPLICATE_SHARE = 0.5
"""Share of the smaller of two overlapping volumes from which it counts as a copy that can go: below
it, most of the volume would be lost with it. A crop has a share of 1, a copy with noise 0.67 and
more; `prect.manifests.sketches.MIN_SHARE` suffices to keep a volume out for the sake of a test set.
"""
_FULL = SKETCH_SIZE * SKETCH_DTYPE.itemsize
"""Bytes of a full sketch."""


class Candidate(NamedTuple):
    """A row of a source manifest that takes part; all fields but the last are of `SourceRow`."""

    dataset: str
    case: str
    source: str
    item: str
    format: str
    patient: str
    study: str
    series: str
    stack: str
    kind: str
    split: str
    voxel_digest: str
    judged: str
    judged_code: str
    judged_reason: str
    shape: list[int]
    spacing: list[float]
    warnings: list[str]
    benchmark: str = ""
    """What part of a test set it belongs to that is kept out, in words."""

    @property
    def name(self) -> str:
        """How other rows call this one."""
        return f"{self.dataset}/{self.case}"

    @property
    def voxels(self) -> int:
        """Size of the volume."""
        return math.prod(self.shape)

    @property
    def usable(self) -> bool:
        """Whether it was judged usable; others are only there for what they tell of these."""
        return Verdict(self.judged).usable

    @property
    def fragment(self) -> bool:
        """Whether it is of too few DICOM slices, which may be missing from another volume."""
        few = self.judged == Verdict.REJECTED and self.judged_code == "geometry.too_small"
        return few and self.format == "dicom"

    def another_patient(self, other: Candidate) -> bool:
        """Whether two volumes are known to be of different people, as within a data set only."""
        return self.dataset == other.dataset and "" != self.patient != other.patient != ""


@dataclass(frozen=True)
class Copies:
    """The evidence on N candidates. A group is called by the position of its first member."""

    candidates: Sequence[Candidate]
    series: Sequence[int]
    """Group of the same series and shape, (N,)."""
    voxels: Sequence[int]
    """Group of the same voxels, (N,)."""
    same: Sequence[int]
    """Group of volumes tied by series or voxels, however indirectly, (N,)."""
    neighbours: dict[int, dict[int, float]]
    """Groups of the same voxels that overlap, with the estimated share of the smaller volume."""
    scattered: frozenset[int]
    """Candidates that are parts of a DICOM series that lies in several folders."""

    def link(self, one: int, other: int) -> str:
        """The strongest evidence: ``series``, ``voxels`` or ``overlap``; empty without any."""
        if self.series[one] == self.series[other]:
            return "series"
        if self.voxels[one] == self.voxels[other]:
            return "voxels"
        return "overlap" if self.share(one, other) else ""

    def share(self, one: int, other: int) -> float:
        """Estimated share of the smaller of two overlapping volumes in the other, else 0."""
        return self.neighbours.get(self.voxels[one], {}).get(self.voxels[other], 0.0)

    def linked(self, one: int) -> Iterator[int]:
        """All candidates that some evidence ties to one, itself among them."""
        by_series, by_voxels = self._members
        yield from by_series[self.series[one]]
        yield from by_voxels[self.voxels[one]]
        for group in self.neighbours.get(self.voxels[one], {}):
            yield from by_voxels[group]

    def of_series(self, one: int) -> Iterator[int]:
        """All candidates of the series of one whose shape could not be read."""
        c = self.candidates[one]
        if c.series and not c.shape:
            for position in self._by_series_id[c.series]:
                other = self.candidates[position]
                stacks = {c.stack, other.stack} - {""}
                if len(stacks) < 2 and not c.another_patient(other):
                    yield position

    @cached_property
    def _by_series_id(self) -> dict[str, list[int]]:
        return _gathered((position, c.series) for position, c in enumerate(self.candidates))

    @cached_property
    def _members(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        return _gathered(enumerate(self.series)), _gathered(enumerate(self.voxels))


def find_copies(
    candidates: Sequence[Candidate], places: Sequence[int], sketches: pa.ChunkedArray
) -> Copies:
    """Collect the evidence on candidates.

    Args:
        candidates: N rows; which of a group comes first is up to their order.
        places: where the sketch of each stands in ``sketches``, (N,).
        sketches: column of a source manifest, or of several joined.

    Raises:
        ManifestError: a sketch is malformed.
    """
    voxels = _first_of(c.voxel_digest or None for c in candidates)
    neighbours = _neighbours(voxels, places, sketches)
    scattered = _scattered(candidates, voxels, neighbours)
    series = _series(candidates, scattered, voxels, places, sketches)
    same = _joined(series, voxels)
    return Copies(candidates, series, voxels, same, neighbours, scattered)


def _gathered(pairs: Iterable[tuple[Member, Key]]) -> dict[Key, list[Member]]:
    groups: dict[Key, list[Member]] = defaultdict(list)
    for member, key in pairs:
        groups[key].append(member)
    return groups


def _first_of(keys: Iterable[object]) -> list[int]:
    """Position of the first candidate with the same key; its own for one whose key is None."""
    first: dict[object, int] = {}
    return [
        position if key is None else first.setdefault(key, position)
        for position, key in enumerate(keys)
    ]


def _neighbours(
    voxels: Sequence[int], places: Sequence[int], sketches: pa.ChunkedArray
) -> dict[int, dict[int, float]]:
    """Overlaps between groups of the same voxels, whichever of their sketches shows them."""
    chosen = sorted(_with_distinct_sketches(voxels, places, sketches))
    found = overlaps(unpack(sketches.take(pa.array([places[c] for c in chosen], pa.int64()))))
    neighbours: dict[int, dict[int, float]] = defaultdict(dict)
    ends = zip(found.first.tolist(), found.second.tolist(), found.share.tolist(), strict=True)
    for first, second, share in ends:
        one, other = voxels[chosen[first]], voxels[chosen[second]]
        if one != other:
            largest = max(share, neighbours[one].get(other, 0.0))
            neighbours[one][other] = neighbours[other][one] = largest
    return dict(neighbours)


def _with_distinct_sketches(
    voxels: Sequence[int], places: Sequence[int], sketches: pa.ChunkedArray
) -> Iterator[int]:
    """One candidate for each sketch that volumes of the same voxels have.

    That is one for nearly every group: only a wrong orientation that takes another axis for z
    makes two sketches of the same voxels.
    """
    for members in _gathered(enumerate(voxels)).values():
        if len(members) == 1:
            yield members[0]
        else:
            yield from {sketches[places[m]].as_py(): m for m in reversed(members)}.values()


def _scattered(
    candidates: Sequence[Candidate],
    voxels: Sequence[int],
    neighbours: dict[int, dict[int, float]],
) -> frozenset[int]:
    """Parts of one DICOM series in several folders of a data set that are no copies of each other.

    Counts instead of comparing all pairs: a data set whose series all have one id is large.
    """
    found = set()
    for members in _by_full_series(candidates):
        items = Counter(candidates[m].item for m in members)
        if len(items) == 1:
            continue
        groups = Counter(voxels[m] for m in members)
        both = Counter((candidates[m].item, voxels[m]) for m in members)
        for m in members:
            item = candidates[m].item
            near = neighbours.get(voxels[m], {}).items()
            copies = {voxels[m], *(group for group, share in near if share >= DUPLICATE_SHARE)}
            elsewhere = len(members) - items[item]
            if elsewhere > sum(groups[group] - both[item, group] for group in copies):
                found.add(m)
    return frozenset(found)


def _by_full_series(candidates: Sequence[Candidate]) -> Iterable[list[int]]:
    """Volumes and fragments of the same DICOM series, of one study of one patient of a data set.

    Of a fragment that could not be read, study and stack may be unknown; it may belong to any.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    vague = []
    for position, c in enumerate(candidates):
        if not c.series or c.format != "dicom" or not (c.usable or c.fragment):
            continue
        if c.fragment and not (c.study and c.stack):
            vague.append(position)
        else:
            groups[c.dataset, c.patient, c.series, c.study, c.stack].append(position)
    of_series = _gathered((key, key[:3]) for key in groups)
    for position in vague:
        c = candidates[position]
        for key in of_series.get((c.dataset, c.patient, c.series), ()):
            if c.study in ("", key[3]) and c.stack in ("", key[4]):
                groups[key].append(position)
    return groups.values()


def _series(
    candidates: Sequence[Candidate],
    scattered: frozenset[int],
    voxels: Sequence[int],
    places: Sequence[int],
    sketches: pa.ChunkedArray,
) -> list[int]:
    """Groups of the same series and shape that neither patients nor contents refute.

    Where a series holds several volumes of one shape, its stacks tell them apart, and a file that
    names no stack is not known to be any of them. The order of the axes does not count.
    """
    keys: list[tuple[str, ...] | None] = [
        (c.series, *map(str, sorted(c.shape)))
        if c.series and (c.usable or c.benchmark) and position not in scattered
        else None
        for position, c in enumerate(candidates)
    ]
    stacks: dict[tuple[str, ...] | None, set[str]] = defaultdict(set)
    for c, key in zip(candidates, keys, strict=True):
        stacks[key].update({c.stack} - {""})
    groups = _gathered(
        (position, (*key, c.stack) if len(stacks[key]) > 1 else key)
        for position, (c, key) in enumerate(zip(candidates, keys, strict=True))
        if key
    )
    leaders = list(range(len(candidates)))
    for members in groups.values():
        if len(members) > 1:
            contents = {m: sketches[places[m]].as_py() for m in members}
            for m, leader in _unrefuted(candidates, voxels, contents).items():
                leaders[m] = leader
    return _first_of(leaders)


def _unrefuted(
    candidates: Sequence[Candidate], voxels: Sequence[int], contents: dict[int, bytes]
) -> dict[int, int]:
    """Which of the volumes of one series id are the same: for each, the one it goes with.

    Different patients of a data set refute that, and so do two full sketches without a hash in
    common if the voxels differ too. A volume without a full sketch that could be any of several is
    taken for none.

    Args:
        candidates: all of them.
        voxels: group of the same voxels of each.
        contents: sketches of the volumes in question, by position.
    """
    leaders: dict[int, int] = {}
    patients: dict[tuple[int, str], str] = {}
    known: dict[int, list[int]] = defaultdict(list)
    groups: list[int] = []
    for m in sorted(contents, key=lambda m: (len(contents[m]) != _FULL, m)):
        c, full = candidates[m], len(contents[m]) == _FULL
        # Hashes are not negative, so negative numbers can stand for the voxels among them.
        hashes = [*np.frombuffer(contents[m], SKETCH_DTYPE).tolist(), -1 - voxels[m]]
        near = sorted({group for hash_ in hashes for group in known.get(hash_, ())})
        fitting = [
            group
            for group in (near if full else groups)
            if not c.patient or patients.get((group, c.dataset), c.patient) == c.patient
        ]
        if len(fitting) > 1 and not full:
            leaders[m] = m
            continue
        leaders[m] = fitting[0] if fitting else m
        if not fitting:
            groups.append(m)
            for hash_ in hashes if full else ():
                known[hash_].append(m)
        if c.patient:
            patients.setdefault((leaders[m], c.dataset), c.patient)
    return leaders


def _joined(series: Sequence[int], voxels: Sequence[int]) -> list[int]:
    """Groups that both groupings tie together, each called by its first member."""
    parent = list(range(len(series)))

    def first(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for position, others in enumerate(zip(series, voxels, strict=True)):
        for other in others:
            low, high = sorted((first(position), first(other)))
            parent[high] = low
    return [first(position) for position in range(len(series))]
