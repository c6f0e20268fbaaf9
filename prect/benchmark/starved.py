"""A limit on the memory of one process, page cache included: a control group (cgroup v2)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from prect.benchmark.measuring import BenchmarkError


def groups_above(mounts: str, groups: str) -> list[Path]:
    """Folders of this process's control group of version 2 and of the one above it.

    A group that holds processes seldom hands on the control of memory, but the one above it does:
    there a group beside this process's own can be made.

    Args:
        mounts: text of ``/proc/self/mounts``.
        groups: text of ``/proc/self/cgroup``.
    """
    roots = [line.split()[1] for line in mounts.splitlines() if line.split()[2] == "cgroup2"]
    paths = [line[3:] for line in groups.splitlines() if line.startswith("0::")]
    if not roots or not paths:
        return []
    root = Path(roots[0])
    own = root / paths[0].lstrip("/")
    return [own] if own == root else [own, own.parent]


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
    raise BenchmarkError(
        reasons[-1] if reasons else "this system has no control groups of version 2"
    )


def _why_not(parent: Path) -> str | None:
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
        return "this user may not make control groups"
    return None


class Cgroup:
    """A control group for one process, removed with the block.

    Args:
        pid: of the process.
        parent: folder of the group that it is made in, of `find_parent`.
    """

    def __init__(self, pid: int, parent: Path) -> None:
        self.path = parent / f"prect-benchmark-{pid}"
        self._pid = pid

    def __enter__(self) -> Cgroup:
        try:
            self.path.mkdir()
            (self.path / "cgroup.procs").write_text(str(self._pid), encoding="ascii")
        except OSError as error:
            self._remove()
            raise BenchmarkError(f"no control group could be made ({error.strerror})") from error
        return self

    def limit(self, count: int) -> None:
        """Give the process so many bytes of memory from now on, and no swap."""
        (self.path / "memory.max").write_text(str(count), encoding="ascii")
        swap = self.path / "memory.swap.max"
        if swap.exists():
            swap.write_text("0", encoding="ascii")

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
