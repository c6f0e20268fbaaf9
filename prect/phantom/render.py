"""From a body and a grid to voxels, a few planes at a time so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prect.phantom.anatomy import Anatomy, build_anatomy
from prect.phantom.grid import FloatMatrix
from prect.phantom.landmarks import Landmark, LandmarkCounter
from prect.phantom.patient import Patient, Scan, Stream, case_generator
from prect.phantom.shapes import BoolArray, Box, FloatArray, View
from prect.phantom.tissue import ORGANS, tissue_hu

AIR = -1000.0
HU_RANGE = (-1024, 3071)

# Voxels rendered at once: small enough for the working arrays to stay near the processor.
SLAB_VOXELS = 1_000_000

_SKIN_SHARE = 0.035
_TABLE_SHELL_HU = 60.0
_TABLE_FOAM_HU = -930.0
_TABLE_HALF_WIDTH = 215.0
_TABLE_THICKNESS = 45.0
_TABLE_SHELL = 4.0
_TABLE_CURVATURE = 1 / 1100.0


@dataclass(frozen=True)
class Rendering:
    """Voxels of a scan, arrays in C order (k, j, i)."""

    hu: npt.NDArray[np.int16]
    labels: npt.NDArray[np.uint8]
    landmarks: Mapping[str, Landmark]


@dataclass(frozen=True)
class _Span:
    """A box of voxels: first and past-the-end index on i, j, k."""

    first: tuple[int, int, int]
    end: tuple[int, int, int]

    def within(self, other: _Span) -> _Span:
        """The common part."""
        first = [max(a, b) for a, b in zip(self.first, other.first, strict=True)]
        end = [min(a, b) for a, b in zip(self.end, other.end, strict=True)]
        return _Span((first[0], first[1], first[2]), (end[0], end[1], end[2]))

    @property
    def empty(self) -> bool:
        return any(e <= f for f, e in zip(self.first, self.end, strict=True))

    def slices(self, base: _Span) -> tuple[slice, slice, slice]:
        """Slices (k, j, i) of an array whose first voxel is that of ``base``."""
        i, j, k = (
            slice(f - b, e - b) for f, e, b in zip(self.first, self.end, base.first, strict=True)
        )
        return k, j, i


def render(
    seed: int, index: int, patient: Patient, scan: Scan, *, slab_voxels: int = SLAB_VOXELS
) -> Rendering:
    """Render one case.

    Args:
        seed: seed of the collection.
        index: number of the case.
        patient: the body.
        scan: the voxels and how they are taken.
        slab_voxels: how many voxels to work on at once. The result does not depend on it:
            anatomy is a function of position, and each plane has its own noise.
    """
    rng = case_generator(seed, index, Stream.ANATOMY)
    anatomy = build_anatomy(patient, tissue_hu(scan.phase, rng), rng)
    columns, rows, planes = scan.grid.shape
    hu = np.empty((planes, rows, columns), np.int16)
    labels = np.zeros((planes, rows, columns), np.uint8)
    body = _BodyPainter(anatomy, patient, scan)
    outside = _outside_circle(scan)
    depth_of_back = patient.scale[1] * float(anatomy.skin.half_depth.table.max())
    table_top = patient.translation[1] - depth_of_back - scan.table_gap
    counter = LandmarkCounter(scan.grid)
    step = max(1, slab_voxels // (columns * rows))
    for first in range(0, planes, step):
        end = min(first + step, planes)
        image = np.full((end - first, rows, columns), AIR, np.float32)
        tissue = labels[first:end]
        body.paint(first, image, tissue)
        _paint_table(scan, table_top, first, image, tissue)
        _add_noise(seed, index, scan, first, image)
        np.clip(np.rint(image, out=image), *HU_RANGE, out=image)
        hu[first:end] = image
        if outside is not None:
            beyond = np.broadcast_to(outside, hu.shape)[first:end]
            counter.lose(tissue[beyond])
            hu[first:end][beyond] = HU_RANGE[0]
            tissue[beyond] = 0
        counter.add(tissue, first)
    return Rendering(hu, labels, counter.landmarks())


class _BodyPainter:
    """Paints the body into slabs of one scan."""

    def __init__(self, anatomy: Anatomy, patient: Patient, scan: Scan) -> None:
        self._anatomy = anatomy
        self._shape = scan.grid.shape
        self._to_body = np.linalg.inv(patient.affine) @ scan.grid.affine
        self._body = self._span(anatomy.box)
        self._spans = [self._span(part.box) for part in anatomy.parts]

    def paint(self, first: int, image: FloatArray, labels: npt.NDArray[np.uint8]) -> None:
        """Paint planes ``first`` and up; ``image`` and ``labels`` are (k, j, i) of the slab."""
        columns, rows, _ = self._shape
        slab = _Span((0, 0, first), (columns, rows, first + len(image)))
        body = self._body.within(slab)
        if body.empty:
            return
        region = body.slices(slab)
        view = self._paint_layers(body, image[region], labels[region])
        for part, span in zip(self._anatomy.parts, self._spans, strict=True):
            here = span.within(body)
            if not here.empty:
                part.paint(_subview(view, here.slices(body)))

    def _paint_layers(self, span: _Span, image: FloatArray, labels: npt.NDArray[np.uint8]) -> View:
        """Skin, fat, muscle of the wall and the fat inside; returns the view of the span."""
        anatomy, hu = self._anatomy, self._anatomy.hu
        x, y, z = coordinates(self._to_body, span.first, span.end)
        x2, y2 = x * x, y * y
        skin = anatomy.skin.squared_radius(x2, y2, z)
        wall = anatomy.wall.squared_radius(x2, y2, z)
        cavity = anatomy.cavity.squared_radius(x2, y2, z)
        view = View(x, y, z, wall, cavity, image, labels)
        view.paint(skin < 1, hu["soft"] - 20, ORGANS["body"])
        view.paint(skin < np.float32(1 - _SKIN_SHARE), hu["fat"])
        view.paint(wall < 1, hu["muscle"])
        view.paint(cavity < 1, hu["fat"] + 4)
        return view

    def _span(self, box: Box) -> _Span:
        """Voxels of the scan that may lie in a box of reference trunk coordinates."""
        low, high = box
        corners = np.array(
            [[x, y, z, 1.0] for x in (low[0], high[0]) for y in (low[1], high[1])
             for z in (low[2], high[2])]
        )  # fmt: skip
        index = (np.linalg.inv(self._to_body) @ corners.T)[:3]
        first = [max(0, int(np.floor(v))) for v in index.min(axis=1)]
        end = [
            min(n, int(np.ceil(v)) + 1) for n, v in zip(self._shape, index.max(axis=1), strict=True)
        ]
        return _Span((first[0], first[1], first[2]), (end[0], end[1], end[2]))


def coordinates(
    affine: FloatMatrix, first: Sequence[int], end: Sequence[int]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What ``affine`` (4x4, index to mm) gives for a box of voxels.

    Args:
        affine: from index (i, j, k) to the coordinates wanted.
        first: first index on i, j, k.
        end: past-the-end index on i, j, k.

    Returns:
        x, y, z in mm, each of shape (k, j, i).
    """
    i, j, k = (np.arange(f, e, dtype=np.float64) for f, e in zip(first, end, strict=True))
    arrays = []
    for row in affine[:3]:
        in_plane = (row[0] * i)[None, :] + (row[1] * j)[:, None]
        along = (row[2] * k + row[3]).astype(np.float32)
        arrays.append(in_plane.astype(np.float32)[None] + along[:, None, None])
    return arrays[0], arrays[1], arrays[2]


