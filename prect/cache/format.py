"""Format version 1 of a stored volume: names, constants and attributes.

A store is an OME-Zarr 0.5 image (Zarr v3): a group ``zarr.json`` that carries the
attributes below, and one array a resolution level with one shard file. The clauses that
every store must keep are in ``docs/format.md``.

Axes are z, y, x everywhere in this module; the affine alone maps (x, y, z) indices.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from prect.cache.intensity import Intensity
from prect.errors import StoreError, StoreVersionError
from prect.units import Triple, Vector

FORMAT_VERSION = 1
SHARD_KEY = "c.0.0.0"
"""File name of the one shard of a level (chunk key separator ".")."""
MISSING = 2**64 - 1
"""Offset and length of an inner chunk that a shard index does not hold (Zarr sharding codec)."""
CRC_BYTES = 4
NO_DIGEST = 32 * "0"
_VERSION_ENTRY = re.compile(rb'"format_version": *[^\s,}]+')
_DIGEST_ENTRY = re.compile(rb'"digest": "[0-9a-f]{32}"')


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Codec(_Frozen):
    """Compression of the inner chunks: the Zarr v3 ``blosc`` codec."""

    cname: Literal["lz4", "lz4hc", "zstd"] = "lz4"
    clevel: int = Field(default=5, ge=0, le=9)
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "shuffle"
    blocksize: int = Field(default=0, ge=0)
    """Bytes that are compressed as one; 0 lets blosc choose."""


FAST_CODEC = Codec(cname="lz4hc", clevel=6, shuffle="shuffle")
DENSE_CODEC = Codec(cname="zstd", clevel=5, shuffle="shuffle")


class Storage(_Frozen):
    """How the harmonised voxels are laid out on disk."""

    levels: int = Field(default=3, ge=1, le=5)
    """Resolution levels; each has twice the spacing of the one before."""
    chunk: tuple[PositiveInt, PositiveInt, PositiveInt] = (16, 32, 32)
    """Voxels of an inner chunk, (z, y, x)."""
    codec: Codec = FAST_CODEC
    """Of level 0 of HU as they are, where training reads most: it decodes fastest."""
    dense_codec: Codec = DENSE_CODEC
    """Of coarser levels, which are read seldom, of HU in steps and of windows: it is smallest."""


class LevelAttributes(_Frozen):
    """One resolution level."""

    path: str
    """Name of the array inside the group."""
    shape: Triple
    """Voxels, (z, y, x)."""
    spacing: Vector
    """Millimetres, (z, y, x)."""
    chunk: Triple
    """Voxels of an inner chunk, (z, y, x)."""
    codec: Codec
    shard_bytes: int
    shard_digest: str
    """BLAKE2b-128 of the shard file, hexadecimal."""
    array_digest: str
    """BLAKE2b-128 of the level's ``zarr.json``."""
    occupancy: str
    """How much of each inner chunk is body; see `pack_occupancy`."""


class SourceAttributes(_Frozen):
    """What the volume looked like before harmonisation; axes as in the file, (i, j, k)."""

    format: str
    bytes: int
    shape: Triple
    spacing: Vector
    orientation: str
    slope: float = 1.0
    intercept: float = 0.0
    """HU = slope * decoded value + intercept: a correction that the data set's card asked for."""


class BodyBox(_Frozen):
    """Where the stored box lies in the harmonised field of view; voxels of level 0, (z, y, x)."""

    offset: Triple
    full_shape: Triple


class StoreAttributes(_Frozen):
    """The ``prect`` attributes of a store's group."""

    format_version: Literal[1]
    dataset: str
    case: str
    patient: str
    series: str
    source_digest: str
    made_from: str
    """Digest of the source and of what ingest made of it; see `prect.manifests.stores`."""
    profile: dict[str, Any]
    profile_digest: str
    affine: tuple[
        tuple[float, float, float, float],
        tuple[float, float, float, float],
        tuple[float, float, float, float],
        tuple[float, float, float, float],
    ]
    """Level-0 index (x, y, z) to RAS millimetres."""
    source: SourceAttributes
    body_box: BodyBox
    hu_percentiles: dict[str, int]
    """HU at the percentiles 0.5, 5, 50, 95 and 99.5 of the stored voxels."""
    intensity: Intensity
    levels: tuple[LevelAttributes, ...]
    software: dict[str, str]
    digest: str = NO_DIGEST
    """BLAKE2b-128 of the group's ``zarr.json`` with these 32 digits as zeros."""


