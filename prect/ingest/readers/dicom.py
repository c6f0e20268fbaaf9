"""One DICOM CT series: geometry from the positions of its slices, HU from each slice's rescale.

Geometry follows DICOM PS3.3 C.7.6.2.1.1: the position is the centre of the first voxel,
the orientation holds the directions of increasing column and row index, in LPS.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian

from prect.errors import VolumeError
from prect.ingest.readers.base import Header
from prect.ingest.settings import Limits
from prect.ingest.volume import LPS_TO_RAS, Volume, clean_affine

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE_PREFIX = "1.2.840.10008.5.1.4.1.1.7"
_LOSSY_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.53",
        "1.2.840.10008.1.2.4.55",
        "1.2.840.10008.1.2.4.81",
    }
)
_SAMPLE_SLICES = 9
_SAME_POSITION_MM = 0.01
_GAP_ABOVE_THICKNESS = 1.5
"""Contiguous slices with every second one missing have a gap of twice their thickness."""
_TILT_DEGREES = 0.1
"""Smaller angles between the slice axis and the normal are rounding of the positions."""

HEADER_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "LossyImageCompression",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "InstanceNumber",
    "RescaleSlope",
    "RescaleIntercept",
]
"""All that is read of a header; an allow-list, so that no name or date gets any further."""


@dataclass(frozen=True)
class Slice:
    """The fields of one file that judging a series needs."""

    path: Path
    bytes: int
    instance_uid: str
    series_uid: str
    patient_id: str
    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits: int
    lossy: bool
    position: tuple[float, ...]
    """ImagePositionPatient, LPS millimetres; empty when absent or not three numbers."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient, six cosines; empty when absent or not six numbers."""
    pixel_spacing: tuple[float, ...]
    """Millimetres between rows (j), then between columns (i)."""
    thickness: float
    instance_number: int | None
    rescale: tuple[float, float] | None
    """Slope and intercept; ``None`` when either is absent."""

    @property
    def group(self) -> tuple[object, ...]:
        """What all slices of one volume share, their orientation apart."""
        return (
            self.series_uid,
            self.modality,
            self.sop_class,
            self.image_type[:3],
            self.rows,
            self.columns,
            self.samples,
        )

    def parallel_to(self, other: Slice) -> bool:
        """Whether two slices have the same orientation, up to rounding in the files."""
        mine, theirs = np.array(self.orientation), np.array(other.orientation)
        return mine.shape == theirs.shape and bool(np.allclose(mine, theirs, atol=1e-3))


def read_slice(path: Path) -> Slice | None:
    """Read the header of one file, without its pixels.

    Returns:
        ``None`` when the file is not DICOM or describes no object of a series (a DICOMDIR).

    Raises:
        VolumeError: ``dicom.damaged_header``, it is DICOM and its header cannot be read.
        OSError: the file cannot be read.
    """
    part10 = _is_part10(path)
    try:
        with warnings.catch_warnings():
            # pydicom warns of every oddity of every file; what matters is judged later.
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=HEADER_TAGS, force=not part10
            )
            if "SOPClassUID" not in data and "Modality" not in data and "Rows" not in data:
                if part10 and not _is_directory(data):
                    raise VolumeError("dicom.damaged_header", "the header ends before the image")
                return None
            return _slice(path, data)
    except (VolumeError, OSError) as error:
        if isinstance(error, VolumeError) or error.errno is not None:
            raise
        raise VolumeError("dicom.damaged_header", _sentence(error)) from error
    except Exception as error:  # a flipped byte surfaces as whatever the parser trips over
        if not part10:
            return None
        raise VolumeError("dicom.damaged_header", _sentence(error)) from error


