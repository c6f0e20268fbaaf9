"""How much may be read ahead: as many batches as fit into a number of bytes, and no more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prect.errors import ConfigError
from prect.train.config import TrainConfig, ViewConfig
from prect.train.dataset import StoreNames
from prect.train.sampling import Sources
from prect.train.views import GeometryTable

_MIB = 2**20
_DEEPEST = 4
"""Batches a worker holds ready at most. Deeper queues hide longer stalls, but what lies in them
leaves the processor's cache before it is used: measured, a tenth to a quarter more time a sample
than with one batch."""


@dataclass(frozen=True)
class PrefetchPlan:
    """What fits into ``data.prefetch_mib``."""

    workers: int
    batches: int
    """Batches that each worker holds ready; 0 without workers."""
    batch_bytes: int
    """Regions of the largest batch that the manifest can give."""
    wanted: int
    """Workers that were asked for."""
    pinned: bool = False
    """Whether batches are copied to page-locked memory."""

    @property
    def held_bytes(self) -> int:
        """Regions that lie ready or are in use at most, copies included."""
        if self.workers == 0:
            return 0
        # Each worker reads to one more piece of memory than it holds ready: the one in use.
        read = self.workers * (self.batches + 1) * self.batch_bytes
        if not self.pinned:
            return read
        # torch copies all that is ready. While the next is handed out the last is still held, and
        # page-locked memory is given out in powers of two.
        locked = 1 << max(0, self.batch_bytes - 1).bit_length()
        return read + (self.workers * self.batches + 2) * locked

    def describe(self) -> str:
        """One sentence for who starts the run."""
        if self.workers == 0:
            return "reading in the training process"
        fewer = f" (of {self.wanted}: more would not fit)" if self.workers < self.wanted else ""
        locked = ", page-locked copies included" if self.pinned else ""
        return (
            f"{self.workers} reading processes{fewer}, {self.batches} batches ahead each, "
            f"{-(-self.held_bytes // _MIB)} MiB of regions at most{locked}"
        )


HERE = PrefetchPlan(workers=0, batches=0, batch_bytes=0, wanted=0)
"""Nothing is read ahead."""


def plan_prefetch(
    config: TrainConfig, volumes: GeometryTable, names: StoreNames, *, pin_memory: bool = False
) -> PrefetchPlan:
    """Workers and batches a worker, from the largest region of any volume.

    Fewer batches ahead come first, then fewer workers, and no page-locked copies last.

    Args:
        config: the run's settings.
        volumes: geometry of each volume.
        names: their data sets and cases.
        pin_memory: whether batches are wanted in page-locked memory.

    Raises:
        ConfigError: one worker that reads one batch ahead is too much; names the largest volume.
    """
    data = config.data
    sizes = region_bytes(config, volumes, names.sources)
    batch = data.batch_size * int(sizes.max(initial=0))
    if data.workers == 0:
        return PrefetchPlan(0, 0, batch, 0, pin_memory)
    limit = data.prefetch_mib * _MIB
    for pinned in {pin_memory: None, False: None}:
        for workers in range(data.workers, 0, -1):
            for batches in range(_DEEPEST, 0, -1):
                plan = PrefetchPlan(workers, batches, batch, data.workers, pinned)
                if plan.held_bytes <= limit:
                    return plan
    row = int(sizes.argmax())
    raise ConfigError(
        f"the region of {names.dataset(row)}/{names.case(row)}, the largest, is "
        f"{sizes[row] / _MIB:.0f} MiB, so {data.batch_size} of a batch can hold "
        f"{batch / _MIB:.0f} MiB, and one worker needs room for two batches; set "
        f"data.prefetch_mib={-(-plan.held_bytes // _MIB)} at least (it is {data.prefetch_mib}), a "
        "smaller data.batch_size, or data.workers=0 to read nothing ahead"
    )


def region_bytes(
    config: TrainConfig, volumes: GeometryTable, sources: Sources
) -> NDArray[np.int64]:
    """(N,) bytes of the region that is read for each volume, as int16."""
    result = np.zeros(len(volumes.levels), dtype=np.int64)
    for code, name in enumerate(sources.names):
        rows = sources.code == code
        part = GeometryTable(volumes.shape[rows], volumes.spacing[rows], volumes.levels[rows])
        result[rows] = 2 * region_voxels(config.view_of(name), part)
    return result


def region_voxels(view: ViewConfig, volumes: GeometryTable) -> NDArray[np.int64]:
    """(N,) voxels of the region of a view of each volume: `plan_region` for all at once."""
    grid = np.array(view.grid[::-1])
    if view.spacing is None:
        size = volumes.shape * volumes.spacing
        # As the one view after the other is planned, so that rounding falls the same way.
        output = size / grid
    else:
        size = np.broadcast_to(grid * np.array(view.spacing[::-1]), volumes.shape.shape)
        output = size / grid
    level = np.zeros(len(volumes.levels), dtype=np.int64)
    for candidate in range(1, int(volumes.levels.max(initial=1))):
        edges = volumes.spacing * 2**candidate
        fine = (edges <= output * (1 + 1e-9)).all(axis=1) & (candidate < volumes.levels)
        level[fine] = candidate
    counts = np.maximum(1, np.rint(size / (volumes.spacing * 2.0 ** level[:, None])))
    return np.asarray(counts.prod(axis=1), dtype=np.int64)
