"""NIfTI-1 and NIfTI-2, ``.nii`` and ``.nii.gz``.

The file is read to its end before anything is believed: a truncated NIfTI otherwise reads as
a volume whose lower part is water, and a broken gzip checksum as sound data. Where fields of
the header contradict each other the sform goes before the qform, and what was taken is said.

Field names and their meaning are those of ``nifti1.h`` and ``nifti2.h``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.base import (
    Header,
    digest_files,
    placed_at_centre,
    require_volume,
    to_hu,
)
from prect.ingest.readers.stream import Damage, is_compressed, read_content, read_head
from prect.ingest.volume import Affine, Volume, clean_affine, spacing_of
from prect.manifests.limits import Limits

_DAMAGE = Damage(truncated="nifti.truncated", checksum="nifti.checksum")
_KINDS: tuple[tuple[Any, int], ...] = ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540))
_SPACING_CONFLICT = 0.01
"""Relative difference of pixdim and sform above which the spacing is not believed."""
_SPACING_ROUNDING = 1e-4
"""Relative difference of pixdim and sform that the float32 of both can bring about."""
_SAME_PLACE = 0.5
"""Share of a voxel that qform and sform may put a corner of the volume apart."""
_UNITS = {0: "not stated", 1: "metre", 2: "millimetre", 3: "micrometre"}


@dataclass(frozen=True)
class _Decoding:
    """How the voxels lie in the content, and what turns them into HU."""

    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    limits: Limits


class NiftiReader:
    """Reads a NIfTI file; `read_header` reads no more than its first kilobytes."""

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:
        raw = _raw_header(paths[0])
        dtype = _dtype(raw)
        shape = _shape(raw)
        offset = _offset(raw)
        slope, intercept, findings = _rescale(raw)
        affine, remarks = _geometry(raw, shape, limits)
        return Header(
            shape,
            clean_affine(affine),
            tuple(paths),
            findings=(*findings, *remarks),
            slices=(_Decoding(dtype, offset, slope, intercept, limits),),
        )

    def read(self, header: Header) -> Volume:
        (decoding,) = header.slices
        path = header.paths[0]
        i, j, k = header.shape
        size = decoding.offset + i * j * k * decoding.dtype.itemsize
        digest = hashlib.blake2b(digest_size=16)
        content = read_content(path, size, _DAMAGE, digest, compressed=is_compressed(path))
        stored = np.frombuffer(content.data, decoding.dtype, i * j * k, decoding.offset)
        hu = to_hu(
            np.require(stored.reshape(k, j, i), requirements="A"),
            decoding.limits,
            slope=decoding.slope,
            intercept=decoding.intercept,
        )
        return Volume(
            hu.voxels,
            header.affine,
            "nifti",
            digest.hexdigest(),
            hu.fractional,
            (*header.findings, _trailing_bytes(content.excess), *hu.findings),
        )

    def digest(self, paths: Sequence[Path]) -> str:
        return digest_files(paths)


def _raw_header(path: Path) -> Any:
    """nibabel's header; its fields are as in the file, unchecked.

    Raises:
        VolumeError: ``nifti.not_nifti``, ``nifti.pair``, or a compressed stream that is
            damaged at its start.
    """
    head = read_head(path, 1024, _DAMAGE)
    for kind, size in _KINDS:
        lengths = (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big"))
        if len(head) >= size and size in lengths:
            raw = kind(head[:size], check=False)
            break
    else:
        raise VolumeError("nifti.not_nifti", f"no NIfTI header in the first {len(head)} bytes")
    magic = bytes(raw["magic"].item())[:2]
    if magic == b"ni":
        raise VolumeError("nifti.pair", "the header belongs to a pair of files, .hdr and .img")
    if magic != b"n+":
        raise VolumeError("nifti.not_nifti", "the header lacks the magic word of NIfTI")
    return raw


def _dtype(raw: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError) as error:
        code = int(raw["datatype"])
        raise VolumeError("nifti.datatype", f"data type {code} is none of NIfTI's") from error
    if dtype.names:
        raise VolumeError("content.color", "voxels are RGB triples, not numbers")
    if dtype.kind == "c":
        raise VolumeError("content.complex", "voxels are complex numbers")
    if dtype.itemsize == 0 or dtype.kind not in "iuf":
        raise VolumeError("nifti.datatype", f"voxels of type {dtype} are no numbers")
    return dtype


def _shape(raw: Any) -> tuple[int, int, int]:
    dim = [int(n) for n in raw["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise VolumeError("nifti.dim", f"dim {dim} describes no volume")
    return require_volume(dim[1 : dim[0] + 1])


def _offset(raw: Any) -> int:
    offset, least = float(raw["vox_offset"]), int(raw["sizeof_hdr"])
    if not math.isfinite(offset) or offset < least or not offset.is_integer():
        raise VolumeError(
            "nifti.vox_offset", f"voxels start at byte {offset:g}, inside the {least} of the header"
        )
    return int(offset)


def _rescale(raw: Any) -> tuple[float, float, tuple[Finding, ...]]:
    """Slope and intercept, and what is odd about them."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    measured = f"slope {slope:g}, intercept {intercept:g}"
    usable = math.isfinite(slope) and slope != 0
    if math.isinf(slope) or (usable and not math.isfinite(intercept)):
        raise VolumeError("nifti.rescale", f"{measured}: the values have no meaning")
    if usable:
        return slope, intercept, (passed("nifti.slope_zero", measured, "a slope that is not 0"),)
    if slope == 0 and intercept != 0 and math.isfinite(intercept):
        reason = (
            f"{measured}: both are ignored, as the standard says, but some programs add the "
            "intercept all the same"
        )
        return 1.0, 0.0, (failed("nifti.slope_zero", reason, measured, "a slope that is not 0"),)
    return 1.0, 0.0, (passed("nifti.slope_zero", "no rescale", "a slope that is not 0"),)


