"""Writing a store: levels, shards and the commit.

A shard is written here rather than by a Zarr library, because every inner chunk must be
present even where it is all air, and the bytes must be the same on every machine.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.format import (
    SHARD_KEY,
    Codec,
    LevelAttributes,
    StoreAttributes,
    array_document,
    chunk_grid,
    document_bytes,
    file_digest,
    group_bytes,
    pack_occupancy,
)
from prect.cache.hidden import Mark, delete, hidden_name, is_folder, is_temporary
from prect.cache.intensity import Intensity
from prect.files import sync_folder, take_lock
from prect.units import Triple, Vector

_SHUFFLE = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
_GROUP_FILE = "zarr.json"
BODY_HU = -500
"""Voxels above count as body in the occupancy of a chunk, unless the writer is told otherwise."""


def pool(volume: NDArray[np.int16]) -> NDArray[np.int16]:
    """Mean over blocks of 2 x 2 x 2 voxels, rounded half up.

    An odd last plane is pooled with itself.

    Args:
        volume: (z, y, x) int16 HU.

    Returns:
        (ceil(z / 2), ceil(y / 2), ceil(x / 2)) int16 HU.
    """
    even = volume
    if any(n % 2 for n in volume.shape):  # NumPy would copy even if there is nothing to add
        even = np.pad(volume, [(0, n % 2) for n in volume.shape], mode="edge")
    total = np.zeros(tuple(n // 2 for n in even.shape), dtype=np.int32)
    for z, y, x in product((0, 1), repeat=3):
        total += even[z::2, y::2, x::2]
    return ((total + 4) >> 3).astype(np.int16)


@contextmanager
def _one_blosc_thread() -> Iterator[None]:
    # blosc's threads finish in any order, and the order of its blocks in the output follows.
    before = blosc.use_threads
    blosc.use_threads = False
    try:
        yield
    finally:
        blosc.use_threads = before


def write_shard(
    file: BinaryIO,
    volume: NDArray[np.int16],
    chunk: Triple,
    codec: Codec,
    intensity: Intensity,
) -> tuple[int, str]:
    """Write one level as a shard: inner chunks in C order, then the index.

    Args:
        file: open for writing, empty.
        volume: (z, y, x) int16 HU.
        chunk: voxels of an inner chunk, (z, y, x); the last ones are padded with the fill value.
        codec: compression; a crc32c follows each compressed chunk.
        intensity: what is stored of the HU.

    Returns:
        Bytes written, and their BLAKE2b-128.
    """
    index: list[int] = []
    offset = 0
    digest = hashlib.blake2b(digest_size=16)

    def write(data: bytes) -> None:
        file.write(data)
        digest.update(data)

    with _one_blosc_thread():
        for voxels in _chunks(volume, chunk, intensity):
            data = blosc.compress(
                voxels,
                codec.cname.encode(),
                codec.clevel,
                _SHUFFLE[codec.shuffle],
                codec.blocksize,
            )
            write(data)
            write(struct.pack("<I", google_crc32c.value(data)))
            index += [offset, len(data) + 4]
            offset += len(data) + 4
    table = np.array(index, dtype="<u8").tobytes()
    write(table)
    write(struct.pack("<I", google_crc32c.value(table)))
    return offset + len(table) + 4, digest.hexdigest()


def _chunks(
    volume: NDArray[np.int16], chunk: Triple, intensity: Intensity
) -> Iterator[NDArray[Any]]:
    """The stored values of each inner chunk in C order, whole and contiguous."""
    for position in product(*(range(n) for n in chunk_grid(_triple(volume.shape), chunk))):
        corner = [p * c for p, c in zip(position, chunk, strict=True)]
        box = tuple(slice(o, o + c) for o, c in zip(corner, chunk, strict=True))
        voxels = intensity.encode(volume[box])
        if voxels.shape != chunk:
            whole = np.full(chunk, intensity.fill, dtype=intensity.dtype)
            whole[tuple(slice(n) for n in voxels.shape)] = voxels
            voxels = whole
        yield np.ascontiguousarray(voxels, dtype=intensity.dtype)


def occupancy(volume: NDArray[np.int16], chunk: Triple, body_hu: int) -> NDArray[np.float64]:
    """Share of the voxels of each inner chunk that are above ``body_hu``.

    Args:
        volume: (z, y, x) int16 HU.
        chunk: voxels of an inner chunk, (z, y, x).
        body_hu: HU.

    Returns:
        (z, y, x) of the grid of chunks, from 0 to 1; only voxels inside the volume count.
    """
    z, y, x = chunk
    rows, columns = np.arange(0, volume.shape[1], y), np.arange(0, volume.shape[2], x)
    heights = np.minimum(rows + y, volume.shape[1]) - rows
    widths = np.minimum(columns + x, volume.shape[2]) - columns
    shares = []
    for start in range(0, volume.shape[0], z):
        # A slab at a time, and its planes first: counting needs several bytes a voxel.
        slab = volume[start : start + z] > body_hu
        planes = slab.sum(axis=0, dtype=np.int32)
        counts = np.add.reduceat(np.add.reduceat(planes, rows, axis=0), columns, axis=1)
        shares.append(counts / (len(slab) * np.outer(heights, widths)))
    return np.stack(shares)


def _triple(shape: tuple[int, ...]) -> Triple:
    z, y, x = shape
    return z, y, x


class StoreWriter:
    """Writes one store under a temporary name and commits it by a rename.

    ::

        with StoreWriter(path) as writer:
            levels = writer.write_levels(volume, spacing, chunk, codec, count)
            writer.commit(attributes)

    Leaving the block without a commit removes what was written. A process that is killed
    leaves a hidden folder whose name holds ``.tmp-``; `clear_leftovers` removes it. A lock on
    the group's file in it, which ends with the process, tells a leftover from work in progress.

    What has the store's name is whole at every moment, however many processes write it; the
    last one to commit wins. A folder cannot take the place of another in one step (POSIX
    ``rename``), so while an older store is replaced there is a moment with none: who opens it
    then finds no store, as before the first build, and so does who was killed in that moment.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary: Path | None = None
        self._group: BinaryIO | None = None
        self._committed = False

    def __enter__(self) -> StoreWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            while self._group is None:
                self._temporary = hidden_name(self.path, Mark.TEMPORARY)
                self._temporary.mkdir()
                # Between these steps another process may take the folder for a leftover.
                with suppress(FileNotFoundError):
                    self._group = _locked_file(self._temporary / _GROUP_FILE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None and not self._committed:
            # Whatever stays is a leftover, and must not hide the error that ended the block.
            with suppress(OSError):
                delete(self._temporary, self._group)
        elif self._group is not None:
            self._group.close()

    def write_levels(
        self,
        volume: NDArray[np.int16],
        spacing: Vector,
        chunk: Triple,
        codec: Codec,
        count: int,
        intensity: Intensity | None = None,
        body_hu: int = BODY_HU,
        coarse_codec: Codec | None = None,
    ) -> tuple[LevelAttributes, ...]:
        """Write ``count`` levels, each the pooled one before.

        Args:
            volume: (z, y, x) int16 HU of level 0.
            spacing: millimetres of level 0, (z, y, x).
            chunk: voxels of an inner chunk, (z, y, x).
            codec: compression of the inner chunks of level 0.
            count: number of levels, 1 or more.
            intensity: what is stored of the HU; all of it when left out.
            body_hu: HU above which a voxel counts as body in the occupancy.
            coarse_codec: compression of the other levels; as of level 0 when left out.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        if self._temporary is None:
            raise ValueError("write_levels outside of the with block")
        intensity = intensity or Intensity()
        levels = []
        for number in range(count):
            if number:
                volume = pool(volume)
                codec = coarse_codec or codec
            shape = _triple(volume.shape)
            folder = self._temporary / str(number)
            folder.mkdir()
            with (folder / SHARD_KEY).open("wb") as file:
                shard_bytes, shard_digest = write_shard(file, volume, chunk, codec, intensity)
                _flush(file)
            document = document_bytes(array_document(shape, chunk, codec, intensity))
            with (folder / _GROUP_FILE).open("wb") as file:
                file.write(document)
                _flush(file)
            sync_folder(folder)
            z, y, x = (s * 2**number for s in spacing)
            levels.append(
                LevelAttributes(
                    path=str(number),
                    shape=shape,
                    spacing=(z, y, x),
                    chunk=chunk,
                    codec=codec,
                    shard_bytes=shard_bytes,
                    shard_digest=shard_digest,
                    array_digest=file_digest(document),
                    occupancy=pack_occupancy(occupancy(volume, chunk, body_hu)),
                )
            )
        return tuple(levels)

    def commit(self, attributes: StoreAttributes) -> None:
        """Write the group's attributes and give the store its name, replacing an older one.

        Raises:
            OSError: the disk is full, or cannot be written; an older store stays.
        """
        if self._group is None or self._temporary is None:
            raise ValueError("commit outside of the with block")
        self._group.write(group_bytes(attributes))
        _flush(self._group)
        sync_folder(self._temporary)
        aside: list[Path] = []
        try:
            while not self._committed:
                self._take_name(self._temporary, aside)
        except BaseException:
            if aside:
                with suppress(OSError):
                    aside[-1].rename(self.path)
            raise
        sync_folder(self.path.parent)
        for old in aside:
            with suppress(OSError):  # the new store is there; this one is left to be cleared
                delete(old)

    def _take_name(self, temporary: Path, aside: list[Path]) -> None:
        """Give the store its name if that is free; else set aside what has it."""
        try:
            temporary.rename(self.path)
            self._committed = True
        except OSError as error:
            # Not a directory: it is a link, which gives way as a folder does.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            # Another writer of the same store may be as far; whoever is last wins.
            old = hidden_name(self.path, Mark.TEMPORARY, "-old")
            with suppress(FileNotFoundError):
                self.path.rename(old)
                aside.append(old)


def _locked_file(path: Path) -> BinaryIO:
    """Make a file and lock it.

    Raises:
        FileNotFoundError: its folder is gone, or went before the lock was there.
        WorkspaceError: the file system has no locks.
    """
    file = path.open("xb")
    try:
        take_lock(file, path, wait=True)
        # Who removed it before the lock was there has taken its name, if not the file (NFS).
        if not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise FileNotFoundError(errno.ENOENT, "removed by another process", str(path))
    except BaseException:
        file.close()
        raise
    return file


@contextmanager
def abandoned(folder: Path) -> Iterator[BinaryIO | None]:
    """Lock the temporary store ``folder`` for the block, to look at it or to delete it.

    Yields:
        Its lock file, or ``None`` if there is none: its writer died before it made the file, or
        who removed it did after that.

    Raises:
        BlockingIOError: a living process writes it.
    """
    path = folder / _GROUP_FILE
    try:
        file = path.open("r+b") if is_folder(folder) else None
    except FileNotFoundError:
        file = None
    if file is None:
        yield None
        return
    with file:
        if not take_lock(file, path, wait=False):
            raise BlockingIOError(errno.EWOULDBLOCK, "is being written", str(folder))
        yield file


def is_abandoned(folder: Path) -> bool:
    """Whether no living process writes the temporary store ``folder``."""
    try:
        with abandoned(folder):
            return True
    except BlockingIOError:
        return False


def leftovers(folder: Path) -> list[Path]:
    """The temporary stores in ``folder``, those that are being written too."""
    return sorted(path for path in folder.glob(".*") if is_temporary(path))


def clear_leftovers(folder: Path) -> list[Path]:
    """Remove the half-written stores that killed processes left in ``folder``.

    A folder whose writer still lives is left alone.
    """
    return [leftover for leftover in leftovers(folder) if remove_leftover(leftover)]


def remove_leftover(folder: Path) -> bool:
    """Remove a temporary store, unless a living process uses it; whether it is gone."""
    if is_folder(folder):
        try:
            # If it is empty, who is about to write into it will notice, and start again.
            folder.rmdir()
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
    try:
        with abandoned(folder) as lock:
            return delete(folder, lock)
    except BlockingIOError:
        return False


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
