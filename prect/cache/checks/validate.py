"""The validator of one store: every clause of ``docs/format.md`` that a store can break.

A store that is damaged in whatever way gives faults, never an error: this is what is run
over stores that nobody has looked at for years.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from prect.cache.checks.consistency import contradictions
from prect.cache.checks.faults import Fault
from prect.cache.checks.shards import ShardCheck
from prect.cache.checks.voxels import Expected, VoxelCheck
from prect.cache.format import (
    FORMAT_VERSION,
    SHARD_KEY,
    StoreAttributes,
    array_document,
    document_digest,
    file_digest,
    group_document,
    parse_group,
)
from prect.errors import StoreError, StoreVersionError
from prect.workspace import STORE_SUFFIX

__all__ = ["Fault", "check_store", "read_attributes", "unexpected_files"]

DOCUMENT = "zarr.json"
_LARGEST_DOCUMENT = 2**24
"""Bytes that are read of a ``zarr.json``; the largest that is written has some thousands."""
_VERSION_ENTRY = re.compile(rb'"format_version": *[^\s,}]+')


def check_store(path: Path, *, deep: bool) -> list[Fault]:
    """Hold a store to the format.

    A quick check reads the documents and the index of every shard. It finds whatever has
    happened to these, files that are missing, added, cut or grown, and missing inner chunks.
    A deep one reads every byte once: it finds whatever else has changed, and stores that were
    written wrong. At most one row of inner chunks and the next level are held in memory.

    Args:
        path: folder of the store.
        deep: read and decode the shards as well.

    Returns:
        What is wrong, in the order of the files; empty for a sound store.
    """
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return [Fault("store.group", f"{path.name} is no folder")]
    except FileNotFoundError:
        return [Fault("store.missing", f"there is no {path.name}")]
    except OSError as error:
        return [_unreadable("", error)]
    group = _read_group(path)
    if isinstance(group, Fault):
        return [group]
    attributes, document = group
    faults = [Fault("store.inconsistent", each, DOCUMENT) for each in contradictions(attributes)]
    if faults:  # nothing can be held against these
        return faults
    return [
        *_layout(path, attributes),
        *_group(document, attributes),
        *_levels(path, attributes),
        *_shards(path, attributes, deep=deep),
    ]


def read_attributes(path: Path) -> StoreAttributes | None:
    """Attributes of the store in a folder if its group's ``zarr.json`` is whole, else ``None``."""
    group = _read_group(path)
    return None if isinstance(group, Fault) or contradictions(group[0]) else group[0]


def unexpected_files(path: Path, levels: Collection[str]) -> list[str]:
    """What a store's folder holds beside the store, relative to it, sorted.

    Args:
        path: folder of the store.
        levels: names of the folders of its levels; what a link leads to is not looked at.

    Raises:
        OSError: a folder cannot be listed.
    """
    expected = {DOCUMENT, *levels}
    extra = [entry.name for entry in path.iterdir() if entry.name not in expected]
    for level in levels:
        folder = path / level
        if folder.is_dir() and not folder.is_symlink():
            names = {entry.name for entry in folder.iterdir()} - {DOCUMENT, SHARD_KEY}
            extra += [f"{level}/{name}" for name in names]
    return sorted(extra)


def _read_group(path: Path) -> tuple[StoreAttributes, object] | Fault:
    """Attributes of a store whose group document is whole, and that document."""
    try:
        text = _document(path / DOCUMENT)
    except OSError as error:
        return _file_fault(DOCUMENT, error)
    try:
        attributes = parse_group(text, path.name)
    except StoreVersionError as error:
        if _is_version_1(text):
            detail = "only the format version has changed, and the digest says that it was 1"
            return Fault("store.group_digest", detail, DOCUMENT)
        return Fault("store.version", str(error), DOCUMENT)
    except (StoreError, RecursionError) as error:
        # The model's message has a line for each wrong value; the first says enough.
        return Fault("store.group", " ".join(str(error).splitlines()[:3]), DOCUMENT)
    digest = document_digest(text)
    if digest != attributes.digest:
        detail = f"the digest is {digest}, {attributes.digest} was written"
        return Fault("store.group_digest", detail, DOCUMENT)
    return attributes, json.loads(text)


def _is_version_1(text: bytes) -> bool:
    """Whether a document of another version is one of this version with a damaged number."""
    mended = _VERSION_ENTRY.sub(f'"format_version": {FORMAT_VERSION}'.encode(), text, count=1)
    try:
        return parse_group(mended, "").digest == document_digest(mended)
    except StoreError:
        return False


