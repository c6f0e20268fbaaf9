"""Files with one thing wrong, one for every way in which NIfTI, MetaImage, NRRD and values fail."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from tests.ingest.volumes import body_volume

LPS_2MM = np.diag([-2.0, -2.0, 2.0, 1.0])


def nifti_bytes(voxels: NDArray[Any], *, endian: Literal["<", ">"] = "<", **fields: Any) -> bytes:
    """A NIfTI-1 file around (k, j, i) voxels, 2 mm LPS; ``fields`` overwrite the header's.

    Made by hand, since libraries mend what is to be wrong here.
    """
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_shape(voxels.T.shape)
    if not voxels.dtype.names:
        header.set_data_dtype(voxels.dtype)
    header.set_sform(LPS_2MM, code=1)
    header.set_qform(LPS_2MM, code=1)
    header["pixdim"][1:4] = 2.0
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    header["magic"] = b"n+1"
    for name, value in fields.items():
        header[name] = value
    stored = voxels.astype(voxels.dtype.newbyteorder(endian), copy=False)
    return bytes(header.binaryblock) + bytes(4) + stored.tobytes()


def write_sform(affine: NDArray[np.float64], voxels: NDArray[Any] | None = None) -> bytes:
    """A NIfTI-1 file whose sform is ``affine``, whatever that is, and with pixdim as its norms."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return nifti_bytes(
        body_volume() if voxels is None else voxels,
        srow_x=affine[0],
        srow_y=affine[1],
        srow_z=affine[2],
        qform_code=0,
        pixdim=[1.0, *spacing, 0.0, 0.0, 0.0, 0.0],
    )


def sheared(degrees: float) -> NDArray[np.float64]:
    """2 mm LPS with the slices displaced along j, as a gantry tilt does."""
    affine = LPS_2MM.copy()
    angle = np.deg2rad(degrees)
    affine[:3, 2] = [0.0, 2.0 * np.sin(angle), 2.0 * np.cos(angle)]
    return affine


def pixdim(i: float, j: float = 2.0, k: float = 2.0) -> list[float]:
    """The field with the sign of the qform before and unused axes behind."""
    return [1.0, i, j, k, 0.0, 0.0, 0.0, 0.0]


def damaged(content: bytes, place: int) -> bytes:
    """One byte inverted."""
    data = bytearray(content)
    data[place] ^= 0xFF
    return bytes(data)


def with_nan(share: float) -> NDArray[np.float32]:
    """A volume of which so many voxels are NaN, the first ones."""
    voxels = body_volume().astype(np.float32)
    voxels.reshape(-1)[: int(share * voxels.size)] = np.nan
    return voxels


class Fault(NamedTuple):
    """The content of a file and what becomes of it."""

    content: bytes
    verdict: str
    code: str


