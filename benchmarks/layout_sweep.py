"""Bytes and codec speed of many layouts, by a bare loop over the inner chunks; for layout.py.

A layout is an inner chunk and a codec, a form is what is stored of the HU. Speeds are in CPU
seconds of one thread. The machine's own speed changes while the sweep runs, so each group of
codecs takes turns with one fixed layout, and only the ratio to it is taken from the group.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.format import CRC_BYTES, Codec, chunk_grid, index_bytes
from prect.cache.intensity import Intensity
from prect.cache.profile import Profile
from prect.units import Triple, Vector

SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
SHORT = {"noshuffle": "plain", "shuffle": "byte", "bitshuffle": "bit"}
BLOCKSIZE_AT = slice(8, 12)
"""Where a blosc frame holds the bytes that were compressed as one (little-endian)."""
ONE_BLOCK = -1
"""Stands for a block size of the whole inner chunk, whichever that is."""
FIXED_CODEC = Codec(cname="lz4", clevel=5, shuffle="bitshuffle")
"""Of the layout that all others take turns with."""
DECODE_ROUNDS = 3
LEAST_ENCODE_MB_S = 75.0
"""A volume of 20 million voxels in 0.6 s; slower layouts are no candidates for a default."""
MEGA = 1e6
CodecChoice = tuple[str, int, str, int]
"""cname, clevel, shuffle; block size, 0 or `ONE_BLOCK`."""


@dataclass(frozen=True)
class Grid:
    """A volume on the grid of a profile."""

    name: str
    profile: str
    levels: tuple[NDArray[np.int16], ...]
    """(z, y, x) HU, each pooled from the one before."""
    spacing: Vector
    """Millimetres of level 0, (z, y, x)."""
    full_shape: Triple
    """Voxels of the whole field of view, (z, y, x)."""

    @property
    def float32_bytes(self) -> int:
        """The whole field of view as float32: what MONAI's PersistentDataset holds of it."""
        z, y, x = self.full_shape
        return 4 * z * y * x


@dataclass(frozen=True)
class Form:
    """What is stored of the HU."""

    name: str
    intensity: Intensity
    clip: tuple[int, int] | None = None
    """Keep this window only, as int16 HU. prect does not offer that; it is measured to compare."""

    def stored(self, hu: NDArray[np.int16]) -> NDArray[Any]:
        """Stored values of HU; any shape."""
        return self.intensity.encode(hu if self.clip is None else np.clip(hu, *self.clip))


@dataclass(frozen=True)
class Layout:
    """Inner chunk and codec."""

    chunk: Triple
    codec: Codec

    def __str__(self) -> str:
        return f"{chunk_name(self.chunk)} {codec_name(self.codec)}"


class Sweep:
    """The layouts to measure of one form on the volumes of one profile.

    The default layout, the one that build-cache uses for this form, is always among them.
    """

    def __init__(
        self,
        profile: Profile,
        form: Form,
        chunks: Sequence[Triple],
        codecs: Sequence[CodecChoice],
    ) -> None:
        storage = profile.storage
        codec = profile.model_copy(update={"intensity": form.intensity}).codec
        self.profile = profile
        self.form = form
        self.default = Layout(storage.chunk, codec)
        self.chunks = tuple(dict.fromkeys((storage.chunk, *chunks)))
        self._codecs = codecs
        self.name = f"{profile.name}, {form.name}"

    def codecs(self, chunk: Triple) -> list[Codec]:
        """The codecs to measure with one inner chunk; those that do the same only once."""
        size = int(np.prod(chunk)) * self.form.intensity.dtype.itemsize
        found = [self.default.codec]
        for cname, clevel, shuffle, block in self._codecs:
            codec = Codec.model_validate({"cname": cname, "clevel": clevel, "shuffle": shuffle})
            if block == ONE_BLOCK:
                empty = np.zeros(chunk, dtype=self.form.intensity.dtype)
                (frame,) = encode([empty], codec)
                if int.from_bytes(frame[BLOCKSIZE_AT], "little") != size:
                    codec = codec.model_copy(update={"blocksize": size})
            found.append(codec)
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Row:
    """What was measured of one layout."""

    profile: str
    form: str
    layout: Layout
    level_bytes: dict[str, list[int]]
    """Bytes of the shard of each level, by volume; a store's attributes are not counted."""
    ratio: float
    """float32 bytes of all volumes over the bytes of all their levels."""
    ratio_finest: float
    """The same, of level 0 alone."""
    ratios: dict[str, float]
    """By volume, all levels."""
    encode: float
    """Speed over that of the fixed layout; all levels."""
    decode: float
    """The same, of level 0."""


def chunk_name(chunk: Triple) -> str:
    return f"{chunk[0]}^3" if len(set(chunk)) == 1 else "x".join(map(str, chunk))


def codec_name(codec: Codec) -> str:
    block = f", {codec.blocksize // 1024} KiB" if codec.blocksize else ""
    return f"{codec.cname} {codec.clevel} {SHORT[codec.shuffle]}{block}"


def inner_chunks(stored: NDArray[Any], chunk: Triple, fill: int) -> list[NDArray[Any]]:
    """The inner chunks of a level in C order, each a contiguous (z, y, x) array of its own."""
    z, y, x = stored.shape
    chunks = []
    for position in product(*(range(n) for n in chunk_grid((z, y, x), chunk))):
        corner = [p * c for p, c in zip(position, chunk, strict=True)]
        voxels = stored[tuple(slice(o, o + c) for o, c in zip(corner, chunk, strict=True))]
        whole = np.full(chunk, fill, dtype=stored.dtype)
        whole[tuple(slice(n) for n in voxels.shape)] = voxels
        chunks.append(whole)
    return chunks


