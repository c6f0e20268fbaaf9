"""One series with one thing wrong: never accepted in silence, never the end of the ingest."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from prect.errors import ManifestError, VolumeError
from prect.ingest.readers.dicom import DicomReader, group_slices, read_slices
from prect.ingest.readers.dicom.pixels import decode_slices
from prect.ingest.readers.dicom.series import kind_of, stack_id
from prect.ingest.survey import survey
from prect.manifests.codes.dicom import CODES as DICOM_CODES
from prect.manifests.limits import Limits
from prect.manifests.sources import SourceRow
from prect.phantom import make_case
from prect.phantom.write import write_case
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.dicom_files import ct_slice, edited, failures, header_in, outcome, slices_in
from tests.ingest.volumes import body_volume, write_nifti

CASE = make_case(2, 0)
LIMITS = Limits()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound series of a phantom, slices in the order of their names."""
    return write_case(CASE, tmp_path_factory.mktemp("series") / "sound", "dicom")


def judge(folder: Path) -> list[SourceRow]:
    workspace = Workspace(folder.parent / f"{folder.name}-workspace")
    return list(survey("d", folder, workspace, salt=SALT, replace_all=True).rows)


def test_the_sound_series_is_one_accepted_volume(series: Path) -> None:
    (row,) = judge(series)
    assert (row.verdict, row.code, row.warnings) == ("accepted", "", ())
    assert len(row.members) == len(list(series.iterdir()))


def test_every_check_of_a_sound_series_is_told(series: Path) -> None:
    volume = DicomReader().read(header_in(series))
    assert all(finding.passed for finding in volume.findings)
    told = [finding.code for finding in volume.findings]
    assert len(told) == len(set(told))
    before_grouping = {
        "dicom.damaged_header",
        "dicom.unreadable",
        "dicom.mixed_series",
        "dicom.incomplete_folder",
        "dicom.mixed_frames",
    }
    assert {code.name for code in DICOM_CODES} - set(told) == before_grouping
    assert volume.format == "dicom"
    assert not volume.fractional


def test_orientations_that_differ_by_rounding_stay_one_volume(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        cosines = [float(v) for v in data.ImageOrientationPatient]
        cosines[1] += 0.0004995 + (1e-6 if number % 2 else 0)  # on both sides of a rounding edge
        data.ImageOrientationPatient = [round(c, 7) for c in cosines]
        return True

    (volume,) = group_slices(slices_in(edited(series, tmp_path / "edge", edit)))
    assert len(volume) == len(list(series.iterdir()))


GROUPING: dict[str, dict[str, Any]] = {
    "orientation": {"orientation": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)},
    "patient": {"patient_id": "Q"},
    "study": {"study_uid": "2"},
    "series": {"series_uid": "1.3"},
    "frame of reference": {"frame_of_reference": "1.4"},
    "rows": {"rows": 65},
    "columns": {"columns": 49},
    "class": {"sop_class": "1.2.840.10008.5.1.4.1.1.7"},
    "image type": {"image_type": ("DERIVED", "PRIMARY", "AXIAL")},
    "modality": {"modality": "MR"},
}


@pytest.mark.parametrize("name", GROUPING)
def test_what_a_volume_shares_tells_the_volumes_of_a_folder_apart(name: str) -> None:
    ours = [ct_slice(n) for n in range(4)]
    theirs = [ct_slice(n + 4, **GROUPING[name]) for n in range(4)]
    mixed = [part for pair in zip(ours, theirs, strict=True) for part in pair]
    assert group_slices(mixed) == [tuple(ours), tuple(theirs)]


@pytest.mark.parametrize("keyword", ["patient_id", "study_uid"])
def test_an_id_that_differs_in_every_slice_of_a_series_does_not_count(keyword: str) -> None:
    slices = [ct_slice(n, **{keyword: str(n)}) for n in range(20)]
    assert len(group_slices(slices)) == 1
    assert len(group_slices([replace(part, series_uid="") for part in slices])) == 20
    assert len(group_slices([*slices, replace(slices[0], instance_uid="1.2.99")])) == 20


def test_the_stack_holds_no_id() -> None:
    ids: dict[str, Any] = {
        "patient_id": "Q",
        "study_uid": "2",
        "series_uid": "3",
        "frame_of_reference": "4",
    }
    assert stack_id(ct_slice(**ids)) == stack_id(ct_slice())


