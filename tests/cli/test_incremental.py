"""``prect ingest`` a second time: what is read again, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil
import pytest

from prect.manifests.cards import generic_card, write_card
from prect.manifests.sources import SourceRow, read_sources
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.conftest import run_json, run_prect
from tests.ingest.volumes import body_volume, write_nifti
from tests.precttree import write_labels, write_scan

CARD = """
name: set
original: {{images: ["*.nii.gz"], dicom: true}}
limits: {{{limits}}}
"""


class Place:
    """A folder of scans beside a workspace, and the command that joins them."""

    def __init__(self, folder: Path, scheduler: str) -> None:
        self.scheduler = scheduler
        self.source = folder / "source"
        self.workspace = folder / "workspace"
        self.source.mkdir()

    def ingest(self, *options: object, dataset: object = "set") -> dict[str, Any]:
        return run_json("ingest", dataset, *self.arguments, "--scheduler", self.scheduler, *options)

    @property
    def arguments(self) -> tuple[object, ...]:
        return ("--source", self.source, "-w", self.workspace)

    @property
    def manifest(self) -> Path:
        return self.workspace / "manifests" / "set" / "sources.parquet"

    def rows(self) -> dict[str, SourceRow]:
        return {row.source: row for row in read_sources(self.manifest)}

    def history(self) -> list[dict[str, Any]]:
        lines = self.manifest.with_name("history.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def scans(self, *names: str) -> None:
        for name in names:
            write_scan(self.source / f"{name}.nii.gz", seed=sum(map(ord, name)))


@pytest.fixture
def place(tmp_path: Path, scheduler: str) -> Place:
    return Place(tmp_path, scheduler)


def replaced_unnoticed(path: Path) -> None:
    """Replace the content, but keep the size and the time that the file system shows."""
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_unchanged_tree_is_not_opened(place: Place) -> None:
    place.scans("a", "b/c")
    series = write_case(make_case(5, 0), place.source / "series", "dicom")
    write_labels(place.source / "mask.nii.gz", 1)
    (place.source / "notes.txt").write_text("no image")
    (series / "report.bin").write_bytes(b"no DICOM")
    first = place.ingest()
    assert (first["judged"], first["kept"]) == (4, 0)
    before = place.rows()

    # Content that no reader takes, behind the same sizes and times: to open one is to reject it.
    for path in place.source.rglob("*"):
        if path.is_file():
            replaced_unnoticed(path)
    second = place.ingest()
    assert (second["judged"], second["kept"], second["candidates"]) == (0, 4, 4)
    assert second["removed"] == []
    assert place.rows() == before
    same = ("candidates", "verdicts", "codes", "usable", "labels", "unlisted", "other_files")
    assert {key: second[key] for key in same} == {key: first[key] for key in same}

    third = place.ingest("--rehash")
    assert third["kept"] == 0
    assert third["verdicts"]["accepted"] == third["verdicts"]["warned"] == 0


@pytest.mark.slow
def test_contents_decide_with_rehash(place: Place) -> None:
    place.scans("a", "b")
    write_case(make_case(5, 0), place.source / "series", "dicom")
    place.ingest()
    before = place.rows()
    replaced_unnoticed(place.source / "b.nii.gz")
    for path in (*place.source.glob("series/*"), place.source / "a.nii.gz"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    summary = place.ingest("--rehash")
    assert (summary["judged"], summary["kept"]) == (1, 2)
    rows = place.rows()
    assert rows["b.nii.gz"].verdict == "rejected"
    for source in ("a.nii.gz", "series"):
        assert rows[source].source_digest == before[source].source_digest
        assert rows[source].verdict == "accepted"
    # The new times are known from now on.
    assert place.ingest()["judged"] == 0


def test_only_what_changed_is_judged_and_what_went_is_told(place: Place) -> None:
    place.scans("a", "b", "c")
    place.ingest()
    before = place.rows()
    write_scan(place.source / "a.nii.gz", seed=1)
    (place.source / "b.nii.gz").unlink()
    place.scans("d")
    summary = place.ingest()
    assert (summary["judged"], summary["kept"]) == (2, 1)
    assert summary["removed"] == ["b.nii.gz"]
    rows = place.rows()
    assert sorted(rows) == ["a.nii.gz", "c.nii.gz", "d.nii.gz"]
    assert rows["a.nii.gz"].case == before["a.nii.gz"].case
    assert rows["a.nii.gz"].voxel_digest != before["a.nii.gz"].voxel_digest
    assert rows["c.nii.gz"] == before["c.nii.gz"]

    history = place.history()
    assert [entry["event"] for entry in history].count("ingest") == 2
    gone = {e["row"]["source"]: e["row"] for e in history if e["event"] == "taken away"}
    assert sorted(gone) == ["a.nii.gz", "b.nii.gz"]
    assert gone["b.nii.gz"]["case"] == before["b.nii.gz"].case
    assert gone["a.nii.gz"]["source_digest"] == before["a.nii.gz"].source_digest


def test_a_slice_more_re_judges_its_folder_alone(place: Place) -> None:
    place.scans("a")
    for index, name in enumerate(("first", "second")):
        write_case(make_case(6, index), place.source / name, "dicom")
    last = sorted((place.source / "first").iterdir())[-1]
    kept_back = last.rename(place.source.with_name("kept-back"))
    place.ingest()
    before = place.rows()
    kept_back.rename(last)
    # The other folder cannot have been opened: its slices are no DICOM any more.
    for path in (place.source / "second").iterdir():
        replaced_unnoticed(path)
    summary = place.ingest()
    assert (summary["judged"], summary["kept"]) == (1, 2)
    rows = place.rows()
    assert rows["first"].shape[2] == before["first"].shape[2] + 1
    assert rows["first"].verdict == "accepted"
    assert (rows["second"], rows["a.nii.gz"]) == (before["second"], before["a.nii.gz"])


@pytest.mark.slow
def test_other_limits_judge_everything_again(place: Place, tmp_path: Path) -> None:
    place.scans("a", "b")
    card = tmp_path / "set.yaml"
    card.write_text(CARD.format(limits="min_voxels: 20"))
    assert place.ingest(dataset=card)["verdicts"]["accepted"] == 2
    assert place.ingest(dataset=card)["judged"] == 0
    card.write_text(CARD.format(limits="min_voxels: 21"))
    summary = place.ingest(dataset=card)
    assert (summary["judged"], summary["verdicts"]["rejected"]) == (2, 2)
    card.write_text(CARD.format(limits="min_voxels: 21") + "title: another\nnotes: more\n")
    assert place.ingest(dataset=card)["judged"] == 0, "a text for people changes no judgement"


def test_a_dry_run_tells_and_changes_nothing(place: Place) -> None:
    place.scans("a")
    place.ingest()
    place.scans("b")
    before = {p: p.read_bytes() for p in place.workspace.rglob("*") if p.is_file()}
    summary = place.ingest("--dry-run")
    assert (summary["judged"], summary["kept"], summary["manifest"]) == (1, 1, None)
    assert {p: p.read_bytes() for p in place.workspace.rglob("*") if p.is_file()} == before


def test_an_empty_folder_does_not_wipe_out_a_manifest(place: Place) -> None:
    place.scans("a")
    place.ingest()
    before = place.manifest.read_bytes()
    (place.source / "a.nii.gz").rename(place.workspace / "a.nii.gz")
    done = run_prect("ingest", "set", *place.arguments, expect=1)
    assert "--replace" in done.stderr
    assert place.manifest.read_bytes() == before
    assert place.ingest("--replace")["removed"] == ["a.nii.gz"]
    assert place.rows() == {}


def test_a_folder_that_cannot_be_listed_is_reported(place: Place) -> None:
    place.scans("a", "z")
    # Root may list any folder, but nobody a path that is longer than the system allows.
    with chdir(place.source):
        for _ in range(20):
            Path("n" * 250).mkdir()
            os.chdir("n" * 250)
    summary = place.ingest()
    assert summary["codes"] == {"file.unreadable_folder": 1}
    assert summary["verdicts"]["accepted"] == 2


def started(place: Place) -> subprocess.Popen[bytes]:
    """An ingest that has begun to judge: its worker is there."""
    options = (*map(str, place.arguments), "--workers", "1")
    command = [sys.executable, "-m", "prect", "ingest", "set", *options]
    ingest = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and ingest.poll() is None:
        workers = [c for c in psutil.Process(ingest.pid).children() if c.cpu_times().user > 1.2]
        if workers:
            return ingest
        time.sleep(0.02)
    pytest.fail("no worker was seen at work")


def ended(processes: list[psutil.Process]) -> None:
    """Wait for workers whose driver was killed; none may stay."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    for process in alive:
        process.kill()
    assert not alive, "workers outlived their driver"


