"""Work on many processes, through Dask: ingest and build-cache run on the same engine."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from prect import __version__
from prect.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

_JOBS_AHEAD = 2
"""Jobs in the scheduler for each worker: one at work, one waiting."""
_STARTS = 3
"""Times that local workers are started before they are given up."""
_DEATHS_ALLOWED = 1
"""A job whose worker dies is tried once more."""
_GIVEN_UP_AFTER = "5 minutes"
"""A local worker that is not there so long after it died will not be started again by itself."""
_WORKERS_WITHIN = 60
"""Seconds that a scheduler may have no worker, or not answer, before it is given up."""
_LOOK_EVERY = 5
"""Seconds between two looks whether there are workers, while no job ends."""

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


@contextmanager
def cluster(
    workers: int, scheduler: str | None = None, dashboard_address: str = "127.0.0.1:0"
) -> Iterator[Client]:
    """A Dask client: ``workers`` local processes of one thread, or an existing scheduler.

    Args:
        workers: local processes.
        scheduler: address of a scheduler to use instead.
        dashboard_address: ``host:port`` of the local cluster's dashboard; port 0 is any.

    Raises:
        ClusterError: the scheduler cannot be reached, has no workers, or they do not have this
            release of prect.
    """
    own = _local_client(workers, dashboard_address) if scheduler is None else _client_of(scheduler)
    with _quiet(), own as client:
        yield client


@contextmanager
def _client_of(scheduler: str) -> Iterator[Client]:
    from distributed import Client  # noqa: PLC0415

    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_WITHIN)
        except TimeoutError:
            raise _no_workers() from None
        _require_same_release(client)
        yield client


@contextmanager
def _local_client(workers: int, dashboard_address: str) -> Iterator[Client]:
    # Here and elsewhere: half a second that an ingest of unchanged files can do without.
    import dask  # noqa: PLC0415
    from distributed import Client  # noqa: PLC0415

    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS_ALLOWED,
        "distributed.deploy.lost-worker-timeout": _GIVEN_UP_AFTER,
        # A volume is one task: moving it between workers gains nothing.
        "distributed.scheduler.work-stealing": False,
    }
    with (
        dask.config.set(settings),
        _local(workers, dashboard_address) as local,
        Client(local) as client,
    ):
        try:
            yield client
        except KeyboardInterrupt:
            _kill_workers(local)
            raise


@contextmanager
def _quiet() -> Iterator[None]:
    """What Dask logs of connections that break, each with its trace, errors tell in a sentence."""
    import distributed  # noqa: F401, PLC0415  (which sets the levels of its loggers)

    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _require_same_release(client: Client) -> None:
    """Jobs would end workers that cannot read them, and stores tell which release made them.

    Workers that join later are not asked.

    Raises:
        ClusterError: the scheduler or a worker has another release of prect, or none.
    """
    found: dict[str, object] = dict(client.run(_release, on_error="return"))
    try:
        found["the scheduler"] = client.run_on_scheduler(_release)
    except Exception as error:  # whatever its import raises there
        found["the scheduler"] = error
    for place, answer in found.items():
        if answer != __version__ and not isinstance(answer, OSError):  # which has gone since
            has = f"prect {answer}" if isinstance(answer, str) else f"no prect ({answer})"
            raise ClusterError(
                f"{place} has {has}; install prect {__version__} where the scheduler and its "
                "workers run"
            )


def _release() -> str:
    return __version__


def _local(workers: int, dashboard_address: str) -> LocalCluster:
    # Ctrl-C reaches every process of the terminal, and SLURM's SIGTERM every one of the job;
    # workers leave both to the driver, which lets them go in order. They and the thread that
    # starts them inherit the mask; a Ctrl-C that comes meanwhile waits for its end. The tracker
    # would lift the mask when it starts.
    from distributed import LocalCluster  # noqa: PLC0415

    _start_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        failures = 0
        while True:
            try:
                return LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=True,
                    memory_limit=None,
                    dashboard_address=dashboard_address,
                    silence_logs=logging.CRITICAL,
                )
            except RuntimeError as error:
                # A worker that is killed while it starts takes all of them along.
                failures += 1
                if failures == _STARTS:
                    raise ClusterError(
                        f"{workers} worker processes could not be started ({error}); memory may be "
                        "short: ask for fewer with --workers"
                    ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    # It frees what killed workers have held; at the end it would warn of what that was.
    filters = "PYTHONWARNINGS"
    before = os.environ.get(filters)
    os.environ[filters] = ",".join(filter(None, [before, "ignore:resource_tracker"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[filters]
        else:
            os.environ[filters] = before


def _kill_workers(local: LocalCluster) -> None:
    """End local workers at once; those that are asked to end have several seconds."""
    for nanny in local.workers.values():
        nanny.close_gracefully()  # so that it starts no other
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


class Workers:
    """Processes that start when they are first needed, and serve until the end of the context.

    Args:
        count: local processes, at most.
        scheduler: address of a Dask scheduler to use instead.
    """

    def __init__(self, count: int, scheduler: str | None = None) -> None:
        self.count = count
        self.scheduler = scheduler
        self._client: Client | None = None
        self._started = 0
        self._context = ExitStack()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def client(self, wanted: int) -> Client:
        """A client with that many local workers, if ``count`` allows; more are started if need be.

        Raises:
            ClusterError: the scheduler cannot be reached, or has no workers.
        """
        wanted = min(wanted, self.count)
        if self._client is None:
            self._client = self._context.enter_context(cluster(wanted, self.scheduler))
            self._started = wanted
        elif self.scheduler is None and wanted > self._started:
            local: Any = self._client.cluster
            local.scale(wanted)
            self._started = wanted
        return self._client


def dashboard(client: Client) -> str | None:
    """Address of the cluster's live dashboard; ``None`` where bokeh, which draws it, is missing."""
    if importlib.util.find_spec("bokeh") is None:
        return None
    if "dashboard" not in client.scheduler_info()["services"]:
        return None
    link: str = client.dashboard_link
    return link