def nifti_faults() -> dict[str, Fault]:
    """By file name; those of a compressed stream end in ``.gz``."""
    hu = body_volume()
    sound = nifti_bytes(hu)
    packed = gzip.compress(sound, 1)
    noise = np.random.default_rng(0).integers(0, 256, hu.shape)
    labels = (hu > -500).astype(np.uint8) * 3
    no_codes: dict[str, Any] = {"sform_code": 0, "qform_code": 0}
    rgb: dict[str, Any] = {"datatype": 128, "bitpix": 24}
    scaled = LPS_2MM * [[1e-3], [1e-3], [1e-3], [1]]
    faults = {
        "empty.nii": (b"", "nifti.not_nifti"),
        "empty.nii.gz": (b"", "nifti.not_nifti"),
        "text.nii": (b"x" * 5000, "nifti.not_nifti"),
        "analyze.nii": (nifti_bytes(hu, magic=b""), "nifti.not_nifti"),
        "half_of_pair.nii": (nifti_bytes(hu, magic=b"ni1"), "nifti.pair"),
        "truncated.nii": (sound[:-5000], "nifti.truncated"),
        "truncated.nii.gz": (packed[: len(packed) // 2], "nifti.truncated"),
        "no_trailer.nii.gz": (packed[:-8], "nifti.truncated"),
        "short_inside.nii.gz": (gzip.compress(sound[:-5000]), "nifti.truncated"),
        "claims_terabytes.nii.gz": (
            gzip.compress(nifti_bytes(hu, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])),
            "nifti.truncated",
        ),
        "crc.nii.gz": (damaged(packed, -6), "nifti.checksum"),
        "length.nii.gz": (damaged(packed, -2), "nifti.checksum"),
        "flipped.nii.gz": (damaged(packed, len(packed) // 2), "nifti.checksum"),
        "codes.nii.gz": (gzip.compress(nifti_bytes(hu, **no_codes)), "nifti.no_orientation"),
        "zero_pixdim.nii": (nifti_bytes(hu, pixdim=pixdim(0.0)), "nifti.pixdim"),
        "nan_pixdim.nii": (nifti_bytes(hu, pixdim=pixdim(2.0, np.nan)), "nifti.pixdim"),
        "negative_pixdim.nii": (nifti_bytes(hu, pixdim=pixdim(2.0, 2.0, -2.0)), "nifti.pixdim"),
        "conflict.nii": (nifti_bytes(hu, pixdim=pixdim(2.0, 2.0, 5.0)), "nifti.spacing_conflict"),
        "metres.nii": (write_sform(scaled), "geometry.spacing"),
        "flat_sform.nii": (nifti_bytes(hu, srow_x=[0.0] * 4), "nifti.spacing_conflict"),
        "nan_sform.nii": (nifti_bytes(hu, srow_x=[np.nan] * 4), "geometry.invalid"),
        "quaternion.nii": (
            nifti_bytes(hu, sform_code=0, quatern_b=0.9, quatern_c=0.9),
            "nifti.qform",
        ),
        "huge_shear.nii": (write_sform(sheared(40.0)), "geometry.shear_too_large"),
        "time.nii": (nifti_bytes(np.stack([hu, hu])), "volume.not_3d"),
        "flat.nii": (nifti_bytes(hu[0]), "volume.not_3d"),
        "rgb.nii": (nifti_bytes(hu.view(np.uint8), **rgb), "content.color"),
        "complex.nii": (nifti_bytes(hu.astype(np.complex64)), "content.complex"),
        "datatype.nii": (nifti_bytes(hu, datatype=77), "nifti.datatype"),
        "bits.nii": (nifti_bytes(hu, datatype=1, bitpix=1), "nifti.datatype"),
        "dim.nii": (nifti_bytes(hu, dim=[3, 40, -36, 32, 1, 1, 1, 1]), "nifti.dim"),
        "offset.nii": (nifti_bytes(hu, vox_offset=4.0), "nifti.vox_offset"),
        "intercept.nii": (nifti_bytes(hu, scl_inter=np.nan), "nifti.rescale"),
        "mostly_nan.nii": (nifti_bytes(with_nan(0.2)), "hu.mostly_not_finite"),
        "thin.nii": (nifti_bytes(body_volume((40, 36, 8))), "geometry.too_small"),
        "narrow.nii": (write_sform(LPS_2MM * [[0.3], [0.3], [1], [1]]), "geometry.small_extent"),
        "constant.nii": (nifti_bytes(np.full_like(hu, -1000)), "content.constant"),
        "classes.nii": (nifti_bytes(labels), "content.label_map"),
        "float_classes.nii": (nifti_bytes(labels.astype(np.float32)), "content.label_map"),
        "wide_classes.nii": (nifti_bytes(labels.astype(np.int32) * 40000), "content.label_map"),
        "eight_bits.nii": (nifti_bytes(noise.astype(np.uint8)), "hu.not_calibrated"),
        "zero_to_one.nii": (nifti_bytes((noise / 255).astype(np.float32)), "hu.not_calibrated"),
        "below_one_half.nii": (nifti_bytes((noise / 999).astype(np.float32)), "hu.not_calibrated"),
        "swapped.nii": (nifti_bytes(hu.byteswap()), "hu.out_of_range"),
        "rescaled_twice.nii": (nifti_bytes(hu - 1024), "hu.rescaled_twice"),
        "never_rescaled.nii": (nifti_bytes(hu + 1024), "hu.not_rescaled"),
        "never_and_unsigned.nii": (
            nifti_bytes(np.maximum(hu + 1024, 0).astype(np.uint16)),
            "hu.not_rescaled",
        ),
        "swapped_and_clipped.nii": (
            nifti_bytes(np.where(hu < -500, -1024, hu).astype(np.int16).byteswap()),
            "hu.out_of_range",
        ),
        "never_signed.nii": (nifti_bytes(hu.view(np.uint16)), "hu.out_of_range"),
        "far_off.nii": (nifti_bytes(hu + 350), "hu.air_offset"),
        "no_tissue.nii": (nifti_bytes(np.minimum(hu, -700) - 50), "hu.no_soft_tissue"),
    }
    return {name: Fault(content, "rejected", code) for name, (content, code) in faults.items()}


def nifti_oddities() -> dict[str, Fault]:
    """Files that are usable: their verdict, and the code of the remark."""
    hu = body_volume()
    sound = nifti_bytes(hu)
    moved: dict[str, Any] = {"qoffset_x": 5.0}
    oddities = {
        "sound.nii.gz": (gzip.compress(sound, 1), ""),
        "big_endian.nii": (nifti_bytes(hu, endian=">"), ""),
        "double.nii": (nifti_bytes(hu.astype(np.float64)), ""),
        "int32.nii": (nifti_bytes(hu.astype(np.int32)), ""),
        "time_of_one.nii": (nifti_bytes(hu[None]), ""),
        "two_members.nii.gz": (gzip.compress(sound[:900]) + gzip.compress(sound[900:]), ""),
        "padded.nii.gz": (gzip.compress(sound, 1) + bytes(512), ""),
        "tiny_shear.nii": (write_sform(sheared(0.05)), ""),
        "no_qfac.nii": (nifti_bytes(hu, pixdim=[0.0, *pixdim(2.0)[1:]], sform_code=0), ""),
        "few_nan.nii": (nifti_bytes(with_nan(0.001)), "hu.not_finite"),
        "shear.nii": (write_sform(sheared(12.0)), "geometry.shear"),
        "qform.nii": (nifti_bytes(hu, **moved), "nifti.qform_sform"),
        "bad_qform.nii": (nifti_bytes(hu, quatern_b=0.9, quatern_c=0.9), "nifti.qform_sform"),
        "slope_zero.nii": (nifti_bytes(hu, scl_slope=0.0, scl_inter=-1024.0), "nifti.slope_zero"),
        "unit_metre.nii": (nifti_bytes(hu, xyzt_units=1), "nifti.units"),
        "longer.nii": (sound + b"more", "nifti.trailing_bytes"),
        "junk.nii.gz": (gzip.compress(sound, 1) + b"junk", "nifti.trailing_bytes"),
        "unit_spacing.nii": (write_sform(np.diag([-1.0, -1, 1, 1])), "geometry.unit_spacing"),
    }
    return {
        name: Fault(content, "warned" if code else "accepted", code)
        for name, (content, code) in oddities.items()
    }


METAIMAGE = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 2 2 2
DimSize = 40 36 32
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 40 36 32
space directions: (2,0,0) (0,2,0) (0,0,2)
endian: little
encoding: raw
space origin: (0,0,0)

"""


def replaced(text: str, *changes: tuple[str, str]) -> bytes:
    """The header with parts exchanged; each must be there."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text.encode()


def without(text: str, field: str) -> bytes:
    """The header without the line of a field."""
    return "".join(line for line in text.splitlines(True) if not line.startswith(field)).encode()


PACKED_MHA = ("CompressedData = False", "CompressedData = True")
PACKED_NRRD = ("encoding: raw", "encoding: gzip")


def itk_faults() -> dict[str, Fault]:
    """Single files of MetaImage and NRRD that are rejected."""
    hu = body_volume()
    raw = hu.tobytes()
    deflated, gzipped = zlib.compress(raw, 1), gzip.compress(raw, 1)
    mha, nrrd = METAIMAGE.encode(), NRRD.encode()
    packed_mha, packed_nrrd = replaced(METAIMAGE, PACKED_MHA), replaced(NRRD, PACKED_NRRD)
    middle = len(deflated) // 2
    big = ("MSB = False", "MSB = True")
    unreadable = "metaimage.unreadable"
    faults = {
        "empty.mha": (b"", "metaimage.unreadable"),
        "empty.nrrd": (b"", "nrrd.unreadable"),
        "other.mha": (nrrd + raw, "metaimage.unreadable"),
        "sizes.mha": (without(METAIMAGE, "DimSize") + raw, "metaimage.unreadable"),
        "offset.mha": (replaced(METAIMAGE, ("Offset = 0 0 0", "Offset = 0")) + raw, unreadable),
        "comma.mha": (replaced(METAIMAGE, ("2 2 2", "2,0 2,0 2,0")) + raw, unreadable),
        "sizes.nrrd": (without(NRRD, "sizes") + raw, "nrrd.unreadable"),
        "short.mha": (mha + raw[:-100], "metaimage.truncated"),
        "short.nrrd": (nrrd + raw[:-100], "nrrd.truncated"),
        "long.mha": (mha + raw + raw[:80], "metaimage.data_size"),
        "long.nrrd": (nrrd + raw + raw[:80], "nrrd.data_size"),
        "rows.mha": (replaced(METAIMAGE, ("40 36", "39 36")) + raw, "metaimage.data_size"),
        "cut_stream.mha": (packed_mha + deflated[:middle], "metaimage.truncated"),
        "cut_stream.nrrd": (packed_nrrd + gzipped[:middle], "nrrd.truncated"),
        "flipped.mha": (packed_mha + damaged(deflated, middle), "metaimage.checksum"),
        "flipped.nrrd": (packed_nrrd + damaged(gzipped, middle), "nrrd.checksum"),
        "adler.mha": (packed_mha + damaged(deflated, -2), "metaimage.checksum"),
        "crc.nrrd": (packed_nrrd + damaged(gzipped, -6), "nrrd.checksum"),
        "spacing.mha": (without(METAIMAGE, "ElementSpacing") + raw, "geometry.no_spacing"),
        "zero.mha": (replaced(METAIMAGE, ("2 2 2", "0 2 2")) + raw, "geometry.invalid"),
        "negative.mha": (replaced(METAIMAGE, ("2 2 2", "-2 2 2")) + raw, "geometry.invalid"),
        "list.mha": (replaced(METAIMAGE, ("LOCAL", "LIST 2")), "metaimage.file_list"),
        "pattern.mha": (replaced(METAIMAGE, ("LOCAL", "%03d.raw 1 9 1")), "metaimage.file_list"),
        "escape.mhd": (replaced(METAIMAGE, ("LOCAL", "../ct.raw")), "metaimage.outside_folder"),
        "absolute.mhd": (replaced(METAIMAGE, ("LOCAL", "/ct.raw")), "metaimage.outside_folder"),
        "escape.nhdr": (NRRD.strip().encode() + b"\ndata file: ../ct.raw\n", "nrrd.outside_folder"),
        "missing.mhd": (replaced(METAIMAGE, ("LOCAL", "gone.raw")), "metaimage.missing_data"),
        "missing.nhdr": (NRRD.strip().encode() + b"\ndata file: gone.raw\n", "nrrd.missing_data"),
        "list.nhdr": (NRRD.strip().encode() + b"\ndata file: LIST\na.raw\n", "nrrd.file_list"),
        "text.mha": (
            replaced(METAIMAGE, ("BinaryData = T", "BinaryData = F")),
            "metaimage.encoding",
        ),
        "text.nrrd": (replaced(NRRD, ("encoding: raw", "encoding: ascii")), "nrrd.encoding"),
        "skip.nrrd": (replaced(NRRD, ("endian", "byte skip: 4\nendian")) + raw, "nrrd.encoding"),
        "space.nrrd": (without(NRRD, "space: ") + raw, "nrrd.unreadable"),
        "scanner.nrrd": (
            replaced(NRRD, ("left-posterior-superior", "scanner-xyz")) + raw,
            "nrrd.no_orientation",
        ),
        "shear.nrrd": (
            replaced(NRRD, ("(0,0,2)", "(0,2.5,2)")) + raw,
            "geometry.shear_too_large",
        ),
        "swapped.mha": (replaced(METAIMAGE, big) + raw, "hu.out_of_range"),
        "swapped.nrrd": (replaced(NRRD, ("little", "big")) + raw, "hu.out_of_range"),
        "vector.mha": (
            replaced(METAIMAGE, ("MET_SHORT", "MET_SHORT\nElementNumberOfChannels = 2")) + raw * 2,
            "content.color",
        ),
        "metres.mha": (replaced(METAIMAGE, ("2 2 2", ".002 .002 .002")) + raw, "geometry.spacing"),
        "classes.mha": (mha + (hu > 0).astype(np.int16).tobytes(), "content.label_map"),
    }
    return {name: Fault(content, "rejected", code) for name, (content, code) in faults.items()}


def itk_oddities() -> dict[str, Fault]:
    """Single files of MetaImage and NRRD that are usable."""
    hu = body_volume()
    raw = hu.tobytes()
    big = hu.astype(">i2").tobytes()
    no_matrix = without(METAIMAGE, "TransformMatrix")
    tilted = replaced(NRRD, ("(0,0,2)", "(0,0.5,2)"))
    units = replaced(NRRD, ("endian", 'space units: "m" "m" "m"\nendian'))
    oddities = {
        "sound.mha": (METAIMAGE.encode() + raw, ""),
        "upper.MHA": (METAIMAGE.encode() + raw, ""),
        "sound.nrrd": (NRRD.encode() + raw, ""),
        "packed.mha": (replaced(METAIMAGE, PACKED_MHA) + zlib.compress(raw, 1), ""),
        "packed.nrrd": (replaced(NRRD, PACKED_NRRD) + gzip.compress(raw, 1), ""),
        "big_endian.mha": (replaced(METAIMAGE, ("MSB = False", "MSB = True")) + big, ""),
        "big_endian.nrrd": (replaced(NRRD, ("little", "big")) + big, ""),
        "no_matrix.mha": (no_matrix + raw, "metaimage.no_orientation"),
        "tilted.nrrd": (tilted + raw, "geometry.shear"),
        "units.nrrd": (units + raw, "nrrd.units"),
        "units.mha": (
            replaced(METAIMAGE, ("ElementType", "DistanceUnits = cm\nElementType")) + raw,
            "metaimage.units",
        ),
    }
    return {
        name: Fault(content, "warned" if code else "accepted", code)
        for name, (content, code) in oddities.items()
    }


ALL: tuple[Callable[[], dict[str, Fault]], ...] = (
    nifti_faults,
    nifti_oddities,
    itk_faults,
    itk_oddities,
)


def all_files() -> dict[str, Fault]:
    """Every fault and oddity, by file name."""
    return {name: fault for make in ALL for name, fault in make().items()}


def write_pair(folder: Path, name: str = "ct") -> Path:
    """A sound MetaImage in two files, ``.mhd`` and ``.raw``; returns the header's path."""
    image = sitk.GetImageFromArray(body_volume())
    image.SetSpacing((2, 2, 2))
    sitk.WriteImage(image, str(folder / f"{name}.mhd"))
    return folder / f"{name}.mhd"
