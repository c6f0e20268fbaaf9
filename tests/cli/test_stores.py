"""export-nifti, remove and gc as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest

from prect.cache.format import SHARD_KEY
from prect.cache.reader import StoreReader
from prect.cli import main
from prect.manifests.status import dataset_status
from prect.workspace import Workspace
from tests.cache.small_workspaces import small_workspace, source_rows, tree

TWO = {"a": {"ct": 1, "x": 5}, "b": {"ct": 1, "y": 6}}


class Said(NamedTuple):
    """What a command wrote."""

    out: str
    err: str


class Prect:
    """The command line in this process, which saves the second that starting one takes."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capture = capture

    def __call__(self, *arguments: object, expect: int = 0) -> Said:
        """What a command writes; its exit status is checked."""
        self._monkeypatch.setattr(sys, "argv", ["prect", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = Said(*self._capture.readouterr())
        assert end.value.code == expect, said
        return said

    def json(self, *arguments: object) -> dict[str, Any]:
        """Its one JSON object; nothing else is written."""
        said = self(*arguments, "--json")
        assert said.err == ""
        document: dict[str, Any] = json.loads(said.out)
        return document


@pytest.fixture
def prect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prect:
    return Prect(monkeypatch, capsys)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path, TWO)


def test_export_writes_what_it_says(prect: Prect, workspace: Workspace, tmp_path: Path) -> None:
    case = source_rows(workspace, "a")["ct"].case
    out = tmp_path / "ct.nii.gz"
    planned = prect.json("export-nifti", case, out, "--level", 1, "--dry-run", "-w", workspace.root)
    assert not out.exists()
    done = prect.json("export-nifti", "a:ct.nii.gz", out, "--level", 1, "-w", workspace.root)
    assert {**planned, "dry_run": False} == done
    image: Any = nib.load(out)
    assert (list(image.shape), image.affine.tolist()) == (done["shape"], done["affine"])
    with StoreReader(workspace.store("a", case)) as reader:
        expected = reader.read(1, (0, 0, 0), reader.levels[1].shape).transpose(2, 1, 0)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected)
    assert (done["path"], done["intensity"]) == (str(out), "hu")
    told = prect("export-nifti", f"a/{case}", tmp_path / "0.nii", "-w", workspace.root)
    assert told.out == ""
    assert f"a/{case}, level 0: " in told.err


def test_export_refuses_in_one_sentence(prect: Prect, workspace: Workspace, tmp_path: Path) -> None:
    store = workspace.store("a", source_rows(workspace, "a")["ct"].case)
    out = tmp_path / "ct.nii"
    out.touch()
    for arguments, sentence in (
        (["ct.nii.gz", "new.nii"], "'ct.nii.gz' may be any of 2 volumes"),
        (["zt.nii.gz", "new.nii"], "near: a:ct.nii.gz, "),
        (["a:ct.nii.gz", "ct.png"], "must be a file name that ends in .nii.gz or .nii"),
        (["a:ct.nii.gz", out], "exists already; give --force"),
        (["a:ct.nii.gz", tmp_path / "new.nii", "--level", 7], "has the levels 0 to 2, not 7"),
    ):
        done = prect("export-nifti", *arguments, "-w", workspace.root, expect=1)
        assert sentence in done.err
        assert done.out == ""
    shard = store / "0" / SHARD_KEY
    shard.write_bytes(shard.read_bytes()[:-1])
    done = prect("export-nifti", store, out, "--force", "-w", workspace.root, expect=1)
    assert "level 0, shard" in done.err
    assert out.read_bytes() == b""
    assert not (tmp_path / "new.nii").exists()


def test_remove_counts_add_up(prect: Prect, workspace: Workspace) -> None:
    before = tree(workspace.root)
    arguments = ("remove", "a", "ct.nii.gz", "-w", workspace.root)
    planned = prect.json(*arguments, "--dry-run")
    assert tree(workspace.root) == before
    done = prect.json(*arguments, "--yes")
    assert {**planned, "dry_run": False} == done
    for name, count in done["taken"].items():
        assert done["before"][name] - count == done["after"][name]
    assert done["taken"] == {"sources": 1, "cached": 1, "quarantined": 0, "stores": 1}
    assert done["changes"] == {"b": {"duplicate -> accepted": 1}}
    status = dataset_status(workspace, "a")
    assert (status.candidates, status.stored, status.orphans) == (1, 1, 0)
    told = prect("remove", "a", "x.nii.gz", "-w", workspace.root, "--yes")
    assert told.out == ""
    assert "The foreign files stay where they are: the next ingest finds them again" in told.err
    assert "0 source rows and 0 stores of a stay" in told.err


def test_remove_says_which_runs_it_cuts_off(prect: Prect, workspace: Workspace) -> None:
    run = workspace.run("demo")
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"data": {"datasets": ["a"]}}))
    told = prect("remove", "a", "--all", "--dry-run", "-w", workspace.root).err
    assert "runs made from a, which stay: demo; its manifest digest changes" in told
    done = prect.json("remove", "a", "--all", "--yes", "-w", workspace.root)
    assert done["runs"] == [{"name": "demo", "running": False}]
    assert (run / "config.json").exists()


