"""Locks that end with their holder, and folders whose entries survive a crash."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from prect.errors import BusyError, WorkspaceError

PATIENCE = 1.0
"""Seconds: who only looks whether a lock is held has it for a moment."""
_PAUSE = 0.02
_ROOM = "make room on its disk; prect gc clears what killed processes have left"
_RIGHT = "get the right to write there, or use another workspace"
_REMEDIES = {
    errno.EROFS: "mount its file system for writing, or use another workspace",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _RIGHT,
    errno.EPERM: _RIGHT,
}


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = False, named: bool = True) -> Iterator[None]:
    """Hold an exclusive lock (flock) on a file; it ends with the process, however that ends.

    While it is held, the file says by whom: name of the host, and process id.

    Args:
        path: the lock file; made if need be, its folder must exist.
        busy: the message when another process holds it for longer than `PATIENCE`;
            ``process {holder}`` becomes "process 123 on host x".
        wait: wait until it is free, instead.
        named: say in the file who holds it; without, a disk that is full does no harm.

    Raises:
        BusyError: another process holds the lock, and ``wait`` is false.
        WorkspaceError: the file cannot be written, or the file system has no locks.
    """
    with _lock_file(path) as file:
        deadline = time.monotonic() + PATIENCE
        while not take_lock(file, path, wait=wait):
            if time.monotonic() > deadline:
                file.seek(0)
                raise BusyError(busy.format(holder=_holder(file.read().decode(errors="replace"))))
            time.sleep(_PAUSE)
        file.truncate(0)
        if named:
            _write_holder(file, path)
        try:
            yield
        finally:
            file.truncate(0)


def _lock_file(path: Path) -> BinaryIO:
    try:
        # Without a buffer, which would be written once more, and fail again, when it is closed.
        return path.open("a+b", buffering=0)
    except OSError as error:
        raise _not_writable(path, error) from error


def _write_holder(file: BinaryIO, path: Path) -> None:
    try:
        file.write(f"{socket.gethostname()} {os.getpid()}".encode())
    except OSError as error:
        raise _not_writable(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        WorkspaceError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: OSError) -> WorkspaceError:
    remedy = _REMEDIES.get(error.errno or 0, "see that it can be, or use another workspace")
    return WorkspaceError(f"{path} cannot be written ({error.strerror}); {remedy}")


def _holder(text: str) -> str:
    host, _, process = text.strip().rpartition(" ")
    return f"{process} on host {host}" if host else process or "unknown"


def take_lock(file: IO[str] | IO[bytes], path: Path, *, wait: bool, shared: bool = False) -> bool:
    """Lock an open file, which must be open for writing: NFS locks nothing else.

    Args:
        file: the open file; one opened for reading will do where ``shared`` is true.
        path: of the file, for messages.
        wait: wait until no other process holds a lock that excludes this one.
        shared: let others have a shared lock too, and nobody an exclusive one.

    Returns:
        False when another process holds the lock, and ``wait`` is false.

    Raises:
        WorkspaceError: the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise WorkspaceError(
            f"{path} cannot be locked ({error.strerror}), so two writers could not be told apart; "
            "put the workspace on a file system with locks (Lustre: mount it with -o flock)"
        ) from error
    return True


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock that `locked` takes; only looks.

    A process that takes it at this very moment waits for `PATIENCE`, so it is not disturbed.

    Raises:
        WorkspaceError: the file system has no locks.
    """
    try:
        file = path.open("rb")  # enough for a shared lock, also on NFS
    except FileNotFoundError:
        return False
    with file:
        # Whoever holds it says so in the file, and a file that says nothing need not be locked.
        return bool(file.read(1)) and not take_lock(file, path, wait=False, shared=True)


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
