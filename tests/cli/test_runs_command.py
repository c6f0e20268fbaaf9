"""`prect runs`: the list, one run with its tables and its picture, and calls that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prect.cli import app
from prect.workspace import Workspace
from tests.conftest import run_prect
from tests.train.report.run_folders import write_run

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """Two runs: one stopped after incidents on two processes, one that has not begun."""
    workspace = Workspace(tmp_path / "w")
    incidents = [
        {"step": 1 + i % 4, "kind": kind, "text": f"text {i}"}
        for i, kind in enumerate(["spike"] * 11 + ["save_failed"])
    ]
    write_run(
        workspace.run("voco-one"),
        steps=2000,
        max_steps=9000,
        totals={0: (0.8, 0.3), 2000: (0.4, 0.7)},
        incidents=incidents,
        ranks=2,
    )
    workspace.run("empty").mkdir()
    return workspace


def call(place: Workspace, *arguments: str) -> Any:
    result = CliRunner().invoke(app, ["runs", *arguments, "--workspace", str(place.root)])
    assert result.exception is None, result.exception
    return result


def test_the_list_tells_of_every_run(place: Workspace) -> None:
    result = call(place, "--json")
    document = json.loads(result.stdout)
    assert [run["name"] for run in document["runs"]] == ["voco-one", "empty"]
    first = document["runs"][0]
    assert (first["state"], first["step"], first["max_steps"]) == ("stopped", 2000, 9000)
    assert (first["learned"], first["checkpoints"]) == (True, [2000])
    assert first["heldout"]["total"] == 0.4
    assert first["incidents"] == {"spike": 11, "save_failed": 1}
    assert first["updated"] == "2026-01-02T03:04:05+00:00"

    table = call(place)
    assert table.stdout == ""
    line = next(line for line in table.stderr.splitlines() if "voco-one" in line)
    for cell in ("stopped", "2,000/9,000", "0.400", "70%", "yes", "8.0", "1.0%", "ago"):
        assert cell in line
    assert "11 spike, 1 save failed" in line
    assert "never began" in table.stderr


def test_a_run_is_shown_and_drawn(place: Workspace) -> None:
    picture = place.run("voco-one") / "curves.png"
    dry = call(place, "show", "voco-one", "--dry-run")
    assert not picture.exists()
    assert f"curves: {picture} (dry run, not written)" in dry.stderr

    shown = call(place, "show", "voco-one")
    assert shown.stdout == ""
    assert picture.read_bytes().startswith(PNG)
    text = shown.stderr
    assert "voco-one: stopped (SIGTERM), 2,000/9,000 steps, last heard of" in text
    assert "0.6 (best constant)" in text
    assert "25.0% (chance)" in text
    assert "learned: yes" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["volumes_per_s", "8", "volumes/s"] in lines
    assert ["1", "2,000", "2", "0.04", "1"] in lines  # the second process waits for 0.04 s
    assert "incidents: 11 spike, 1 save failed; the newest 10:" in text
    assert "  step 4, save failed: text 11" in text
    assert "text 0" not in text


def test_a_run_is_one_json_object(place: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "mine.png"
    folder = str(place.run("voco-one"))
    document = json.loads(call(place, "show", folder, "--out", str(out), "--json").stdout)
    assert out.read_bytes().startswith(PNG)
    assert (document["picture"], document["dry_run"]) == (str(out), False)
    assert document["training"]["step"] == 2000
    assert document["untrained"]["total"] == 0.8
    assert document["ranks"]["1"]["wait_s"] == 0.04
    assert len(document["happenings"]) == 12


def test_a_run_without_figures_is_not_drawn(place: Workspace) -> None:
    shown = call(place, "show", "empty")
    assert "empty: never began, 0 steps, last heard of never" in shown.stderr
    assert "nothing to draw" in shown.stderr
    assert list(place.run("empty").iterdir()) == []
    assert json.loads(call(place, "show", "empty", "--json").stdout)["picture"] is None


def test_the_workspace_may_stand_before_the_command(place: Workspace) -> None:
    arguments = ["runs", "-w", str(place.root), "show", "empty"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "empty: never began" in result.stderr


def test_no_runs_are_no_error(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "none")
    assert f"no runs in {place.runs}" in call(place).stderr.replace("\n", "")
    assert json.loads(call(place, "--json").stdout)["runs"] == []
    assert not place.root.exists()


def test_wrong_calls_are_told(place: Workspace) -> None:
    done = run_prect("runs", "show", "voco-oen", "-w", place.root, expect=1)
    assert "error: there is no run 'voco-oen'" in done.stderr
    assert "there are voco-one, empty" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_prect("runs", "-w", place.root, "--json", "show", "empty", expect=2)
    assert "--json goes after" in done.stderr
