"""The bytes of a file: read once, digested on the way, decompressed and checked to the end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from prect.errors import VolumeError

GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 18
_PART = 1 << 20
_GZIP_BITS, _ZLIB_BITS = 31, 15
_MAX_RATIO = 1100
"""Deflate shrinks by a factor of 1032 at most; what claims more is not there."""


@dataclass(frozen=True)
class Damage:
    """The reason codes of one format for what is wrong with a stream."""

    truncated: str
    checksum: str


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    data: NDArray[np.uint8]
    """The bytes asked for, decompressed."""
    excess: int
    """Bytes after them: of the content, or of the file behind the compressed stream."""


def is_compressed(path: Path, start: int = 0) -> bool:
    """Whether gzip's magic number stands at ``start``.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(start)
        return file.read(2) == GZIP_MAGIC


def read_head(path: Path, size: int, damage: Damage) -> bytes:
    """The first ``size`` bytes of the content, or fewer when it is shorter.

    Raises:
        VolumeError: the compressed stream is damaged at its start.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(max(size, 4096))
    if head[:2] != GZIP_MAGIC:
        return head[:size]
    try:
        return bytes(isal_zlib.decompressobj(_GZIP_BITS).decompress(head, size))
    except IsalError as error:  # type: ignore[misc]
        raise _damaged(damage, error) from error


def read_content(
    path: Path,
    size: int,
    damage: Damage,
    digest: hashlib.blake2b,
    *,
    start: int = 0,
    compressed: bool,
) -> Content:
    """Read a file to its end and keep ``size`` bytes of its content.

    Args:
        path: the file.
        size: bytes of content to keep.
        damage: reason codes for what may be wrong.
        digest: updated with every byte of the file.
        start: where the content, or its compressed stream, begins in the file.
        compressed: whether the content is gzip (any number of members) or zlib; its
            checksums are verified.

    Raises:
        VolumeError: the content is shorter than ``size``, or the compressed stream ends early
            or is damaged.
        OSError: the file cannot be read.
    """
    there = path.stat().st_size - start
    if size > there * (_MAX_RATIO if compressed else 1):
        # Before the memory is asked for: a damaged header can claim terabytes.
        raise _too_short(damage, max(there, 0), size, "compressed " if compressed else "")
    data = np.empty(size, dtype=np.uint8)
    filled = excess = 0
    blocks = _blocks(path, digest, start)
    for part in _inflated(blocks, damage) if compressed else blocks:
        kept = min(len(part), size - filled)
        data[filled : filled + kept] = np.frombuffer(part, dtype=np.uint8, count=kept)
        filled += kept
        excess += len(part) - kept
    if filled < size:
        raise _too_short(damage, filled, size)
    return Content(data, excess)


def _blocks(path: Path, digest: hashlib.blake2b, start: int) -> Iterator[bytes]:
    """The file in blocks from ``start`` on; all of it goes into the digest."""
    with path.open("rb") as file:
        digest.update(file.read(start))
        while block := file.read(_BLOCK):
            digest.update(block)
            yield block


def _inflated(blocks: Iterator[bytes], damage: Damage) -> Iterator[bytes]:
    """The content of a zlib stream or of gzip members, then whatever follows them as it is."""
    engine: Any = None
    members = 0
    pending = b""
    for block in blocks:
        pending += block
        while pending:
            if engine is None:
                pending = pending.lstrip(b"\0") if members else pending
                if len(pending) < 2:
                    break
                gzip = pending[:2] == GZIP_MAGIC
                if members and not gzip:
                    yield pending
                    yield from blocks
                    return
                engine = isal_zlib.decompressobj(_GZIP_BITS if gzip else _ZLIB_BITS)
            yield from _parts(engine, pending, damage)
            pending = engine.unused_data
            if engine.eof:
                members += 1
                engine = None
    if engine is not None or members == 0:
        raise VolumeError(damage.truncated, "the compressed stream ends before its end mark")


def _parts(engine: Any, data: bytes, damage: Damage) -> Iterator[bytes]:
    """All that ``data`` decompresses to, in parts that bound the memory."""
    try:
        while True:
            part: bytes = engine.decompress(data, _PART)
            yield part
            data = engine.unconsumed_tail
            if engine.eof or (not data and len(part) < _PART):
                return
    except IsalError as error:  # type: ignore[misc]
        raise _damaged(damage, error) from error


def _too_short(damage: Damage, there: int, size: int, kind: str = "") -> VolumeError:
    return VolumeError(damage.truncated, f"{there} {kind}bytes are there, {size} are needed")


def _damaged(damage: Damage, error: Exception) -> VolumeError:
    # isal says "Error -6 Incorrect checksum found": the number helps nobody.
    sentence = str(error).partition(" ")[2].partition(" ")[2] or str(error)
    return VolumeError(damage.checksum, f"the compressed stream is damaged: {sentence.lower()}")
