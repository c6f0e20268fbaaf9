"""The arms in one run: every box compared with the truth, then read warm, cold and short of memory.

The arms take turns at each box, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prect.benchmark.arms import Arm, find_arm, scaled
from prect.benchmark.boxes import WINDOW, Turn, Volume, bursts
from prect.benchmark.inputs import Step
from prect.benchmark.measuring import BenchmarkError, Timing, summarise, versions
from prect.benchmark.processes import Process
from prect.benchmark.starved import Cgroup, find_parent
from prect.cache.reader import StoreReader

MEASURED = "measured"
IN_MEMORY = "in memory"
SCALED_TOLERANCE = 1e-6
"""Of float32 in 0..1."""
_STARVED_SHARE = 0.25
"""Share of an arm's files that fits into the memory that it is given for them."""
_NOT_COLD_SHARE = 0.1
"""Share of an arm's cold reads that may have taken nothing from a device; these are dropped."""


@dataclass
class Runner:
    """One arm in its process, and what was measured of it."""

    name: str
    kind: type[Arm]
    process: Process
    folder: Path
    status: str = MEASURED
    facts: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, dict[str, dict[str, list[Timing]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    """By state (warm, cold, starved), view and volume."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Why, by state."""
    not_cold: int = 0
    """Reads of files that were dropped, which took nothing from a device all the same."""
    state: str = "warm"
    """What is being measured."""

    @property
    def alive(self) -> bool:
        """Whether there is something to measure."""
        return self.status == MEASURED

    def ask(self, method: str, *arguments: object) -> Any:
        """Ask the process; None when it fails, which the table will say.

        An arm that fails warm is out of the run; what was measured warm outlives a later failure.
        """
        return self._heard(lambda: self.process.ask(method, *arguments))

    def answer(self) -> Any:
        """Wait for what the process was asked to begin."""
        return self._heard(self.process.answer)

    def _heard(self, listen: Callable[[], Any]) -> Any:
        try:
            return listen()
        except BenchmarkError as error:
            if self.state == "warm":
                self.status = f"failed: {error}"
            else:
                self.not_measured.setdefault(self.state, f"failed: {error}")
                self.timings.pop(self.state, None)
            return None

    def read_warm(self, burst: Sequence[Turn]) -> None:
        """Time reads of one volume with its files open, where the state can be measured."""
        if not self.alive or self.state in self.not_measured:
            return
        timings = self.ask("warm", burst[0].volume, [turn.box for turn in burst])
        if timings is None:
            return
        for turn, timing in zip(burst, timings, strict=True):
            self.timings[self.state][turn.view][turn.volume].append(timing)

    def read_cold(self, turn: Turn) -> None:
        """Time one cold read, where there are any; one that was not cold is counted apart."""
        if not self.alive or "cold" in self.not_measured:
            return
        timing = self.ask("cold", turn.volume, turn.box)
        if timing is None:
            return
        if timing.device_bytes:
            self.timings["cold"][turn.view][turn.volume].append(timing)
        else:
            self.not_cold += 1

    def judge_cold(self, reads: int) -> None:
        """Give up what was read cold where too many of ``reads`` were not cold."""
        if self.not_cold > _NOT_COLD_SHARE * reads and "cold" not in self.not_measured:
            self.timings.pop("cold", None)
            self.not_measured["cold"] = (
                f"{self.not_cold} of {reads} reads of files that were dropped took nothing "
                "from a device"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything, for the JSON file."""
        reads = {
            state: {view: _view_json(volumes) for view, volumes in views.items()}
            for state, views in self.timings.items()
        }
        return {
            "name": self.name,
            "title": self.kind.title,
            "holds": self.kind.holds,
            "versions": versions(self.kind.libraries),
            "status": self.status,
            **self.facts,
            "reads": reads if self.alive else {},
            "not_measured": self.not_measured,
            "reads_not_cold": self.not_cold,
        }


def _view_json(volumes: Mapping[str, Sequence[Timing]]) -> dict[str, Any]:
    every = [timing for timings in volumes.values() for timing in timings]
    by_volume = {n: 1e3 * median(t.seconds for t in timings) for n, timings in volumes.items()}
    return summarise(every).to_json() | {"p50_ms_by_volume": by_volume}


@contextmanager
def runners(
    names: Sequence[str], volumes: Sequence[Volume], folder: Path, on_step: Step
) -> Iterator[list[Runner]]:
    """Start the arms, each in its process, and let them write their files."""
    with ExitStack() as stack:
        started = []
        cores = os.cpu_count() or 1
        for name in names:
            kind = find_arm(name)
            process = stack.enter_context(Process())
            started.append(Runner(name, kind, process, folder / kind.name))
        for first in range(0, len(started), cores):
            batch = started[first : first + cores]
            on_step(f"writing the files of {', '.join(runner.name for runner in batch)}")
            _load(batch, volumes)
        yield started


def _load(batch: Sequence[Runner], volumes: Sequence[Volume]) -> None:
    """Let arms import and write side by side: this is not timed against one another."""
    for runner in batch:
        runner.process.begin("load", runner.name, list(volumes), runner.folder, True)
    for runner in batch:
        facts = runner.answer()
        if facts is not None and "missing" in facts:
            runner.status = facts["missing"]
        elif facts is not None:
            runner.facts = facts


def compare(
    started: Sequence[Runner],
    volumes: Sequence[Volume],
    warm: Sequence[Turn],
    cold: Sequence[Turn],
    on_step: Step,
) -> None:
    """Check every box of every arm, then time the reads.

    An arm that returns other voxels than the store holds is not timed; its status says so.

    Args:
        started: the arms.
        volumes: what they read.
        warm: boxes to read.
        cold: those of them to read cold, too.
        on_step: told what is done next.
    """
    on_step("comparing what the arms read")
    _first_reads(started, warm)
    check(started, volumes, warm)
    on_step(f"warm reads, {len(warm)} boxes an arm")
    for number, burst in enumerate(bursts(warm)):
        for runner in _in_turn(started, number):
            runner.read_warm(burst)
    for runner in started:
        if runner.alive:
            runner.facts["peak_bytes"] = runner.ask("memory", "VmHWM")
            runner.ask("close_all")
        runner.state = "cold"
    on_step(f"cold reads, {len(cold)} boxes an arm")
    for runner in started:
        _refuse_cold(runner, volumes)
    for number, turn in enumerate(cold):
        for runner in _in_turn(started, number):
            runner.read_cold(turn)
    for runner in started:
        runner.judge_cold(len(cold))
        if runner.alive:
            runner.ask("close_all")


def _in_turn(started: Sequence[Runner], number: int) -> list[Runner]:
    """The arms, beginning with another one each time."""
    first = number % len(started)
    return [*started[first:], *started[:first]]


def _first_reads(started: Sequence[Runner], turns: Sequence[Turn]) -> None:
    first = {turn.volume: turn for turn in reversed(turns)}
    for runner in started:
        times = []
        for turn in first.values():
            if runner.alive and not runner.kind.limit:
                timing = runner.ask("first", turn.volume, turn.box)
                times += [] if timing is None else [1e3 * timing.seconds]
        runner.facts["first_read_ms"] = times[0] if times else None


def _refuse_cold(runner: Runner, volumes: Sequence[Volume]) -> None:
    if runner.kind.in_memory:
        runner.not_measured["cold"] = IN_MEMORY
    elif runner.alive:
        reason = runner.ask("why_not_cold", volumes[0].name)
        if reason is not None:
            runner.not_measured["cold"] = reason


def check(started: Sequence[Runner], volumes: Sequence[Volume], turns: Sequence[Turn]) -> None:
    """Compare every box of every arm with the bare voxels of the volume."""
    truths = {v.name: np.memmap(v.raw, dtype=np.int16, mode="r", shape=v.shape) for v in volumes}
    steps = {volume.name: _window_error(volume) for volume in volumes}
    for turn in turns:
        truth = np.array(truths[turn.volume][turn.box.slices])
        for runner in started:
            if not runner.alive:
                continue
            found = runner.ask("check", turn.volume, turn.box)
            if found is None:
                continue
            wrong = difference(found, truth, runner.kind.holds, steps[turn.volume])
            if wrong is not None:
                runner.status = (
                    f"wrong voxels: {turn.view} at {turn.box.start} of {turn.volume} {wrong}"
                )


def difference(
    found: NDArray[Any], hu: NDArray[np.int16], holds: str, step_error: int
) -> str | None:
    """What is wrong with voxels that an arm read, or None.

    Args:
        found: what it returned, (z, y, x).
        hu: what is there.
        holds: see `prect.benchmark.arms.Holds`.
        step_error: HU by which a store of the window differs at most.
    """
    if found.shape != hu.shape:
        return f"has shape {found.shape}, not {hu.shape}"
    if holds == "scaled":
        worst = float(np.abs(found - scaled(hu)).max())
        return None if worst <= SCALED_TOLERANCE else f"differs by {worst:g} of the window"
    low, high = WINDOW
    wanted = hu if holds == "hu" else np.clip(hu, low, high)
    worst_hu = int(np.abs(found.astype(np.int32) - wanted).max())
    allowed = 0 if holds == "hu" else step_error
    return None if worst_hu <= allowed else f"differs by {worst_hu} HU"


def _window_error(volume: Volume) -> int:
    with StoreReader(volume.window) as reader:
        return reader.attributes.intensity.max_error


def starve(
    started: Sequence[Runner], volumes: Sequence[Volume], turns: Sequence[Turn], on_step: Step
) -> dict[str, Any]:
    """Read with less memory than the files take, each arm in a process with a limit of its own.

    Returns:
        Whether it was measured, and why not.
    """
    try:
        if not turns:
            raise BenchmarkError("left out of this run")
        parent = find_parent()
    except BenchmarkError as error:
        for runner in started:
            runner.not_measured["starved"] = str(error)
        return {"measured": False, "reason": str(error)}
    on_step(f"reads short of memory, {len(turns)} boxes an arm")
    with ExitStack() as stack:
        limited = []
        for runner in started:
            if runner.kind.in_memory:
                runner.not_measured["starved"] = IN_MEMORY
            elif runner.alive:
                try:
                    stack.enter_context(_limited(runner, volumes, parent))
                except BenchmarkError as error:
                    runner.not_measured["starved"] = str(error)
                else:
                    limited.append(runner)
        for number, burst in enumerate(bursts(turns) if limited else ()):
            for runner in _in_turn(limited, number):
                runner.read_warm(burst)
    if not limited:
        reasons = {r.not_measured["starved"] for r in started if "starved" in r.not_measured}
        return {"measured": False, "reason": "; ".join(sorted(reasons - {IN_MEMORY}))}
    return {"measured": True, "memory_share": _STARVED_SHARE}


@contextmanager
def _limited(runner: Runner, volumes: Sequence[Volume], parent: Path) -> Iterator[None]:
    """Put a runner into a new process with little memory for as long as the block lasts.

    Raises:
        BenchmarkError: the control group was refused.
    """
    plain = runner.process
    process = Process()
    try:
        with Cgroup(process.pid, parent) as cgroup:
            runner.process, runner.state = process, "starved"
            try:
                runner.ask("load", runner.name, list(volumes), runner.folder, False)
                runner.ask("drop")
                anonymous = runner.ask("memory", "RssAnon") or 0
                cgroup.limit(anonymous + int(_STARVED_SHARE * sum(runner.facts["bytes"].values())))
                yield
            finally:
                runner.process = plain
                process.close()  # before its group is removed
    finally:
        process.close()
