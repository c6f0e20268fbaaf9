"""What is measured while training: means since the last line, and where the time went."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.distributed as dist

from prect.train.objectives import ObjectiveOutput

_MIB = 2**20
_WORTH_A_WORD = 0.05


@dataclass
class EncoderClock:
    """Time that a process spends in its encoder, the longest part of a step in which no process
    waits for another (with FSDP they do)."""

    device: torch.device
    _seconds: float = 0.0
    _marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a forward pass; does not wait for the device."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._marks.append((begin, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """Seconds since this was asked last; waits for the device."""
        for begin, end in self._marks:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._marks.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds


@dataclass(frozen=True)
class Timing:
    """What one process did with its time, means a step since the last line."""

    step_s: float
    wait_s: float
    """Waiting for data, measured around ``next``."""
    encoder_s: float
    """In the forward pass of the encoder."""
    volumes_per_s: float
    read_mb_per_s: float
    """Decoded voxels, in powers of 1000."""
    memory_mib: float
    """Peak of the device's memory, or of the process's own on a CPU."""
    stall_s: float
    """Longest time that a checkpoint held up a step."""

    @property
    def own_s(self) -> float:
        """Time in which this process waits for no other."""
        return self.wait_s + self.encoder_s


class Window:
    """Sums over the steps since the last line, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device, clock: EncoderClock) -> None:
        self.device, self.clock = device, clock
        self.reset()

    def reset(self) -> None:
        """Begin a new window now."""
        self._begin = time.perf_counter()
        self._idle = 0.0
        self._sums: dict[str, torch.Tensor] = {}
        self._waited = self._stalled = 0.0
        self._steps = self._good = self._volumes = self._bytes = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done between steps, so that it does not count as a slow step."""
        begin = time.perf_counter()
        yield
        self._idle += time.perf_counter() - begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what a checkpoint keeps the training from."""
        begin = time.perf_counter()
        yield
        self._stalled = max(self._stalled, time.perf_counter() - begin)

    def read(self, volumes: int, voxel_bytes: int) -> None:
        """Count a batch that was read."""
        self._volumes += volumes
        self._bytes += voxel_bytes

    def add(self, output: ObjectiveOutput | None, grad_norm: torch.Tensor) -> None:
        """Count a step, and its figures if it was a good one."""
        self._steps += 1
        if output is None:
            return
        self._good += 1
        figures = {"loss": output.loss.detach(), **output.terms, "grad_norm": grad_norm}
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def means(self) -> dict[str, float]:
        """Means of this rank's good steps; nothing if there was none."""
        if not self._good:
            return {}
        values = torch.stack([value.double() for value in self._sums.values()]).cpu() / self._good
        return dict(zip(self._sums, values.tolist(), strict=True))

    def timing(self) -> Timing:
        """Where this rank's time went."""
        seconds = time.perf_counter() - self._begin - self._idle
        return Timing(
            step_s=seconds / self._steps,
            wait_s=self._waited / self._steps,
            encoder_s=self.clock.take() / self._steps,
            volumes_per_s=self._volumes / seconds,
            read_mb_per_s=self._bytes / 1e6 / seconds,
            memory_mib=peak_memory(self.device) / _MIB,
            stall_s=self._stalled,
        )


def shared_figures(means: dict[str, float], timings: list[Timing]) -> dict[str, float]:
    """One line for all ranks.

    Speeds are sums over ranks, ``wait_share`` is the share of time in which a training process
    waited for data, on average; memory is that of the rank with most.

    Args:
        means: of all ranks, averaged.
        timings: of each rank.
    """
    count = len(timings)
    return means | {
        "step_s": sum(t.step_s for t in timings) / count,
        "wait_share": sum(t.wait_s / t.step_s for t in timings) / count,
        "volumes_per_s": sum(t.volumes_per_s for t in timings),
        "read_mb_per_s": sum(t.read_mb_per_s for t in timings),
        "memory_mib": max(t.memory_mib for t in timings),
        "save_stall_s": max(t.stall_s for t in timings),
    }


def mean_over_ranks(figures: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of figures that all ranks have."""
    if not (dist.is_initialized() and dist.get_world_size() > 1 and figures):
        return figures
    shared = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    dist.all_reduce(shared)
    shared /= dist.get_world_size()
    return dict(zip(figures, shared.tolist(), strict=True))


def stragglers(timings: list[Timing], factor: float) -> dict[int, float]:
    """Ranks that need ``factor`` times as long as the median of the others, and how many times.

    What makes less than a twentieth of a step is not worth a word.
    """
    found = {}
    for rank, own in enumerate(timings):
        others = [other.own_s for number, other in enumerate(timings) if number != rank]
        usual = median(others) if others else own.own_s
        late = own.own_s - usual
        if usual > 0 and own.own_s > factor * usual and late > _WORTH_A_WORD * own.step_s:
            found[rank] = own.own_s / usual
    return found


def peak_memory(device: torch.device) -> int:
    """Bytes of the device's memory in use at most, or of the process's own on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
