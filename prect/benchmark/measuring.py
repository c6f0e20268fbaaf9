"""What one process can tell of itself and of its files: memory, device reads, page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from prect.errors import PrectError

_RESIDENT_SHARE = 0.02
"""Share of a dropped file that may stay in the page cache: the kernel keeps a page now and then."""


class BenchmarkError(PrectError, RuntimeError):
    """What is measured failed, or is not there to be measured."""


class UnavailableError(BenchmarkError):
    """This machine lacks what an arm needs beside its library."""


@dataclass(frozen=True)
class Timing:
    """One read."""

    seconds: float
    """On the clock."""
    cpu_s: float
    """Of all threads of the process, in user and kernel mode."""
    device_bytes: int | None
    """That the process had read from a device; None where the system does not tell."""


@dataclass(frozen=True)
class Summary:
    """Many reads of one view."""

    reads: int
    p50_ms: float
    """The median."""
    p95_ms: float
    p99_ms: float
    low_ms: float
    high_ms: float
    samples_per_s: float
    """Of one process: reads by the seconds that they took together."""
    cpu_s: float
    """A sample, mean."""
    device_bytes: float | None
    """A sample, mean."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def summarise(timings: Sequence[Timing]) -> Summary:
    """Median, spread and means of reads, of which there must be one at least."""
    ms = 1e3 * np.array([timing.seconds for timing in timings])
    p50, p95, p99 = (float(value) for value in np.percentile(ms, (50, 95, 99)))
    told = [timing.device_bytes for timing in timings if timing.device_bytes is not None]
    return Summary(
        reads=len(timings),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        low_ms=float(ms.min()),
        high_ms=float(ms.max()),
        samples_per_s=1e3 * len(ms) / float(ms.sum()),
        cpu_s=sum(timing.cpu_s for timing in timings) / len(timings),
        device_bytes=sum(told) / len(told) if told else None,
    )


def device_bytes() -> int | None:
    """Bytes that a device has given this process so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def memory(field: str) -> int | None:
    """Bytes of a field of ``/proc/self/status``: ``VmRSS``, ``VmHWM`` (the peak), ``RssAnon``."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields[field].split()[0]) * 1024 if field in fields else None


def forget_peak() -> None:
    """Let ``VmHWM`` begin again at what is resident now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # the peak then includes what was done before, which is more, never less


def file_bytes(paths: Iterable[Path]) -> int:
    """Bytes of files together."""
    return sum(path.stat().st_size for path in paths)


def drop(paths: Iterable[Path]) -> None:
    """Drop files, which nobody may hold mapped, from the page cache.

    Raises:
        BenchmarkError: the system cannot, or pages stayed.
    """
    if not hasattr(os, "posix_fadvise"):
        raise BenchmarkError("this system cannot drop files from its page cache")
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on the disk yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size
            share = _resident(descriptor, size)
        finally:
            os.close(descriptor)
        # A page or two of a small file are a large share of it.
        if share is not None and share * size > max(_RESIDENT_SHARE * size, 4 * mmap.PAGESIZE):
            raise BenchmarkError(
                f"{share:.0%} of {path.name} stay in the page cache after they were dropped: "
                "a process has them mapped, or the file system lies in memory"
            )


def _resident(descriptor: int, size: int) -> float | None:
    """Share of a file's pages in the page cache (mincore(2)); None where that cannot be asked."""
    if size == 0:
        return 0.0
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mincore"):
        return None
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
    ]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    # Python's own mmap does not give its address away without making a writable copy.
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if libc.mincore(address, size, pages):
            return None
        return float(np.mean(np.frombuffer(bytes(pages), dtype=np.uint8) & 1))
    finally:
        libc.munmap(address, size)


def why_not_cold(paths: Sequence[Path]) -> str | None:
    """What keeps cold reads of files from being measured, or None; it leaves them dropped."""
    try:
        drop(paths)
    except (BenchmarkError, OSError) as error:
        return str(error)
    before = device_bytes()
    if before is None:
        return "this system does not tell what a process reads from a device"
    read = sum(len(path.read_bytes()) for path in paths)
    came = (device_bytes() or 0) - before
    drop(paths)
    if came < 0.9 * read:
        return f"of {read} bytes dropped from the page cache only {came} came from a device"
    return None


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution; None for one that is not there."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(libraries: Iterable[str]) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions(libraries),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
