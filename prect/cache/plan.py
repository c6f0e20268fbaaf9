"""What a build has to do: the source manifest against the stores that are there.

The manifest of the stores is an index, so that a plan of 160,000 volumes lists folders and
opens no store that the index already tells of. Stores that it does not tell of, since a
build was killed, are opened and adopted. Whether stores are whole is the business of verify.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prect.cache.convert import Job
from prect.cache.format import SHARD_KEY, document_digest, parse_group, version_is_damaged
from prect.cache.profile import Profile
from prect.cache.reader import StoreReader
from prect.cache.rows import ORIGIN_COLUMNS, origin_of, stored_row
from prect.errors import ManifestError, StoreError, StoreVersionError, WorkspaceError
from prect.manifests.cards import load_card
from prect.manifests.limits import Limits
from prect.manifests.parquet import stream_batches
from prect.manifests.sources import SOURCES_SCHEMA, to_rows, usable
from prect.manifests.stores import (
    CACHE_SCHEMA,
    QuarantineRow,
    cache_table,
    read_cache_table,
    read_quarantine,
)
from prect.workspace import Workspace

PASSING_CODES = {
    "file.missing",
    "file.unreadable",
    "file.changed",
    "build.worker_died",
    "build.out_of_memory",
}
"""Failures of the place, not of the volume: they are tried again by the next build."""
_PLANNED_COLUMNS = ["case", "verdict", "root", *ORIGIN_COLUMNS]
_BATCH = 1024


class State(StrEnum):
    """A store on disk, seen from the volume that it should hold."""

    CURRENT = "current"
    OTHER_PROFILE = "another profile"
    OTHER_SOURCE = "another source, or ingest has judged it otherwise since"
    DAMAGED = "incomplete or not readable"


@dataclass(frozen=True)
class Plan:
    """What there is to do for one data set; kept, quarantined and todo are all usable volumes."""

    dataset: str
    workspace: Workspace
    profile: Profile
    sources: int
    """Rows of the source manifest."""
    kept: pa.Table
    """Rows of the cache manifest: stored with this profile from this source."""
    adopted: int
    """How many of ``kept`` no manifest told of."""
    quarantined: tuple[QuarantineRow, ...]
    """Failed before, with this profile and this source."""
    todo: frozenset[str]
    """Cases to build."""
    largest: int
    """Voxels of the largest volume to build, of its file or of its grid if that has more."""
    stale: dict[str, int]
    """Why stores that are among ``todo`` have to be built again, and how many."""

    @property
    def usable(self) -> int:
        """Volumes that a whole build accounts for."""
        return len(self.kept) + len(self.quarantined) + len(self.todo)

    def jobs(self) -> Iterator[Job]:
        """What is to be built, a few rows of the manifest in memory at a time."""
        return usable_jobs(self.dataset, self.workspace, self.profile, self.todo)


def make_plan(dataset: str, workspace: Workspace, profile: Profile, *, retry: bool = False) -> Plan:
    """Compare the source manifest with the stores.

    Args:
        dataset: name of an ingested data set.
        workspace: where manifests and stores lie.
        profile: profile the stores must have.
        retry: try volumes again that failed before.

    Raises:
        ManifestError: the data set has not been ingested.
        WorkspaceError: the folder with the foreign files is not there.
        StoreVersionError: another release wrote a store; it is not overwritten unasked.
    """
    path = _sources(workspace, dataset)
    listed = _listed(workspace, dataset)
    rows_of = {case: n for n, case in enumerate(listed["case"].to_pylist())}
    profiles, origins = (listed[name].to_pylist() for name in ("profile", "made_from"))
    present = workspace.stored_cases(dataset)
    failed = {row.case: row for row in read_quarantine(workspace.quarantine(dataset))}
    kept, adopted, quarantined, todo = [], [], [], set()
    stale: Counter[str] = Counter()
    roots: set[str] = set()
    sources, largest = 0, 0
    same = _SameProfile(profile)
    for batch in stream_batches(path, SOURCES_SCHEMA, _PLANNED_COLUMNS, _BATCH):
        sources += len(batch)
        for row in batch.filter(pa.array(usable(batch))).to_pylist():
            case, origin, state = row["case"], origin_of(row), None
            if case in present:
                n = rows_of.get(case)
                store = workspace.store(dataset, case)
                if n is not None and origins[n] == origin and same.as_of(store, profiles[n]):
                    kept.append(n)
                    continue
                state = store_state(store, profile, origin)
                if state is State.CURRENT:
                    adopted.append(stored_row(store))
                    continue
            before = failed.get(case)
            if before is not None and not retry and _stays(before, origin, profile):
                quarantined.append(before)
                continue
            todo.add(case)
            roots.add(row["root"])
            largest = max(largest, *_voxels(row, profile))
            if state is not None:
                stale[state.value] += 1
    require_roots(dataset, roots)
    whole = pa.concat_tables([listed.take(pa.array(kept, pa.int64())), cache_table(adopted)])
    return Plan(
        dataset=dataset,
        workspace=workspace,
        profile=profile,
        sources=sources,
        kept=whole,
        adopted=len(adopted),
        quarantined=tuple(quarantined),
        todo=frozenset(todo),
        largest=largest,
        stale=dict(stale.most_common()),
    )


def usable_jobs(
    dataset: str, workspace: Workspace, profile: Profile, cases: Collection[str] | None = None
) -> Iterator[Job]:
    """Jobs of the usable rows of the source manifest, a few rows in memory at a time.

    Args:
        dataset: name of an ingested data set.
        workspace: where manifests and stores lie.
        profile: what the stores are to be built with.
        cases: those wanted; all when left out.

    Raises:
        ManifestError: the data set has not been ingested.
    """
    path = _sources(workspace, dataset)
    limits: Limits = load_card(workspace.card(dataset)).limits
    wanted = None if cases is None else pa.array(sorted(cases), pa.string())
    for batch in stream_batches(path, SOURCES_SCHEMA, None, _BATCH):
        mask = pa.array(usable(batch))
        if wanted is not None:
            mask = pc.and_(mask, pc.is_in(batch["case"], wanted))
        # A DICOM row names hundreds of files: one row at a time becomes Python objects.
        chosen = batch.filter(mask)
        for n in range(len(chosen)):
            (source,) = to_rows(chosen.slice(n, 1))
            yield Job(source, profile, workspace.store(dataset, source.case), limits)


def store_state(store: Path, profile: Profile, origin: str) -> State:
    """Compare a store on disk with what it should be, by its attributes and the files' sizes.

    Args:
        store: its folder.
        profile: what it should be built with.
        origin: what it should be made from; see `prect.manifests.stores.made_from`.

    Raises:
        StoreVersionError: another release wrote it.
    """
    try:
        text = (store / "zarr.json").read_bytes()
        attributes = parse_group(text, str(store))
        if document_digest(text) != attributes.digest:
            return State.DAMAGED
        for level in attributes.levels:
            folder = store / level.path
            if (folder / SHARD_KEY).stat().st_size != level.shard_bytes:
                return State.DAMAGED
            (folder / "zarr.json").stat()
    except StoreVersionError:
        if version_is_damaged(text):
            return State.DAMAGED
        raise
    except (OSError, StoreError):
        return State.DAMAGED
    if not profile.makes_the_same(attributes.profile):
        return State.OTHER_PROFILE
    return State.CURRENT if attributes.made_from == origin else State.OTHER_SOURCE


class _SameProfile:
    """Which digests of stored profiles stand for what the wanted profile makes.

    A release that adds a setting digests the same profile to something else; one store of
    each digest is asked for the profile itself.
    """

    def __init__(self, wanted: Profile) -> None:
        self._wanted = wanted
        self._known = {wanted.digest: True}

    def as_of(self, store: Path, digest: str) -> bool:
        """Whether a store whose profile has that digest was made as the wanted profile makes it."""
        if digest not in self._known:
            try:
                with StoreReader(store) as reader:
                    attributes = reader.attributes
            except StoreError:
                return False
            if attributes.profile_digest != digest:  # it is not what the manifest tells of
                return False
            self._known[digest] = self._wanted.makes_the_same(attributes.profile)
        return self._known[digest]


def _sources(workspace: Workspace, dataset: str) -> Path:
    path = workspace.sources(dataset)
    if not path.exists():
        known = ", ".join(workspace.datasets()) or "none"
        raise ManifestError(
            f"data set {dataset!r} has not been ingested (ingested: {known}); "
            f"run: prect ingest {dataset} --source DIR"
        )
    return path


def _listed(workspace: Workspace, dataset: str) -> pa.Table:
    """The cache manifest; empty when there is none that this release can read."""
    try:
        return read_cache_table(workspace.cache_manifest(dataset))
    except ManifestError:
        # It is an index: the stores themselves are asked instead.
        return CACHE_SCHEMA.empty_table()


def _voxels(row: dict[str, Any], profile: Profile) -> tuple[int, int]:
    """Voxels of a source, and about those of its whole field of view on the profile's grid."""
    field_mm3 = math.prod(n * mm for n, mm in zip(row["shape"], row["spacing"], strict=True))
    voxel_mm3 = math.prod(profile.harmonisation.spacing_mm)
    return math.prod(row["shape"]), math.ceil(field_mm3 / voxel_mm3)


def _stays(before: QuarantineRow, origin: str, profile: Profile) -> bool:
    """Whether a failure is one of the volume, which another try would only repeat."""
    if before.code in PASSING_CODES:
        return False
    return (before.made_from, before.profile) == (origin, profile.digest)


def require_roots(dataset: str, roots: Collection[str]) -> None:
    """Refuse to build from folders that are not there, rather than to call each volume missing.

    Raises:
        WorkspaceError: a folder is not there.
    """
    for root in sorted(roots):
        if not Path(root).is_dir():
            raise WorkspaceError(
                f"the source folder {root} of data set {dataset!r} is not there; mount it, or run: "
                f"prect ingest {dataset} --source DIR"
            )
