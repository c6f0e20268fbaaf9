"""One thing wrong in some slices of a series: it has the verdict of its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.dicom_files import edited, outcome


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound series of a phantom, slices in the order of their names."""
    return write_case(make_case(2, 0), tmp_path_factory.mktemp("series") / "sound", "dicom")


def every_second_gone(number: int, data: pydicom.Dataset) -> bool:
    data.InstanceNumber = number // 2 + 1
    return number % 2 == 0


def every_second_gone_numbers_kept(number: int, data: pydicom.Dataset) -> bool:
    data.SliceThickness = "7.5"  # overlapping slices: the thickness does not tell
    return number % 2 == 0


def one_gone(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    return number != 20


def mixed_spacing(number: int, data: pydicom.Dataset) -> bool:
    if number >= 20:
        data.PixelSpacing = [1.0, 1.0]
    return True


def one_monochrome1(number: int, data: pydicom.Dataset) -> bool:
    if number == 20:
        data.PhotometricInterpretation = "MONOCHROME1"
    return True


def one_without_rescale(number: int, data: pydicom.Dataset) -> bool:
    if number == 20:
        del data.RescaleIntercept
    return True


def without_rescale(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    del data.RescaleIntercept, data.RescaleSlope
    return True


def slope_zero(number: int, data: pydicom.Dataset) -> bool:
    if number == 20:
        data.RescaleSlope = "0"
    return True


def one_without_position(number: int, data: pydicom.Dataset) -> bool:
    if number == 20:
        del data.ImagePositionPatient
    return True


def impossible_orientation(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]
    return True


def spacing_zero(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.PixelSpacing = [0, 0]
    return True


def jittered(number: int, data: pydicom.Dataset) -> bool:
    shift = 1e-4 * number if number % 2 else 0.0
    data.ImagePositionPatient = [round(float(v) + shift, 6) for v in data.ImagePositionPatient]
    return True


def lossy(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.LossyImageCompression = "01"
    return True


def lossy_8bit(number: int, data: pydicom.Dataset) -> bool:
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    return lossy(number, data)


def reformatted(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["DERIVED", "SECONDARY", "MPR"]
    return True


def localizer(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return True


def magnetic(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.Modality = "MR"
    return True


def captured(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    return True


def colored(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.SamplesPerPixel = 3
    data.PhotometricInterpretation = "RGB"
    return True


def cut_off_pixels(number: int, data: pydicom.Dataset) -> bool:
    if number == 40:
        data.PixelData = data.PixelData[:-2000]
    return True


def wider_pixels(number: int, data: pydicom.Dataset) -> bool:
    """32 bits a pixel where the header says 16."""
    if number == 40:
        data.PixelData += data.PixelData
    return True


def with_text(data: pydicom.Dataset, keyword: str, text: str) -> None:
    """An attribute as it may lie in a file, whatever its type allows."""
    tag = Tag(keyword)
    raw = text.encode()
    data[tag] = RawDataElement(tag, "DS", len(raw), raw, 0, False, True)


def thickness_with_comma(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    with_text(data, "SliceThickness", "2,81")
    return True


def hints_of_no_number(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    for keyword in ("InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier"):
        with_text(data, keyword, "1,5 ")
    for keyword in ("PixelPaddingValue", "FrameOfReferenceUID", "LossyImageCompression"):
        with_text(data, keyword, "oddity")
    return True


def alternating_acquisitions(number: int, data: pydicom.Dataset) -> bool:
    data.AcquisitionNumber = number % 2 + 1
    return True


def alternating_times(number: int, data: pydicom.Dataset) -> bool:
    data.TemporalPositionIdentifier = number % 2 + 1
    return True


def numbered_in_pairs(number: int, data: pydicom.Dataset) -> bool:
    data.InstanceNumber = number // 2 + 1
    return True


def one_acquisition_after_the_other(number: int, data: pydicom.Dataset) -> bool:
    data.AcquisitionNumber = number // 30
    data.InstanceNumber = number % 30 + 1
    return True


def projection(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "THICK_MIP"]
    return True


def iodine(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "IODINE NO WATER"]
    return True


def atomic_number(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["DERIVED", "SECONDARY", "Z_EFF"]
    return True


def density(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.RescaleType = "MGML"
    return True


def unspecified(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.RescaleType = "US"
    return True


def compressed(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "COMPRESSED"]
    return True


def derived(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    data.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    return True


def no_modality(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
    del data.Modality
    return True


FAULTS: dict[str, tuple[Callable[[int, pydicom.Dataset], bool], str, tuple[str, ...]]] = {
    "every second": (every_second_gone, "", ("dicom.gap_above_thickness",)),
    "every second, numbers kept": (every_second_gone_numbers_kept, "", ("dicom.instance_stride",)),
    "one gone": (one_gone, "dicom.missing_slices", ()),
    "mixed spacing": (mixed_spacing, "dicom.mixed_spacing", ()),
    "monochrome1": (one_monochrome1, "dicom.photometric", ()),
    "one without rescale": (one_without_rescale, "dicom.mixed_rescale", ()),
    "no rescale": (without_rescale, "", ("dicom.no_rescale",)),
    "slope 0": (slope_zero, "dicom.bad_rescale", ()),
    "no position": (one_without_position, "dicom.no_geometry", ()),
    "impossible orientation": (impossible_orientation, "dicom.no_geometry", ()),
    "spacing 0": (spacing_zero, "dicom.no_geometry", ()),
    "jitter": (jittered, "", ()),
    "lossy": (lossy, "", ("dicom.lossy",)),
    "lossy 8 bit": (lossy_8bit, "dicom.lossy_8bit", ()),
    "reformat": (reformatted, "", ("dicom.reformat",)),
    "localizer": (localizer, "dicom.localizer", ()),
    "magnetic resonance": (magnetic, "dicom.not_ct", ()),
    "secondary capture": (captured, "dicom.secondary_capture", ()),
    "color": (colored, "content.color", ()),
    "cut off pixels": (cut_off_pixels, "dicom.undecodable", ()),
    "wider pixels": (wider_pixels, "dicom.undecodable", ()),
    "no modality": (no_modality, "", ()),
    "thickness with a comma": (thickness_with_comma, "", ()),
    "hints of no number": (hints_of_no_number, "", ()),
    "alternating acquisitions": (alternating_acquisitions, "dicom.several_phases", ()),
    "alternating times": (alternating_times, "dicom.several_phases", ()),
    "numbered in pairs": (numbered_in_pairs, "dicom.several_phases", ()),
    "one acquisition after the other": (one_acquisition_after_the_other, "", ()),
    "projection": (projection, "dicom.projection", ()),
    "iodine": (iodine, "dicom.not_hu", ()),
    "atomic number": (atomic_number, "dicom.not_hu", ()),
    "density": (density, "dicom.not_hu", ()),
    "unspecified rescale type": (unspecified, "", ()),
    "compressed": (compressed, "", ()),
    "derived": (derived, "", ("dicom.derived",)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_some_slices_is_named(series: Path, tmp_path: Path, name: str) -> None:
    edit, code, warned = FAULTS[name]
    assert outcome(edited(series, tmp_path / "faulty", edit)) == (code, warned)
