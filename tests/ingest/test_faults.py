"""What is wrong with a file is named; the rest of the data set is not affected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prect.errors import WorkspaceError
from prect.ingest.explain import Outcome, explain
from prect.ingest.survey import survey
from prect.manifests.sources import SourceRow, read_sources
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.faulty_files import all_files, write_pair
from tests.ingest.volumes import body_volume, write_nifti

FILES = all_files()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One data set with every faulty and every odd file, and a sound one beside them."""
    folder = tmp_path_factory.mktemp("faults")
    for name, fault in FILES.items():
        (folder / name).write_bytes(fault.content)
    write_nifti(folder / "another.nii.gz", body_volume(seed=9))
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    survey("faults", folder, workspace, salt=SALT)
    return workspace


@pytest.fixture(scope="module")
def rows(workspace: Workspace) -> dict[str, SourceRow]:
    """The rows of that data set by file name."""
    return {row.source: row for row in read_sources(workspace.sources("faults"))}


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_judged_by_name(rows: dict[str, SourceRow], name: str) -> None:
    row, fault = rows[name], FILES[name]
    assert (row.judged, row.judged_code) == (fault.verdict, fault.code), row.judged_reason
    assert bool(row.judged_reason) == bool(fault.code)
    if fault.verdict == "rejected":  # else it may be a duplicate: all hold the same voxels
        assert (row.verdict, row.code) == (fault.verdict, fault.code)
    else:
        assert row.warnings == ((fault.code,) if fault.code else ())


def test_the_sound_file_beside_them_is_accepted(rows: dict[str, SourceRow]) -> None:
    assert (rows["another.nii.gz"].verdict, rows["another.nii.gz"].code) == ("accepted", "")
    assert len(rows) == len(FILES) + 1


def test_no_sentence_holds_a_path(rows: dict[str, SourceRow]) -> None:
    for row in rows.values():
        assert row.source not in row.judged_reason
        assert Path(row.root).name not in row.judged_reason


@pytest.mark.parametrize("name", ["shear.nii", "mostly_nan.nii", "units.nrrd", "no_matrix.mha"])
def test_explain_tells_what_decided(
    workspace: Workspace, rows: dict[str, SourceRow], name: str
) -> None:
    lines = explain(workspace, "faults", rows[name].case).lines
    decisive = [line for line in lines if line.outcome in (Outcome.WARNED, Outcome.FAILED)]
    assert FILES[name].code in [line.code for line in decisive]
    assert all(line.measured and line.limit for line in decisive)
    assert sum(line.outcome is Outcome.PASSED for line in lines) > 10


def judge_one(folder: Path) -> SourceRow:
    (row,) = survey("one", folder, Workspace(folder.parent / "workspace"), salt=SALT).rows
    return row


def test_a_metaimage_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    header = write_pair(tmp_path / "inside")
    (tmp_path / "inside" / "ct.raw").rename(tmp_path / "ct.raw")
    header.write_text(header.read_text().replace("ct.raw", "../ct.raw"))
    row = judge_one(tmp_path / "inside")
    assert (row.verdict, row.code) == ("rejected", "metaimage.outside_folder")


def test_a_short_raw_file_is_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "mhd"
    folder.mkdir()
    write_pair(folder)
    raw = folder / "ct.raw"
    raw.write_bytes(raw.read_bytes()[:-1000])
    assert judge_one(folder).code == "metaimage.truncated"


def test_a_changed_raw_file_is_judged_again(tmp_path: Path) -> None:
    folder = tmp_path / "mhd"
    folder.mkdir()
    write_pair(folder)
    before = judge_one(folder)
    assert before.verdict == "accepted"
    (folder / "ct.raw").write_bytes(np.zeros((32, 36, 40), np.int16).tobytes())
    assert judge_one(folder).code == "content.constant"


def test_a_file_that_is_gone_for_the_reader_is_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "mhd"
    folder.mkdir()
    write_pair(folder)
    (folder / "ct.raw").unlink()
    row = judge_one(folder)
    assert (row.verdict, row.code) == ("rejected", "metaimage.missing_data")


def test_an_absent_source_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is not a folder"):
        survey("x", tmp_path / "nowhere", Workspace(tmp_path / "workspace"))
    with pytest.raises(WorkspaceError, match="cannot be used"):
        survey("../x", tmp_path, Workspace(tmp_path / "workspace"))


def test_ids_depend_on_the_salt_and_hide_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write_nifti(folder / "jane-doe.nii.gz", body_volume())
    rows = [
        survey("d", folder, Workspace(tmp_path / name), salt=salt).rows[0]
        for name, salt in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    assert rows[0].case == rows[1].case != rows[2].case
    assert rows[0].patient == rows[1].patient != rows[2].patient
    assert "jane" not in rows[0].case + rows[0].patient
    with pytest.raises(WorkspaceError, match="another salt"):
        survey("d", folder, Workspace(tmp_path / "a"), salt="other")