def test_a_killed_ingest_leaves_the_manifest_and_the_next_one_ends(place: Place) -> None:
    place.scans("a", "b")
    place.ingest()
    for seed in range(200):
        write_scan(place.source / f"more/{seed:04d}.nii.gz", 1000 + seed)
    before = place.manifest.read_bytes()

    ingest = started(place)
    children = psutil.Process(ingest.pid).children(recursive=True)
    ingest.send_signal(signal.SIGKILL)
    assert ingest.wait(30) == -signal.SIGKILL, "it had ended before it was killed"
    ended(children)
    assert place.manifest.read_bytes() == before

    ingest = started(place)
    ingest.send_signal(signal.SIGINT)
    assert ingest.wait(60) == 130
    assert place.manifest.read_bytes() == before
    assert sorted(place.rows()) == ["a.nii.gz", "b.nii.gz"]

    summary = place.ingest()
    assert summary["verdicts"]["accepted"] == summary["candidates"] == 202
    assert summary["removed"] == []
    assert not [path for path in place.workspace.rglob("*") if path.suffix == ".tmp"]


def test_an_own_card_is_not_forgotten(tmp_path: Path, scheduler: str) -> None:
    """Ingested again by its name, a data set keeps the card that it was ingested with."""
    source = tmp_path / "source"
    source.mkdir()
    write_nifti(source / "a.nii.gz", body_volume(seed=1))
    card = generic_card("mine")
    limits = card.limits.model_copy(update={"min_voxels": 200})
    write_card(tmp_path / "mine.yaml", card.model_copy(update={"limits": limits}))
    workspace = tmp_path / "workspace"
    for name in (tmp_path / "mine.yaml", "mine"):
        place = ("-w", workspace, "--scheduler", scheduler)
        summary = run_json("ingest", name, "--source", source, *place)
        assert summary["verdicts"]["rejected"] == 1
    summary = run_json("ingest", tmp_path / "mine.yaml", "--explain", "a.nii.gz", "-w", workspace)
    assert summary["row"]["code"] == "geometry.too_small"


def test_a_split_that_is_kept_out_is_not_lost(tmp_path: Path, scheduler: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for seed, name in enumerate("ab"):
        write_nifti(source / f"{name}.nii.gz", body_volume(seed=seed))
    (source / "list.json").write_text(json.dumps({"training": ["a.nii.gz"], "test": ["b.nii.gz"]}))
    workspace = tmp_path / "workspace"
    place = ("--source", source, "-w", workspace, "--scheduler", scheduler)
    listed = (*place, "--list", source / "list.json")
    summary = run_json("ingest", "set", *listed, "--exclude-benchmark", "set:test")
    assert summary["verdicts"]["excluded"] == 1
    assert summary["benchmarks"] == [{"name": "set:test", "volumes": 1, "copies": 0, "unread": 0}]
    refused = run_prect("ingest", "set", *place, expect=1)
    assert "--include-benchmark set:test" in refused.stderr
    again = (*place, "--include-benchmark", "set:test")
    assert run_json("ingest", "set", *again)["verdicts"]["accepted"] == 2
