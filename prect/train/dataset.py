"""Samples with their voxels: stores are opened lazily, by each process for itself."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prect.cache.reader import ReaderPool
from prect.errors import StoreError, TrainingError
from prect.manifests.columns import StringColumn
from prect.train.collate import BatchMemory, RawBatch, pack, regions_in
from prect.train.config import TrainConfig
from prect.train.damage import Damage, UnreadableError, check_resources, check_share
from prect.train.placing import VolumeLayout
from prect.train.sampling import Sample, Sampler, Sources
from prect.train.views import Voxels
from prect.workspace import Workspace


class Store(VolumeLayout, Protocol):
    """What is needed of an open store."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) level-0 index (x, y, z) to RAS millimetres."""

    def read(
        self, level: int, start: Voxels, shape: Voxels, *, out: NDArray[np.int16] | None = None
    ) -> NDArray[np.int16]:
        """A region of one level, (z, y, x), in ``out`` if given; air outside the volume."""


class StorePool(Protocol):
    """What is needed of a pool of open stores."""

    def get(self, path: str | os.PathLike[str]) -> Store:
        """The open store at ``path``."""


PoolFactory = Callable[[], StorePool]


def reader_pool(config: TrainConfig) -> PoolFactory:
    """Makes the pools that workers read through."""
    return partial(ReaderPool, config.data.open_stores)


@dataclass(frozen=True)
class StoreNames:
    """Data set and case of each of N rows; small enough to be sent to every worker."""

    workspace: Workspace
    sources: Sources
    cases: StringColumn

    def dataset(self, row: int) -> str:
        """Data set of a row."""
        return self.sources.names[int(self.sources.code[row])]

    def case(self, row: int) -> str:
        """Case of a row."""
        return self.cases[row]

    def store(self, row: int) -> Path:
        """Folder of the store of a row."""
        return self.workspace.store(self.dataset(row), self.case(row))


