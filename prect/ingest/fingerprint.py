"""What copies of one scan have in common: a digest of the voxels, and a sketch of their content.

The digest is equal for volumes of equal voxels, however their axes are ordered or mirrored and
whatever their affine says. The sketch is a sample of local patterns, chosen by their content
alone, so that a crop, a mirror image or a re-saved copy shares patterns with the original.

Patterns. HU are clipped to a window inside the usual soft-tissue ones and summed over boxes of
8 x 8 voxels in the axial plane (of the closest RAS index), which noise and rounding hardly move.
A pattern is 13 of these sums, in bins of 16 HU: a centre, and pairs at equal distances on both
sides along x, y and z. The two of a pair are ordered by value, and x and y are interchangeable,
so that mirroring and transposing a slice change nothing. A pattern counts only where its
centre lies near the middle of a bin, the others lie clear of the edges of theirs, and many bins
occur: such a pattern is found again in a copy, and hardly ever in another scan.

Samples. Each pattern is hashed to 64 bits and the smallest distinct hashes are kept (bottom-k
sketch, Cohen and Kaplan, PODC 2007, https://doi.org/10.1145/1281100.1281133): the same ones in
every volume that holds them. Integers only, so that every platform finds the same.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from prect.ingest.volume import Volume, canonical_affine
from prect.manifests.sketches import SKETCH_DTYPE, SKETCH_SIZE
from prect.units import HU_MAX, HU_MIN

Voxels = NDArray[np.int16]
Hashes = NDArray[np.uint64]

_SLAB = 32
"""Slices copied at a time. 32 int16 fill a cache line, which matters when slices lie across."""
_LOW_HU, _HIGH_HU = -160, 240
"""Inside the windows that data sets are commonly clipped to, such as [-175, 250]."""
_BOX_STEPS = (1, 2, 4)
"""A sum of 8 neighbours is made by adding the array to itself, shifted by each of these."""
_BOX = 8
_UNIT = _BOX * _BOX
"""Sums of a box count 1 HU as 64; 400 HU make 25,600, which fits int16."""
_BIN_BITS = 10
_BIN = 1 << _BIN_BITS
"""Width of a bin in sums: 16 HU. Bins are centred on its multiples, so that a box of nothing but
air, the lower end of the window, lies in the middle of a bin."""
_CENTRE_TOLERANCE = _UNIT
"""Farthest that the centre of a pattern lies from the middle of its bin: 1 HU."""
_EDGE_MARGIN = _UNIT
"""Nearest that another sample lies to the edge of its bin: 1 HU."""
_IN_PLANE = (12, 6)
"""Distances of the pairs along x and y in voxels, those that differ most first."""
_ACROSS = (4, 2)
"""Distances of the pairs along z in slices."""
_MIN_BINS = 8
"""Different bins among the 13 samples, at least. Of 200 phantoms, which all have the same few
tissues, no two share more than 3 hashes with 8 bins, but up to 8 with 6 bins."""


def voxel_digest(volume: Volume) -> str:
    """Digest of the voxels, independent of the order and direction of the axes.

    Values are clipped to [-1024, 3071], so that padding and air are one. Each axis is turned to
    the direction, and the axes are brought into the order, in which the sums of the values over
    its planes compare least, shorter axes first. The affine is not looked at.

    Returns:
        BLAKE2b-128 over the shape and the voxels (little-endian int16), 32 hexadecimal digits.
    """
    profiles = _profiles(volume.voxels)
    turned = [reversed_ < profile for profile, reversed_ in profiles]
    least = [min(pair) for pair in profiles]
    order = sorted(range(3), key=lambda axis: (len(least[axis]), least[axis]))
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in turned)
    voxels = volume.voxels[steps].transpose(order)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(np.array(voxels.shape, dtype="<i8").tobytes())
    for slab in _slabs(voxels, HU_MIN, HU_MAX):
        digest.update(slab.astype("<i2", copy=False).data)
    return digest.hexdigest()


def _profiles(voxels: Voxels) -> list[tuple[list[int], list[int]]]:
    """For each axis the sums over its planes, forwards and backwards."""
    along: list[int] = []
    image = np.zeros(voxels.shape[1:], dtype=np.int64)
    for slab in _slabs(voxels, HU_MIN, HU_MAX):
        along += slab.reshape(len(slab), -1).sum(axis=1, dtype=np.int64).tolist()
        image += slab.sum(axis=0, dtype=np.int32)
    profiles = (along, image.sum(axis=1).tolist(), image.sum(axis=0).tolist())
    return [(profile, profile[::-1]) for profile in profiles]


def _slabs(voxels: Voxels, low: int, high: int) -> Iterator[Voxels]:
    """Clipped, contiguous copies of up to 32 planes of the first axis at a time."""
    for first in range(0, len(voxels), _SLAB):
        slab = np.array(voxels[first : first + _SLAB], dtype=np.int16, order="C")
        yield np.clip(slab, low, high, out=slab)


def sketch(volume: Volume) -> bytes:
    """The smallest hashes of the patterns of a volume.

    Returns:
        Up to 128 distinct hashes, sorted, little-endian uint64; fewer for a volume with little
        content, none for one below 32 voxels along x or y or below 9 along z.

    Raises:
        VolumeError: ``geometry.invalid``, the affine has no closest axes.
    """
    _, reordering = canonical_affine(volume.affine, volume.shape)
    ras = nib.orientations.apply_orientation(volume.voxels.transpose(2, 1, 0), reordering)
    smallest = np.empty(0, dtype=np.uint64)
    for hashes in _patterns(ras.transpose(2, 1, 0)):
        full = len(smallest) == SKETCH_SIZE
        smaller = hashes[hashes < smallest[-1]] if full else hashes
        if len(smaller):
            smallest = np.unique(np.concatenate([smallest, smaller]))[:SKETCH_SIZE]
    return smallest.astype(SKETCH_DTYPE).tobytes()


def _patterns(voxels: Voxels) -> Iterator[Hashes]:
    """Hashes of the patterns of each slice of (z, y, x) voxels in turn."""
    depth, reach = 2 * _ACROSS[0] + 1, 2 * _IN_PLANE[0] + 1
    if len(voxels) < depth or min(voxels.shape[1:]) - (_BOX - 1) < reach:
        return
    sums: deque[Voxels] = deque(maxlen=depth)
    for slab in _slabs(voxels, _LOW_HU, _HIGH_HU):
        for plane in slab - np.int16(_LOW_HU):
            sums.append(_box_sums(plane))
            if len(sums) == depth:
                yield _hashes(_samples(sums))


def _box_sums(plane: Voxels) -> Voxels:
    """Sums over boxes of 8 x 8 of (y, x) values from 0 to 400, half a bin added."""
    for step in _BOX_STEPS:
        plane = plane[:-step] + plane[step:]
    for step in _BOX_STEPS:
        plane = plane[:, :-step] + plane[:, step:]
    return plane + np.int16(_BIN // 2)


def _samples(sums: Sequence[Voxels]) -> NDArray[np.uint64]:
    """Bins of the patterns around the middle one of 9 planes, (13, patterns).

    Rows: the centre, then four along x, four along y, four along z; two and two make a pair.
    """
    middle = len(sums) // 2
    width = sums[middle].shape[1]
    flat = [plane.ravel() for plane in sums]
    where = _centres(sums[middle])
    offsets = [(middle, side * far) for far in _IN_PLANE for side in (1, -1)]
    offsets += [(middle, side * far * width) for far in _IN_PLANE for side in (1, -1)]
    offsets += [(middle + side * far, 0) for far in _ACROSS for side in (1, -1)]
    for plane, offset in offsets:
        within = flat[plane][where + offset] & (_BIN - 1)
        where = where[(within >= _EDGE_MARGIN) & (within <= _BIN - _EDGE_MARGIN)]
    bins = np.stack([flat[plane][where + offset] for plane, offset in [(middle, 0), *offsets]])
    bins >>= _BIN_BITS
    seen = np.bitwise_or.reduce(np.uint32(1) << bins.astype(np.uint32), axis=0)
    return bins[:, np.bitwise_count(seen) >= _MIN_BINS].astype(np.uint64)


def _centres(plane: Voxels) -> NDArray[np.intp]:
    """Flat indices of the sums that may be the centre of a pattern."""
    reach = _IN_PLANE[0]
    inner = plane[reach:-reach, reach:-reach]
    # As unsigned numbers, those below the tolerated range are above it too: one comparison.
    from_low = (inner & (_BIN - 1)) - np.int16(_BIN // 2 - _CENTRE_TOLERANCE)
    central = from_low.view(np.uint16) <= 2 * _CENTRE_TOLERANCE
    central &= inner >= _BIN  # boxes of air alone tell nothing
    found = np.flatnonzero(central)
    rows, columns = np.divmod(found, inner.shape[1])
    indices: NDArray[np.intp] = (rows + reach) * plane.shape[1] + columns + reach
    return indices


def _hashes(bins: NDArray[np.uint64]) -> Hashes:
    """64-bit hashes of patterns (13, n), blind to the order in pairs and to that of x and y."""
    along_x, along_y, along_z = (_packed(bins[first : first + 4]) for first in (1, 5, 9))
    rest = along_z << np.uint64(5) | bins[0]
    return _mixed(_mixed(rest) + (_mixed(along_x) + _mixed(along_y)))


def _packed(bins: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Four bins, two pairs, as one number of 20 bits each."""
    packed = np.zeros(bins.shape[1], dtype=np.uint64)
    for one, other in ((bins[0], bins[1]), (bins[2], bins[3])):
        for value in (np.minimum(one, other), np.maximum(one, other)):
            packed = packed << np.uint64(5) | value
    return packed


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit numbers that scatters them (the finaliser of SplitMix64).

    Steele, Lea and Flood, OOPSLA 2014, https://doi.org/10.1145/2660193.2660195.
    """
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
