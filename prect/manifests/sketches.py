"""Sketches of volumes: their layout, and which of many overlap.

A sketch holds the smallest hashes of the patterns found in a volume
(`prect.ingest.fingerprint.sketch`). Up to the smaller of the largest hashes of two full
sketches, both list all their patterns, so the patterns that both list there, as a share of
those of the volume that lists fewer, estimate how much of that one lies in the other
(Broder, On the resemblance and containment of documents, 1997).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prect.errors import ManifestError

Hashes = NDArray[np.uint64]
Index = NDArray[np.int64]

SKETCH_SIZE = 128
"""Hashes kept of a volume, at most."""
SKETCH_DTYPE = np.dtype("<u8")
"""Little-endian on every platform."""
MIN_SHARED = 6
"""Hashes that two volumes must share to be called overlapping. Of 20,000 pairs of different
phantoms none shares more than 3; a crop to an eighth of a clinical volume shares about 13."""
MIN_SHARE = 0.2
"""Share of the hashes compared that must be common. Different volumes stay below 0.05; a shift of
all values by 1 HU, the worst re-saving foreseen, leaves 0.28 and more. Enough to suspect a copy of
a test set; to drop a volume takes `prect.manifests.copies.DUPLICATE_SHARE`."""
_MAX_VOLUMES = 64
"""A hash that more volumes have, such as a pattern of a scanner's table, tells nothing."""
_PARTS = 16
"""The hashes are sorted in so many parts, to bound memory."""
_CHUNK = 1 << 20
"""Pairs looked at in one go."""
_MAX_SLOT_BITS = 26
"""Pairs are first counted in 2**26 slots, 128 MiB, that some share by chance."""


