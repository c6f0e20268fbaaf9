"""Data sets are held against their manifest, and mended so that nobody sees a difference."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prect.cache import verify as verify_module
from prect.cache.build import build, make_plan
from prect.cache.convert import convert, stored_row
from prect.cache.inventory import Manifest, list_outside, list_stores
from prect.cache.plan import usable_jobs
from prect.cache.profile import Profile
from prect.cache.repair import Remedy, Result, rebuild_manifest, remedy, repair
from prect.cache.validate import check_store
from prect.cache.verify import Batch, Checked, Kind, Verification, check_batch, verify
from prect.errors import ManifestError
from prect.manifests.stores import (
    read_cache_rows,
    read_cache_table,
    read_quarantine,
    write_cache_rows,
)
from prect.workspace import Workspace
from tests.cache.inline import inline_client
from tests.cache.places import NAMES, PROFILE, Place, build_three, flip
from tests.cache.test_build import store_files
from tests.cache.whole_stores import Shard, drop_chunk, edit_attributes
from tests.ingest.volumes import body_volume, write_nifti


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


def kinds(found: Verification) -> dict[str, str]:
    return {broken.case: broken.kind.value for broken in found.broken}


# Verify


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_data_set(place: Place, deep: bool) -> None:
    found = place.verify(deep=deep)
    assert (found.checked, found.whole, found.sound) == (3, 3, True)
    assert found.bytes == sum(map(len, place.before.values()))
    assert (found.orphans, found.stale, found.half_written, found.set_aside) == (0, 0, 0, 0)
    place.assert_as_before()


def test_every_kind_is_told_apart(place: Place) -> None:
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    shutil.rmtree(place.store("b"))
    edit_attributes(place.store("c"), lambda attributes: attributes.update(format_version=7))
    extra = place.workspace.store("d", "extra")
    shutil.copytree(place.store("a"), extra)
    found = place.verify()
    assert kinds(found) == {
        place.cases["a"]: "damaged",
        place.cases["b"]: "missing",
        place.cases["c"]: "other version",
        "extra": "damaged",  # its attributes say another case
    }
    assert (found.checked, found.whole, found.orphans) == (4, 0, 1)
    assert kinds(place.verify(deep=False)) == {
        case: kind for case, kind in kinds(found).items() if case != place.cases["a"]
    }


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_number_of_stores_a_job_changes_nothing(
    place: Place, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "_STORES_A_JOB", size)
    monkeypatch.setattr(verify_module, "_JOBS_A_WORKER", 1)
    flip(place.store("b") / "1" / "c.0.0.0", -30)
    seen: list[Checked] = []
    (found,) = verify(
        list_stores(place.workspace), place.client, deep=True, collect=True, on_batch=seen.append
    )
    assert [checked.stores for checked in seen] == {1: [1, 1, 1], 2: [2, 1], 64: [3]}[size]
    assert kinds(found) == {place.cases["b"]: "damaged"}
    assert sum(map(len, found.tables)) == 2


def test_rows_that_differ_from_the_stores(place: Place) -> None:
    path = place.workspace.cache_manifest("d")
    rows = read_cache_rows(path)
    wrong = {"shape": (1, 2, 3), "bytes": 5, "digest": "0" * 32, "hu_step": 2, "patient": "x"}
    for name, value in wrong.items():
        changed = type(rows[1])(**(vars(rows[1]) | {name: value}))
        write_cache_rows(path, [rows[0], changed, rows[2]])
        for deep in (False, True):
            (broken,) = place.verify(deep=deep).broken
            assert (broken.case, broken.kind) == (rows[1].case, Kind.DRIFTED)
            assert [fault.code for fault in broken.faults] == ["store.row_differs"]
            assert f"{name} is {value!r}, the store says" in broken.faults[0].detail
    write_cache_rows(path, [rows[0], rows[0], rows[2]])
    found = place.verify()
    assert {b.case: b.faults[0].code for b in found.broken} == {
        rows[0].case: "store.row_differs",
        rows[1].case: "store.no_row",
    }
    assert place.repair().sound
    place.assert_as_before()


def test_a_row_of_another_data_set_or_a_store_of_one(place: Place) -> None:
    place.workspace.dataset_cache("d").rename(place.workspace.dataset_cache("e"))
    place.workspace.cache_manifest("e").parent.mkdir()
    shutil.copy(place.workspace.cache_manifest("d"), place.workspace.cache_manifest("e"))
    found = dict(
        zip("de", verify(list_stores(place.workspace), place.client, deep=False), strict=True)
    )
    assert set(kinds(found["d"]).values()) == {"missing"}
    assert {b.faults[0].code for b in found["e"].broken} == {"store.name"}
    assert len(found["e"].broken) == 3


def test_stores_alone_are_verified_without_any_manifest(place: Place) -> None:
    shutil.rmtree(place.workspace.manifests)
    found = place.verify()
    assert (found.checked, found.sound, found.listing.manifest) == (3, True, Manifest.NONE)
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    found = place.verify()
    assert (found.whole, found.sound) == (2, False)
    assert remedy(found.broken[0], found.listing) is Remedy.SET_ASIDE


def test_without_a_source_manifest_the_rows_are_compared_all_the_same(place: Place) -> None:
    place.workspace.sources("d").unlink()
    assert place.verify().sound
    write_cache_rows(place.workspace.cache_manifest("d"), [])
    assert set(kinds(place.verify()).values()) == {"drifted"}
    assert place.repair().sound
    place.assert_as_before()


def test_a_manifest_that_is_gone_or_damaged_is_said(place: Place) -> None:
    path = place.workspace.cache_manifest("d")
    path.unlink()
    found = place.verify()
    assert (found.whole, found.sound, found.listing.manifest) == (3, False, Manifest.MISSING)
    path.write_bytes(b"PAR1")
    found = place.verify()
    assert (found.whole, found.sound, found.listing.manifest) == (3, False, Manifest.DAMAGED)
    assert place.repair().sound
    place.assert_as_before()


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
@given(position=st.floats(0, 1, exclude_max=True), by=st.integers(1, 255))
def test_a_flipped_byte_of_the_manifest_never_raises_and_is_mended(
    place: Place, position: float, by: int
) -> None:
    path = place.workspace.cache_manifest("d")
    data = bytearray(place.manifest)
    data[int(position * len(data))] ^= by
    path.write_bytes(bytes(data))
    found = place.verify(deep=False, collect=True)
    assert set(kinds(found).values()) <= {"drifted", "missing"}
    rebuild_manifest(found, place.workspace)
    assert path.read_bytes() == place.manifest


def test_orphans_and_stale_stores_are_counted_and_not_broken(place: Place) -> None:
    (place.source / "a.nii.gz").unlink()
    write_nifti(place.source / "b.nii.gz", body_volume(seed=9))
    place.survey()
    found = place.verify()  # as the last build left it
    assert (found.sound, found.orphans, found.stale) == (True, 1, 0)
    write_cache_rows(place.workspace.cache_manifest("d"), [stored_row(place.store("c"))])
    found = place.verify()  # as a build leaves it that was stopped
    assert (found.sound, found.orphans, found.stale) == (True, 1, 1)
    write_cache_rows(place.workspace.cache_manifest("d"), [])
    assert kinds(place.verify()) == {place.cases["c"]: "drifted"}


def test_stores_of_another_profile_are_stale(place: Place) -> None:
    other = Profile.model_validate({"name": "iso3", "harmonisation": {"spacing_mm": (3, 3, 3)}})
    plan = make_plan("d", place.workspace, other)
    build(plan, place.client, stop=lambda: True)  # stopped at once
    found = place.verify()
    assert (found.whole, found.sound, found.stale) == (3, True, 3)
    place.rebuild_manifest()
    assert read_cache_rows(place.workspace.cache_manifest("d")) == []


def test_leftovers_are_counted(place: Place) -> None:
    folder = place.workspace.dataset_cache("d")
    (folder / ".x.ome.zarr.tmp-0123").mkdir()
    (folder / ".y.ome.zarr.broken-0123").mkdir()
    found = place.verify()
    assert (found.sound, found.half_written, found.set_aside) == (True, 1, 1)


def test_a_store_that_is_replaced_meanwhile_is_looked_at_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place.store("a")
    (job,) = usable_jobs("d", place.workspace, PROFILE, [place.cases["a"]])
    calls = 0

    def check(path: Path, *, deep: bool) -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            faults = check_store(path / "none", deep=deep)
            convert(job)
            return faults
        return check_store(path, deep=deep)

    monkeypatch.setattr(verify_module, "check_store", check)
    rows = [(stored_row(store),)]
    assert check_batch(Batch(0, "d", [store], rows, False, False)).broken == ()
    assert calls == 2


def test_unknown_data_sets_and_none_at_all(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no data set 'x'.*there are: d"):
        list_stores(place.workspace, ["d", "x"])
    assert list_stores(Workspace(tmp_path / "empty")) == []
    assert verify([], None, deep=True) == []


def test_a_store_outside_of_a_workspace(place: Place, tmp_path: Path) -> None:
    outside = [place.store("a").rename(tmp_path / place.store("a").name), tmp_path / "no", tmp_path]
    listings = [list_outside(path) for path in outside]
    whole, missing, other = verify(listings, place.client, deep=True)
    assert (whole.checked, whole.sound, whole.broken) == (1, True, [])
    assert [broken.codes for broken in missing.broken] == [{"store.missing"}]
    assert [broken.codes for broken in other.broken] == [{"store.file_missing"}]


def test_a_store_that_kills_its_worker_is_named_and_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place.store("a"), place.workspace.store("d", "deadly"))
    given: list[int] = []

    def run(
        _: Client, function: Callable[[Batch], Checked], jobs: Iterable[Batch], at_once: int = 0
    ) -> Iterator[tuple[Batch, Checked | None]]:
        for job in jobs:
            given.append(at_once)
            deadly = any("deadly" in store.name for store in job.stores)
            yield job, None if deadly else function(job)

    monkeypatch.setattr(verify_module, "run_bounded", run)
    monkeypatch.setattr(verify_module, "_JOBS_A_WORKER", 2)
    found = place.verify(collect=True)
    assert given == [0, 0, 1, 1]  # two jobs of two stores, then the lost ones one by one
    assert kinds(found) == {"deadly": "unchecked"}
    assert (found.checked, found.whole) == (4, 3)
    done = repair(found, place.workspace, place.client)
    assert not done.sound
    assert place.workspace.store("d", "deadly").exists()


# Repair


def instead(store: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(store)
    make(store)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped byte": lambda store: flip(store / "0" / "c.0.0.0", 1000),
    "truncated shard": lambda store: os.truncate(store / "1" / "c.0.0.0", 50),
    "missing chunk": lambda store: drop_chunk(store, 0, 1),
    "missing shard": lambda store: (store / "2" / "c.0.0.0").unlink(),
    "missing level": lambda store: shutil.rmtree(store / "1"),
    "missing attributes": lambda store: (store / "zarr.json").unlink(),
    "damaged attributes": lambda store: flip(store / "zarr.json", 300),
    "damaged level": lambda store: flip(store / "0" / "zarr.json", 30),
    "no store": shutil.rmtree,
    "a file": lambda store: instead(store, Path.touch),
    "a link to nothing": lambda store: instead(store, lambda path: path.symlink_to("/nowhere")),
    "empty": lambda store: instead(store, Path.mkdir),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_repaired_store_is_what_it_was(place: Place, damage: str) -> None:
    DAMAGES[damage](place.store("b"))
    found = place.verify()
    assert list(kinds(found)) == [place.cases["b"]]
    done = place.repair()
    assert done.sound
    assert done.results == {place.cases["b"]: Result.REPAIRED}
    place.assert_as_before()
    assert not place.workspace.quarantine("d").exists() or not read_quarantine(
        place.workspace.quarantine("d")
    )


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20
)
@given(
    file=st.integers(0, 6),
    kind=st.sampled_from(["flip", "cut", "remove", "chunk"]),
    position=st.floats(0, 1, exclude_max=True),
)
def test_whatever_happens_to_a_store_is_found_named_and_repaired(
    place: Place, file: int, kind: str, position: float
) -> None:
    store = place.store("b")
    name = sorted(store_files(store))[file]
    path = store / name
    size = path.stat().st_size
    if kind == "flip":
        flip(path, int(position * size))
    elif kind == "cut":
        os.truncate(path, int(position * size))
    elif kind == "remove":
        path.unlink()
    else:
        name = "0/c.0.0.0"
        drop_chunk(store, 0, int(position * len(Shard(store, 0).frames)))
    (broken,) = place.verify().broken
    assert broken.case == place.cases["b"]
    assert {fault.file for fault in broken.faults} == {name}
    assert place.repair().sound
    place.assert_as_before()


def test_all_stores_at_once(place: Place) -> None:
    for name in NAMES:
        (place.store(name) / "zarr.json").unlink()
    assert place.repair(deep=False).sound
    place.assert_as_before()


@pytest.mark.parametrize("known_from", ["the store", "a sibling", "nobody"])
def test_the_profile_of_a_repair(place: Place, known_from: str) -> None:
    place.workspace.profile("d").unlink()
    for name in NAMES if known_from == "nobody" else "a":
        (place.store(name) / ("0/zarr.json" if known_from == "the store" else "zarr.json")).unlink()
    done = place.repair()
    if known_from != "nobody":
        assert done.sound
        place.assert_as_before()
    else:
        assert not done.sound
        assert done.counts[Result.LEFT] == 3
        assert all(place.store(name).exists() for name in NAMES)


def test_what_cannot_be_built_again_is_set_aside_and_quarantined(place: Place) -> None:
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    broken = place.store("a")
    files = {path.relative_to(broken): path.read_bytes() for path in broken.rglob("c.*")}
    source = place.source / "a.nii.gz"
    aside = source.rename(place.source.parent / "aside")
    done = place.repair()
    assert not done.sound
    assert done.results == {place.cases["a"]: Result.SET_ASIDE}
    assert not broken.exists()
    (hidden,) = broken.parent.glob(f".{broken.name}.broken-*")
    assert {path.relative_to(hidden): path.read_bytes() for path in hidden.rglob("c.*")} == files
    (row,) = read_quarantine(place.workspace.quarantine("d"))
    assert (row.case, row.code) == (place.cases["a"], "file.missing")
    assert len(read_cache_rows(place.workspace.cache_manifest("d"))) == 2
    after = place.verify()
    assert (after.checked, after.sound, after.set_aside) == (2, True, 1)

    aside.rename(source)  # the next build has it again
    build(make_plan("d", place.workspace, PROFILE), place.client)
    shutil.rmtree(hidden)
    place.assert_as_before()
    assert read_quarantine(place.workspace.quarantine("d")) == []


def test_a_broken_orphan_is_set_aside_and_comes_back_with_its_source(place: Place) -> None:
    source = place.source / "a.nii.gz"
    aside = source.rename(place.source.parent / "aside")
    place.survey()
    (place.store("a") / "0" / "c.0.0.0").write_bytes(b"")
    assert place.verify(deep=False).orphans == 1
    done = place.repair(deep=False)
    assert done.results == {place.cases["a"]: Result.SET_ASIDE}
    (row,) = read_quarantine(place.workspace.quarantine("d"))
    assert (row.case, row.code) == (place.cases["a"], "store.shard_size")
    assert "is not usable any more" in row.reason
    assert place.verify().sound
    aside.rename(source)
    place.survey()
    plan = make_plan("d", place.workspace, PROFILE)
    assert plan.todo == {place.cases["a"]}
    build(plan, place.client)
    shutil.rmtree(next(place.workspace.dataset_cache("d").glob(".*broken*")))
    place.assert_as_before()


def test_stores_alone_that_are_broken_are_set_aside(place: Place) -> None:
    shutil.rmtree(place.workspace.manifests)
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    done = place.repair()
    assert done.counts == {Result.REPAIRED: 0, Result.SET_ASIDE: 1, Result.LEFT: 0}
    rows = read_cache_rows(place.workspace.cache_manifest("d"))
    assert {row.case for row in rows} == {place.cases["b"], place.cases["c"]}
    (row,) = read_quarantine(place.workspace.quarantine("d"))
    assert "has no source manifest" in row.reason


def test_stores_of_another_release_are_never_touched(place: Place) -> None:
    store = place.store("a")
    edit_attributes(store, lambda attributes: attributes.update(format_version=2))
    (store / "1" / "c.0.0.0").write_bytes(b"")
    files = store_files(store)
    done = place.repair()
    assert (done.sound, done.counts[Result.LEFT]) == (False, 1)
    assert store_files(store) == files
    assert place.workspace.cache_manifest("d").read_bytes() == place.manifest


@pytest.mark.parametrize("with_source", [True, False])
def test_what_does_not_belong_is_set_aside_and_not_deleted(place: Place, with_source: bool) -> None:
    store = place.store("b")
    (store / "labels" / "liver").mkdir(parents=True)
    (store / "labels" / "liver" / "zarr.json").write_text("mine")
    (store / "1" / ".DS_Store").write_text("")
    if not with_source:
        shutil.rmtree(place.source)
    inode = (store / "zarr.json").stat().st_ino
    done = place.repair()
    assert done.sound
    assert (store / "zarr.json").stat().st_ino == inode  # nothing was built
    place.assert_as_before()
    (hidden,) = store.parent.glob(f".{store.name}.broken-*")
    assert store_files(hidden) == {"1/.DS_Store": b"", "labels/liver/zarr.json": b"mine"}


@pytest.mark.parametrize("damage", ["flipped byte", "missing attributes"])
def test_what_does_not_belong_outlives_a_rebuild(place: Place, damage: str) -> None:
    store = place.store("b")
    (store / "labels").mkdir()
    (store / "labels" / "zarr.json").write_text("mine")
    DAMAGES[damage](store)
    assert place.repair().sound
    place.assert_as_before()
    (hidden,) = store.parent.glob(f".{store.name}.broken-*")
    assert store_files(hidden) == {"labels/zarr.json": b"mine"}


def test_a_full_disk_ends_a_repair_and_the_next_goes_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (place.store(name) / "0" / "c.0.0.0").unlink()
    from prect.cache import writer

    written = 0

    def full(*arguments: object) -> object:
        nonlocal written
        written += 1
        if written > 4:  # the second store
            raise OSError(28, "No space left on device")
        return write_shard(*arguments)  # type: ignore[arg-type]

    write_shard = writer.write_shard
    monkeypatch.setattr(writer, "write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        place.repair()
    assert len(place.verify().broken) == 1
    monkeypatch.undo()
    assert place.repair().sound
    place.assert_as_before()


def test_a_repair_that_is_stopped_leaves_the_rest(place: Place) -> None:
    for name in NAMES:
        (place.store(name) / "0" / "c.0.0.0").unlink()
    asked = iter([False, False, True, True, True])
    found = place.verify(collect=True)
    done = repair(found, place.workspace, place.client, stop=lambda: next(asked, True))
    counts = done.counts
    assert counts[Result.REPAIRED] == 2
    assert counts[Result.LEFT] == 1
    assert not done.sound
    assert place.repair().sound
    place.assert_as_before()


def test_the_quarantine_of_a_volume_ends_when_its_store_is_whole(place: Place) -> None:
    (place.store("a") / "0" / "c.0.0.0").unlink()
    aside = (place.source / "a.nii.gz").rename(place.source.parent / "aside")
    place.repair()
    (hidden,) = place.workspace.dataset_cache("d").glob(".*broken*")
    aside.rename(place.source / "a.nii.gz")
    (job,) = usable_jobs("d", place.workspace, PROFILE, [place.cases["a"]])
    convert(job)  # a build that was killed before it wrote its manifests
    assert kinds(place.verify()) == {place.cases["a"]: "drifted"}
    assert place.repair().sound
    assert read_quarantine(place.workspace.quarantine("d")) == []
    shutil.rmtree(hidden)
    place.assert_as_before()


KILLED = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from prect.cache import repair as module
    from prect.cache.convert import convert
    from prect.cache.inventory import list_stores
    from prect.cache.verify import verify
    from prect.workspace import Workspace

    def attempt(root, fatal):
        workspace = Workspace(root)
        (found,) = verify(list_stores(workspace), None, deep=False, collect=True)
        events = 0
        def count():
            nonlocal events
            events += 1
            if events == fatal:
                os._exit(9)
        for name in ("rename", "replace", "mkdir", "unlink"):
            def hooked(path, *arguments, original=getattr(Path, name), **options):
                count()
                result = original(path, *arguments, **options)
                count()
                return result
            setattr(Path, name, hooked)
        module.repair(found, workspace, "no client is needed")

    module.run_jobs = lambda jobs, client, stop: ((job, convert(job)) for job in jobs)
    for root in sys.argv[1:]:
        child = os.fork()
        if not child:
            attempt(root, int(Path(root).parent.name))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
)


def test_a_repair_that_is_killed_anywhere_is_finished_by_the_next(
    built: Path, tmp_path: Path, client: Client
) -> None:
    """One store to build again, one to set aside, one to tidy; killed at every third step."""
    places = {}
    for fatal in range(1, 47, 3):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        place = places[fatal] = Place(built, folder, client)
        flip(place.store("a") / "zarr.json", 300)
        (place.store("b") / "0" / "c.0.0.0").unlink()
        (place.source / "b.nii.gz").unlink()
        (place.store("c") / "mine").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *(str(p.workspace.root) for p in places.values())],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    codes = list(map(int, done.stdout.split()))
    assert codes[0] == 9
    assert codes[-1] == 0, "the last one must not be killed, or steps are missed"
    for place in places.values():
        place.repair()
        assert place.verify().sound
        shown = {k: v for k, v in store_files(place.workspace.cache).items() if "/." not in k}
        case = place.cases["b"]
        assert shown == {k: v for k, v in place.before.items() if case not in k}
        assert [row.case for row in read_quarantine(place.workspace.quarantine("d"))] == [case]
        listed = read_cache_table(place.workspace.cache_manifest("d"), ["case"])["case"]
        assert case not in listed.to_pylist()
        hidden = place.workspace.dataset_cache("d").glob(".*")
        assert all(".broken-" in path.name for path in hidden)


# The manifest from the stores


def test_a_rebuilt_manifest_is_what_build_cache_wrote(place: Place) -> None:
    for damage in ("gone", "wrong", "none"):
        path = place.workspace.cache_manifest("d")
        if damage == "wrong":
            write_cache_rows(path, read_cache_rows(path)[:1])
        elif damage == "gone":
            path.unlink()
        assert place.rebuild_manifest().sound
        place.assert_as_before()


def test_a_rebuilt_manifest_leaves_out_what_is_broken_and_touches_nothing_else(
    place: Place,
) -> None:
    flip(place.store("b") / "0" / "c.0.0.0", 1000)
    damaged = store_files(place.workspace.cache)
    others = store_files(place.workspace.manifests)
    done = place.rebuild_manifest()
    assert not done.sound
    rows = read_cache_rows(place.workspace.cache_manifest("d"))
    assert {row.case for row in rows} == {place.cases["a"], place.cases["c"]}
    assert store_files(place.workspace.cache) == damaged
    after = store_files(place.workspace.manifests)
    assert {k for k in after if after[k] != others.get(k)} == {"d/cache.parquet"}


def test_a_manifest_of_stores_alone(place: Place) -> None:
    shutil.rmtree(place.workspace.manifests)
    assert place.rebuild_manifest().sound
    assert place.workspace.cache_manifest("d").read_bytes() == place.manifest


def test_orphans_are_left_out_of_a_rebuilt_manifest_as_a_build_does(place: Place) -> None:
    (place.source / "a.nii.gz").unlink()
    place.survey()
    build(make_plan("d", place.workspace, PROFILE), None)
    built = place.workspace.cache_manifest("d").read_bytes()
    place.workspace.cache_manifest("d").unlink()
    place.rebuild_manifest()
    assert place.workspace.cache_manifest("d").read_bytes() == built


def test_what_is_found_can_be_told_as_json(place: Place) -> None:
    drop_chunk(place.store("a"), 1, 0)
    (broken,) = place.verify().broken
    text = json.dumps([vars(fault) for fault in broken.faults])
    assert '"chunk": [0, 0, 0]' in text
