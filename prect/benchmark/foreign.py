"""The arms of other libraries; each imports its own when it is loaded, and sets it up alone."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prect.benchmark.arms import Arm
from prect.benchmark.blosc_layout import blosc_layout
from prect.benchmark.boxes import Box, Volume
from prect.units import Triple

PATCH: Triple = (96, 96, 96)
"""Patch that the ``.b2nd`` files are laid out for, (z, y, x)."""


def raw_voxels(volume: Volume) -> NDArray[np.int16]:
    """All voxels of a volume, (z, y, x) int16 HU."""
    return np.fromfile(volume.raw, dtype=np.int16).reshape(volume.shape)


class _StoreArm(Arm):
    """Another reader of level 0 of prect's store."""

    @property
    def array(self) -> Path:
        """Folder of the level's array."""
        return self.volume.hu / self.volume.level

    def files(self) -> list[Path]:
        return sorted(path for path in self.array.iterdir() if path.is_file())


class ZarrPython(_StoreArm):
    """zarr-python with its defaults."""

    name = "zarr-python"
    title = "zarr-python, same store"

    @classmethod
    def load(cls) -> None:
        cls.library = import_module("zarr")

    def open(self) -> None:
        self.opened = self.library.open_array(self.array, mode="r")

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        return np.asarray(self.opened[box.slices])

    def close(self) -> None:
        del self.opened


class Zarrs(ZarrPython):
    """zarr-python with the codec pipeline of zarrs."""

    name = "zarrs"
    title = "zarrs pipeline, same store"
    libraries = ("zarrs",)

    @classmethod
    def load(cls) -> None:
        super().load()
        import_module("zarrs")
        cls.library.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})


class TensorStore(_StoreArm):
    """tensorstore with its defaults and one thread for copies."""

    name = "tensorstore"
    title = "tensorstore, same store"
    libraries = ("tensorstore",)

    @classmethod
    def load(cls) -> None:
        cls.library = import_module("tensorstore")

    def open(self) -> None:
        context = self.library.Context({"data_copy_concurrency": {"limit": 1}})
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{self.array}/"}}
        self.opened = self.library.open(spec, open=True, read=True, context=context).result()

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        return np.asarray(self.opened[box.slices].read().result())

    def close(self) -> None:
        del self.opened


class Blosc2(Arm):
    """``.b2nd`` as nnU-Net v2 writes it: zstd level 8, opened by mapping."""

    name = "blosc2"
    title = "blosc2 .b2nd as nnU-Net v2"
    libraries = ("blosc2",)

    @classmethod
    def load(cls) -> None:
        cls.library = import_module("blosc2")
        cls.library.set_nthreads(1)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.volume.name}.b2nd"

    def write(self) -> None:
        voxels = raw_voxels(self.volume)
        chunks, blocks = blosc_layout(self.volume.shape, PATCH, voxels.itemsize)
        parameters = {"codec": self.library.Codec.ZSTD, "clevel": 8}
        self.library.asarray(
            voxels, urlpath=str(self.path), chunks=chunks, blocks=blocks, cparams=parameters
        )

    def files(self) -> list[Path]:
        return [self.path]

    def open(self) -> None:
        self.opened = self.library.open(
            urlpath=str(self.path), mode="r", dparams={"nthreads": 1}, mmap_mode="r"
        )

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        return np.asarray(self.opened[box.slices])

    def close(self) -> None:
        del self.opened


class MLArray(Arm):
    """MLArray with its defaults: lz4hc, opened by mapping."""

    name = "mlarray"
    title = "MLArray"
    libraries = ("mlarray",)

    @classmethod
    def load(cls) -> None:
        cls.library = import_module("mlarray").MLArray

    @property
    def path(self) -> Path:
        return self.folder / f"{self.volume.name}.mla"

    def write(self) -> None:
        self.library(raw_voxels(self.volume)).save(self.path)

    def files(self) -> list[Path]:
        return [self.path]

    def open(self) -> None:
        self.opened = self.library.open(self.path)

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        return np.asarray(self.opened[box.slices])

    def close(self) -> None:
        self.opened.close()
        del self.opened


class Persistent(Arm):
    """MONAI's PersistentDataset: a float32 pickle of the whole field of view, then a crop.

    VoCo's pipeline crops to the body before the pickle, but torch.save writes the whole storage
    that the crop is a view of; what lies outside prect's body box is written as zeros.
    """

    name = "monai-persistent"
    title = "MONAI PersistentDataset, float32"
    holds = "scaled"

    @classmethod
    def load(cls) -> None:
        cls.library = import_module("prect.benchmark.monai_cache")

    def write(self) -> None:
        self._dataset().fill()

    def _dataset(self) -> Any:
        return self.library.PersistentBoxes([self.volume], self.folder / self.volume.name)

    def files(self) -> list[Path]:
        return sorted((self.folder / self.volume.name).glob("*.pt"))

    def open(self) -> None:
        self.opened = self._dataset()

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        # MONAI has (x, y, z); the transposed view costs nothing.
        voxels: NDArray[np.float32] = self.opened.read(0, box)
        return voxels.transpose(2, 1, 0)

    def close(self) -> None:
        del self.opened


class Cached(Persistent):
    """MONAI's CacheDataset: the same, held in memory."""

    name = "monai-cache"
    title = "MONAI CacheDataset, in memory"
    in_memory = True

    def write(self) -> None:
        """Nothing: it fills its cache when it is opened."""

    def files(self) -> list[Path]:
        return []

    def _dataset(self) -> Any:
        return self.library.CachedBoxes([self.volume])

    def close(self) -> None:
        """Nothing: to close it is to fill it again."""


FOREIGN: tuple[type[Arm], ...] = (
    *(Persistent, Cached, ZarrPython, Zarrs),
    *(TensorStore, Blosc2, MLArray),
)
