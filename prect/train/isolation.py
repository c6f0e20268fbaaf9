"""Reading single samples in processes of their own, to find those that end the process."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from prect.errors import PrectError, StoreError, TrainingError
from prect.train.damage import UnreadableError, bare
from prect.train.dataset import ViewDataset

_DEADLY = frozenset(
    (
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGKILL,
    )
)
"""Signals that end a process for what it read; any other comes from somebody else."""


def find_deadly(
    views: ViewDataset, batches: Iterable[Sequence[int]], context: ForkServerContext
) -> dict[int, UnreadableError]:
    """The samples that end the process that reads them.

    A process reads a batch; where it comes to its end, each sample is read by one of its own.
    SIGKILL is what the kernel sends when memory is short: only twice in a row is it the store's
    fault.

    Args:
        views: the stream; its own ``deadly`` samples are not tried again.
        batches: samples to try.
        context: starts the processes.

    Raises:
        TrainingError: too many stores are damaged to find a sample that reads, or a process
            failed for a reason of its own.
    """
    found: dict[int, UnreadableError] = {}

    def attempt(index: int) -> None:
        known = found.get(index) or views.deadly.get(index)
        if known is not None:
            raise known
        try:
            _read_apart(views, [index], context)
        except _KilledError as killed:
            if killed.signal == signal.SIGKILL:
                # Memory was short, more likely; not if it happens again with nothing else read.
                try:
                    _read_apart(views, [index], context)
                    return
                except _KilledError:
                    pass
            found[index] = UnreadableError(index, killed.row, killed.error)
            raise found[index] from None

    for batch in batches:
        try:
            _read_apart(views, batch, context)
        except (_KilledError, UnreadableError):
            for index in batch:
                try:
                    attempt(index)
                except UnreadableError as first:
                    views.replacement(first, attempt)
    return found


class _KilledError(Exception):
    """The process that read a row was ended by a signal."""

    def __init__(self, row: int, number: signal.Signals, level: int | None) -> None:
        super().__init__(row, number, level)
        self.row, self.signal = row, number
        where = "" if level is None else f" level {level}"
        self.error = StoreError(f"the process that read{where} was ended by {number.name}")


def _read_apart(views: ViewDataset, indices: Sequence[int], context: ForkServerContext) -> None:
    """Read samples in a new process.

    Raises:
        UnreadableError: a store is missing or damaged.
        _KilledError: the process was ended by a signal.
        TrainingError: the process failed for a reason of its own.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_all, args=(views, indices, sender), daemon=True)
    process.start()
    sender.close()
    row, level, end = -1, None, None
    try:
        while end is None:
            message = receiver.recv()
            if message[0] == "at":
                _, row, level = message
            else:
                end = message
    except (EOFError, ConnectionError):
        pass
    finally:
        receiver.close()
        process.join()
    if end is not None and end[0] == "unreadable":
        raise UnreadableError(*end[1:])
    if end is not None and end[0] == "failed":
        raise end[1]
    if end is not None:
        return
    code = process.exitcode or 0
    if row >= 0 and -code in _DEADLY:
        raise _KilledError(row, signal.Signals(-code), level)
    ended = (
        f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    )
    when = "before it came to a store" if row < 0 else f"while it read {views.names.store(row)}"
    raise TrainingError(
        f"the process that read samples {list(indices)} apart from the others {ended} {when}; "
        "its own message, if any, is above"
    )


def _read_all(views: ViewDataset, indices: Sequence[int], told: Connection) -> None:
    views.announce = lambda row, level: told.send(("at", row, level))
    try:
        for index in indices:
            views.read(views.plan(index))
    except UnreadableError as found:
        told.send(("unreadable", found.index, found.row, bare(found.error)))
    except PrectError as error:
        told.send(("failed", bare(error)))
    else:
        told.send(("read",))
