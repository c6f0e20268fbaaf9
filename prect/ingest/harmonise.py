"""From a volume as its file holds it to the grid that the settings name.

The result is axis-aligned in RAS: index x grows exactly towards the patient's right, y to
anterior, z to superior. Oblique, sheared and flipped volumes differ from others only in
the affine transform that the one interpolation goes through.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from prect.errors import VolumeError
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import Affine, Volume, canonical_affine
from prect.units import HU_MAX, HU_MIN, Triple, Vector

_BODY_STRIDE_MM = 6.0
"""The body is searched on a grid about so coarse; the margin covers what this blurs."""
_LARGE_SHARE = 0.25
_AXIS_TOLERANCE = 1e-6
PADDING_HU = -1500
"""HU at and below which a voxel is padding: scanners fill with -1500, -2000 or -3024 outside
their circle, while the noise of air stays within some 300 HU of -1000."""


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
    result is clipped to what is stored.

    Args:
        volume: as a reader returned it; its voxels are not changed.
        settings: spacing and body crop.

    Raises:
        VolumeError: ``content.no_body``, nothing above the body threshold was found.
    """
    hu = np.where(volume.voxels <= PADDING_HU, np.int16(HU_MIN), volume.voxels)
    affine, reordering = canonical_affine(volume.affine, volume.shape)
    grid_affine, shape = _grid(affine, volume.shape, reordering, settings)
    if _same_grid(affine, grid_affine):
        voxels = _reorder(hu, reordering)
    else:
        voxels = _resample(hu, _source_affine(affine, reordering, volume.shape), grid_affine, shape)
    np.clip(voxels, HU_MIN, HU_MAX, out=voxels)
    full = voxels.shape
    box = body_box(voxels, settings) if settings.body_crop else tuple(slice(0, n) for n in full)
    offset = (box[0].start, box[1].start, box[2].start)
    grid_affine[:3, 3] = np.round(grid_affine[:3, 3] + np.diag(grid_affine)[:3] * offset[::-1], 6)
    x, y, z = settings.spacing_mm
    return Harmonised(
        voxels=np.ascontiguousarray(voxels[box]),
        affine=grid_affine,
        spacing=(z, y, x),
        box_offset=offset,
        full_shape=(full[0], full[1], full[2]),
    )


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
    count = np.maximum(np.round((high - low) / spacing), 1)
    grid = np.diag([*spacing, 1.0])
    # 1e-6 mm keeps the sum of rounded numbers a short decimal in the attributes.
    grid[:3, 3] = np.round((low + high) / 2 - (count - 1) / 2 * spacing, 6)
    x, y, z = (int(n) for n in count)
    return grid, (z, y, x)


def _same_grid(affine: Affine, grid: Affine) -> bool:
    return bool(np.abs(affine - grid).max() < _AXIS_TOLERANCE)


def _reorder(hu: NDArray[np.int16], reordering: NDArray[np.int8]) -> NDArray[np.int16]:
    ras = nib.orientations.apply_orientation(hu.transpose(2, 1, 0), reordering)
    return np.ascontiguousarray(ras.transpose(2, 1, 0))


def _resample(
    hu: NDArray[np.int16], source: Affine, grid: Affine, shape: Triple
) -> NDArray[np.int16]:
    """Linear interpolation at the voxel centres of the grid; -1024 outside the source.

    The image carries no geometry of its own: index and point coincide, and one affine
    transform takes a RAS point of the grid to an index of the source. ITK truncates
    towards zero when it writes integers, so it writes float32 and the rounding is done here.

    Args:
        hu: (k, j, i) int16.
        source: index (i, j, k) to RAS millimetres.
        grid: index (x, y, z) to RAS millimetres, diagonal.
        shape: of the grid, (z, y, x).
    """
    inverse = np.linalg.inv(source)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(inverse[:3, :3].ravel().tolist())
    transform.SetTranslation(inverse[:3, 3].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetDefaultPixelValue(HU_MIN)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetTransform(transform)
    resampler.SetSize([shape[2], shape[1], shape[0]])
    resampler.SetOutputSpacing(np.diag(grid)[:3].tolist())
    resampler.SetOutputOrigin(grid[:3, 3].tolist())
    resampled = resampler.Execute(sitk.GetImageFromArray(hu))
    # The view borrows the image's memory: the name keeps the image alive until it is copied.
    rounded: NDArray[np.int16] = np.rint(sitk.GetArrayViewFromImage(resampled)).astype(np.int16)
    return rounded


def body_box(voxels: NDArray[np.int16], settings: Harmonisation) -> tuple[slice, slice, slice]:
    """The box of the body, plus a margin: the large connected parts above the threshold.

    A table that does not touch the patient is a part too, but a small one. Two legs are two
    large ones, so every part at least `_LARGE_SHARE` of the largest counts.

    Args:
        voxels: (z, y, x) HU on the grid of ``settings``.
        settings: threshold, margin and spacing.

    Returns:
        Slices of z, y and x.

    Raises:
        VolumeError: ``content.no_body``.
    """
    spacing = settings.spacing_mm[::-1]
    steps = [max(1, int(_BODY_STRIDE_MM // s)) for s in spacing]
    coarse = voxels[tuple(slice(None, None, step) for step in steps)] > settings.body_threshold_hu
    labels, count = ndimage.label(coarse)
    if count == 0:
        raise VolumeError(
            "content.no_body", f"no voxel above {settings.body_threshold_hu} HU was found"
        )
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    large = np.flatnonzero(sizes >= _LARGE_SHARE * sizes.max())
    parts = [ndimage.find_objects(labels, max_label=count)[label - 1] for label in large]
    box = []
    for axis, (step, mm, size) in enumerate(zip(steps, spacing, voxels.shape, strict=True)):
        margin = math.ceil(settings.body_margin_mm / mm)
        first = min(part[axis].start for part in parts)
        last = max(part[axis].stop for part in parts)
        # The body may reach up to one step beyond the coarse voxels that it was found in.
        low = max(0, (first - 1) * step + 1 - margin)
        high = min(size, last * step + margin)
        box.append(slice(low, high))
    return box[0], box[1], box[2]
