"""The build engine: every accepted volume of a data set becomes a store, on Dask.

The graph never holds more than a few jobs a worker. What is committed stays: a build that
was killed goes on where it stopped, and one that has nothing to do reads the manifests
and the stores' attributes and ends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask
from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from prect.cache.convert import Job, convert, is_current, quarantine, stored_row
from prect.cache.profile import Profile
from prect.cache.writer import clear_leftovers
from prect.errors import BuildError, ManifestError
from prect.manifests.sources import SourceRow, Verdict, read_sources
from prect.manifests.stores import (
    CacheRow,
    QuarantineRow,
    read_quarantine,
    write_cache_rows,
    write_quarantine,
)
from prect.workspace import Workspace

_JOBS_AHEAD = 2
"""Jobs in the scheduler for each worker: one at work, one waiting."""
_DEATHS_ALLOWED = 1
"""A volume whose worker dies is tried once more."""
_MANIFEST_EVERY = 500
"""Volumes after which the manifests are written in mid-build."""

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
        new = [row for row in self.quarantine if row not in self.plan.quarantined]
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
            "newly_quarantined": len(new),
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
    """
    path = workspace.sources(dataset)
    if not path.exists():
        known = ", ".join(workspace.datasets()) or "none"
        raise ManifestError(
            f"data set {dataset!r} has not been ingested (ingested: {known}); "
            f"run: prect ingest {dataset} --source DIR"
        )
    rows = read_sources(path)
    failed = {row.case: row for row in read_quarantine(workspace.quarantine(dataset))}
    current, todo, quarantined, stale = [], [], [], 0
    for row in rows:
        if not Verdict(row.verdict).usable:
            continue
        job = Job(row, profile, workspace.store(dataset, row.case))
        before = failed.get(row.case)
        if is_current(job):
            current.append(job)
        elif before is not None and not retry and _same(before, row, profile):
            quarantined.append(before)
        else:
            todo.append(job)
            stale += job.store.exists()
    return Plan(dataset, len(rows), tuple(current), tuple(quarantined), tuple(todo), stale)


def _same(before: QuarantineRow, row: SourceRow, profile: Profile) -> bool:
    return (before.source_digest, before.profile) == (row.source_digest, profile.digest)


@contextmanager
def cluster(workers: int, scheduler: str | None = None) -> Iterator[Client]:
    """A Dask client: ``workers`` local processes of one thread, or an existing scheduler.

    Raises:
        BuildError: the scheduler cannot be reached.
    """
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, TimeoutError) as error:
            raise BuildError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with client:
            yield client
        return
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS_ALLOWED,
        # A volume is one task: moving it between workers gains nothing.
        "distributed.scheduler.work-stealing": False,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=None,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as local,
        Client(local) as client,
    ):
        yield client


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
    return report


def _write_manifests(report: Report, workspace: Workspace) -> None:
    dataset = report.plan.dataset
    write_cache_rows(workspace.cache_manifest(dataset), report.rows)
    write_quarantine(workspace.quarantine(dataset), report.quarantine)


def _run(jobs: tuple[Job, ...], client: Client) -> Iterator[Outcome]:
    """Submit jobs as workers become free; yield each outcome as it is there."""
    waiting = deque(jobs)
    running = {}
    completed = as_completed()
    ahead = _JOBS_AHEAD * max(1, sum(client.nthreads().values()))

    def submit() -> None:
        job = waiting.popleft()
        future = client.submit(convert, job, key=f"convert-{job.source.case}", pure=False)
        running[future] = job
        completed.add(future)

    for _ in range(min(ahead, len(waiting))):
        submit()
    for future in completed:
        job = running.pop(future)
        try:
            outcome: Outcome = future.result()
        except KilledWorker:
            outcome = quarantine(
                job,
                "build.worker_died",
                f"the worker died {_DEATHS_ALLOWED + 1} times on this volume, memory may be short",
            )
        if waiting:
            submit()
        yield outcome
