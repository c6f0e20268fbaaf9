"""``prect ingest`` over the distributed PreCT-160K tree, in miniature."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prect.manifests.sources import SourceRow, Verdict, read_sources
from tests.conftest import run_json, run_prect
from tests.precttree import ABSENT, SOURCES, Source, Tree, build_tree

CARD = r"""
name: mine
title: Our own scans
region: abdomen
format: NIfTI
original:
  images: ["imagesTr/img*.nii.gz"]
  labels: ["labelsTr/*"]
excluded:
  - {match: "img0003", reason: "its contrast failed"}
patient: 'img(?P<patient>\d{3})'
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return build_tree(tmp_path_factory.mktemp("tree") / "PreCT-160K")


@dataclass(frozen=True)
class Ingested:
    """What ``ingest --all`` printed and wrote."""

    workspace: Path
    document: dict[str, Any]
    by_folder: dict[str, dict[str, Any]]
    """Summary of each data set by its folder in the tree."""

    def summary(self, source: Source) -> dict[str, Any]:
        return self.by_folder[source.folder]

    def rows(self, source: Source) -> dict[str, SourceRow]:
        manifest = Path(self.summary(source)["manifest"])
        return {row.source: row for row in read_sources(manifest)}


@pytest.fixture(scope="module")
def ingested(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    workspace = tmp_path_factory.mktemp("workspace")
    document = ingest_all(tree, workspace)
    by_folder = {
        Path(summary["source"]).relative_to(tree.root.resolve()).as_posix(): summary
        for summary in document["datasets"]
    }
    return Ingested(workspace, document, by_folder)


def ingest_all(tree: Tree, workspace: Path) -> dict[str, Any]:
    return run_json("ingest", "--all", "--root", tree.root, "-w", workspace, "--workers", 1)


def taken(rows: dict[str, SourceRow]) -> set[str]:
    return {source for source, row in rows.items() if Verdict(row.verdict).usable}


def test_every_source_is_found_and_the_absent_one_is_named(ingested: Ingested) -> None:
    assert sorted(ingested.by_folder) == sorted(source.folder for source in SOURCES)
    assert [absent["name"] for absent in ingested.document["absent"]] == [ABSENT]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_volumes_are_those_of_the_list(ingested: Ingested, source: Source) -> None:
    rows = ingested.rows(source)
    assert taken(rows) == set(source.images)
    summary = ingested.summary(source)
    assert summary["verdicts"]["accepted"] + summary["verdicts"]["warned"] == len(source.images)
    assert summary["candidates"] == len(source.images) + summary["verdicts"]["excluded"]
    assert set(rows) - taken(rows) <= set(source.excluded)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_what_is_no_image_is_counted_and_not_judged(ingested: Ingested, source: Source) -> None:
    summary = ingested.summary(source)
    left_out = len(source.labels) + len(source.excluded)
    assert summary["labels"] + summary["unlisted"] + summary["verdicts"]["excluded"] == left_out
    lists = [source.list_path] if source.list_path.startswith(f"{source.folder}/") else []
    assert sum(summary["other_files"].values()) == len(source.strays) + len(lists)


def test_no_file_of_a_cache_folder_is_taken(ingested: Ingested, tree: Tree) -> None:
    for source in SOURCES:
        assert not [path for path in ingested.rows(source) if "cache" in path]
        assert ".pt" not in ingested.summary(source)["other_files"]
    assert ingested.summary(tree.source("BTCV"))["skipped_folders"] == ["imagesTr/cache"]
    assert ingested.summary(tree.source("NLST"))["skipped_folders"] == ["cache"]


def test_magnetic_resonance_is_excluded_by_name(ingested: Ingested, tree: Tree) -> None:
    amos = tree.source("AMOS22")
    rows = ingested.rows(amos)
    left_out = {path: rows[path] for path in amos.excluded}
    assert {row.verdict for row in left_out.values()} == {"excluded"}
    assert {row.code for row in left_out.values()} == {"card.excluded"}
    assert all(row.reason for row in left_out.values())


def test_a_second_ingest_reads_nothing_again(ingested: Ingested, tree: Tree) -> None:
    before = {source.name: ingested.rows(source) for source in SOURCES}
    again = ingest_all(tree, ingested.workspace)
    assert {summary["judged"] for summary in again["datasets"]} == {0}
    assert [s["candidates"] for s in again["datasets"]] == [s["kept"] for s in again["datasets"]]
    assert {source.name: ingested.rows(source) for source in SOURCES} == before


def test_the_catalogue_shows_what_is_there_beside_what_is_expected(ingested: Ingested) -> None:
    entries = {
        entry["name"]: entry for entry in run_json("datasets", "-w", ingested.workspace)["datasets"]
    }
    for source in SOURCES:
        summary = ingested.summary(source)
        entry = entries[summary["dataset"]]
        assert entry["ingested"] is True
        assert entry["usable"] == len(source.images)
        assert entry["found"] == summary["candidates"]
        assert entry["expected"] == summary["expected"]
        # The tree is a miniature: where a count is known, it is another one.
        assert entry["as_expected"] is (entry["expected"] is None)
    assert (entries[ABSENT]["ingested"], entries[ABSENT]["expected"]) == (False, 606)
    shown = run_prect("datasets", "-w", ingested.workspace)
    assert all(name in shown.stdout + shown.stderr for name in entries)


@pytest.mark.parametrize(
    "name",
    [
        "BTCV",
        "AMOS22",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("AbdomenAtlas", "HealthyCT", "LiTS")
        ),
    ],
)
def test_a_list_gives_its_volumes_and_their_splits(
    tmp_path: Path, tree: Tree, ingested: Ingested, name: str
) -> None:
    source = tree.source(name)
    rows = ingest_list(tmp_path, tree, ingested, name, tree.list_file(name))
    assert taken(rows) == set(rows) == set(source.images)
    if len(source.splits) > 1:
        splits = {path: split for split, paths in source.splits.items() for path in paths}
        assert {path: row.split for path, row in rows.items()} == splits
    else:
        assert len({row.split for row in rows.values()}) == 1


