"""Whether a shard holds every inner chunk, whole, decodable, and of legal voxels.

Nothing here trusts a byte of the file: a length is held against the file's own before it is
read, and a chunk against its checksum before it is decoded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.checks.faults import Fault
from prect.cache.format import (
    CRC_BYTES,
    MISSING,
    SHARD_KEY,
    StoreAttributes,
    chunk_grid,
    index_bytes,
)
from prect.cache.intensity import Intensity
from prect.units import Triple

_BLOSC_HEADER = 16
"""Bytes before the data of a blosc frame; it never gets longer by more than these."""
_BLOSC_FORMATS = {"lz4": 1, "lz4hc": 1, "zstd": 4}
"""Bits 5 to 7 of a frame's flags; lz4hc writes what lz4 reads."""
_SHUFFLE_FLAGS = {"noshuffle": 0, "shuffle": 0b001, "bitshuffle": 0b100}
_STORED_PLAIN = 0b010
"""Flag of a frame that did not get smaller, and holds its bytes as they are."""
_READ_BYTES = 2**20


@dataclass
class ShardCheck:
    """The shard of one level, held against the attributes of its store.

    Args:
        attributes: of the store, free of contradictions.
        number: resolution level.
    """

    attributes: StoreAttributes
    number: int
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.level = self.attributes.levels[self.number]
        self.intensity = self.attributes.intensity
        self.grid = chunk_grid(self.level.shape, self.level.chunk)
        self.chunk_bytes = math.prod(self.level.chunk) * self.intensity.dtype.itemsize
        self.file = f"{self.level.path}/{SHARD_KEY}"

    def fault(self, code: str, detail: str, chunk: Triple | None = None) -> None:
        self.faults.append(Fault(code, detail, self.file, self.number, chunk))

    def lengths(self, file: BinaryIO) -> list[int] | None:
        """Lengths of the inner chunks in the order of the file; ``None`` when that is damaged.

        Raises:
            OSError: the disk does not give the bytes.
        """
        size = file.seek(0, 2)
        if size != self.level.shard_bytes:
            detail = f"the shard is {size} bytes long, {self.level.shard_bytes} were written"
            self.fault("store.shard_size", detail)
            return None
        length = index_bytes(self.grid)
        file.seek(size - length)
        table = file.read(length)
        body, check = table[:-CRC_BYTES], int.from_bytes(table[-CRC_BYTES:], "little")
        if len(table) != length or google_crc32c.value(body) != check:
            self.fault("store.shard_index", "the index does not match its checksum")
            return None
        index = np.frombuffer(body, dtype="<u8").reshape(-1, 2)
        return self._in_order(index, size - length)

    def _in_order(self, index: NDArray[np.uint64], end: int) -> list[int] | None:
        """Lengths, if the chunks lie one behind the other from byte 0 to ``end``."""
        missing = np.flatnonzero((index == MISSING).all(axis=1)).tolist()
        for chunk in missing:
            self.fault("store.chunk_missing", "the index has no entry for it", self._place(chunk))
        if missing:
            return None
        longest = self.chunk_bytes + _BLOSC_HEADER + CRC_BYTES
        at = 0
        entries: list[list[int]] = index.tolist()
        for chunk, (offset, length) in enumerate(entries):
            if offset != at or not _BLOSC_HEADER + CRC_BYTES < length <= longest:
                detail = f"the index says {length} bytes at {offset}, the chunk before ends at {at}"
                self.fault("store.shard_index", detail, self._place(chunk))
                return None
            at += length
        if at != end:
            self.fault("store.shard_index", f"the chunks end at {at}, the index begins at {end}")
            return None
        return [length for _, length in entries]

    def _place(self, chunk: int) -> Triple:
        rest, x = divmod(chunk, self.grid[2])
        z, y = divmod(rest, self.grid[1])
        return z, y, x

    def slabs(self, file: BinaryIO, lengths: list[int] | None) -> Iterator[NDArray[Any]]:
        """Read the whole shard once, in order, and check all of it.

        Args:
            file: the shard.
            lengths: what `lengths` returned; without them only the digest is checked.

        Yields:
            Stored values of each row of chunks along z, padding left out, (z, y, x). The array
            is used again; once there is a fault, it says nothing.

        Raises:
            OSError: the disk does not give the bytes.
        """
        digest = hashlib.blake2b(digest_size=16)
        file.seek(0)
        if lengths is not None:
            chunk, (planes, rows, columns) = self.level.chunk, self.level.shape
            buffer = np.empty(chunk, dtype=self.intensity.dtype)
            slab = np.empty((chunk[0], rows, columns), dtype=self.intensity.dtype)
            last = (self.grid[1] - 1, self.grid[2] - 1)
            for number, length in enumerate(lengths):
                data = file.read(length)
                digest.update(data)
                position = self._place(number)
                self._decode(data, position, buffer, slab)
                if position[1:] == last:
                    yield slab[: planes - position[0] * chunk[0]]
        while data := file.read(_READ_BYTES):
            digest.update(data)
        if digest.hexdigest() != self.level.shard_digest:
            detail = f"the digest is {digest.hexdigest()}, {self.level.shard_digest} was written"
            self.fault("store.shard_digest", detail)

    def _decode(self, data: bytes, chunk: Triple, buffer: NDArray[Any], slab: NDArray[Any]) -> None:
        """Check one inner chunk, and copy its voxels into ``slab``."""
        body, check = data[:-CRC_BYTES], int.from_bytes(data[-CRC_BYTES:], "little")
        if not body or google_crc32c.value(body) != check:
            self.fault("store.chunk_checksum", "it does not match its checksum", chunk)
            return
        wrong = self._wrong_header(body)
        if wrong:
            self.fault("store.chunk_codec", wrong, chunk)
            return
        try:
            blosc.decompress(body, buffer)
        except (RuntimeError, ValueError) as error:
            self.fault("store.chunk_codec", f"it does not decode: {error}", chunk)
            return
        corner = [n * c for n, c in zip(chunk, self.level.chunk, strict=True)]
        z, y, x = (
            min(c, n - o)
            for c, n, o in zip(self.level.chunk, self.level.shape, corner, strict=True)
        )
        inside = buffer[:z, :y, :x]
        self._check_values(inside, buffer, chunk)
        slab[:z, corner[1] : corner[1] + y, corner[2] : corner[2] + x] = inside

    def _wrong_header(self, frame: bytes) -> str:
        """What the header of a blosc frame must not say; empty when all is well."""
        flags, typesize = frame[2], frame[3]
        held, stored = (int.from_bytes(frame[n : n + 4], "little") for n in (4, 12))
        cname = self.level.codec.cname
        if held != self.chunk_bytes:
            return f"it decodes to {held} bytes, a chunk has {self.chunk_bytes}"
        if stored != len(frame):
            return f"its frame says {stored} bytes and has {len(frame)}"
        if flags >> 5 != _BLOSC_FORMATS[cname] or typesize != self.intensity.dtype.itemsize:
            return (
                f"it is blosc format {flags >> 5} with elements of {typesize} bytes; the codec is "
                f"{cname} with {self.intensity.dtype.itemsize}"
            )
        return self._wrong_shuffle(flags)

    def _wrong_shuffle(self, flags: int) -> str:
        """Whether a frame's flags name another shuffle than the codec; empty when all is well."""
        shuffle, itemsize = self.level.codec.shuffle, self.intensity.dtype.itemsize
        # Shuffling the bytes of elements that have one changes nothing, flagged or not.
        compared = 0b101 if itemsize > 1 else 0b100
        found = flags & compared
        if flags & _STORED_PLAIN or found == _SHUFFLE_FLAGS[shuffle] & compared:
            return ""
        name = next(
            (name for name, bits in _SHUFFLE_FLAGS.items() if bits == found), "two shuffles"
        )
        return f"it is coded with {name}, the codec has {shuffle}"

    def _check_values(self, inside: NDArray[Any], whole: NDArray[Any], chunk: Triple) -> None:
        illegal = illegal_values(inside, self.intensity)
        if illegal.any():
            value = inside[illegal][0]
            detail = (
                f"{np.count_nonzero(illegal)} voxels hold what {self.intensity} cannot, as {value}"
            )
            self.fault("store.value", detail, chunk)
        beyond = whole.size - inside.size
        filled = np.count_nonzero(whole == self.intensity.fill)
        filled -= np.count_nonzero(inside == self.intensity.fill)
        if filled != beyond:
            detail = f"{beyond - filled} of {beyond} voxels beyond the level are not the fill value"
            self.fault("store.padding", detail, chunk)


def illegal_values(stored: NDArray[Any], intensity: Intensity) -> NDArray[np.bool_]:
    """Where stored values are none that encoding makes; any shape, bool of the same shape."""
    if intensity.kind == "window":
        illegal: NDArray[np.bool_] = (stored == 0) | (stored > intensity.codes)
        return illegal
    # With some steps, the end of the range is rounded to a value below it.
    (highest,) = intensity.encode(np.array([intensity.high], dtype=np.int16))
    illegal = (stored < intensity.low) | (stored > highest)
    if intensity.step > 1:
        # Within the range no difference leaves int16; what is beyond is illegal already.
        steps = stored - np.int16(intensity.low)
        illegal |= (steps % intensity.step != 0) & (stored != highest)
    return illegal