def _layout(path: Path, attributes: StoreAttributes) -> Iterator[Fault]:
    """The folder's name, and files that do not belong."""
    if path.name != f"{attributes.case}{STORE_SUFFIX}":
        detail = f"the folder is {path.name!r}, the attributes say case {attributes.case!r}"
        yield Fault("store.name", detail)
    levels = [level.path for level in attributes.levels]
    for number, level in enumerate(levels):
        if (path / level).is_symlink():
            yield _file_fault(level, _LinkError(), number)
    try:
        for name in unexpected_files(path, levels):
            yield Fault("store.unexpected_file", f"{name!r} does not belong here", printable(name))
    except OSError as error:
        yield _unreadable("", error)


def _group(document: object, attributes: StoreAttributes) -> Iterator[Fault]:
    """What the group's document holds beside prect's attributes, or in place of them."""
    expected = group_document(attributes)
    if document == expected:
        return
    given = document.get("attributes") if isinstance(document, dict) else None
    if isinstance(given, dict) and given.get("prect") == expected["attributes"]["prect"]:
        yield Fault("store.ome", "its OME-Zarr part is not that of its attributes", DOCUMENT)
    else:
        yield Fault("store.group", "an attribute is missing, or of another type", DOCUMENT)


def _levels(path: Path, attributes: StoreAttributes) -> Iterator[Fault]:
    """The ``zarr.json`` of each level."""
    for number, level in enumerate(attributes.levels):
        file = f"{level.path}/{DOCUMENT}"
        try:
            text = _document(path / file)
        except OSError as error:
            yield _file_fault(file, error, number)
            continue
        digest = file_digest(text)
        if digest != level.array_digest:
            detail = f"the digest is {digest}, {level.array_digest} was written"
            yield Fault("store.level", detail, file, number)
            continue
        expected = array_document(level.shape, level.chunk, level.codec, attributes.intensity)
        if _parsed(text) != expected:
            detail = "it does not describe the array that the attributes do"
            yield Fault("store.level", detail, file, number)


def _shards(path: Path, attributes: StoreAttributes, *, deep: bool) -> Iterator[Fault]:
    expected: Expected | None = None
    for number in range(len(attributes.levels)):
        check = ShardCheck(attributes, number)
        voxels = VoxelCheck(attributes, number, expected)
        expected = None
        try:
            _require_file(path / check.file)
            with (path / check.file).open("rb") as file:
                lengths = check.lengths(file)
                if deep:
                    expected = _read_whole(check, file, lengths, voxels)
        except OSError as error:
            check.faults.append(_file_fault(check.file, error, number))
        yield from check.faults
        yield from voxels.faults


def _read_whole(
    check: ShardCheck, file: BinaryIO, lengths: list[int] | None, voxels: VoxelCheck
) -> Expected | None:
    """Read a shard to its end; returns what the next level must hold, where that is known."""
    for slab in check.slabs(file, lengths):
        if not check.faults:
            voxels.add(slab)
    return None if check.faults else voxels.end()


def _document(path: Path) -> bytes:
    """Content of a ``zarr.json``.

    Raises:
        OSError: it is not there, no file, or cannot be read.
    """
    _require_file(path)
    with path.open("rb") as file:
        return file.read(_LARGEST_DOCUMENT)


def _require_file(path: Path) -> None:
    """Check that there is a file of that name, and no link to one.

    Raises:
        OSError: there is none.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise _LinkError
    # A pipe or a device in place of the file would be waited for without end.
    if not stat.S_ISREG(mode):
        raise FileNotFoundError


class _LinkError(OSError):
    """A link in place of a file or folder: what it leads to may change, or be someone else's."""


def _parsed(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def printable(name: str) -> str:
    """A file's name with what no text can hold spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _file_fault(file: str, error: OSError, level: int | None = None) -> Fault:
    if isinstance(error, _LinkError):
        return Fault("store.link", "it is a symbolic link, a store holds none", file, level)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return Fault("store.file_missing", "it is not there, or no file", file, level)
    return _unreadable(file, error, level)


def _unreadable(file: str, error: OSError, level: int | None = None) -> Fault:
    detail = f"the disk says: {error.strerror or type(error).__name__}"
    return Fault("store.unreadable", detail, file, level)
