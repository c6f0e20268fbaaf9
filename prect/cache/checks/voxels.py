"""Whether the voxels of a level are what the level before and the statistics say.

Levels are averaged, and statistics counted, before a step or a window loses anything. So where HU
are stored as they are, the answer is exact; else levels may differ by what both have lost, and
the statistics are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prect.cache.checks.consistency import entry
from prect.cache.checks.faults import Fault
from prect.cache.format import SHARD_KEY, StoreAttributes, pack_occupancy, unpack_occupancy
from prect.cache.histogram import HuHistogram
from prect.cache.intensity import Intensity
from prect.cache.writer import occupancy, pool


@dataclass(frozen=True)
class Expected:
    """What a level must hold, from the one before; (z, y, x)."""

    hu: NDArray[np.int16]
    unsure: NDArray[np.bool_] | None
    """Voxels averaged from some at the ends of a window, which may have been beyond it."""


class VoxelCheck:
    """Is shown a level row of chunks by row of chunks, from the first plane on.

    Holds one row of chunks, and what the next level must be: an eighth of this one.

    Args:
        attributes: of the store, free of contradictions.
        number: resolution level.
        expected: what the level must hold, where that is known.
    """

    def __init__(self, attributes: StoreAttributes, number: int, expected: Expected | None) -> None:
        self.faults: list[Fault] = []
        self._attributes = attributes
        self._intensity = attributes.intensity
        self._exact = self._intensity == Intensity()
        self._number = number
        self._level = attributes.levels[number]
        self._expected = expected
        self._planes = 0
        self._body_hu = entry(attributes.profile, "harmonisation", "body_threshold_hu")
        self._shares: list[NDArray[np.float64]] = []
        self._histogram = HuHistogram()
        self._carry = np.empty((0, *self._level.shape[1:]), dtype=self._intensity.dtype)
        self._pooled: list[NDArray[np.int16]] = []
        self._unsure: list[NDArray[np.bool_]] = []

    def add(self, slab: NDArray[Any]) -> None:
        """Show the next planes, (z, y, x) stored values, all legal."""
        if self._expected is not None:
            self._compare(self._intensity.decode(slab), self._expected)
        if self._exact:
            self._count(slab)
        if self._number + 1 < len(self._attributes.levels):
            planes = np.concatenate([self._carry, slab])
            even = len(planes) // 2 * 2
            if even:
                self._pool(planes[:even])
            self._carry = planes[even:]
        self._planes += len(slab)

    def end(self) -> Expected | None:
        """All planes were shown.

        Returns:
            What the next level must hold; ``None`` when there is none.
        """
        if self._exact:
            self._check_statistics()
        if len(self._carry):
            self._pool(self._carry)
        if not self._pooled:
            return None
        unsure = np.concatenate(self._unsure) if self._unsure else None
        return Expected(np.concatenate(self._pooled), unsure)

    def _pool(self, planes: NDArray[Any]) -> None:
        self._pooled.append(pool(self._intensity.decode(planes)))
        if self._intensity.kind == "window":
            at_end = (planes == 1) | (planes == self._intensity.codes)
            # Of eight voxels that are 8 or 0 the mean is the number of those that are 8.
            self._unsure.append(pool(at_end.astype(np.int16) * np.int16(8)) > 0)

    def _compare(self, hu: NDArray[np.int16], expected: Expected) -> None:
        rows = slice(self._planes, self._planes + len(hu))
        # Either level may be off by that much; averaging makes it no more.
        allowed = 2 * self._intensity.max_error
        different = np.abs(hu - expected.hu[rows]) > allowed
        if expected.unsure is not None:
            different &= ~expected.unsure[rows]
        if not different.any():
            return
        z, y, x = (int(n) for n in np.argwhere(different)[0])
        voxel = (self._planes + z, y, x)
        detail = (
            f"voxel {voxel} is {hu[z, y, x]} HU, "
            f"level {self._number - 1} averages to {expected.hu[voxel]}"
        )
        cz, cy, cx = (n // c for n, c in zip(voxel, self._level.chunk, strict=True))
        file = f"{self._level.path}/{SHARD_KEY}"
        self.faults.append(Fault("store.pooling", detail, file, self._number, (cz, cy, cx)))
        self._expected = None  # one place is enough

    def _count(self, slab: NDArray[np.int16]) -> None:
        if self._number == 0:
            self._histogram.add(slab)
        if isinstance(self._body_hu, int):
            self._shares.append(occupancy(slab, self._level.chunk, self._body_hu))

    def _check_statistics(self) -> None:
        if self._shares:
            packed = pack_occupancy(np.concatenate(self._shares))
            counted = unpack_occupancy(self._level.model_copy(update={"occupancy": packed}))
            if not np.array_equal(unpack_occupancy(self._level), counted):
                self._fault(f"the occupancy of level {self._number} is not that of its voxels")
        if self._number == 0:
            percentiles = self._histogram.percentiles()
            for percent, stated in self._attributes.hu_percentiles.items():
                found = percentiles[percent]
                if found != stated:
                    self._fault(f"{percent} % of the voxels are at most {found} HU, not {stated}")

    def _fault(self, detail: str) -> None:
        self.faults.append(Fault("store.statistics", detail, "zarr.json", self._number))
