"""Writing a store: levels, shards and the commit.

A shard is written here rather than by a Zarr library, because every inner chunk must be
present even where it is all air, and the bytes must be the same on every machine.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.format import (
    DTYPE,
    FILL_VALUE,
    SHARD_KEY,
    Codec,
    LevelAttributes,
    StoreAttributes,
    array_document,
    chunk_grid,
    group_document,
)
from prect.files import sync_folder
from prect.units import Triple, Vector

_SHUFFLE = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
TEMPORARY_MARK = ".tmp-"


def pool(volume: NDArray[np.int16]) -> NDArray[np.int16]:
    """Mean over blocks of 2 x 2 x 2 voxels, rounded half up.

    An odd last plane is pooled with itself.

    Args:
        volume: (z, y, x) int16 HU.

    Returns:
        (ceil(z / 2), ceil(y / 2), ceil(x / 2)) int16 HU.
    """
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


def encode_shard(volume: NDArray[np.int16], chunk: Triple, codec: Codec) -> bytes:
    """Encode one level as the bytes of its shard: inner chunks in C order, then the index.

    Args:
        volume: (z, y, x) int16 HU.
        chunk: voxels of an inner chunk, (z, y, x); the last ones are padded with the fill value.
        codec: compression; a crc32c follows each compressed chunk.
    """
    parts: list[bytes] = []
    index: list[int] = []
    offset = 0
    with _one_blosc_thread():
        for position in product(*(range(n) for n in chunk_grid(_triple(volume.shape), chunk))):
            corner = [p * c for p, c in zip(position, chunk, strict=True)]
            box = tuple(slice(o, o + c) for o, c in zip(corner, chunk, strict=True))
            voxels = np.ascontiguousarray(volume[box], dtype=DTYPE)
            if voxels.shape != chunk:
                whole = np.full(chunk, FILL_VALUE, dtype=DTYPE)
                whole[tuple(slice(n) for n in voxels.shape)] = voxels
                voxels = whole
            data = blosc.compress(
                voxels, codec.cname.encode(), codec.clevel, _SHUFFLE[codec.shuffle], 0
            )
            encoded = data + struct.pack("<I", google_crc32c.value(data))
            parts.append(encoded)
            index += [offset, len(encoded)]
            offset += len(encoded)
    table = np.array(index, dtype="<u8").tobytes()
    parts += [table, struct.pack("<I", google_crc32c.value(table))]
    return b"".join(parts)


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
    the folder, which ends with the process, tells a leftover from work in progress.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}{TEMPORARY_MARK}{secrets.token_hex(6)}")
        self._lock = -1
        self._committed = False

    def __enter__(self) -> StoreWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir()
        self._lock = os.open(self._temporary, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            shutil.rmtree(self._temporary, ignore_errors=True)
        os.close(self._lock)

    def write_levels(
        self, volume: NDArray[np.int16], spacing: Vector, chunk: Triple, codec: Codec, count: int
    ) -> tuple[LevelAttributes, ...]:
        """Write ``count`` levels, each the pooled one before.

        Args:
            volume: (z, y, x) int16 HU of level 0.
            spacing: millimetres of level 0, (z, y, x).
            chunk: voxels of an inner chunk, (z, y, x).
            codec: compression of the inner chunks.
            count: number of levels, 1 or more.
        """
        levels = []
        for number in range(count):
            if number:
                volume = pool(volume)
            shard = encode_shard(volume, chunk, codec)
            z, y, x = (s * 2**number for s in spacing)
            level = LevelAttributes(
                path=str(number),
                shape=_triple(volume.shape),
                spacing=(z, y, x),
                chunk=chunk,
                shard_bytes=len(shard),
                shard_digest=hashlib.blake2b(shard, digest_size=16).hexdigest(),
            )
            folder = self._temporary / level.path
            folder.mkdir()
            _write_durably(folder / SHARD_KEY, shard)
            _write_durably(folder / "zarr.json", _json(array_document(level, codec)))
            sync_folder(folder)
            levels.append(level)
        return tuple(levels)

    def commit(self, attributes: StoreAttributes) -> None:
        """Write the group's attributes and give the store its name, replacing an older one."""
        _write_durably(self._temporary / "zarr.json", _json(group_document(attributes)))
        sync_folder(self._temporary)
        old = self._temporary.with_name(f"{self._temporary.name}-old")
        while not self._committed:
            try:
                self._temporary.rename(self.path)
                self._committed = True
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another writer of the same store may be as far; whoever is last wins.
                with suppress(FileNotFoundError):
                    self.path.rename(old)
                shutil.rmtree(old, ignore_errors=True)
        sync_folder(self.path.parent)


def clear_leftovers(folder: Path) -> list[Path]:
    """Remove the half-written stores that killed processes left in ``folder``.

    A folder whose writer still lives is left alone.
    """
    cleared = []
    for leftover in sorted(folder.glob(f".*{TEMPORARY_MARK}*")):
        descriptor = os.open(leftover, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(leftover)
            cleared.append(leftover)
        finally:
            os.close(descriptor)
    return cleared


def store_bytes(path: Path) -> int:
    """Bytes of all files of a store."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _json(document: dict[str, object]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
