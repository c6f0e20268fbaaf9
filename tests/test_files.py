"""Locks: who holds one is told, and who only looks does not stand in the way."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from prect.errors import WorkspaceError
from prect.files import PATIENCE, locked, take_lock


def test_the_holder_is_told_and_forgotten(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    holder = f"process {os.getpid()} on host {socket.gethostname()}"
    with locked(lock, "busy"):
        started = time.monotonic()
        with (
            pytest.raises(WorkspaceError, match=f"^held by {holder}$"),
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


def test_an_error_in_the_block_releases_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with pytest.raises(RuntimeError), locked(lock, "busy"):
        raise RuntimeError
    assert lock.read_text() == ""
    with locked(lock, "busy"):
        pass
