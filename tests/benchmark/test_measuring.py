"""What a process tells of itself, and what a drop from the page cache is."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prect.benchmark import children
from prect.benchmark.measuring import (
    BenchmarkError,
    Timing,
    device_bytes,
    drop,
    memory,
    summarise,
    versions,
    why_not_cold,
)


def test_a_summary_of_known_reads() -> None:
    timings = [Timing(ms / 1e3, 0.5, 100 * ms) for ms in (1, 2, 3, 4, 100)]
    summary = summarise(timings)
    assert (summary.reads, summary.p50_ms, summary.low_ms, summary.high_ms) == (5, 3, 1, 100)
    assert summary.p95_ms == pytest.approx(80.8)
    assert summary.samples_per_s == pytest.approx(5 / 0.110)
    assert summary.cpu_s == 0.5
    assert summary.device_bytes == 100 * 22


def test_no_device_bytes_where_the_system_does_not_tell() -> None:
    assert summarise([Timing(1, 1, None)]).device_bytes is None


def write(path: Path) -> Path:
    path.write_bytes(os.urandom(1 << 20))
    return path


def test_dropped_bytes_come_from_the_device_again(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    reason = why_not_cold([path])
    if reason is not None:
        pytest.skip(f"no cold reads here: {reason}")
    before = device_bytes()
    path.read_bytes()
    after = device_bytes()
    assert before is not None
    assert after is not None
    assert after - before >= 1 << 20
    path.read_bytes()
    assert device_bytes() == after, "the second read is warm"


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise")
def test_a_file_that_is_mapped_cannot_be_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "file")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert len(mapped[:]) == 1 << 20  # every page is touched
        with pytest.raises(BenchmarkError, match="stay in the page cache"):
            drop([path])


def test_memory_and_versions() -> None:
    resident, peak = memory("VmRSS"), memory("VmHWM")
    if resident is not None and peak is not None:
        assert 1e6 < resident <= 1.1 * peak
    assert versions(["numpy", "no-such-distribution"])["no-such-distribution"] is None


@pytest.mark.skipif(not children.available(), reason="no /proc")
def test_the_time_of_a_child_is_counted() -> None:
    code = "import sys\nfor _ in range(6_000_000): pass\nprint(flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in children.descendants(os.getpid())
        assert children.cpu_seconds([child.pid]) > 0.02
        assert children.private_bytes(child.pid) > 1e6
        child.communicate()
    assert child.pid not in children.descendants(os.getpid())
    assert children.cpu_seconds([child.pid]) == 0