def encode(chunks: Sequence[NDArray[Any]], codec: Codec) -> list[bytes]:
    """The blosc frame of each chunk."""
    name, shuffle = codec.cname.encode(), SHUFFLES[codec.shuffle]
    return [
        blosc.compress(voxels, name, codec.clevel, shuffle, codec.blocksize) for voxels in chunks
    ]


def shard_bytes(frames: Sequence[bytes]) -> int:
    """Bytes of a shard that holds these frames."""
    return sum(map(len, frames)) + CRC_BYTES * len(frames) + index_bytes((len(frames), 1, 1))


def decode_seconds(frames: Sequence[bytes], scratch: NDArray[Any]) -> float:
    """CPU seconds to decode frames one after the other into one array."""
    began = time.thread_time()
    for frame in frames:
        blosc.decompress(frame, scratch)
    return time.thread_time() - began


@dataclass
class Reference:
    """The fixed layout that all others take turns with, on the HU of one volume."""

    hu: NDArray[np.int16]
    layout: Layout = field(default_factory=lambda: Layout((32, 32, 32), FIXED_CODEC))
    encode_speeds: list[float] = field(default_factory=list)
    decode_speeds: list[float] = field(default_factory=list)
    """Bytes of voxels a second, of every turn."""

    def __post_init__(self) -> None:
        intensity = Intensity()
        self._chunks = inner_chunks(self.hu, self.layout.chunk, intensity.fill)
        self._scratch = np.empty(self.layout.chunk, dtype=intensity.dtype)
        self._bytes = sum(voxels.nbytes for voxels in self._chunks)
        self._frames = encode(self._chunks, self.layout.codec)

    def encode_speed(self) -> float:
        began = time.thread_time()
        encode(self._chunks, self.layout.codec)
        self.encode_speeds.append(self._bytes / (time.thread_time() - began))
        return self.encode_speeds[-1]

    def decode_speed(self) -> float:
        self.decode_speeds.append(self._bytes / decode_seconds(self._frames, self._scratch))
        return self.decode_speeds[-1]

    @property
    def encode_mb_s(self) -> float:
        return median(self.encode_speeds) / MEGA

    @property
    def decode_mb_s(self) -> float:
        return median(self.decode_speeds) / MEGA


@dataclass(frozen=True)
class _Encoded:
    """One volume in one layout."""

    level_bytes: list[int]
    frames: list[bytes]
    """Of level 0."""
    encode: float
    """Speed over that of the reference."""


def measure_chunk(
    sweep: Sweep, chunk: Triple, grids: Sequence[Grid], reference: Reference
) -> list[Row]:
    """All codecs of a sweep with one inner chunk."""
    codecs = sweep.codecs(chunk)
    encoded: dict[Codec, dict[str, _Encoded]] = {codec: {} for codec in codecs}
    decodes: dict[Codec, list[float]] = {codec: [] for codec in codecs}
    for grid in grids:
        fill = sweep.form.intensity.fill
        levels = [inner_chunks(sweep.form.stored(hu), chunk, fill) for hu in grid.levels]
        for codec in codecs:
            encoded[codec][grid.name] = _encode_volume(levels, codec, reference)
        scratch = np.empty(chunk, dtype=sweep.form.intensity.dtype)
        for _ in range(DECODE_ROUNDS):
            fixed = reference.decode_speed()
            for codec in codecs:
                frames = encoded[codec][grid.name].frames
                speed = len(frames) * scratch.nbytes / decode_seconds(frames, scratch)
                decodes[codec].append(speed / fixed)
        for codec in codecs:
            encoded[codec][grid.name].frames.clear()
    return [
        _row(sweep, Layout(chunk, codec), grids, encoded[codec], decodes[codec]) for codec in codecs
    ]


def _encode_volume(
    levels: Sequence[Sequence[NDArray[Any]]], codec: Codec, reference: Reference
) -> _Encoded:
    fixed = reference.encode_speed()
    began = time.thread_time()
    frames = [encode(chunks, codec) for chunks in levels]
    seconds = time.thread_time() - began
    size = sum(voxels.nbytes for chunks in levels for voxels in chunks)
    return _Encoded([shard_bytes(each) for each in frames], frames[0], size / seconds / fixed)


def _row(
    sweep: Sweep,
    layout: Layout,
    grids: Sequence[Grid],
    volumes: dict[str, _Encoded],
    decodes: Sequence[float],
) -> Row:
    floats = {grid.name: grid.float32_bytes for grid in grids}
    level_bytes = {name: each.level_bytes for name, each in volumes.items()}
    total = sum(floats.values())
    return Row(
        profile=sweep.profile.name,
        form=sweep.form.name,
        layout=layout,
        level_bytes=level_bytes,
        ratio=total / sum(sum(levels) for levels in level_bytes.values()),
        ratio_finest=total / sum(levels[0] for levels in level_bytes.values()),
        ratios={name: floats[name] / sum(levels) for name, levels in level_bytes.items()},
        encode=median(each.encode for each in volumes.values()),
        decode=median(decodes),
    )


def front(rows: Sequence[Row], reference: Reference) -> list[Row]:
    """The rows that no other row beats in both ratio and decode speed (Pareto).

    Rows that encode too slowly for a build of many volumes do not count.
    """
    least = LEAST_ENCODE_MB_S / reference.encode_mb_s
    fast = [row for row in rows if row.encode >= least]
    return [
        row
        for row in fast
        if not any(
            other.ratio >= row.ratio
            and other.decode >= row.decode
            and (other.ratio, other.decode) != (row.ratio, row.decode)
            for other in fast
        )
    ]
