"""CPU time and memory of a process and of the workers that it has started, from ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def available() -> bool:
    """Whether this system tells."""
    return (_PROC / "self" / "stat").is_file()


def descendants(root: int) -> list[int]:
    """Process ids of all that a process has started, directly or not."""
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents[int(entry.name)] = int(fields[1])
    found, last = [], {root}
    while last:
        last = {pid for pid, parent in parents.items() if parent in last}
        found += sorted(last)
    return found


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes that live, in user and kernel mode, together."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with no other one; 0 when it has ended."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    private = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(fields[1]) * 1024 for fields in private)


def _stat(pid: int) -> list[str]:
    """Fields of a process after its name, the state first; none when it has ended."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()
