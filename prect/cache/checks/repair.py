"""Mending what verify found: stores from their sources, rows from the stores.

A store is replaced by a rename, or set aside by one, before any manifest says so; rows follow
from the stores. Killed at any point, the same repair run again ends in the same state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client
from pydantic import ValidationError

from prect.cache.build import run_jobs
from prect.cache.checks.inventory import Listing, Manifest, cases_by_root
from prect.cache.checks.remedies import Remedy, Result, remedy
from prect.cache.checks.validate import read_attributes, unexpected_files
from prect.cache.checks.verify import Broken, Kind, Verification, verify
from prect.cache.convert import Job
from prect.cache.hidden import Mark, hidden_name
from prect.cache.plan import PASSING_CODES, require_roots, usable_jobs
from prect.cache.profile import Profile
from prect.cache.rows import stored_row
from prect.cache.writer import clear_leftovers
from prect.errors import BuildError, StoreError, WorkspaceError
from prect.files import sync_folder
from prect.manifests.stores import (
    CACHE_SCHEMA,
    CacheRow,
    QuarantineRow,
    cache_table,
    read_quarantine,
    write_cache_table,
    write_quarantine,
)
from prect.workspace import Workspace


@dataclass
class Repair:
    """What a repair did with one data set."""

    found: Verification
    results: dict[str, Result] = field(default_factory=dict)
    """By case."""
    reasons: dict[str, str] = field(default_factory=dict)
    """By case, why a store could not be built again."""
    rows: list[CacheRow] = field(default_factory=list)
    quarantine: list[QuarantineRow] = field(default_factory=list)
    manifest_written: bool = False

    @property
    def sound(self) -> bool:
        """Whether all that was broken is repaired."""
        return (self.found.manifest_sound or self.manifest_written) and all(
            self.results.get(broken.case) is Result.REPAIRED for broken in self.found.broken
        )

    @property
    def counts(self) -> dict[Result, int]:
        """Number of stores with each result; they add up to the broken ones."""
        results = [self.results.get(broken.case, Result.LEFT) for broken in self.found.broken]
        return {result: results.count(result) for result in Result}


Progress = Callable[[], None]


def repair(
    found: Verification,
    workspace: Workspace,
    client: Client | None,
    *,
    rebuild_manifest: bool = False,
    on_result: Progress = lambda: None,
    stop: Callable[[], bool] | None = None,
) -> Repair:
    """Mend what is broken in one data set, then write its manifests.

    A store stays as it is where its source folder is not there, the source cannot be read, or the
    workspace cannot be written at that place; the reasons say so. Links are never followed.

    Args:
        found: of `prect.cache.checks.verify.verify`, with rows collected; the caller has held the
            workspace's build lock since before.
        workspace: where the data set lies.
        client: Dask client; may be ``None`` when nothing is to be built.
        rebuild_manifest: write every row from its store, not only those that differ.
        on_result: called after each store.
        stop: asked before each store that is built; once it says yes, no other is begun.

    Raises:
        ManifestError: the quarantine is damaged.
        OSError: a store cannot be written; what was repaired before stays.
        BuildError: there is something to build and no client.
    """
    listing = found.listing
    done = Repair(found)
    before = read_quarantine(workspace.quarantine(_name(listing)))
    to_build: dict[str, Broken] = {}
    clear_leftovers(listing.folder)
    try:
        for broken in found.broken:
            action = remedy(broken, listing)
            if action is Remedy.REBUILD:
                to_build[broken.case] = broken
                continue
            with _left_on_error(broken.case, done):
                if action is Remedy.TIDY:
                    _put_extra_aside(broken.store)
                    _store_is_right(stored_row(broken.store), done)
                elif action is Remedy.ROW and broken.row is not None:
                    _store_is_right(broken.row, done)
                elif action is Remedy.SET_ASIDE:
                    _set_aside(broken, done, _without_source(broken, listing))
            on_result()
        _leave_without_root(to_build, done, workspace)
        rebuilt = []
        for job, outcome in _rebuilt(to_build, done, workspace, client, stop):
            if isinstance(outcome, CacheRow):
                _store_is_right(outcome, done)
                rebuilt.append(outcome.case)
            elif outcome.code in PASSING_CODES:
                _leave(outcome.case, done, f"{outcome.code}: {outcome.reason}")
            else:
                with _left_on_error(outcome.case, done):
                    _set_aside(to_build[job.source.case], done, outcome)
            on_result()
        _check_again(rebuilt, done, client)
    finally:
        _write(done, before, workspace, rebuild_manifest=rebuild_manifest)
    found.count_surroundings()
    return done


def rebuild_manifest(found: Verification, workspace: Workspace) -> Repair:
    """Write the cache manifest of a data set from its whole stores; nothing else is touched.

    Args:
        found: of `prect.cache.checks.verify.verify`, with rows collected; the caller has held the
            workspace's build lock since before.
        workspace: where the data set lies.
    """
    write_cache_table(workspace.cache_manifest(_name(found.listing)), _all_rows(found))
    drifted = [broken.case for broken in found.broken if broken.kind is Kind.DRIFTED]
    results = dict.fromkeys(drifted, Result.REPAIRED)
    return Repair(found, results, manifest_written=True)


def _name(listing: Listing) -> str:
    if listing.dataset is None:
        raise BuildError(f"{listing.outside} lies outside of a workspace and cannot be repaired")
    return listing.dataset


def _store_is_right(row: CacheRow, done: Repair) -> None:
    done.rows.append(row)
    done.results[row.case] = Result.REPAIRED


def _leave(case: str, done: Repair, reason: str) -> None:
    done.results[case] = Result.LEFT
    done.reasons[case] = reason


@contextmanager
def _left_on_error(case: str, done: Repair) -> Iterator[None]:
    """A store that the disk does not let be mended is left; the others are not given up for it."""
    try:
        yield
    except (OSError, StoreError) as error:
        _leave(case, done, str(error))


def _leave_without_root(to_build: dict[str, Broken], done: Repair, workspace: Workspace) -> None:
    """Take out what is made from a source folder that is not there: it may not be mounted."""
    dataset = _name(done.found.listing)
    for root, cases in cases_by_root(workspace, dataset, to_build).items():
        try:
            require_roots(dataset, {root})
        except WorkspaceError as error:
            for case in cases:
                _leave(case, done, str(error))
                del to_build[case]


def _put_extra_aside(store: Path) -> None:
    """Move what does not belong to a store out of it: a user may have put it there."""
    attributes = read_attributes(store)
    if attributes is not None:
        levels = [level.path for level in attributes.levels]
    else:  # what could be a level goes with the store
        levels = [entry.name for entry in store.iterdir() if entry.name.isdigit()]
    extra = unexpected_files(store, levels)
    if not extra:
        return
    aside = hidden_name(store, Mark.BROKEN)
    aside.mkdir()
    for name in extra:
        (aside / name).parent.mkdir(exist_ok=True)
        (store / name).rename(aside / name)
    sync_folder(store)


def _without_source(broken: Broken, listing: Listing) -> QuarantineRow:
    """The row of a volume that is not usable any more, or whose source nothing tells of.

    It names neither source nor profile, so that a build tries the volume when it is usable again.
    """
    fault = broken.faults[0]
    why = "has no source manifest" if listing.expected.origins is None else "is not usable any more"
    reason = f"the store is broken ({fault.detail}), and the volume {why}"
    return QuarantineRow(_name(listing), broken.case, "", "", fault.code, reason)


def _set_aside(broken: Broken, done: Repair, row: QuarantineRow) -> None:
    """Hide a store that cannot be built again; it stays on disk."""
    if _exists(broken.store):
        broken.store.rename(hidden_name(broken.store, Mark.BROKEN))
        sync_folder(broken.store.parent)
    done.quarantine.append(row)
    done.results[broken.case] = Result.SET_ASIDE
    done.reasons[broken.case] = f"{row.code}: {row.reason}"


def _exists(store: Path) -> bool:
    """Whether there is anything of that name, be it a link that leads nowhere."""
    return store.is_symlink() or store.exists()


def _rebuilt(
    to_build: dict[str, Broken],
    done: Repair,
    workspace: Workspace,
    client: Client | None,
    stop: Callable[[], bool] | None,
) -> Iterator[tuple[Job, CacheRow | QuarantineRow]]:
    """Build stores again in their place, and say what came of each."""
    if not to_build:
        return
    if client is None:
        raise BuildError("there are stores to build again and no Dask client")
    profiles = _profiles(to_build, done)
    hidden: dict[str, Path | None] = {}
    for cases in profiles.values():
        for case in list(cases):
            with _left_on_error(case, done):
                hidden[case] = _make_room(to_build[case].store)
            if case in done.results:
                cases.remove(case)
    dataset = _name(done.found.listing)
    jobs = (
        job
        for profile, cases in profiles.items()
        for job in usable_jobs(dataset, workspace, profile, cases)
    )
    for job, outcome in run_jobs(jobs, client, stop):
        aside = hidden[outcome.case]
        if aside is not None and getattr(outcome, "code", "") in PASSING_CODES:
            aside.rename(to_build[outcome.case].store)  # it is left as it was
        yield job, outcome


def _make_room(store: Path) -> Path | None:
    """Leave nothing in a store's place but a folder of its own; says what another thing became."""
    if store.is_dir() and not store.is_symlink():
        _put_extra_aside(store)
    elif _exists(store):  # nothing but a folder gives way to a folder
        return store.rename(hidden_name(store, Mark.BROKEN))
    return None


