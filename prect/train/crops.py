"""Geometry of crops: where the bases lie, and how much of a crop each base holds.

All positions and sizes are voxels of the view's grid in (x, y, z) order. The position label
is that of VoCo (arXiv 2402.17300, section 3.2): the share of the crop's volume that lies in
each base, here as a true three-dimensional overlap, so that any base grid can be used.

Shapes: B volumes, S random crops a volume, n base crops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prect.train.config import CropConfig

Grid = tuple[int, int, int]


def grid_origin(crops: CropConfig, grid: Grid) -> NDArray[np.int64]:
    """(3,) first voxel of the base grid, which lies in the middle of the view."""
    tiled = np.multiply(crops.base_grid, crops.size)
    return np.asarray((np.asarray(grid) - tiled) // 2, dtype=np.int64)


def base_starts(crops: CropConfig, grid: Grid) -> NDArray[np.int64]:
    """(n, 3) first voxel of each base crop; z varies fastest."""
    index = np.indices(crops.base_grid).reshape(3, -1).T
    return np.asarray(grid_origin(crops, grid) + index * np.asarray(crops.size), dtype=np.int64)


def random_start_range(
    crops: CropConfig, grid: Grid
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last start (3,) that a random crop may have, both inclusive."""
    origin, margin = grid_origin(crops, grid), np.asarray(crops.margin)
    free = (np.asarray(crops.base_grid) - 1) * np.asarray(crops.size)
    return origin + margin, origin + free - margin


def overlap_shares(
    starts: NDArray[np.int64], bases: NDArray[np.int64], size: Grid
) -> NDArray[np.float32]:
    """Share of each crop's volume that lies in each base.

    Args:
        starts: (..., 3) first voxel of each crop.
        bases: (n, 3) first voxel of each base.
        size: voxels (x, y, z) of crops and bases.

    Returns:
        (..., n) float32; each row sums to 1 when the crop lies inside the base grid.
    """
    extent = np.asarray(size)
    distance = np.abs(starts[..., None, :] - bases)
    shared = np.maximum(extent - distance, 0)
    return np.asarray(shared.prod(axis=-1) / extent.prod(), dtype=np.float32)
