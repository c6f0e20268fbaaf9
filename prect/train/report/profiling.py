"""A trace of chosen steps: what the CPU and the GPU did, operator by operator.

::

    runs/<name>/profile/
      rank<R>-steps-<a>-<b>.json.gz   trace, for https://ui.perfetto.dev or chrome://tracing
      rank<R>-steps-<a>-<b>.txt       operators that took longest, and that took most memory
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from prect.errors import ConfigError
from prect.files import make_folder

MOST_STEPS = 50
"""A trace holds every operator of its steps in memory until it is written."""
_STEPS = re.compile(r"\s*(\d{1,15})\s*(?:-\s*(\d{1,15})\s*)?")
_ROWS = 40


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step of ``10`` or ``10-12``; steps count from 1.

    Raises:
        ConfigError: it is neither, goes backwards, begins before step 1 or is too long to trace.
    """
    found = _STEPS.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"steps to profile: {text!r} is neither a step nor a range of them; give 10 or 10-12"
        )
    first = int(found[1])
    last = int(found[2] or first)
    if first < 1:
        raise ConfigError(f"steps to profile: {text!r} begins before step 1, the first of a run")
    if last < first:
        raise ConfigError(f"steps to profile: {text!r} goes backwards; give {last}-{first}")
    if last - first >= MOST_STEPS:
        raise ConfigError(
            f"steps to profile: {text!r} are {last - first + 1} steps, whose trace would be too "
            f"large to look at; give {MOST_STEPS} at most"
        )
    return first, last


class StepProfiler:
    """Traces the steps from ``first`` to ``last``, and costs nothing in all others.

    Call `before_step` and `after_step` around each step, and `close` at the end: a run that ends
    within the steps still leaves their trace.

    Args:
        folder: of the run; traces are written to ``profile/`` in it.
        first: first step to trace, counted from 1.
        last: last step to trace, included.
        rank: number of this process.
        device: where it computes.
    """

    def __init__(
        self, folder: Path, first: int, last: int, rank: int, device: torch.device
    ) -> None:
        self.folder = folder / "profile"
        self.steps = range(first, last + 1)
        self.rank, self.device = rank, device
        self.written: Path | None = None
        """The trace, once there is one."""
        self._profile: profile | None = None
        self._began = self._done = 0
        self._mark: AbstractContextManager[object] | None = None

    def before_step(self, step: int) -> None:
        """Begin to trace, if the step is one of those chosen."""
        if step not in self.steps:
            return
        if self._profile is None:
            self._profile = self._start()
            self._began = step
        self._mark = record_function(f"step {step}")
        self._mark.__enter__()

    def after_step(self, step: int) -> None:
        """End the trace and write it, if the step is the last of those chosen.

        Raises:
            WorkspaceError, OSError: it cannot be written.
        """
        if self._profile is None:
            return
        self._leave_mark()
        self._done = step
        if step >= self.steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was traced, where a run ended before the last of the steps.

        Raises:
            WorkspaceError, OSError: it cannot be written.
        """
        if self._profile is None:
            return
        traced, self._profile = self._profile, None
        try:
            self._leave_mark()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            traced.stop()
        if self._done >= self._began:
            self._write(traced)

    def _start(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            # What earlier steps have asked for is not part of the trace.
            torch.cuda.synchronize(self.device)
        started = profile(activities=activities, record_shapes=True, profile_memory=True)
        started.start()
        return started

    def _leave_mark(self) -> None:
        if self._mark is not None:
            mark, self._mark = self._mark, None
            mark.__exit__(None, None, None)

    def _write(self, traced: profile) -> None:
        make_folder(self.folder)
        name = f"rank{self.rank}-steps-{self._began}-{self._done}"
        table = self.folder / f"{name}.txt"
        table.write_text(self._table(traced), encoding="utf-8")
        trace = self.folder / f"{name}.json.gz"
        temporary = trace.with_name(f".{trace.name}.tmp.json.gz")
        try:
            traced.export_chrome_trace(str(temporary))
            temporary.replace(trace)
        finally:
            temporary.unlink(missing_ok=True)
        self.written = trace

    def _table(self, traced: profile) -> str:
        """Operators by the time that they took themselves, then by memory, over all steps."""
        place = "cuda" if self.device.type == "cuda" else "cpu"
        operators = traced.key_averages()
        titles = {
            f"self_{place}_time_total": f"by the time that they took themselves ({place})",
            f"self_{place}_memory_usage": f"by the memory that they took themselves ({place})",
        }
        steps = f"steps {self._began} to {self._done} of rank {self.rank}"
        return "\n\n".join(
            f"Operators of {steps}, {title}\n"
            + operators.table(sort_by=key, row_limit=_ROWS, max_name_column_width=60)
            for key, title in titles.items()
        )
