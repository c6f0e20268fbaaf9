"""From the inner chunks of a shard to one box of HU, in Python.

What a read needs is gathered in a `BoxRead`; a decoder turns it into voxels. The decoder here
takes one Python turn a chunk and runs anywhere; `prect.cache.native` does the same, several
times faster, in machine code. Both are used through `prect.cache.reader` and pass the same tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from itertools import product
from typing import Any, Protocol

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.format import CRC_BYTES, MISSING
from prect.cache.intensity import Intensity
from prect.units import Triple

RUN_BYTES = 256 * 1024
"""Chunks that lie one after the other are read at once, up to so many bytes: they stay in cache."""


class Fault(IntEnum):
    """What is wrong with an inner chunk."""

    NONE = 0
    MISSING = 1
    UNREADABLE = 2
    CHECKSUM = 3
    SIZE = 4


MESSAGES = {
    Fault.MISSING: "is missing",
    Fault.UNREADABLE: "cannot be read whole",
    Fault.CHECKSUM: "does not match its checksum",
    Fault.SIZE: "decodes to another size than a chunk has",
}


@dataclass(frozen=True)
class BoxRead:
    """A box of one level that lies inside the volume; all triples are (z, y, x)."""

    descriptor: int
    """Of the open shard file."""
    index: NDArray[np.int64]
    """(pz, py, px, 2) offset and length in the file of each inner chunk that the box touches."""
    first: Triple
    """Position of the first of those chunks in the level's chunk grid."""
    low: Triple
    """First voxel of the box, in the level."""
    high: Triple
    """One past the last voxel of the box."""
    start: Triple
    """Voxel of the level that voxel (0, 0, 0) of ``out`` shows."""
    chunk: Triple
    """Voxels of an inner chunk."""
    intensity: Intensity
    out: NDArray[np.int16]
    """HU, C-ordered; voxels outside of the box are left alone."""


@dataclass(frozen=True)
class ChunkFault:
    """An inner chunk that could not be decoded."""

    position: Triple
    """In the level's chunk grid, (z, y, x)."""
    fault: Fault


class Decoder(Protocol):
    """Fills a box; keeps scratch memory, so each thread has its own."""

    def hint(self, read: BoxRead) -> None:
        """Ask the kernel to fetch all chunks of the box, before the first of them is read."""

    def fill(self, read: BoxRead, rows: range) -> ChunkFault | None:
        """Decode the chunks of some rows of ``read.index`` into ``read.out``.

        Args:
            read: the box.
            rows: rows of chunks along x, counted through (z, y).

        Returns:
            The first chunk that is missing or damaged, or None.
        """


class PythonDecoder:
    """One Python turn a chunk."""

    def __init__(self) -> None:
        self._scratch: NDArray[Any] = np.empty((0, 0, 0), dtype=np.int16)

    def hint(self, read: BoxRead) -> None:
        """See `Decoder.hint`."""
        for offset, length in runs(read.index):
            advise(read.descriptor, offset, length, "POSIX_FADV_WILLNEED")

    def fill(self, read: BoxRead, rows: range) -> ChunkFault | None:
        """See `Decoder.fill`."""
        dtype = read.intensity.dtype
        if self._scratch.shape != read.chunk or self._scratch.dtype != dtype:
            self._scratch = np.empty(read.chunk, dtype=dtype)
        for row in rows:
            z, y = divmod(row, read.index.shape[1])
            for x in range(read.index.shape[2]):
                fault = self._decode(read, (z, y, x))
                if fault is not Fault.NONE:
                    return ChunkFault(_position(read, (z, y, x)), fault)
                self._copy(read, (z, y, x))
        return None

    def _decode(self, read: BoxRead, place: Triple) -> Fault:
        offset, length = (int(value) for value in read.index[place])
        if offset < 0:
            return Fault.MISSING
        try:
            data = read_all(read.descriptor, length, offset)
        except OSError:
            return Fault.UNREADABLE
        if len(data) != length:
            return Fault.UNREADABLE
        body = data[:-CRC_BYTES]
        if google_crc32c.value(body) != int.from_bytes(data[-CRC_BYTES:], "little"):
            return Fault.CHECKSUM
        return self._decompress(body)

    def _decompress(self, body: bytes) -> Fault:
        # A blosc frame says how many bytes it holds (4 to 8) and how long it is (12 to 16).
        held, frame = (int.from_bytes(body[i : i + 4], "little") for i in (4, 12))
        if held != self._scratch.nbytes or frame != len(body):
            return Fault.SIZE
        try:
            blosc.decompress(body, self._scratch)
        except (RuntimeError, ValueError):
            return Fault.SIZE
        return Fault.NONE

    def _copy(self, read: BoxRead, place: Triple) -> None:
        target, origin = [], []
        position = _position(read, place)
        axes = zip(position, read.chunk, read.low, read.high, read.start, strict=True)
        for p, c, a, b, s in axes:
            begin, end = max(p * c, a), min((p + 1) * c, b)
            target.append(slice(begin - s, end - s))
            origin.append(slice(begin - p * c, end - p * c))
        read.intensity.decode_into(self._scratch[tuple(origin)], read.out[tuple(target)])


def _position(read: BoxRead, place: Triple) -> Triple:
    z, y, x = (f + p for f, p in zip(read.first, place, strict=True))
    return z, y, x


def read_all(descriptor: int, length: int, offset: int) -> bytes:
    """Bytes of a file, fewer only where it ends; some file systems give them in several pieces.

    Raises:
        OSError: they cannot be read.
    """
    data = b""
    while len(data) < length:
        piece = os.pread(descriptor, length - len(data), offset + len(data))
        if not piece:
            break
        data += piece
    return data


def advise(descriptor: int, offset: int, length: int, advice: str) -> None:
    """Give the kernel a hint where there are hints; without them reading is slower, not wrong."""
    if hasattr(os, advice):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, length, getattr(os, advice))


def signed_index(index: NDArray[np.uint64]) -> NDArray[np.int64]:
    """A shard's index with missing chunks as offset -1, in any shape (..., 2)."""
    signed = index.astype(np.int64)
    signed[index[..., 0] == MISSING] = -1
    return signed


def runs(index: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Offset and length of the stretches of a file that hold the chunks of ``index``.

    Neighbours are merged, so that one hint to the kernel is given for each stretch.
    """
    begin = end = -1
    for place in product(*map(range, index.shape[:-1])):
        offset, length = (int(value) for value in index[place])
        if offset < 0:
            continue
        if offset != end:
            if end > begin:
                yield begin, end - begin
            begin = offset
        end = offset + length
    if end > begin:
        yield begin, end - begin
