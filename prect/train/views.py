"""Views: which part of a volume is shown, and which voxels must be read for it.

A view is a box in millimetres plus an output grid. Boxes are measured along the axes of the
stored array, (x, y, z), from the outer corner of voxel (0, 0, 0) of level 0. Planning needs
only the shape and the spacing from the manifest, so no store is opened for it: level ``l``
has ``ceil(n / 2**l)`` voxels of ``2**l`` times the spacing along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Millimetres = tuple[float, float, float]
Voxels = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """Level 0 of a stored volume, (z, y, x)."""

    shape: Voxels
    spacing: Millimetres
    """Voxel edges, mm."""
    levels: int
    """Number of levels in the store."""

    def level_shape(self, level: int) -> Voxels:
        """Voxels of a level."""
        z, y, x = (-(-n // 2**level) for n in self.shape)
        return z, y, x


@dataclass(frozen=True)
class GeometryTable:
    """The geometry of N volumes, by column."""

    shape: NDArray[np.int32]
    """(N, 3), (z, y, x)."""
    spacing: NDArray[np.float64]
    """(N, 3) mm, (z, y, x)."""
    levels: NDArray[np.int32]
    """(N,)."""

    def row(self, row: int) -> Geometry:
        """The geometry of one volume."""
        nz, ny, nx = (int(n) for n in self.shape[row])
        dz, dy, dx = (float(mm) for mm in self.spacing[row])
        return Geometry((nz, ny, nx), (dz, dy, dx), int(self.levels[row]))


@dataclass(frozen=True)
class View:
    """A box of a volume on an output grid, all in (x, y, z) order."""

    start: Millimetres
    """Corner of the box, mm; negative when the box is larger than the volume."""
    size: Millimetres
    """Edges of the box, mm."""
    grid: Voxels
    """Voxels of the output."""

    @property
    def spacing(self) -> Millimetres:
        """Edges of an output voxel, mm."""
        x, y, z = (length / n for length, n in zip(self.size, self.grid, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Region:
    """The voxels to read for a view, in the store's own (z, y, x) order."""

    level: int
    start: Voxels
    shape: Voxels
    spacing: Millimetres
    """Edges of a voxel of this level, mm, (z, y, x)."""

    def centres(self, grid: Voxels) -> tuple[NDArray[np.float64], ...]:
        """Positions of the output voxels along (x, y, z), in mm from the volume's corner.

        The region's whole extent is mapped onto the grid, corner to corner.
        """
        axes = zip(self.start[::-1], self.shape[::-1], self.spacing[::-1], grid, strict=True)
        return tuple(
            edge * (start + (np.arange(n) + 0.5) * count / n) for start, count, edge, n in axes
        )


def whole_view(volume: Geometry, grid: Voxels) -> View:
    """The whole volume on a grid (x, y, z)."""
    z, y, x = (n * mm for n, mm in zip(volume.shape, volume.spacing, strict=True))
    return View((0.0, 0.0, 0.0), (x, y, z), grid)


def box_view(volume: Geometry, grid: Voxels, voxel: Millimetres, place: Millimetres) -> View:
    """A box of ``grid`` times ``voxel`` (mm, x y z) inside the volume.

    ``place`` is in [0, 1) along (x, y, z): 0 touches the volume's first face, 1 its last. Along an
    axis where the box is longer than the volume, the volume lies in the middle of the box.
    """
    extent = whole_view(volume, grid).size
    size = tuple(n * mm for n, mm in zip(grid, voxel, strict=True))
    free = [total - length for total, length in zip(extent, size, strict=True)]
    x, y, z = (
        room * share if room > 0 else room / 2 for room, share in zip(free, place, strict=True)
    )
    return View((x, y, z), (size[0], size[1], size[2]), grid)


def plan_region(view: View, volume: Geometry) -> Region:
    """The coarsest level that is fine enough for a view, and the voxels of it that fill the view.

    Fine enough means a voxel no longer than the output's along every axis; where even level 0
    is not, level 0 is taken. The box is moved to whole voxels, so that what is read is exactly
    what is shown: at most half a voxel of the level away from the box that was asked for, and
    three quarters where the box is longer than the volume.
    """
    level = _coarsest_level(view, volume)
    edges = tuple(mm * 2**level for mm in volume.spacing)
    starts, counts = [], []
    axes = zip(view.start[::-1], view.size[::-1], edges, volume.level_shape(level), strict=True)
    for start_mm, size_mm, edge, available in axes:
        count = max(1, round(size_mm / edge))
        start = round(start_mm / edge)
        if count <= available:
            start = min(max(start, 0), available - count)
        starts.append(start)
        counts.append(count)
    return Region(
        level,
        (starts[0], starts[1], starts[2]),
        (counts[0], counts[1], counts[2]),
        (edges[0], edges[1], edges[2]),
    )


def _coarsest_level(view: View, volume: Geometry) -> int:
    wanted = view.spacing[::-1]
    for level in range(volume.levels - 1, 0, -1):
        edges = (mm * 2**level for mm in volume.spacing)
        # Lengths in mm carry rounding errors; equal ones must count as equal.
        if all(edge <= out * (1 + 1e-9) for edge, out in zip(edges, wanted, strict=True)):
            return level
    return 0