def chunk_grid(shape: Triple, chunk: Triple) -> Triple:
    """Number of inner chunks along (z, y, x)."""
    z, y, x = (-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return z, y, x


def level_grid(level: LevelAttributes) -> Triple:
    """Number of inner chunks of a level along (z, y, x)."""
    return chunk_grid(level.shape, level.chunk)


def index_bytes(grid: Triple) -> int:
    """Length of a shard's index: offset and length of each inner chunk as uint64, then a crc32c."""
    return 16 * grid[0] * grid[1] * grid[2] + CRC_BYTES


def array_document(
    shape: Triple, chunk: Triple, codec: Codec, intensity: Intensity
) -> dict[str, Any]:
    """The ``zarr.json`` of one level of ``shape``, in inner chunks of ``chunk``; (z, y, x)."""
    shard_shape = [n * c for n, c in zip(chunk_grid(shape, chunk), chunk, strict=True)]
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    # One byte has no order of bytes.
    plain = little_endian if intensity.dtype.itemsize > 1 else {"name": "bytes"}
    typesize = intensity.dtype.itemsize
    blosc = {"name": "blosc", "configuration": {"typesize": typesize, **codec.model_dump()}}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk),
            "codecs": [plain, blosc, {"name": "crc32c"}],
            "index_codecs": [little_endian, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": intensity.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": intensity.fill,
        "codecs": [sharding],
        "dimension_names": ["z", "y", "x"],
        "attributes": {},
    }


def group_document(attributes: StoreAttributes) -> dict[str, Any]:
    """The ``zarr.json`` of the store's group: OME-Zarr multiscales, then prect's attributes.

    A level's translation is the RAS position of the centre of its first voxel: pooling by
    2 moves that centre by half a voxel of the finer level.
    """
    origin = [attributes.affine[axis][3] for axis in (2, 1, 0)]
    finest = attributes.levels[0].spacing
    datasets = []
    for level in attributes.levels:
        shift = [(s - f) / 2 for s, f in zip(level.spacing, finest, strict=True)]
        translation = [o + d for o, d in zip(origin, shift, strict=True)]
        datasets.append(
            {
                "path": level.path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(level.spacing)},
                    {"type": "translation", "translation": translation},
                ],
            }
        )
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in ("z", "y", "x")]
    multiscale = {"name": attributes.case, "axes": axes, "datasets": datasets, "type": "mean"}
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": "0.5", "multiscales": [multiscale]},
            "prect": attributes.model_dump(mode="json"),
        },
    }


def document_bytes(document: dict[str, Any]) -> bytes:
    """A ``zarr.json`` as it is written: sorted keys, the same bytes for the same content."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def file_digest(data: bytes) -> str:
    """BLAKE2b-128 of a whole file, hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def group_bytes(attributes: StoreAttributes) -> bytes:
    """The group's ``zarr.json``, its own digest in it; that of ``attributes`` does not matter."""
    blank = document_bytes(group_document(attributes.model_copy(update={"digest": NO_DIGEST})))
    return _DIGEST_ENTRY.sub(f'"digest": "{file_digest(blank)}"'.encode(), blank, count=1)


def document_digest(data: bytes) -> str:
    """The digest that a group's ``zarr.json`` must hold, whatever it holds."""
    return file_digest(_DIGEST_ENTRY.sub(f'"digest": "{NO_DIGEST}"'.encode(), data, count=1))


def pack_occupancy(shares: NDArray[np.float64]) -> str:
    """Text of how much of each inner chunk is body.

    Args:
        shares: (z, y, x) share of each inner chunk's voxels inside the level that are above
            the profile's body threshold, from 0 to 1.

    Returns:
        Base64 of the zlib stream of one byte a chunk in C order: the share times 255, rounded up.
    """
    whole = np.ceil(shares * 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode("ascii")


def unpack_occupancy(level: LevelAttributes) -> NDArray[np.uint8]:
    """(z, y, x) uint8: 255 times the share of each inner chunk that is body, rounded up.

    Raises:
        StoreError: the text does not hold one byte a chunk.
    """
    grid = level_grid(level)
    try:
        data = zlib.decompress(base64.b64decode(level.occupancy, validate=True))
        return np.frombuffer(data, dtype=np.uint8).reshape(grid)
    except (ValueError, zlib.error) as error:
        raise StoreError(f"the occupancy of level {level.path} is damaged: {error}") from error


def parse_group(text: bytes, where: str) -> StoreAttributes:
    """Read a group's ``zarr.json``.

    Raises:
        StoreError: it is not JSON or not a prect store.
        StoreVersionError: it is of another format version.
    """
    try:
        attributes = json.loads(text)["attributes"]["prect"]
        version = attributes["format_version"]
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"{where} is not a prect store: its zarr.json has no prect attributes"
        ) from None
    if version != FORMAT_VERSION:
        raise unknown_version(where, version)
    try:
        return StoreAttributes.model_validate(attributes)
    except ValidationError as error:
        raise StoreError(f"{where} has damaged attributes: {error}") from error


def unknown_version(where: str, version: object) -> StoreVersionError:
    """The error of a store that another release wrote."""
    return StoreVersionError(
        f"{where} has format version {version!r}; this release reads version {FORMAT_VERSION}"
    )


def version_is_damaged(text: bytes) -> bool:
    """Whether a group's ``zarr.json`` of another version is one of this with a damaged number."""
    mended = _VERSION_ENTRY.sub(f'"format_version": {FORMAT_VERSION}'.encode(), text, count=1)
    try:
        return parse_group(mended, "").digest == document_digest(mended)
    except StoreError:
        return False


def affine_of(attributes: StoreAttributes) -> NDArray[np.float64]:
    """(4, 4) level-0 index (x, y, z) to RAS millimetres."""
    return np.array(attributes.affine, dtype=np.float64)
