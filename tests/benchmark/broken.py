"""Arms that are not what they should be; named to a run as ``tests.benchmark.broken:Class``."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prect.benchmark.arms import Memmap
from prect.benchmark.boxes import Box
from prect.benchmark.measuring import UnavailableError


class OneVoxelOff(Memmap):
    """The last voxel of every box is one HU too high."""

    name = "one-voxel-off"

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:
        super().read(box, out)
        out[-1, -1, -1] += 1
        return out


class NotThere(Memmap):
    """Its library is missing."""

    name = "not-there"
    libraries = ("library-that-does-not-exist",)

    @classmethod
    def load(cls) -> None:
        raise ImportError("No module named 'library_that_does_not_exist'")


class Unavailable(Memmap):
    """This machine lacks what it needs."""

    name = "unavailable"

    @classmethod
    def load(cls) -> None:
        raise UnavailableError("libc exports no such thing")


class Dies(Memmap):
    """Ends its process."""

    name = "dies"

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        os._exit(3)


class Raises(Memmap):
    """Raises an error of its own."""

    name = "raises"

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        raise ValueError("the box is not to my taste")


class OpensOnce(Memmap):
    """Ends its process when it is opened again, as it is for a cold read."""

    name = "opens-once"
    opened = 0

    def open(self) -> None:
        self.opened += 1
        if self.opened > 1:
            os._exit(4)
        super().open()


class Hangs(Memmap):
    """Never answers."""

    name = "hangs"

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        time.sleep(60)
        return out


class KeepsMapped(Memmap):
    """Does not let go of its file, so that nothing can be read cold."""

    name = "keeps-mapped"
    kept: list[Any] = []  # noqa: RUF012 - it is to outlive the arm

    def close(self) -> None:
        self.kept.append(self.map)
        int(self.map.sum())
        super().close()