def _profiles(to_build: dict[str, Broken], done: Repair) -> dict[Profile, list[str]]:
    """Cases to build by profile: that of the data set, else the one that each store names."""
    listing = done.found.listing
    known = listing.expected.profile
    sibling = None if known else _profile_of_a_sibling(listing)
    profiles: dict[str, Profile] = {}
    cases: dict[str, list[str]] = defaultdict(list)
    for case, broken in to_build.items():
        profile = known or _profile_of(broken.store) or sibling
        if profile is None:
            done.reasons[case] = (
                "no profile is known to build it with; run: "
                f"prect build-cache {listing.dataset} --profile NAME"
            )
            continue
        profiles[profile.digest] = profile
        cases[profile.digest].append(case)
    return {profile: cases[digest] for digest, profile in profiles.items()}


def _check_again(rebuilt: list[str], done: Repair, client: Client | None) -> None:
    """A store that is broken as soon as it is built is not repaired: the disk, or the writer."""
    listing = replace(done.found.listing, cases=sorted(rebuilt), table=None)
    (again,) = verify([listing], client, deep=True)
    for broken in again.broken:
        done.results[broken.case] = Result.LEFT
        done.reasons[broken.case] = f"it was built again, and still: {broken.faults[0]}"
    left = {broken.case for broken in again.broken}
    done.rows = [row for row in done.rows if row.case not in left]


