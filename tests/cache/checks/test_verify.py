"""Data sets are held against their manifest, and their stores against the format."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prect.cache.checks import verify as verify_module
from prect.cache.checks.inventory import Manifest, list_outside, list_stores
from prect.cache.checks.remedies import Remedy, Result, remedy
from prect.cache.checks.repair import rebuild_manifest, repair
from prect.cache.checks.validate import check_store
from prect.cache.checks.verify import Batch, Checked, Kind, check_batch, verify
from prect.cache.convert import convert
from prect.cache.plan import usable_jobs
from prect.cache.profile import Profile, write_profile
from prect.cache.rows import stored_row
from prect.errors import ManifestError, StoreError
from prect.manifests.parquet import write_arrow
from prect.manifests.stores import read_cache_rows, read_cache_table, write_cache_rows
from prect.workspace import Workspace
from tests.cache.places import NAMES, PROFILE, Place, flip, kinds
from tests.cache.whole_stores import edit_attributes
from tests.ingest.volumes import body_volume, write_nifti


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
    assert "has 2 rows" in {b.case: b for b in found.broken}[rows[0].case].faults[0].detail
    assert place.repair().sound
    place.assert_as_before()


def test_the_order_of_rows_says_nothing(place: Place) -> None:
    path = place.workspace.cache_manifest("d")
    write_arrow(path, read_cache_table(path).take(pa.array([2, 0, 1])))
    assert place.verify(deep=False).sound


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


def _not_text(_: pa.ChunkedArray) -> pa.Array:
    """Three strings of which the second is no UTF-8."""
    offsets = np.array([0, 1, 2, 3], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xffb")]
    return pa.Array.from_buffers(pa.string(), 3, buffers)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("shape", lambda c: pa.array([None, *c.to_pylist()[1:]], c.type)),
        ("bytes", lambda _: pa.array(["many", "1", "2"])),
        ("case", lambda c: pa.array(["../../elsewhere", *c.to_pylist()[1:]])),
        ("patient", _not_text),
    ],
)
def test_rows_that_can_be_none_make_a_damaged_manifest(
    place: Place, column: str, values: Callable[[pa.ChunkedArray], pa.Array]
) -> None:
    path = place.workspace.cache_manifest("d")
    table = read_cache_table(path)
    number = table.schema.get_field_index(column)
    write_arrow(path, table.set_column(number, column, values(table[column])))
    found = place.verify()
    assert (found.whole, found.listing.manifest) == (3, Manifest.DAMAGED)
    assert place.repair().sound
    place.assert_as_before()


def test_a_store_that_goes_while_it_is_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(store: Path) -> object:
        raise StoreError(f"no store at {store}")

    monkeypatch.setattr(verify_module, "stored_row", gone)
    found = place.verify()
    assert {broken.codes for broken in found.broken} == {frozenset({"store.unreadable"})}
    assert len(found.broken) == 3


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
    # As a build with that profile leaves them that was stopped before it came to these.
    write_profile(place.workspace.profile("d"), other)
    write_cache_rows(place.workspace.cache_manifest("d"), [])
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
    for name in NAMES:
        (place.store(name) / "1" / "zarr.json").unlink()
    given: list[int] = []

    def run(
        _: Client,
        function: Callable[[Batch], Checked],
        jobs: Iterable[Batch],
        at_once: int = 0,
        **__: object,
    ) -> Iterator[tuple[Batch, Checked | None]]:
        for job in reversed(list(jobs)):  # the last one is the first to be done
            given.append(at_once)
            deadly = any("deadly" in store.name for store in job.stores)
            yield job, None if deadly else function(job)

    with monkeypatch.context() as patched:
        patched.setattr("prect.retries.run_bounded", run)
        patched.setattr(verify_module, "_JOBS_A_WORKER", 2)
        found = place.verify(collect=True)
    assert given == [0, 0, 1, 1]  # two jobs of two stores, then the lost ones one by one
    assert list(kinds(found)) == [*sorted(place.cases.values()), "deadly"]
    assert kinds(found)["deadly"] == "unchecked"
    assert (found.checked, found.whole) == (4, 0)
    done = repair(found, place.workspace, place.client)
    assert not done.sound
    assert done.counts == {Result.REPAIRED: 3, Result.SET_ASIDE: 0, Result.LEFT: 1}
    assert place.workspace.store("d", "deadly").exists()
