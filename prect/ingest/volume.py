"""The one type that every reader returns, and its geometry.

Index axes are written (i, j, k): i is the fastest axis of the file (columns), k the
slowest (slices). Arrays are C-ordered (k, j, i). Affines map an index (i, j, k), at the
centre of a voxel, to RAS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.findings import Finding

Affine = NDArray[np.float64]
"""(4, 4) index (i, j, k) to RAS millimetres."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""DICOM and ITK count x and y towards the patient's left and back, RAS the other way."""

# The same scan reaches us as float32 (NIfTI), as decimal strings (DICOM) and as float64. Rounding
# far below what a voxel can tell makes these one geometry, and so one store.
_SPACING_DECIMALS = 6
_COSINE_DECIMALS = 5
_ORIGIN_DECIMALS = 3
SNAPPED_SHEAR = 1e-3
"""Largest deviation of a direction matrix from a rotation that is taken for rounding error."""


@dataclass(frozen=True)
class Volume:
    """A CT volume as its file holds it, in Hounsfield units."""

    voxels: NDArray[np.int16]
    """(k, j, i) HU."""
    affine: Affine
    format: str
    source_digest: str
    """BLAKE2b-128 over the bytes of the files in order, 32 hexadecimal digits."""
    fractional: bool = False
    """Whether the file's values had fractions, which the int16 voxels have lost."""
    findings: tuple[Finding, ...] = ()
    """Every check made by the reader, passed ones too, in order."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (i, j, k)."""
        k, j, i = self.voxels.shape
        return i, j, k


def spacing_of(affine: Affine) -> NDArray[np.float64]:
    """Millimetres along (i, j, k), (3,)."""
    lengths: NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return np.round(lengths, _SPACING_DECIMALS)


def directions_of(affine: Affine) -> NDArray[np.float64]:
    """Unit vectors of i, j and k as columns, RAS, (3, 3)."""
    matrix: NDArray[np.float64] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return matrix


def shear_of(affine: Affine) -> float:
    """Largest cosine between two index axes; 0 for a rotation, 0.32 for a tilt of 18.5 degrees."""
    return _largest_cosine(directions_of(affine))


def _largest_cosine(directions: NDArray[np.float64]) -> float:
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def orientation_of(affine: Affine) -> str:
    """Closest anatomical directions of (i, j, k), for example ``LPS``."""
    return "".join(nib.aff2axcodes(affine))


def clean_affine(affine: Affine) -> Affine:
    """Round an affine to what files can carry, and snap a tiny shear to the nearest rotation.

    Spacings are rounded to 1e-6 mm and direction cosines to 1e-5. A direction matrix within
    `SNAPPED_SHEAR` of a rotation is replaced by that rotation (polar decomposition); a
    larger shear, such as a gantry tilt, is kept. The origin is left to `canonical_affine`.

    Raises:
        VolumeError: ``geometry.invalid``, the matrix is not finite or not invertible.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(
            "geometry.invalid", "the index-to-world matrix is not finite or cannot be inverted"
        )
    spacing = spacing_of(affine)
    directions = np.round(directions_of(affine), _COSINE_DECIMALS)
    if _largest_cosine(directions) <= SNAPPED_SHEAR:
        left, _, right = np.linalg.svd(directions)
        directions = left @ right
    cleaned = np.eye(4)
    cleaned[:3, :3] = directions * spacing
    cleaned[:3, 3] = affine[:3, 3]
    return cleaned


def canonical_affine(
    affine: Affine, shape: tuple[int, int, int]
) -> tuple[Affine, NDArray[np.int8]]:
    """The affine of the same voxels re-ordered to the closest RAS index, and the re-ordering.

    Args:
        affine: of the file's index (i, j, k).
        shape: voxels along (i, j, k).

    Returns:
        The affine of the re-ordered index, its origin rounded to 1e-3 mm; and nibabel's
        orientation array (3, 2): for each input axis, its output axis and its sign.
    """
    cleaned = clean_affine(affine)
    reordering = nib.io_orientation(cleaned)
    canonical = cleaned @ nib.orientations.inv_ornt_aff(reordering, shape)
    canonical[:3, 3] = np.round(canonical[:3, 3], _ORIGIN_DECIMALS)
    return canonical + 0.0, reordering.astype(np.int8)  # + 0.0 turns -0.0 into 0.0
