"""Linear interpolation of a volume onto a grid, box by box, in little memory.

Where the axes of grid and volume coincide but for order and direction, as for nearly every
CT, the interpolation is separable: each source plane is reduced to the rows and columns of
the grid once, and each plane of the grid is a weighted sum of two of those, or of some more
where a low-pass is asked for. Planes stay in the processor's cache and the volume is never
copied. Oblique and sheared volumes go through SimpleITK, some planes of the grid at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from prect.ingest.lines import Line, gaussian, rounded
from prect.ingest.volume import Affine
from prect.units import HU_MAX, HU_MIN, Triple

PADDING_HU = -1500
"""HU at and below which a voxel is padding: scanners fill with -1500, -2000 or -3024 outside
their circle, while the noise of air stays within some 300 HU of -1000."""

Box = tuple[slice, slice, slice]
"""Voxels of a grid along z, y and x; start, stop and step are all given and not negative."""

_STRAY_VOXELS = 1e-4
"""Distance that an axis may stray from the axis it is taken for, in voxels of the source; across
the steepest edge in CT, some 4000 HU a voxel, 1e-4 is below half a unit."""
_SLAB_PLANES = 16
_SMOOTHED_PLANES = 4
"""Planes smoothed at once: they are float32, and held a few times over."""
_TIE = 1e-4
"""ITK finds positions by steps along a row, so that noise decides a tie between two integers; a
constant far above that noise, and far below one HU, decides it instead."""


class Resampler(Protocol):
    """A volume seen through a grid."""

    def sample(self, box: Box) -> NDArray[np.int16]:
        """Linear interpolation at the voxel centres of a box of the grid.

        Padding counts as air; -1024 beyond the edges of the source, which lie half a voxel
        outside the outermost centres; values are clipped to [-1024, 3071]. A voxel has the
        same value in every box that contains it.

        Returns:
            (z, y, x) int16 HU, C-ordered.
        """
        ...


def resampler(
    hu: NDArray[np.int16], transform: Affine, shape: Triple, low_pass: bool = False
) -> Resampler:
    """The way of interpolating that suits the axes of a grid and a volume.

    Args:
        hu: (k, j, i); never changed. A view of any memory layout will do.
        transform: (4, 4), index (x, y, z) of the grid to index (i, j, k) of the volume.
        shape: of the grid, (z, y, x).
        low_pass: smooth along each axis on which the grid is coarser than the volume: by the
            triangle of `Line.low_passed` where the axes coincide, else by a Gaussian that
            adds as much variance, along the volume's own axes. The edge is repeated beyond
            the border.
    """
    order = _matching_axes(transform, shape)
    if order is None:
        return _Oblique(hu, transform, _excess_variance(transform) if low_pass else np.zeros(3))
    lines = []
    # Axis number n of an index is axis 2 - n of an array.
    for axis in (2, 1, 0):
        row = transform[order[axis]]
        position = row[axis] * np.arange(shape[2 - axis]) + row[3]
        size = hu.shape[2 - order[axis]]
        lines.append(
            Line.low_passed(position, size, row[axis]) if low_pass else Line.at(position, size)
        )
    z, y, x = (2 - order[axis] for axis in (2, 1, 0))
    return _Aligned(hu.transpose(z, y, x), (lines[0], lines[1], lines[2]))


def _matching_axes(transform: Affine, shape: Triple) -> Triple | None:
    """Axis of the source (i, j, k) along which each axis of the grid (x, y, z) runs, if it does."""
    matrix = np.abs(transform[:3, :3])
    largest = matrix.argmax(axis=0)
    if sorted(largest) != [0, 1, 2]:
        return None
    strays = matrix * (np.array(shape[::-1]) - 1)
    strays[largest, np.arange(3)] = 0
    if strays.sum(axis=1).max() > _STRAY_VOXELS:
        return None
    return int(largest[0]), int(largest[1]), int(largest[2])


class _Aligned:
    """Separable interpolation, always along y, then x, then z, whatever the order in memory."""

    def __init__(self, hu: NDArray[np.int16], lines: tuple[Line, Line, Line]) -> None:
        self._hu = hu
        self._lines = lines

    def sample(self, box: Box) -> NDArray[np.int16]:
        z, y, x = (line[part] for line, part in zip(self._lines, box, strict=True))
        planes = _Planes(self._hu, y, x, kept=len(z.taps))
        voxels = np.empty((len(z), len(y), len(x)), dtype=np.int16)
        total, term = (np.empty((len(y), len(x)), dtype=np.float32) for _ in range(2))
        for n, (taps, weights) in enumerate(zip(z.taps.T, z.weights.T, strict=True)):
            np.multiply(planes.reduced(int(taps[0])), weights[0], out=total)
            for tap, weight in zip(taps[1:], weights[1:], strict=True):
                if weight:
                    np.multiply(planes.reduced(int(tap)), weight, out=term)
                    total += term
            np.rint(total, out=total)
            np.clip(total, HU_MIN, HU_MAX, out=total)
            np.copyto(voxels[n], total, casting="unsafe")
        voxels[z.outside] = HU_MIN
        voxels[:, y.outside] = HU_MIN
        voxels[:, :, x.outside] = HU_MIN
        return voxels


class _Planes:
    """Source planes reduced to the rows and columns of the grid, the last ``kept`` kept."""

    def __init__(self, hu: NDArray[np.int16], y: Line, x: Line, kept: int) -> None:
        self._hu = hu
        self._y, self._x = y, x
        self._slab = hu[:0]
        self._first = -1
        # A plane of the grid needs neighbours of the source: each has a place of its own.
        self._kept = [np.empty((len(y), len(x)), dtype=np.float32) for _ in range(kept)]
        self._numbers = [-1] * kept
        self._padding = np.empty(hu.shape[1:], dtype=np.bool_)
        self._lift, self._filled = (np.empty(hu.shape[1:], dtype=np.int16) for _ in range(2))
        self._rows = np.empty((len(y), hu.shape[2]), dtype=np.int16)
        self._total, self._added = (np.empty(self._rows.shape, dtype=np.float32) for _ in range(2))
        self._term = np.empty((len(y), len(x)), dtype=np.float32)

    def reduced(self, number: int) -> NDArray[np.float32]:
        """(y, x) float32 HU of a source plane; valid until ``kept`` others have been asked for."""
        place = number % len(self._kept)
        if self._numbers[place] != number:
            self._reduce(self._without_padding(self._plane(number)), self._kept[place])
            self._numbers[place] = number
        return self._kept[place]

    def _plane(self, number: int) -> NDArray[np.int16]:
        # Where z is not the slowest axis, a plane is scattered over memory: one plane taken alone
        # would fetch a cache line for each voxel. Where it is, nothing is copied.
        first = number - number % _SLAB_PLANES
        if first != self._first:
            self._slab = np.ascontiguousarray(self._hu[first : first + _SLAB_PLANES])
            self._first = first
        plane: NDArray[np.int16] = self._slab[number - first]
        return plane

    def _without_padding(self, plane: NDArray[np.int16]) -> NDArray[np.int16]:
        if plane.min() > PADDING_HU:
            return plane
        # Several times faster than np.where or a masked copy.
        np.less_equal(plane, PADDING_HU, out=self._padding)
        np.multiply(self._padding, np.int16(HU_MIN - PADDING_HU), out=self._lift)
        np.maximum(plane, PADDING_HU, out=self._filled)
        self._filled += self._lift
        return self._filled

    def _reduce(self, plane: NDArray[np.int16], out: NDArray[np.float32]) -> None:
        y, x = self._y, self._x
        # mode="clip" lets take write to `out` without a buffer; all indices are inside.
        for n, (taps, weights) in enumerate(zip(y.taps, y.weights, strict=True)):
            np.take(plane, taps, axis=0, out=self._rows, mode="clip")
            np.multiply(self._rows, weights[:, None], out=self._added if n else self._total)
            if n:
                self._total += self._added
        for n, (taps, weights) in enumerate(zip(x.taps, x.weights, strict=True)):
            term = self._term if n else out
            np.take(self._total, taps, axis=1, out=term, mode="clip")
            term *= weights
            if n:
                out += term


class _Oblique:
    """Interpolation by SimpleITK, for any affine transform.

    The image carries no geometry of its own: index and point coincide on both sides. ITK
    truncates towards zero when it writes integers, so it writes float32, rounded here.
    """

    def __init__(
        self, hu: NDArray[np.int16], transform: Affine, variances: NDArray[np.float64]
    ) -> None:
        """``variances``: of a Gaussian along i, j and k in voxels squared, 0 for none."""
        k, j, i = hu.shape
        self._transform = transform
        self._image = sitk.Image([i, j, k], sitk.sitkInt16)
        self._steps = _steps_per_hu(hu) if variances.any() else 1
        slabs = _smoothed(hu, variances, self._steps) if variances.any() else _filled(hu)
        first = 0
        for slab in slabs:
            self._image[:, :, first : first + len(slab)] = sitk.GetImageFromArray(slab)
            first += len(slab)

    def sample(self, box: Box) -> NDArray[np.int16]:
        shape = [len(range(part.start, part.stop, part.step)) for part in box]
        voxels = np.empty(shape, dtype=np.int16)
        for first in range(0, shape[0], _SLAB_PLANES):
            part = voxels[first : first + _SLAB_PLANES]
            start = [box[2].start, box[1].start, box[0].start + first * box[0].step]
            self._sample_slab(np.array(start), np.array([p.step for p in box[::-1]]), part)
        return voxels

    def _sample_slab(
        self, start: NDArray[np.int_], step: NDArray[np.int_], out: NDArray[np.int16]
    ) -> None:
        """Fill ``out`` with the samples from a grid index on, in steps of ``step``; (x, y, z)."""
        matrix = self._transform[:3, :3]
        transform = sitk.AffineTransform(3)
        transform.SetMatrix((matrix * step).ravel().tolist())
        transform.SetTranslation((matrix @ start + self._transform[:3, 3]).tolist())
        filter_ = sitk.ResampleImageFilter()
        filter_.SetNumberOfThreads(1)
        filter_.SetInterpolator(sitk.sitkLinear)
        filter_.SetDefaultPixelValue(HU_MIN * self._steps)
        filter_.SetOutputPixelType(sitk.sitkFloat32)
        filter_.SetTransform(transform)
        filter_.SetSize(out.shape[::-1])
        image = filter_.Execute(self._image)
        # The view borrows the image's memory: the name keeps the image alive until it is copied.
        values = sitk.GetArrayViewFromImage(image) / np.float32(self._steps)
        values += np.float32(_TIE)
        np.rint(values, out=values)
        np.clip(values, HU_MIN, HU_MAX, out=values)
        np.copyto(out, values, casting="unsafe")


def _excess_variance(transform: Affine) -> NDArray[np.float64]:
    """Variance that the spacing of a grid has over that of a volume, (3,) voxels squared.

    Along each axis of the volume (i, j, k): a column of the inverse transform is one voxel of the
    volume in voxels of the grid, so f = 1 / its length is the factor by which the grid is coarser
    in that direction. The triangles of half-width f and 1 have variances f^2 / 6 and 1 / 6, and
    linear interpolation brings the latter itself. 0 where f <= 1.
    """
    factors = rounded(1 / np.linalg.norm(np.linalg.inv(transform[:3, :3]), axis=0))
    excess: NDArray[np.float64] = np.maximum(factors**2 - 1, 0) / 6
    return excess


def _filled(hu: NDArray[np.int16]) -> Iterator[NDArray[np.int16]]:
    """Slabs of the volume in which padding is air."""
    for first in range(0, len(hu), _SLAB_PLANES):
        slab = hu[first : first + _SLAB_PLANES]
        yield np.where(slab <= PADDING_HU, np.int16(HU_MIN), slab)


def _smoothed(
    hu: NDArray[np.int16], variances: NDArray[np.float64], steps: int
) -> Iterator[NDArray[np.int16]]:
    """Slabs of the volume, padding made air, then smoothed, in ``steps`` per HU.

    Beyond the border the edge is repeated. An image of float32 would take more memory than a
    build may.
    """
    i, j, k = (gaussian(variance) for variance in variances)
    reach = len(k) // 2
    for first in range(0, len(hu), _SMOOTHED_PLANES):
        count = min(_SMOOTHED_PLANES, len(hu) - first)
        around = np.arange(first - reach, first + count + reach)
        near = hu[np.clip(around, 0, len(hu) - 1)]
        near[near <= PADDING_HU] = HU_MIN
        slab = np.zeros((count, *hu.shape[1:]), dtype=np.float32)
        for n, weight in enumerate(k.astype(np.float32)):
            slab += near[n : n + count] * weight
        for axis, kernel in ((1, j), (2, i)):
            if len(kernel) > 1:
                slab = ndimage.correlate1d(slab, kernel, axis=axis, mode="nearest")
        slab *= steps
        yield np.rint(slab).astype(np.int16)


def _steps_per_hu(hu: NDArray[np.int16]) -> int:
    """The largest power of two by which every HU that is not padding can be multiplied in int16.

    8 for what CT stores in 12 bits: what is smoothed is within 1/16 HU until it is interpolated.
    """
    largest = max(int(hu.max()), -PADDING_HU)
    return 1 << (int(np.iinfo(np.int16).max) // largest).bit_length() - 1
