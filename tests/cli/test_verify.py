"""prect verify as a user runs it: what it prints, mends and returns."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from prect.cache.checks.verify import Kind
from prect.manifests.stores import read_cache_rows
from tests.cache.inline import inline_client
from tests.cache.places import Place, build_three, flip
from tests.cache.test_build import store_files
from tests.conftest import run_json, run_prect


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with inline_client() as client:
        yield client


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Path:
    return build_three(tmp_path_factory.mktemp("built"), client)


@pytest.fixture
def place(built: Path, tmp_path: Path, client: Client) -> Place:
    return Place(built, tmp_path, client)


LOADED = """
import sys
from prect.cli import app
sys.argv = ["prect", *sys.argv[1:]]
try:
    app()
except SystemExit as ended:
    assert not ended.code, ended.code
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("option", ["--json", "--deep"])
def test_a_look_at_a_few_stores_needs_no_library_of_ingest(place: Place, option: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "verify", "-w", str(place.workspace.root), option],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "numcodecs" in loaded  # the stores were looked at
    assert not loaded & {"SimpleITK", "nibabel", "pydicom", "torch", "dask", "distributed", "zarr"}


def test_the_whole_way_of_a_damaged_workspace(place: Place) -> None:
    root = place.workspace.root
    options = ("-w", root, "--deep")
    flip(place.store("a") / "0" / "c.0.0.0", 500)
    (place.store("b") / "1" / "c.0.0.0").unlink()
    damaged = store_files(root)

    told = run_json("verify", *options, "--repair", "--dry-run", expect=1)
    assert store_files(root) == damaged  # nothing was written, not even a lock
    (part,) = told["datasets"]
    counts = {key: part[key] for key in ("checked", "whole", "damaged", "missing", "drifted")}
    assert counts == {"checked": 3, "whole": 1, "damaged": 2, "missing": 0, "drifted": 0}
    assert not told["sound"]
    broken = {entry["case"]: entry for entry in part["broken"]}
    assert {entry["remedy"] for entry in broken.values()} == {"rebuild"}
    first = broken[place.cases["a"]]["faults"][0]
    assert (first["code"], first["file"], first["level"]) == (
        "store.chunk_checksum",
        "0/c.0.0.0",
        0,
    )
    assert first["chunk"] == [0, 0, 0]

    done = run_json("verify", *options, "--repair", "--workers", 2)
    assert done["sound"]
    assert (done["datasets"][0]["repaired"], done["datasets"][0]["left"]) == (2, 0)
    place.assert_as_before()


def test_what_people_see(place: Place) -> None:
    flip(place.store("a") / "0" / "c.0.0.0", 500)
    place.forbid()
    root = place.workspace.root
    deep = run_prect("verify", "d", "-w", root, "--deep", expect=1).stderr
    assert f"damaged: d/{place.cases['a']}" in deep
    assert "store.chunk_checksum (0/c.0.0.0, chunk (0, 0, 0)): it does not match" in deep
    assert "prect verify --repair builds the store again from its source" in deep
    mended = run_prect("verify", "-w", root, "--deep", "--repair", "--workers", 1, expect=1).stderr
    assert "[set aside: hu.no_soft_tissue: " in mended
    assert "prect build-cache" in mended
    assert place.verify().sound


def test_the_manifest_alone(place: Place) -> None:
    root = place.workspace.root
    path = place.workspace.cache_manifest("d")
    path.unlink()
    seen = run_prect("verify", "-w", root, "--rebuild-manifest", "--dry-run", expect=1).stderr
    assert "d: the cache manifest is missing" in seen
    assert "--rebuild-manifest" in seen
    assert not path.exists()
    assert run_json("verify", "-w", root, "--rebuild-manifest")["sound"]
    assert path.read_bytes() == place.manifest
    assert len(read_cache_rows(path)) == 3


def test_stores_outside_of_a_workspace(place: Place, tmp_path: Path) -> None:
    whole = place.store("a").rename(tmp_path / place.store("a").name)
    broken = place.store("b").rename(tmp_path / place.store("b").name)
    (broken / "2" / "zarr.json").unlink()
    nowhere = ("-w", tmp_path / "nowhere")
    told = run_json("verify", "--store", whole, "--store", broken, *nowhere, expect=1)
    assert told["datasets"] == []
    assert [store["sound"] for store in told["stores"]] == [True, False]
    assert told["stores"][1]["broken"][0]["store"] == str(broken)
    done = run_prect("verify", "--store", whole, "--repair", *nowhere, expect=2)
    assert "verified, not repaired" in done.stderr
    done = run_prect("verify", *nowhere, expect=1)
    assert "there is no data set in" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_repair_waits_for_no_build(place: Place) -> None:
    shutil.rmtree(place.store("a"))
    with place.workspace.lock("build-cache"):
        done = run_prect("verify", "-w", place.workspace.root, "--repair", expect=1)
        assert "build-cache is already running" in done.stderr
        assert place.verify().kinds[Kind.MISSING] == 1
