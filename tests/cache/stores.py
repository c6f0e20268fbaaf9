"""A small store with known voxels, for the tests of reader and writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prect.cache.format import BodyBox, Codec, SourceAttributes, StoreAttributes
from prect.cache.intensity import Intensity
from prect.cache.writer import StoreWriter
from prect.units import Triple

SPACING = (3.0, 1.5, 0.75)
ORIGIN = (-10.0, 20.0, 30.0)


def random_hu(shape: Triple, seed: int = 0) -> NDArray[np.int16]:
    """(z, y, x) HU over the whole range that is stored."""
    return np.random.default_rng(seed).integers(-1024, 3072, shape).astype(np.int16)


def write_store(
    path: Path,
    volume: NDArray[np.int16],
    *,
    chunk: Triple = (16, 16, 16),
    codec: Codec | None = None,
    levels: int = 3,
    intensity: Intensity | None = None,
) -> StoreAttributes:
    """Write ``volume`` (z, y, x) at spacing `SPACING` (z, y, x) and origin `ORIGIN` (x, y, z)."""
    codec = codec or Codec()
    intensity = intensity or Intensity()
    z, y, x = SPACING
    with StoreWriter(path) as writer:
        written = writer.write_levels(volume, SPACING, chunk, codec, levels, intensity)
        attributes = StoreAttributes(
            format_version=1,
            dataset="made-up",
            case=path.name.removesuffix(".ome.zarr"),
            patient="p",
            series="s",
            source_digest="d",
            made_from="m",
            profile={},
            profile_digest="profile",
            affine=(
                (x, 0, 0, ORIGIN[0]),
                (0, y, 0, ORIGIN[1]),
                (0, 0, z, ORIGIN[2]),
                (0, 0, 0, 1),
            ),
            source=SourceAttributes(
                format="nifti", bytes=1, shape=(1, 1, 1), spacing=(1, 1, 1), orientation="RAS"
            ),
            body_box=BodyBox(offset=(0, 0, 0), full_shape=volume.shape),
            hu_percentiles={},
            intensity=intensity,
            levels=written,
            software={},
        )
        writer.commit(attributes)
    return attributes