class ViewDataset(Dataset[tuple[Sample, torch.Tensor]]):
    """The stream of samples of one domain with their voxels.

    May be pickled, and copied by fork, at any time: a process that finds itself with the pool of
    another one makes its own.
    """

    def __init__(
        self, names: StoreNames, sampler: Sampler, pool: PoolFactory, config: TrainConfig
    ) -> None:
        """Bind a stream of samples to stores.

        Args:
            names: which store belongs to a row of the manifest.
            sampler: the stream.
            pool: makes the pool that a process reads through.
            config: ``crops`` and ``data.on_damage`` matter here.
        """
        self.names = names
        self.sampler = sampler
        self.config = config
        self.deadly: dict[int, UnreadableError] = {}
        """Indices that are known to end the process that reads them, and so are not tried."""
        self.announce: Callable[[int, int | None], None] | None = None
        """Told the row, and then the level, before a store is touched; for who watches from
        outside."""
        self._factory = pool
        self._pool: StorePool | None = None
        self._owner = -1

    @property
    def allowed_damage(self) -> int:
        """Distinct cases of the run that may be damaged; at least one, unless the share is 0."""
        share = self.config.data.max_damaged
        if share == 0:
            return 0
        # 0.29 * 100 is a little less than 29.
        return max(1, math.floor(share * len(self.names.cases) + 1e-9))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_owner": -1}

    def __len__(self) -> int:
        """Samples an epoch; higher indices are those of later epochs."""
        return len(self.sampler)

    def __getitem__(self, index: int) -> tuple[Sample, torch.Tensor]:
        """The sample at a global index and its region, int16 (z, y, x).

        Raises:
            StoreError: the store is missing or damaged; data set, case and index are attached.
        """
        try:
            sample = self.plan(index)
            return sample, torch.from_numpy(self.read(sample))
        except UnreadableError as found:
            raise self.explained(found) from None

    def planned(self, index: int) -> Sample:
        """The sample at a global index, without its voxels.

        Raises:
            StoreError: its place depends on the store, which is missing or damaged.
        """
        try:
            return self.plan(index)
        except UnreadableError as found:
            raise self.explained(found) from None

    def plan(self, index: int) -> Sample:
        """The sample at a global index.

        Raises:
            UnreadableError: its place depends on the store, which is missing or damaged.
            TrainingError: a resource of this process is used up.
        """
        if index in self.deadly:
            raise self.deadly[index]
        asked = -1

        def layout(row: int) -> VolumeLayout:
            nonlocal asked
            asked = row
            self._tell(row, None)
            return self.open(row)

        try:
            return self.sampler.sample(index, layout)
        except (StoreError, OSError) as error:
            raise self._unreadable(index, asked, error) from error

    def read(self, sample: Sample, out: NDArray[np.int16] | None = None) -> NDArray[np.int16]:
        """The region of a sample, (z, y, x) int16 HU, in ``out`` if given.

        Raises:
            UnreadableError: the store is missing or damaged.
            TrainingError: a resource of this process is used up.
        """
        region = sample.region
        self._tell(sample.row, region.level)
        try:
            store = self.open(sample.row)
            return store.read(region.level, region.start, region.shape, out=out)
        except (StoreError, OSError) as error:
            raise self._unreadable(sample.index, sample.row, error) from error

    def _unreadable(self, index: int, row: int, error: StoreError | OSError) -> UnreadableError:
        check_resources(error)
        if isinstance(error, OSError):  # of the device or the network
            error = StoreError(f"{self.names.store(row)} cannot be read: {error.strerror}")
        return UnreadableError(index, row, error)

    def _tell(self, row: int, level: int | None) -> None:
        if self.announce is not None:
            self.announce(row, level)

    def open(self, row: int) -> Store:
        """The store of a row, open in this process.

        Raises:
            StoreError: it is missing or damaged.
        """
        if self._pool is None or self._owner != os.getpid():
            self._pool, self._owner = self._factory(), os.getpid()
        return self._pool.get(self.names.store(row))

    def read_batch(self, indices: Sequence[int], memory: BatchMemory | None = None) -> RawBatch:
        """The samples at some indices as one batch, by the run's policy on damage.

        Args:
            indices: global indices.
            memory: where to read to; fresh memory of this process when left out.

        Raises:
            StoreError: a store is missing or damaged, and the policy is ``raise``.
            TrainingError: too many stores are, one after the other.
        """
        samples, voxels, damages = self.read_samples(indices, memory or BatchMemory())
        return pack(samples, voxels, self.config.crops, damages)

    def read_samples(
        self, indices: Sequence[int], memory: BatchMemory
    ) -> tuple[list[Sample], torch.Tensor, list[Damage]]:
        """What is shown at some indices, and its voxels; see `read_batch`.

        Returns:
            The samples; their regions one after the other, int16; what was replaced.
        """
        shown = list(indices)
        damages: dict[int, Damage] = {}
        while True:
            try:
                samples = [self.plan(index) for index in shown]
                shapes = [sample.region.shape for sample in samples]
                voxels = memory.take(sum(map(math.prod, shapes)))
                for sample, part in zip(samples, regions_in(voxels, shapes), strict=True):
                    self.read(sample, part)
            except UnreadableError as found:
                if self.config.data.on_damage == "raise":
                    raise self.explained(found) from None
                # Rare enough that the whole batch is read again with the next one that reads.
                for damage in self.replacement(found, self._try):
                    damages[damage.index] = damage
                shown = [damages[i].replaced_by if i in damages else i for i in shown]
                continue
            return samples, voxels, list(damages.values())

    def _try(self, index: int) -> None:
        self.read(self.plan(index))

    def replacement(self, first: UnreadableError, attempt: Callable[[int], None]) -> list[Damage]:
        """Look for the next index that reads.

        Args:
            first: what was found at the index to replace.
            attempt: reads an index, or raises `UnreadableError`.

        Returns:
            ``first`` and what else was found on the way, all replaced by the index that reads.

        Raises:
            TrainingError: too many cases are damaged, or nothing reads at all.
        """
        failed = [first]
        while True:
            cases = {(self.names.dataset(f.row), self.names.case(f.row)) for f in failed}
            check_share(cases, self.allowed_damage)
            # Two epochs hold every volume, so after them there is nothing left to hope for.
            if len(failed) > 2 * len(self):
                raise TrainingError(
                    f"none of the {len(cases)} volumes can be read; the last: {failed[-1].error}"
                )
            index = failed[-1].index + 1
            try:
                attempt(index)
            except UnreadableError as found:
                failed.append(found)
                continue
            return [
                Damage.of(f, self.names.dataset(f.row), self.names.case(f.row), index)
                for f in failed
            ]

    def explained(self, found: UnreadableError) -> StoreError:
        """The error of a store with what it was read for."""
        error = found.error
        error.add_note(
            f"data set {self.names.dataset(found.row)}, case {self.names.case(found.row)}, "
            f"sample {found.index}"
        )
        return error
