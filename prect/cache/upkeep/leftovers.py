"""What killed processes leave in a workspace, and clearing it.

Everything is written under a hidden name first, so whatever still has one is either being written
or was given up. A lock or a process id tells which. Half-written stores and trials are locked
themselves; anything else, such as a store that a removal or a repair has set aside, is told by the
lock that its writer holds on the workspace or the run for as long as it works.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from prect.cache.forecast.trial import KEEPER, is_in_use, is_trial, remove_trial
from prect.cache.hidden import Mark, delete, parse_hidden
from prect.cache.writer import is_abandoned, remove_leftover
from prect.errors import BusyError
from prect.files import locked, take_lock
from prect.manifests.cases import named_folders
from prect.manifests.removal import REMOVED_MARK
from prect.workspace import Workspace

_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<process>\d+))?\.tmp")
_SALT = re.compile(r"\.salt\.[0-9a-f]+\.tmp")
_SECONDS = 60
"""Where nothing tells who is at work, nobody has been for longer than this."""
_MANIFESTS_OF_BUILD = ("cache.parquet", "quarantine.parquet", "profile.json")


class Kind(StrEnum):
    """What a leftover was to be, or had been."""

    WRITING = "half-written store"
    REMOVED = "removed store"
    BROKEN = "broken store"
    TRIALS = "stores on trial"
    MANIFEST = "half-written manifest"
    SALT = "half-written salt"
    RUN = "half-written file of a run"
    FOLDER = "folder"
    """One that may not be read, so that nothing is known of what is in it."""


class State(StrEnum):
    """What becomes of a leftover."""

    FREE = "free"
    HELD = "held"
    """A living process works on it."""
    KEPT = "kept"
    """It may hold the only copy of something, and goes when that is asked for."""
    CLEARED = "cleared"
    UNREADABLE = "may not be read"


@dataclass(frozen=True)
class Leftover:
    """One hidden file or folder."""

    path: Path
    kind: Kind
    bytes: int
    state: State
    lock: Path | None
    """File outside of it that its writer would hold locked."""


@dataclass(frozen=True)
class Unfinished:
    """Something that was interrupted and can go on, so that it is no leftover."""

    path: Path
    bytes: int
    remedy: str


def find_leftovers(workspace: Workspace, *, broken: bool = False) -> list[Leftover]:
    """Everything that a killed process may have left, by path.

    Args:
        workspace: the workspace.
        broken: take stores that a repair has set aside for leftovers, too.

    Raises:
        WorkspaceError: the file system has no locks, so nothing could be told.
    """
    found = [
        *_stores(workspace),
        *_manifests(workspace),
        *_salts(workspace),
        *_of_runs(workspace),
        *_unreadable(workspace),
    ]
    held = {lock: is_held(lock) for lock in {entry.lock for entry in found} if lock is not None}
    return sorted(
        (_judged(entry, held, broken=broken) for entry in found), key=lambda entry: entry.path
    )


def _judged(entry: Leftover, held: dict[Path, bool], *, broken: bool) -> Leftover:
    if entry.lock is not None and held[entry.lock]:
        return replace(entry, state=State.HELD)
    if entry.kind is Kind.BROKEN and not broken:
        return replace(entry, state=State.KEPT)
    return entry


def clear(
    found: Sequence[Leftover], on_cleared: Callable[[], None] = lambda: None
) -> list[Leftover]:
    """Delete those that are free, each under the lock that its writer would hold.

    So none begins meanwhile; the locks are held no longer than it takes to delete.

    Args:
        found: of `find_leftovers`.
        on_cleared: called after each that was deleted.

    Returns:
        All of them as they are now; those that a process has begun to hold meanwhile are left.

    Raises:
        OSError: one of them cannot be deleted, or its lock not be opened.
    """
    after = [entry for entry in found if entry.state is not State.FREE]
    groups: dict[Path | None, list[Leftover]] = defaultdict(list)
    for entry in found:
        if entry.state is State.FREE:
            groups[entry.lock].append(entry)
    for lock, entries in groups.items():
        with ExitStack() as stack:
            free = True
            if lock is not None:
                try:
                    busy = f"{lock} is held by process {{holder}}"
                    # What clears a full disk cannot write on it.
                    stack.enter_context(locked(lock, busy, named=False))
                except BusyError:
                    free = False
            for entry in entries:
                cleared = free and _clear(entry)
                after.append(replace(entry, state=State.CLEARED if cleared else State.HELD))
                if cleared:
                    on_cleared()
    return sorted(after, key=lambda entry: entry.path)


def unfinished(workspace: Workspace) -> list[Unfinished]:
    """What was interrupted and goes on when it is asked for again."""
    found = []
    for folder in filter(_is_readable, named_folders(workspace.manifests)):
        journal = folder / "journal"
        if journal.is_dir():
            remedy = (
                f"rows of an ingest that has not ended; the next ingest of {folder.name} goes on"
            )
            found.append(Unfinished(journal, size(journal), remedy))
        for path in sorted(folder.glob(f".*{REMOVED_MARK}*")):
            remedy = f"a removal that has not ended; run: prect remove {folder.name} --all"
            found.append(Unfinished(path, size(path), remedy))
    return found


def set_aside(folder: Path) -> dict[str, list[Path]]:
    """What is hidden of the stores of a data set, by case; sorted."""
    aside: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if parsed := parse_hidden(path.name):
            aside[parsed[0]].append(path)
    return aside


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file; one of another user is taken for held.

    Raises:
        WorkspaceError: the file system has no locks.
    """
    try:
        with lock.open("r+b") as file:
            # Shared, so that two who look do not take each other for the holder.
            return not take_lock(file, lock, wait=False, shared=True)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True


