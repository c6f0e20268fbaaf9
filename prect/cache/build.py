"""The build engine: every accepted volume of a data set becomes a store, on Dask.

The graph never holds more than a few jobs a worker. What is committed stays: a build that
was killed goes on where it stopped, and one that has nothing to do reads the manifests
and the stores' attributes and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client

from prect.cache.convert import Job, convert, is_current, quarantine, stored_row
from prect.cache.profile import Profile
from prect.cache.writer import clear_leftovers
from prect.cluster import run_bounded
from prect.errors import BuildError, ManifestError, WorkspaceError
from prect.manifests.cards import load_card
from prect.manifests.sources import SourceRow, Verdict, read_sources
from prect.manifests.stores import (
    CacheRow,
    QuarantineRow,
    read_quarantine,
    write_cache_rows,
    write_quarantine,
)
from prect.workspace import Workspace

_MANIFEST_EVERY = 500
"""Volumes after which the manifests are written in mid-build."""

_PASSING_CODES = {"file.missing", "file.unreadable", "file.changed", "build.worker_died"}
"""Failures of the place, not of the volume: they are tried again by the next build."""

Outcome = CacheRow | QuarantineRow
Progress = Callable[[Outcome], None]


@dataclass(frozen=True)
class Plan:
    """What there is to do for one data set; the four parts add up to the accepted volumes."""

    dataset: str
    sources: int
    """Rows of the source manifest."""
    current: tuple[Job, ...]
    """Stored with this profile from this source."""
    quarantined: tuple[QuarantineRow, ...]
    """Failed before, with this profile and this source."""
    todo: tuple[Job, ...]
    stale: int
    """How many of ``todo`` replace a store of another profile or source."""


@dataclass
class Report:
    """What a build did with one data set."""

    plan: Plan
    rows: list[CacheRow] = field(default_factory=list)
    """All stores of the data set, kept and new."""
    quarantine: list[QuarantineRow] = field(default_factory=list)
    built: int = 0
    leftovers: int = 0
    """Half-written stores of earlier builds that were removed."""

    def summary(self) -> dict[str, Any]:
        """Counts that add up: accepted = stored + quarantined."""
        source_bytes = sum(row.source_bytes for row in self.rows)
        stored_bytes = sum(row.bytes for row in self.rows)
        return {
            "dataset": self.plan.dataset,
            "candidates": self.plan.sources,
            "accepted": len(self.plan.current) + len(self.plan.todo) + len(self.plan.quarantined),
            "stored": len(self.rows),
            "built": self.built,
            "kept": len(self.rows) - self.built,
            "rebuilt_stale": self.plan.stale,
            "quarantined": len(self.quarantine),
            "newly_quarantined": len(self.quarantine) - len(self.plan.quarantined),
            "leftovers_removed": self.leftovers,
            "bytes": stored_bytes,
            "source_bytes": source_bytes,
        }


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
    """
    path = workspace.sources(dataset)
    if not path.exists():
        known = ", ".join(workspace.datasets()) or "none"
        raise ManifestError(
            f"data set {dataset!r} has not been ingested (ingested: {known}); "
            f"run: prect ingest {dataset} --source DIR"
        )
    rows = read_sources(path)
    limits = load_card(workspace.card(dataset)).limits
    failed = {row.case: row for row in read_quarantine(workspace.quarantine(dataset))}
    current, todo, quarantined, stale = [], [], [], 0
    for row in rows:
        if not Verdict(row.verdict).usable:
            continue
        job = Job(row, profile, workspace.store(dataset, row.case), limits)
        before = failed.get(row.case)
        if is_current(job):
            current.append(job)
        elif before is not None and not retry and _stays(before, row, profile):
            quarantined.append(before)
        else:
            todo.append(job)
            stale += job.store.exists()
    for root in sorted({job.source.root for job in todo}):
        if not Path(root).is_dir():
            raise WorkspaceError(
                f"the source folder {root} of data set {dataset!r} is not there; mount it, or run: "
                f"prect ingest {dataset} --source DIR"
            )
    return Plan(dataset, len(rows), tuple(current), tuple(quarantined), tuple(todo), stale)


def _stays(before: QuarantineRow, row: SourceRow, profile: Profile) -> bool:
    """Whether a failure is one of the volume, which another try would only repeat."""
    if before.code in _PASSING_CODES:
        return False
    return (before.source_digest, before.profile) == (row.source_digest, profile.digest)


def build(
    plan: Plan, workspace: Workspace, client: Client | None, on_outcome: Progress | None = None
) -> Report:
    """Carry out a plan and write the manifests.

    Args:
        plan: from `make_plan`; the caller holds the workspace's build lock.
        workspace: where manifests and stores lie.
        client: Dask client; may be ``None`` when the plan has nothing to do.
        on_outcome: called after each volume.

    Raises:
        OSError: a store cannot be written; what was committed before stays.
        BuildError: there is work and no client.
    """
    report = Report(plan, quarantine=list(plan.quarantined))
    report.leftovers = len(clear_leftovers(workspace.dataset_cache(plan.dataset)))
    report.rows = [stored_row(job.store) for job in plan.current]
    try:
        if plan.todo:
            if client is None:
                raise BuildError("there are volumes to build and no Dask client")
            for outcome in _run(plan.todo, client):
                if isinstance(outcome, CacheRow):
                    report.rows.append(outcome)
                    report.built += 1
                else:
                    report.quarantine.append(outcome)
                if (report.built + len(report.quarantine)) % _MANIFEST_EVERY == 0:
                    _write_manifests(report, workspace)
                if on_outcome is not None:
                    on_outcome(outcome)
    finally:
        _write_manifests(report, workspace)
    # Workers of a build that was killed may have lived until now, and left something since.
    report.leftovers += len(clear_leftovers(workspace.dataset_cache(plan.dataset)))
    return report


def _write_manifests(report: Report, workspace: Workspace) -> None:
    dataset = report.plan.dataset
    write_cache_rows(workspace.cache_manifest(dataset), report.rows)
    write_quarantine(workspace.quarantine(dataset), report.quarantine)


def _run(jobs: tuple[Job, ...], client: Client) -> Iterator[Outcome]:
    """The outcome of each job as it is there."""
    lost: list[Job] = []
    for job, outcome in run_bounded(client, convert, jobs):
        if outcome is None:
            lost.append(job)
        else:
            yield outcome
    for job, outcome in run_bounded(client, convert, lost, at_once=1):
        yield outcome or quarantine(
            job,
            "build.worker_died",
            "the worker died more than once on this volume, memory may be short",
        )
