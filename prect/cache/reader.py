"""Reading boxes of stored volumes straight from their shards.

A store's attributes and shard indexes are read once and kept; a box is then a few reads and
one decode an inner chunk, in machine code where that is to be had. This module imports neither
torch nor a Zarr library, holds no lock and starts no thread unless asked to, so that it works
in forked and spawned processes alike.
"""

from __future__ import annotations

import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from prect.cache.decode import (
    MESSAGES,
    BoxRead,
    ChunkFault,
    Decoder,
    PythonDecoder,
    advise,
    read_all,
    signed_index,
)
from prect.cache.format import (
    CRC_BYTES,
    SHARD_KEY,
    LevelAttributes,
    affine_of,
    index_bytes,
    level_grid,
    parse_group,
    unpack_occupancy,
)
from prect.errors import ChunkError, StoreError
from prect.units import HU_MIN, Triple, Vector

if TYPE_CHECKING:
    from prect.manifests.stores import CacheRow
    from prect.workspace import Workspace

_GROUP_FILE = "zarr.json"
_FINEST_SHARD = f"0/{SHARD_KEY}"
_INDEX_BYTES = 64 * 1024
"""The index of a volume of 512 x 340 x 340 voxels in the usual chunks."""


@dataclass(frozen=True)
class Level:
    """Geometry of one resolution level, (z, y, x)."""

    shape: Triple
    spacing: Vector
    """Millimetres."""
    chunk: Triple


@cache
def best_decoder() -> Callable[[], Decoder]:
    """The compiled decoder where this machine can have it, else the one in Python."""
    # Imported at the first read: numba is heavy, and who only looks at attributes needs none.
    try:
        from prect.cache.native import CompiledDecoder, CompiledLoopError  # noqa: PLC0415
    except (ImportError, OSError):  # not installed, or its libraries cannot be loaded
        return PythonDecoder
    try:
        CompiledDecoder.prepare()
    except (CompiledLoopError, OSError):
        return PythonDecoder
    return CompiledDecoder


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child has another number and makes its own."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"prect-read-{process}")


def _integers(numbers: Triple) -> Triple:
    """The same as Python's own: the compiled loop would be compiled anew for numpy's types."""
    z, y, x = (operator.index(number) for number in numbers)
    return z, y, x


class _Shard:
    """One open shard file and its index."""

    def __init__(self, folder: int, case: str, number: int, level: LevelAttributes) -> None:
        self.case = case
        self.number = number
        self.grid = level_grid(level)
        self.descriptor = -1
        try:
            self.descriptor = os.open(
                f"{level.path}/{SHARD_KEY}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder
            )
        except OSError as error:
            raise self.error(None, f"cannot be opened ({error.strerror})") from error
        try:
            self.index = self._read_index(level.shard_bytes)
        except BaseException:
            self.close()
            raise
        # Chunks are picked here and there: reading ahead would fetch what nobody asked for.
        advise(self.descriptor, 0, 0, "POSIX_FADV_RANDOM")

    def _read_index(self, expected_bytes: int) -> NDArray[np.int64]:
        size = os.fstat(self.descriptor).st_size
        if size != expected_bytes:
            raise self.error(None, f"{size} bytes long, {expected_bytes} were written")
        length = index_bytes(self.grid)
        try:
            table = read_all(self.descriptor, length, size - length)
        except OSError as error:
            raise self.error(None, f"the index cannot be read ({error.strerror})") from error
        body, check = table[:-CRC_BYTES], table[-CRC_BYTES:]
        if google_crc32c.value(body) != int.from_bytes(check, "little"):
            raise self.error(None, "the index does not match its checksum")
        stored = np.frombuffer(body, dtype="<u8").reshape(*self.grid, 2)
        index = signed_index(stored.astype(np.uint64))
        offset, count = index[index[..., 0] >= 0].T
        # Compared so that no sum can overflow, whatever the numbers are.
        sound = (count > CRC_BYTES) & (count <= size - length) & (offset <= size - length - count)
        if not sound.all() or (index[..., 0] < -1).any():
            raise self.error(None, "the index points outside of the chunks")
        return index

    def error(self, chunk: Triple | None, detail: str) -> ChunkError:
        return ChunkError(self.case, self.number, chunk, detail)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # Who drops a data set or a pool of readers does not think of its files.
        self.close()


