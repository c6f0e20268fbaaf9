"""Building blocks of the body, painted one over another.

All coordinates are those of the reference trunk: mm, x to the patient's right, y anterior,
z superior with 0 at the pelvic floor. A part knows the box it lies in, so that only the voxels of
that box are evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Matrix = npt.NDArray[np.float64]
Point = tuple[float, float, float]
Box = tuple[Point, Point]

Where = Literal["wall", "cavity", "lung", "outside"]

GAS = -960.0


@dataclass(frozen=True)
class View:
    """The voxels of a box: arrays of one shape (k, j, i), written in place."""

    x: FloatArray
    y: FloatArray
    z: FloatArray
    wall: FloatArray
    """Squared radius relative to the outer side of the body wall's muscle; below 1 is inside."""
    cavity: FloatArray
    """Squared radius relative to the inner side of the body wall; below 1 is inside."""
    hu: FloatArray
    labels: npt.NDArray[np.uint8]

    def paint(self, mask: BoolArray, hu: float | FloatArray, label: int | None = None) -> None:
        """Set HU, and the label unless it is None, where ``mask`` holds.

        ``hu`` is one value or one value for each voxel of the mask.
        """
        if isinstance(hu, np.ndarray):
            self.hu[mask] = hu
        else:
            np.copyto(self.hu, np.float32(hu), where=mask)
        if label is not None:
            np.copyto(self.labels, np.uint8(label), where=mask)


class Part(Protocol):
    """Something that can be painted."""

    @property
    def box(self) -> Box:
        """Lowest and highest corner of the part."""
        ...

    def paint(self, view: View) -> None:
        """Paint the part over what is there."""
        ...


@dataclass(frozen=True)
class Material:
    """What a simple shape is made of."""

    hu: float
    label: int | None = None
    core_hu: float | None = None
    """HU of the inner part: marrow, medulla, blood or bowel content."""
    core: float = 0.0
    """Radius of the inner part relative to the whole."""
    gas_above: float | None = None
    """Height y above which the inner part is gas; patients lie on their back."""
    within: Where | None = None
    """Restriction to the body wall, its cavity, lung tissue (by label), or outside the wall."""
    lung_labels: tuple[int, ...] = ()
    """Labels that count as lung for ``within="lung"``."""

    def paint(self, view: View, squared_radius: FloatArray) -> None:
        """Paint where the squared relative radius is below 1."""
        inside = squared_radius < 1
        if self.within == "wall":
            inside &= view.wall < 1
        elif self.within == "cavity":
            inside &= view.cavity < 1
        elif self.within == "outside":
            inside &= view.wall >= 1
        elif self.within == "lung":
            inside &= np.isin(view.labels, self.lung_labels)
        view.paint(inside, self.hu, self.label)
        if self.core_hu is not None:
            core = inside & (squared_radius < self.core**2)
            view.paint(core, self.core_hu)
            if self.gas_above is not None:
                view.paint(core & (view.y > self.gas_above), GAS)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid, turned if need be."""

    centre: Point
    half_axes: Point
    material: Material
    rotation: Matrix | None = None
    """(3, 3), columns are the directions of the half axes; None when along x, y, z."""

    @property
    def box(self) -> Box:
        half = np.array(self.half_axes)
        if self.rotation is not None:
            half = np.sqrt(((self.rotation * half) ** 2).sum(axis=1))
        centre = np.array(self.centre)
        return as_point(centre - half), as_point(centre + half)

    def squared_radius(self, view: View) -> FloatArray:
        """Squared radius relative to the surface, for each voxel."""
        offsets = [
            axis - np.float32(c)
            for axis, c in zip((view.x, view.y, view.z), self.centre, strict=True)
        ]
        if self.rotation is not None:
            columns = self.rotation.astype(np.float32).T
            offsets = [c[0] * offsets[0] + c[1] * offsets[1] + c[2] * offsets[2] for c in columns]
        total = np.zeros_like(view.x)
        for offset, half in zip(offsets, self.half_axes, strict=True):
            total += (offset * np.float32(1 / half)) ** 2
        return total

    def paint(self, view: View) -> None:
        self.material.paint(view, self.squared_radius(view))


@dataclass(frozen=True)
class Capsule:
    """A piece of a tube with round ends, whose radius may change along the way."""

    start: Point
    end: Point
    start_radius: float
    end_radius: float
    material: Material

    @property
    def box(self) -> Box:
        ends = np.array([self.start, self.end])
        radii = np.array([[self.start_radius], [self.end_radius]])
        return as_point((ends - radii).min(axis=0)), as_point((ends + radii).max(axis=0))

    def paint(self, view: View) -> None:
        axis = np.array(self.end) - np.array(self.start)
        length2 = float(axis @ axis)
        dx, dy, dz = (
            a - np.float32(c) for a, c in zip((view.x, view.y, view.z), self.start, strict=True)
        )
        ux, uy, uz = (np.float32(v / length2) for v in axis)
        along = np.clip(ux * dx + uy * dy + uz * dz, 0, 1)
        ax, ay, az = (np.float32(v) for v in axis)
        distance2 = (dx - ax * along) ** 2 + (dy - ay * along) ** 2 + (dz - az * along) ** 2
        radius = np.float32(self.start_radius)
        radius = radius + np.float32(self.end_radius - self.start_radius) * along
        self.material.paint(view, distance2 / radius**2)


def tube(points: Sequence[Point], radii: Sequence[float], material: Material) -> list[Part]:
    """Capsules through ``points`` (mm) with one radius (mm) a point."""
    pairs = zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    return [Capsule(start, end, first, last, material) for start, end, first, last in pairs]


@dataclass(frozen=True)
class Profile:
    """A quantity along the height of the trunk, tabulated every millimetre."""

    lowest: float
    table: FloatArray

    def __call__(self, z: FloatArray) -> FloatArray:
        """Value at each height z (mm); the end values hold beyond the ends."""
        return self.take(self.index(z))

    def index(self, z: FloatArray) -> npt.NDArray[np.int32]:
        """Row of the table for each height."""
        scaled = np.clip(z - np.float32(self.lowest - 0.5), 0, len(self.table) - 1)
        rows: npt.NDArray[np.int32] = scaled.astype(np.int32)
        return rows

    def take(self, rows: npt.NDArray[np.int32]) -> FloatArray:
        """Values at rows that `index` gave; profiles of one range share their rows."""
        return self.table.take(rows)

    def at(self, z: float) -> float:
        """Value at one height."""
        return float(self(np.array([z], dtype=np.float32))[0])


PROFILE_HEIGHTS = np.arange(-80.0, 741.0)


def profile(*points: tuple[float, float]) -> Profile:
    """Profile through (height, value) points, linear between them, slightly smoothed."""
    heights, values = zip(*points, strict=True)
    table = np.interp(PROFILE_HEIGHTS, heights, values)
    width = 31
    padded = np.pad(table, width // 2, mode="edge")
    smooth = np.convolve(padded, np.full(width, 1 / width), mode="valid")
    return Profile(float(PROFILE_HEIGHTS[0]), smooth.astype(np.float32))


def as_point(values: npt.NDArray[np.float64]) -> Point:
    """Three floats from an array of three."""
    return float(values[0]), float(values[1]), float(values[2])
