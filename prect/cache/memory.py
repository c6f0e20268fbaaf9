"""How much memory a build takes, and how many worker processes fit into this machine."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

BASE_BYTES = 400_000_000
"""A worker process before it holds any voxels: the libraries and their buffers."""
COPIES = 4
"""Volumes as int16, of the file or of the grid if that is larger, that building one takes."""
_INT16 = 2
_UNLIMITED = 2**60
"""Control groups of version 1 write a number near 2^63 where there is no limit."""


def decoded_bytes(shape: Sequence[int]) -> int:
    """Bytes of a volume of ``shape`` as int16, axes in any order."""
    return _INT16 * math.prod(int(n) for n in shape)


def memory_needed(shape: Sequence[int], grid: Sequence[int] = ()) -> int:
    """Bytes that a worker may hold while it builds a volume: the bound that a build keeps.

    Args:
        shape: voxels of the source volume, axes in any order.
        grid: voxels of the same field of view on the grid of the profile; matters for volumes
            that are coarser than the grid.
    """
    return BASE_BYTES + COPIES * max(decoded_bytes(shape), decoded_bytes(grid))


def workers_within(memory: int, needed: int, cores: int) -> int:
    """Worker processes that run at once: one a core, as far as memory goes, at least one.

    Args:
        memory: bytes that all of them may hold.
        needed: bytes that one of them may hold.
        cores: of this machine.
    """
    return max(1, min(cores, memory // needed))


def default_workers(shapes: Iterable[Sequence[int]]) -> int:
    """Worker processes that build volumes of ``shapes`` on this machine without running out.

    Args:
        shapes: of the source volumes to build, axes in any order; the largest one decides, since
            all workers may meet volumes of its size at once.
    """
    needed = max(map(memory_needed, shapes), default=BASE_BYTES)
    return workers_within(available_memory(), needed, available_cores())


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it is bound to, less what its control group denies.

    A part of a core counts as one.

    Args:
        root: where ``/proc`` and ``/sys`` lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = [cores or 1]
    for group in _groups("cpu", root):
        quota, period = _words(group / "cpu.max", 2)  # version 2: "max 100000" or two numbers
        if quota is None:
            (quota,) = _words(group / "cpu.cfs_quota_us", 1)  # version 1: -1 is no limit
            (period,) = _words(group / "cpu.cfs_period_us", 1)
        if quota is not None and period and quota > 0:
            limits.append(math.ceil(quota / period))
    return min(limits)


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or of what its control group allows if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(limit for limit, _ in _memory_groups(root))])


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that new processes can take without pushing others out; file caches count as free."""
    free = [machine_memory(root)]
    available = _entry(root / "proc/meminfo", "MemAvailable:")
    if available is not None:
        free.append(1024 * available)
    free += [max(0, limit - used) for limit, used in _memory_groups(root)]
    return min(free)


@dataclass(frozen=True)
class Footprint:
    """What one process holds, in bytes of resident memory."""

    now: int
    peak: int
    """Since it was last forgotten, or since the process began."""


def footprint() -> Footprint:
    """What this process holds."""
    status = Path("/proc/self/status")
    now, peak = _entry(status, "VmRSS:"), _entry(status, "VmHWM:")
    if now is None or peak is None:  # not Linux: the peak alone is known
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Footprint(peak, peak)
    return Footprint(1024 * now, 1024 * peak)


def forget_peak() -> None:
    """Let the peak of this process begin anew; where Linux does not allow it, it stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit of each control group that has one, and bytes used that cannot be given back."""
    for group in _groups("memory", root):
        for names in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            (limit,), (used,) = _words(group / names[0], 1), _words(group / names[1], 1)
            if limit is not None and limit < _UNLIMITED:
                cached = _entry(group / "memory.stat", names[2])
                yield limit, max(0, (used or 0) - (cached or 0))


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, the innermost first.

    In a container the path that the kernel tells may be one of the host: what is not there
    is skipped, and the mounted root, which is then the container's own group, remains.
    """
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # a system without control groups
        return
    for line in lines:
        _, controllers, inner = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounts / controller if controllers else mounts
        folder = top / inner.lstrip("/")
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent
        yield top


def _words(path: Path, count: int) -> list[int | None]:
    """The first ``count`` words of a file as numbers; None for what is no number, or not there."""
    try:
        words = path.read_text().split()
    except OSError:
        words = []
    numbers = [int(word) if word.lstrip("-").isdigit() else None for word in words[:count]]
    return numbers + [None] * (count - len(numbers))


def _entry(path: Path, name: str) -> int | None:
    """The number that follows ``name`` at the start of a line of a file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), None)
