"""Names that a user gives volumes; that files and stores are found is tested with the export."""

from __future__ import annotations

from pathlib import Path

import pytest

from prect.errors import ManifestError
from prect.manifests.cases import Case, CaseIndex, known_datasets
from prect.manifests.sources import SourceRow, to_table, write_sources
from prect.workspace import Workspace


def row(dataset: str, case: str, source: str) -> SourceRow:
    return SourceRow(dataset, case, "accepted", "", "", "dicom", source, root=f"/data/{dataset}")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    rows = {
        "a": [row("a", "a1", "b/x"), row("a", "a2", "b/x"), row("a", "b1", "solo.nii")],
        "b": [row("b", "b2", "x"), row("b", "b3", "a/solo.nii"), row("b", "b4", "solo.nii")],
    }
    for dataset, of_it in rows.items():
        write_sources(workspace.sources(dataset), to_table(of_it))
    (workspace.store("stores-only", "c1")).mkdir(parents=True)
    (workspace.cache / ".plan-0123").mkdir()
    return workspace


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a1", ["a/a1"]),
        ("a/a1", ["a/a1"]),
        ("b/a1", []),  # of another data set
        ("c1", ["stores-only/c1"]),
        ("b/x", ["a/a1", "a/a2", "b/b2"]),  # two volumes of a folder, and a path of data set b
        ("a:b/x", ["a/a1", "a/a2"]),
        ("b:x", ["b/b2"]),
        ("b:x/", ["b/b2"]),
        ("solo.nii", ["a/b1", "b/b4"]),
        ("a/solo.nii", ["a/b1", "b/b3"]),
        ("/data/b/a/solo.nii", ["b/b3"]),
        ("/data/a", []),
        ("", []),
    ],
)
def test_a_name_means_every_volume_that_it_may_mean(
    workspace: Workspace, text: str, found: list[str]
) -> None:
    index = CaseIndex(workspace, known_datasets(workspace))
    assert [case.name for case in index.find(text)] == found


def test_the_path_of_a_store_is_a_name_of_its_volume(workspace: Workspace) -> None:
    index = CaseIndex(workspace, known_datasets(workspace))
    assert index.one(str(workspace.store("stores-only", "c1"))) == Case("stores-only", "c1")
    assert index.find(str(workspace.store("a", "c1"))) == []
    assert index.find("/elsewhere/c1.ome.zarr") == []


def test_a_name_of_none_or_of_many_is_refused_with_what_is_near(workspace: Workspace) -> None:
    index = CaseIndex(workspace, ["a", "b"])
    with pytest.raises(ManifestError, match=r"any of 3 volumes; give one: a/a1, a/a2, b/b2$"):
        index.one("b/x")
    with pytest.raises(ManifestError, match=r"no volume 'SOLO' in a, b; near: a:solo\.nii, b:a/so"):
        index.one("SOLO")
    with pytest.raises(ManifestError, match=r"near: a:solo\.nii\. Give"):
        index.one("sola.nii")
    with pytest.raises(ManifestError, match=r"no volume 'zzz' in a, b\. Give"):
        index.one("zzz")
    with pytest.raises(ManifestError, match="the workspace holds none"):
        CaseIndex(workspace, []).one("zzz")


def test_no_more_than_five_are_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    rows = [row("a", f"case{n}", "folder") for n in range(8)]
    write_sources(workspace.sources("a"), to_table(rows))
    index = CaseIndex(workspace, ["a"])
    with pytest.raises(ManifestError, match=r"any of 8 .*a/case4 and 3 more"):
        index.one("folder")
    assert len(index.near("case")) == 5


def test_hidden_folders_are_no_data_sets(workspace: Workspace) -> None:
    assert known_datasets(workspace) == ["a", "b", "stores-only"]


def test_folders_that_no_data_set_can_be_called_are_none(workspace: Workspace) -> None:
    for parent in (workspace.cache, workspace.manifests):
        (parent / "lost+found").mkdir(parents=True)
        (parent / "a file").touch()
    assert known_datasets(workspace) == ["a", "b", "stores-only"]
