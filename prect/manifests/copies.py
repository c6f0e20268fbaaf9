"""Which volumes are copies of one another, within a data set and across data sets.

Three kinds of evidence: the same DICOM series in the same shape, the same voxels, and sketches
that overlap. The first two say that volumes are the same, so that the copy of a copy is one too.
An overlap does not: two ends of a scan both overlap with the whole and not with each other.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import pyarrow as pa

from prect.manifests.sketches import overlaps, unpack

Key = TypeVar("Key")


class Candidate(NamedTuple):
    """A usable row of a source manifest; the fields are those of `SourceRow`."""

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
    shape: list[int]
    spacing: list[float]

    @property
    def name(self) -> str:
        """How other rows call this one."""
        return f"{self.dataset}/{self.case}"

    @property
    def voxels(self) -> int:
        """Size of the volume."""
        return math.prod(self.shape)


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
    series = _series(candidates, scattered)
    same = _joined(series, voxels)
    return Copies(candidates, series, voxels, same, neighbours, scattered)


def _gathered(pairs: Iterable[tuple[int, Key]]) -> dict[Key, list[int]]:
    groups: dict[Key, list[int]] = defaultdict(list)
    for position, key in pairs:
        groups[key].append(position)
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
    parts = _gathered(
        (position, (c.dataset, c.series, c.stack))
        for position, c in enumerate(candidates)
        if c.series and c.format == "dicom"
    )
    found = set()
    for members in parts.values():
        items = Counter(candidates[m].item for m in members)
        if len(items) == 1:
            continue
        groups = Counter(voxels[m] for m in members)
        both = Counter((candidates[m].item, voxels[m]) for m in members)
        for m in members:
            item = candidates[m].item
            copies = {voxels[m], *neighbours.get(voxels[m], {})}
            elsewhere = len(members) - items[item]
            if elsewhere > sum(groups[group] - both[item, group] for group in copies):
                found.add(m)
    return frozenset(found)


def _series(candidates: Sequence[Candidate], scattered: frozenset[int]) -> list[int]:
    """Groups of the same series and shape.

    Where a series holds several volumes of one shape, its stacks tell them apart, and a file that
    names no stack is not known to be any of them. The order of the axes does not count.
    """
    keys: list[tuple[str, ...] | None] = [
        (c.series, *map(str, sorted(c.shape))) if c.series and position not in scattered else None
        for position, c in enumerate(candidates)
    ]
    stacks: dict[tuple[str, ...] | None, set[str]] = defaultdict(set)
    for c, key in zip(candidates, keys, strict=True):
        stacks[key].update({c.stack} - {""})
    return _first_of(
        (*key, c.stack) if key and len(stacks[key]) > 1 else key
        for c, key in zip(candidates, keys, strict=True)
    )


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
