"""Random regions from PersistentDataset through torch's DataLoader, as VoCo's release does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prect.benchmark.boxes import Box, Volume
from prect.benchmark.monai_cache import PersistentBoxes
from prect.units import Triple


class RandomRegions(Dataset[torch.Tensor]):
    """An endless stream of regions at random places of the whole field of view.

    Args:
        volumes: whose pickles lie under ``folder``.
        folder: one folder in it for each volume.
        shape: of the region, (z, y, x); padded with zeros where the field of view is smaller.
    """

    def __init__(self, volumes: Sequence[Volume], folder: Path, shape: Triple) -> None:
        self.boxes = [PersistentBoxes([volume], folder / volume.name) for volume in volumes]
        self.shape = shape

    def __getitem__(self, index: int) -> torch.Tensor:
        """(x, y, z) float32 of one region."""
        random = np.random.default_rng(index)
        boxes = self.boxes[int(random.integers(len(self.boxes)))]
        full = boxes.volumes[0].full_shape
        size = [min(n, m) for n, m in zip(self.shape, full, strict=True)]
        place = [int(random.integers(m - n + 1)) for n, m in zip(size, full, strict=True)]
        start = [p - o for p, o in zip(place, boxes.volumes[0].offset, strict=True)]
        box = Box((start[0], start[1], start[2]), (size[0], size[1], size[2]))
        region = torch.from_numpy(boxes.read(0, box))
        if tuple(size) == self.shape:
            return region
        padded = torch.zeros(self.shape[::-1])
        padded[tuple(slice(n) for n in size[::-1])] = region
        return padded


def batches(
    volumes: Sequence[Volume], folder: Path, shape: Triple, batch: int, workers: int
) -> Iterator[Any]:
    """Batches without end, (batch, x, y, z) float32.

    Args:
        volumes: whose pickles lie under ``folder``.
        folder: one folder in it for each volume.
        shape: of the region, (z, y, x).
        batch: regions a batch.
        workers: reading processes.
    """
    loader: DataLoader[torch.Tensor] = DataLoader(
        RandomRegions(volumes, folder, shape),
        batch_size=batch,
        sampler=range(1_000_000),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)
