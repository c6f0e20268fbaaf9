"""What killed processes leave is found and cleared; what living ones hold is not touched."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from prect.cache.forecast.trial import trial_folder
from prect.cache.format import Codec
from prect.cache.upkeep.leftovers import (
    Kind,
    Leftover,
    State,
    clear,
    find_leftovers,
    is_held,
    unfinished,
)
from prect.cache.writer import StoreWriter
from prect.errors import BusyError, WorkspaceError
from prect.files import locked, take_lock
from prect.workspace import Workspace
from tests.cache.small_workspaces import small_workspace, tree
from tests.cache.stores import SPACING, random_hu
from tests.conftest import REPOSITORY

CASE = "0123456789abcdef.ome.zarr"


def dead_process() -> int:
    """Id of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def put(path: Path, data: str = "12345") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    os.utime(path, (0, 0))  # long ago
    return path


def litter(workspace: Workspace, process: int) -> dict[Kind, list[Path]]:
    """One or more of every kind, as processes of that id leave them."""
    cache, manifests = workspace.cache / "a", workspace.manifests
    run = workspace.run("demo")
    folders = {
        Kind.WRITING: [
            cache / f".{CASE}.tmp-0123456789ab",
            cache / f".{CASE}.tmp-0123456789ab-old",
        ],
        Kind.REMOVED: [cache / f".{CASE}.removed-01234567"],
        Kind.BROKEN: [cache / f".{CASE}.broken-01234567"],
        Kind.TRIALS: [workspace.cache / ".plan-0123456789ab"],
    }
    for paths in folders.values():
        for path in paths:
            put(path / "0" / "c.0.0.0")
            put(path / ("in-use" if path.name.startswith(".plan") else "zarr.json"))
    files = {
        Kind.MANIFEST: [
            manifests / f".excluded-benchmarks.json.{process}.tmp",
            manifests / "a" / f".sources.parquet.{process}.tmp",
            manifests / "a" / f".cache.parquet.{process}.tmp",
            manifests / "a" / "journal" / f".000001.parquet.{process}.tmp",
        ],
        Kind.SALT: [workspace.root / ".salt.01234567.tmp"],
        Kind.RUN: [
            run / ".config.json.tmp",
            run / ".metrics.jsonl.tmp",
            run / f".encoder.safetensors.{process}.tmp",
        ],
    }
    for paths in files.values():
        for path in paths:
            put(path)
    return folders | files


def by_state(found: list[Leftover]) -> dict[State, set[Path]]:
    return {state: {e.path for e in found if e.state is state} for state in State}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return small_workspace(tmp_path, {"a": {"ct": 1}})


def test_every_kind_is_found_and_cleared_and_nothing_else(workspace: Workspace) -> None:
    before = tree(workspace.root)
    journal = put(workspace.journal("a") / "000000.parquet")
    made = litter(workspace, dead_process())
    found = find_leftovers(workspace)
    assert {(e.path, e.kind) for e in found} == {(p, k) for k, ps in made.items() for p in ps}
    assert {e.bytes for e in found if e.path.is_dir()} == {10}
    assert {e.bytes for e in found if e.path.is_file()} == {5}
    assert by_state(found)[State.KEPT] == set(made[Kind.BROKEN])
    done = clear(found)
    states = by_state(done)
    assert states[State.KEPT] == set(made[Kind.BROKEN])
    assert len(states[State.CLEARED]) == len(done) - 1
    assert not any(path.exists() for path in states[State.CLEARED])
    (broken,) = clear(find_leftovers(workspace, broken=True))
    assert (broken.kind, broken.state, broken.path.exists()) == (Kind.BROKEN, State.CLEARED, False)
    assert find_leftovers(workspace, broken=True) == []
    (going_on,) = unfinished(workspace)
    assert (going_on.path, going_on.bytes) == (journal.parent, 5)
    journal.unlink()
    assert tree(workspace.root) == before


def test_a_clean_workspace_has_none(workspace: Workspace, tmp_path: Path) -> None:
    assert find_leftovers(workspace, broken=True) == []
    assert unfinished(workspace) == []
    assert find_leftovers(Workspace(tmp_path / "nothing")) == []


