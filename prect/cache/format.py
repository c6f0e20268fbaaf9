"""Format version 1 of a stored volume: names, constants and attributes.

A store is an OME-Zarr 0.5 image (Zarr v3): a group ``zarr.json`` that carries the
attributes below, and one array a resolution level with one shard file. The clauses that
every store must keep are in ``docs/format.md``.

Axes are z, y, x everywhere in this module; the affine alone maps (x, y, z) indices.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from prect.errors import StoreError, StoreVersionError
from prect.units import Triple, Vector

FORMAT_VERSION = 1
FILL_VALUE = -32768
"""Value of a voxel that was never written; no HU can be as low."""
DTYPE = np.dtype("<i2")
SHARD_KEY = "c.0.0.0"
"""File name of the one shard of a level (chunk key separator ".")."""
MISSING = 2**64 - 1
"""Offset and length of an inner chunk that a shard index does not hold (Zarr sharding codec)."""
CRC_BYTES = 4


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Codec(_Frozen):
    """Compression of the inner chunks: the Zarr v3 ``blosc`` codec."""

    cname: Literal["lz4", "lz4hc", "zstd"] = "lz4"
    clevel: int = Field(default=5, ge=0, le=9)
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "bitshuffle"


class Storage(_Frozen):
    """How the harmonised voxels are laid out on disk."""

    levels: int = Field(default=3, ge=1, le=5)
    """Resolution levels; each has twice the spacing of the one before."""
    chunk: tuple[PositiveInt, PositiveInt, PositiveInt] = (32, 32, 32)
    """Voxels of an inner chunk, (z, y, x)."""
    codec: Codec = Codec()


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
    shard_bytes: int
    shard_digest: str
    """BLAKE2b-128 of the shard file, hexadecimal."""


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
    codec: Codec
    levels: tuple[LevelAttributes, ...]
    software: dict[str, str]


def chunk_grid(shape: Triple, chunk: Triple) -> Triple:
    """Number of inner chunks along (z, y, x)."""
    z, y, x = (-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return z, y, x


def index_bytes(grid: Triple) -> int:
    """Length of a shard's index: offset and length of each inner chunk as uint64, then a crc32c."""
    return 16 * grid[0] * grid[1] * grid[2] + CRC_BYTES


def array_document(level: LevelAttributes, codec: Codec) -> dict[str, Any]:
    """The ``zarr.json`` of one level."""
    grid = chunk_grid(level.shape, level.chunk)
    shard_shape = [n * c for n, c in zip(grid, level.chunk, strict=True)]
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    blosc = {
        "name": "blosc",
        "configuration": {"typesize": DTYPE.itemsize, **codec.model_dump(), "blocksize": 0},
    }
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(level.chunk),
            "codecs": [little_endian, blosc, {"name": "crc32c"}],
            "index_codecs": [little_endian, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(level.shape),
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": FILL_VALUE,
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
        raise StoreVersionError(
            f"{where} has format version {version!r}; this release reads version {FORMAT_VERSION}"
        )
    try:
        return StoreAttributes.model_validate(attributes)
    except ValidationError as error:
        raise StoreError(f"{where} has damaged attributes: {error}") from error


def affine_of(attributes: StoreAttributes) -> NDArray[np.float64]:
    """(4, 4) level-0 index (x, y, z) to RAS millimetres."""
    return np.array(attributes.affine, dtype=np.float64)
