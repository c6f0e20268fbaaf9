"""The arms: ways to read a box of a volume, each with the files that it reads from.

This module holds prect's reader and the arms that need no further library; the other ones are in
`prect.benchmark.foreign`. An arm lives in a process of its own, see `prect.benchmark.worker`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.benchmark.boxes import WINDOW, Box, Volume
from prect.benchmark.measuring import BenchmarkError
from prect.cache.format import CRC_BYTES, SHARD_KEY, index_bytes, level_grid
from prect.cache.reader import StoreReader
from prect.errors import ConfigError
from prect.units import Triple

Holds = Literal["hu", "scaled", "window"]
"""int16 HU; float32, `WINDOW` mapped to 0..1; int16 HU of `WINDOW` in the steps of one byte."""


class Arm(ABC):
    """One way to read boxes of one volume; open it, read, close it, and open it again."""

    name: ClassVar[str]
    title: ClassVar[str]
    """In words, for the table."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that it needs beside those that prect itself needs."""
    holds: ClassVar[Holds] = "hu"
    in_memory: ClassVar[bool] = False
    """Reads no file, so that there is no cold read."""
    library: ClassVar[Any] = None
    """Its module, once it is loaded."""
    limit: ClassVar[bool] = False
    """No reader, but what no reader can undercut."""

    def __init__(self, volume: Volume, folder: Path) -> None:
        """Bind the arm to a volume.

        Args:
            volume: what it reads.
            folder: of this arm alone, for files that it writes.
        """
        self.volume = volume
        self.folder = folder

    @classmethod  # noqa: B027 - prect's own arms are loaded with this module
    def load(cls) -> None:
        """Import and set up what the arm needs.

        Raises:
            ImportError: a library is missing.
            UnavailableError: this machine lacks something else that it needs.
        """

    def write(self) -> None:  # noqa: B027 - most arms read prect's own store
        """Write the arm's files; what reads prect's store has nothing to do."""

    @abstractmethod
    def files(self) -> list[Path]:
        """What the arm reads from."""

    @abstractmethod
    def open(self) -> None:
        """Open the files, as a worker does once."""

    @abstractmethod
    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any] | None:
        """Read a box, (z, y, x).

        Args:
            box: inside the volume.
            out: int16 buffer of its shape, as a loader has for a batch; filled by arms that can
                fill the caller's buffer.

        Returns:
            The voxels: ``out``, or the arm's own array.
        """

    def prepare(self, box: Box) -> None:  # noqa: B027 - only the decode limit needs it
        """Do, before the clock starts, what is not to be measured."""

    def checked(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:
        """The voxels of a box, for comparison with the truth."""
        voxels = self.read(box, out)
        if voxels is None:
            raise NotImplementedError(f"{self.name} returns no voxels")
        return voxels

    @abstractmethod
    def close(self) -> None:
        """Close every file, so that nothing stays open or mapped."""


def store_files(store: Path) -> list[Path]:
    """All files of a store."""
    return sorted(path for path in store.rglob("*") if path.is_file())


class Prect(Arm):
    """prect's own reader."""

    name = "prect"
    title = "prect, HU"

    def __init__(self, volume: Volume, folder: Path) -> None:
        super().__init__(volume, folder)
        self.store = volume.hu

    def files(self) -> list[Path]:
        return store_files(self.store)

    def open(self) -> None:
        self.reader = StoreReader(self.store)

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:
        return self.reader.read(0, box.start, box.shape, out=out)

    def close(self) -> None:
        self.reader.close()


class PrectWindow(Prect):
    """prect's own reader on the store that holds the window alone."""

    name = "prect-window"
    title = "prect, window in one byte"
    holds = "window"

    def __init__(self, volume: Volume, folder: Path) -> None:
        super().__init__(volume, folder)
        self.store = volume.window


class Memmap(Arm):
    """Bare int16 voxels, mapped into memory."""

    name = "memmap"
    title = "numpy memmap, uncompressed"

    def files(self) -> list[Path]:
        return [self.volume.raw]

    def open(self) -> None:
        self.map = np.memmap(self.volume.raw, dtype=np.int16, mode="r", shape=self.volume.shape)

    def read(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:
        out[...] = self.map[box.slices]
        return out

    def close(self) -> None:
        del self.map


class DecodeLimit(Arm):
    """The compressed chunks that a box touches, from memory, decoded in a bare loop of Python.

    Neither an index nor a check nor a copy to where the voxels belong is in its time, but a turn
    of Python and numcodecs' wrapper a chunk are: a limit of what calls numcodecs chunk by chunk.
    """

    name = "decode-limit"
    title = "decode limit, Python loop"
    in_memory = True
    limit = True

    @classmethod
    def load(cls) -> None:
        # Its own process: calling into the library's pool of threads, even of one, costs time.
        blosc.use_threads = False

    def files(self) -> list[Path]:
        return [self.volume.hu / self.volume.level / SHARD_KEY]

    def open(self) -> None:
        with StoreReader(self.volume.hu) as reader:
            grid = level_grid(reader.attributes.levels[0])
        (path,) = self.files()
        self.shard = path.read_bytes()
        table = self.shard[-index_bytes(grid) : -CRC_BYTES]
        self.index = np.frombuffer(table, dtype="<u8").reshape(*grid, 2)
        self.scratch = np.empty(self.volume.chunk, dtype=np.int16)
        self.bodies: list[bytes] = []

    def _touched(self, box: Box) -> list[Triple]:
        axes = zip(box.start, box.shape, self.volume.chunk, strict=True)
        planes, rows, columns = (range(s // c, (s + n - 1) // c + 1) for s, n, c in axes)
        return list(product(planes, rows, columns))

    def prepare(self, box: Box) -> None:
        self.bodies = [self._body(position) for position in self._touched(box)]

    def _body(self, position: Triple) -> bytes:
        offset, length = (int(value) for value in self.index[position])
        return self.shard[offset : offset + length - CRC_BYTES]

    def read(self, box: Box, out: NDArray[np.int16]) -> None:  # noqa: ARG002
        decompress, scratch = blosc.decompress, self.scratch
        for body in self.bodies:
            decompress(body, scratch)

    def checked(self, box: Box, out: NDArray[np.int16]) -> NDArray[Any]:  # noqa: ARG002
        touched = self._touched(box)
        chunk = self.volume.chunk
        lows = [first * c for first, c in zip(touched[0], chunk, strict=True)]
        ends = [(last + 1) * c for last, c in zip(touched[-1], chunk, strict=True)]
        whole = np.empty([b - a for a, b in zip(lows, ends, strict=True)], dtype=np.int16)
        for position in touched:
            blosc.decompress(self._body(position), self.scratch)
            at = [p * c - low for p, c, low in zip(position, chunk, lows, strict=True)]
            whole[tuple(slice(a, a + c) for a, c in zip(at, chunk, strict=True))] = self.scratch
        inside = Box(
            (box.start[0] - lows[0], box.start[1] - lows[1], box.start[2] - lows[2]), box.shape
        )
        return whole[inside.slices]

    def close(self) -> None:
        self.bodies = []


class CompiledDecodeLimit(DecodeLimit):
    """The same chunks through the same C function, in a compiled loop."""

    name = "decode-limit-compiled"
    title = "decode limit, compiled loop"

    @classmethod
    def load(cls) -> None:
        super().load()  # what is compared is decoded as it is there
        cls.library = import_module("prect.benchmark.decode_loop")
        cls.library.prepare()

    def prepare(self, box: Box) -> None:
        super().prepare(box)
        self.frames = np.frombuffer(b"".join(self.bodies), dtype=np.uint8)
        lengths = [len(body) for body in self.bodies]
        self.offsets = np.cumsum([0, *lengths[:-1]], dtype=np.int64)

    def read(self, box: Box, out: NDArray[np.int16]) -> None:  # noqa: ARG002
        whole = self.library.decode(self.frames, self.offsets, self.scratch)
        if whole != len(self.offsets):
            raise BenchmarkError(f"{len(self.offsets) - whole} chunks were not decompressed")


OWN: tuple[type[Arm], ...] = (Prect, PrectWindow)
_PLAIN: tuple[type[Arm], ...] = (Memmap, DecodeLimit, CompiledDecodeLimit)


def arms() -> dict[str, type[Arm]]:
    """Every arm by name, in the order of the tables."""
    # The other arms build on `Arm`; imported here, they may import this module.
    foreign: Sequence[type[Arm]] = import_module("prect.benchmark.foreign").FOREIGN
    return {arm.name: arm for arm in (*OWN, *foreign, *_PLAIN)}


def find_arm(name: str) -> type[Arm]:
    """An arm by name, or by ``module:Class`` where it is of somebody else.

    Raises:
        ConfigError: there is no such arm.
    """
    known = arms()
    if name in known:
        return known[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"no arm {name!r}; there are {', '.join(known)}")
    kind: type[Arm] = getattr(import_module(module), attribute)
    return kind


def scaled(hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """HU as VoCo's pipeline hands them on: `WINDOW` mapped to 0..1, float32."""
    low, high = WINDOW
    share = (hu.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return share.clip(np.float32(0), np.float32(1), out=share)
