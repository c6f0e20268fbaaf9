"""From a volume as its file holds it to the grid that the settings name.

The result is axis-aligned in RAS: index x grows exactly towards the patient's right, y to
anterior, z to superior. Oblique, sheared and flipped volumes differ from others only in
the affine transform that the one interpolation goes through.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from prect.ingest.body import body_box, search_steps
from prect.ingest.resample import PADDING_HU, Box, resampler
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import Affine, Volume, canonical_affine
from prect.units import Triple, Vector

__all__ = ["PADDING_HU", "Harmonised", "harmonise"]


@dataclass(frozen=True)
class Harmonised:
    """A volume on the grid that the settings name."""

    voxels: NDArray[np.int16]
    """(z, y, x) HU within [-1024, 3071], C-ordered."""
    affine: Affine
    """Index (x, y, z) to RAS millimetres."""
    spacing: Vector
    """Millimetres, (z, y, x)."""
    box_offset: Triple
    """First voxel of the stored box in the whole harmonised field of view, (z, y, x)."""
    full_shape: Triple
    """Voxels of the whole harmonised field of view, (z, y, x)."""


def harmonise(volume: Volume, settings: Harmonisation) -> Harmonised:
    """Bring a volume onto the grid of ``settings``.

    Padding (`PADDING_HU` and below) becomes air before anything interpolates over it; the
    result is clipped to what is stored. The body is searched on some voxels of the grid, and
    only its box is interpolated in full. A low-pass does not touch the search, so that the
    box is the same with it and without.

    Args:
        volume: as a reader returned it; its voxels are not changed.
        settings: spacing, low-pass and body crop.

    Raises:
        VolumeError: ``content.no_body``, nothing above the body threshold was found.
    """
    affine, reordering = canonical_affine(volume.affine, volume.shape)
    grid, full = _grid(affine, volume.shape, reordering, settings)
    source = _source_affine(affine, reordering, volume.shape)
    transform = np.linalg.inv(source) @ grid
    sampler = resampler(volume.voxels, transform, full)
    box = _every((1, 1, 1), full)
    if settings.body_crop:
        box = body_box(sampler.sample(_every(search_steps(settings), full)), full, settings)
    if settings.low_pass:
        del sampler  # of an oblique volume, it holds a copy
        sampler = resampler(volume.voxels, transform, full, low_pass=True)
    offset = (box[0].start, box[1].start, box[2].start)
    grid[:3, 3] = np.round(grid[:3, 3] + np.diag(grid)[:3] * offset[::-1], 6)
    x, y, z = settings.spacing_mm
    return Harmonised(
        voxels=sampler.sample(box),
        affine=grid,
        spacing=(z, y, x),
        box_offset=offset,
        full_shape=full,
    )


def _every(steps: Triple, shape: Triple) -> Box:
    """All of a grid, in steps."""
    z, y, x = (slice(0, size, step) for size, step in zip(shape, steps, strict=True))
    return z, y, x


def _source_affine(
    affine: Affine, reordering: NDArray[np.int8], shape: tuple[int, int, int]
) -> Affine:
    """The affine of the file's own index, derived from the rounded canonical one."""
    back: Affine = affine @ np.linalg.inv(nib.orientations.inv_ornt_aff(reordering, shape))
    return back


def _grid(
    affine: Affine,
    shape: tuple[int, int, int],
    reordering: NDArray[np.int8],
    settings: Harmonisation,
) -> tuple[Affine, Triple]:
    """Affine (x, y, z) and shape (z, y, x) of the output grid.

    The grid shares its centre with the field of view, edges included, and has the number of
    voxels nearest to it along each axis.
    """
    sizes = np.empty(3)
    sizes[reordering[:, 0]] = shape
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * sizes - 0.5
    world = nib.affines.apply_affine(affine, corners)
    low, high = world.min(axis=0), world.max(axis=0)
    spacing = np.array(settings.spacing_mm)
    # Where a half is left over, the noise of the origin must not decide: copies of a volume that
    # lie elsewhere get the same grid.
    count = np.maximum(np.round(np.round((high - low) / spacing, 6)), 1)
    grid = np.diag([*spacing, 1.0])
    # 1e-6 mm keeps the sum of rounded numbers a short decimal in the attributes.
    grid[:3, 3] = np.round((low + high) / 2 - (count - 1) / 2 * spacing, 6)
    x, y, z = (int(n) for n in count)
    return grid, (z, y, x)
