"""The commands as a user runs them: what they print, write and return."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prect.errors import WorkspaceError
from prect.workspace import Workspace
from tests.conftest import Built, run_json, run_prect
from tests.ingest.volumes import body_volume, write_nifti


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def test_help_is_quick() -> None:
    """Held against the libraries that draw it, taken in turn: the machine may be busy."""
    done = run_prect("--help")  # the first run compiles
    bare = [sys.executable, "-c", "import typer, typer.rich_utils"]
    turns = [
        (seconds(lambda: run_prect("--help")), seconds(lambda: subprocess.run(bare, check=True)))
        for _ in range(5)
    ]
    own, libraries = (min(column) for column in zip(*turns, strict=True))
    assert own < 2.5 * libraries
    for command in ("phantom", "ingest", "build-cache", "train", "export", "status"):
        assert command in done.stdout


def test_the_whole_road_with_json(tmp_path: Path) -> None:
    source, workspace = tmp_path / "source", tmp_path / "workspace"
    made = run_json("phantom", source, "--cases", 4, "--seed", 3)
    assert [case["format"] for case in made["cases"]] == ["nifti", "dicom", "mha", "nrrd"]
    (source / "notes.txt").write_text("not an image")
    write_nifti(source / "mask.nii.gz", (body_volume() > -500).astype(np.uint8))

    judged = run_json("ingest", "ph", "--source", source, "-w", workspace)
    assert judged["candidates"] == 5
    assert judged["verdicts"]["accepted"] == 4
    assert judged["codes"] == {"content.label_map": 1}
    assert judged["other_files"][".txt"] == 1

    before = run_json("status", "-w", workspace)["datasets"][0]
    assert (before["usable"], before["stored"], before["pending"]) == (4, 0, 4)
    plan = run_json("build-cache", "-w", workspace, "--dry-run")
    assert plan["datasets"][0]["todo"] == 4
    assert not (workspace / "cache").exists()

    built = run_json("build-cache", "ph", "-w", workspace, "--workers", 2)["datasets"][0]
    assert (built["usable"], built["stored"], built["quarantined"]) == (4, 4, 0)
    again = run_json("build-cache", "ph", "-w", workspace)["datasets"][0]
    assert (again["built"], again["kept"]) == (0, 4)

    after = run_json("status", "-w", workspace)
    assert after["datasets"][0]["stored"] == 4
    assert after["totals"]["bytes"] == built["bytes"] > 0
    stores = sorted((workspace / "cache" / "ph").iterdir())
    assert (
        sum(f.stat().st_size for s in stores for f in s.rglob("*") if f.is_file())
        == (built["bytes"])
    )


def test_strict_tells_by_the_exit_status(tmp_path: Path, scheduler: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_nifti(source / "ct.nii.gz", body_volume())
    place = ("-w", tmp_path / "w", "--scheduler", scheduler)
    run_json("ingest", "a", "--source", source, *place, "--strict")
    write_nifti(source / "mask.nii.gz", (body_volume() > -500).astype(np.uint8))
    run_json("ingest", "a", "--source", source, *place, "--strict", expect=3)
    (source / "ct.nii.gz").unlink()
    run_json("build-cache", *place, "--strict", expect=3)


def test_a_dry_run_writes_nothing(tmp_path: Path, scheduler: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_nifti(source / "ct.nii.gz", body_volume())
    place = ("-w", tmp_path / "w", "--scheduler", scheduler)
    seen = run_json("ingest", "a", "--source", source, *place, "--dry-run")
    assert seen["verdicts"]["accepted"] == 1
    assert seen["manifest"] is None
    run_prect("phantom", tmp_path / "p", "--dry-run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ingest", "a", "--source", "nowhere"], "is not a folder"),
        (["ingest", "../a", "--source", "."], "cannot be used"),
        (["build-cache"], "run: prect ingest"),
        (["build-cache", "unknown"], "has not been ingested"),
        (["build-cache", "a", "--profile", "iso9"], "no profile 'iso9'"),
    ],
)
def test_a_users_error_is_one_sentence_and_status_1(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = run_prect(*arguments, "-w", tmp_path / "w", expect=1)
    assert sentence in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "--json"],
        ["verify"],
        ["verify", "--repair"],
        ["gc"],
        ["remove", "a", "--all"],
        ["build-cache"],
        ["ingest", "a", "--source", "."],
        ["export-nifti", "a/b", "out.nii.gz"],
    ],
    ids=" ".join,
)
def test_a_workspace_that_is_a_file_is_a_users_error(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "w"
    path.write_text("mine")
    done = run_prect(*arguments, "-w", path, expect=1)
    assert f"error: the workspace {path} is a file" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert path.read_text() == "mine"


def test_a_workspace_below_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="or lies below one"):
        Workspace(tmp_path / "file" / "w")
    Workspace(tmp_path)
    Workspace(tmp_path / "none" / "w")  # it is made when something is written


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    run_prect("ingest", "a", expect=2)
    run_prect("no-such-command", expect=2)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "file").touch()
    assert "not empty" in run_prect("phantom", tmp_path / "p", expect=1).stderr


def test_tables_for_people_go_to_standard_error(phantom_built: Built) -> None:
    done = run_prect("status", "-w", phantom_built.workspace.root)
    assert done.stdout == ""
    assert "phantoms" in done.stderr
    done = run_prect("build-cache", "-w", phantom_built.workspace.root)
    assert "usable = stored + quarantined + pending" in done.stderr


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    import runpy

    from tests.conftest import REPOSITORY

    page = runpy.run_path(str(REPOSITORY / "docs" / "generate.py"))
    stored = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert stored == page["reference"](), "run: make docs"