def _profile_of(store: Path) -> Profile | None:
    """The profile that a store names, if that can be trusted and this release knows it."""
    attributes = read_attributes(store)
    try:
        return None if attributes is None else Profile.model_validate(attributes.profile)
    except ValidationError:
        return None


def _profile_of_a_sibling(listing: Listing) -> Profile | None:
    found = (_profile_of(listing.store(case)) for case in listing.cases)
    return next((profile for profile in found if profile is not None), None)


def _all_rows(found: Verification) -> pa.Table:
    return pa.concat_tables([CACHE_SCHEMA.empty_table(), *found.tables]).combine_chunks()


def _without(table: pa.Table, cases: Sequence[str]) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["case"], pa.array(cases, pa.string()))))


def _write(
    done: Repair, before: list[QuarantineRow], workspace: Workspace, *, rebuild_manifest: bool
) -> None:
    """Write the manifests, those that change: first why rows go, then the rows."""
    found = done.found
    dataset = _name(found.listing)
    right = {row.case for row in done.rows}
    quarantine = {row.case: row for row in before if row.case not in right}
    quarantine.update({row.case: row for row in done.quarantine})
    if list(quarantine.values()) != before:
        write_quarantine(workspace.quarantine(dataset), quarantine.values())
    whole = found.listing.manifest is Manifest.WHOLE and not rebuild_manifest
    gone = [case for case, result in done.results.items() if result is Result.SET_ASIDE]
    if whole and not right and not gone:
        return
    table = found.listing.table if whole else _all_rows(found)
    rows = [row for row in done.rows if found.listing.expected.lists(row)]
    table = pa.concat_tables([_without(table, [*right, *gone]), cache_table(rows)])
    if not whole and not len(table) and found.listing.manifest is Manifest.NONE:
        return
    write_cache_table(workspace.cache_manifest(dataset), table.combine_chunks())
    done.manifest_written = True
