"""Cases on disk: NIfTI, DICOM, MetaImage and NRRD, with the same voxels and geometry in each.

Bytes are reproducible: no time stamps, no random identifiers.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from prect.errors import ConfigError
from prect.phantom.case import PhantomCase
from prect.phantom.dicom import write_dicom
from prect.phantom.grid import Grid

Format = Literal["nifti", "dicom", "mha", "nrrd"]
FORMATS: tuple[Format, ...] = ("nifti", "dicom", "mha", "nrrd")

_SUFFIXES = {"nifti": ".nii.gz", "dicom": "", "mha": ".mha", "nrrd": ".nrrd"}

# Noise hardly compresses; higher levels cost several times the time for a few per cent.
_COMPRESSION_LEVEL = 1


def file_name(case_name: str, format: Format) -> str:
    """Name of a case's file, or of its folder for DICOM."""
    return case_name + _SUFFIXES[format]


def write_case(case: PhantomCase, path_stem: Path, format: Format) -> Path:
    """Write the voxels of a case.

    Args:
        case: what to write.
        path_stem: path without suffix; its folder must exist.
        format: NIfTI adds ``.nii.gz``, MetaImage ``.mha`` and NRRD ``.nrrd``; DICOM makes a
            folder with one file a slice.

    Returns:
        The file or folder written.

    Raises:
        ConfigError: the format is unknown.
        OSError: the file cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    path = path_stem.with_name(file_name(path_stem.name, format))
    if format == "nifti":
        _write_nifti(case.hu, case.grid, path)
    elif format == "dicom":
        write_dicom(case, path)
    else:
        _write_itk(case.hu, case.grid, path)
    return path


def write_labels(case: PhantomCase, path: Path) -> None:
    """Write the organ labels of a case as NIfTI, uint8, on the grid of its voxels."""
    _write_nifti(case.labels, case.grid, path)


def _write_nifti(
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.uint8], grid: Grid, path: Path
) -> None:
    """Write voxels (k, j, i) as gzipped NIfTI-1 with qform and sform both in code 1."""
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), grid.affine)
    image.header.set_data_dtype(voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    image.header["pixdim"][1:4] = grid.spacing
    # gzip keeps the name and the time of writing unless told otherwise.
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, raw, mtime=0) as stream,
    ):
        image.to_stream(stream)


def _write_itk(voxels: npt.NDArray[np.int16], grid: Grid, path: Path) -> None:
    """Write voxels (k, j, i) by SimpleITK, whose world is LPS."""
    image = sitk.GetImageFromArray(voxels)
    to_lps = np.array([[-1.0], [-1.0], [1.0]])
    image.SetSpacing(grid.spacing)
    image.SetOrigin([float(v) for v in (np.array(grid.origin) * to_lps[:, 0] + 0.0)])
    image.SetDirection([float(v) for v in (np.array(grid.direction) * to_lps + 0.0).ravel()])
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=_COMPRESSION_LEVEL)
