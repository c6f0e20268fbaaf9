"""Linear interpolation of a volume onto a grid, box by box, in little memory.

Where the axes of grid and volume coincide but for order and direction, as for nearly every
CT, the interpolation is separable: each source plane is reduced to the rows and columns of
the grid once, and each plane of the grid is a weighted sum of two of those. Planes stay in
the processor's cache and the volume is never copied. Oblique and sheared volumes go through
SimpleITK, some planes of the grid at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

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
_POSITION_BITS = 20
"""Positions are rounded to 2^-20 voxels: a weight and its complement are then exact in float32,
so that neither a flipped axis nor the noise of float64 changes the sum."""
_SLAB_PLANES = 16
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


def resampler(hu: NDArray[np.int16], transform: Affine, shape: Triple) -> Resampler:
    """The way of interpolating that suits the axes of a grid and a volume.

    Args:
        hu: (k, j, i); never changed. A view of any memory layout will do.
        transform: (4, 4), index (x, y, z) of the grid to index (i, j, k) of the volume.
        shape: of the grid, (z, y, x).
    """
    order = _matching_axes(transform, shape)
    if order is None:
        return _Oblique(hu, transform)
    lines = []
    # Axis number n of an index is axis 2 - n of an array.
    for axis in (2, 1, 0):
        row = transform[order[axis]]
        position = row[axis] * np.arange(shape[2 - axis]) + row[3]
        lines.append(_Line.at(position, hu.shape[2 - order[axis]]))
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


@dataclass(frozen=True)
class _Line:
    """Where the samples along one axis lie between the voxels of the source; (n,) each."""

    lower: NDArray[np.intp]
    upper: NDArray[np.intp]
    lower_weight: NDArray[np.float32]
    upper_weight: NDArray[np.float32]
    outside: NDArray[np.bool_]

    @classmethod
    def at(cls, position: NDArray[np.float64], size: int) -> _Line:
        """Samples at positions in voxels along an axis of ``size`` voxels."""
        exact = np.round(position * 2**_POSITION_BITS) / 2**_POSITION_BITS
        inner = np.clip(exact, 0, size - 1)
        lower = np.floor(inner).astype(np.intp)
        weight = inner - lower
        return cls(
            lower=lower,
            upper=np.minimum(lower + 1, size - 1),
            lower_weight=(1 - weight).astype(np.float32),
            upper_weight=weight.astype(np.float32),
            outside=(exact < -0.5) | (exact > size - 0.5),
        )

    def __getitem__(self, part: slice) -> _Line:
        return _Line(
            self.lower[part],
            self.upper[part],
            self.lower_weight[part],
            self.upper_weight[part],
            self.outside[part],
        )

    def __len__(self) -> int:
        return len(self.lower)


class _Aligned:
    """Separable interpolation, always along y, then x, then z, whatever the order in memory."""

    def __init__(self, hu: NDArray[np.int16], lines: tuple[_Line, _Line, _Line]) -> None:
        self._hu = hu
        self._lines = lines

    def sample(self, box: Box) -> NDArray[np.int16]:
        z, y, x = (line[part] for line, part in zip(self._lines, box, strict=True))
        planes = _Planes(self._hu, y, x)
        voxels = np.empty((len(z), len(y), len(x)), dtype=np.int16)
        total, term = (np.empty((len(y), len(x)), dtype=np.float32) for _ in range(2))
        for n, (lower, upper) in enumerate(zip(z.lower, z.upper, strict=True)):
            np.multiply(planes.reduced(int(lower)), z.lower_weight[n], out=total)
            if z.upper_weight[n]:
                np.multiply(planes.reduced(int(upper)), z.upper_weight[n], out=term)
                total += term
            np.rint(total, out=total)
            np.clip(total, HU_MIN, HU_MAX, out=total)
            np.copyto(voxels[n], total, casting="unsafe")
        voxels[z.outside] = HU_MIN
        voxels[:, y.outside] = HU_MIN
        voxels[:, :, x.outside] = HU_MIN
        return voxels


class _Planes:
    """Source planes reduced to the rows and columns of the grid, the last two kept."""

    def __init__(self, hu: NDArray[np.int16], y: _Line, x: _Line) -> None:
        self._hu = hu
        self._y, self._x = y, x
        self._slab = hu[:0]
        self._first = -1
        # A plane of the grid needs two neighbours of the source, one even and one odd.
        self._kept = [np.empty((len(y), len(x)), dtype=np.float32) for _ in range(2)]
        self._numbers = [-1, -1]
        self._padding = np.empty(hu.shape[1:], dtype=np.bool_)
        self._lift, self._filled = (np.empty(hu.shape[1:], dtype=np.int16) for _ in range(2))
        self._rows = np.empty((len(y), hu.shape[2]), dtype=np.int16)
        self._lower, self._upper = (np.empty(self._rows.shape, dtype=np.float32) for _ in range(2))
        self._term = np.empty((len(y), len(x)), dtype=np.float32)

    def reduced(self, number: int) -> NDArray[np.float32]:
        """(y, x) float32 HU of a source plane; valid until the next but one is asked for."""
        place = number % 2
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
        np.take(plane, y.lower, axis=0, out=self._rows, mode="clip")
        np.multiply(self._rows, y.lower_weight[:, None], out=self._lower)
        np.take(plane, y.upper, axis=0, out=self._rows, mode="clip")
        np.multiply(self._rows, y.upper_weight[:, None], out=self._upper)
        self._lower += self._upper
        np.take(self._lower, x.lower, axis=1, out=out, mode="clip")
        out *= x.lower_weight
        np.take(self._lower, x.upper, axis=1, out=self._term, mode="clip")
        self._term *= x.upper_weight
        out += self._term


class _Oblique:
    """Interpolation by SimpleITK, for any affine transform.

    The image carries no geometry of its own: index and point coincide on both sides. ITK
    truncates towards zero when it writes integers, so it writes float32, rounded here.
    """

    def __init__(self, hu: NDArray[np.int16], transform: Affine) -> None:
        k, j, i = hu.shape
        self._transform = transform
        self._image = sitk.Image([i, j, k], sitk.sitkInt16)
        for first in range(0, k, _SLAB_PLANES):
            slab = hu[first : first + _SLAB_PLANES]
            filled = np.where(slab <= PADDING_HU, np.int16(HU_MIN), slab)
            self._image[:, :, first : first + len(slab)] = sitk.GetImageFromArray(filled)

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
        filter_.SetDefaultPixelValue(HU_MIN)
        filter_.SetOutputPixelType(sitk.sitkFloat32)
        filter_.SetTransform(transform)
        filter_.SetSize(out.shape[::-1])
        image = filter_.Execute(self._image)
        # The view borrows the image's memory: the name keeps the image alive until it is copied.
        values = sitk.GetArrayViewFromImage(image) + np.float32(_TIE)
        np.rint(values, out=values)
        np.clip(values, HU_MIN, HU_MAX, out=values)
        np.copyto(out, values, casting="unsafe")
