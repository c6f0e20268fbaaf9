"""Stores that exist in name only, and a manifest of a hundred thousand and more of them."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prect.cache.reader import Level
from prect.errors import ChunkError
from prect.manifests.stores import CACHE_SCHEMA, write_cache_table
from prect.train.dataset import PoolFactory
from prect.train.views import Voxels
from prect.workspace import Workspace


@dataclass
class SimulatedStore:
    """Voxels are a function of the case and the place."""

    case: str

    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    levels = tuple(
        Level((400 >> n, 300 >> n, 300 >> n), (1.5 * 2**n,) * 3, (32, 32, 32)) for n in range(3)
    )

    def occupancy(self, level: int) -> NDArray[np.uint8]:
        return np.full((13 >> level, 10 >> level, 10 >> level), 200, dtype=np.uint8)

    def read(
        self, level: int, start: Voxels, shape: Voxels, *, out: NDArray[np.int16] | None = None
    ) -> NDArray[np.int16]:
        if out is None:
            out = np.empty(shape, dtype=np.int16)
        out.fill(int(hashlib.blake2b(self.case.encode(), digest_size=2).hexdigest(), 16) % 1000)
        out[0, 0, :4] = (level, *start)
        return out


class SimulatedPool:
    """Opens simulated stores; some of them fail."""

    def __init__(self, deadly: frozenset[str] = frozenset(), damaged: frozenset[str] = frozenset()):
        self.deadly, self.damaged = deadly, damaged

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        case = Path(path).name.removesuffix(".ome.zarr")
        if case in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if case in self.damaged:
            raise ChunkError(case, 0, (1, 2, 3), "simulated damage")
        return SimulatedStore(case)


class BrokenDisk(SimulatedPool):
    """Reads fail as those of a disk or a file server do."""

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


class OutOfMemory(SimulatedPool):
    """Fails for a reason that is not the data's."""

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        raise RuntimeError(f"no room for {path}")


class EndsBy(SimulatedPool):
    """Reading ends the process by a signal, as often as a file has letters."""

    def __init__(self, number: int, left: Path) -> None:
        super().__init__()
        self.number, self.left = number, left

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        if letters := self.left.read_text():
            self.left.write_text(letters[1:])
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), self.number)
        return SimulatedStore(str(path))


def simulated_pool(*, deadly: tuple[str, ...] = (), damaged: tuple[str, ...] = ()) -> PoolFactory:
    """Makes pools of simulated stores; reading a deadly one ends the process."""
    return partial(SimulatedPool, frozenset(deadly), frozenset(damaged))


def write_simulated_manifest(
    workspace: Workspace, counts: dict[str, int], shape: Voxels | None = None
) -> None:
    """Cache manifests of stores of 1.5 mm, of ``shape`` (z, y, x) or of the shapes of real CT."""
    for dataset, count in counts.items():
        rng = np.random.default_rng(count)
        shapes = np.column_stack([rng.integers(60, 600, count), rng.integers(180, 330, (count, 2))])
        if shape is not None:
            shapes[:] = shape
        numbers = range(count)
        columns: dict[str, Any] = {
            "dataset": [dataset] * count,
            "case": [f"{dataset}-{number:06d}-{'0' * 12}" for number in numbers],
            "patient": [f"{number // 2:032x}" for number in numbers],
            "series": [f"{number:032x}" for number in numbers],
            "source_digest": [f"{number:032x}" for number in numbers],
            "profile": ["p" * 16] * count,
            "shape": list(shapes.astype(np.int32)),
            "spacing": [[1.5, 1.5, 1.5]] * count,
            "levels": [3] * count,
            "bytes": [10**7] * count,
            "source_bytes": [10**8] * count,
            "made_from": [f"{number:016x}" for number in numbers],
            "intensity": ["hu"] * count,
            "hu_low": [-1024] * count,
            "hu_high": [3071] * count,
            "hu_step": [1] * count,
            "digest": [f"{number:032x}" for number in numbers],
        }
        write_cache_table(workspace.cache_manifest(dataset), pa.table(columns, schema=CACHE_SCHEMA))
