"""Removing volumes: nothing half gone, nothing lost that was not named, whatever is killed when."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prect.cache.reader import StoreReader
from prect.cache.upkeep.leftovers import clear, find_leftovers
from prect.cache.upkeep.removal import Counts, Removal, Request, Scope, plan_removal, remove
from prect.cache.writer import StoreWriter
from prect.errors import ManifestError, StoreError, WorkspaceError
from prect.files import locked
from prect.ingest.survey import survey
from prect.manifests.commit import set_excluded_benchmarks
from prect.manifests.lists import read_list
from prect.manifests.sources import read_source_table
from prect.manifests.status import dataset_status
from prect.manifests.stores import (
    QuarantineRow,
    load_cache_table,
    read_cache_rows,
    read_quarantine,
    write_quarantine,
)
from prect.workspace import Workspace
from tests.cache.small_workspaces import small_workspace, source_rows, store_all, tree
from tests.conftest import REPOSITORY

THREE = {"a": {"ct": 1, "other": 2, "third": 3}}


def taken(workspace: Workspace, dataset: str, *names: str) -> tuple[Removal, Counts]:
    """Remove volumes by name."""
    request = Request(dataset, Scope.CASES, names)
    return remove(workspace, plan_removal(workspace, request))


def history(workspace: Workspace, dataset: str, event: str) -> list[dict[str, Any]]:
    lines = workspace.history(dataset).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def counts_of(workspace: Workspace, dataset: str) -> Counts:
    """What there is, counted without the module under test."""
    cached = workspace.cache_manifest(dataset)
    return Counts(
        sources=len(source_rows(workspace, dataset)),
        cached=len(read_cache_rows(cached)) if cached.exists() else 0,
        quarantined=len(read_quarantine(workspace.quarantine(dataset))),
        stores=len(list(workspace.dataset_cache(dataset).glob("[!.]*.ome.zarr"))),
    )


def test_a_volume_goes_with_its_rows_and_its_store(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, THREE)
    rows = source_rows(workspace, "a")
    failed = QuarantineRow("a", rows["third"].case, "d", "p", "content.no_body", "-")
    write_quarantine(workspace.quarantine("a"), [failed])
    foreign = tree(tmp_path / "a")
    kept = tree(workspace.store("a", rows["other"].case))
    before = counts_of(workspace, "a")
    plan = plan_removal(workspace, Request("a", Scope.CASES, ("ct.nii.gz", rows["third"].case)))
    whole = tree(workspace.root)
    assert counts_of(workspace, "a") == before == plan.before  # a plan changes nothing
    done, left = remove(workspace, plan)
    gone = {rows["ct"].case, rows["third"].case}
    assert set(done.cases) == gone
    assert done.taken == Counts(sources=2, cached=2, quarantined=1, stores=2)
    assert counts_of(workspace, "a") == left
    for now, was, went in zip(astuple(left), astuple(before), astuple(done.taken), strict=True):
        assert now == was - went
    deleted = {name: data for name, data in whole.items() if name not in tree(workspace.root)}
    assert {name.split("/")[2].partition(".")[0] for name in deleted} == gone
    assert done.bytes == sum(map(len, deleted.values()))
    assert tree(tmp_path / "a") == foreign
    assert tree(workspace.store("a", rows["other"].case)) == kept
    assert sorted(path.name for path in workspace.dataset_cache("a").iterdir()) == [
        f"{rows['other'].case}.ome.zarr"
    ]
    assert set(load_cache_table(workspace, ["a"]).case) == {rows["other"].case}


def test_the_history_tells_what_was_removed(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, THREE)
    row = source_rows(workspace, "a")["ct"]
    taken(workspace, "a", row.case)
    (entry,) = history(workspace, "a", "removed")
    assert (entry["scope"], entry["cases"]) == ("cases", [row.case])
    assert entry["taken"] == {"sources": 1, "cached": 1, "quarantined": 0, "stores": 1}
    assert [e["row"]["source"] for e in history(workspace, "a", "taken away")] == ["ct.nii.gz"]


def test_the_next_ingest_finds_the_file_again(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, THREE)
    before = tree(workspace.cache)
    taken(workspace, "a", "ct.nii.gz")
    assert dataset_status(workspace, "a").candidates == 2
    assert survey("a", tmp_path / "a", workspace).usable == 3
    assert dataset_status(workspace, "a").pending == 1
    store_all(workspace, "a")
    assert tree(workspace.cache) == before


def test_the_copy_of_a_removed_volume_is_used_again(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "x": 5}, "b": {"ct": 1, "y": 6}})
    assert source_rows(workspace, "b")["ct"].verdict == "duplicate"
    plan = plan_removal(workspace, Request("a", Scope.CASES, ("ct.nii.gz",)))
    assert plan.changes == {"b": {"duplicate -> accepted": 1}}
    assert source_rows(workspace, "b")["ct"].verdict == "duplicate"
    assert remove(workspace, plan)[0].changes == plan.changes
    row = source_rows(workspace, "b")["ct"]
    assert (row.verdict, row.code, row.duplicate_of) == ("accepted", "", "")
    (entry,) = history(workspace, "b", "decided again")
    assert (entry["because_of"], entry["changes"]) == ("a", {"duplicate -> accepted": 1})
    assert survey("a", tmp_path / "a", workspace).usable == 2  # the file is still there
    assert source_rows(workspace, "b")["ct"].verdict == "duplicate"


def test_the_copy_of_a_test_set_comes_back_and_is_told(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"bench": {"ct": 1, "x": 5}, "b": {"ct": 1, "y": 6}})
    set_excluded_benchmarks(workspace, ["bench"])
    assert source_rows(workspace, "b")["ct"].code == "leakage.benchmark_copy"
    plan = plan_removal(workspace, Request("bench", Scope.CASES, ("ct.nii.gz",)))
    assert plan.changes == {"b": {"excluded -> accepted": 1}}
    before = tree(workspace.root)
    with pytest.raises(ManifestError, match=r"bench is kept out .* --include-benchmark bench"):
        plan_removal(workspace, Request("bench", Scope.ALL))
    assert tree(workspace.root) == before
    remove(workspace, plan)
    assert source_rows(workspace, "b")["ct"].verdict == "accepted"
    assert source_rows(workspace, "bench")["x"].verdict == "excluded"


def test_the_last_volume_of_a_split_that_is_kept_out_stays(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"b": {"y": 6}})
    (tmp_path / "bench").mkdir()
    for name in ("ct", "other"):
        shutil.copy(tmp_path / "b" / "y.nii.gz", tmp_path / "bench" / f"{name}.nii.gz")
    split = {"test": [{"image": "ct.nii.gz"}], "training": [{"image": "other.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(split))
    assert read_list(tmp_path / "list.json")
    survey("bench", tmp_path / "bench", workspace, list_file=tmp_path / "list.json")
    set_excluded_benchmarks(workspace, ["bench:test"])
    with pytest.raises(ManifestError, match="bench:test is kept out"):
        plan_removal(workspace, Request("bench", Scope.CASES, ("ct.nii.gz",)))
    taken(workspace, "bench", "other.nii.gz")
    assert source_rows(workspace, "b")["y"].code == "leakage.benchmark_copy"


def test_orphans_go_and_what_was_judged_stays(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "x": 5, "gone": 7}, "b": {"y": 6}})
    rows = source_rows(workspace, "a")
    request = Request("a", Scope.ORPHANS)
    assert plan_removal(workspace, request).empty
    (tmp_path / "a" / "gone.nii.gz").unlink()  # one without a row,
    survey("a", tmp_path / "a", workspace)
    shutil.copy(tmp_path / "a" / "ct.nii.gz", tmp_path / "b" / "ct.nii.gz")
    survey("b", tmp_path / "b", workspace)
    set_excluded_benchmarks(workspace, ["b"])  # and one that is not usable any more
    assert dataset_status(workspace, "a").orphans == 2
    judged = workspace.sources("a").read_bytes()
    done, left = remove(workspace, plan_removal(workspace, request))
    assert set(done.cases) == {rows["ct"].case, rows["gone"].case}
    assert done.taken == Counts(sources=0, cached=2, quarantined=0, stores=2)
    assert left == counts_of(workspace, "a") == Counts(2, 1, 0, 1)
    assert workspace.sources("a").read_bytes() == judged
    assert dataset_status(workspace, "a").orphans == 0
    assert workspace.stored_cases("a") == {rows["x"].case}
    (entry,) = history(workspace, "a", "removed")
    assert entry["scope"] == "orphans"


def test_stores_without_a_source_manifest_are_no_orphans(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "x": 5}})
    rows = source_rows(workspace, "a")
    workspace.sources("a").unlink()
    with pytest.raises(ManifestError, match="no source manifest"):
        plan_removal(workspace, Request("a", Scope.ORPHANS))
    done, left = taken(workspace, "a", rows["ct"].case)
    assert (done.taken.stores, left.stores, left.cached) == (1, 1, 1)
    remove(workspace, plan_removal(workspace, Request("a", Scope.ALL)))
    assert not workspace.dataset_cache("a").exists()
    assert not workspace.cache_manifest("a").parent.exists()


def test_a_whole_data_set_goes_and_leaves_all_else(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "x": 5}, "b": {"ct": 1, "y": 6}})
    run = workspace.run("first")
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"data": {"datasets": ["a", "b"]}}))
    (workspace.run("second")).mkdir()
    (workspace.run("second") / "config.json").write_text(json.dumps({"data": {"datasets": ["b"]}}))
    runs, foreign = tree(workspace.runs), tree(tmp_path / "a")
    cache = tree(workspace.dataset_cache("b"))
    (workspace.dataset_cache("a") / ".0123.ome.zarr.broken-12ab").mkdir()
    (workspace.dataset_cache("a") / "a strange name.ome.zarr").touch()
    with locked(run / ".lock", "busy"):
        plan = plan_removal(workspace, Request("a", Scope.ALL))
        assert [(r.name, r.running) for r in plan.runs] == [("first", True)]
    plan = plan_removal(workspace, Request("a", Scope.ALL))
    assert [(r.name, r.running) for r in plan.runs] == [("first", False)]
    done, left = remove(workspace, plan)
    assert done.taken == done.before == Counts(2, 2, 0, 3)
    assert left == Counts(0, 0, 0, 0)
    assert sorted(path.name for path in workspace.manifests.iterdir()) == ["b"]
    assert sorted(path.name for path in workspace.cache.iterdir()) == ["b"]
    assert (tree(workspace.runs), tree(tmp_path / "a")) == (runs, foreign)
    assert tree(workspace.dataset_cache("b")) == cache
    assert source_rows(workspace, "b")["ct"].verdict == "accepted"
    with pytest.raises(ManifestError, match=r"no data set 'a' .*there are: b"):
        plan_removal(workspace, Request("a", Scope.ALL))


def test_links_to_elsewhere_go_and_what_lies_there_stays(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1}, "b": {"y": 6}})
    for folder in (workspace.dataset_cache("a"), workspace.sources("a").parent):
        target = tmp_path / f"far-{folder.parent.name}"
        folder.rename(target)
        folder.symlink_to(target)
    far = [tree(tmp_path / f"far-{name}") for name in ("cache", "manifests")]
    plan = plan_removal(workspace, Request("a", Scope.ALL))
    assert (plan.taken, plan.bytes) == (Counts(1, 1, 0, 0), 0)
    done, left = remove(workspace, plan)
    assert (done.kept, left) == ((), Counts(0, 0, 0, 0))
    assert [tree(tmp_path / f"far-{name}") for name in ("cache", "manifests")] == far
    for parent in (workspace.cache, workspace.manifests):
        assert [path.name for path in parent.iterdir()] == ["b"]


def test_what_others_put_into_the_folders_stays_and_is_told(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1}, "b": {"y": 6}})
    manifests, cache = workspace.sources("a").parent, workspace.dataset_cache("a")
    (manifests / "journal").mkdir()
    (manifests / "journal" / "000001.parquet").touch()
    (manifests / ".cache.parquet.123.tmp").touch()
    foreign = [cache / ".notes.tmp-keep", cache / "README.txt", manifests / "thesis.doc"]
    for path in foreign:
        path.write_text("mine")
    done, left = remove(workspace, plan_removal(workspace, Request("a", Scope.ALL)))
    assert done.kept == tuple(map(str, foreign))
    assert left == Counts(0, 0, 0, 0)
    assert sorted(cache.iterdir()) == foreign[:2]
    assert sorted(manifests.iterdir()) == foreign[2:]
    for path in foreign:
        path.unlink()
    done, _ = remove(workspace, plan_removal(workspace, Request("a", Scope.ALL)))
    assert done.kept == ()
    assert not manifests.exists()
    assert not cache.exists()


def test_a_data_set_whose_manifests_are_damaged_can_still_go(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1}, "b": {"y": 6}})
    for path in (workspace.sources("a"), workspace.cache_manifest("a")):
        path.write_bytes(b"no Parquet")
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        plan_removal(workspace, Request("a", Scope.CASES, ("ct.nii.gz",)))
    done, _ = remove(workspace, plan_removal(workspace, Request("a", Scope.ALL)))
    assert done.taken.stores == 1
    assert not workspace.dataset_cache("a").exists()
    assert workspace.datasets() == ["b"]


def test_a_name_that_fits_nothing_or_too_much_is_an_error(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, THREE)
    before = tree(workspace.root)
    for request, message in (
        (Request("a", Scope.CASES, ("ct.nii.gz", "sird.nii.gz")), r"near: a:third\.nii\.gz"),
        (Request("b", Scope.CASES, ("ct.nii.gz",)), "no data set 'b'"),
    ):
        with pytest.raises(ManifestError, match=message):
            plan_removal(workspace, request)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        plan_removal(workspace, Request("../a", Scope.ALL))
    assert tree(workspace.root) == before


def test_what_was_removed_before_is_no_error(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, THREE)
    row = source_rows(workspace, "a")["ct"]
    taken(workspace, "a", row.case)
    before = tree(workspace.root)
    for name in (row.case, "ct.nii.gz"):
        done, _ = taken(workspace, "a", name)
        assert (done.empty, done.cases, done.gone) == (True, (), (row.case,))
    assert tree(workspace.root) == before


@pytest.mark.parametrize("purpose", ["remove", "build-cache", "ingest-a"])
def test_nothing_goes_while_another_process_writes(tmp_path: Path, purpose: str) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1}})
    plan = plan_removal(workspace, Request("a", Scope.ALL))
    before = tree(workspace.root)
    with workspace.lock(purpose), pytest.raises(WorkspaceError, match="already running"):
        remove(workspace, plan)
    nothing = plan_removal(workspace, Request("a", Scope.ORPHANS))
    with workspace.lock(purpose):
        assert remove(workspace, nothing) == (nothing, nothing.before)
    assert tree(workspace.root) == before


def test_a_volume_that_a_stray_worker_stores_is_left_until_it_ends(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "x": 5}})
    rows = source_rows(workspace, "a")
    with StoreWriter(workspace.store("a", rows["ct"].case)):
        for request in (Request("a", Scope.ALL), Request("a", Scope.CASES, ("ct.nii.gz",))):
            plan = plan_removal(workspace, request)
            before = tree(workspace.root)
            with pytest.raises(WorkspaceError, match="is being stored by a worker"):
                remove(workspace, plan)
            assert tree(workspace.root) == before
        taken(workspace, "a", "x.nii.gz")
    taken(workspace, "a", "ct.nii.gz")


def test_what_is_set_aside_of_a_volume_goes_with_it(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "x": 5}})
    rows = source_rows(workspace, "a")
    folder = workspace.dataset_cache("a")
    for name in ("ct", "x"):
        for mark in ("tmp-12ab", "tmp-12ab-old", "broken-34cd"):
            aside = folder / f".{rows[name].case}.ome.zarr.{mark}"
            aside.mkdir()
            (aside / "zarr.json").write_text("{}")
    (folder / f".{rows['x'].case}.ome.zarr.removed-56ef").mkdir()  # of a removal cut short
    taken(workspace, "a", "ct.nii.gz")
    x = rows["x"].case
    assert sorted(path.name for path in folder.iterdir()) == [
        f".{x}.ome.zarr.broken-34cd",
        f".{x}.ome.zarr.tmp-12ab",
        f".{x}.ome.zarr.tmp-12ab-old",
        f"{x}.ome.zarr",
    ]


def test_a_plan_that_no_longer_holds_is_not_carried_out(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, THREE)
    for name in ("third", "ct"):
        (tmp_path / "a" / f"{name}.nii.gz").unlink()
        survey("a", tmp_path / "a", workspace)
        if name == "third":
            plan = plan_removal(workspace, Request("a", Scope.ORPHANS))
    before = tree(workspace.root)
    with pytest.raises(WorkspaceError, match="has changed since it was looked at"):
        remove(workspace, plan)
    assert tree(workspace.root) == before


def test_no_file_of_a_store_goes_while_anything_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = small_workspace(tmp_path, THREE)
    row = source_rows(workspace, "a")["ct"]
    store = workspace.store("a", row.case)
    seen: list[Path] = []
    rmtree: Callable[..., None] = shutil.rmtree

    def check(path: Path) -> None:
        seen.append(path)
        assert path.name.startswith(f".{store.name}.removed-")
        assert row.case not in workspace.stored_cases("a")
        assert row.case not in load_cache_table(workspace, ["a"]).case
        assert row.case not in read_source_table(workspace.sources("a"))["case"].to_pylist()
        with pytest.raises(StoreError, match="no store at"):
            StoreReader(store)
        rmtree(path)

    monkeypatch.setattr("prect.cache.hidden.shutil.rmtree", check)
    opened = StoreReader(store)  # a loader that is in the middle of a volume
    shape = opened.levels[0].shape
    before = opened.read(0, (0, 0, 0), shape)
    taken(workspace, "a", row.case)
    assert len(seen) == 1
    np.testing.assert_array_equal(opened.read(0, (0, 0, 0), shape), before)
    opened.close()


KILLER = """
    import os, shutil, signal, sys
    from pathlib import Path
    from prect.cache.upkeep.removal import Request, Scope, plan_removal, remove
    from prect.workspace import Workspace

    original, dataset, scope, names, aside = sys.argv[1:]
    request = Request(dataset, Scope(scope), tuple(filter(None, names.split(","))))
    CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link"}
    WRITES = os.O_WRONLY | os.O_RDWR

    def dies_before(step):
        count = 0
        def hook(event, args):
            nonlocal count
            if event in CHANGES or (event == "open" and isinstance(args[2], int)
                                    and args[2] & WRITES):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)

    step = 0
    while True:
        step += 1
        place = Path(aside) / str(step)
        shutil.copytree(original, place)
        child = os.fork()
        if child == 0:
            workspace = Workspace(place)
            plan = plan_removal(workspace, request)
            dies_before(step)
            remove(workspace, plan)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
    print(step)
