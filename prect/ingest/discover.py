"""Finding candidate volumes under a folder, one folder at a time.

Nothing is kept from folder to folder, so that a tree of millions of files needs no more
memory than its largest folder. DICOM files are grouped within their folder, by series
and then by what all slices of a volume share.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prect.errors import VolumeError, WorkspaceError
from prect.ingest.readers.dicom import Slice, read_slice

_SUFFIXES = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".mha": "metaimage",
    ".mhd": "metaimage",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
}
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".7z", ".rar")
UNREADABLE = {
    "archive": ("file.archive", "an archive; unpack it and ingest again"),
    "folder": ("file.unreadable_folder", "the folder cannot be listed"),
    "link": ("file.broken_link", "a symbolic link that leads nowhere"),
    "unreadable": ("file.unreadable", "the file cannot be read"),
    "damaged": ("dicom.damaged_header", "a DICOM file whose header is damaged"),
    "pair": ("nifti.pair", "a NIfTI or Analyze pair of .hdr and .img; convert it to .nii"),
}
"""Reason code and sentence of each kind of candidate that no reader takes."""
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")
"""Names whose content may be DICOM without the magic word of part 10."""


@dataclass(frozen=True)
class Candidate:
    """What may be one CT volume."""

    format: str
    """A key of `prect.ingest.readers.READERS`; else why there is none: a key of `UNREADABLE`."""
    source: str
    """Path of the file, or of the folder that holds the series, relative to the root."""
    members: tuple[str, ...] = ()
    """DICOM: file names inside ``source``; empty when ``source`` is the only file."""
    slices: tuple[Slice, ...] = field(default=(), compare=False, repr=False)
    """DICOM: the headers, already read."""
    stack: int = 0
    """DICOM: number among the volumes of the folder that differ in orientation alone."""
    incomplete: bool = False
    """DICOM: a file of the same folder could not be read, so slices may be missing."""

    def paths(self, root: Path) -> tuple[Path, ...]:
        """The files of the candidate."""
        base = root / self.source
        return tuple(base / member for member in self.members) or (base,)


class Discovery:
    """Walks a tree and yields candidates; counts what it passed over.

    Args:
        root: folder to search; symbolic links are followed, each folder is entered once.
        excluded: folder not to enter: prect's own workspace.

    Raises:
        WorkspaceError: ``root`` is not a folder.
    """

    def __init__(self, root: Path, excluded: Path | None = None) -> None:
        if not root.is_dir():
            raise WorkspaceError(f"{root} is not a folder; --source must name one that exists")
        self.root = root
        self.excluded = excluded
        self.other_files: Counter[str] = Counter()
        """Files that are no image, by suffix."""

    def __iter__(self) -> Iterator[Candidate]:
        seen: set[tuple[int, int]] = set()
        stack = [self.root]
        while stack:
            folder = stack.pop()
            try:
                status = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                yield Candidate("folder", self._relative(folder))
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            folders, files, broken = _sorted_out(entries)
            stack.extend(path for path in reversed(folders) if path != self.excluded)
            for path in broken:
                yield Candidate("link", self._relative(path))
            yield from self._candidates(folder, files)

    def _candidates(self, folder: Path, files: list[Path]) -> Iterator[Candidate]:
        slices: list[Slice] = []
        incomplete = False
        for path in files:
            suffix = _suffix(path)
            kind = _SUFFIXES.get(suffix) or _kind_by_name(path, suffix)
            if kind is None:
                try:
                    found = _dicom_slice(path, suffix)
                except (VolumeError, OSError) as error:
                    kind = "damaged" if isinstance(error, VolumeError) else "unreadable"
                    incomplete = True
                else:
                    if found is None:
                        self.other_files[suffix or path.name] += 1
                    else:
                        slices.append(found)
            if kind is not None:
                yield Candidate(kind, self._relative(path))
        for stacks in _volumes(slices):
            for number, stack in enumerate(stacks):
                alone = len(stack) == 1
                yield Candidate(
                    "dicom",
                    self._relative(stack[0].path if alone else folder),
                    () if alone else tuple(part.path.name for part in stack),
                    tuple(stack),
                    number,
                    incomplete,
                )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _sorted_out(
    entries: list[os.DirEntry[str]],
) -> tuple[list[Path], list[Path], list[Path]]:
    """Folders, files, and links that lead nowhere."""
    folders, files, broken = [], [], []
    for entry in entries:
        path = Path(entry.path)
        try:
            if entry.is_dir():
                folders.append(path)
            elif entry.is_file():
                files.append(path)
            elif entry.is_symlink():
                broken.append(path)
        except OSError:  # a link that leads to itself
            broken.append(path)
    return folders, files, broken


def _volumes(slices: list[Slice]) -> Iterable[list[list[Slice]]]:
    """Slices by what a volume shares, and in there by stacks of parallel ones."""
    groups: dict[tuple[object, ...], list[list[Slice]]] = {}
    for part in slices:
        stacks = groups.setdefault(part.group, [])
        for stack in stacks:
            if part.parallel_to(stack[0]):
                stack.append(part)
                break
        else:
            stacks.append([part])
    return groups.values()


def _kind_by_name(path: Path, suffix: str) -> str | None:
    if suffix in _ARCHIVES:
        return "archive"
    if suffix == ".hdr" and path.with_suffix(".img").exists():
        return "pair"
    return None


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for compound in (".nii.gz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"):
        if name.endswith(compound):
            return compound
    return path.suffix.lower()


def _dicom_slice(path: Path, suffix: str) -> Slice | None:
    """The header when the content is DICOM, whatever the name says."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM" or suffix in _DICOM_SUFFIXES or suffix[1:].isdigit():
        return read_slice(path)
    return None
