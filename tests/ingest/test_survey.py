"""The engine of ingest: what is read again, what a killed ingest leaves, who killed a worker."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import prect.ingest.survey as engine
from prect.cluster import Workers
from prect.errors import ConfigError, ManifestError
from prect.ingest.discover import Discovery
from prect.ingest.explain import Outcome, explain
from prect.ingest.judge import Candidate, Examination, Judge
from prect.ingest.survey import Survey, survey
from prect.manifests.cards import Card, generic_card
from prect.phantom import make_case
from prect.phantom.write import write_case
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.volumes import body_volume, write_nifti


def made(folder: Path, *names: str) -> Path:
    """A folder of sound files, each another scan."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, body_volume(seed=sum(map(ord, name))))
    return folder


def place(folder: Path) -> Workspace:
    return Workspace(folder.parent / "workspace")


def judged(survey: Survey) -> dict[str, tuple[str, str]]:
    return {row.source: (row.verdict, row.code) for row in survey.rows}


def test_an_unchanged_file_is_not_opened_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a", "b")
    first = survey("d", folder, place(folder), salt=SALT)
    status = (folder / "a.nii.gz").stat()
    (folder / "a.nii.gz").write_bytes(b"\0" * status.st_size)
    os.utime(folder / "a.nii.gz", ns=(status.st_atime_ns, status.st_mtime_ns))
    second = survey("d", folder, place(folder))
    assert (second.kept, second.table.equals(first.table)) == (2, True)
    third = survey("d", folder, place(folder), rehash=True)
    assert judged(third)["a.nii.gz"] == ("rejected", "nifti.not_nifti")
    assert judged(third)["b.nii.gz"] == ("accepted", "")
    assert third.kept == 1