def _subview(view: View, region: tuple[slice, slice, slice]) -> View:
    return View(
        view.x[region],
        view.y[region],
        view.z[region],
        view.wall[region],
        view.cavity[region],
        view.hu[region],
        view.labels[region],
    )


def _paint_table(
    scan: Scan,
    top: float,
    first: int,
    image: FloatArray,
    labels: npt.NDArray[np.uint8],
) -> None:
    """A curved board: a thin shell around foam, fixed to the scanner, where there is no body.

    ``top`` is the RAS y of its surface in mm, ``first`` the first plane of the slab.
    """
    grid = scan.grid
    end = (grid.shape[0], grid.shape[1], first + len(image))
    x, y, _ = coordinates(grid.affine, (0, 0, first), end)
    # From here y is the depth below the table's surface.
    np.subtract(np.float32(top) + np.float32(_TABLE_CURVATURE) * x * x, y, out=y)
    side = np.abs(x, out=x)
    board = (y > 0) & (y < _TABLE_THICKNESS) & (side < _TABLE_HALF_WIDTH) & (labels == 0)
    foam = board & (y > _TABLE_SHELL) & (y < _TABLE_THICKNESS - _TABLE_SHELL)
    foam &= side < _TABLE_HALF_WIDTH - _TABLE_SHELL
    np.copyto(image, np.float32(_TABLE_SHELL_HU), where=board)
    np.copyto(image, np.float32(_TABLE_FOAM_HU), where=foam)


def _add_noise(seed: int, index: int, scan: Scan, first: int, image: FloatArray) -> None:
    """Add noise and apply the reconstruction kernel, which smooths both edges and noise."""
    weight = scan.kernel
    # Standard deviation left of white noise after the kernel has been applied along two axes.
    kept = 2 * weight**2 + (1 - 2 * weight) ** 2
    for number in range(len(image)):
        rng = case_generator(seed, index, Stream.NOISE, plane=first + number)
        white = rng.standard_normal(image.shape[1:], dtype=np.float32)
        white *= np.float32(scan.noise / kept)
        image[number] += white
        _smooth(_smooth(image[number], weight).T, weight)


def _smooth(plane: FloatArray, weight: float) -> FloatArray:
    """Apply the kernel (w, 1 - 2w, w) along the last axis, in place; edges are repeated."""
    side = np.float32(weight) * plane
    plane *= np.float32(1 - 2 * weight)
    plane[:, 1:] += side[:, :-1]
    plane[:, 0] += side[:, 0]
    plane[:, :-1] += side[:, 1:]
    plane[:, -1] += side[:, -1]
    return plane


def _outside_circle(scan: Scan) -> BoolArray | None:
    """Which voxels lie outside the reconstruction circle in the plane of x and y.

    Returns:
        An array that broadcasts to (k, j, i), or None when the scan fills the square.
    """
    if not scan.circular:
        return None
    radius2 = np.zeros((1, 1, 1))
    for world_axis in (0, 1):
        axis = scan.grid.axis_of(world_axis)
        size = scan.grid.shape[axis]
        relative = (np.arange(size) - (size - 1) / 2) / (size / 2)
        shape = [1, 1, 1]
        shape[2 - axis] = size
        radius2 = radius2 + relative.reshape(shape) ** 2
    return np.asarray(radius2 > 1)
