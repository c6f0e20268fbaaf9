"""The command, from stores to figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prect.benchmark.boxes import Volume
from prect.benchmark.endtoend import simulate
from prect.benchmark.inputs import prepare
from prect.cache.reader import StoreReader
from prect.errors import ConfigError
from prect.manifests.stores import load_cache_table, write_cache_rows
from prect.workspace import Workspace
from tests.conftest import run_prect
from tests.train.conftest import DATASET, toy_volume, write_toy_store

ARMS = ("memmap", "decode-limit", "monai-persistent", "tests.benchmark.broken:NotThere")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a quick run on phantoms that it makes itself."""
    folder = tmp_path_factory.mktemp("benchmark")
    done = run_prect(
        *("benchmark-io", "--quick", "--rounds", 1, "--folder", folder / "scratch"),
        *("--json", folder / "figures.json", "--png", folder / "chart.png"),
        *(part for name in ARMS for part in ("--arms", name)),
    )
    assert done.stdout == ""
    assert "goals passed" in done.stderr
    assert (folder / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "scratch").iterdir()) == [], "nothing is left behind"
    document: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return document


def test_it_writes_what_it_found(figures: dict[str, Any]) -> None:
    assert {"arms", "goals", "machine", "volumes", "loaders", "start", "starved"} <= set(figures)
    states = {arm["name"]: arm["status"] for arm in figures["arms"]}
    assert states.pop("not-there", None) is None
    assert states.pop(ARMS[-1]) == "not installed: pip install 'prect[bench]'"
    assert states == dict.fromkeys(
        ("prect", "monai-persistent", "memmap", "decode-limit"), "measured"
    )
    for goal in figures["goals"]:
        assert {"name", "ratio", "goal", "met"} <= set(goal)
        assert (goal["met"] is None) == (goal["ratio"] is None)
    against = [goal for goal in figures["goals"] if "monai-persistent" in goal["name"]]
    assert all(goal["met"] is not None for goal in against if "warm" in goal["name"])
    absent = [goal for goal in figures["goals"] if "tensorstore" in goal["name"]]
    assert {goal["detail"] for goal in absent} == {"tensorstore was not part of the run"}
    assert figures["machine"]["versions"]["numpy"]


def test_the_loaders_and_the_start_are_measured(figures: dict[str, Any]) -> None:
    rates = {row["loader"]: row for row in figures["loaders"]}
    assert set(rates) == {"prect", "prect, aligned", "monai-persistent"}
    for row in rates.values():
        assert "reason" not in row
        assert row["samples"] > 0
        assert row["gpus_a_core"] == pytest.approx(8 / 53 / row["cpu_s"])
    assert figures["start"]["rows"] == 2000
    for key in ("first", "resume"):
        assert 0 < figures["start"][key]["open_s"] < figures["start"][key]["seconds"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = run_prect("benchmark-io", "--dry-run", "--json", tmp_path / "a.json")
    assert "tensorstore" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(tmp_path: Path) -> None:
    done = run_prect("benchmark-io", "--arms", "tensorflow", expect=1)
    assert "no arm 'tensorflow'; there are prect" in done.stderr
    done = run_prect("benchmark-io", "--json", tmp_path / "none" / "a.json", expect=2)
    assert "Invalid value" in done.stderr
    done = run_prect("benchmark-io", "--dataset", "none", "--workspace", tmp_path, expect=1)
    assert "data set 'none' has no stores" in done.stderr


def test_a_store_of_a_window_is_refused(volumes: list[Volume], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the benchmark compares HU"):
        prepare(volumes[0].window, tmp_path, "again")


def test_a_simulated_manifest_names_stores_that_can_be_read(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "few")
    rows = [write_toy_store(workspace, f"case-{n}", "patient", toy_volume(n)) for n in range(2)]
    write_cache_rows(workspace.cache_manifest(DATASET), rows)
    simulated = simulate(tmp_path / "many", workspace, DATASET, 50)
    table = load_cache_table(simulated, ["simulated"])
    assert len(table) == 50
    assert len(set(table.patient)) == 50
    with StoreReader(table.store(simulated, 49)) as reader:
        assert reader.levels[0].shape == rows[1].shape
