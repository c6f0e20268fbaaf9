"""The benchmark of building: what it says of sizes is what the files are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# It runs the program, which has a make target of its own.
pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "build.py"
WITHIN = {"hu": 5.0, "window": 15.0}


def total(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The JSON document of a run on one small phantom, and the files that it left."""
    folder = tmp_path_factory.mktemp("benchmark")
    document, kept = folder / "build.json", folder / "kept"
    command = [sys.executable, PROGRAM, "--quick", "--only", "size", "--phantoms", "1"]
    done = subprocess.run(
        [*map(str, command), "--json", str(document), "--keep", str(kept)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (volume,) = (kept / "size").iterdir()
    return json.loads(document.read_text()), volume


def test_ratios_are_those_of_the_files_on_disk(measured: tuple[dict[str, Any], Path]) -> None:
    document, files = measured
    goals = {each["name"].split(", ", 1)[1]: each for each in document["goals"]}
    assert goals.keys() == {f"{r}, {i}" for r in ("abdomen", "chest") for i in ("hu", "window")}
    for recipe in ("abdomen", "chest"):
        for intensity, least in WITHIN.items():
            ratio = total(files / recipe / "persistent") / total(
                files / recipe / f"{intensity}.ome.zarr"
            )
            each = goals[f"{recipe}, {intensity}"]
            assert each["ratio"] == pytest.approx(ratio, rel=1e-12)
            assert each["met"] == (ratio >= least)
            assert each["goal"] == f">= {least:g}"


def test_the_reference_is_the_whole_volume_in_float32(
    measured: tuple[dict[str, Any], Path],
) -> None:
    document, _ = measured
    for volume in document["sections"]["size"]["volumes"]:
        # The pickle holds what lies outside of the crop too, and little else than voxels.
        assert volume["cropped_bytes"] <= volume["tensor_bytes"] < volume["reference_bytes"]
        assert volume["reference_bytes"] < 1.01 * volume["tensor_bytes"]
        # Body and margin lie within the whole field of view, so that the bound is one.
        z, y, x = volume["stores"]["hu"]["shape"]
        assert 4 * x * y * z <= 1.05 * volume["tensor_bytes"]


def test_coarser_steps_take_less_and_say_their_error(
    measured: tuple[dict[str, Any], Path],
) -> None:
    document, _ = measured
    for volume in document["sections"]["size"]["volumes"]:
        stores = volume["stores"]
        order = [stores[name] for name in ("hu", "hu, step 2", "hu, step 4", "window")]
        sizes = [store["bytes"] for store in order]
        assert sizes == sorted(sizes, reverse=True)
        assert len(set(sizes)) == 4
        assert [store["max_error_hu"] for store in order[:3]] == [0, 1, 2]
