"""One step's samples as two tensors: all voxels in one, all numbers in the other.

A tensor that goes from a worker to the training process costs a shared-memory segment, a file
descriptor and a turn of the interpreter; two tensors a batch cost that twice, however many
volumes there are. Regions are read straight into the first of them.

Shapes: B volumes, S random crops and n bases a volume, random crops first.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from prect.train.config import CropConfig
from prect.train.crops import overlap_shares
from prect.train.damage import Damage
from prect.train.sampling import Sample
from prect.train.views import Voxels

_PARTS = ("starts", "flips", "turns", "shifts", "labels", "windows", "dropped")


@dataclass
class RawBatch:
    """One step's samples of one rank, before they reach the device."""

    voxels: torch.Tensor
    """(voxels of all regions,) int16 HU, one region after the other."""
    numbers: torch.Tensor
    """int32: starts, flips, turns, the bits of shifts, labels and windows, and what is dropped, one
    after the other."""
    shapes: tuple[Voxels, ...]
    """Shape of each region, (z, y, x)."""
    crops: tuple[int, int]
    """S and n."""
    origin: bytes
    """The pickled samples: they are not unpacked unless somebody asks."""
    damages: tuple[Damage, ...] = ()
    """Indices that could not be read and were replaced."""
    drops: bool = False
    """Whether embeddings of crops may be dropped."""

    def __len__(self) -> int:
        """Volumes."""
        return len(self.shapes)

    @property
    def samples(self) -> list[Sample]:
        """What is shown, one a volume."""
        samples: list[Sample] = pickle.loads(self.origin)
        return samples

    @property
    def voxel_bytes(self) -> int:
        """Bytes of voxels that were read and decoded."""
        return self.voxels.nbytes

    @property
    def regions(self) -> list[torch.Tensor]:
        """B int16 tensors (z, y, x), each of its own size; views of ``voxels``."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = self.voxels.split(sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def starts(self) -> torch.Tensor:
        """(B, S + n, 3) int64 first voxel of each crop, (x, y, z) of the view's grid."""
        return self._part("starts").long()

    @property
    def flips(self) -> torch.Tensor:
        """(B, S + n, 3) bool."""
        return self._part("flips").bool()

    @property
    def turns(self) -> torch.Tensor:
        """(B, S + n) int64 quarter turns."""
        return self._part("turns").long()

    @property
    def shifts(self) -> torch.Tensor:
        """(B, S + n) float32."""
        return self._part("shifts").view(torch.float32)

    @property
    def labels(self) -> torch.Tensor:
        """(B, S, n) float32 overlap shares, shuffled where the run asks for it."""
        return self._part("labels").view(torch.float32)

    @property
    def windows(self) -> torch.Tensor:
        """(B, 2) float32 HU mapped to 0 and 1."""
        return self._part("windows").view(torch.float32)

    @property
    def dropped(self) -> torch.Tensor | None:
        """(B * (S + n),) bool; None if no embedding may be dropped."""
        return self._part("dropped").bool().flatten() if self.drops else None

    def _part(self, name: str) -> torch.Tensor:
        volumes, (random, bases) = len(self.shapes), self.crops
        crops = random + bases
        shapes = {
            "starts": (volumes, crops, 3),
            "flips": (volumes, crops, 3),
            "turns": (volumes, crops),
            "shifts": (volumes, crops),
            "labels": (volumes, random, bases),
            "windows": (volumes, 2),
            "dropped": (volumes, crops),
        }
        sizes = [math.prod(shapes[part]) for part in _PARTS]
        begin = list(accumulate(sizes, initial=0))[_PARTS.index(name)]
        shape = shapes[name]
        return self.numbers[begin : begin + math.prod(shape)].view(shape)

    def pin_memory(self) -> RawBatch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return replace(self, voxels=self.voxels.pin_memory(), numbers=self.numbers.pin_memory())

    def to(self, device: torch.device) -> RawBatch:
        """The same batch on a device; the copies do not wait when memory is pinned."""
        return replace(
            self,
            voxels=self.voxels.to(device, non_blocking=True),
            numbers=self.numbers.to(device, non_blocking=True),
        )


class BatchMemory:
    """Where the regions of a batch are read to.

    A page of fresh memory is cleared by the kernel before it is written, which costs as much as
    decoding what is put there. So memory may be kept and used in turn.

    Args:
        shared: memory that other processes can be given.
        slots: batches that may be alive at a time; memory is never used again when it is 0.
    """

    def __init__(self, *, shared: bool = False, slots: int = 0) -> None:
        self.shared = shared
        self._slots: list[torch.Tensor | None] = [None] * slots
        self._turn = 0

    def turn(self) -> None:
        """Begin another batch: the one of ``slots`` turns ago may be overwritten."""
        self._turn += 1

    def take(self, count: int) -> torch.Tensor:
        """(count,) int16 for the batch of this turn."""
        if not self._slots:
            return self._fresh(count)
        position = self._turn % len(self._slots)
        slot = self._slots[position]
        if slot is None or len(slot) < count:
            slot = self._slots[position] = None  # given back before more is asked for
            slot = self._slots[position] = self._fresh(count)
        return slot[:count]

    def _fresh(self, count: int) -> torch.Tensor:
        if not self.shared:
            return torch.empty(count, dtype=torch.int16)
        # What a worker reads lies at once where the training process will find it.
        storage = torch.UntypedStorage._new_shared(2 * count)
        return torch.empty(0, dtype=torch.int16).set_(storage)


def regions_in(voxels: torch.Tensor, shapes: Sequence[Voxels]) -> list[NDArray[np.int16]]:
    """Each region's part of the memory of a batch, (z, y, x)."""
    ends = list(accumulate(math.prod(shape) for shape in shapes))
    parts = np.split(voxels.numpy(), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def labels_of(sample: Sample, crops: CropConfig) -> NDArray[np.float32]:
    """(S, n) share of each random crop in each base, shuffled where the run asks for it."""
    random, bases = np.split(sample.starts, [crops.random])
    labels = overlap_shares(random, bases, crops.size)
    if sample.label_order is None:
        return labels
    return np.take_along_axis(labels, sample.label_order, axis=-1)


def pack(
    samples: Sequence[Sample],
    voxels: torch.Tensor,
    crops: CropConfig,
    damages: Sequence[Damage] = (),
) -> RawBatch:
    """Make a batch of samples whose regions lie in ``voxels`` one after the other."""
    starts = np.stack([sample.starts for sample in samples])
    labels = np.stack([labels_of(sample, crops) for sample in samples])
    dropped = [sample.dropped for sample in samples if sample.dropped is not None]
    numbers = [
        starts.astype(np.int32),
        np.stack([sample.flips for sample in samples]).astype(np.int32),
        np.stack([sample.turns for sample in samples]).astype(np.int32),
        np.stack([sample.shifts for sample in samples]).astype(np.float32).view(np.int32),
        labels.view(np.int32),
        np.array([sample.window for sample in samples], dtype=np.float32).view(np.int32),
        *(part.astype(np.int32) for part in dropped),
    ]
    return RawBatch(
        voxels=voxels,
        numbers=torch.from_numpy(np.concatenate([part.ravel() for part in numbers])),
        shapes=tuple(sample.region.shape for sample in samples),
        crops=(crops.random, crops.bases),
        origin=pickle.dumps(list(samples)),
        damages=tuple(damages),
        drops=bool(dropped),
    )
