"""DICOM files with known content: series with something edited, made-up stacks, enhanced CT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

from prect.errors import VolumeError
from prect.ingest.findings import Finding, first_rejection
from prect.ingest.readers.base import Header
from prect.ingest.readers.dicom import DicomReader, Slice, group_slices, read_slices
from prect.ingest.readers.dicom.headers import ENHANCED_CT_STORAGE
from prect.manifests.codes import CODES, Effect
from prect.manifests.limits import Limits

Edit = Callable[[int, pydicom.Dataset], bool]


def edited(series: Path, target: Path, edit: Edit) -> Path:
    """A copy of the series; ``edit(number, slice)`` says whether a slice stays."""
    target.mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        data = pydicom.dcmread(path)
        if edit(number, data):
            data.save_as(target / path.name)
    return target


def slices_in(folder: Path) -> list[Slice]:
    """The slices of all files of a folder."""
    return [part for path in sorted(folder.iterdir()) for part in read_slices(path)]


def header_in(folder: Path, limits: Limits | None = None) -> Header:
    """The header of the only volume in a folder."""
    (volume,) = group_slices(slices_in(folder))
    return DicomReader().header_of(volume, limits or Limits())


def failures(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Checks that did not pass, by code, in order."""
    return {finding.code: finding for finding in findings if not finding.passed}


def outcome(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Code that rejects the only volume of a folder, and the codes that warn of it."""
    try:
        volume = DicomReader().read(header_in(folder))
    except VolumeError as error:
        return error.code, ()
    rejection = first_rejection(volume.findings)
    warned = [c for c in failures(volume.findings) if CODES[c].effect is Effect.WARN]
    return rejection.code if rejection else "", tuple(warned)


def ct_slice(number: int = 0, **changes: Any) -> Slice:
    """A slice of a series of 2 mm, without a file."""
    fields: dict[str, Any] = {
        "path": Path(f"{number:04d}.dcm"),
        "bytes": 1000,
        "instance_uid": f"1.2.{number}",
        "series_uid": "1.2",
        "study_uid": "1",
        "patient_id": "P",
        "frame_of_reference": "1.3",
        "sop_class": "1.2.840.10008.5.1.4.1.1.2",
        "modality": "CT",
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "rows": 64,
        "columns": 48,
        "frames": 1,
        "frame": 0,
        "samples": 1,
        "photometric": "MONOCHROME2",
        "bits": 16,
        "lossy": False,
        "position": (-10.0, 5.0, 2.0 * number),
        "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "pixel_spacing": (0.8, 0.7),
        "thickness": 2.0,
        "acquisition": 1,
        "temporal_position": None,
        "instance_number": number + 1,
        "rescale": (1.0, -1024.0),
        "rescale_type": "HU",
        "padding": (),
    }
    return Slice(**(fields | changes))


def stack_of(depths: Sequence[float], thickness: float | Sequence[float], **changes: Any) -> Any:
    """Slices at the given depths (mm along z)."""
    each = [thickness] * len(depths) if isinstance(thickness, float) else thickness
    return [
        ct_slice(n, position=(-10.0, 5.0, depth), thickness=each[n], **changes)
        for n, depth in enumerate(depths)
    ]


def write_stack(
    template: Path,
    folder: Path,
    positions: NDArray[np.float64],
    images: NDArray[np.int16],
    **tags: Any,
) -> Path:
    """A series with the given first voxels and images.

    Args:
        template: a file whose other tags are taken.
        positions: (n, 3) LPS millimetres.
        images: (n, j, i) HU.
        tags: keywords and their values; a list of n values gives each slice its own.
    """
    folder.mkdir()
    data = pydicom.dcmread(template)
    data.Rows, data.Columns = images.shape[1:]
    for n, (position, image) in enumerate(zip(positions, images, strict=True)):
        data.SOPInstanceUID = generate_uid(entropy_srcs=[folder.name, str(n)])
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.InstanceNumber = n + 1
        data.ImagePositionPatient = [f"{v:.6f}" for v in position]
        for keyword, value in tags.items():
            setattr(
                data,
                keyword,
                value[n] if len(np.shape(value)) and len(value) == len(images) else value,
            )
        data.PixelData = (image.astype(np.int32) + 1024).astype("<u2").tobytes()
        data.save_as(folder / f"{n:04d}.dcm")
    return folder


def write_enhanced(
    series: Path,
    path: Path,
    *,
    syntax: str = ExplicitVRLittleEndian,
    sop_class: str = ENHANCED_CT_STORAGE,
    order: Sequence[int] | None = None,
    slopes: Sequence[int] | None = None,
    edit: Callable[[Dataset], None] | None = None,
) -> Path:
    """The slices of a series as one enhanced multi-frame CT.

    Args:
        series: folder of single images.
        path: file to write.
        syntax: transfer syntax; RLE is encoded by pydicom.
        sop_class: Enhanced CT, or Legacy Converted Enhanced CT, whose plane orientation and
            rescale are then kept in the unassigned groups of each frame.
        order: of the slices among the frames; as in the series when left out.
        slopes: rescale slope of each frame; stored values are divided by it.
        edit: changes the finished object.
    """
    slices = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    slices = [slices[n] for n in order or range(len(slices))]
    data = _without_image_tags(slices[0])
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    data.NumberOfFrames = len(slices)
    legacy = sop_class != ENHANCED_CT_STORAGE
    slopes = slopes or [1] * len(slices)
    frames = [_frame(s, slope, legacy) for s, slope in zip(slices, slopes, strict=True)]
    data.PerFrameFunctionalGroupsSequence = Items(frames)
    shared = Dataset()
    if not legacy:
        orientation = Dataset()
        orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
        shared.PlaneOrientationSequence = Items([orientation])
    data.SharedFunctionalGroupsSequence = Items([shared])
    stored = [s.pixel_array // slope for s, slope in zip(slices, slopes, strict=True)]
    data.PixelData = np.stack(stored).astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = UID(ExplicitVRLittleEndian)
    if edit is not None:
        edit(data)
    if syntax == RLELossless:
        data.compress(RLELossless)
    data.file_meta.TransferSyntaxUID = UID(syntax)
    data.save_as(path, enforce_file_format=True)
    return path


def _without_image_tags(first: pydicom.Dataset) -> Dataset:
    data = Dataset()
    data.update(first)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "SliceLocation",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "PixelData",
    ):
        del data[keyword]
    data.InstanceNumber = 1
    return data


def _frame(image: pydicom.Dataset, slope: int, legacy: bool) -> Dataset:
    position, orientation, measures, values, kind = (Dataset() for _ in range(5))
    position.ImagePositionPatient = image.ImagePositionPatient
    measures.PixelSpacing = image.PixelSpacing
    measures.SliceThickness = image.SliceThickness
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    values.RescaleSlope, values.RescaleIntercept = str(slope), image.RescaleIntercept
    frame = Dataset()
    frame.PlanePositionSequence = Items([position])
    frame.PixelMeasuresSequence = Items([measures])
    frame.CTImageFrameTypeSequence = Items([kind])
    if legacy:
        orientation.ImageOrientationPatient = image.ImageOrientationPatient
        orientation.update(values)
        frame.UnassignedPerFrameConvertedAttributesSequence = Items([orientation])
    else:
        frame.PixelValueTransformationSequence = Items([values])
    return frame
