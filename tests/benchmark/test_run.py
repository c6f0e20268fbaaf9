"""The command, from stores to figures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prect.benchmark.boxes import Volume
from prect.benchmark.endtoend import FEEDING, simulate
from prect.benchmark.feeding import recipe, these
from prect.benchmark.inputs import prepare
from prect.benchmark.measuring import BenchmarkError
from prect.benchmark.processes import Process
from prect.benchmark.run import Plan, run
from prect.cache.reader import StoreReader, best_decoder
from prect.cli import app
from prect.errors import ConfigError, ManifestError
from prect.manifests.stores import load_cache_table, write_cache_rows
from prect.workspace import Workspace
from tests.benchmark.conftest import Compared
from tests.conftest import run_prect
from tests.train.conftest import DATASET, toy_volume, write_toy_store

ARMS = ("memmap", "decode-limit", "tests.benchmark.broken:NotThere")


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
    assert figures["decoder"] == best_decoder().__name__
    assert figures["starved"] == {"measured": False, "reason": "left out of this run"}
    states = {arm["name"]: arm["status"] for arm in figures["arms"]}
    assert states.pop("not-there", None) is None
    assert states.pop(ARMS[-1]) == "not installed: pip install 'prect[bench]'"
    assert states == dict.fromkeys(("prect", "memmap", "decode-limit"), "measured")
    for goal in figures["goals"]:
        assert {"name", "ratio", "goal", "met"} <= set(goal)
        assert (goal["met"] is None) == (goal["ratio"] is None)
    against = [goal for goal in figures["goals"] if "decode-limit" in goal["name"]]
    assert len(against) == 4
    assert all(goal["met"] is not None for goal in against)
    absent = [goal for goal in figures["goals"] if "tensorstore" in goal["name"]]
    assert {goal["detail"] for goal in absent} == {"tensorstore was not part of the run"}
    assert figures["machine"]["versions"]["numpy"]


def test_the_loaders_and_the_start_are_measured(figures: dict[str, Any]) -> None:
    rates = {row["loader"]: row for row in figures["loaders"]}
    assert set(rates) == {"prect", "prect, aligned"}
    for row in rates.values():
        assert "reason" not in row
        assert row["samples"] > 0
        assert row["gpus_a_core"] == pytest.approx(8 / 53 / row["cpu_s"])
    assert figures["start"]["rows"] == 2000
    for key in ("first", "resume"):
        assert 0 < figures["start"][key]["open_s"] < figures["start"][key]["seconds"]


@pytest.mark.slow
def test_the_loader_of_pickles_is_measured(compared: Compared, volumes: list[Volume]) -> None:
    if not compared.runners["monai-persistent"].alive:
        pytest.skip("MONAI is not installed")
    with Process(FEEDING) as process:
        row = process.ask("monai", volumes, compared.folder / "monai-persistent", 0, 0.2)
    assert row["samples"] > 0
    assert row["samples_per_s"] > 0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = run_prect("benchmark-io", "--dry-run", "--json", tmp_path / "a.json")
    assert "tensorstore" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_named(tmp_path: Path) -> None:
    done = run_prect("benchmark-io", "--arms", "tensorflow", expect=1)
    assert "no arm 'tensorflow'; there are prect" in done.stderr
    with pytest.raises(ManifestError, match="data set 'none' has no stores"):
        run(Plan.quick(), names=["memmap"], dataset=(Workspace(tmp_path), "none"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--json", "none/a.json"), "the folder of none/a.json does not exist"),
        (("-w", "somewhere"), "--workspace needs --dataset"),
    ],
)
def test_options_that_cannot_be_followed(options: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["benchmark-io", "--dry-run", *options], terminal_width=200)
    assert done.exit_code == 2
    assert said in done.output


def test_sigterm_removes_the_temporary_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prect", "benchmark-io", "--quick", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("*/phantoms")) and time.monotonic() < until:
            assert running.poll() is None
            time.sleep(0.05)
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted; nothing is left behind" in said
    assert list(tmp_path.iterdir()) == []


def test_the_loaders_read_the_volumes_that_are_named_and_hold_none_out(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    rows = [
        write_toy_store(workspace, f"case-{n}", f"patient-{n}", toy_volume(n)) for n in range(4)
    ]
    write_cache_rows(workspace.cache_manifest(DATASET), rows)
    chosen = [workspace.store(DATASET, f"case-{n}") for n in (1, 3)]
    views = these(workspace, DATASET, chosen).views(recipe(DATASET, 0))
    shown = {views.names.store(views.sampler.sample(index).row) for index in range(2 * len(views))}
    assert shown == set(chosen)
    with pytest.raises(BenchmarkError, match="lists 1 of 2 stores"):
        these(workspace, DATASET, [chosen[0], tmp_path / "elsewhere"])


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