@dataclass(frozen=True)
class Sketches:
    """The sketches of N volumes, one after the other."""

    hashes: Hashes
    """All hashes, those of a volume ascending."""
    bounds: Index
    """Where each sketch begins and the last ends, (N + 1,)."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def sizes(self) -> Index:
        """Hashes of each volume, (N,)."""
        return np.diff(self.bounds)


@dataclass(frozen=True)
class Overlaps:
    """Pairs of volumes with content in common."""

    first: Index
    """(P,), position of one volume; always less than ``second``."""
    second: Index
    share: NDArray[np.float64]
    """Estimated share of the smaller volume that lies in the other, 0 to 1."""


def unpack(column: pa.ChunkedArray) -> Sketches:
    """The sketches of a column of a source manifest; an empty one holds no hash.

    Raises:
        ManifestError: a sketch is not a whole number of hashes, or has too many.
    """
    array = column.combine_chunks()
    _, offsets, data = array.buffers()
    if len(array) == 0 or data is None:
        return Sketches(np.empty(0, np.uint64), np.zeros(len(array) + 1, np.int64))
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    bounds, rest = np.divmod(ends.astype(np.int64) - ends[0], SKETCH_DTYPE.itemsize)
    if rest.any() or (np.diff(bounds) > SKETCH_SIZE).any():
        raise ManifestError(
            f"a sketch is not made of up to {SKETCH_SIZE} hashes of {SKETCH_DTYPE.itemsize} bytes; "
            "the manifest was not written by this release: ingest again"
        )
    hashes = np.frombuffer(data, SKETCH_DTYPE, int(bounds[-1]), int(ends[0]))
    return Sketches(hashes.astype(np.uint64, copy=False), bounds)


def overlaps(sketches: Sketches) -> Overlaps:
    """All pairs of volumes that share at least `MIN_SHARED` hashes and `MIN_SHARE` of them.

    Volumes without a hash in common are never compared. A hash that more than 64 volumes have
    is ignored, so volumes of equal voxels should be represented by one. Takes up to about
    twice the memory of the hashes, and 128 MiB.
    """
    groups = [group for part in range(_PARTS) for group in _common(sketches, part)]
    keys, shared = _frequent(groups, len(sketches))
    first, second = np.divmod(keys, max(len(sketches), 1))
    share = np.empty(len(keys))
    step = _CHUNK // SKETCH_SIZE
    for part in (slice(begin, begin + step) for begin in range(0, len(keys), step)):
        share[part] = shared[part] / _compared(sketches, first[part], second[part])
    near = share >= MIN_SHARE
    return Overlaps(first[near], second[near], share[near])


def _common(sketches: Sketches, part: int) -> Iterator[NDArray[np.int32]]:
    """Volumes that have a hash in common, for the hashes of one part of all.

    Yields:
        (hashes, n) positions, ascending along n, one array for each n that occurs.
    """
    chosen = np.flatnonzero(sketches.hashes & np.uint64(_PARTS - 1) == part)
    values = sketches.hashes[chosen]
    volumes = np.searchsorted(sketches.bounds, chosen, side="right") - 1
    order = np.argsort(values, kind="stable")
    values, volumes = values[order], volumes[order].astype(np.int32)
    begins = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else chosen
    counts = np.diff(np.append(begins, len(values)))
    for count in np.unique(counts):
        if 2 <= count <= _MAX_VOLUMES:
            yield volumes[begins[counts == count][:, None] + np.arange(count)]


def _pairs(groups: list[NDArray[np.int32]], volumes: int) -> Iterator[Index]:
    """Every pair of each group as one number, the first times ``volumes`` plus the second."""
    for group in groups:
        one, other = np.triu_indices(group.shape[1], 1)
        step = max(1, _CHUNK // len(one))
        for begin in range(0, len(group), step):
            members = group[begin : begin + step].astype(np.int64)
            yield (members[:, one] * volumes + members[:, other]).ravel()


def _frequent(groups: list[NDArray[np.int32]], volumes: int) -> tuple[Index, Index]:
    """Pairs that occur at least `MIN_SHARED` times, and how often.

    Most pairs share a hash or two by chance, and there are too many of them to keep. So pairs
    are first counted in slots, where chance can only add; then those of full slots are kept.
    """
    total = sum(len(group) * group.shape[1] * (group.shape[1] - 1) // 2 for group in groups)
    bits = min(max(total.bit_length() + 1, 10), _MAX_SLOT_BITS)
    slots = np.zeros(1 << bits, dtype=np.uint16)
    for pairs in _pairs(groups, volumes):
        np.add.at(slots, _slot(pairs, bits), np.uint16(1))
    kept = [pairs[slots[_slot(pairs, bits)] >= MIN_SHARED] for pairs in _pairs(groups, volumes)]
    keys, counts = np.unique(np.concatenate([np.empty(0, np.int64), *kept]), return_counts=True)
    frequent = counts >= MIN_SHARED
    return keys[frequent], counts[frequent]


def _slot(pairs: Index, bits: int) -> Index:
    """Slot of each pair: the upper bits of its product with 2**64 over the golden ratio."""
    scattered = pairs.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (scattered >> np.uint64(64 - bits)).astype(np.int64)


def _compared(sketches: Sketches, first: Index, second: Index) -> Index:
    """Hashes that two volumes could share: of the one that has fewer where both are complete."""
    complete = np.minimum(_last(sketches, first), _last(sketches, second))
    one, other = (
        (_padded(sketches, volumes) <= complete[:, None]).sum(axis=1) for volumes in (first, second)
    )
    sizes = np.minimum(sketches.sizes[first], sketches.sizes[second])
    fewer: Index = np.minimum(np.minimum(one, other), sizes)
    return fewer


def _last(sketches: Sketches, volumes: Index) -> Hashes:
    """Up to which hash each sketch is complete."""
    largest = sketches.hashes[sketches.bounds[volumes + 1] - 1]
    full = sketches.sizes[volumes] == SKETCH_SIZE
    return np.where(full, largest, np.iinfo(np.uint64).max)


def _padded(sketches: Sketches, volumes: Index) -> Hashes:
    """(P, 128) hashes, those that short sketches lack as the largest number."""
    columns = np.arange(SKETCH_SIZE)
    present = columns < sketches.sizes[volumes][:, None]
    places = np.where(present, sketches.bounds[volumes][:, None] + columns, 0)
    return np.where(present, sketches.hashes[places], np.iinfo(np.uint64).max)
