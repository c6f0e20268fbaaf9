"""An enhanced multi-frame CT is the same volume as the series of its slices."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from prect.errors import VolumeError
from prect.ingest.readers.dicom import DicomReader, group_slices, read_slices
from prect.ingest.readers.dicom.headers import LEGACY_ENHANCED_CT_STORAGE
from prect.ingest.volume import Volume
from prect.manifests.limits import Limits
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.dicom_files import failures, header_in, write_enhanced

LIMITS = Limits()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(make_case(2, 1), tmp_path_factory.mktemp("enhanced") / "single", "dicom")


@pytest.fixture(scope="module")
def single(series: Path) -> Volume:
    return DicomReader().read(header_in(series))


def shuffled(count: int) -> list[int]:
    order = list(range(count))
    random.Random(1).shuffle(order)
    return order


def same(volume: Volume, single: Volume) -> None:
    np.testing.assert_array_equal(volume.voxels, single.voxels)
    np.testing.assert_array_equal(volume.affine, single.affine)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless])
def test_frames_in_any_order_are_the_volume_of_the_series(
    series: Path, single: Volume, tmp_path: Path, syntax: str
) -> None:
    order = shuffled(len(single.voxels))
    path = write_enhanced(series, tmp_path / "e.dcm", syntax=syntax, order=order)
    reader = DicomReader()
    header = reader.read_header([path], LIMITS)
    assert header.paths == (path,)
    assert header.kind == "original"
    assert not failures(header.findings)
    volume = reader.read(header)
    same(volume, single)
    assert volume.source_digest == reader.digest([path])
    assert not failures(volume.findings)


def test_a_legacy_converted_object_is_read_too(
    series: Path, single: Volume, tmp_path: Path
) -> None:
    path = write_enhanced(series, tmp_path / "l.dcm", sop_class=LEGACY_ENHANCED_CT_STORAGE)
    reader = DicomReader()
    same(reader.read(reader.read_header([path], LIMITS)), single)


def test_each_frame_has_its_own_rescale(series: Path, single: Volume, tmp_path: Path) -> None:
    slopes = [1 + n % 2 for n in range(len(single.voxels))]
    path = write_enhanced(series, tmp_path / "s.dcm", slopes=slopes)
    reader = DicomReader()
    voxels = reader.read(reader.read_header([path], LIMITS)).voxels
    np.testing.assert_array_equal(voxels[::2], single.voxels[::2])
    assert np.abs(voxels[1::2].astype(int) - single.voxels[1::2]).max() == 1


def test_a_volume_may_be_spread_over_several_objects(
    series: Path, single: Volume, tmp_path: Path
) -> None:
    """Frames alternate between two files, each of which is read once."""
    parts = []
    for part in range(2):
        folder = tmp_path / str(part)
        folder.mkdir()
        for path in sorted(series.iterdir())[part::2]:
            shutil.copy(path, folder)
        parts.append(write_enhanced(folder, tmp_path / f"{part}.dcm"))
    reader = DicomReader()
    header = reader.read_header(parts[::-1], LIMITS)
    assert sorted(header.paths) == parts
    volume = reader.read(header)
    same(volume, single)
    assert volume.source_digest == reader.digest(header.paths)


def test_one_frame_gone_is_a_missing_slice(series: Path, tmp_path: Path) -> None:
    count = len(list(series.iterdir()))
    order = [n for n in range(count) if n != 11]
    header = DicomReader().read_header(
        [write_enhanced(series, tmp_path / "e.dcm", order=order)], LIMITS
    )
    assert list(failures(header.findings)) == ["dicom.missing_slices"]


def test_two_phases_in_one_object_are_rejected(series: Path, tmp_path: Path) -> None:
    def edit(data: Dataset) -> None:
        frames = data.PerFrameFunctionalGroupsSequence
        for n in range(len(frames) // 2):
            frames[2 * n + 1].PlanePositionSequence = frames[2 * n].PlanePositionSequence

    reader = DicomReader()
    header = reader.read_header([write_enhanced(series, tmp_path / "p.dcm", edit=edit)], LIMITS)
    with pytest.raises(VolumeError, match=r"dicom.several_phases"):
        reader.read(header)


@pytest.mark.parametrize("keyword", ["FrameAcquisitionNumber", "TemporalPositionIndex"])
def test_frames_of_two_acquisitions_between_each_other_are_rejected(
    series: Path, tmp_path: Path, keyword: str
) -> None:
    def edit(data: Dataset) -> None:
        for n, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
            content = Dataset()
            setattr(content, keyword, n % 2 + 1)
            frame.FrameContentSequence = Items([content])

    header = DicomReader().read_header(
        [write_enhanced(series, tmp_path / "a.dcm", edit=edit)], LIMITS
    )
    assert list(failures(header.findings)) == ["dicom.several_phases"]


def test_frames_that_hold_no_hu_are_rejected(series: Path, tmp_path: Path) -> None:
    def edit(data: Dataset) -> None:
        for frame in data.PerFrameFunctionalGroupsSequence:
            frame.PixelValueTransformationSequence[0].RescaleType = "Z_EFF"

    path = write_enhanced(series, tmp_path / "z.dcm", edit=edit)
    with pytest.raises(VolumeError, match=r"dicom.not_hu: rescale type Z_EFF"):
        DicomReader().read_header([path], LIMITS)


def test_a_file_with_frames_of_two_volumes_is_rejected(series: Path, tmp_path: Path) -> None:
    def edit(data: Dataset) -> None:
        for frame in data.PerFrameFunctionalGroupsSequence[::2]:
            frame.CTImageFrameTypeSequence[0].FrameType = ["DERIVED", "PRIMARY", "MPR", "NONE"]

    path = write_enhanced(series, tmp_path / "two.dcm", edit=edit)
    volumes = group_slices(read_slices(path))
    assert len(volumes) == 2
    for volume in volumes:
        with pytest.raises(VolumeError, match=r"dicom.mixed_frames"):
            DicomReader().header_of(volume, LIMITS)


def no_groups(data: Dataset) -> None:
    del data.PerFrameFunctionalGroupsSequence


def too_few_groups(data: Dataset) -> None:
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:-1]


@pytest.mark.parametrize("edit", [no_groups, too_few_groups])
def test_frames_without_functional_groups_are_a_damaged_header(
    series: Path, tmp_path: Path, edit: object
) -> None:
    path = write_enhanced(series, tmp_path / "d.dcm", edit=edit)  # type: ignore[arg-type]
    with pytest.raises(VolumeError, match=r"dicom.damaged_header.* frames"):
        read_slices(path)


def test_cut_off_pixels_are_noticed(series: Path, tmp_path: Path) -> None:
    path = write_enhanced(series, tmp_path / "c.dcm")
    path.write_bytes(path.read_bytes()[:-1000])
    reader = DicomReader()
    with pytest.raises(VolumeError, match=r"dicom.undecodable"):
        reader.read(reader.read_header([path], LIMITS))


OTHER_OBJECTS = {
    "1.2.840.10008.5.1.4.1.1.7.3": "dicom.secondary_capture",  # multi-frame grayscale word
    "1.2.840.10008.5.1.4.1.1.2": "dicom.multi_frame",  # a CT image has one frame
    "1.2.840.10008.5.1.4.1.1.66.4": "dicom.not_ct",  # segmentation
}


@pytest.mark.parametrize(("sop_class", "code"), OTHER_OBJECTS.items())
def test_other_multi_frame_objects_are_rejected_by_name(
    series: Path, tmp_path: Path, sop_class: str, code: str
) -> None:
    def edit(data: Dataset) -> None:
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID(sop_class)

    (part,) = read_slices(write_enhanced(series, tmp_path / "o.dcm", edit=edit))
    with pytest.raises(VolumeError) as error:
        DicomReader().header_of([part], LIMITS)
    assert error.value.code == code


def test_the_real_enhanced_ct_has_two_frames(shared_data: Path) -> None:
    slices = read_slices(shared_data / "pydicom" / "eCT_Supplemental.dcm")
    assert [part.position for part in slices] == [(99.5, -301.5, -159.0), (99.5, -301.5, -149.0)]
    assert {part.image_type for part in slices} == {("DERIVED", "PRIMARY", "PERFUSION", "RCBF")}
    with pytest.raises(VolumeError, match=r"geometry.too_small"):
        DicomReader().header_of(slices, LIMITS)
    volume = DicomReader().read(DicomReader().header_of(slices, Limits(min_voxels=1)))
    assert volume.shape == (512, 512, 2)
    assert volume.affine[:3, 3].tolist() == [-99.5, 301.5, -149.0]  # the normal points down
