"""Reading boxes of stored volumes straight from their shards.

A store's attributes and shard indexes are read once and kept; a box is then one pread and
one decode an inner chunk. This module imports neither torch nor a Zarr library, holds no
lock and starts no thread, so that it works in forked and spawned processes alike.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.format import (
    CRC_BYTES,
    MISSING,
    SHARD_KEY,
    LevelAttributes,
    affine_of,
    index_bytes,
    level_grid,
    parse_group,
)
from prect.cache.intensity import Intensity
from prect.errors import ChunkError, StoreError
from prect.units import HU_MIN, Triple, Vector


@dataclass(frozen=True)
class Level:
    """Geometry of one resolution level, (z, y, x)."""

    shape: Triple
    spacing: Vector
    """Millimetres."""
    chunk: Triple


class _Shard:
    """One open shard file and its index."""

    def __init__(
        self, path: Path, case: str, number: int, level: LevelAttributes, intensity: Intensity
    ) -> None:
        self.case = case
        self.number = number
        self.grid = level_grid(level)
        self.chunk_bytes = int(np.prod(level.chunk)) * intensity.dtype.itemsize
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.error(None, f"cannot be opened ({error.strerror})") from error
        try:
            self.index = self._read_index(level.shard_bytes)
        except BaseException:
            os.close(self.descriptor)
            raise
        # Chunks are picked here and there: reading ahead would fetch what nobody asked for.
        _advise(self.descriptor, 0, 0, "POSIX_FADV_RANDOM")

    def _read_index(self, expected_bytes: int) -> NDArray[np.uint64]:
        size = os.fstat(self.descriptor).st_size
        if size != expected_bytes:
            raise self.error(None, f"{size} bytes long, {expected_bytes} were written")
        length = index_bytes(self.grid)
        table = os.pread(self.descriptor, length, size - length)
        body, check = table[:-CRC_BYTES], table[-CRC_BYTES:]
        if google_crc32c.value(body) != int.from_bytes(check, "little"):
            raise self.error(None, "the index does not match its checksum")
        return np.frombuffer(body, dtype="<u8").reshape(*self.grid, 2).astype(np.uint64)

    def error(self, chunk: Triple | None, detail: str) -> ChunkError:
        return ChunkError(self.case, self.number, chunk, detail)

    def locate(self, chunk: Triple) -> tuple[int, int]:
        """Offset and length of an inner chunk in the file."""
        offset, length = (int(value) for value in self.index[chunk])
        if offset == MISSING:
            raise self.error(chunk, "is missing")
        return offset, length

    def decode(self, chunk: Triple, scratch: NDArray[Any]) -> None:
        """Read, check and decompress one inner chunk into ``scratch``."""
        offset, length = self.locate(chunk)
        data = os.pread(self.descriptor, length, offset)
        if len(data) != length or length <= CRC_BYTES:
            raise self.error(chunk, f"{len(data)} bytes could be read of {length}")
        body = data[:-CRC_BYTES]
        if google_crc32c.value(body) != int.from_bytes(data[-CRC_BYTES:], "little"):
            raise self.error(chunk, "does not match its checksum")
        # Bytes 4 to 8 of a blosc frame are the length of what it holds.
        if int.from_bytes(body[4:8], "little") != self.chunk_bytes:
            raise self.error(chunk, "decodes to another size than a chunk has")
        blosc.decompress(body, scratch)

    def close(self) -> None:
        os.close(self.descriptor)


def _advise(descriptor: int, offset: int, length: int, advice: str) -> None:
    # Hints exist on Linux alone; without them reading is slower, not wrong.
    if hasattr(os, advice):
        os.posix_fadvise(descriptor, offset, length, getattr(os, advice))


class StoreReader:
    """One stored volume, open for reading; not to be shared between threads.

    Args:
        path: folder of the store.
        expected_profile: digest of the harmonisation profile that the store must have.

    Raises:
        StoreError: there is no store, it is damaged, of another format version or profile.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, expected_profile: str | None = None
    ) -> None:
        self.path = Path(path)
        try:
            text = (self.path / "zarr.json").read_bytes()
        except OSError as error:
            raise StoreError(f"no store at {self.path} ({error.strerror})") from error
        self.attributes = parse_group(text, str(self.path))
        if expected_profile not in (None, self.attributes.profile_digest):
            raise StoreError(
                f"{self.path} was built with profile {self.attributes.profile_digest}, "
                f"{expected_profile} is wanted; run prect build-cache or prect verify"
            )
        self.case = self.attributes.case
        self.dataset = self.attributes.dataset
        self.affine = affine_of(self.attributes)
        self.levels = tuple(
            Level(level.shape, level.spacing, level.chunk) for level in self.attributes.levels
        )
        self._intensity = self.attributes.intensity
        self._shards: dict[int, _Shard] = {}
        self._scratch: dict[Triple, NDArray[Any]] = {}

    def read(
        self,
        level: int,
        start: Triple,
        shape: Triple,
        *,
        out: NDArray[np.int16] | None = None,
        pad: int = HU_MIN,
    ) -> NDArray[np.int16]:
        """Read a box of one level.

        Args:
            level: resolution level, 0 is the finest.
            start: first voxel, (z, y, x); may lie outside the volume.
            shape: voxels to read, (z, y, x).
            out: C-ordered int16 array of ``shape`` to fill; a new one when left out.
            pad: HU given to voxels outside the volume, whatever the store's window.

        Returns:
            ``out``, (z, y, x) int16 HU.

        Raises:
            ChunkError: an inner chunk that the box touches is missing or damaged.
            StoreError: there is no such level, or ``out`` does not fit.
        """
        if not 0 <= level < len(self.levels):
            raise StoreError(f"{self.path} has no level {level}, it has {len(self.levels)} levels")
        if out is None:
            out = np.empty(shape, dtype=np.int16)
        elif out.shape != shape or out.dtype != np.int16:
            raise StoreError(
                f"out must be int16 of shape {shape}, it is {out.dtype} of shape {out.shape}"
            )
        geometry = self.levels[level]
        low = tuple(max(s, 0) for s in start)
        high = tuple(min(s + n, m) for s, n, m in zip(start, shape, geometry.shape, strict=True))
        inside = all(a < b for a, b in zip(low, high, strict=True))
        if not inside or any(b - a < n for a, b, n in zip(low, high, shape, strict=True)):
            out.fill(pad)
        if inside:
            self._fill(level, (low[0], low[1], low[2]), (high[0], high[1], high[2]), start, out)
        return out

    def _fill(
        self, level: int, low: Triple, high: Triple, start: Triple, out: NDArray[np.int16]
    ) -> None:
        shard = self._shard(level)
        chunk = self.levels[level].chunk
        if chunk not in self._scratch:
            self._scratch[chunk] = np.empty(chunk, dtype=self._intensity.dtype)
        scratch = self._scratch[chunk]
        first = [a // c for a, c in zip(low, chunk, strict=True)]
        last = [(b - 1) // c for b, c in zip(high, chunk, strict=True)]
        planes, rows, columns = (range(a, b + 1) for a, b in zip(first, last, strict=True))
        needed = list(product(planes, rows, columns))
        self._prefetch(shard, needed)
        for position in needed:
            shard.decode(position, scratch)
            target, origin = [], []
            for p, c, a, b, s in zip(position, chunk, low, high, start, strict=True):
                begin, end = max(p * c, a), min((p + 1) * c, b)
                target.append(slice(begin - s, end - s))
                origin.append(slice(begin - p * c, end - p * c))
            self._intensity.decode_into(scratch[tuple(origin)], out[tuple(target)])

    @staticmethod
    def _prefetch(shard: _Shard, needed: list[Triple]) -> None:
        """Ask the kernel for all ranges at once, neighbours merged, before the first is decoded."""
        begin = end = -1
        for offset, length in sorted(shard.locate(position) for position in needed):
            if offset != end:
                if end > begin:
                    _advise(shard.descriptor, begin, end - begin, "POSIX_FADV_WILLNEED")
                begin = offset
            end = offset + length
        _advise(shard.descriptor, begin, end - begin, "POSIX_FADV_WILLNEED")

    def _shard(self, level: int) -> _Shard:
        shard = self._shards.get(level)
        if shard is None:
            attributes = self.attributes.levels[level]
            path = self.path / attributes.path / SHARD_KEY
            shard = self._shards[level] = _Shard(
                path, self.case, level, attributes, self._intensity
            )
        return shard

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        for shard in self._shards.values():
            shard.close()
        self._shards.clear()

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ReaderPool:
    """The stores opened last, at most ``capacity`` of them; make one in each process."""

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self._open: OrderedDict[Path, StoreReader] = OrderedDict()

    def get(self, path: str | os.PathLike[str]) -> StoreReader:
        """The reader of the store at ``path``; valid until ``capacity`` others were asked for.

        Raises:
            StoreError: there is no readable store at ``path``.
        """
        key = Path(path)
        reader = self._open.get(key)
        if reader is None:
            reader = self._open[key] = StoreReader(key)
            while len(self._open) > self.capacity:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return reader

    def close(self) -> None:
        """Close every store."""
        while self._open:
            self._open.popitem()[1].close()
