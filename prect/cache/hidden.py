"""Hidden names of stores, and deleting folders that other processes may have open.

Beside the store ``<case>.ome.zarr`` there may lie, under names that start with a dot:

::

    .<case>.ome.zarr.tmp-<hex>       what a writer has not committed yet
    .<case>.ome.zarr.tmp-<hex>-old   what a writer has replaced
    .<case>.ome.zarr.removed-<hex>   what a removal is deleting
    .<case>.ome.zarr.broken-<hex>    what a repair has set aside

Whatever else is hidden there was put there by somebody else, and is not touched.
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from prect.workspace import STORE_SUFFIX


class Mark(StrEnum):
    """What a hidden name says of a store."""

    TEMPORARY = "tmp"
    REMOVED = "removed"
    BROKEN = "broken"


_HIDDEN = re.compile(
    rf"\.(?P<case>.+){re.escape(STORE_SUFFIX)}\."
    r"((?P<temporary>tmp)-[0-9a-f]+(-old)?|(?P<other>removed|broken)-[0-9a-f]+)"
)
_IN_USE = (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY)


def hidden_name(store: Path, mark: Mark, end: str = "") -> Path:
    """A new hidden name beside a store, whose name ends in ``.ome.zarr``."""
    return store.with_name(f".{store.name}.{mark}-{secrets.token_hex(6)}{end}")


def parse_hidden(name: str) -> tuple[str, Mark] | None:
    """Case id and mark of a hidden name; ``None`` for any other name."""
    match = _HIDDEN.fullmatch(name)
    if match is None:
        return None
    return match["case"], Mark(match["temporary"] or match["other"])


def is_temporary(path: Path) -> bool:
    """Whether the name is that of a store that a writer has not committed, or has replaced."""
    parsed = parse_hidden(path.name)
    return parsed is not None and parsed[1] is Mark.TEMPORARY


def is_folder(path: Path) -> bool:
    """Whether it is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def delete(path: Path, lock: BinaryIO | None = None) -> bool:
    """Delete a file, a link (never what it points to), or a folder with all that is in it.

    NFS keeps a file that a process has open, under the name ``.nfs...``, until it is closed, and
    the folder with it. So the lock file goes last, and the folder when that is closed.

    Args:
        path: what is to go; nothing happens if it is gone.
        lock: the lock file in that folder, open and locked by this process; it is closed.

    Returns:
        Whether it is gone; not where a process still has a file in it open on NFS.

    Raises:
        OSError: it cannot be deleted.
    """
    try:
        with suppress(FileNotFoundError):  # another process deletes it too
            if not is_folder(path):
                path.unlink()
                return True
            if lock is not None:
                _empty_and_close(path, lock)
            shutil.rmtree(path)
    except OSError as error:
        if error.errno not in _IN_USE:
            raise
        return False
    finally:
        if lock is not None:
            # What could not be written stays in the buffer, and must not be written now.
            with suppress(OSError):
                lock.close()
    return True


def _empty_and_close(folder: Path, lock: BinaryIO) -> None:
    last = folder / Path(lock.name).name
    for path in folder.iterdir():
        if path == last:
            continue
        if is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink()
    last.unlink(missing_ok=True)
    with suppress(OSError):
        lock.close()
