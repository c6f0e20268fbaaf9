"""Where in a volume a view lies: at random, where there is body, on the grid of inner chunks.

All of it is decided from the manifest's geometry and the layout of the store (chunk shapes and
occupancy), before any voxel is read. Axes are (z, y, x) unless a line says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from prect.errors import StoreError
from prect.train.sections import ViewConfig
from prect.train.views import Geometry, Region, View, Voxels, box_view, plan_region, whole_view

CANDIDATES = 8
"""Places that are tried for a box that must hold body."""


class LevelLayout(Protocol):
    """How one level is chunked."""

    @property
    def chunk(self) -> Voxels:
        """Voxels of an inner chunk, (z, y, x)."""


class VolumeLayout(Protocol):
    """How a volume is stored; an open `prect.cache.reader.StoreReader` is one."""

    @property
    def levels(self) -> Sequence[LevelLayout]:
        """The levels, finest first."""

    def occupancy(self, level: int) -> NDArray[np.uint8]:
        """(z, y, x) 255 times the share of each inner chunk of a level that is body."""


def place_view(
    settings: ViewConfig,
    volume: Geometry,
    places: NDArray[np.float64],
    layout: VolumeLayout | None,
) -> tuple[View, Region]:
    """The view of a volume and the voxels to read for it.

    Args:
        settings: what to show.
        volume: geometry of the volume.
        places: (K, 3) places to try, in [0, 1) along (x, y, z); see `box_view`. The first whose
            region is body to ``settings.foreground`` at least is taken, else the one with most.
        layout: chunks and occupancy; only used for ``align`` and ``foreground``.
    """
    if settings.spacing is None:
        view = whole_view(volume, settings.grid)
        return view, plan_region(view, volume)
    best, most, occupancy = None, -1.0, None
    for x, y, z in places.tolist():
        view = box_view(volume, settings.grid, settings.spacing, (x, y, z))
        region = plan_region(view, volume)
        if layout is None:
            return view, region
        chunk = layout.levels[region.level].chunk
        if settings.align:
            view, region = align(view, region, volume, chunk)
        if settings.foreground == 0:
            return view, region
        if occupancy is None:
            # One for all places: the level follows from the size of the box alone.
            occupancy = layout.occupancy(region.level)
        share = body_share(region, volume, chunk, occupancy)
        if best is None or share > most:
            best, most = (view, region), share
        if share >= settings.foreground:
            break
    assert best is not None, "one place at least is tried"
    return best


def align(view: View, region: Region, volume: Geometry, chunk: Voxels) -> tuple[View, Region]:
    """Move a view to the nearest place where its region begins on the grid of inner chunks.

    The last place along an axis touches the volume's end instead, on the grid or not: else the
    voxels behind the last whole step would never be shown. Along an axis where the box is longer
    than the volume nothing is moved, since every chunk is read wherever it lies.

    Returns:
        The view at the new place, and its region; both tell the same box.
    """
    moved, corner = [], []
    axes = zip(
        region.start, region.shape, volume.level_shape(region.level), chunk, region.spacing,
        view.start[::-1], strict=True,
    )  # fmt: skip
    for start, count, available, step, edge, asked in axes:
        free = available - count
        if free < 0:
            moved.append(start)
            corner.append(asked)
            continue
        below = start - start % step
        above = min(below + step, free)
        nearest = below if start - below < above - start else above
        moved.append(nearest)
        corner.append(nearest * edge)
    placed = replace(view, start=(corner[2], corner[1], corner[0]))
    return placed, replace(region, start=(moved[0], moved[1], moved[2]))


def body_share(
    region: Region, volume: Geometry, chunk: Voxels, occupancy: NDArray[np.uint8]
) -> float:
    """Share of a region that is body, as far as the occupancy tells.

    Each inner chunk counts by the part of it that the region holds, as if its body were spread
    evenly; what lies outside the volume is no body.

    Args:
        region: the box.
        volume: geometry of the volume.
        chunk: voxels of an inner chunk of the region's level.
        occupancy: (z, y, x) 255 times the share of each inner chunk that is body.

    Raises:
        StoreError: the occupancy is not that of the manifest's geometry.
    """
    shape = volume.level_shape(region.level)
    if occupancy.shape != tuple(-(-n // c) for n, c in zip(shape, chunk, strict=True)):
        raise StoreError(
            f"the occupancy of level {region.level} has {occupancy.shape} chunks of {chunk} "
            f"voxels, the manifest tells of {shape} voxels; the store is not the manifest's"
        )
    inside, held = [], []
    for start, count, available, step in zip(region.start, region.shape, shape, chunk, strict=True):
        low, high = max(start, 0), min(start + count, available)
        if low >= high:
            return 0.0
        first, stop = low // step, -(-high // step)
        inside.append(slice(first, stop))
        held.append([min(high, (i + 1) * step) - max(low, i * step) for i in range(first, stop)])
    # Overlap is a product over the axes. Whole numbers, so that every machine gets the same sum.
    body = occupancy[tuple(inside)].astype(np.int64) @ held[2] @ held[1] @ held[0]
    z, y, x = region.shape
    return float(body) / (255 * z * y * x)
