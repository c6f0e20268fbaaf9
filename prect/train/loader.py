"""Batches of raw regions from reading processes, in the order that sampling prescribes.

The state of the stream is a step, so whatever goes wrong with a reading process, the stream can
go on from the first step that was not handed out.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from prect.errors import PrectError, TrainingError
from prect.train.collate import BatchMemory, RawBatch
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine, bare, check_resources
from prect.train.dataset import ViewDataset
from prect.train.guards.stopping import STOP_SIGNALS
from prect.train.isolation import find_deadly
from prect.train.prefetch import PrefetchPlan, plan_prefetch
from prect.train.sampling import Domain, step_indices

StepIndices = Callable[[int], Sequence[int]]
"""Global indices that one rank reads at a step."""

_PRELOADED = ("__main__", "prect.train.loader", "prect.train.preload")
_MOST_MYSTERIES = 3
"""Deaths that no sample explains, without progress, before the run is given up: memory is short
then."""


class _WorkerDiedError(Exception):
    """A reading process ended before its work did."""


class _Steps(Dataset["RawBatch | PrectError"]):
    """One batch a step. An error is handed on as an item.

    torch rebuilds an exception of a worker from its text, and what it was and said is lost.
    """

    def __init__(self, views: ViewDataset, indices: StepIndices, memory: BatchMemory) -> None:
        self.views, self.indices, self.memory = views, indices, memory

    def __getitem__(self, step: int) -> RawBatch | PrectError:
        self.memory.turn()
        try:
            return self.views.read_batch(self.indices(step), self.memory)
        except PrectError as error:
            return bare(error)


def _as_it_is(batch: Any) -> Any:
    return batch


def worker_context() -> ForkServerContext:
    """Starts reading processes: a process that holds threads or a GPU must not be forked.

    The server loads prect and torch once, and the workers that it forks share those pages. There
    is one such server in a process: where it runs already, for somebody else, it stays as it is
    and workers load what they need themselves.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def start_server() -> None:
    """Begin to load what workers share, in a process of its own, while this one does other work.

    Signals that ask a run to stop are blocked in it and in all that it forks: a cluster sends them
    to every process, and workers must go on reading until the training process has saved.
    """
    worker_context()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()
        # Starting the tracker unblocks some of them.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def train_loader(
    dataset: ViewDataset,
    config: TrainConfig,
    steps: range,
    *,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    quarantine: Quarantine | None = None,
    recycle: bool = False,
) -> Generator[RawBatch]:
    """Batches of one rank for a range of steps, which count from 0.

    A step is ``config.passes(world)`` batches of at most ``data.batch_size`` volumes.

    Args:
        dataset: the stream.
        config: ``data`` matters.
        steps: steps to hand out.
        rank: number of this process among ``world``.
        world: processes of the run.
        pin_memory: hand batches out in page-locked memory, where the copies fit.
        quarantine: told what was replaced; only its count is kept when left out.
        recycle: use the memory of batches again: each is only good until the next is asked for.

    Raises:
        ConfigError: one worker with one batch does not fit into ``data.prefetch_mib``.
        StoreError: a store is missing or damaged; raised here, whichever process met it.
        TrainingError: a worker died, too much is damaged, or files or memory are used up.
    """
    volumes, names = dataset.sampler.volumes, dataset.names
    passes = config.passes(world)
    return read_steps(
        dataset,
        partial(_pass_indices, config=config, rank=rank, world=world),
        range(steps.start * passes, steps.stop * passes),
        plan_prefetch(config, volumes, names, pin_memory=pin_memory),
        passes=passes,
        quarantine=quarantine,
        recycle=recycle,
    )


def _pass_indices(number: int, config: TrainConfig, rank: int, world: int) -> Sequence[int]:
    """Global indices of one pass of one rank; passes are counted through all steps."""
    step, part = divmod(number, config.passes(world))
    share, size = step_indices(step, config.local_batch(world), rank, world), config.data.batch_size
    return share[part * size : (part + 1) * size]