def _hint_index(store: Path) -> None:
    """Let the index of level 0 come from the device while the attributes are read and parsed."""
    with suppress(OSError):  # whatever is wrong will be met, and said, by who reads
        descriptor = os.open(store / _FINEST_SHARD, os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = os.fstat(descriptor).st_size
            advise(descriptor, max(0, end - _INDEX_BYTES), _INDEX_BYTES, "POSIX_FADV_WILLNEED")
        finally:
            os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    # A file system gives the number of a deleted file to the next one.
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _identity_in(folder: int) -> tuple[int, int, int] | None:
    """What tells the attributes in a folder from others that take their place."""
    try:
        return _identity(os.stat(_GROUP_FILE, dir_fd=folder))
    except FileNotFoundError:
        return None


def _read_group(store: Path, folder: int | None = None) -> tuple[bytes, tuple[int, int, int]]:
    """A store's ``zarr.json``, and what tells that file from another that takes its place.

    Args:
        store: folder of the store.
        folder: its descriptor; by its path when left out.

    Raises:
        StoreError: there is none.
    """
    try:
        path = store / _GROUP_FILE if folder is None else Path(_GROUP_FILE)
        with open(path, "rb", opener=partial(os.open, dir_fd=folder)) as file:
            return file.read(), _identity(os.fstat(file.fileno()))
    except OSError as error:
        raise StoreError(f"no store at {store} ({error.strerror})") from error


class StoreReader:
    """One stored volume, open for reading; not to be shared between threads.

    Args:
        path: folder of the store.
        expected_profile: digest of the harmonisation profile that the store must have.
        decoder: makes what decodes the chunks; the default is the fastest that works here.

    Raises:
        StoreError: there is no store, it is damaged, of another format version or profile.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        expected_profile: str | None = None,
        decoder: Callable[[], Decoder] | None = None,
    ) -> None:
        self.path = Path(path)
        _hint_index(self.path)
        text, self._identity = _read_group(self.path)
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
        self._decoder = decoder
        self._decoders: list[Decoder] = []
        self.failed = False
        """Whether a read has failed: the store may have been replaced or repaired since."""

    @classmethod
    def of(cls, workspace: Workspace, row: CacheRow) -> StoreReader:
        """The store of a row of a cache manifest.

        Raises:
            StoreError: there is none, it is damaged, or not the one that the row tells of.
        """
        reader = cls(workspace.store(row.dataset, row.case), expected_profile=row.profile)
        if reader.attributes.digest != row.digest:
            raise StoreError(
                f"{reader.path} is not the store that its manifest tells of; run: prect verify "
                f"{row.dataset} --rebuild-manifest"
            )
        return reader

    def read(
        self,
        level: int,
        start: Triple,
        shape: Triple,
        *,
        out: NDArray[np.int16] | None = None,
        pad: int = HU_MIN,
        threads: int = 1,
    ) -> NDArray[np.int16]:
        """Read a box of one level.

        Args:
            level: resolution level, 0 is the finest.
            start: first voxel, (z, y, x); may lie outside the volume.
            shape: voxels to read, (z, y, x).
            out: C-ordered int16 array of ``shape`` to fill; a new one when left out.
            pad: HU given to voxels outside the volume, whatever the store's window.
            threads: threads that share the chunks out; 1 starts none.

        Returns:
            ``out``, (z, y, x) int16 HU.

        Raises:
            ChunkError: an inner chunk that the box touches is missing or damaged.
            StoreError: there is no such level, ``out`` does not fit, or the store has been
                replaced by another since it was opened.
        """
        if not 0 <= level < len(self.levels):
            raise StoreError(f"{self.path} has no level {level}, it has {len(self.levels)} levels")
        shape = _integers(shape)
        if out is None:
            out = np.empty(shape, dtype=np.int16)
        elif out.shape != shape or out.dtype != np.int16 or not out.flags.carray:
            raise StoreError(
                f"out must be int16 of shape {shape}, C-ordered and writeable; it is {out.dtype} "
                f"of shape {out.shape}"
            )
        start = _integers(start)
        full = self.levels[level].shape
        low = (max(start[0], 0), max(start[1], 0), max(start[2], 0))
        high = (
            min(start[0] + shape[0], full[0]),
            min(start[1] + shape[1], full[1]),
            min(start[2] + shape[2], full[2]),
        )
        inside = all(a < b for a, b in zip(low, high, strict=True))
        if not inside or any(b - a < n for a, b, n in zip(low, high, shape, strict=True)):
            out.fill(pad)
        if inside:
            try:
                self._fill(self._box(level, low, high, start, out), level, threads)
            except StoreError:
                self.failed = True
                raise
        return out

    def occupancy(self, level: int) -> NDArray[np.uint8]:
        """(z, y, x) uint8: 255 times the share of each inner chunk that is body, rounded up.

        Raises:
            StoreError: what the store holds of it is damaged.
        """
        return unpack_occupancy(self.attributes.levels[level])

    def _box(
        self, level: int, low: Triple, high: Triple, start: Triple, out: NDArray[np.int16]
    ) -> BoxRead:
        shard, chunk = self._shard(level), self.levels[level].chunk
        first = (low[0] // chunk[0], low[1] // chunk[1], low[2] // chunk[2])
        z, y, x = (slice(f, -(-b // c)) for f, b, c in zip(first, high, chunk, strict=True))
        return BoxRead(
            descriptor=shard.descriptor,
            index=np.ascontiguousarray(shard.index[z, y, x]),
            first=first,
            low=low,
            high=high,
            start=start,
            chunk=chunk,
            intensity=self._intensity,
            out=out,
        )

    def _fill(self, box: BoxRead, level: int, threads: int) -> None:
        rows = box.index.shape[0] * box.index.shape[1]
        parts = max(1, min(threads, rows))
        while len(self._decoders) < parts:
            self._decoders.append((self._decoder or best_decoder())())
        self._decoders[0].hint(box)
        if parts == 1:
            faults = [self._decoders[0].fill(box, range(rows))]
        else:
            shares = [range(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]
            pool = _threads(os.getpid(), threads)
            faults = list(pool.map(lambda one, share: one.fill(box, share), self._decoders, shares))
        for fault in filter(None, faults):
            raise self._error(level, fault)

    def _error(self, level: int, fault: ChunkFault) -> ChunkError:
        return self._shards[level].error(fault.position, MESSAGES[fault.fault])

    def _shard(self, level: int) -> _Shard:
        shard = self._shards.get(level)
        if shard is None:
            with self._folder() as folder:
                shard = self._shards[level] = _Shard(
                    folder, self.case, level, self.attributes.levels[level]
                )
        return shard

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """Descriptor of the folder whose attributes were read, or of one with the same voxels.

        A build may have put another store in its place, whose shards may have the same sizes.
        """
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"no store at {self.path} ({error.strerror})") from error
        try:
            if _identity_in(folder) != self._identity:
                # A repair writes the same voxels again; their digests say so.
                text, found = _read_group(self.path, folder)
                anew = parse_group(text, str(self.path))
                if (anew.levels, anew.affine, anew.intensity) != (
                    self.attributes.levels,
                    self.attributes.affine,
                    self.attributes.intensity,
                ):
                    raise StoreError(
                        f"{self.path} has been replaced by another store since it was opened; "
                        "open it anew"
                    )
                self._identity = found
            yield folder
        finally:
            os.close(folder)

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
        if reader is not None and reader.failed:
            self._open.pop(key).close()
            reader = None
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