def test_contents_decide_when_times_do_not_agree(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    write_case(make_case(2, 0), folder / "series", "dicom")
    survey("d", folder, place(folder), salt=SALT)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    by_content = survey("d", folder, place(folder), rehash=True)
    assert (by_content.kept, len(by_content.table)) == (2, 2)
    by_time = survey("d", folder, place(folder))
    assert by_time.kept == 2, "the new times were not noted"


def test_a_new_slice_re_judges_its_folder_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    series = write_case(make_case(2, 0), folder / "series", "dicom")
    last = sorted(series.iterdir())[-1]
    shutil.move(last, tmp_path / last.name)
    survey("d", folder, place(folder), salt=SALT)
    shutil.move(tmp_path / last.name, last)
    again = survey("d", folder, place(folder))
    assert again.kept == 1
    members = {row.source: len(row.members) for row in again.rows}
    assert members["series"] == len(list(series.iterdir()))


def test_what_is_gone_is_reported_and_kept_in_the_history(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a", "b")
    workspace = place(folder)
    survey("d", folder, workspace, salt=SALT)
    (folder / "b.nii.gz").unlink()
    again = survey("d", folder, workspace)
    assert again.removed == ("b.nii.gz",)
    lines = [json.loads(line) for line in workspace.history("d").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["ingest", "ingest", "taken away"]
    assert lines[2]["row"]["source"] == "b.nii.gz"
    assert lines[2]["row"]["verdict"] == "accepted"


def test_other_limits_judge_everything_again(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    workspace = place(folder)
    survey("d", folder, workspace, salt=SALT)
    card = generic_card("d")
    strict = card.model_copy(update={"limits": card.limits.model_copy(update={"min_voxels": 200})})
    again = survey(strict, folder, workspace)
    assert again.kept == 0
    assert judged(again) == {"a.nii.gz": ("rejected", "geometry.too_small")}


def test_an_interrupted_ingest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "source", "a", "b", "c")
    workspace = place(folder)
    monkeypatch.setattr(engine, "_BATCH_FILES", 1)

    def stop_at(number: int) -> None:
        seen.append(number)
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        survey("d", folder, workspace, salt=SALT, on_progress=stop_at)
    assert not workspace.sources("d").exists()
    after = survey("d", folder, workspace)
    assert (after.kept, len(after.table)) == (2, 3)
    assert not workspace.journal("d").exists()


class FragileJudge(Judge):
    """Dies, with its process, of one file."""

    def examine(self, candidate: Candidate) -> Examination:
        if "killer" in candidate.source and candidate.error is None:
            os._exit(9)
        return super().examine(candidate)


def test_a_file_that_kills_its_worker_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "source", "a", "killer", "z")
    monkeypatch.setattr(engine, "Judge", FragileJudge)
    with Workers(1) as workers:
        found = judged(survey("d", folder, place(folder), salt=SALT, workers=workers))
        again = survey("d", folder, place(folder), workers=workers)
    assert found == {
        "a.nii.gz": ("accepted", ""),
        "killer.nii.gz": ("rejected", "file.worker_died"),
        "z.nii.gz": ("accepted", ""),
    }
    assert again.kept == 2, "a death may have been the fault of the machine: it is judged anew"


def test_workers_find_what_one_process_finds(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a", "deep/b")
    write_case(make_case(2, 1), folder / "series", "dicom")
    (folder / "notes").write_text("no image")
    alone = survey("d", folder, Workspace(tmp_path / "one"), salt=SALT)
    with Workers(2) as workers:
        together = survey("d", folder, Workspace(tmp_path / "two"), salt=SALT, workers=workers)
    assert together.table.equals(alone.table)
    assert together.passed == alone.passed


def test_files_that_are_no_image_are_counted_again_when_nothing_is_read(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    series = write_case(make_case(2, 1), folder / "series", "dicom")
    (series / "notes").write_text("no image")
    (folder / "notes").write_text("no image")
    first = survey("d", folder, place(folder), salt=SALT)
    again = survey("d", folder, place(folder))
    assert first.passed.other_files == again.passed.other_files == Counter({"notes": 2})
    assert again.kept == 2


def test_a_list_is_taken_exactly(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a", "b", "c")
    listed = {
        "training": [{"image": "./a.nii.gz", "label": "labels/a.nii.gz"}],
        "validation": ["b.nii.gz", "gone.nii.gz"],
    }
    (folder / "list.json").write_text(json.dumps(listed))
    found = survey("d", folder, place(folder), salt=SALT, list_file=folder / "list.json")
    assert {(row.source, row.split, row.code) for row in found.rows} == {
        ("a.nii.gz", "training", ""),
        ("b.nii.gz", "validation", ""),
        ("gone.nii.gz", "validation", "list.missing"),
    }


def test_a_card_corrects_values_by_its_table(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    sound = body_volume(seed=1)
    write_nifti(folder / "a_1.nii.gz", (sound + 8192).astype(np.int16))
    write_nifti(folder / "b_1.nii.gz", (body_volume(seed=2) + 8192).astype(np.int16))
    (folder / "meta.csv").write_text("name,slope,offset\na_1.nii.gz,1,-8192\n")
    rule = {
        "table": "meta.csv",
        "key": "name",
        "slope": "slope",
        "intercept": "offset",
        "reason": "stored without their rescale",
    }
    card = Card.model_validate(generic_card("d").model_dump() | {"rescale": rule})
    plain = survey("d", folder, Workspace(tmp_path / "plain"), salt=SALT)
    assert {verdict for verdict, _ in judged(plain).values()} == {"rejected"}
    found = survey(card, folder, Workspace(tmp_path / "corrected"), salt=SALT)
    assert judged(found) == {
        "a_1.nii.gz": ("warned", "card.rescaled"),
        "b_1.nii.gz": ("rejected", "card.rescale_missing"),
    }
    assert {(row.slope, row.intercept) for row in found.rows if row.source == "a_1.nii.gz"} == {
        (1.0, -8192.0)
    }
    (folder / "meta.csv").unlink()
    with pytest.raises(ConfigError, match=r"meta\.csv"):
        survey(card, folder, Workspace(tmp_path / "missing"), salt=SALT)


def test_every_check_of_a_case_can_be_shown(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    write_nifti(folder / "thin.nii.gz", body_volume((40, 36, 8)))
    short = write_nifti(folder / "short.nii.gz", body_volume(seed=5))
    short.write_bytes(short.read_bytes()[:-9000])
    workspace = place(folder)
    survey("d", folder, workspace, salt=SALT)
    sound = explain(workspace, "d", "a.nii.gz")
    outcomes = {line.code: line.outcome for line in sound.lines}
    assert set(outcomes.values()) == {Outcome.PASSED}
    assert {"nifti.truncated", "geometry.spacing", "hu.not_calibrated"} <= set(outcomes)
    assert not any(code.startswith("dicom.") for code in outcomes)
    thin = explain(workspace, "d", "thin.nii.gz")
    lines = {line.code: line for line in thin.lines}
    assert lines["geometry.too_small"].outcome is Outcome.FAILED
    assert "8" in lines["geometry.too_small"].measured
    short_lines = {line.code: line for line in explain(workspace, "d", "short.nii.gz").lines}
    assert short_lines["nifti.truncated"].outcome is Outcome.FAILED
    assert short_lines["hu.not_calibrated"].outcome is Outcome.NOT_REACHED
    with pytest.raises(ManifestError, match="has no case"):
        explain(workspace, "d", "other.nii.gz")


def test_folders_of_pickles_are_not_entered(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a", "cache/b")
    discovery = Discovery(folder, generic_card("d"))
    assert [item.key for item in discovery] == ["a.nii.gz"]
    assert discovery.passed.skipped_folders == ["cache"]


def test_a_corrected_table_judges_its_files_again(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write_nifti(folder / "a.nii.gz", (body_volume(seed=1) + 100).astype(np.int16))
    rule = {"table": "t.csv", "key": "name", "slope": "slope", "intercept": "offset", "reason": "-"}
    card = Card.model_validate(generic_card("d").model_dump() | {"rescale": rule})
    for offset in (-50, -100):
        (folder / "t.csv").write_text(f"name,slope,offset\na,1,{offset}\n")
        (row,) = survey(card, folder, place(folder), salt=SALT).rows
        assert row.intercept == offset


def test_a_fault_of_the_disk_is_not_held_against_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "source", "a")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("prect.ingest.readers.nifti.NiftiReader.read", fail)
        first = survey("d", folder, place(folder), salt=SALT)
    assert judged(first) == {"a.nii.gz": ("rejected", "file.unreadable")}
    assert judged(survey("d", folder, place(folder))) == {"a.nii.gz": ("accepted", "")}


def test_rehash_survives_a_file_that_lost_its_data(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    image = sitk.GetImageFromArray(body_volume(seed=8))
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(folder / "b.mhd"))
    survey("d", folder, place(folder), salt=SALT)
    (folder / "b.raw").unlink()
    again = survey("d", folder, place(folder), rehash=True)
    assert judged(again) == {
        "a.nii.gz": ("accepted", ""),
        "b.mhd": ("rejected", "metaimage.missing_data"),
    }


def test_a_detached_header_depends_on_its_own_data_alone(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        image = sitk.GetImageFromArray(body_volume(seed=seed))
        image.SetSpacing((2.0, 2.0, 2.0))
        sitk.WriteImage(image, str(folder / f"{name}.mhd"))
    survey("d", folder, place(folder), salt=SALT)
    (folder / "README").write_text("new")
    os.utime(folder / "b.raw", (1, 1))
    again = survey("d", folder, place(folder))
    assert again.kept == 1


def test_files_of_one_series_in_a_list_are_one_item(tmp_path: Path) -> None:
    folder = made(tmp_path / "source")
    series = write_case(make_case(2, 0), folder / "series", "dicom")
    paths = [f"series/{path.name}" for path in sorted(series.iterdir())]
    (folder / "list.json").write_text(json.dumps({"training": paths}))
    for kept in (0, 1):
        found = survey("d", folder, place(folder), salt=SALT, list_file=folder / "list.json")
        assert found.kept == kept
        (row,) = found.rows
        assert (row.verdict, len(row.members)) == ("accepted", len(paths))


def test_odd_entries_of_a_list_end_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    listed = {"training": ["a.nii.gz", "a.nii.gz", "n" * 300 + ".nii.gz"]}
    (folder / "list.json").write_text(json.dumps(listed))
    found = survey("d", folder, place(folder), salt=SALT, list_file=folder / "list.json")
    assert sorted(row.code for row in found.rows) == ["", "list.missing"]
    listed = {"training": ["a.nii.gz"], "validation": ["./a.nii.gz"]}
    (folder / "list.json").write_text(json.dumps(listed))
    with pytest.raises(ManifestError, match="one split only"):
        survey("d", folder, place(folder), list_file=folder / "list.json")


def test_half_a_data_set_does_not_go_unasked(tmp_path: Path) -> None:
    names = [f"{part}/{number}" for part in "ab" for number in range(10)]
    folder = made(tmp_path / "source", *names, "c/0")
    survey("d", folder, place(folder), salt=SALT)
    shutil.rmtree(folder / "a")
    (folder / "c" / "0.nii.gz").unlink()
    with pytest.raises(ManifestError, match="11 of the 21"):
        survey("d", folder, place(folder))
    assert len(survey("d", folder, place(folder), replace_all=True).rows) == 10


def test_the_patient_of_a_study_without_patient_id_is_one(tmp_path: Path) -> None:
    folder = made(tmp_path / "source")
    for index in range(2):
        series = write_case(make_case(2, index), folder / str(index), "dicom")
        for path in series.iterdir():
            data = pydicom.dcmread(path)
            data.PatientID = ""
            data.StudyInstanceUID = "1.2.3.4"
            data.save_as(path)
    rows = survey("d", folder, place(folder), salt=SALT).rows
    assert len(rows) == 2
    assert len({row.patient for row in rows}) == 1


@pytest.mark.parametrize("content", [b"", b"short", bytes(30_000)])
def test_a_slice_that_was_not_downloaded_is_noticed(tmp_path: Path, content: bytes) -> None:
    folder = made(tmp_path / "source")
    series = write_case(make_case(2, 0), folder / "series", "dicom")
    last = sorted(series.iterdir())[-1]
    last.write_bytes(content)
    rows = {row.source: row for row in survey("d", folder, place(folder), salt=SALT).rows}
    assert rows[f"series/{last.name}"].code == "dicom.damaged_header"
    assert rows["series"].code == "dicom.incomplete_folder"


def test_a_case_can_be_named_in_any_sensible_way(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "deep/a")
    workspace = place(folder)
    (row,) = survey("d", folder, workspace, salt=SALT).rows
    names = (row.case, f"d/{row.case}", "deep/a.nii.gz", "./deep/a.nii.gz")
    for name in (*names, str(folder / "deep" / "a.nii.gz")):
        assert explain(workspace, "d", name).row.case == row.case
    with pytest.raises(ManifestError, match="has not been ingested"):
        explain(workspace, "other", row.case)


def test_rehash_leaves_no_untrue_history(tmp_path: Path) -> None:
    folder = made(tmp_path / "source", "a")
    workspace = place(folder)
    survey("d", folder, workspace, salt=SALT)
    os.utime(folder / "a.nii.gz", (1, 1))
    survey("d", folder, workspace, rehash=True)
    events = [json.loads(line)["event"] for line in workspace.history("d").read_text().splitlines()]
    assert events == ["ingest", "ingest"]


def test_a_folder_that_cannot_be_listed_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "source", "a", "deep/b")
    survey("d", folder, place(folder), salt=SALT)
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr("prect.ingest.discover.os.scandir", scandir)
    found = judged(survey("d", folder, place(folder)))
    assert found == {
        "a.nii.gz": ("accepted", ""),
        "deep/b.nii.gz": ("accepted", ""),
        "deep/": ("rejected", "file.unreadable_folder"),
    }


def test_copies_in_another_set_are_found(tmp_path: Path) -> None:
    """A phantom re-saved, flipped, mirrored, cropped, and with its spacing overwritten."""
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    image: Any = nib.load(write_case(make_case(5, 1), first / "original", "nifti"))
    voxels, affine = np.asarray(image.dataobj), image.affine
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = voxels.shape[0] - 1
    copies = {
        "resaved": (voxels.astype(np.float32), affine),
        "flipped": (voxels[::-1], affine @ flip),
        "mirrored": (voxels[:, ::-1], affine),
        "cropped": (voxels[8:-8, 6:-6, 10:-14], affine),
        "spacing": (voxels, np.diag([-1.5, -1.5, 1.5, 1.0])),
    }
    for name, (copy, placed) in copies.items():
        nib.save(nib.Nifti1Image(copy, placed), second / f"{name}.nii.gz")
    write_case(make_case(5, 2), second / "other", "nifti")
    workspace = place(first)
    (kept,) = survey("a", first, workspace, salt=SALT).rows
    rows = {row.source.partition(".")[0]: row for row in survey("b", second, workspace).rows}
    assert rows.pop("other").verdict == "accepted"
    assert {row.duplicate_of for row in rows.values()} == {f"a/{kept.case}"}
    codes = {name: row.code for name, row in rows.items()}
    assert codes == dict.fromkeys(copies, "duplicate.voxels") | {"cropped": "duplicate.overlap"}
