"""The process of one arm: reads what it is told to, and says how long it took.

Run as ``python -m prect.benchmark.worker``. Requests and answers are pickles on its standard input
and output; only the process that started it writes there. One process an arm keeps the settings
of one library away from another, and lets the system count memory, CPU time and device reads of
each arm alone.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from prect.benchmark import measuring
from prect.benchmark.arms import Arm, find_arm
from prect.benchmark.boxes import Box, Volume
from prect.benchmark.measuring import Timing, UnavailableError
from prect.units import Triple

EXTRA = "pip install 'prect[bench]'"


@dataclass
class Server:
    """One arm on all volumes; its public methods are what may be asked for."""

    arms: dict[str, Arm] = field(default_factory=dict)
    """By volume."""
    is_open: set[str] = field(default_factory=set)
    buffers: dict[Triple, NDArray[np.int16]] = field(default_factory=dict)

    def load(
        self, name: str, volumes: Sequence[Volume], folder: Path, write: bool
    ) -> dict[str, Any]:
        """Import the arm's library, bind it to the volumes, and write its files if asked to.

        Args:
            name: of the arm, or ``module:Class`` of one that is not in the list.
            volumes: what it will read.
            folder: for the arm's files.
            write: make them; else they are there.
        """
        kind = find_arm(name)
        began = time.perf_counter()
        try:
            kind.load()
        except ImportError:
            return {"missing": f"not installed: {EXTRA}"}
        except UnavailableError as error:
            return {"missing": f"not available: {error}"}
        seconds = time.perf_counter() - began
        self.arms = {volume.name: kind(volume, folder) for volume in volumes}
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            for arm in self.arms.values():
                arm.write()
        _one_core()
        measuring.forget_peak()
        return {
            "import_s": seconds,
            "bytes": {n: measuring.file_bytes(arm.files()) for n, arm in self.arms.items()},
            "resident_bytes": measuring.memory("VmRSS"),
        }

    def first(self, volume: str, box: Box) -> Timing:
        """Open a volume and read a box of it, the first thing that this process does with it."""
        arm, out = self.arms[volume], self._buffer(box)
        self.is_open.add(volume)
        return self._timed(lambda: (arm.open(), arm.read(box, out)))

    def check(self, volume: str, box: Box) -> NDArray[Any]:
        """The voxels of a box, (z, y, x)."""
        return np.ascontiguousarray(self._opened(volume).checked(box, self._buffer(box)))

    def warm(self, volume: str, boxes: Sequence[Box]) -> list[Timing]:
        """Read boxes one after the other with the files open, as a loader's worker does.

        A read that is not timed comes first: while the other arms had their turn, this one's code
        and tables have left the caches of the processor.
        """
        arm = self._opened(volume)
        wake = _middle(arm.volume)
        arm.prepare(wake)
        arm.read(wake, self._buffer(wake))
        timings = []
        for box in boxes:
            arm.prepare(box)
            timings.append(self._timed(partial(arm.read, box, self._buffer(box))))
        return timings

    def cold(self, volume: str, box: Box) -> Timing:
        """Drop the files from the page cache, open them, read a box, and close them."""
        arm, out = self.arms[volume], self._buffer(box)
        self.close(volume)
        measuring.drop(arm.files())
        timing = self._timed(lambda: (arm.open(), arm.read(box, out)))
        arm.close()  # what stays mapped here cannot be dropped by the arms that read the same file
        return timing

    def why_not_cold(self, volume: str) -> str | None:
        """What keeps cold reads from being measured, or None."""
        self.close(volume)
        return measuring.why_not_cold(self.arms[volume].files())

    def close_all(self) -> None:
        """Close the files of every volume."""
        for volume in self.arms:
            self.close(volume)

    def drop(self) -> None:
        """Close everything and drop it from the page cache."""
        self.close_all()
        for arm in self.arms.values():
            measuring.drop(arm.files())

    def close(self, volume: str) -> None:
        """Close the files of a volume, if they are open."""
        if volume in self.is_open:
            self.arms[volume].close()
            self.is_open.discard(volume)

    def memory(self, field: str) -> int | None:
        """Bytes of a field of this process's status."""
        return measuring.memory(field)

    def _opened(self, volume: str) -> Arm:
        arm = self.arms[volume]
        if volume not in self.is_open:
            arm.open()
            self.is_open.add(volume)
        return arm

    @staticmethod
    def _timed(work: Callable[[], object]) -> Timing:
        before = measuring.device_bytes()
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = measuring.device_bytes()
        del result  # freed after the clock has stopped
        came = None if before is None or after is None else after - before
        return Timing(wall, cpu, came)

    def _buffer(self, box: Box) -> NDArray[np.int16]:
        if box.shape not in self.buffers:
            # Filled, so that its pages are there before the clock starts.
            self.buffers[box.shape] = np.full(box.shape, -1, dtype=np.int16)
        return self.buffers[box.shape]


def _middle(volume: Volume) -> Box:
    """The middle of a volume, 64 voxels long or all of it."""
    sizes = [min(64, n) for n in volume.shape]
    z, y, x = ((n - size) // 2 for n, size in zip(volume.shape, sizes, strict=True))
    return Box((z, y, x), (sizes[0], sizes[1], sizes[2]))


def _one_core() -> None:
    """Keep this process, and every thread that a library starts, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def serve(server: Any, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer (method, arguments) with ("done", result) or ("failed", text) until there are none."""
    while True:
        try:
            method, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = "done", getattr(server, method)(*arguments)
        except Exception:  # whatever it is, the process that asked must hear of it
            answer = "failed", traceback.format_exc()
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Server(), sys.stdin.buffer, answers)
    # Nothing is left to put in order, and some libraries take seconds to end their threads.
    os._exit(0)


if __name__ == "__main__":
    main()
