"""One series with one thing wrong: never accepted in silence, never the end of the ingest."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from prect.errors import ManifestError
from prect.ingest.survey import survey
from prect.manifests.sources import SourceRow
from prect.phantom import make_case
from prect.phantom.write import write_case
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.volumes import body_volume, write_nifti


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound series of a phantom, slices in the order of their names."""
    return write_case(make_case(2, 0), tmp_path_factory.mktemp("series") / "sound", "dicom")


def judge(folder: Path) -> list[SourceRow]:
    workspace = Workspace(folder.parent / f"{folder.name}-workspace")
    return list(survey("d", folder, workspace, salt=SALT, replace_all=True).rows)


def edited(series: Path, target: Path, edit: Callable[[int, pydicom.Dataset], bool]) -> Path:
    """A copy of the series; ``edit(number, slice)`` says whether a slice stays."""
    target.mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        data = pydicom.dcmread(path)
        if edit(number, data):
            data.save_as(target / path.name)
    return target


def test_the_sound_series_is_one_accepted_volume(series: Path) -> None:
    (row,) = judge(series)
    assert (row.verdict, row.code, row.warnings) == ("accepted", "", ())
    assert len(row.members) == len(list(series.iterdir()))


def every_second_gone(number: int, data: pydicom.Dataset) -> bool:
    data.InstanceNumber = number // 2 + 1
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


def one_without_position(number: int, data: pydicom.Dataset) -> bool:
    if number == 20:
        del data.ImagePositionPatient
    return True


def jittered(number: int, data: pydicom.Dataset) -> bool:
    shift = 1e-4 * number if number % 2 else 0.0
    data.ImagePositionPatient = [round(float(v) + shift, 6) for v in data.ImagePositionPatient]
    return True


FAULTS = {
    "every_second": (every_second_gone, "warned", "dicom.gap_above_thickness"),
    "one_gone": (one_gone, "rejected", "dicom.nonuniform_spacing"),
    "mixed_spacing": (mixed_spacing, "rejected", "dicom.mixed_spacing"),
    "monochrome1": (one_monochrome1, "rejected", "dicom.photometric"),
    "no_rescale": (one_without_rescale, "rejected", "dicom.mixed_rescale"),
    "no_position": (one_without_position, "rejected", "dicom.no_geometry"),
    "jitter": (jittered, "accepted", ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_some_slices_is_named(series: Path, tmp_path: Path, name: str) -> None:
    edit, verdict, code = FAULTS[name]
    (row,) = judge(edited(series, tmp_path / name, edit))
    assert (row.verdict, row.code) == (verdict, code), row.reason


def test_orientations_that_differ_by_rounding_stay_one_volume(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        cosines = [float(v) for v in data.ImageOrientationPatient]
        cosines[1] += 0.0004995 + (1e-6 if number % 2 else 0)  # on both sides of a rounding edge
        data.ImageOrientationPatient = [round(c, 7) for c in cosines]
        return True

    (row,) = judge(edited(series, tmp_path / "edge", edit))
    assert len(row.members) == len(list(series.iterdir()))


def test_two_orientations_under_one_uid_are_two_candidates(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        if number % 2:
            data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        return True

    rows = judge(edited(series, tmp_path / "two", edit))
    assert len(rows) == 2
    assert len({row.case for row in rows}) == 2


def test_a_slice_that_lies_there_twice_counts_once(series: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "twice")
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "copy.dcm")
    (row,) = judge(folder)
    assert row.verdict == "accepted"
    assert len(row.members) == len(list(series.iterdir()))


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
    for _ in range(25):
        damaged = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(132, 1200)] = chance.randrange(256)
        victim.write_bytes(bytes(damaged[: chance.choice([len(damaged), 600])]))
        rows = judge(folder)
        assert rows
        assert sum(max(1, len(row.members)) for row in rows) >= len(list(series.iterdir())) - 1


def test_an_edited_geometry_changes_the_digest(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
        text = str(data.PixelSpacing[0])
        other = text[:-1] + ("1" if text[-1] != "1" else "2")
        data.PixelSpacing = [other, other]
        return True

    (before,) = judge(series)
    (after,) = judge(edited(series, tmp_path / "edited", edit))
    assert after.source_digest != before.source_digest


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
    assert survey("d", empty, workspace, replace_all=True).rows == ()


def test_the_workspace_is_not_searched(tmp_path: Path) -> None:
    write_nifti(tmp_path / "ct.nii.gz", body_volume())
    workspace = Workspace(tmp_path / "prect-data")
    survey("d", tmp_path, workspace, salt=SALT)
    again = survey("d", tmp_path, workspace)
    assert len(again.rows) == 1
    assert again.other_files == {}
