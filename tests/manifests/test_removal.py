"""Rows that are taken out; that their stores go with them is tested with the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prect.errors import ManifestError
from prect.manifests.cards import generic_card
from prect.manifests.commit import commit, decide_without
from prect.manifests.removal import Rows, read_rows, removed_before, take_out, take_out_all
from prect.manifests.sources import SourceRow, read_sources, to_table
from prect.workspace import Workspace

SUMMARY = {"scope": "cases", "cases": ["a1"]}


def row(dataset: str, case: str, voxels: str) -> SourceRow:
    source = f"{case}.nii"
    made = SourceRow(dataset, case, "accepted", "", "", "nifti", source, "/data", patient=case)
    return replace(made, judged="accepted", voxel_digest=voxels, shape=(9, 9, 9))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Of the three copies of one scan, that of data set a is kept."""
    workspace = Workspace(tmp_path)
    rows = {
        "a": [row("a", "a1", "one"), row("a", "a2", "two")],
        "b": [row("b", "b1", "one"), row("b", "b2", "three")],
        "c": [row("c", "c1", "one")],
    }
    for dataset, of_it in rows.items():
        commit(workspace, dataset, to_table(of_it), generic_card(dataset))
    return workspace


def verdicts(workspace: Workspace) -> dict[str, str]:
    rows = [row for name in workspace.datasets() for row in read_sources(workspace.sources(name))]
    return {
        row.case: row.verdict + (f" of {row.duplicate_of}" * bool(row.duplicate_of)) for row in rows
    }


def test_the_next_copy_is_kept(workspace: Workspace) -> None:
    before = verdicts(workspace)
    assert (before["b1"], before["c1"]) == ("duplicate of a/a1", "duplicate of a/a1")
    told = decide_without(workspace, "a", ["a1"], write=False)
    assert verdicts(workspace) == before
    assert take_out(workspace, "a", {"a1"}, SUMMARY, stores_only=False) == told
    assert told == {"b": {"duplicate -> accepted": 1}}
    assert verdicts(workspace) == {
        "a2": "accepted",
        "b1": "accepted",
        "b2": "accepted",
        "c1": "duplicate of b/b1",
    }


def test_a_whole_data_set_leaves_the_others_decided(workspace: Workspace) -> None:
    assert take_out_all(workspace, "a") == {"b": {"duplicate -> accepted": 1}}
    assert workspace.datasets() == ["b", "c"]
    assert verdicts(workspace)["c1"] == "duplicate of b/b1"
    assert take_out_all(workspace, "a") == {}  # again, after it was cut short


def test_rows_of_stores_alone_leave_what_was_judged(workspace: Workspace) -> None:
    before = verdicts(workspace)
    assert take_out(workspace, "a", {"a1"}, SUMMARY, stores_only=True) == {}
    assert verdicts(workspace) == before


def test_the_names_of_what_is_gone_are_remembered(workspace: Workspace) -> None:
    assert list(removed_before(workspace, "a")) == []
    take_out(workspace, "a", {"a1"}, SUMMARY, stores_only=False)
    path = workspace.history("a")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "remo')  # a process was killed while it wrote
    take_out(workspace, "a", {"a2"}, {**SUMMARY, "cases": ["a2"]}, stores_only=False)
    assert path.read_bytes().startswith(whole)
    assert set(removed_before(workspace, "a")) == {
        *(("a1", "a1"), ("a1", "a1.nii")),
        *(("a2", "a2"), ("a2", "a2.nii")),
    }
    events = [json.loads(line)["event"] for line in path.read_text().splitlines() if "}" in line]
    assert events == ["removed", "taken away"] * 2


def test_damaged_manifests_count_as_none_where_that_is_allowed(workspace: Workspace) -> None:
    assert read_rows(workspace, "a") == Rows(("a1", "a2"), frozenset({"a1", "a2"}), {}, ())
    workspace.sources("a").write_bytes(b"no Parquet")
    with pytest.raises(ManifestError):
        read_rows(workspace, "a")
    assert read_rows(workspace, "a", tolerant=True) == Rows()
    assert read_rows(workspace, "unknown") == Rows()