def test_two_patients_under_no_series_are_two_volumes(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        data.SeriesInstanceUID = data.StudyInstanceUID = ""
        data.PatientID = f"P{number % 2}"
        return True

    folder = edited(series, tmp_path / "two", edit)
    assert [len(volume) for volume in group_slices(slices_in(folder))] == [42, 41]
    assert [len(row.members) for row in judge(folder)] == [42, 41]


def test_a_fourth_value_of_the_image_type_does_not_split_a_volume() -> None:
    types = [("ORIGINAL", "PRIMARY", "AXIAL"), ("ORIGINAL", "PRIMARY", "AXIAL", "ADD")]
    assert len(group_slices([ct_slice(n, image_type=types[n % 2]) for n in range(4)])) == 1


def test_files_of_two_volumes_are_refused_as_one(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        if number % 2:
            data.SeriesInstanceUID = "1.2.3"
        return True

    paths = sorted(edited(series, tmp_path / "two", edit).iterdir())
    with pytest.raises(VolumeError, match=r"dicom.mixed_series: .* 2 volumes"):
        DicomReader().read_header(paths, LIMITS)


KINDS = {
    ("ORIGINAL", "PRIMARY", "AXIAL"): "original",
    ("ORIGINAL", "PRIMARY", "AXIAL", "HELIX"): "original",
    ("ORIGINAL", "PRIMARY", "VOLUME", "NONE"): "original",
    ("ORIGINAL", "SECONDARY", "AXIAL"): "derived",
    ("DERIVED", "PRIMARY", "AXIAL"): "derived",
    ("DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"): "reformat",
    ("DERIVED", "SECONDARY", "AXIAL", "CSA MPR"): "reformat",
    ("ORIGINAL", "PRIMARY", "AXIAL", "COMPRESSED"): "original",
    ("DERIVED", "PRIMARY", "AXIAL", "COR_MPR"): "reformat",
    (): "derived",
}


@pytest.mark.parametrize(("image_type", "kind"), KINDS.items())
def test_the_image_type_tells_originals_from_reformats(
    image_type: tuple[str, ...], kind: str
) -> None:
    assert kind_of(ct_slice(image_type=image_type)) == kind


def test_a_coronal_plane_is_a_reformat_unless_it_is_original() -> None:
    coronal = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    derived = ct_slice(orientation=coronal, image_type=("DERIVED", "PRIMARY", "AXIAL"))
    assert kind_of(derived) == "reformat"
    assert kind_of(ct_slice(orientation=coronal)) == "original"


def test_the_stack_is_the_same_in_every_copy_and_only_there(series: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(series, tmp_path / "copy")
    for number, path in enumerate(sorted(copy.iterdir())):
        path.rename(copy / f"{500 - number}.dcm")
    header, other = header_in(series), header_in(copy)
    assert header.stack == other.stack
    assert len(header.stack) == 16
    assert (header.patient_id, header.kind) == ("PHANTOM-0000", "original")
    assert header.study_id == other.study_id != ""
    assert header.series_id == other.series_id != ""

    def reformatted(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
        data.ImageType = ["DERIVED", "SECONDARY", "MPR"]
        return True

    assert header_in(edited(series, tmp_path / "mpr", reformatted)).stack != header.stack


def test_a_slice_that_lies_there_twice_counts_once(series: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "twice")
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "copy.dcm")
    header = header_in(folder)
    assert header.shape == CASE.hu.shape[::-1]
    assert len(header.paths) == 84
    assert failures(header.findings)["dicom.repeated_file"].measured == "1 of 84 slices"
    assert outcome(folder) == ("", ("dicom.repeated_file", "dicom.duplicate_positions"))
    volume = DicomReader().read(header)
    np.testing.assert_array_equal(volume.voxels, CASE.hu)
    assert volume.source_digest == DicomReader().digest(header.paths)
    (row,) = judge(folder)
    assert (row.verdict, len(row.members)) == ("warned", 84)


def test_a_repeated_uid_does_not_hide_another_image(series: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "other")
    data = pydicom.dcmread(sorted(folder.iterdir())[40])
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(folder / "0000-other.dcm")
    assert outcome(folder) == ("dicom.several_phases", ())


def test_a_series_twice_in_its_folder_has_the_warnings_of_one(series: Path, tmp_path: Path) -> None:
    def every_second(number: int, data: pydicom.Dataset) -> bool:
        data.SliceThickness = "7.5"  # overlapping slices: the thickness does not tell
        return number % 2 == 0

    folder = edited(series, tmp_path / "twice", every_second)
    for path in list(folder.iterdir()):
        shutil.copy(path, folder / f"copy-{path.name}")
    warned = ("dicom.repeated_file", "dicom.instance_stride", "dicom.duplicate_positions")
    assert outcome(folder) == ("", warned)


def test_one_slice_in_two_copies_is_too_small(series: Path, tmp_path: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "one").mkdir(exist_ok=True)
        shutil.copy(sorted(series.iterdir())[0], tmp_path / "one" / name)
    with pytest.raises(VolumeError, match=r"geometry.too_small: 1 slices"):
        header_in(tmp_path / "one")


def with_doubles(series: Path, folder: Path, edit: Callable[[pydicom.Dataset], None]) -> Path:
    """A copy of the series with a second instance beside every tenth slice."""
    shutil.copytree(series, folder)
    for number, path in enumerate(sorted(folder.iterdir())[::10]):
        data = pydicom.dcmread(path)
        data.SOPInstanceUID = f"1.2.3.{number}"
        edit(data)
        data.save_as(folder / f"second{number}.dcm")
    return folder


def test_a_second_instance_with_the_same_pixels_is_left_out(series: Path, tmp_path: Path) -> None:
    folder = with_doubles(series, tmp_path / "same", lambda data: None)  # noqa: ARG005
    assert outcome(folder) == ("", ("dicom.duplicate_positions",))
    reader, header = DicomReader(), header_in(folder)
    volume = reader.read(header)
    np.testing.assert_array_equal(volume.voxels, CASE.hu)
    assert failures(volume.findings)["dicom.duplicate_positions"].measured == "9 of 92 slices"
    assert len(header.paths) == 92
    assert volume.source_digest == reader.digest(header.paths)


def test_different_images_at_one_position_are_several_phases(series: Path, tmp_path: Path) -> None:
    def edit(data: pydicom.Dataset) -> None:
        pixels = bytearray(data.PixelData)
        pixels[5000] ^= 1
        data.PixelData = bytes(pixels)

    assert outcome(with_doubles(series, tmp_path / "phases", edit)) == ("dicom.several_phases", ())


def test_a_damaged_file_has_a_row_and_its_series_a_warning(series: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "damaged")
    first = sorted(folder.iterdir())[0]
    first.write_bytes(first.read_bytes()[:200])
    rows = {row.code: row for row in judge(folder)}
    assert set(rows) == {"dicom.damaged_header", "dicom.incomplete_folder"}
    assert rows["dicom.damaged_header"].source == first.name
    assert rows["dicom.incomplete_folder"].verdict == "warned"


def test_no_flipped_byte_of_a_header_ends_the_ingest(series: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "flipped")
    victim = sorted(folder.iterdir())[3]
    sound = victim.read_bytes()
    chance = random.Random(4)
    others = [part for part in slices_in(folder) if part.path != victim]
    codes = set()
    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(132, 1200)] = chance.randrange(256)
        victim.write_bytes(bytes(damaged[: chance.choice([len(damaged), 600])]))
        try:
            found = read_slices(victim)
        except VolumeError as error:
            codes.add(error.code)
            continue
        volumes = group_slices([*others, *found])
        assert sum(map(len, volumes)) == len(others) + len(found)
        for volume in volumes:
            try:
                header = DicomReader().header_of(volume, LIMITS)
                if victim in header.paths:
                    placed = [p for p in header.slices if p.part.path == victim]
                    list(decode_slices(placed, hashlib.blake2b()))
            except VolumeError as error:
                codes.add(error.code)
    assert {"dicom.damaged_header", "geometry.too_small"} <= codes


def test_odd_names_are_judged_like_others(tmp_path: Path) -> None:
    folder = tmp_path / "source [x]"
    folder.mkdir()
    write_nifti(folder / "naïve [red] name.nii.gz", body_volume())
    (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    (folder / "gone.nii.gz").symlink_to("nowhere.nii.gz")
    shutil.copy(folder / "naïve [red] name.nii.gz", folder / os.fsdecode(b"caf\xe9.nii.gz"))
    (folder / "pair.hdr").touch()
    (folder / "pair.img").touch()
    rows = {row.source: (row.verdict, row.code) for row in judge(folder)}
    assert rows == {
        "naïve [red] name.nii.gz": ("accepted", ""),
        "loop.nii.gz": ("rejected", "file.broken_link"),
        "gone.nii.gz": ("rejected", "file.broken_link"),
        "caf\\xe9.nii.gz": ("rejected", "file.name"),
        "pair.hdr": ("rejected", "nifti.pair"),
    }


def test_an_unmounted_folder_does_not_wipe_the_manifest(tmp_path: Path) -> None:
    folder, empty = tmp_path / "source", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    write_nifti(folder / "ct.nii.gz", body_volume())
    workspace = Workspace(tmp_path / "workspace")
    survey("d", folder, workspace, salt=SALT)
    with pytest.raises(ManifestError, match="is the disk mounted"):
        survey("d", empty, workspace)
    folder.rename(tmp_path / "moved")
    assert survey("d", tmp_path / "moved", workspace).rows[0].verdict == "accepted"
    assert survey("d", empty, workspace, replace_all=True).rows == []


def test_the_workspace_is_not_searched(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct.nii.gz", body_volume())
    workspace = Workspace(tmp_path / "prect-data")
    survey("d", tmp_path, workspace, salt=SALT)
    again = survey("d", tmp_path, workspace)
    assert len(again.rows) == 1
    assert again.passed.other_files == {}
