"""The voxel grid of a scan, with geometry that every file format can hold exactly.

The same case is written as NIfTI (float32 geometry), DICOM (decimal strings of at most 16
characters), MetaImage and NRRD (doubles). For all four to mean the same grid, spacings and the
origin in RAS-closest order are multiples of 0.001 mm, and oblique directions use sines and
cosines that are exact in five decimals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatMatrix = npt.NDArray[np.float64]

# Index orders that keep (i, j, k) right-handed, so that DICOM slices sorted along the normal of
# their rows and columns come back in the order of the array.
RIGHT_HANDED_CODES = ("LPS", "RAS", "LAI", "RPI", "LIP")

# (cosine, sine) of Pythagorean angles 0, 4.35 and 16.26 degrees: cos^2 + sin^2 is exactly 1.
EXACT_ANGLES = ((1.0, 0.0), (0.99712, 0.07584), (0.96, 0.28))

_AXIS_OF_CODE = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a scan lie.

    Index order is (i, j, k); the array of a case is C-ordered (k, j, i). World is RAS mm.
    """

    codes: str
    """Direction in which each index axis grows, as nibabel names it, for example ``LPS``."""
    shape: tuple[int, int, int]
    """Voxels along i, j, k."""
    spacing: tuple[float, float, float]
    """Voxel size along i, j, k in mm."""
    direction: tuple[tuple[float, float, float], ...]
    """Unit vectors in RAS, rows of a 3x3 matrix whose columns belong to i, j, k."""
    origin: tuple[float, float, float]
    """RAS mm of the centre of voxel (0, 0, 0)."""

    @property
    def affine(self) -> FloatMatrix:
        """4x4 matrix from voxel index (i, j, k) to RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.direction) * np.array(self.spacing)
        affine[:3, 3] = self.origin
        return affine

    def axis_of(self, world_axis: int) -> int:
        """Index axis (0 for i, 1 for j, 2 for k) that runs along a world axis (0 for x, ...)."""
        return [_AXIS_OF_CODE[code][0] for code in self.codes].index(world_axis)


def rotation_about(axis: int, cosine: float, sine: float) -> FloatMatrix:
    """Rotation matrix (3, 3) about one world axis, right-hand rule, with the given cosine, sine."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second] = -sine
    matrix[second, first] = sine
    return matrix


def build_grid(
    codes: str,
    shape_ras: tuple[int, int, int],
    spacing_ras: tuple[float, float, float],
    rotation: FloatMatrix,
    corner: tuple[float, float, float],
) -> Grid:
    """Turn a grid in RAS-closest order into one with the index order ``codes``.

    Args:
        codes: one of `RIGHT_HANDED_CODES`.
        shape_ras: voxels along the axes closest to x, y, z.
        spacing_ras: mm along the same axes, multiples of 0.001.
        rotation: (3, 3), columns are the directions of the same axes in RAS.
        corner: RAS mm of the most left, posterior, inferior voxel, multiples of 0.001.

    Returns:
        The grid; its origin follows from ``corner`` and is exact in eight decimals.
    """
    origin = np.array(corner, dtype=np.float64)
    columns, shape, spacing = [], [], []
    for code in codes:
        axis, sign = _AXIS_OF_CODE[code]
        shape.append(shape_ras[axis])
        spacing.append(spacing_ras[axis])
        columns.append(sign * rotation[:, axis])
        if sign < 0:
            origin += rotation[:, axis] * spacing_ras[axis] * (shape_ras[axis] - 1)
    # Adding 0.0 turns -0.0 into 0.0, which would otherwise differ in text headers.
    direction = np.column_stack(columns) + 0.0
    return Grid(
        codes=codes,
        shape=(shape[0], shape[1], shape[2]),
        spacing=(spacing[0], spacing[1], spacing[2]),
        direction=tuple((float(r[0]), float(r[1]), float(r[2])) for r in direction),
        origin=_three(np.round(origin, 8) + 0.0),
    )


def _three(values: FloatMatrix) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
