"""Where the organs of a scan truly lie, counted from its label volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prect.phantom.grid import Grid
from prect.phantom.tissue import ORGANS

_LABELS = max(ORGANS.values()) + 1


@dataclass(frozen=True)
class Landmark:
    """Where an organ lies in the scan."""

    centroid: tuple[float, float, float]
    """RAS mm of the mean position of its voxels, rounded to 0.001 mm."""
    voxels: int
    """Number of its voxels within the scan."""
    whole: bool
    """Whether the organ ends within the scan: none of it touches the edge of the grid or lies
    outside the reconstruction circle."""


class LandmarkCounter:
    """Collects voxel counts of each label along each index axis, slab by slab."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._along = [np.zeros((_LABELS, n), np.int64) for n in grid.shape]
        self._lost = np.zeros(_LABELS, np.int64)

    def add(self, labels: npt.NDArray[np.uint8], first_plane: int) -> None:
        """Count a slab of labels (k, j, i) that starts at plane ``first_plane``."""
        planes, rows, columns = labels.shape
        wide = labels.astype(np.int32)
        for axis, size, index in (
            (0, columns, np.arange(columns)[None, None, :]),
            (1, rows, np.arange(rows)[None, :, None]),
            (2, planes, np.arange(planes)[:, None, None]),
        ):
            cells = (wide * size + index.astype(np.int32)).ravel()
            counts = np.bincount(cells, minlength=_LABELS * size).reshape(_LABELS, size)
            start = first_plane if axis == 2 else 0
            self._along[axis][:, start : start + size] += counts

    def lose(self, labels: npt.NDArray[np.uint8]) -> None:
        """Note labels that were cut off by the reconstruction circle."""
        self._lost += np.bincount(labels, minlength=_LABELS)

    def landmarks(self) -> Mapping[str, Landmark]:
        """Landmark of each organ that has voxels in the scan, in the order of `ORGANS`."""
        found = {}
        for name, label in ORGANS.items():
            along = [counts[label] for counts in self._along]
            voxels = int(along[0].sum())
            if name == "background" or voxels == 0:
                continue
            index = [float(counts @ np.arange(len(counts)) / voxels) for counts in along]
            x, y, z = (self._grid.affine @ [*index, 1.0])[:3]
            touching = sum(int(counts[0] + counts[-1]) for counts in along)
            found[name] = Landmark(
                centroid=(round(float(x), 3), round(float(y), 3), round(float(z), 3)),
                voxels=voxels,
                whole=touching == 0 and int(self._lost[label]) == 0,
            )
        return found
