"""Percentiles of the HU of a volume, counted a few planes at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prect.units import HU_MAX, HU_MIN

PERCENTILES = (0.5, 5.0, 50.0, 95.0, 99.5)
"""Of the attribute ``hu_percentiles``."""
PERCENTILE_KEYS = tuple(f"{percent:g}" for percent in PERCENTILES)


class HuHistogram:
    """How many voxels have each HU from -1024 to 3071."""

    def __init__(self) -> None:
        self._counts = np.zeros(HU_MAX - HU_MIN + 1, dtype=np.int64)

    def add(self, hu: NDArray[np.int16]) -> None:
        """Count voxels, (z, y, x) HU within [-1024, 3071]."""
        for plane in hu:  # a plane at a time: counting needs eight bytes a voxel
            bins = plane.ravel() - np.int16(HU_MIN)
            self._counts += np.bincount(bins, minlength=len(self._counts))

    def percentiles(self) -> dict[str, int]:
        """HU that at least so many per cent of the voxels do not exceed, by `PERCENTILE_KEYS`."""
        total = np.cumsum(self._counts)
        found = np.searchsorted(total, [percent / 100 * total[-1] for percent in PERCENTILES])
        return {key: int(n) + HU_MIN for key, n in zip(PERCENTILE_KEYS, found, strict=True)}
