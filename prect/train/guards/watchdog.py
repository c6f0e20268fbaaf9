"""Notices a run that no longer moves, and names the process that the others wait for.

A process that waits for another one sits in a collective and cannot speak, so each has a thread
that tells a store, which all reach, where its main thread is. When the own main thread has not
moved for too long, the thread compares: behind is who has told nothing for a while, else who is at
the earliest place. Then it ends its process, as nothing else gets a thread out of a collective.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Protocol

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from prect.errors import TrainingError

_LOOKS = 20
"""Times within the limit that a thread looks and tells."""
_LONGEST_PAUSE = 5.0
_SILENT_PAUSES = 4
"""Pauses without a word after which a process counts as silent."""
_STALLED = 1
"""Exit status."""


class Phase(IntEnum):
    """What a main thread does within a step, in order."""

    WAITING = 0
    COMPUTING = 1
    REPORTING = 2

    def describe(self) -> str:
        """In words."""
        return {
            Phase.WAITING: "waiting for data",
            Phase.COMPUTING: "computing",
            Phase.REPORTING: "evaluating, logging or saving",
        }[self]


@dataclass(frozen=True)
class Report:
    """Where a process is."""

    step: int
    """The step under way, counted from 1."""
    phase: Phase
    moved: int
    """Times that it has moved on; tells two batches of one evaluation apart."""
    seconds: float
    """Since it moved on."""
    host: str
    told: float
    """Time of the report, seconds since 1970."""


class Board(Protocol):
    """Where all processes of a run can leave and read a word; a store of torch.distributed."""

    def set(self, key: str, value: str, /) -> None:
        """Leave a word."""

    def get(self, key: str, /) -> bytes:
        """Read one."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all of these are there."""


class Watchdog:
    """Watches one process of a run of several; works between `start` and `stop`."""

    def __init__(
        self,
        store: Board,
        rank: int,
        world: int,
        timeout_s: float,
        *,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            store: reached by all processes of the run, through a connection of its own.
            rank: number of this process among ``world``.
            world: processes of the run.
            timeout_s: seconds without progress after which the run is ended.
            end: is told what stalled instead of ending the process.
        """
        self.store, self.rank, self.world, self.timeout_s = store, rank, world, timeout_s
        self.pause = min(_LONGEST_PAUSE, timeout_s / _LOOKS)
        self._end = end or end_process
        self._at = (0, Phase.REPORTING, 0)
        self._since = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.beat(0, Phase.REPORTING)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, step: int, phase: Phase) -> None:
        """The main thread has come to a place; costs next to nothing."""
        self._at = (step, phase, self._at[2] + 1)
        self._since = time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(self.pause):
            own = self._report()
            try:
                self.store.set(str(self.rank), json.dumps(asdict(own)))
                seen = self._others() if own.seconds > self.timeout_s else None
            except RuntimeError as error:
                # The process that holds the store is gone, and with it the run.
                if own.seconds <= self.timeout_s:
                    continue
                self._end(f"{_at(self.rank, own)}, and the others cannot be asked ({error})")
                return
            if seen is not None:
                self._end(stalled(seen, self.world, self.timeout_s, _SILENT_PAUSES * self.pause))
                return

    def _report(self) -> Report:
        (step, phase, moved), since = self._at, self._since
        seconds = time.monotonic() - since
        return Report(step, phase, moved, seconds, socket.gethostname(), time.time())

    def _others(self) -> dict[int, Report]:
        seen = {}
        for rank in range(self.world):
            if self.store.check([str(rank)]):
                fields = json.loads(self.store.get(str(rank)))
                seen[rank] = Report(**fields | {"phase": Phase(fields["phase"])})
        return seen


def stalled(seen: Mapping[int, Report], world: int, timeout_s: float, silent_s: float) -> str:
    """Which processes hold up the run.

    Args:
        seen: the last report of each rank that made one.
        world: processes of the run.
        timeout_s: for the message.
        silent_s: seconds without a report after which a process counts as silent.
    """
    head = f"no progress for {timeout_s:g} s: "
    newest = max(report.told for report in seen.values())
    silent = [rank for rank in range(world) if rank not in seen]
    silent += [rank for rank, report in seen.items() if newest - report.told > silent_s]
    if silent:
        named = [
            f"rank {rank} has never been heard of"
            if rank not in seen
            else f"{_at(rank, seen[rank])}, has not been heard of for "
            f"{newest - seen[rank].told:.0f} s (stopped, or its machine is gone)"
            for rank in sorted(silent)
        ]
        return head + "; ".join(named)
    places = {rank: (report.step, report.phase, report.moved) for rank, report in seen.items()}
    first = min(places.values())
    behind = [rank for rank, place in places.items() if place == first]
    if len(behind) == world:
        return head + (
            f"all {world} processes are at the same place ({_at(0, seen[0])}), so the connection "
            "between them or their devices hang"
        )
    return head + "the others wait for " + "; ".join(_at(r, seen[r]) for r in sorted(behind))


def _at(rank: int, report: Report) -> str:
    return (
        f"rank {rank} on {report.host}, {report.phase.describe()} at step {report.step} for "
        f"{report.seconds:.0f} s"
    )


def end_process(text: str) -> None:
    """End this process at once; whoever started it is told why."""
    get_error_handler().record_exception(TrainingError(text))
    os._exit(_STALLED)


class Unwatched:
    """For a process that is alone: nobody waits for it."""

    def start(self) -> None:
        """Nothing begins."""

    def stop(self) -> None:
        """Nothing ends."""

    def beat(self, step: int, phase: Phase) -> None:
        """Nobody asks."""
