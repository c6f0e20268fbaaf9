"""From stores to batches of raw regions, in workers, in the order that sampling prescribes.

Workers ship int16 regions as they are stored; windowing, resizing and cropping run on the
device. Regions of whole volumes differ in size, so a batch holds a list of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as IndexSampler

from prect.cache.reader import ReaderPool
from prect.errors import PrectError, StoreError, TrainingError
from prect.train.config import CropConfig, TrainConfig
from prect.train.crops import overlap_shares
from prect.train.sampling import Sample, Sampler, step_indices
from prect.train.views import Voxels, plan_region
from prect.workspace import Workspace


class Store(Protocol):
    """What is needed of an open store."""

    def read(self, level: int, start: Voxels, shape: Voxels) -> NDArray[np.int16]:
        """A region of one level, (z, y, x); air outside the volume."""


class StorePool(Protocol):
    """What is needed of a pool of open stores."""

    def get(self, path: str | os.PathLike[str]) -> Store:
        """The open store at ``path``."""


PoolFactory = Callable[[], StorePool]


@dataclass
class RawBatch:
    """One step's samples of one rank, before they reach the device.

    Shapes: B volumes, S random crops and n bases a volume, random crops first.
    """

    samples: list[Sample]
    regions: list[torch.Tensor]
    """B int16 tensors (z, y, x), each of its own size."""
    starts: torch.Tensor
    """(B, S + n, 3) int64 first voxel of each crop, (x, y, z) of the view's grid."""
    flips: torch.Tensor
    """(B, S + n, 3) bool."""
    turns: torch.Tensor
    """(B, S + n) int64 quarter turns."""
    shifts: torch.Tensor
    """(B, S + n) float32."""
    labels: torch.Tensor
    """(B, S, n) float32 overlap shares."""

    @property
    def voxel_bytes(self) -> int:
        """Bytes of voxels that were read and decoded."""
        return sum(region.nbytes for region in self.regions)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All tensors that the device needs beside the regions."""
        return self.starts, self.flips, self.turns, self.shifts, self.labels

    def pin_memory(self) -> RawBatch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        regions = [region.pin_memory() for region in self.regions]
        return RawBatch(self.samples, regions, *(t.pin_memory() for t in self.tensors()))

    def to(self, device: torch.device) -> RawBatch:
        """The same batch on a device; the copies do not wait when memory is pinned."""
        regions = [region.to(device, non_blocking=True) for region in self.regions]
        moved = (t.to(device, non_blocking=True) for t in self.tensors())
        return RawBatch(self.samples, regions, *moved)


class ViewDataset(Dataset[tuple[Sample, torch.Tensor]]):
    """Reads the region of each sample; opens stores lazily, once in each worker."""

    def __init__(
        self,
        workspace: Workspace,
        datasets: Sequence[str],
        cases: Sequence[str],
        sampler: Sampler,
        pool: PoolFactory,
    ) -> None:
        """Bind a stream of samples to stores.

        Args:
            workspace: where the stores lie.
            datasets: data set of each row of the manifest.
            cases: case of each row.
            sampler: the stream.
            pool: makes the pool that a worker reads through.
        """
        self.sampler = sampler
        self._workspace = workspace
        self._datasets = datasets
        self._cases = cases
        self._factory = pool
        self._pool: StorePool | None = None

    def __getitem__(self, index: int) -> tuple[Sample, torch.Tensor]:
        """The sample at a global index and its region, int16 (z, y, x).

        Raises:
            StoreError: the store is missing or damaged; the case is attached as a note.
        """
        if self._pool is None:
            self._pool = self._factory()
        sample = self.sampler.sample(index)
        dataset, case = self._datasets[sample.row], self._cases[sample.row]
        region = plan_region(sample.view, self.sampler.volumes.row(sample.row))
        try:
            store = self._pool.get(self._workspace.store(dataset, case))
            voxels = store.read(region.level, region.start, region.shape)
        except StoreError as error:
            error.add_note(f"data set {dataset}, case {case}, sample {index}")
            raise
        return sample, torch.from_numpy(voxels)


class _Guarded(Dataset["tuple[Sample, torch.Tensor] | PrectError"]):
    """Hands an error on as an item.

    torch rebuilds an exception of a worker from its text, and what it was and said is lost.
    """

    def __init__(self, views: ViewDataset) -> None:
        self.views = views

    def __getitem__(self, index: int) -> tuple[Sample, torch.Tensor] | PrectError:
        try:
            return self.views[index]
        except PrectError as error:
            return error


def _collate_guarded(
    items: Sequence[tuple[Sample, torch.Tensor] | PrectError], crops: CropConfig
) -> RawBatch | PrectError:
    for item in items:
        if isinstance(item, PrectError):
            return item
    return collate([item for item in items if not isinstance(item, PrectError)], crops)


class StepIndices(IndexSampler[list[int]]):
    """The global indices of one rank, one list a step."""

    def __init__(self, start: int, stop: int, local_batch: int, rank: int, world: int) -> None:
        self._steps = range(start, stop)
        self._share = partial(step_indices, local_batch=local_batch, rank=rank, world=world)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            yield list(self._share(step))


def collate(items: Sequence[tuple[Sample, torch.Tensor]], crops: CropConfig) -> RawBatch:
    """Stack what can be stacked; runs in the worker."""
    samples = [sample for sample, _ in items]
    starts = np.stack([sample.starts for sample in samples])
    bases = starts[0, crops.random :]
    labels = overlap_shares(starts[:, : crops.random], bases, crops.size)
    return RawBatch(
        samples=samples,
        regions=[region for _, region in items],
        starts=torch.from_numpy(starts),
        flips=torch.from_numpy(np.stack([sample.flips for sample in samples])),
        turns=torch.from_numpy(np.stack([sample.turns for sample in samples])),
        shifts=torch.from_numpy(np.stack([sample.shifts for sample in samples])),
        labels=torch.from_numpy(labels),
    )


def train_loader(
    dataset: ViewDataset,
    config: TrainConfig,
    steps: range,
    *,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterator[RawBatch]:
    """Batches of one rank for a range of steps.

    Workers start by forkserver: a process that holds threads or a GPU must not be forked.

    Raises:
        StoreError: a store is missing or damaged; raised here, whichever process met it.
        TrainingError: a worker died.
    """
    if not steps:
        return
    data = config.data
    parallel = data.workers > 0
    # The data set yields samples; collate makes batches of them, which torch's types cannot say.
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        batch_sampler=StepIndices(steps.start, steps.stop, data.batch_size, rank, world),
        num_workers=data.workers,
        collate_fn=partial(_collate_guarded, crops=config.crops),
        prefetch_factor=data.prefetch if parallel else None,
        multiprocessing_context="forkserver" if parallel else None,
        pin_memory=pin_memory,
    )
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that reads data died ({error}); memory may be short: lower "
                "data.workers or data.prefetch"
            ) from error
        if isinstance(batch, PrectError):
            raise batch
        yield batch


def reader_pool(config: TrainConfig) -> PoolFactory:
    """Makes the pools that workers read through."""
    return partial(ReaderPool, config.data.open_stores)
