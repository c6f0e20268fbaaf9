"""Locks: who holds one is told, and who only looks does not stand in the way."""

from __future__ import annotations

import errno
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prect.errors import BusyError, WorkspaceError
from prect.files import PATIENCE, is_locked, locked, make_folder, take_lock
from prect.workspace import Workspace


def test_the_holder_is_told_and_forgotten(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    holder = f"process {os.getpid()} on host {socket.gethostname()}"
    with locked(lock, "busy"):
        started = time.monotonic()
        with (
            pytest.raises(BusyError, match=f"^held by {holder}$"),
            locked(lock, "held by process {holder}"),
        ):
            pass
        assert time.monotonic() - started >= PATIENCE
        assert lock.read_text() == f"{socket.gethostname()} {os.getpid()}"
    assert lock.read_text() == ""


@pytest.mark.parametrize(
    ("text", "told"), [("123", "123"), ("", "unknown"), ("h 7", "7 on host h")]
)
def test_whatever_the_file_says_is_told(tmp_path: Path, text: str, told: str) -> None:
    lock = tmp_path / ".lock"
    lock.write_text(text)
    with lock.open("r+b") as file:
        assert take_lock(file, lock, wait=True)
        with pytest.raises(WorkspaceError, match=f"^{told}$"), locked(lock, "{holder}"):
            pass


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    file = lock.open("r+b")
    assert take_lock(file, lock, wait=False, shared=True)
    release = threading.Timer(PATIENCE / 4, file.close)
    release.start()
    with locked(lock, "busy"):
        assert file.closed
    release.join()


def test_looking_at_a_lock_changes_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert not is_locked(lock)
    assert not lock.exists()
    with locked(lock, "busy"):
        said = lock.read_text()
        assert is_locked(lock)
        assert is_locked(lock)
        assert lock.read_text() == said
    assert not is_locked(lock)
    lock.write_text("node 123")  # as a process that was killed leaves it
    assert not is_locked(lock)


def test_an_error_in_the_block_releases_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with pytest.raises(RuntimeError), locked(lock, "busy"):
        raise RuntimeError
    assert lock.read_text() == ""
    with locked(lock, "busy"):
        pass


class Full(io.FileIO):
    """A file on a disk that has no room left."""

    def write(self, _: object, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)


def test_a_full_disk_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".lock"
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Full(path, "a+"))
    told = rf"^{lock} cannot be written \(No space left on device\); make room .*prect gc"
    with pytest.raises(WorkspaceError, match=told) as caught, locked(lock, "busy"):
        pytest.fail("it is held")
    assert not isinstance(caught.value, BusyError)
    with locked(lock, "busy", named=False), pytest.raises(BusyError), locked(lock, "busy"):
        pass
    assert not isinstance(caught.value.__cause__, WorkspaceError)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EROFS, "mount its file system for writing"),
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EACCES, "get the right"),
        (errno.EIO, "see that it can be"),
    ],
)
def test_a_lock_or_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr(Path, "mkdir", fail)
    told = rf"cannot be written \({os.strerror(code)}\); {remedy}"
    with pytest.raises(WorkspaceError, match=told), locked(tmp_path / ".lock", "busy"):
        pytest.fail("it is held")
    with pytest.raises(WorkspaceError, match=rf"^{tmp_path} {told}"):
        make_folder(tmp_path)
    with pytest.raises(WorkspaceError, match=told):
        Workspace(tmp_path).lock("build-cache")
    with pytest.raises(WorkspaceError, match=told):
        Workspace(tmp_path).salt()


SCRIPT = """
set -e
mount -t tmpfs -o size=16k none "$1"
export PRECT_WORKSPACE="$1/w"
mkdir -p "$PRECT_WORKSPACE/manifests/d" "$PRECT_WORKSPACE/cache"
touch "$PRECT_WORKSPACE/manifests/.a.json.tmp" "$PRECT_WORKSPACE/.manifests.lock"
touch "$PRECT_WORKSPACE/.build-cache.lock" "$PRECT_WORKSPACE/manifests/d/sources.parquet"
dd if=/dev/zero of="$1/fill" bs=4k 2>/dev/null || true
status() { "$2" -m prect "$3" >/dev/null || echo "status $?" >&2; }
status "$@" build-cache
mount -o remount,ro "$1"
status "$@" build-cache
mount -o remount,rw "$1"
status "$@" gc
"""


def test_a_real_file_system_that_is_full_or_read_only(tmp_path: Path) -> None:
    place = tmp_path / "mount"
    place.mkdir()
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(place)]
    if not shutil.which("unshare") or subprocess.run(trial, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs; the injected faults above remain")
    script = ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(place), sys.executable]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=60)
    full, read_only, cleared = done.stderr.split("status 1\n")
    lock = place / "w" / ".build-cache.lock"
    assert f"error: {lock} cannot be written (No space left on device); make room" in full
    assert f"error: {lock} cannot be written (Read-only file system); mount" in read_only
    assert "1 cleared" in cleared
