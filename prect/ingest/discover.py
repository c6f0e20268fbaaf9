"""Finding what may be a CT volume under a folder, one folder at a time.

Nothing is opened here and nothing is kept from folder to folder, so that a tree of
millions of files needs no more memory than its largest folder. Files are told by their
names; what a DICOM file is shows itself when its header is read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from prect.errors import ManifestError, WorkspaceError
from prect.ingest.readers import DETACHED, FORMAT_OF, READERS
from prect.manifests.cards import Card, Sort
from prect.manifests.lists import ListEntry, locate

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".7z", ".rar")
_BY_NAME = attrgetter("name")
_COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
_NO_IMAGES = re.compile(
    r"\.(raw|zraw|img|json|txt|csv|tsv|xlsx?|xml|html?|md|pdf|docx?|py|ipynb|sh|ya?ml|toml|log|png|"
    r"jpe?g|gif|bmp|tiff?|svg|mp4|pth?|pkl|pickle|np[yz]|h5|hdf5|mat|parquet|db|sqlite|ds_store|"
    r"tmp|part|crdownload|bvec|bval|stl|obj|vt[kp]|ply)"
)
"""Suffixes of files that hold no CT volume in any format read here; they are only counted."""
_NOT_ENTERED = "cache"
"""Folders of this name hold pickles that other pipelines write beside the data."""
UNREADABLE = {
    "archive": ("file.archive", "an archive; unpack it and ingest again"),
    "folder": ("file.unreadable_folder", "the folder cannot be listed"),
    "link": ("file.broken_link", "a symbolic link that leads nowhere"),
    "pair": ("nifti.pair", "a NIfTI or Analyze pair of .hdr and .img; convert it to .nii"),
    "missing": ("list.missing", "the list names it, and it is not there"),
}
"""Reason code and sentence of each kind of item that no reader takes."""


@dataclass(frozen=True)
class Item:
    """What is looked at as one: an image file, or the files of a folder that may be DICOM."""

    key: str
    """Path relative to the root; that of a folder of DICOM files ends with a slash."""
    kind: str
    """``dicom``, a key of `prect.ingest.readers.READERS` or of `UNREADABLE`."""
    names: tuple[str, ...] = ()
    """DICOM: the files inside the folder."""
    bytes: int = 0
    state: str = ""
    """Digest of names, sizes and times; equal when nothing was changed."""
    split: str = ""
    """Split of the list that names it."""


@dataclass
class Passed:
    """Files that are no candidates, counted so that nothing is silently skipped."""

    other_files: Counter[str] = field(default_factory=Counter)
    """Files that are no image, by suffix."""
    labels: int = 0
    """Images that the card calls labels or segmentations."""
    unlisted: Counter[str] = field(default_factory=Counter)
    """Images outside the patterns of the card, by folder."""
    skipped_folders: list[str] = field(default_factory=list)
    """Folders that were not entered."""


class Discovery:
    """Walks a tree and yields items; counts what it passed over.

    Args:
        root: folder to search; symbolic links are followed, each folder is entered once.
        card: says which files are images.
        excluded: folder not to enter: prect's own workspace.

    Raises:
        WorkspaceError: ``root`` is not a folder.
    """

    def __init__(self, root: Path, card: Card, excluded: Path | None = None) -> None:
        if not root.is_dir():
            raise WorkspaceError(f"{root} is not a folder; --source must name one that exists")
        self.root = root
        self.card = card
        self.excluded = excluded
        self.passed = Passed()
        self._takes_dicom = card.takes_dicom

    def __iter__(self) -> Iterator[Item]:
        # Strings, not paths: joining a Path costs as much as asking the system for its status.
        root, excluded = str(self.root), str(self.excluded)
        seen: set[tuple[int, int]] = set()
        stack = [""]
        while stack:
            folder = stack.pop()
            path = _join(root, folder) if folder else root
            try:
                status = os.stat(path)  # noqa: PTH116
                with os.scandir(path) as entries:
                    listing = _Listing.of(sorted(entries, key=_BY_NAME))
            except OSError:
                yield Item(_key(folder), "folder")
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for name in reversed(listing.folders):
                inner = _join(folder, name)
                if name == _NOT_ENTERED:
                    self.passed.skipped_folders.append(inner)
                elif _join(root, inner) != excluded:
                    stack.append(inner)
            yield from (Item(_join(folder, name), "link") for name in listing.broken)
            yield from self.items_of(folder, listing)

    def items_of(self, folder: str, listing: _Listing) -> Iterator[Item]:
        """The items of one folder that has been listed."""
        rest: list[_File] = []
        for file in listing.files:
            suffix = _suffix(file.name)
            kind = FORMAT_OF.get(suffix) or _kind_by_name(file.name, suffix, listing)
            key = _join(folder, file.name)
            if file.name.startswith("._"):
                self.passed.other_files["._*"] += 1  # what macOS leaves beside copied files
            elif kind is not None and kind in READERS:
                if self._wanted(key, folder):
                    parts = listing.beside(file.name) if suffix in DETACHED else [file]
                    yield Item(key, kind, bytes=file.bytes, state=_state(parts))
            elif kind is not None:
                yield Item(key, kind, state=_state([file]))
            elif _NO_IMAGES.fullmatch(suffix):
                self.passed.other_files[suffix] += 1
            else:
                rest.append(file)
        if rest:
            yield from self._dicom(folder, rest)

    def _wanted(self, key: str, folder: str) -> bool:
        sort = self.card.sort_of(key)
        if sort is Sort.LABEL:
            self.passed.labels += 1
        elif sort is Sort.UNLISTED:
            self.passed.unlisted[_key(folder)] += 1
        return sort in (Sort.IMAGE, Sort.EXCLUDED)

    def _dicom(self, folder: str, files: list[_File]) -> Iterator[Item]:
        if not self._takes_dicom:
            # Without DICOM in the card these are files of unknown kind, as suffixes are.
            for file in files:
                self.passed.other_files[_suffix(file.name) or file.name] += 1
            return
        yield Item(
            _key(folder),
            "dicom",
            tuple(file.name for file in files),
            sum(file.bytes for file in files),
            _state(files),
        )


class _File(NamedTuple):
    name: str
    bytes: int
    mtime_ns: int


@dataclass
class _Listing:
    """What a folder holds, by name."""

    folders: list[str] = field(default_factory=list)
    files: list[_File] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Symbolic links that lead nowhere."""

    @cached_property
    def _by_stem(self) -> dict[str, list[_File]]:
        stems: dict[str, list[_File]] = {}
        for file in self.files:
            stems.setdefault(file.name.partition(".")[0], []).append(file)
        return stems

    def beside(self, header: str) -> list[_File]:
        """The files whose name begins as that of a detached header: its voxels are among them.

        All of the folder's where there is no other, since the voxels have another name then.
        """
        alike = self._by_stem[header.partition(".")[0]]
        return alike if len(alike) > 1 else self.files

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the files."""
        return frozenset(file.name for file in self.files)

    @classmethod
    def of(cls, entries: Iterable[os.DirEntry[str]]) -> _Listing:
        listing = cls()
        for entry in entries:
            try:
                if entry.is_dir():
                    listing.folders.append(entry.name)
                elif entry.is_file():
                    status = entry.stat()
                    listing.files.append(_File(entry.name, status.st_size, status.st_mtime_ns))
                elif entry.is_symlink():
                    listing.broken.append(entry.name)
            except OSError:  # a link that leads to itself
                listing.broken.append(entry.name)
        return listing


def item_at(root: Path, card: Card, key: str) -> Item | None:
    """The item of that key as it is now; ``None`` when it is gone."""
    folder = key.rstrip("/") if key.endswith("/") else key.rpartition("/")[0]
    folder = "" if folder == "." else folder
    try:
        with os.scandir(root / folder) as entries:
            listing = _Listing.of(sorted(entries, key=_BY_NAME))
    except OSError:
        return None
    found = Discovery(root, card).items_of(folder, listing)
    links = (Item(_join(folder, name), "link") for name in listing.broken)
    return next((item for item in (*found, *links) if item.key == key), None)


class ListedItems:
    """The items that a list of volumes names, and no others.

    Args:
        root: folder that the paths are relative to.
        card: finds the file of a bare case name.
        entries: from `prect.manifests.lists.read_list`.
        list_folder: folder of the list; paths may be relative to it, too.
    """

    def __init__(
        self, root: Path, card: Card, entries: Iterable[ListEntry], list_folder: Path
    ) -> None:
        self.root = root
        self.card = card
        self.entries = tuple(entries)
        self.list_folder = list_folder
        self.passed = Passed()

    def __iter__(self) -> Iterator[Item]:
        """The items, each once; DICOM files of one folder are one item.

        Raises:
            ManifestError: an image is listed under two splits.
        """
        items: dict[str, Item] = {}
        for entry in self.entries:
            item = self._item(entry)
            before = items.setdefault(item.key, item)
            if before.split != item.split:
                raise ManifestError(
                    f"the list names {entry.path} under {before.split!r} and {item.split!r}, and "
                    "a volume can have one split only; take it out of one of them"
                )
            if item.kind == "dicom":
                names = tuple(sorted({*before.names, *item.names}))
                items[item.key] = replace(before, names=names)
        for item in items.values():
            yield self._with_state(item) if item.kind == "dicom" else item

    def _item(self, entry: ListEntry) -> Item:
        try:
            path = locate(entry, self.root, self.list_folder, self.card)
            if path is None or not path.is_relative_to(self.root):
                return Item(entry.path, "missing", split=entry.split)
            key = path.relative_to(self.root).as_posix()
            if path.is_dir():
                names = tuple(other.name for other in path.iterdir() if other.is_file())
                return Item(_key(key), "dicom", names, split=entry.split)
            return self._file(path, key, entry.split)
        except OSError:  # a name that no file can have, or a folder that cannot be listed
            return Item(entry.path, "missing", split=entry.split)

    def _file(self, path: Path, key: str, split: str) -> Item:
        suffix = _suffix(path.name)
        kind = FORMAT_OF.get(suffix)
        if kind is None:
            return Item(_key(key.rpartition("/")[0]), "dicom", (path.name,), split=split)
        listing = _Listing([], [_file(path)])
        if suffix in DETACHED:
            listing = _Listing([], [_file(o) for o in sorted(path.parent.iterdir()) if o.is_file()])
        size = path.stat().st_size
        return Item(key, kind, (), size, _state(listing.beside(path.name)), split)

    def _with_state(self, item: Item) -> Item:
        files = [_file(self.root / item.key / name) for name in item.names]
        return replace(item, bytes=sum(file.bytes for file in files), state=_state(files))


def _file(path: Path) -> _File:
    status = path.stat()
    return _File(path.name, status.st_size, status.st_mtime_ns)


def _state(files: Iterable[_File]) -> str:
    text = "\x1e".join([f"{name}\x1f{size}\x1f{time}" for name, size, time in files])
    return hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _key(folder: str) -> str:
    """The key of a folder; the root's own is ``./``."""
    return f"{folder or '.'}/"


def _kind_by_name(name: str, suffix: str, listing: _Listing) -> str | None:
    if suffix in _ARCHIVES:
        return "archive"
    if suffix == ".hdr":
        return "pair" if name[: -len(".hdr")] + ".img" in listing.names else None
    return None


def _suffix(name: str) -> str:
    lower = name.lower()
    if lower.endswith(_COMPRESSED):
        for compound in (".nii.gz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"):
            if lower.endswith(compound):
                return compound
    stem, dot, suffix = lower.rpartition(".")
    return dot + suffix if stem or lower == ".ds_store" else ""