def test_remove_takes_one_selection_and_asks(prect: Prect, workspace: Workspace) -> None:
    before = tree(workspace.root)
    for wrong in ((), ("ct.nii.gz", "--all"), ("--all", "--orphans")):
        done = prect("remove", "a", *wrong, "--yes", "-w", workspace.root, expect=2)
        assert "exactly one of" in done.err
    done = prect("remove", "a", "--all", "-w", workspace.root, expect=1)
    assert "give --yes, since nobody can be asked here" in done.err
    assert "nothing to remove" in prect("remove", "a", "--orphans", "-w", workspace.root).err
    assert tree(workspace.root) == before
    assert answered(workspace, "n") == 1
    assert tree(workspace.root) == before
    assert answered(workspace, "y") == 0
    assert not workspace.dataset_cache("a").exists()


def answered(workspace: Workspace, answer: str) -> int:
    """Exit status of a removal whose question is answered on a terminal."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "prect", "remove", "a", "--all", "-w", str(workspace.root)]
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        os.write(controller, f"{answer}\n".encode())
        _, text = process.communicate(timeout=60)
    os.close(controller)
    os.close(terminal)
    assert "Remove 2 volumes of a" in text
    return process.returncode


def test_two_removals_at_once(prect: Prect, workspace: Workspace) -> None:
    """The second waits for nothing: it says so, and its volumes stay."""
    command = [sys.executable, "-m", "prect", "remove", "-w", str(workspace.root), "--yes"]
    with workspace.lock("manifests"):  # holds the first up when it has its locks
        first = subprocess.Popen([*command, "a", "ct.nii.gz"], stderr=subprocess.PIPE, text=True)
        lock = workspace.root / ".remove.lock"
        for _ in range(600):
            if lock.exists() and lock.read_text().endswith(f" {first.pid}"):
                break
            time.sleep(0.1)
        second = prect("remove", "b", "y.nii.gz", "--yes", "-w", workspace.root, expect=1)
        assert f"remove is already running on {workspace.root}" in second.err
        assert f"(process {first.pid} on host " in second.err
    assert "removed; 1 source rows and 1 stores of a stay" in first.communicate(timeout=60)[1]
    assert first.returncode == 0
    assert dataset_status(workspace, "a").stored == 1
    assert dataset_status(workspace, "b").stored == 1
    prect("remove", "b", "y.nii.gz", "--yes", "-w", workspace.root)
    status = dataset_status(workspace, "b")
    assert (status.candidates, status.stored) == (1, 0)


def test_killed_removals_end_when_asked_for_again(prect: Prect, workspace: Workspace) -> None:
    """SIGKILL of the command at random moments; each step is killed in tests/cache."""
    command = [sys.executable, "-m", "prect", "remove", "a", "--all", "--yes", "-w"]
    chance = random.Random(4)
    for _ in range(3):
        process = subprocess.Popen([*command, str(workspace.root)], stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    if workspace.sources("a").parent.exists() or workspace.dataset_cache("a").exists():
        prect("remove", "a", "--all", "--yes", "-w", workspace.root)
    prect("gc", "-w", workspace.root)
    assert [path.name for path in workspace.manifests.iterdir()] == ["b"]
    assert [path.name for path in workspace.cache.iterdir()] == ["b"]
    assert dataset_status(workspace, "b").verdicts["accepted"] == 2


def test_gc_lists_clears_and_leaves(prect: Prect, workspace: Workspace) -> None:
    folder = workspace.dataset_cache("a")
    for mark in ("tmp", "removed", "broken"):
        (folder / f".0123456789abcdef.ome.zarr.{mark}-01234567").mkdir()
        (folder / f".0123456789abcdef.ome.zarr.{mark}-01234567" / "c").write_text("12345")
    alive = workspace.sources("a").with_name(f".sources.parquet.{os.getpid()}.tmp")
    alive.write_text("1")
    workspace.journal("a").mkdir()
    (workspace.journal("a") / "000000.parquet").write_text("12345")
    before = tree(workspace.root)
    listed = prect.json("gc", "--dry-run", "-w", workspace.root)
    assert tree(workspace.root) == before
    assert listed["totals"]["free"] == {"count": 2, "bytes": 10}
    done = prect.json("gc", "-w", workspace.root)
    assert {entry["kind"]: entry["state"] for entry in done["leftovers"]} == {
        "half-written store": "cleared",
        "removed store": "cleared",
        "broken store": "kept",
        "half-written manifest": "held",
    }
    assert done["totals"] == {
        "free": {"count": 0, "bytes": 0},
        "cleared": {"count": 2, "bytes": 10},
        "held": {"count": 1, "bytes": 1},
        "kept": {"count": 1, "bytes": 5},
    }
    assert [(one["path"], one["bytes"]) for one in done["unfinished"]] == [
        (str(workspace.journal("a")), 5)
    ]
    told = prect("gc", "--broken", "-w", workspace.root)
    assert told.out == ""
    assert "1 cleared, 5 B; 1 left alone" in told.err
    assert "the next ingest of a goes on" in told.err
    assert {name for name in before if name not in tree(workspace.root)} == {
        f"cache/a/.0123456789abcdef.ome.zarr.{mark}-01234567/c"
        for mark in ("tmp", "removed", "broken")
    }


def test_gc_needs_a_workspace(prect: Prect, tmp_path: Path) -> None:
    done = prect("gc", "-w", tmp_path / "nothing", expect=1)
    assert "there is no workspace at" in done.err
    assert list(tmp_path.iterdir()) == []
