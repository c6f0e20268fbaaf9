"""The build engine: every usable volume of a data set becomes a store, on Dask.

The graph never holds more than a few jobs a worker. What is committed stays: a build that
was killed goes on where it stopped, and one that has nothing to do reads the manifests,
lists the stores and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from distributed import Client

from prect.cache.convert import Job, convert, quarantine
from prect.cache.plan import Plan, make_plan
from prect.cache.profile import write_profile
from prect.cache.writer import clear_leftovers
from prect.errors import BuildError
from prect.manifests.stores import (
    CACHE_SCHEMA,
    CacheRow,
    QuarantineRow,
    cache_table,
    write_cache_table,
    write_quarantine,
)
from prect.retries import run_retrying
from prect.workspace import Workspace

__all__ = ["Outcome", "Plan", "Report", "build", "make_plan", "run_jobs"]

_MANIFEST_EVERY = 500
"""Volumes, at least, after which the manifests are written in mid-build."""

Outcome = CacheRow | QuarantineRow
Progress = Callable[[Outcome], None]


@dataclass
class Report:
    """What a build did with one data set."""

    plan: Plan
    stored: pa.Table
    """Rows of all current stores of the data set, kept and new."""
    quarantine: list[QuarantineRow]
    built: int = 0
    leftovers: int = 0
    """Half-written stores of earlier builds that were removed."""
    _new: list[CacheRow] = field(default_factory=list)

    @classmethod
    def begun(cls, plan: Plan) -> Report:
        """The report before anything was built."""
        return cls(plan, plan.kept, list(plan.quarantined))

    def add(self, outcome: Outcome) -> None:
        """Count one volume."""
        if isinstance(outcome, QuarantineRow):
            self.quarantine.append(outcome)
            return
        self._new.append(outcome)
        self.built += 1

    @property
    def interrupted(self) -> bool:
        """Whether there is still something to do."""
        return self.done < len(self.plan.todo)

    @property
    def done(self) -> int:
        """Volumes that this build has stored or quarantined."""
        return self.built + len(self.quarantine) - len(self.plan.quarantined)

    def write(self) -> None:
        """Write the manifests and the profile as they are now.

        Nothing is written before the first volume is done: a build with a wrong profile that is
        stopped at once leaves the manifest of the stores that are there.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        if self.plan.todo and not self.done:
            return
        # Rows are kept as columns: as objects, 160,000 of them take several times the memory.
        if self._new:
            self.stored = pa.concat_tables([self.stored, cache_table(self._new)])
            self._new = []
        workspace, dataset = self.plan.workspace, self.plan.dataset
        # Rows that come from a file name the parts of their lists otherwise, which the file that
        # is written would tell: it is to be the same whether the build was interrupted or not.
        write_cache_table(workspace.cache_manifest(dataset), self.stored.cast(CACHE_SCHEMA))
        write_quarantine(workspace.quarantine(dataset), self.quarantine)
        write_profile(workspace.profile(dataset), self.plan.profile)

    def summary(self) -> dict[str, Any]:
        """Counts that add up: usable = stored + quarantined + pending."""
        plan = self.plan
        stored = len(plan.kept) + self.built
        return {
            "dataset": plan.dataset,
            "candidates": plan.sources,
            "usable": plan.usable,
            "stored": stored,
            "built": self.built,
            "kept": len(plan.kept),
            "stale": sum(plan.stale.values()),
            "quarantined": len(self.quarantine),
            "newly_quarantined": self.done - self.built,
            "pending": plan.usable - stored - len(self.quarantine),
            "leftovers_removed": self.leftovers,
            "bytes": pc.sum(self.stored["bytes"]).as_py() or 0,
            "source_bytes": pc.sum(self.stored["source_bytes"]).as_py() or 0,
        }


def build(
    plan: Plan,
    client: Client | None,
    on_outcome: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Report:
    """Carry out a plan and write the manifests.

    Args:
        plan: from `make_plan`; the caller holds the workspace's build lock.
        client: Dask client; may be ``None`` when the plan has nothing to do.
        on_outcome: called after each volume.
        stop: asked before each volume; once it says yes, what is in flight is finished.

    Raises:
        BuildError: a store cannot be written, for example since the disk is full; what was
            committed before stays. Or there is work and no client.
        ClusterError: the scheduler has gone.
    """
    workspace, dataset = plan.workspace, plan.dataset
    if plan.todo and client is None:
        raise BuildError("there are volumes to build and no Dask client")
    report = Report.begun(plan)
    try:
        report.leftovers = len(clear_leftovers(workspace.dataset_cache(dataset)))
        _clear_manifests(workspace, dataset)
        if client is not None:
            _build_volumes(report, client, on_outcome, stop)
        report.write()
    except BaseException as error:
        _save(report, error)
        if isinstance(error, OSError):
            raise _stopped(error, report) from error
        raise
    # Workers of a build that was killed may have lived until now, and left something since.
    report.leftovers += len(clear_leftovers(workspace.dataset_cache(dataset)))
    return report


def _build_volumes(
    report: Report,
    client: Client,
    on_outcome: Progress | None,
    stop: Callable[[], bool] | None,
) -> None:
    """Build what there is to do; when a manifest cannot be written, finish what is in flight."""
    failed: list[OSError] = []
    due = _MANIFEST_EVERY

    def halted() -> bool:
        return bool(failed) or (stop is not None and stop())

    for _, outcome in run_jobs(report.plan.jobs(), client, halted):
        report.add(outcome)
        if report.done >= due and not failed:
            # Each time the whole is written; ever more rarely, so that this stays a small part.
            due = report.done + max(_MANIFEST_EVERY, report.done // 10)
            try:
                report.write()
            except OSError as error:
                failed.append(error)
        if on_outcome is not None:
            on_outcome(outcome)
    if failed:
        raise failed[0]


def _clear_manifests(workspace: Workspace, dataset: str) -> None:
    """Remove what a driver that was killed while it wrote a manifest has left.

    Nobody but the holder of the build lock writes these.
    """
    for path in (
        workspace.cache_manifest(dataset),
        workspace.quarantine(dataset),
        workspace.profile(dataset),
    ):
        for temporary in path.parent.glob(f".{path.name}.*.tmp"):
            temporary.unlink(missing_ok=True)


def run_jobs(
    jobs: Iterable[Job], client: Client, stop: Callable[[], bool] | None = None
) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome, as it is there; those that lost their worker come last."""
    reason = "the worker died more than once on this volume, memory may be short"
    for job, outcome in run_retrying(client, convert, jobs, stop=stop):
        yield job, outcome or quarantine(job, "build.worker_died", reason)


def _save(report: Report, error: BaseException) -> None:
    """Leave a build that ends early in order, as far as that is possible."""
    workspace, dataset = report.plan.workspace, report.plan.dataset
    try:
        clear_leftovers(workspace.dataset_cache(dataset))  # which may make room
    except OSError as second:
        error.add_note(f"what was half written could not be removed ({second.strerror or second})")
    try:
        report.write()
    except OSError as second:
        error.add_note(f"the manifest could not be written ({second.strerror or second})")


def _stopped(error: OSError, report: Report) -> BuildError:
    """What to tell of a build that could not write: what stays, and how to go on."""
    stopped = BuildError(
        f"the build of {report.plan.dataset} stopped, {report.plan.workspace.root} cannot be "
        f"written: {error.strerror or error}. Volumes that were stored stay "
        f"({report.built} by this run); mend the cause, by making room if the disk is full, "
        "and run the same command again"
    )
    for note in getattr(error, "__notes__", ()):
        stopped.add_note(note)
    return stopped
