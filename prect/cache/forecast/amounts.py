"""The amounts of a whole build, from what was measured on a sample of each data set.

Nearly proportional to voxels that are known: the bytes stored to those of the grid, the seconds
to those of file and grid together. `prect.cache.forecast.ratio` has the statistics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from prect.cache.forecast.ratio import (
    Interval,
    Moments,
    Sample,
    counted,
    interval,
    predicted_total,
    ratio_total,
)
from prect.cache.forecast.trial import Measured
from prect.cache.forecast.volumes import Floats, Integers, Volumes
from prect.errors import BuildError
from prect.manifests.stores import CacheRow, QuarantineRow

_FLOAT32 = 4

Results = Mapping[tuple[str, str], Measured | None]
"""By data set and case; None where the worker died each time."""


@dataclass(frozen=True)
class Amounts:
    """What building some volumes takes."""

    volumes: int
    """To build."""
    sampled: int
    """Of them, built on trial."""
    borrowed: int
    """Of them, in data sets with too few sampled of their own: the others stand for them."""
    failures: dict[str, int]
    """Why volumes of the sample could not be built, and how many."""
    quarantined: Interval
    """Volumes that cannot be built."""
    source_bytes: int
    """Of the foreign files; known, not estimated."""
    stored_bytes: Interval
    """Of all files of the stores."""
    float32_bytes: float
    """A float32 cache of the same volumes: 4 bytes for each voxel of the whole field of view on
    the same grid, which is what MONAI's PersistentDataset pickles. Known but for volumes that are
    oblique or fail; without an interval, as a sample that has met neither would claim none."""
    worker_seconds: Interval
    """Summed over the workers, each of which keeps one core busy."""


class Column(NamedTuple):
    """A quantity of the volumes drawn, and what it is taken to be proportional to."""

    values: Floats
    """(n,)"""
    sizes: Floats
    """(n,)"""
    weights: Integers
    """(n,) volumes that each stands for."""
    whole: float
    """Sum of the sizes of all volumes, drawn or not."""


@dataclass(frozen=True)
class Part:
    """One data set: its volumes, n of which were drawn, and what they measured."""

    volumes: Volumes
    sample: Sample
    results: Results = field(repr=False)

    @property
    def cases(self) -> list[str]:
        """(n,) those drawn."""
        return [self.volumes.cases[unit] for unit in self.sample.units]

    @property
    def measured(self) -> list[Measured | None]:
        """(n,) None where the worker died."""
        return [self.results[self.volumes.dataset, case] for case in self.cases]

    @property
    def stores(self) -> list[CacheRow | None]:
        """(n,) None where there is none."""
        outcomes = [None if m is None else m.outcome for m in self.measured]
        return [outcome if isinstance(outcome, CacheRow) else None for outcome in outcomes]

    @property
    def failures(self) -> list[str]:
        """Codes of the volumes that were drawn and could not be built."""
        outcomes = [None if m is None else m.outcome for m in self.measured]
        rows = [row.code for row in outcomes if isinstance(row, QuarantineRow)]
        return rows + ["build.worker_died"] * outcomes.count(None)

    def speaks(self, known: int) -> bool:
        """Whether ``known`` volumes measured are enough for the data set to speak for itself."""
        return known >= 2 or known == len(self.volumes)

    def stored(self) -> Column:
        """Bytes of the stores; a volume that fails has none."""
        return self._column(
            [0.0 if store is None else float(store.bytes) for store in self.stores],
            self.volumes.grid_voxels,
        )

    def float32(self) -> Column:
        """Bytes of a float32 cache of the volumes that do not fail.

        In proportion to the voxels of the grid, and not the same, since oblique fields of view
        reach further than the manifest tells.
        """
        values = [0.0 if m is None else float(_FLOAT32 * m.grid_voxels) for m in self.measured]
        return self._column(values, self.volumes.grid_voxels)

    def failed(self) -> Column:
        """Volumes that fail."""
        ones = np.ones(len(self.volumes), dtype=np.int64)
        return self._column([float(store is None) for store in self.stores], ones)

    def seconds(self) -> Column:
        """Time of those that did not lose their worker."""
        values = [math.nan if m is None else m.seconds for m in self.measured]
        column = self._column(values, self.volumes.work)
        known = ~np.isnan(column.values)
        return column._replace(
            values=column.values[known],
            sizes=column.sizes[known],
            weights=column.weights[known],
        )

    def _column(self, values: Sequence[float], sizes: Integers) -> Column:
        drawn = sizes[self.sample.units].astype(np.float64)
        return Column(np.array(values), drawn, self.sample.weights, float(sizes.sum()))


def amounts(parts: Sequence[Part], everyone: Sequence[Part]) -> Amounts:
    """What the volumes of ``parts`` take.

    Args:
        parts: one data set, or all of them.
        everyone: all of them; they stand in for data sets with too few drawn.

    Raises:
        BuildError: the worker died on every volume drawn.
    """
    parts = [part for part in parts if len(part.volumes)]
    silent = [part for part in parts if not part.speaks(len(part.cases))]
    failures = Counter(code for part in parts for code in part.failures)
    stored, seconds = (
        interval(
            _totals(column, parts, everyone),
            least=sum(float(column(part).values.sum()) for part in parts),
        )
        for column in (Part.stored, Part.seconds)
    )
    return Amounts(
        volumes=sum(len(part.volumes) for part in parts),
        sampled=sum(len(part.cases) for part in parts),
        borrowed=sum(len(part.volumes) for part in silent),
        failures=dict(failures.most_common()),
        quarantined=_quarantined(parts, silent, everyone),
        source_bytes=sum(int(part.volumes.source_bytes.sum()) for part in parts),
        stored_bytes=stored,
        float32_bytes=interval(_totals(Part.float32, parts, everyone)).value,
        worker_seconds=seconds,
    )


def _totals(
    column: Callable[[Part], Column], parts: Sequence[Part], everyone: Sequence[Part]
) -> list[Moments]:
    """Independent totals that add up to that of ``parts``."""
    columns = [column(part) for part in parts]
    speak = [part.speaks(len(each.values)) for part, each in zip(parts, columns, strict=True)]
    totals = [ratio_total(*each) for each, own in zip(columns, speak, strict=True) if own]
    if not all(speak):
        whole = sum(each.whole for each, own in zip(columns, speak, strict=True) if not own)
        count = sum(len(part.volumes) for part, own in zip(parts, speak, strict=True) if not own)
        values, sizes, weights = _pooled([column(part) for part in everyone])
        totals.append(predicted_total(values, sizes, weights, whole, count))
    return totals


def _pooled(columns: Sequence[Column]) -> tuple[Floats, Floats, Integers]:
    values, sizes, weights = (np.concatenate([c[n] for c in columns]) for n in range(3))
    if not len(values):
        raise BuildError(
            "nothing was measured: the worker died on every volume of the sample, "
            "memory may be short; try fewer --workers"
        )
    return values, sizes, weights


def _quarantined(
    parts: Sequence[Part], silent: Sequence[Part], everyone: Sequence[Part]
) -> Interval:
    if not parts:
        return Interval(0.0, 0.0, 0.0)
    value = interval(_totals(Part.failed, parts, everyone)).value
    failed = sum(len(part.failures) for part in parts)
    sound = sum(len(part.cases) for part in parts) - failed
    heard = everyone if silent else parts
    found = sum(len(part.failures) for part in heard)
    drawn = sum(len(part.cases) for part in heard)
    count = sum(len(part.volumes) for part in parts)
    return counted(found, drawn, value, count, known=(failed, sound))
