"""Every job to its end: those that were lost with their worker run again, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from prect.cluster import run_bounded

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def _whole(job: Job) -> tuple[Job]:
    return (job,)


def run_retrying(
    client: Client,
    function: Callable[[Job], Outcome],
    jobs: Iterable[Job],
    *,
    split: Callable[[Job], Iterable[Job]] = _whole,
    stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Job, Outcome | None]]:
    """As `prect.cluster.run_bounded`, with a second try for jobs whose worker died.

    A worker that dies takes jobs with it that had only waited for it. They run again when all
    others are done, one at a time, so that only a job that kills its worker itself stays without
    an outcome.

    Args:
        client: of a cluster.
        function: what a worker does with a job.
        jobs: may be endless.
        split: parts of a lost job to run in its place, so that a job of many files shows which
            of them is to blame; the job itself when left out.
        stop: asked before each submission; once it says yes, what is in flight is finished
            and nothing more is begun.

    Yields:
        The job, or each part of a lost one, and what ``function`` returned; ``None`` when its
        worker died in the second try, too.

    Raises:
        ClusterError: the scheduler has gone, or has had no worker for a minute.
        Exception: whatever ``function`` raises.
    """
    lost: list[Job] = []
    for job, outcome in run_bounded(client, function, jobs, stop=stop):
        if outcome is None:
            lost.append(job)
        else:
            yield job, outcome
    parts = (part for job in lost for part in split(job))
    yield from run_bounded(client, function, parts, at_once=1, stop=stop)
