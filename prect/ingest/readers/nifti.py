"""NIfTI-1 and NIfTI-2, ``.nii`` and ``.nii.gz``.

The file is decompressed whole before anything is believed: a truncated NIfTI otherwise
reads as a volume whose lower part is water, and a broken gzip checksum as sound data.
"""

from __future__ import annotations

from collections.abc import Sequence
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.readers.base import Header, digest_files, require_volume, to_hu
from prect.ingest.settings import Limits
from prect.ingest.volume import Affine, Volume, clean_affine

_SPACING_CONFLICT = 0.01
"""Relative difference of pixdim and sform above which the spacing is not believed."""


class NiftiReader:
    """Reads a NIfTI file; geometry is nibabel's, the sform before the qform."""

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:  # noqa: ARG002
        header, _ = _load(paths[0])
        shape = require_volume(header.get_data_shape())
        if header.get_data_dtype().names:
            raise VolumeError("content.color", "voxels are RGB triples, not numbers")
        if header.get_data_dtype().kind == "c":
            raise VolumeError("content.complex", "voxels are complex numbers")
        affine, warnings = _geometry(header)
        if float(header["scl_slope"]) == 0 and float(header["scl_inter"]) != 0:
            remark = (
                "the slope is 0 and the intercept is not; both are ignored, as the standard says"
            )
            warnings = (*warnings, ("nifti.slope_zero", remark))
        return Header(shape, clean_affine(affine), tuple(paths), warnings=warnings)

    def read_sample(self, header: Header) -> NDArray[Any]:
        return _values(header)

    def read(self, header: Header) -> Volume:
        voxels, warnings = to_hu(_values(header))
        return Volume(voxels, header.affine, "nifti", header.warnings + warnings)

    def digest(self, header: Header) -> str:
        return digest_files(header.paths)


def _load(path: Path) -> tuple[Any, bytes]:
    """The raw header and the whole decompressed file."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = igzip.decompress(data)
    except (EOFError, BadGzipFile, IsalError) as error:  # type: ignore[misc]
        raise VolumeError("nifti.truncated", f"the gzip stream is damaged: {error}") from error
    except OSError as error:
        raise VolumeError("file.unreadable", f"cannot be read: {error.strerror}") from error
    kinds: tuple[tuple[Any, int], ...] = ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540))
    for kind, size in kinds:
        if len(data) >= size and size in (
            int.from_bytes(data[:4], "little"),
            int.from_bytes(data[:4], "big"),
        ):
            header = kind(data[:size], check=False)
            break
    else:
        raise VolumeError("nifti.not_nifti", f"no NIfTI header in {len(data)} bytes")
    try:
        dtype = header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError) as error:
        raise VolumeError("nifti.datatype", f"unknown data type: {error}") from error
    offset = int(header["vox_offset"])
    needed = offset + int(np.prod([int(n) for n in header.get_data_shape()])) * dtype.itemsize
    if len(data) < needed:
        raise VolumeError("nifti.truncated", f"{len(data)} bytes of {needed} are there")
    return header, data


def _geometry(header: Any) -> tuple[Affine, tuple[tuple[str, str], ...]]:
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(pixdim).all() or (pixdim <= 0).any():
        raise VolumeError(
            "nifti.pixdim", f"pixdim {pixdim.tolist()}, a spacing must be a positive number"
        )
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform <= 0 and qform <= 0:
        raise VolumeError(
            "nifti.no_orientation", "sform and qform codes are both 0, the orientation is unknown"
        )
    try:
        from_qform = header.get_qform() if qform > 0 else None
    except nib.spatialimages.HeaderDataError as error:
        raise VolumeError("nifti.qform", f"the quaternion is not one: {error}") from error
    if sform <= 0:
        assert from_qform is not None
        return from_qform, ()
    affine: Affine = np.asarray(header.get_sform(), dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(spacing / pixdim - 1).max() > _SPACING_CONFLICT:
        raise VolumeError(
            "nifti.spacing_conflict",
            f"pixdim says {np.round(pixdim, 4).tolist()} mm, "
            f"the sform {np.round(spacing, 4).tolist()} mm",
        )
    # float32 rows of the sform carry rounding that pixdim does not; the directions are theirs.
    affine[:3, :3] *= pixdim / spacing
    if from_qform is not None and not np.allclose(from_qform, affine, atol=0.5 * pixdim.min()):
        return affine, (("nifti.qform_sform", "qform and sform disagree; the sform is used"),)
    return affine, ()


def _values(header: Header) -> NDArray[Any]:
    """(k, j, i) values after slope and intercept; integers where these are 1 and 0."""
    raw, data = _load(header.paths[0])
    dtype = raw.get_data_dtype()
    i, j, k = header.shape
    stored = np.frombuffer(data, dtype, i * j * k, int(raw["vox_offset"])).reshape(k, j, i)
    slope, intercept = raw.get_slope_inter()
    if slope is None or (slope == 1 and not intercept):
        return stored.astype(dtype.newbyteorder("="), copy=False)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept or 0)
