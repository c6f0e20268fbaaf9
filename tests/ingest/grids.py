"""Made-up volumes, grids across them, and what of a grid lies within a volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from prect.ingest.resample import resampler
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import Affine, Volume
from prect.units import Triple

PLAIN = Harmonisation(spacing_mm=(1.5, 1.5, 1.5), body_crop=False)
LOW_PASS = PLAIN.model_copy(update={"low_pass": True})


def volume_of(hu: NDArray[np.int16], affine: Affine) -> Volume:
    return Volume(hu, affine, "nifti", source_digest="")


def noise(shape: Triple) -> NDArray[np.int16]:
    """(z, y, x) HU that differ from voxel to voxel as much as HU can."""
    return np.random.default_rng(1).integers(-1024, 3072, shape).astype(np.int16)


def shrinking(factors: tuple[float, float, float]) -> Affine:
    """Grid to source, both with the same edges; factors along (x, y, z)."""
    transform = np.diag([*factors, 1.0])
    transform[:3, 3] = (np.array(factors) - 1) / 2
    return transform


def turned(factor: float, degrees: float = 15.0) -> Affine:
    """Grid to source, turned about two axes; isotropic."""
    transform = np.eye(4)
    rotation = Rotation.from_euler("xz", [degrees, degrees], degrees=True)
    transform[:3, :3] = factor * rotation.as_matrix()
    return transform


def sample(
    hu: NDArray[np.int16], transform: Affine, shape: Triple, low_pass: bool = True
) -> NDArray[np.int16]:
    """All of the grid, (z, y, x)."""
    z, y, x = (slice(0, n, 1) for n in shape)
    return resampler(hu, transform, shape, low_pass=low_pass).sample((z, y, x))


def inside(transform: Affine, source: Triple, shape: Triple, margin: float) -> NDArray[np.bool_]:
    """Voxels of a grid at least ``margin`` source voxels within its outermost centres."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")[::-1], axis=-1)
    position = index @ transform[:3, :3].T + transform[:3, 3]
    last = np.array(source[::-1]) - 1
    within: NDArray[np.bool_] = np.all((position >= margin) & (position <= last - margin), axis=-1)
    return within


def geometry(
    spacing: tuple[float, float, float], degrees: float = 0.0, tilt: float = 0.0
) -> Affine:
    """Index to RAS mm: turned about all axes, then slices displaced along a row by a tilt."""
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", [degrees, -degrees, 2 * degrees], degrees=True)
    affine[:3, :3] = rotation.as_matrix() * spacing
    affine[:3, 2] += tilt * affine[:3, 1]
    return affine
