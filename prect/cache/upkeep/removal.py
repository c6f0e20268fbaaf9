"""Deleting volumes: their rows, then their stores, so that no reader sees a part of one.

Killed at any point, the same removal asked for again ends in the same state. A store goes when no
manifest names it any more, and has a hidden name before its first file goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from prect.cache.hidden import Mark, delete, hidden_name, is_temporary, parse_hidden
from prect.cache.upkeep.leftovers import is_held, set_aside, size
from prect.cache.writer import is_abandoned
from prect.errors import ManifestError, WorkspaceError
from prect.files import sync_folder
from prect.manifests.cases import CaseIndex, known_datasets
from prect.manifests.commit import decide_without, require_test_sets
from prect.manifests.removal import (
    Changes,
    Rows,
    delete_manifests,
    read_rows,
    removed_before,
    take_out,
    take_out_all,
)
from prect.workspace import STORE_SUFFIX, Workspace


class Scope(StrEnum):
    """What a removal takes."""

    CASES = "cases"
    """Volumes by name, with all their rows."""
    ORPHANS = "orphans"
    """Stores whose source is no longer usable, or gone, and their rows; source rows stay."""
    ALL = "all"
    """The whole data set."""


@dataclass(frozen=True)
class Request:
    """What a user wants to be removed."""

    dataset: str
    scope: Scope
    names: tuple[str, ...] = ()
    """Volumes, by any name that `CaseIndex` knows; with `Scope.CASES` only."""


@dataclass(frozen=True)
class Counts:
    """What a data set holds."""

    sources: int
    """Rows of the source manifest."""
    cached: int
    """Rows of the cache manifest."""
    quarantined: int
    """Rows of the quarantine."""
    stores: int
    """Stores on disk, whatever the manifests say."""


@dataclass(frozen=True)
class Run:
    """A training run that was made from the data set."""

    name: str
    running: bool


@dataclass(frozen=True)
class Removal:
    """What a removal takes, and what follows from it."""

    request: Request
    cases: tuple[str, ...]
    """Ids of the volumes of which there is anything to delete."""
    gone: tuple[str, ...]
    """Ids of volumes that were asked for and removed before."""
    before: Counts
    taken: Counts
    bytes: int
    """Of the stores that go, and of ``aside``; what lies behind a link counts none."""
    aside: tuple[Path, ...]
    """What is set aside of these volumes, and what removals that were cut short have left."""
    changes: Changes
    """Verdicts of volumes that stay."""
    runs: tuple[Run, ...]
    kept: tuple[str, ...] = ()
    """Once it is carried out: paths of what stays in the folders of a data set that is gone, since
    it is not of our making, or still in use."""

    @property
    def empty(self) -> bool:
        """Whether nothing would be deleted."""
        return not (self.cases or self.aside or self.request.scope is Scope.ALL)


@dataclass(frozen=True)
class _Contents:
    """The volumes of a data set, wherever they show."""

    rows: Rows
    stored: frozenset[str]
    aside: Mapping[str, list[Path]]

    @property
    def known(self) -> set[str]:
        rows = self.rows
        return {*rows.sources, *rows.cached, *rows.quarantined, *self.stored, *self.aside}

    def counts(self, cases: Collection[str] | None = None) -> Counts:
        """Of these cases, or of all."""
        members = (self.rows.sources, self.rows.cached, self.rows.quarantined, self.stored)
        return Counts(*(sum(cases is None or case in cases for case in part) for part in members))


def plan_removal(workspace: Workspace, request: Request) -> Removal:
    """What a removal would take; nothing is written.

    Raises:
        ManifestError: there is no such data set or volume, a name may mean several, a manifest is
            damaged, or a test set that is kept out of pre-training would be gone.
    """
    contents = _contents(workspace, request)
    wanted = _wanted(workspace, request, contents)
    changes: Changes = {}
    if request.scope is not Scope.ORPHANS:
        cases = None if request.scope is Scope.ALL else wanted
        require_test_sets(workspace, request.dataset, cases)
        changes = decide_without(workspace, request.dataset, cases, write=False)
    return _removal(workspace, request, contents, wanted, changes)


def remove(
    workspace: Workspace, plan: Removal, on_deleted: Callable[[], None] = lambda: None
) -> tuple[Removal, Counts]:
    """Delete what a plan says.

    Holds the locks of whoever else writes rows or stores of the data set: other removals, build
    and repair, ingest.

    Args:
        workspace: the workspace.
        plan: of `plan_removal`.
        on_deleted: called after each store, and after each thing that was set aside.

    Returns:
        What was taken, and what the data set holds now.

    Raises:
        WorkspaceError: one of these is at work, or the data set has changed since the plan.
        ManifestError: as for `plan_removal`.
        OSError: something cannot be deleted; asked for again, the removal goes on.
    """
    request = plan.request
    dataset = request.dataset
    folder = workspace.dataset_cache(dataset)
    if plan.empty and request.scope is Scope.ORPHANS:
        return plan, plan.before
    with ExitStack() as locks:
        for purpose in ("remove", "build-cache", f"ingest-{dataset}"):
            locks.enter_context(workspace.lock(purpose))
        with workspace.lock("manifests", wait=True):
            contents = _contents(workspace, request)
            wanted = _wanted(workspace, request, contents)
            done = _removal(workspace, request, contents, wanted, {})
            if done.cases != plan.cases:
                raise WorkspaceError(
                    f"data set {dataset} has changed since it was looked at: of {len(plan.cases)} "
                    f"volumes there was something to delete, now of {len(done.cases)}; look again"
                )
            _refuse_writers(dataset, wanted, contents)
            changes = _take_out(workspace, done, wanted)
        if _is_linked(workspace, request):
            folder.unlink()
        else:
            _delete_stores(workspace, done, on_deleted)
        kept: list[Path] = []
        if request.scope is Scope.ALL:
            kept = [*_delete_folder(folder), *delete_manifests(workspace, dataset)]
        rows, stored = read_rows(workspace, dataset), workspace.stored_cases(dataset)
    left = _Contents(rows, frozenset(stored), {})
    return replace(done, changes=changes, kept=tuple(map(str, kept))), left.counts()


def _contents(workspace: Workspace, request: Request) -> _Contents:
    dataset = request.dataset
    folder = workspace.dataset_cache(dataset)
    known = known_datasets(workspace)
    if dataset not in known:
        near = get_close_matches(dataset, known) or known
        hint = f" (there are: {', '.join(near)})" if near else ""
        raise ManifestError(f"no data set {dataset!r} in {workspace.root}{hint}")
    rows = read_rows(workspace, dataset, tolerant=request.scope is Scope.ALL)
    if _is_linked(workspace, request):
        return _Contents(rows, frozenset(), {})
    return _Contents(rows, frozenset(workspace.stored_cases(dataset)), set_aside(folder))


def _is_linked(workspace: Workspace, request: Request) -> bool:
    """Whether a whole data set goes whose stores lie behind a link: it goes, and they stay."""
    return request.scope is Scope.ALL and workspace.dataset_cache(request.dataset).is_symlink()


def _wanted(workspace: Workspace, request: Request, contents: _Contents) -> set[str]:
    """Ids of the volumes that are to go, those of which nothing is left included."""
    dataset = request.dataset
    if request.scope is Scope.ALL:
        return contents.known
    if request.scope is Scope.ORPHANS:
        if not workspace.sources(dataset).exists():
            raise ManifestError(
                f"data set {dataset} has no source manifest, so none of its stores is an orphan; "
                "--all removes the whole data set"
            )
        return {*contents.stored, *contents.rows.cached} - contents.rows.usable
    index = CaseIndex(workspace, [dataset])
    index.add(dataset, ((case, case) for case in contents.aside))
    if not all(index.find(name) for name in request.names):
        index.add(dataset, removed_before(workspace, dataset))
    return {index.one(name).case for name in request.names}


def _removal(
    workspace: Workspace,
    request: Request,
    contents: _Contents,
    wanted: set[str],
    changes: Changes,
) -> Removal:
    taken = contents.counts(wanted)
    if request.scope is Scope.ORPHANS:
        taken = replace(taken, sources=0, quarantined=0)
    # What an earlier removal has hidden goes, whatever was asked for now.
    aside = [
        path
        for case, paths in contents.aside.items()
        for path in paths
        if case in wanted or parse_hidden(path.name) == (case, Mark.REMOVED)
    ]
    cached = contents.rows.cached
    stored = sum(
        cached[case] if case in cached else size(_store(workspace, request.dataset, case))
        for case in wanted & contents.stored
    )
    present = wanted & contents.known
    return Removal(
        request=request,
        cases=tuple(sorted(present)),
        gone=tuple(sorted(wanted - present)),
        before=contents.counts(),
        taken=taken,
        bytes=stored + sum(map(size, aside)),
        aside=tuple(sorted(aside)),
        changes=changes,
        runs=_runs(workspace, request.dataset),
    )


def _runs(workspace: Workspace, dataset: str) -> tuple[Run, ...]:
    """Runs whose settings name the data set."""
    runs = []
    for path in sorted(workspace.runs.glob("*/config.json")):
        try:
            named = json.loads(path.read_text(encoding="utf-8"))["data"]["datasets"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no run of this release; it is not touched, and only a remark depends on it
        if dataset in named:
            runs.append(Run(path.parent.name, is_held(path.with_name(".lock"))))
    return tuple(runs)


def _refuse_writers(dataset: str, wanted: set[str], contents: _Contents) -> None:
    """Workers of a build whose driver was killed may live on for a while, without its lock."""
    for case, paths in contents.aside.items():
        for path in paths:
            if case in wanted and is_temporary(path) and not is_abandoned(path):
                raise WorkspaceError(
                    f"{dataset}/{case} is being stored by a worker of a build that was "
                    "stopped; try again when it has ended"
                )


def _take_out(workspace: Workspace, removal: Removal, wanted: set[str]) -> Changes:
    request = removal.request
    if request.scope is Scope.ALL:
        return take_out_all(workspace, request.dataset)
    summary = {
        "scope": request.scope.value,
        "cases": removal.cases,
        "taken": asdict(removal.taken),
        "bytes": removal.bytes,
    }
    stores_only = request.scope is Scope.ORPHANS
    return take_out(workspace, request.dataset, wanted, summary, stores_only=stores_only)


def _store(workspace: Workspace, dataset: str, case: str) -> Path:
    """Path of a store, whatever it is called: what lies there may not be of our making."""
    return workspace.dataset_cache(dataset) / f"{case}{STORE_SUFFIX}"


def _delete_stores(workspace: Workspace, removal: Removal, on_deleted: Callable[[], None]) -> None:
    dataset = removal.request.dataset
    hidden = list(removal.aside)
    for case in removal.cases:
        store = _store(workspace, dataset, case)
        if store.exists() or store.is_symlink():
            hidden.append(store.rename(hidden_name(store, Mark.REMOVED)))
    if hidden:
        # No crash brings a name back whose files have begun to go.
        sync_folder(workspace.dataset_cache(dataset))
    for path in hidden:
        delete(path)  # what NFS keeps for who reads it, the next removal or `prect gc` clears
        on_deleted()


def _delete_folder(folder: Path) -> list[Path]:
    """Delete a folder that is empty; else return what is left in it."""
    kept = sorted(folder.iterdir()) if folder.is_dir() else []
    if folder.is_dir() and not kept:
        folder.rmdir()
    return kept
