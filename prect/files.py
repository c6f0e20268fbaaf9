"""Locks that end with their holder, and folders whose entries survive a crash."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prect.errors import WorkspaceError


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock (flock) on a file; it ends with the process, however that ends.

    Args:
        path: the lock file; made if need be, its folder must exist.
        busy: the message when another process holds it; ``{holder}`` becomes its process id.
        wait: wait until it is free, instead.

    Raises:
        WorkspaceError: another process holds the lock, and ``wait`` is false; or the file
            system has no locks.
    """
    with path.open("a+") as file:
        if not take_lock(file, path, wait=wait):
            file.seek(0)
            raise WorkspaceError(busy.format(holder=file.read().strip() or "unknown"))
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def take_lock(file: IO[str] | IO[bytes], path: Path, *, wait: bool) -> bool:
    """Lock an open file, which must be open for writing: NFS locks nothing else.

    Returns:
        False when another process holds the lock, and ``wait`` is false.

    Raises:
        WorkspaceError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise WorkspaceError(
            f"{path} cannot be locked ({error.strerror}), so two writers could not be told apart; "
            "put the workspace on a file system with locks (Lustre: mount it with -o flock)"
        ) from error
    return True


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
