"""What a reader of a foreign format offers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.findings import Finding, failed, passed
from prect.ingest.volume import Affine, Volume
from prect.manifests.limits import Limits
from prect.units import HU_MIN

_CHUNK = 1 << 16
"""Voxels converted at a time: their float64 copies stay in the processor's cache."""
_INT16 = (-32768, 32767)
_WHOLE = 1e-3
"""Distance from a whole number that the float32 of a file can bring about."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are trusted."""

    shape: tuple[int, int, int]
    """Voxels along (i, j, k) of the `Volume` that `Reader.read` returns."""
    affine: Affine
    """Index (i, j, k) to RAS millimetres."""
    paths: tuple[Path, ...]
    """Files to decode; for a DICOM series ordered along the slice normal."""
    patient_id: str = ""
    """As in the file, as the two below; hashed before they are written anywhere."""
    study_id: str = ""
    series_id: str = ""
    stack: str = ""
    """What tells the volumes of one DICOM series apart; the same in every copy of the volume."""
    kind: str = ""
    """DICOM: ``original`` (an original axial image), ``reformat`` or ``derived``; else empty."""
    findings: tuple[Finding, ...] = ()
    """Every check made so far, passed ones too, in order."""
    slices: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    """What the reader itself needs again to decode."""


class Reader(Protocol):
    """A foreign format. A method raises `VolumeError` where a file cannot be a CT volume."""

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:
        """Geometry and ids, read without decoding voxels where the format allows it."""
        ...

    def read(self, header: Header) -> Volume:
        """The whole volume, every byte of every file checked on the way.

        `Volume.findings` are those of the header and the ones that only decoding shows.
        """
        ...

    def digest(self, paths: Sequence[Path]) -> str:
        """`Volume.source_digest` of the same files in the same order, without decoding."""
        ...


def digest_files(paths: Sequence[Path]) -> str:
    """BLAKE2b-128 over the bytes of the files, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Converted:
    """Decoded values as Hounsfield units."""

    voxels: NDArray[np.int16]
    """Of the same shape as the values."""
    fractional: bool
    """Whether values had fractions; less than `_WHOLE` is rounding."""
    findings: tuple[Finding, ...]


def to_hu(
    stored: NDArray[Any], limits: Limits, *, slope: float = 1.0, intercept: float = 0.0
) -> Converted:
    """Turn stored values into ``slope * value + intercept`` as int16 HU.

    Fractions are rounded; what int16 cannot hold is clipped (metal beyond 32767 HU is
    beyond every window); NaN and infinities become -1024 HU and are counted. Values that
    are int16 HU already are not copied; others pass through a small buffer of float64.

    Args:
        stored: any shape, C-contiguous, any real dtype and byte order.
        limits: the share of NaN and infinities that a volume may have.
        slope: of the linear rescale, finite.
        intercept: of the linear rescale, finite.
    """
    if stored.dtype == np.int16 and (slope, intercept) == (1.0, 0.0):
        return Converted(stored, False, finite_findings(0, stored.size, limits))
    values = stored.reshape(-1)
    voxels = np.empty(values.size, dtype=np.int16)
    fractional, lost = False, 0
    for first in range(0, values.size, _CHUNK):
        part = slice(first, first + _CHUNK)
        exact = values[part].astype(np.float64)
        if (slope, intercept) != (1.0, 0.0):
            exact *= slope
            exact += intercept
        if not np.isfinite(exact).all():
            absent = ~np.isfinite(exact)
            lost += int(np.count_nonzero(absent))
            exact[absent] = HU_MIN
        whole = np.rint(exact)
        exact -= whole
        fractional = fractional or max(exact.max(), -exact.min()) > _WHOLE
        voxels[part] = np.clip(whole, *_INT16, out=whole)
    findings = finite_findings(lost, values.size, limits)
    return Converted(voxels.reshape(stored.shape), fractional, findings)


def finite_findings(lost: int, total: int, limits: Limits) -> tuple[Finding, ...]:
    """The two checks of voxels that are NaN or infinite.

    Args:
        lost: number of such voxels.
        total: number of voxels.
        limits: the share that a volume may have.
    """
    share = lost / max(total, 1)
    counted = f"{lost} voxels"
    measured, limit = f"{share:.3%}", f"at most {limits.max_not_finite_share:.3%}"
    if lost == 0:
        return passed("hu.not_finite", counted, "none"), passed(
            "hu.mostly_not_finite", measured, limit
        )
    some = failed(
        "hu.not_finite",
        f"{lost} voxels are not finite and became {HU_MIN} HU",
        counted,
        "none",
    )
    if share <= limits.max_not_finite_share:
        return some, passed("hu.mostly_not_finite", measured, limit)
    reason = f"{measured} of the voxels are NaN or infinite, {limit} may be"
    return some, failed("hu.mostly_not_finite", reason, measured, limit)


def placed_at_centre(
    spacing: Sequence[float], shape: tuple[int, int, int], directions: str
) -> Affine:
    """The affine of a volume whose file states no orientation and whose card names one.

    Args:
        spacing: millimetres along (i, j, k).
        shape: voxels along (i, j, k).
        directions: where i, j and k grow to, for example ``LPS``.

    Returns:
        Index to RAS millimetres; the centre of the volume is the origin.
    """
    codes = nib.orientations.axcodes2ornt(tuple(directions))
    matrix = np.zeros((3, 3))
    for column, (row, sign) in enumerate(codes.astype(int)):
        matrix[row, column] = sign * spacing[column]
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = -matrix @ (np.array(shape) - 1) / 2
    return affine


def require_volume(shape: Sequence[int]) -> tuple[int, int, int]:
    """Drop trailing axes of length 1 and insist on three.

    Raises:
        VolumeError: ``volume.not_3d``.
    """
    sizes = [int(n) for n in shape]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise VolumeError(
            "volume.not_3d", f"{' x '.join(map(str, sizes))} voxels, a volume has three axes"
        )
    return sizes[0], sizes[1], sizes[2]
