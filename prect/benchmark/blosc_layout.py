"""Chunks and blocks of a ``.b2nd`` file by the rule that nnU-Net v2 documents.

A block is a power of two along each axis, at most half the patch, and shrinks until it fits
80 % of a first-level cache of 32 KiB. A chunk grows by whole blocks, along the axis that has
the fewest, until it fills 80 % of a third-level cache of 1.375 MiB, covers the image, or is one
and a half times as long as the patch on average.
"""

from __future__ import annotations

from math import log2, prod

from prect.units import Triple

FIRST_CACHE = 0.8 * 32 * 1024
THIRD_CACHE = 0.8 * 1441792
_LONGEST = 1.5
"""Mean length of a chunk, in patches."""


def blosc_layout(image: Triple, patch: Triple, itemsize: int) -> tuple[Triple, Triple]:
    """Chunk and block of an image.

    Args:
        image: voxels, (z, y, x).
        patch: voxels of the patches that training reads, (z, y, x).
        itemsize: bytes a voxel.

    Returns:
        Chunk and block, both in voxels, (z, y, x).
    """
    block = _block(image, patch, itemsize)
    chunk = list(block)
    while prod(chunk) * itemsize < THIRD_CACHE:
        free = [axis for axis in range(3) if chunk[axis] < image[axis] and patch[axis] > 1]
        if not free:
            break
        axis = min(free, key=lambda a: chunk[a] / block[a])
        before = chunk[axis]
        chunk[axis] = min(chunk[axis] + block[axis], image[axis])
        if sum(c / p for c, p in zip(chunk, patch, strict=True)) / 3 > _LONGEST:
            chunk[axis] = before
            break
    return (chunk[0], chunk[1], chunk[2]), block


def _block(image: Triple, patch: Triple, itemsize: int) -> Triple:
    block = [2 ** max(0, int(log2(n / 2))) for n in patch]
    while prod(block) * itemsize > FIRST_CACHE:
        free = [axis for axis in range(3) if block[axis] > 1 and block[axis] != image[axis]]
        axis = max(free, key=lambda a: (block[a] / patch[a], a))
        block[axis] = min(block[axis] // 2, image[axis])
    z, y, x = (min(b, n) for b, n in zip(block, image, strict=True))
    return z, y, x
