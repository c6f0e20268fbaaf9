"""The program that compares layouts: its figures are those of the stores that are written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prect.cache.format import Codec
from prect.cache.profile import load_profile
from prect.cache.writer import StoreWriter
from prect.ingest.harmonise import Harmonised, harmonise
from prect.ingest.readers import READERS
from prect.manifests.limits import Limits
from tests.ingest.volumes import body_volume, write_nifti

PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "layout.py"


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nifti(tmp_path_factory.mktemp("scan") / "tiny.nii.gz", body_volume())


@pytest.fixture(scope="module")
def figures(scan: Path) -> dict[str, Any]:
    """The JSON of a short run on one tiny volume."""
    path = scan.with_name("layout.json")
    done = run_program(
        *("--quick", "--phantoms", 0, "--files", scan, "--profiles", "iso1.5"),
        *("--rounds", 1, "--dir", scan.with_name("stores"), "--json", path),
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def harmonised(scan: Path) -> Harmonised:
    reader = READERS["nifti"]
    volume = reader.read(reader.read_header([scan], Limits()))
    return harmonise(volume, load_profile("iso1.5").harmonisation)


def test_it_writes_what_it_found(figures: dict[str, Any]) -> None:
    assert set(figures) == {"volumes", "reference", "sweep", "reads", "notes", "machine"}
    forms = {row["form"] for row in figures["sweep"]}
    assert forms == {"hu", "window", "hu-step-2", "hu-step-4", "window-int16"}
    assert {each["form"] for each in figures["reads"]} == {"hu", "window"}
    views = {"64^3", "96^3", "v2 region", "v2 aligned", "whole body"}
    for each in figures["reads"]:
        assert set(each["warm_ms"]) == views
        assert all(ms > 0 for times in each["warm_ms"].values() for ms in times)


def test_its_bytes_are_those_of_a_store(
    figures: dict[str, Any], scan: Path, tmp_path: Path
) -> None:
    volume = harmonised(scan)
    rows = [row for row in figures["sweep"] if row["form"] == "hu"]
    assert len(rows) > 4
    for number, row in enumerate(rows):
        chunk = tuple(row["chunk"])
        with StoreWriter(tmp_path / f"{number}.ome.zarr") as writer:
            levels = writer.write_levels(
                volume.voxels, volume.spacing, chunk, Codec.model_validate(row["codec"]), 3
            )
        assert row["level_bytes"] == {scan.name: [level.shard_bytes for level in levels]}
        z, y, x = volume.full_shape
        total = sum(level.shard_bytes for level in levels)
        assert row["ratio"] == pytest.approx(4 * z * y * x / total)


def test_it_says_that_a_volume_is_too_small(figures: dict[str, Any]) -> None:
    assert any("smaller than the v2 region" in note for note in figures["notes"])


def test_cold_reads_are_measured_or_said_to_be_missing(figures: dict[str, Any]) -> None:
    missing = [note for note in figures["notes"] if "cold reads could not be measured" in note]
    for each in figures["reads"]:
        from_device = [mb for times in each["device_mb"].values() for mb in times]
        assert from_device or missing
        assert all(mb > 0 for mb in from_device)


def test_a_file_that_is_no_volume_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "broken.nii.gz"
    path.write_bytes(b"no NIfTI")
    done = run_program("--quick", "--phantoms", 0, "--files", path)
    assert done.returncode == 1
    assert "broken.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr
