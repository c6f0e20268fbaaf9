"""Headers are read without pixels, whatever is wrong with them, and tell no names."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pydicom
import pytest
from pydicom.tag import Tag

from prect.errors import VolumeError
from prect.ingest.readers.dicom import DicomReader, read_slices
from prect.manifests.limits import Limits
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.dicom_files import slices_in

CASE = make_case(2, 0)
LIMITS = Limits()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound series of a phantom, slices in the order of their names."""
    return write_case(CASE, tmp_path_factory.mktemp("series") / "sound", "dicom")


def test_headers_travel_between_processes_in_few_bytes(series: Path) -> None:
    slices = slices_in(series)
    packed = pickle.dumps(slices)
    assert pickle.loads(packed) == slices
    assert len(packed) < 300 * len(slices)


NAME = "Doe^Jane"
TEXT_TAGS = (
    "ImageType",
    "Modality",
    "PhotometricInterpretation",
    "SOPClassUID",
    "ImagePositionPatient",
    "RescaleSlope",
    "NumberOfFrames",
    "InstanceNumber",
    "SliceThickness",
    "LossyImageCompression",
)


@pytest.mark.parametrize("keyword", TEXT_TAGS)
def test_no_text_of_a_header_gets_into_findings_or_errors(
    series: Path, tmp_path: Path, keyword: str
) -> None:
    path = sorted(series.iterdir())[0]
    data = pydicom.dcmread(path)
    tag = Tag(keyword)
    data[tag] = pydicom.dataelem.RawDataElement(tag, "LO", 8, NAME.encode(), 0, False, True)
    buffer = io.BytesIO()
    data.save_as(buffer)
    (tmp_path / "named.dcm").write_bytes(buffer.getvalue())
    reader = DicomReader()
    try:
        header = reader.read_header([tmp_path / "named.dcm"], Limits(min_voxels=1))
    except VolumeError as error:
        told = str(error)
    else:
        told = repr(header.findings)
    assert told
    assert "doe" not in told.lower()


def test_a_header_longer_than_what_is_read_first_is_read_whole(
    series: Path, tmp_path: Path
) -> None:
    path = sorted(series.iterdir())[0]
    data = pydicom.dcmread(path)
    block = data.private_block(0x0009, "prect test", create=True)
    block.add_new(0x01, "OB", bytes(100_000))
    data.save_as(tmp_path / "long.dcm")
    (part,) = read_slices(tmp_path / "long.dcm")
    (truth,) = read_slices(path)
    assert (part.position, part.rescale, part.padding) == (truth.position, truth.rescale, ())


@pytest.mark.parametrize("content", [b"", b"text", bytes(200), b"\x08\x00" + bytes(300)])
def test_what_is_no_dicom_has_no_slices(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert read_slices(tmp_path / "file") == ()


def test_a_directory_of_a_medium_has_no_slices(shared_data: Path) -> None:
    folder = shared_data / "dcm_qa_ct" / "Philips_localizer"
    assert read_slices(folder / "DIRFILE") == ()


@pytest.mark.parametrize("length", [133, 200, 500, 900])
def test_a_header_that_ends_early_is_damaged(series: Path, tmp_path: Path, length: int) -> None:
    whole = sorted(series.iterdir())[0].read_bytes()
    assert whole.index(b"\x28\x00\x10\x00US") > 900  # Rows
    (tmp_path / "cut.dcm").write_bytes(whole[:length])
    with pytest.raises(VolumeError, match=r"dicom.damaged_header"):
        read_slices(tmp_path / "cut.dcm")