def read_steps(
    views: ViewDataset,
    indices: StepIndices,
    steps: range,
    plan: PrefetchPlan,
    *,
    passes: int = 1,
    quarantine: Quarantine | None = None,
    recycle: bool = False,
    record: tuple[Domain, int] | None = None,
) -> Generator[RawBatch]:
    """Batches of some steps; see `train_loader`.

    Args:
        views: the stream.
        indices: what to read at a step.
        steps: steps to hand out.
        plan: number of workers, depth of their queues, kind of memory.
        passes: steps of this stream that make one of the run.
        quarantine: told what was replaced.
        recycle: use the memory of batches again; see `train_loader`.
        record: domain and step under which damage is recorded; the training step itself when
            left out.
    """
    quarantine = quarantine or Quarantine(views.allowed_damage)
    step = steps.start
    in_flight = plan.workers * plan.batches
    suspect, mysteries = step, 0
    while step < steps.stop:
        try:
            source = _Steps(views, indices, _memory(plan, recycle))
            with closing(_read(source, range(step, steps.stop), plan)) as batches:
                for batch in batches:
                    domain, when = record or ("train", step // passes + 1)
                    quarantine.record(when, batch.damages, domain)
                    yield batch
                    del batch  # not to be held while the next is waited for
                    step += 1
                    if step >= suspect:
                        mysteries = 0
            return
        except _WorkerDiedError as died:
            if views.config.data.on_damage == "raise" or mysteries >= _MOST_MYSTERIES:
                raise TrainingError(
                    _death_notice(step // passes, died.__cause__)
                ) from died.__cause__
            quarantine.restarted(step // passes + 1, died.__cause__)
        if step < suspect:
            # Again, before what was being read at the last death was handed out. Any of it may
            # be the cause: a worker takes batches that it has not sent yet down with it.
            tried = range(step, min(step + in_flight, steps.stop))
            deadly = find_deadly(views, [indices(s) for s in tried], worker_context())
            mysteries = 0 if deadly else mysteries + 1
            views.deadly |= deadly
        suspect = step + in_flight


def _death_notice(step: int, cause: BaseException | None) -> str:
    return (
        f"a process that reads data died while step {step + 1} was awaited ({cause}); memory may "
        "be short: lower data.workers or data.prefetch_mib. Where one store ends every process "
        "that reads it, data.on_damage=quarantine goes on without it"
    )


def _memory(plan: PrefetchPlan, recycle: bool) -> BatchMemory:
    # torch asks a worker for another batch as it hands one of its batches out. So at most
    # ``plan.batches`` are ready or in the making while one more is in use.
    return BatchMemory(shared=plan.workers > 0, slots=plan.batches + 1 if recycle else 0)


def _read(source: _Steps, steps: range, plan: PrefetchPlan) -> Generator[RawBatch]:
    """One set of workers from its start to its end, or to its death."""
    parallel = plan.workers > 0
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_size=None,
        sampler=steps,
        num_workers=plan.workers,
        collate_fn=_as_it_is,
        prefetch_factor=plan.batches if parallel else None,
        multiprocessing_context=worker_context() if parallel else None,
        pin_memory=plan.pinned,
        # Samples draw nothing from it, but torch would take a seed from the run's own state.
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        while True:
            batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, PrectError):
                raise batch
            yield batch
            del batch
    except Exception as error:
        check_resources(error)
        if parallel and _tells_of_a_death(error):
            raise _WorkerDiedError from error
        raise
    finally:
        # torch ends workers when their iterator is collected; an error that somebody keeps holds
        # the frames that it came through, and they hold the iterator.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
            for worker in batches._workers:
                worker.kill()  # one that hangs in a read would not heed anything less


def _tells_of_a_death(error: Exception) -> bool:
    text = str(error)
    if isinstance(error, PrectError) or "in DataLoader worker process" in text:
        return False  # it lives, and hands on what it could not do
    if isinstance(error, RuntimeError):
        return text.startswith("DataLoader worker") or "exited unexpectedly" in text
    # Memory of a batch that a dead worker had promised cannot be had from it any more.
    return isinstance(error, ConnectionError | FileNotFoundError | EOFError)