def _is_part10(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _is_directory(data: pydicom.Dataset) -> bool:
    return str(getattr(data.file_meta, "MediaStorageSOPClassUID", "")) == DIRECTORY_STORAGE


def _slice(path: Path, data: pydicom.Dataset) -> Slice:
    syntax = str(getattr(data.file_meta, "TransferSyntaxUID", ""))
    sop_class = str(
        data.get("SOPClassUID") or getattr(data.file_meta, "MediaStorageSOPClassUID", "")
    )
    modality = str(data.get("Modality") or "")
    if not modality and sop_class in (CT_IMAGE_STORAGE, ENHANCED_CT_STORAGE):
        modality = "CT"
    number = data.get("InstanceNumber")
    return Slice(
        path=path,
        bytes=path.stat().st_size,
        instance_uid=str(data.get("SOPInstanceUID") or ""),
        series_uid=str(data.get("SeriesInstanceUID") or ""),
        patient_id=str(data.get("PatientID") or ""),
        sop_class=sop_class,
        modality=modality,
        image_type=tuple(str(v).strip().upper() for v in _many(data.get("ImageType"))),
        rows=int(data.get("Rows") or 0),
        columns=int(data.get("Columns") or 0),
        frames=int(data.get("NumberOfFrames") or 1),
        samples=int(data.get("SamplesPerPixel") or 1),
        photometric=str(data.get("PhotometricInterpretation") or ""),
        bits=int(data.get("BitsAllocated") or 0),
        lossy=str(data.get("LossyImageCompression") or "00") == "01" or syntax in _LOSSY_SYNTAXES,
        position=_numbers(data.get("ImagePositionPatient"), 3),
        orientation=_numbers(data.get("ImageOrientationPatient"), 6),
        pixel_spacing=_numbers(data.get("PixelSpacing"), 2),
        thickness=float(data.get("SliceThickness") or 0),
        instance_number=None if number is None else int(number),
        rescale=_rescale(data),
    )


def _rescale(data: pydicom.Dataset) -> tuple[float, float] | None:
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    if slope is None or intercept is None or "" in (slope, intercept):
        return None
    return float(slope), float(intercept)


def _many(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return [value] if isinstance(value, str) else list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in _many(value) if v is not None)
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()


def _reject_foreign(first: Slice) -> None:
    """What is no axial CT image at all."""
    name = "\\".join(first.image_type) or "absent"
    if first.modality != "CT":
        raise VolumeError("dicom.not_ct", f"modality {first.modality or 'absent'}, CT is wanted")
    if first.sop_class == ENHANCED_CT_STORAGE or first.frames > 1:
        raise VolumeError("dicom.multi_frame", "multi-frame objects cannot be read yet")
    if first.sop_class.startswith(SECONDARY_CAPTURE_PREFIX):
        raise VolumeError("dicom.secondary_capture", "a secondary capture, not a CT image")
    if first.sop_class not in (CT_IMAGE_STORAGE, ""):
        raise VolumeError("dicom.not_ct", f"SOP class {first.sop_class} is not CT Image Storage")
    if "LOCALIZER" in first.image_type or "SCOUT" in first.image_type:
        raise VolumeError("dicom.localizer", f"image type {name}: a localizer")
    if first.samples != 1:
        raise VolumeError("content.color", f"{first.samples} numbers a pixel, CT has one")
    if first.photometric != "MONOCHROME2":
        raise VolumeError(
            "dicom.photometric", f"photometric interpretation {first.photometric or 'absent'}"
        )
    if first.lossy and first.bits <= 8:
        raise VolumeError("dicom.lossy", "8 bits with lossy compression")
    if not (first.position and first.orientation and first.pixel_spacing):
        raise VolumeError(
            "dicom.no_geometry", "position, orientation or pixel spacing is absent or damaged"
        )


def _reject_mixed(slices: Sequence[Slice]) -> None:
    """What differs between slices and must not."""
    first = slices[0]
    if any(not np.allclose(s.pixel_spacing, first.pixel_spacing, rtol=1e-3) for s in slices):
        raise VolumeError("dicom.mixed_spacing", "slices differ in pixel spacing")
    if len({s.rescale is None for s in slices}) > 1:
        raise VolumeError("dicom.mixed_rescale", "some slices have no rescale slope and intercept")


def _without_copies(slices: Sequence[Slice]) -> list[Slice]:
    """One slice for each instance: a file that lies in the folder twice counts once."""
    kept: dict[tuple[str, int, tuple[float, ...]], Slice] = {}
    for number, part in enumerate(slices):
        key = (part.instance_uid or f"#{number}", part.bytes, part.position)
        kept.setdefault(key, part)
    return list(kept.values())


def _order(slices: Sequence[Slice], limits: Limits) -> tuple[list[Slice], NDArray[np.float64]]:
    """Slices sorted along their normal, and their positions (n, 3) in LPS millimetres.

    Raises:
        VolumeError: too few slices, two at one position, or gaps that are not uniform.
    """
    cosines = np.array(slices[0].orientation)
    normal = np.cross(cosines[:3], cosines[3:])
    ordered = sorted(slices, key=lambda s: (float(np.dot(s.position, normal)), s.instance_uid))
    positions = np.array([s.position for s in ordered])
    if len(ordered) < limits.min_voxels:
        raise VolumeError(
            "geometry.too_small",
            f"{len(ordered)} slices, at least {limits.min_voxels} are needed",
        )
    gaps = np.diff(positions @ normal)
    if gaps.min() < _SAME_POSITION_MM:
        same = int(np.count_nonzero(gaps < _SAME_POSITION_MM))
        raise VolumeError(
            "dicom.duplicate_positions", f"{same} of {len(ordered)} slices repeat a position"
        )
    median = float(np.median(gaps))
    tolerance = max(limits.gap_tolerance * median, limits.gap_tolerance_mm)
    if np.abs(gaps - median).max() > tolerance:
        raise VolumeError(
            "dicom.nonuniform_spacing",
            f"gaps between slices run from {gaps.min():.4g} to {gaps.max():.4g} mm, "
            f"each must lie within {tolerance:.3g} mm of their median {median:.4g} mm",
        )
    return ordered, positions


class DicomReader:
    """Reads one series whose files have already been grouped."""

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:
        try:
            slices = [s for s in map(read_slice, paths) if s is not None]
        except OSError as error:
            raise VolumeError("file.unreadable", f"cannot be read: {error.strerror}") from error
        if len(slices) != len(paths):
            raise VolumeError(
                "dicom.unreadable",
                f"{len(paths) - len(slices)} of {len(paths)} files have no header",
            )
        return self.header_of(slices, limits)

    def header_of(self, slices: Sequence[Slice], limits: Limits) -> Header:
        """The header of slices already read; they must share one `Slice.group`.

        Raises:
            VolumeError: the slices are no CT volume; see the module's reason codes.
        """
        for part in slices:
            _reject_foreign(part)
        _reject_mixed(slices)
        ordered, positions = _order(_without_copies(slices), limits)
        first = ordered[0]
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        strays = np.linalg.norm(
            positions - positions[0] - np.outer(np.arange(len(ordered)), step), axis=1
        )
        if strays.max() > max(0.5 * min(first.pixel_spacing), limits.gap_tolerance_mm):
            raise VolumeError(
                "dicom.crooked", f"slices stray {strays.max():.3g} mm from a straight line"
            )
        remarks = _remarks(ordered, step, limits)
        matrix = np.empty((3, 3))
        cosines = np.array(first.orientation)
        matrix[:, 0] = cosines[:3] * first.pixel_spacing[1]
        matrix[:, 1] = cosines[3:] * first.pixel_spacing[0]
        matrix[:, 2] = step
        affine = np.eye(4)
        affine[:3, :3] = LPS_TO_RAS @ matrix
        affine[:3, 3] = LPS_TO_RAS @ positions[0]
        return Header(
            shape=(first.columns, first.rows, len(ordered)),
            affine=clean_affine(affine),
            paths=tuple(s.path for s in ordered),
            patient_id=first.patient_id or None,
            series_id=first.series_uid or None,
            instances=tuple(_identity(s) for s in ordered),
            warnings=remarks,
        )

    def read_sample(self, header: Header) -> NDArray[Any]:
        count = min(_SAMPLE_SLICES, len(header.paths))
        chosen = np.linspace(0, len(header.paths) - 1, count).round().astype(int)
        return np.stack([decode_slice(header.paths[i], header.shape) for i in chosen])

    def read(self, header: Header) -> Volume:
        i, j, k = header.shape
        voxels = np.empty((k, j, i), dtype=np.int16)
        for number, path in enumerate(header.paths):
            voxels[number] = decode_slice(path, header.shape)
        return Volume(voxels, header.affine, "dicom", header.warnings)

    def digest(self, header: Header) -> str:
        """Digest of each slice's instance UID, file size, geometry and rescale, in slice order.

        An instance UID names one image for ever (DICOM PS3.5 section 9), so that the
        pixels need not be read twice; files without one are digested by content.
        """
        digest = hashlib.blake2b(digest_size=16)
        for path, identity in zip(header.paths, header.instances, strict=True):
            digest.update(identity.encode() + b"\x1e")
            if not identity.partition("\x1f")[0]:
                digest.update(path.read_bytes())
        return digest.hexdigest()


def _identity(part: Slice) -> str:
    """What makes a slice another one: its UID first, then all that its voxels depend on."""
    geometry = (part.position, part.orientation, part.pixel_spacing)
    return f"{part.instance_uid}\x1f{part.bytes}\x1f{geometry!r}\x1f{part.rescale!r}"


def _remarks(
    ordered: Sequence[Slice], step: NDArray[np.float64], limits: Limits
) -> tuple[tuple[str, str], ...]:
    remarks = []
    cosines = np.array(ordered[0].orientation)
    normal = np.cross(cosines[:3], cosines[3:])
    gap = float(np.linalg.norm(step))
    tilt = math.degrees(math.acos(min(1.0, abs(float(step @ normal)) / gap)))
    if tilt > limits.max_tilt_degrees:
        raise VolumeError(
            "dicom.gantry_tilt", f"tilt of {tilt:.1f} degrees, at most {limits.max_tilt_degrees:g}"
        )
    if tilt > _TILT_DEGREES:
        remarks.append(
            ("dicom.gantry_tilt", f"tilt of {tilt:.1f} degrees; resampled from the true positions")
        )
    numbers = [s.instance_number for s in ordered if s.instance_number is not None]
    if len(numbers) == len(ordered) and len(set(numbers)) == len(numbers):
        strides = np.abs(np.diff(numbers))
        if strides.min() > 1:
            remarks.append(
                (
                    "dicom.instance_stride",
                    f"instance numbers go up by {strides.min()}: slices may be missing",
                )
            )
    thickness = ordered[0].thickness
    if thickness > 0 and gap > _GAP_ABOVE_THICKNESS * thickness:
        remarks.append(
            ("dicom.gap_above_thickness", f"slices {gap:.3g} mm apart are {thickness:.3g} mm thick")
        )
    if ordered[0].rescale is None:
        remarks.append(("dicom.no_rescale", "no rescale slope and intercept; 1 and 0 are taken"))
    if any(s.lossy for s in ordered):
        remarks.append(("dicom.lossy", "lossy compression"))
    return tuple(remarks)


def decode_slice(path: Path, shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """(j, i) HU of one slice; padding becomes -1024 HU before anything interpolates over it."""
    try:
        data = pydicom.dcmread(path, force=not _is_part10(path))
        if "TransferSyntaxUID" not in data.file_meta:  # a file without the part 10 preamble
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        stored = data.pixel_array
    except OSError as error:
        raise VolumeError("file.unreadable", f"cannot be read: {error.strerror}") from error
    except Exception as error:  # decoders of ten syntaxes raise what they like
        raise VolumeError(
            "dicom.undecodable", f"a slice cannot be decoded: {_sentence(error)}"
        ) from error
    if stored.shape != (shape[1], shape[0]):
        raise VolumeError("dicom.undecodable", f"a slice decodes to shape {stored.shape}")
    slope, intercept = _rescale(data) or (1.0, 0.0)
    if slope == 1 and intercept.is_integer():
        values: NDArray[Any] = stored.astype(np.int32) + int(intercept)
    else:
        values = np.rint(stored.astype(np.float64) * slope + intercept)
    hu: NDArray[np.int16] = np.clip(values, -32768, 32767).astype(np.int16)
    padding = _padding(data, stored)
    if padding is not None:
        hu[padding] = -1024
    return hu


def _padding(data: pydicom.Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the stored value is padding (PS3.3 C.7.5.1.1.2), compared modulo 2^16.

    Scanners write 63536 for -2000: the tag's sign is not always that of the pixels.
    """
    value = data.get("PixelPaddingValue")
    if value is None:
        return None
    low = int(value) & 0xFFFF
    limit = data.get("PixelPaddingRangeLimit")
    if limit is None:
        same: NDArray[np.bool_] = (stored.astype(np.int32) & 0xFFFF) == low
        return same
    bounds = np.array([int(value), int(limit)])
    if stored.dtype.kind == "i":
        bounds = bounds.astype(np.uint16).astype(np.int16).astype(int)
    else:
        bounds = bounds & 0xFFFF
    between: NDArray[np.bool_] = (stored >= bounds.min()) & (stored <= bounds.max())
    return between


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
