"""Boxes through MONAI's cached data sets, as VoCo's release reads its volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.dataset import CacheDataset, PersistentDataset
from monai.transforms.compose import Compose
from monai.transforms.traits import RandomizableTrait
from monai.transforms.transform import Transform
from numpy.typing import NDArray

from prect.benchmark.arms import scaled
from prect.benchmark.boxes import Box, Volume


class Whole(Transform):
    """A volume as the deterministic part of the pipeline leaves it: (1, x, y, z) float32."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = {volume.name: volume for volume in volumes}

    def __call__(self, data: str) -> dict[str, torch.Tensor]:
        volume = self.volumes[data]
        hu = np.fromfile(volume.raw, dtype=np.int16).reshape(volume.shape)
        whole = np.zeros(volume.full_shape, dtype=np.float32)
        whole[Box(volume.offset, volume.shape).slices] = scaled(hu)
        return {"image": torch.from_numpy(np.ascontiguousarray(whole.transpose(2, 1, 0))[None])}


class Crop(RandomizableTrait, Transform):
    """Cuts the box that is set; MONAI takes it for random, so that it comes after the cache."""

    def __init__(self) -> None:
        self.box = Box((0, 0, 0), (1, 1, 1))
        """Of the field of view, (z, y, x)."""

    def __call__(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        z, y, x = self.box.slices
        # A contiguous copy, as collation makes: a view would keep the whole volume alive.
        return data["image"][0, x, y, z].contiguous()


class _Boxes:
    """Boxes of volumes through one of MONAI's data sets."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes
        # MONAI names the files by a digest of these: a name has the same one in every process.
        self.names = [volume.name for volume in volumes]
        self.crop = Crop()
        self.chain = Compose([Whole(volumes), self.crop])
        self.dataset: Any = None

    def read(self, index: int, box: Box) -> NDArray[np.float32]:
        """A box of a volume, its place told in the stored body box; (x, y, z) float32."""
        z, y, x = (s + o for s, o in zip(box.start, self.volumes[index].offset, strict=True))
        self.crop.box = Box((z, y, x), box.shape)
        voxels: NDArray[np.float32] = self.dataset[index].numpy()
        return voxels


class PersistentBoxes(_Boxes):
    """Through PersistentDataset, which keeps one pickle a volume."""

    def __init__(self, volumes: Sequence[Volume], folder: Path) -> None:
        super().__init__(volumes)
        self.dataset = PersistentDataset(self.names, self.chain, folder)

    def fill(self) -> None:
        """Write the pickles."""
        for index in range(len(self.volumes)):
            self.dataset[index]


class CachedBoxes(_Boxes):
    """Through CacheDataset, which holds all volumes in memory."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        super().__init__(volumes)
        self.dataset = CacheDataset(self.names, self.chain, num_workers=0, progress=False)