def size(path: Path) -> int:
    """Bytes of a file or link, or of all files below a folder; what goes meanwhile counts none."""
    total = 0
    for file in path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,):
        with suppress(FileNotFoundError):
            total += file.lstat().st_size if file.is_symlink() or not file.is_dir() else 0
    return total


def _stores(workspace: Workspace) -> Iterator[Leftover]:
    build = workspace.lock_file("build-cache")
    for path in sorted(workspace.cache.glob(".*")):
        if is_trial(path):
            yield from _self_locked(path, Kind.TRIALS)
    for folder in filter(_is_readable, named_folders(workspace.cache)):
        for path in (path for paths in set_aside(folder).values() for path in paths):
            _, mark = parse_hidden(path.name) or ("", Mark.TEMPORARY)
            if mark is Mark.TEMPORARY:
                yield from _self_locked(path, Kind.WRITING)
            else:
                kind = Kind.REMOVED if mark is Mark.REMOVED else Kind.BROKEN
                yield Leftover(path, kind, size(path), State.FREE, build)


def _self_locked(path: Path, kind: Kind) -> Iterator[Leftover]:
    state = State.HELD
    with suppress(PermissionError):  # or it is another user's
        free = is_abandoned(path) if kind is Kind.WRITING else _is_unused_trial(path)
        state = State.FREE if free else State.HELD
    if path.exists() or path.is_symlink():  # its writer may have ended since it was listed
        yield Leftover(path, kind, size(path), state, None)


def _manifests(workspace: Workspace) -> Iterator[Leftover]:
    folders = [*filter(_is_readable, named_folders(workspace.manifests))]
    for folder in (workspace.manifests, *folders, *(folder / "journal" for folder in folders)):
        for path, name, state in _temporaries(folder):
            purpose = "build-cache" if name in _MANIFESTS_OF_BUILD else "manifests"
            if folder.name == "journal":
                purpose = f"ingest-{folder.parent.name}"
            yield Leftover(path, Kind.MANIFEST, size(path), state, workspace.lock_file(purpose))


def _salts(workspace: Workspace) -> Iterator[Leftover]:
    for path in sorted(workspace.root.glob(".salt.*")):
        if _SALT.fullmatch(path.name):
            state = State.HELD if _is_young(path) else State.FREE
            yield Leftover(path, Kind.SALT, size(path), state, None)


def _of_runs(workspace: Workspace) -> Iterator[Leftover]:
    for run in filter(_is_readable, named_folders(workspace.runs)):
        for folder in (run, run / "checkpoints"):
            for path, _, state in _temporaries(folder):
                # A trainer locks this file in the folder of its run.
                yield Leftover(path, Kind.RUN, size(path), state, run / ".lock")
        for pattern in (".step-*", "damaged-step-*"):
            for path in sorted((run / "checkpoints").glob(pattern)):
                yield Leftover(path, Kind.RUN, size(path), State.FREE, run / ".lock")


def _temporaries(folder: Path) -> Iterator[tuple[Path, str, State]]:
    """Files under temporary names, the names they were to have, and whether their writers live."""
    for path in sorted(folder.glob(".*.tmp")):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and path.is_file():
            process = match["process"]
            alive = process is not None and _is_alive(int(process))
            yield path, match["name"], State.HELD if alive else State.FREE


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _unreadable(workspace: Workspace) -> Iterator[Leftover]:
    for parent in (workspace.cache, workspace.manifests, workspace.runs):
        for folder in (parent, *named_folders(parent)):
            if folder.is_dir() and not _is_readable(folder):
                yield Leftover(folder, Kind.FOLDER, 0, State.UNREADABLE, None)


def _is_readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _clear(entry: Leftover) -> bool:
    """Delete it, unless somebody has begun to use it; whether it is gone."""
    if entry.kind is Kind.WRITING:
        return remove_leftover(entry.path)
    if entry.kind is Kind.TRIALS:
        return _is_unused_trial(entry.path) and remove_trial(entry.path)
    return delete(entry.path)


def _is_unused_trial(path: Path) -> bool:
    if (path / KEEPER).exists():
        return not is_in_use(path)
    return not _is_young(path)  # it is being made now, or was when its process was killed


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _SECONDS
    except FileNotFoundError:  # just ended
        return True
