"""What is broken is mended so that nobody sees a difference, or set aside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prect.cache import writer
from prect.cache.build import build, make_plan
from prect.cache.checks.remedies import Result
from prect.cache.checks.repair import repair
from prect.cache.convert import convert
from prect.cache.plan import usable_jobs
from prect.manifests.stores import (
    read_cache_rows,
    read_cache_table,
    read_quarantine,
    write_cache_rows,
)
from tests.cache.places import NAMES, PROFILE, Place, flip, kinds
from tests.cache.test_build import store_files
from tests.cache.whole_stores import Shard, drop_chunk, edit_attributes


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
        assert "prect build-cache d --profile" in done.reasons[place.cases["a"]]
        assert all(place.store(name).exists() for name in NAMES)


def test_what_cannot_be_built_again_is_set_aside_and_quarantined(place: Place) -> None:
    flip(place.store("a") / "0" / "c.0.0.0", 100)
    broken = place.store("a")
    files = {path.relative_to(broken): path.read_bytes() for path in broken.rglob("c.*")}
    card = place.forbid()
    done = place.repair()
    assert not done.sound
    assert done.results == {place.cases["a"]: Result.SET_ASIDE}
    assert not broken.exists()
    (hidden,) = broken.parent.glob(f".{broken.name}.broken-*")
    assert {path.relative_to(hidden): path.read_bytes() for path in hidden.rglob("c.*")} == files
    (row,) = read_quarantine(place.workspace.quarantine("d"))
    assert (row.case, row.code) == (place.cases["a"], "hu.no_soft_tissue")
    assert len(read_cache_rows(place.workspace.cache_manifest("d"))) == 2
    after = place.verify()
    assert (after.checked, after.sound, after.set_aside) == (2, True, 1)

    place.workspace.card("d").write_text(card)
    build(make_plan("d", place.workspace, PROFILE, retry=True), place.client)
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


def test_a_store_that_is_broken_again_is_not_called_repaired(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.store("a") / "0" / "c.0.0.0").unlink()
    (place.store("b") / "0" / "c.0.0.0").unlink()
    pool = writer.pool
    given = 0

    def wrong(volume: NDArray[np.int16]) -> NDArray[np.int16]:
        nonlocal given
        given += 1
        return pool(volume) + np.int16(given == 1)

    monkeypatch.setattr(writer, "pool", wrong)
    done = place.repair()
    assert sorted(done.results.values()) == [Result.LEFT, Result.REPAIRED]
    (reason,) = done.reasons.values()
    assert "still: store.pooling" in reason
    assert not done.sound
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
    card = place.forbid()
    place.repair()
    (hidden,) = place.workspace.dataset_cache("d").glob(".*broken*")
    place.workspace.card("d").write_text(card)
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
    from prect.cache.checks import repair as module
    from prect.cache.convert import convert
    from prect.cache.checks.inventory import list_stores
    from prect.cache.checks.verify import verify
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
    module.verify = lambda listings, client, deep: verify(listings, None, deep=deep)
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
        place.reject("b")
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
