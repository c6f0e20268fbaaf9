"""A limit on the memory of one process, page cache included: a control group, version 2 or 1.

Limits on a process itself (rlimit) do not count the page cache, so they are of no use here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prect.benchmark.measuring import BenchmarkError

_FIRST_LIMIT = "memory.limit_in_bytes"
"""File of the limit in a group of version 1."""
_FORBIDDEN = "this user may not make control groups"
_NO_RLIMIT = "a limit on the process (rlimit) would not do, it does not count the page cache"


def groups_above(mounts: str, groups: str) -> list[Path]:
    """Folders of control groups in which one that limits memory may be made.

    Of version 2 this process's own and the one above it: a group that holds processes seldom hands
    on the control of memory, but the one above it does, and there a group beside this process's
    own can be made. Then this process's own of version 1, where that controls memory.

    Args:
        mounts: text of ``/proc/self/mounts``.
        groups: text of ``/proc/self/cgroup``.
    """
    second: list[Path] = []
    first: list[Path] = []
    for line in mounts.splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            for own in _owned(Path(place), groups, ""):
                second += [own] if own == Path(place) else [own, own.parent]
        elif kind == "cgroup" and "memory" in options.split(","):
            first += _owned(Path(place), groups, "memory")
    return [*second, *first]


def _owned(root: Path, groups: str, controller: str) -> list[Path]:
    """This process's own group in a hierarchy: none or one; version 2 names no controller."""
    entries = [line.split(":", 2) for line in groups.splitlines()]
    return [root / path.lstrip("/") for _, names, path in entries if controller in names.split(",")]


def _known() -> list[Path]:
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8")
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return []
    return groups_above(mounts, groups)


def find_parent(candidates: Sequence[Path] | None = None) -> Path:
    """The control group in which this process may make one that limits memory.

    Args:
        candidates: folders of groups; this process's own and the one above when left out.

    Raises:
        BenchmarkError: there is none; says what keeps it.
    """
    reasons = []
    for candidate in _known() if candidates is None else candidates:
        reason = _why_not(candidate)
        if reason is None:
            return candidate
        reasons.append(reason)
    reason = reasons[-1] if reasons else "this system has no control groups"
    raise BenchmarkError(f"{reason}; {_NO_RLIMIT}")


def _why_not(parent: Path) -> str | None:
    if _is_first(parent):
        return None if os.access(parent, os.W_OK) else _FORBIDDEN
    try:
        controllers = (parent / "cgroup.controllers").read_text(encoding="ascii").split()
        shared = (parent / "cgroup.subtree_control").read_text(encoding="ascii").split()
    except OSError as error:
        return f"control groups cannot be read ({error.strerror})"
    if "memory" not in controllers:
        return "control groups of version 2 do not control memory here"
    if "memory" not in shared:
        return "this process's control group does not hand on the control of memory"
    if not os.access(parent, os.W_OK):
        return _FORBIDDEN
    return None


def _is_first(group: Path) -> bool:
    """Whether a group is of version 1."""
    return (group / _FIRST_LIMIT).exists()


class Cgroup:
    """A control group for one process, removed with the block.

    Args:
        pid: of the process.
        parent: folder of the group that it is made in, of `find_parent`.
    """

    def __init__(self, pid: int, parent: Path) -> None:
        self.path = parent / f"prect-benchmark-{pid}"
        self._pid = pid
        self._first = _is_first(parent)

    def __enter__(self) -> Cgroup:
        try:
            self.path.mkdir()
            (self.path / "cgroup.procs").write_text(str(self._pid), encoding="ascii")
        except OSError as error:
            self._remove()
            raise BenchmarkError(f"no control group could be made ({error.strerror})") from error
        return self

    def limit(self, count: int) -> None:
        """Give the process so many bytes of memory from now on, and no swap.

        Raises:
            BenchmarkError: the system refuses.
        """
        if self._first:
            # Here the second limit is on the sum of memory and swap.
            limit, swap, in_swap = _FIRST_LIMIT, "memory.memsw.limit_in_bytes", count
        else:
            limit, swap, in_swap = "memory.max", "memory.swap.max", 0
        try:
            (self.path / limit).write_text(str(count), encoding="ascii")
            if (self.path / swap).exists():
                (self.path / swap).write_text(str(in_swap), encoding="ascii")
        except OSError as error:
            raise BenchmarkError(f"the limit on memory was refused ({error.strerror})") from error

    def _remove(self) -> None:
        with suppress(OSError):  # it was never made, or a process in it has not quite ended
            self.path.rmdir()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The process must have ended: a group that holds one cannot be removed.
        self._remove()
