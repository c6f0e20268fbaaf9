"""`prect datasets`: the catalogue against a workspace, cards printed and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prect.manifests.cards import Card, catalogue, find_card, generic_card, load_card, write_card
from prect.manifests.sources import SourceRow, Verdict, to_table, write_sources
from prect.manifests.stores import CacheRow, write_cache_rows
from prect.workspace import Workspace
from tests.conftest import run_json, run_prect


def ingested(
    workspace: Workspace, card: Card, verdicts: dict[Verdict, int], stored: int, orphans: int = 0
) -> None:
    """Write the manifests of a data set with so many rows of each verdict."""
    names = [verdict.value for verdict, count in verdicts.items() for _ in range(count)]
    rows = [
        SourceRow(card.name, f"{number:016x}", verdict, "", "", "nifti", f"{number}.nii.gz", "/")
        for number, verdict in enumerate(names)
    ]
    write_sources(workspace.sources(card.name), to_table(rows))
    write_card(workspace.card(card.name), card)
    usable = [row.case for row in rows if Verdict(row.verdict).usable][:stored]
    cases = [*usable, *(f"{number + 10**6:016x}" for number in range(orphans))]
    write_cache_rows(
        workspace.cache_manifest(card.name),
        [
            CacheRow(card.name, case, "", "", "", "", (8, 8, 8), (1.5, 1.5, 1.5), 3, 1, 1)
            for case in cases
        ],
    )


def card_of(name: str) -> Card:
    card = find_card(name)
    assert card is not None
    return card


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """BTCV whole, WORD short of volumes, and a data set without a card of the catalogue."""
    place = Workspace(tmp_path / "workspace")
    ingested(place, card_of("BTCV"), {Verdict.ACCEPTED: 28, Verdict.WARNED: 2}, 10, orphans=3)
    ingested(place, card_of("WORD"), {Verdict.ACCEPTED: 120 - 7, Verdict.REJECTED: 30}, 0)
    ingested(place, generic_card("mine"), {Verdict.ACCEPTED: 4, Verdict.DUPLICATE: 1}, 4)
    return place


def test_the_list_joins_the_catalogue_and_the_workspace(workspace: Workspace) -> None:
    document = run_json("datasets", "-w", workspace.root)
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in document["datasets"]}
    assert list(rows) == [*(card.name for card in catalogue()), "mine"]
    counts = ("expected", "found", "usable", "stored", "ingested", "as_expected")
    assert [rows["BTCV"][name] for name in counts] == [30, 30, 30, 10, True, True]
    assert [rows["WORD"][name] for name in counts] == [150, 143, 113, 0, True, False]
    assert [rows["mine"][name] for name in counts] == [None, 5, 4, 4, True, True]
    assert [rows["NLST"][name] for name in counts] == [84830, 0, 0, 0, False, None]
    assert rows["WORD"]["licence"]["approval"]
    assert rows["WORD"]["benchmark"]
    assert not rows["NLST"]["benchmark"]
    assert (rows["NLST"]["region"], rows["NLST"]["format"]) == ("chest", "DICOM")


def test_the_table_marks_a_count_that_differs(workspace: Workspace) -> None:
    done = run_prect("datasets", "-w", workspace.root)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    word = next(line for line in lines if line.lstrip().startswith("WORD"))
    assert "113/143 (-37) !" in word
    assert "150 (120)" in word
    assert "benchmark" in word
    btcv = next(line for line in lines if line.lstrip().startswith("BTCV"))
    assert "30/30" in btcv
    assert "!" not in btcv
    assert lines[-1] == "! another number of usable volumes than expected: WORD"
    assert "needs approval" in done.stderr
    assert "28 sources, 3 ingested" in done.stderr


def test_the_list_needs_no_workspace(tmp_path: Path) -> None:
    document = run_json("datasets", "-w", tmp_path / "none")
    assert len(document["datasets"]) == len(catalogue())
    assert not any(row["ingested"] for row in document["datasets"])
    assert not (tmp_path / "none").exists()


def test_the_card_in_force_tells_the_expected_count(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    card = card_of("MELA")
    own = card.model_copy(update={"volumes": card.volumes.model_copy(update={"listed": 5})})
    ingested(place, own, {Verdict.ACCEPTED: 5}, 0)
    document = run_json("datasets", "-w", tmp_path)
    row = next(row for row in document["datasets"] if row["name"] == "MELA")
    assert (row["expected"], row["as_expected"]) == (5, True)


def test_a_card_is_shown_by_alias_and_by_path(tmp_path: Path) -> None:
    shown = run_json("datasets", "show", "abdomenatlas 1.0")
    assert shown["name"] == "AbdomenAtlas"
    assert shown["expected"] == 5194
    assert shown["digest_of_rules"] == card_of("AbdomenAtlas").digest_of_rules
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nlimits: {min_voxels: 20}\n")
    assert run_json("datasets", "show", own)["limits"]["min_voxels"] == 20
    text = run_prect("datasets", "show", own)
    assert text.stdout == ""
    copy = tmp_path / "copy.yaml"
    copy.write_text(text.stderr)
    assert load_card(copy) == load_card(own)


def test_a_new_card_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    planned = run_json("datasets", "new", "own", "--out", tmp_path, "--dry-run")
    assert planned["card"] == str(path)
    assert not path.exists()
    assert run_json("datasets", "new", "own", "--out", path)["card"] == str(path)
    assert load_card(path).name == "own"
    assert path.read_text() == planned["text"]
    path.write_text("name: changed\n")
    done = run_prect("datasets", "new", "own", "--out", path, expect=1)
    assert "--force" in done.stderr
    assert load_card(path).name == "changed"
    run_prect("datasets", "new", "own", "--out", path, "--force")
    assert load_card(path).name == "own"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["show", "FLAER23"], 1, "did you mean FLARE23"),
        (["show", "xyzzy"], 1, "`prect datasets` lists them"),
        (["show", "none.yaml"], 1, "cannot be read"),
        (["new", "../up"], 1, "cannot be used"),
        (["--json", "show", "BTCV"], 2, "--json goes after"),
    ],
)
def test_a_wrong_call_is_told(arguments: list[str], status: int, sentence: str) -> None:
    done = run_prect("datasets", *arguments, expect=status)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