"""


def end_state(workspace: Workspace) -> dict[str, Any]:
    """Everything that a removal decides; the history may tell of it twice."""
    state: dict[str, Any] = dict(tree(workspace.root))
    for name in list(state):
        if name.endswith("history.jsonl"):
            del state[name]
        elif name.endswith("sources.parquet"):
            state[name] = read_source_table(workspace.root / name).to_pylist()
    return state


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        (Scope.CASES, ("ct.nii.gz",)),
        (Scope.ORPHANS, ()),
        (Scope.ALL, ()),
    ],
)
def test_killed_before_any_of_its_steps_it_is_finished_by_the_next(
    tmp_path: Path, scope: Scope, names: tuple[str, ...]
) -> None:
    """SIGKILL before every single change of the file system, then the same removal again."""
    files = {"ct": 1, "gone": 7} if scope is Scope.ORPHANS else {"ct": 1}
    workspace = small_workspace(tmp_path, {"a": files, "b": {"ct": 1}})
    (tmp_path / "a" / "gone.nii.gz").unlink(missing_ok=True)
    survey("a", tmp_path / "a", workspace)
    undisturbed = Workspace(tmp_path / "undisturbed")
    shutil.copytree(workspace.root, undisturbed.root)
    request = Request("a", scope, names)
    _, expected_left = remove(undisturbed, plan_removal(undisturbed, request))
    expected = end_state(undisturbed)
    aside = tmp_path / "killed"
    program = [sys.executable, "-c", textwrap.dedent(KILLER)]
    arguments = [str(workspace.root), "a", scope.value, ",".join(names), str(aside)]
    done = subprocess.run(
        [*program, *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    steps = int(done.stdout)
    assert steps > 20
    for step in range(1, steps):
        killed = Workspace(aside / str(step))
        cached = read_cache_rows(path) if (path := killed.cache_manifest("a")).exists() else []
        for row in cached:  # what training would read is whole
            with StoreReader(killed.store("a", row.case)) as reader:
                reader.read(0, (0, 0, 0), reader.levels[0].shape)
        if scope is not Scope.ALL or killed.sources("a").parent.exists():
            _, left = remove(killed, plan_removal(killed, request))
            assert left == expected_left, step
        clear(find_leftovers(killed))  # a killed write leaves its temporary file
        assert end_state(killed) == expected, step
