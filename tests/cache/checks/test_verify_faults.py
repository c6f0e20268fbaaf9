"""What verify must not take for whole, or for broken, and what a repair must leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numcodecs import blosc

from prect.cache.checks import repair as repair_module
from prect.cache.checks.inventory import is_building, list_stores
from prect.cache.checks.remedies import Remedy, Result, remedy
from prect.cache.checks.shards import illegal_values
from prect.cache.checks.validate import check_store, unexpected_files
from prect.cache.checks.verify import verify
from prect.cache.intensity import Intensity
from prect.cache.plan import PASSING_CODES
from prect.manifests.codes import CODES, Effect
from prect.manifests.stores import read_cache_rows, read_quarantine, write_cache_rows
from prect.workspace import Workspace
from tests.cache.places import Place, flip
from tests.cache.test_build import store_files
from tests.cache.whole_stores import Shard, edit_shard, only_deep, scan, write_whole
from tests.conftest import run_json, run_prect


def link_out(path: Path, folder: Path) -> Path:
    """Move a part of a store elsewhere and leave a link; returns where it is now."""
    folder.mkdir()
    shutil.move(path, folder / path.name)
    path.symlink_to(folder / path.name)
    return folder / path.name


@pytest.mark.parametrize("name", ["0", "1/c.0.0.0", "2/zarr.json", "zarr.json"])
def test_a_link_in_a_store_is_a_fault_of_its_own(store: Path, tmp_path: Path, name: str) -> None:
    link_out(store / name, tmp_path / "elsewhere")
    for deep in (False, True):
        (fault,) = check_store(store, deep=deep)
        assert (fault.code, fault.file) == ("store.link", name)
        assert "symbolic link" in fault.detail


def test_what_a_link_leads_to_is_no_part_of_the_store(store: Path, tmp_path: Path) -> None:
    outside = link_out(store / "0", tmp_path / "elsewhere")
    (outside / "thesis.doc").touch()
    assert unexpected_files(store, ["0", "1", "2"]) == []


@pytest.mark.parametrize("name", ["0", "0/c.0.0.0"])
def test_a_repair_never_follows_a_link(place: Place, tmp_path: Path, name: str) -> None:
    outside = link_out(place.store("a") / name, tmp_path / "elsewhere")
    (outside.parent / "thesis.doc").write_text("mine")
    if outside.is_dir():
        (outside / "notes.txt").write_text("mine")
    before = store_files(tmp_path / "elsewhere")
    assert place.repair().sound
    assert store_files(tmp_path / "elsewhere") == before
    place.assert_as_before()
    assert not list(place.workspace.cache.rglob("notes.txt"))


def test_a_file_that_does_not_belong_in_a_store_behind_a_link(place: Place, tmp_path: Path) -> None:
    outside = link_out(place.store("a"), tmp_path / "elsewhere")
    (outside / "thesis.doc").write_text("mine")
    found = place.verify()
    assert remedy(found.broken[0], found.listing) is Remedy.LEAVE
    assert place.repair().counts[Result.LEFT] == 1
    assert (outside / "thesis.doc").read_text() == "mine"


def test_a_link_that_does_not_belong_is_moved_itself(place: Place, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").touch()
    (place.store("a") / "0" / "mine").symlink_to(tmp_path / "mine")
    assert place.repair().sound
    (aside,) = place.workspace.cache.rglob("*.broken-*/0/mine")
    assert aside.is_symlink()
    assert (tmp_path / "mine" / "thesis.doc").exists()
    place.assert_as_before()


def test_a_source_folder_that_is_not_mounted_costs_no_store(place: Place, tmp_path: Path) -> None:
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    (place.store("b") / "thesis.doc").touch()
    before = store_files(place.store("a"))
    place.source.rename(tmp_path / "unmounted")
    root = place.workspace.root
    told = run_json("verify", "-w", root, "--deep", "--repair", "--workers", 1, expect=1)
    (part,) = told["datasets"]
    assert (part["repaired"], part["quarantined"], part["left"]) == (1, 0, 1)
    entry = next(entry for entry in part["broken"] if entry["case"] == place.cases["a"])
    assert entry["result"] == "left as it is"
    assert f"the source folder {place.source} of data set 'd' is not there; mount it" in str(
        entry["reason"]
    )
    assert store_files(place.store("a")) == before
    assert not read_quarantine(place.workspace.quarantine("d"))
    (tmp_path / "unmounted").rename(place.source)
    assert place.repair().sound
    place.assert_as_before()


@pytest.mark.parametrize("instead", [False, True], ids=["a folder", "a link to one"])
def test_a_store_is_left_while_its_source_is_missing(
    place: Place, tmp_path: Path, instead: bool
) -> None:
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    if instead:
        link_out(place.store("a"), tmp_path / "elsewhere")
    before = store_files(place.store("a"))
    (place.source / "a.nii.gz").rename(tmp_path / "aside")
    done = place.repair()
    assert "file.missing" in PASSING_CODES
    assert done.results == {place.cases["a"]: Result.LEFT}
    assert done.reasons[place.cases["a"]].startswith("file.missing: ")
    assert not done.sound
    assert store_files(place.store("a")) == before
    assert place.store("a").is_symlink() == instead
    assert not list(place.workspace.dataset_cache("d").glob(".*"))
    assert not read_quarantine(place.workspace.quarantine("d"))


def test_a_store_that_cannot_be_read_and_has_no_source_is_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.workspace.sources("d").unlink()
    opened = Path.open

    def fail(path: Path, *args: object, **options: object) -> object:
        if path == place.store("a") / "1" / "c.0.0.0":
            raise OSError(5, "Input/output error")
        return opened(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", fail)
    done = place.repair()
    assert done.counts == {Result.REPAIRED: 0, Result.SET_ASIDE: 0, Result.LEFT: 1}
    monkeypatch.undo()
    place.assert_as_before()


def test_a_folder_that_cannot_be_tidied_does_not_end_the_repair(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (place.store(name) / "thesis.doc").touch()
    (place.store("c") / "2" / "thesis.doc").touch()
    flip(place.store("c") / "0" / "c.0.0.0", 100)
    flip(place.store("b") / "0" / "c.0.0.0", 100)
    put_aside = repair_module._put_extra_aside

    def fail(store: Path) -> None:
        if store != place.store("c"):
            raise PermissionError(13, "Permission denied", str(store))
        put_aside(store)

    monkeypatch.setattr(repair_module, "_put_extra_aside", fail)
    done = place.repair()
    case = place.cases
    assert done.results == {case["a"]: Result.LEFT, case["b"]: Result.LEFT, case["c"]: "repaired"}
    assert "Permission denied" in done.reasons[case["a"]]
    monkeypatch.undo()
    assert place.repair().sound
    place.assert_as_before()


@pytest.mark.parametrize("manifest", ["lags", "missing"])
def test_stores_that_a_build_has_not_listed_yet(place: Place, manifest: str) -> None:
    path = place.workspace.cache_manifest("d")
    rows = read_cache_rows(path)
    write_cache_rows(path, rows[:1])
    if manifest == "missing":
        path.unlink()
    root = place.workspace.root
    with place.workspace.lock("build-cache"):
        assert is_building(place.workspace)
        (part,) = run_json("verify", "-w", root)["datasets"]
        assert part["not_yet_listed"] == (2 if manifest == "lags" else 3)
        assert (part["whole"], part["drifted"], part["sound"]) == (3, 0, True)
        assert "whole stores are not yet listed" in run_prect("verify", "-w", root).stderr
        (place.store("b") / "0" / "zarr.json").unlink()
        assert run_json("verify", "-w", root, expect=1)["datasets"][0]["damaged"] == 1
    assert not is_building(place.workspace)
    (found,) = verify(list_stores(place.workspace), None, deep=False)
    assert not found.sound
    assert found.not_yet_listed == 0


def test_a_mistyped_workspace_is_not_made(tmp_path: Path) -> None:
    for options in (["--repair"], ["--rebuild-manifest"], []):
        told = run_prect("verify", *options, "-w", tmp_path / "typo", expect=1).stderr
        assert "there is no data set in" in " ".join(told.split())
    assert not (tmp_path / "typo").exists()
    assert not is_building(Workspace(tmp_path))


@pytest.mark.parametrize("intensity", [Intensity(), Intensity.window(-175, 250)], ids=str)
@pytest.mark.parametrize("shuffle", [blosc.NOSHUFFLE, blosc.SHUFFLE, blosc.BITSHUFFLE])
def test_frames_of_another_shuffle(tmp_path: Path, shuffle: int, intensity: Intensity) -> None:
    store = tmp_path / "case.ome.zarr"
    level = write_whole(store, scan((20, 18, 16)), intensity=intensity).levels[0]
    named = ["noshuffle", "shuffle", "bitshuffle"].index(level.codec.shuffle)
    shard = Shard(store, 0)
    voxels = np.frombuffer(blosc.decompress(shard.frames[0]), dtype=intensity.dtype)
    shard.frames[0] = blosc.compress(voxels, level.codec.cname.encode(), 5, shuffle)
    assert not shard.frames[0][2] & 0b10  # it got smaller
    edit_shard(store, 0, shard.data())
    bytes_alone = intensity.dtype.itemsize == 1 and blosc.BITSHUFFLE not in (shuffle, named)
    if shuffle == named or bytes_alone:
        assert check_store(store, deep=True) == []
        return
    (fault,) = only_deep(store)
    assert fault.code == "store.chunk_codec"
    assert f"the codec has {level.codec.shuffle}" in fault.detail


def test_a_frame_that_is_stored_plain_has_no_shuffle(tmp_path: Path) -> None:
    store = tmp_path / "case.ome.zarr"
    write_whole(store, scan((20, 18, 16)))
    shard = Shard(store, 0)
    voxels = np.frombuffer(blosc.decompress(shard.frames[0]), dtype="<i2")
    cname = b"lz4" if shard.frames[0][2] >> 5 == 1 else b"zstd"
    for shuffle in (blosc.NOSHUFFLE, blosc.SHUFFLE, blosc.BITSHUFFLE):
        shard.frames[0] = blosc.compress(voxels, cname, 0, shuffle)
        assert shard.frames[0][2] & 0b10
        edit_shard(store, 0, shard.data())
        assert check_store(store, deep=True) == []


@pytest.mark.parametrize("step", range(1, 65))
def test_the_legal_values_are_those_that_encoding_makes(step: int) -> None:
    intensity = Intensity(step=step)
    made = set(intensity.encode(np.arange(-1024, 3072, dtype=np.int16)).tolist())
    every = np.arange(-32768, 32768).astype(np.int16)
    assert set(every[~illegal_values(every, intensity)].tolist()) == made


def test_codes_that_leave_the_store_say_so() -> None:
    stay = {"version", "unexpected_file", "no_row", "row_differs", "worker_died"}
    report = {name for name, code in CODES.items() if code.effect is Effect.REPORT}
    assert report == {f"store.{name}" for name in stay}