@contextmanager
def other_process(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """A process that writes a store and stands still in the middle of it."""
    program = """
        import sys
        from pathlib import Path
        from prect.cache.format import Codec
        from prect.cache.writer import StoreWriter
        from tests.cache.stores import SPACING, random_hu
        with StoreWriter(Path(sys.argv[1])) as writer:
            writer.write_levels(random_hu((8, 8, 8)), SPACING, (8, 8, 8), Codec(), 1)
            print("at work", flush=True)
            sys.stdin.readline()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(workspace.store("a", "live"))],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_a_store_is_left_alone_until_its_writer_is_killed(workspace: Workspace) -> None:
    with other_process(workspace) as process:
        (entry,) = find_leftovers(workspace)
        assert (entry.kind, entry.state) == (Kind.WRITING, State.HELD)
        assert clear([entry]) == [entry]
        # One that was free when it was looked at, and is not any more.
        (again,) = clear([Leftover(entry.path, entry.kind, 0, State.FREE, None)])
        assert again.state is State.HELD
        assert entry.path.exists()
        process.kill()
        process.wait()
        (entry,) = clear(find_leftovers(workspace))
        assert entry.state is State.CLEARED
        assert not entry.path.exists()


def test_a_writer_that_goes_on_commits_all_the_same(workspace: Workspace) -> None:
    with StoreWriter(workspace.store("a", "live")) as writer:
        writer.write_levels(random_hu((8, 8, 8)), SPACING, (8, 8, 8), Codec(), 1)
        (entry,) = clear(find_leftovers(workspace))
        assert entry.state is State.HELD
        assert sorted(p.name for p in entry.path.iterdir()) == ["0", "zarr.json"]


def test_trials_in_use_are_left_alone(workspace: Workspace) -> None:
    with trial_folder(workspace.cache) as folder:
        (entry,) = clear(find_leftovers(workspace))
        assert (entry.kind, entry.state, folder.exists()) == (Kind.TRIALS, State.HELD, True)
    assert find_leftovers(workspace) == []
    folder.mkdir()  # made this moment, its lock is to follow
    assert [e.state for e in clear(find_leftovers(workspace))] == [State.HELD]
    os.utime(folder, (0, 0))
    assert [e.state for e in clear(find_leftovers(workspace))] == [State.CLEARED]


def test_checkpoints_that_never_were_or_no_longer_are_whole_are_cleared(
    workspace: Workspace,
) -> None:
    folder = workspace.run("demo") / "checkpoints"
    names = [".step-00000100.old", ".step-00000200.tmp", "damaged-step-00000150-7"]
    for name in [*names, "step-00000100"]:
        put(folder / name / "shard-00001-model-00001-of-00001.safetensors")
    found = {entry.path.name for entry in find_leftovers(workspace) if entry.kind is Kind.RUN}
    assert sorted(found) == names
    with locked(workspace.run("demo") / ".lock", "busy"):  # its trainer may be writing one
        clear(find_leftovers(workspace))
        assert len(list(folder.iterdir())) == 4
    clear(find_leftovers(workspace))
    assert [path.name for path in folder.iterdir()] == ["step-00000100"]


def test_what_a_living_process_is_about_to_rename_is_left_alone(workspace: Workspace) -> None:
    made = litter(workspace, os.getpid())
    held = by_state(clear(find_leftovers(workspace, broken=True)))[State.HELD]
    assert held == {*made[Kind.MANIFEST], made[Kind.RUN][2]}
    assert all(path.exists() for path in held)


@pytest.mark.parametrize(
    ("purpose", "kinds", "name"),
    [
        ("build-cache", {Kind.REMOVED, Kind.BROKEN}, "cache.parquet"),
        ("manifests", set(), "sources.parquet"),
        ("ingest-a", set(), "000001.parquet"),
    ],
)
def test_what_the_holder_of_a_lock_may_be_writing_is_left_alone(
    workspace: Workspace, purpose: str, kinds: set[Kind], name: str
) -> None:
    made = litter(workspace, dead_process())  # on another machine it may live
    found = find_leftovers(workspace, broken=True)
    expected = {path for kind in kinds for path in made[kind]}
    expected |= {p for p in made[Kind.MANIFEST] if p.name.startswith(f".{name}")}
    if purpose == "manifests":
        expected.add(made[Kind.MANIFEST][0])
    with workspace.lock(purpose):
        assert by_state(find_leftovers(workspace, broken=True))[State.HELD] == expected
        # Begun since it was looked at:
        states = by_state(clear(found))
        assert states[State.HELD] == expected
        assert all(path.exists() for path in expected)
    assert by_state(clear(find_leftovers(workspace, broken=True)))[State.CLEARED] == expected


def test_the_files_of_a_run_that_trains_are_left_alone(workspace: Workspace) -> None:
    made = litter(workspace, dead_process())
    lock = workspace.run("demo") / ".lock"
    with ExitStack() as stack:
        stack.enter_context(locked(lock, "busy"))
        assert is_held(lock)
        held = by_state(clear(find_leftovers(workspace)))[State.HELD]
        assert held == set(made[Kind.RUN])
    assert not is_held(lock)
    assert by_state(clear(find_leftovers(workspace)))[State.CLEARED] == set(made[Kind.RUN])


def test_a_lock_that_cannot_be_opened_is_not_taken_for_held(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    litter(workspace, dead_process())
    found = find_leftovers(workspace)
    before = tree(workspace.root)

    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(WorkspaceError, match="Read-only file system") as caught:
        clear([entry for entry in found if entry.lock is not None])
    assert not isinstance(caught.value, BusyError)
    monkeypatch.undo()
    assert tree(workspace.root) == before


def test_a_young_salt_may_be_on_its_way(workspace: Workspace) -> None:
    path = put(workspace.root / ".salt.89abcdef.tmp")
    os.utime(path)
    assert [e.state for e in clear(find_leftovers(workspace))] == [State.HELD]
    assert path.exists()


def test_a_removal_that_was_cut_short_is_told_and_not_undone(workspace: Workspace) -> None:
    path = workspace.sources("a")
    hidden = path.rename(path.with_name(f".{path.name}.removed-01234567"))
    assert find_leftovers(workspace) == []
    (entry,) = unfinished(workspace)
    assert entry.path == hidden
    assert "prect remove a --all" in entry.remedy


def test_a_folder_that_may_not_be_read_is_told(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = litter(workspace, dead_process())
    (workspace.cache / "lost+found").mkdir()
    closed = workspace.cache / "a"
    access = os.access
    # The tests may run as root, who may read everything.
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))
    after = clear(find_leftovers(workspace))
    assert by_state(after)[State.UNREADABLE] == {closed}
    assert by_state(after)[State.CLEARED] == {
        path for kind in made for path in made[kind] if closed not in path.parents
    }
    assert all(path.exists() for path in made[Kind.WRITING])


def test_looking_at_a_lock_does_not_make_it_look_held(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    with lock.open("r+b") as looking:
        assert take_lock(looking, lock, wait=False, shared=True)
        assert not is_held(lock)
