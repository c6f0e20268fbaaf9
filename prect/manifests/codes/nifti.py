"""Codes of NIfTI files."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

_COPY_AGAIN = "Copy or download the file again."
_HEADER = (
    Code(
        "nifti.not_nifti",
        Effect.REJECT,
        "The file is named NIfTI and does not begin with a NIfTI header.",
        _COPY_AGAIN,
    ),
    Code(
        "nifti.pair",
        Effect.REJECT,
        "One half of a pair of files, .hdr and .img.",
        "Save it as a single .nii.gz.",
    ),
    Code(
        "nifti.datatype",
        Effect.REJECT,
        "The header names a data type that NIfTI does not have, or one bit a voxel.",
    ),
    Code("nifti.dim", Effect.REJECT, "The header's dim field describes no volume."),
    Code(
        "nifti.vox_offset",
        Effect.REJECT,
        "The header says that the voxels start inside the header.",
    ),
    Code("nifti.rescale", Effect.REJECT, "The intercept is NaN or infinite."),
    Code(
        "nifti.slope_zero",
        Effect.WARN,
        "The slope is 0, which means no rescale, and yet there is an intercept; programs differ "
        "in what they make of it. Neither is applied.",
        "Save the file again with slope 1.",
    ),
)
_GEOMETRY = (
    Code(
        "nifti.pixdim",
        Effect.REJECT,
        "A spacing in pixdim is zero, negative, NaN or infinite.",
        "Convert the file again from its source.",
    ),
    Code(
        "nifti.units",
        Effect.WARN,
        "The header states metres or micrometres. Millimetres are taken all the same, since such "
        "files hold millimetres in practice; `geometry.spacing` rejects those that do not.",
    ),
    Code(
        "nifti.no_orientation",
        Effect.REJECT,
        "The codes of sform and qform are both 0: nothing says left from right.",
        "When the publisher says how the voxels lie, name it in the card.",
        ("unknown_orientation",),
    ),
    Code(
        "nifti.assumed_orientation",
        Effect.WARN,
        "The codes of sform and qform are both 0; the directions are those that the card names.",
        limits=("unknown_orientation",),
    ),
    Code(
        "nifti.spacing_differs",
        Effect.WARN,
        "pixdim and sform give spacings that differ by more than rounding; the sform is used.",
        "Find out which one is right, and correct the other.",
    ),
    Code(
        "nifti.spacing_conflict",
        Effect.REJECT,
        "pixdim and sform differ in spacing by more than 1 %.",
        "Convert the file again from its source.",
    ),
    Code("nifti.qform", Effect.REJECT, "The only orientation is a qform, and it is no rotation."),
    Code(
        "nifti.qform_sform",
        Effect.WARN,
        "qform and sform put a corner of the volume more than half a voxel apart, or the qform "
        "is damaged. The sform is used.",
    ),
)
_CONTENT = (
    Code(
        "nifti.truncated",
        Effect.REJECT,
        "The file, or its compressed stream, ends before the last voxel.",
        _COPY_AGAIN,
    ),
    Code(
        "nifti.checksum",
        Effect.REJECT,
        "The compressed stream is damaged: it cannot be decoded, or its checksum or length "
        "does not match.",
        _COPY_AGAIN,
    ),
    Code(
        "nifti.trailing_bytes",
        Effect.WARN,
        "Bytes follow the last voxel; they are ignored.",
    ),
)
CODES = _HEADER + _GEOMETRY + _CONTENT