def ingest_list(
    folder: Path, tree: Tree, ingested: Ingested, name: str, list_file: Path
) -> dict[str, SourceRow]:
    dataset = ingested.summary(tree.source(name))["dataset"]
    place = ("--source", tree.folder(name), "-w", folder / "w", "--workers", 1)
    summary = run_json("ingest", dataset, "--list", list_file, *place)
    return {row.source: row for row in read_sources(Path(summary["manifest"]))}


def test_what_a_list_names_and_is_not_there_is_counted_and_named(
    tmp_path: Path, tree: Tree, ingested: Ingested
) -> None:
    there = tree.source("LiTS").images[:2]
    gone = "imagesTr/liver_999_0000.nii.gz"
    entries = [{"image": path} for path in (*there, gone)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries[:1], "test": entries[1:]}))
    rows = ingest_list(tmp_path, tree, ingested, "LiTS", tmp_path / "list.json")
    assert taken(rows) == set(there), "a list takes what it names and nothing else"
    assert (rows[gone].verdict, rows[gone].code) == ("rejected", "list.missing")
    assert [rows[path].split for path in (*there, gone)] == ["training", "test", "test"]
    dataset = ingested.summary(tree.source("LiTS"))["dataset"]
    place = ("--source", tree.folder("LiTS"), "-w", tmp_path / "w")
    summary = run_json("ingest", dataset, "--list", tmp_path / "list.json", *place)
    assert summary["codes"] == {"list.missing": 1}


@pytest.mark.parametrize("path", ["../BTCV/imagesTr/img0001.nii.gz", "/etc/ct.nii.gz"])
def test_a_list_cannot_lead_out_of_its_folder(tmp_path: Path, tree: Tree, path: str) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": path}]}))
    done = run_prect(
        *("ingest", "LiTS", "--source", tree.folder("LiTS"), "-w", tmp_path / "w"),
        *("--list", tmp_path / "list.json"),
        expect=1,
    )
    assert path in done.stderr
    assert not (tmp_path / "w" / "manifests").exists()


def test_a_card_of_ones_own_works_by_its_path(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "mine.yaml").write_text(CARD)
    summary = run_json(
        *("ingest", tmp_path / "mine.yaml", "--source", tree.folder("BTCV")),
        *("-w", tmp_path / "w", "--workers", 1),
    )
    assert summary["dataset"] == "mine"
    assert summary["verdicts"]["accepted"] == 4
    assert summary["labels"] == 5
    rows = {row.source: row for row in read_sources(Path(summary["manifest"]))}
    assert rows["imagesTr/img0003.nii.gz"].verdict == "excluded"
    assert "its contrast failed" in rows["imagesTr/img0003.nii.gz"].reason
    # img0001 and img0002 are one patient by the card's pattern, img0035 is another.
    assert rows["imagesTr/img0001.nii.gz"].patient == rows["imagesTr/img0002.nii.gz"].patient
    assert rows["imagesTr/img0001.nii.gz"].patient != rows["imagesTr/img0035.nii.gz"].patient


def test_a_card_with_an_unknown_key_is_refused(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "mine.yaml").write_text(CARD.replace("region:", "regoin:"))
    done = run_prect(
        *("ingest", tmp_path / "mine.yaml", "--source", tree.folder("BTCV")),
        *("-w", tmp_path / "w"),
        expect=1,
    )
    assert "regoin" in done.stderr
    assert "region" in done.stderr