def run_bounded(
    client: Client,
    function: Callable[[Job], Outcome],
    jobs: Iterable[Job],
    at_once: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Job, Outcome | None]]:
    """Submit jobs as workers become free; yield each with its outcome as it is there.

    The graph never holds more than a few jobs a worker, and ``jobs`` is asked for the next
    one only when there is room, so it may stream. A worker process does one job at a time,
    however many threads it has. When a job raises, what is in flight is finished and yielded
    before its error is raised.

    A worker that dies takes the blame of every job that waited for it, innocent ones too:
    run those that were lost again with ``at_once=1`` to find the guilty one.

    Args:
        client: of a cluster.
        function: what a worker does with a job.
        jobs: may be endless.
        at_once: jobs in the graph; a few a worker when left out.
        stop: asked before each submission; once it says yes, what is in flight is finished
            and nothing more is begun.

    Yields:
        The job and what ``function`` returned; ``None`` when its worker died every time.

    Raises:
        ClusterError: the scheduler has gone, or has had no worker for a minute.
        Exception: whatever ``function`` raises.
    """
    waiting = iter(jobs)
    running: dict[Future[Any], Job] = {}
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    errors: list[Exception] = []

    def submit() -> None:
        # Clusters grow and shrink, so the number of workers is asked for each time.
        ahead = at_once or _JOBS_AHEAD * max(1, _worker_count(client))
        while len(running) < ahead and not errors and not (stop is not None and stop()):
            try:
                job = next(waiting)
            except StopIteration:
                return
            with _scheduler_needed(client):
                future = client.submit(_alone, function, job, pure=False)
            running[future] = job
            future.add_done_callback(done.put)

    submit()
    while running:
        future = _next_done(done, client)
        job = running.pop(future)
        try:
            outcome = _result(future, client)
        except ClusterError:
            raise
        except Exception as error:
            errors.append(error)
            continue
        submit()
        yield job, outcome
    if errors:
        if len(errors) > 1:
            errors[0].add_note(f"{len(errors) - 1} more jobs in flight failed as well")
        raise errors[0]


_one_at_a_time = threading.Lock()


def _alone(function: Callable[[Job], Outcome], job: Job) -> Outcome:
    """Memory is reckoned for one job a process."""
    with _one_at_a_time:
        return function(job)


def _result(future: Future[Any], client: Client) -> Any:
    """What a job returned; ``None`` when its worker died every time."""
    from distributed.scheduler import KilledWorker  # noqa: PLC0415

    watch = _Watch(client)
    while True:
        try:
            # Its worker may have died since it ended; then it is done again first.
            return future.result(timeout=_LOOK_EVERY)
        except KilledWorker:
            return None
        except Exception as error:
            if future.status == "error":  # of the job
                raise
            if not isinstance(error, TimeoutError):
                raise _gone() from error
            watch.look()


def _next_done(done: SimpleQueue[Future[Any]], client: Client) -> Future[Any]:
    """The next job that ends."""
    watch = _Watch(client)
    while True:
        try:
            return done.get(timeout=_LOOK_EVERY)
        except Empty:
            watch.look()


class _Watch:
    """Looks after the workers while nothing ends."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen = time.monotonic()

    def look(self) -> None:
        """Raise ClusterError when there has been no worker for too long."""
        if _worker_count(self.client):
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > _WORKERS_WITHIN:
            raise _no_workers()


def _worker_count(client: Client) -> int:
    """Workers there are now; local ones that are missing are started again."""
    with _scheduler_needed(client):
        count = len(client.nthreads(callback_timeout=_WORKERS_WITHIN))
    local: Any = client.cluster
    if local is not None and count < len(local.worker_spec):
        # Dask gives up a worker that is not there some time after it died, be it since it has
        # died once more. Those that are being started are not affected.
        local.scale(len(local.worker_spec))
    return count


@contextmanager
def _scheduler_needed(client: Client) -> Iterator[None]:
    # What a client raises that has lost its scheduler depends on the moment.
    try:
        yield
    except (OSError, CancelledError) as error:
        raise _gone() from error
    except Exception as error:
        if client.status == "running":
            raise
        raise _gone() from error


def _gone() -> ClusterError:
    return ClusterError(
        "the Dask scheduler has gone, or has dropped the jobs; what is stored stays. "
        "Start it again, and run the same command"
    )


def _no_workers() -> ClusterError:
    return ClusterError(
        f"the Dask scheduler has had no worker for {_WORKERS_WITHIN} seconds; what is stored "
        "stays. Start workers, and run the same command"
    )