def _geometry(
    raw: Any, shape: tuple[int, int, int], limits: Limits
) -> tuple[Affine, tuple[Finding, ...]]:
    """Index (i, j, k) to RAS millimetres, and what was found on the way to it."""
    pixdim = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise VolumeError(
            "nifti.pixdim", f"pixdim {_listed(pixdim)}, a spacing must be a positive number"
        )
    checked = (
        passed("nifti.pixdim", f"{_listed(pixdim)} mm", "positive numbers"),
        _units(raw),
    )
    codes = f"sform code {int(raw['sform_code'])}, qform code {int(raw['qform_code'])}"
    stated = passed("nifti.no_orientation", codes, "one above 0")
    if int(raw["sform_code"]) > 0:
        affine, same = _sform(raw, pixdim)
        return affine, (*checked, stated, same, _agreement(raw, affine, shape))
    if int(raw["qform_code"]) > 0:
        return _qform(raw), (*checked, stated)
    directions = limits.unknown_orientation
    if directions == "reject":
        raise VolumeError(
            "nifti.no_orientation", "sform and qform codes are both 0, the orientation is unknown"
        )
    reason = f"the file states no orientation; {directions} is taken, as the card says"
    assumed = failed("nifti.assumed_orientation", reason, codes, directions)
    return placed_at_centre(pixdim.tolist(), shape, directions), (*checked, assumed)


def _units(raw: Any) -> Finding:
    """Millimetres are taken whatever is stated: a spacing of 1.5 "metres" is in millimetres."""
    unit = _UNITS.get(int(raw["xyzt_units"]) & 7, "unknown")
    if unit not in ("metre", "micrometre"):
        return passed("nifti.units", unit, "millimetre")
    return failed(
        "nifti.units",
        f"the header states {unit}s; its spacing is taken as millimetres",
        unit,
        "millimetre",
    )


def _sform(raw: Any, pixdim: NDArray[np.float64]) -> tuple[Affine, Finding]:
    """The affine of the sform, with the spacing of pixdim, and how far these two differ.

    Raises:
        VolumeError: ``nifti.spacing_conflict``.
    """
    affine: Affine = np.asarray(raw.get_sform(), dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    difference = float(np.abs(spacing / pixdim - 1).max())
    if difference > _SPACING_CONFLICT:
        raise VolumeError(
            "nifti.spacing_conflict",
            f"pixdim says {_listed(pixdim)} mm, the sform {_listed(spacing)} mm",
        )
    measured, limit = f"{difference:.2%} apart", f"at most {_SPACING_ROUNDING:.2%}"
    if difference > _SPACING_ROUNDING:
        reason = f"pixdim and sform are {measured}, {limit} is rounding; the sform is used"
        return affine, failed("nifti.spacing_differs", reason, measured, limit)
    # float32 rows of the sform carry rounding that pixdim does not; the directions are theirs.
    with np.errstate(invalid="ignore"):  # NaN is found by `clean_affine`
        affine[:3, :3] *= pixdim / spacing
    return affine, passed("nifti.spacing_conflict", measured, f"at most {_SPACING_CONFLICT:.0%}")


def _qform(raw: Any) -> Affine:
    """The affine of quaternion, offset and pixdim.

    Raises:
        VolumeError: ``nifti.qform``.
    """
    raw = raw.copy()
    if float(raw["pixdim"][0]) not in (-1.0, 1.0):
        raw["pixdim"][0] = 1.0  # nifti1.h: anything else counts as 1
    try:
        affine: Affine = np.asarray(raw.get_qform(), dtype=np.float64)
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise VolumeError("nifti.qform", f"the quaternion is not one: {error}") from error
    if not np.isfinite(affine).all():
        raise VolumeError("nifti.qform", "quaternion or offset are not finite")
    return affine


def _agreement(raw: Any, sform: Affine, shape: tuple[int, int, int]) -> Finding:
    """Whether the qform, where there is one, puts every corner where the sform does."""
    allowed = _SAME_PLACE * float(spacing_of(sform).min())
    limit = f"at most {allowed:.3g} mm"
    if int(raw["qform_code"]) <= 0:
        return passed("nifti.qform_sform", "no qform", limit)
    try:
        qform = _qform(raw)
    except VolumeError as error:
        reason = f"the qform is damaged ({error.reason}); the sform is used"
        return failed("nifti.qform_sform", reason, "no valid qform", limit)
    corners = np.array(list(product(*[(0, n - 1) for n in shape])), dtype=np.float64)
    apart = nib.affines.apply_affine(sform - qform, corners)
    apart_mm = float(np.linalg.norm(apart, axis=1).max())
    measured = f"{apart_mm:.3g} mm"
    if apart_mm <= allowed:
        return passed("nifti.qform_sform", measured, limit)
    reason = f"qform and sform put a corner {measured} apart, {limit} is rounding; sform is used"
    return failed("nifti.qform_sform", reason, measured, limit)


def _trailing_bytes(excess: int) -> Finding:
    measured = f"{excess} bytes"
    if excess == 0:
        return passed("nifti.trailing_bytes", measured, "none")
    reason = f"{measured} follow the last voxel; they are ignored"
    return failed("nifti.trailing_bytes", reason, measured, "none")


def _listed(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.5g}" for value in values)
