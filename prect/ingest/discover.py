"""Finding candidate volumes under a folder, one folder at a time.

Nothing is kept from folder to folder, so that a tree of millions of files needs no more
memory than its largest folder. DICOM files are grouped within their folder, by series
and then by what all slices of a volume share.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prect.errors import WorkspaceError
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
_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")
"""Names whose content may be DICOM without the magic word of part 10."""


@dataclass(frozen=True)
class Candidate:
    """What may be one CT volume."""

    format: str
    """A key of `prect.ingest.readers.READERS`; ``archive`` or ``folder`` where there is none."""
    source: str
    """Path of the file, or of the folder that holds the series, relative to the root."""
    members: tuple[str, ...] = ()
    """DICOM: file names inside ``source``; empty when ``source`` is the only file."""
    slices: tuple[Slice, ...] = field(default=(), compare=False, repr=False)
    """DICOM: the headers, already read."""

    def paths(self, root: Path) -> tuple[Path, ...]:
        """The files of the candidate."""
        base = root / self.source
        return tuple(base / member for member in self.members) or (base,)


class Discovery:
    """Walks a tree and yields candidates; counts what it passed over.

    Args:
        root: folder to search; symbolic links are followed, each folder is entered once.

    Raises:
        WorkspaceError: ``root`` is not a folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise WorkspaceError(f"{root} is not a folder; --source must name one that exists")
        self.root = root
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
            subfolders = [Path(entry.path) for entry in entries if entry.is_dir()]
            stack.extend(reversed(subfolders))
            files = [Path(entry.path) for entry in entries if entry.is_file()]
            yield from self._candidates(folder, files)

    def _candidates(self, folder: Path, files: list[Path]) -> Iterator[Candidate]:
        groups: dict[tuple[object, ...], list[Slice]] = {}
        for path in files:
            suffix = _suffix(path)
            if suffix in _SUFFIXES:
                yield Candidate(_SUFFIXES[suffix], self._relative(path))
            elif suffix in _ARCHIVES:
                yield Candidate("archive", self._relative(path))
            elif (found := _dicom_slice(path, suffix)) is not None:
                groups.setdefault(found.group, []).append(found)
            else:
                self.other_files[suffix or path.name] += 1
        for slices in groups.values():
            yield self._series(folder, slices)

    def _series(self, folder: Path, slices: list[Slice]) -> Candidate:
        if len(slices) == 1:
            return Candidate("dicom", self._relative(slices[0].path), (), tuple(slices))
        members = tuple(s.path.name for s in slices)
        return Candidate("dicom", self._relative(folder), members, tuple(slices))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for compound in (".nii.gz", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst"):
        if name.endswith(compound):
            return compound
    return path.suffix.lower()


def _dicom_slice(path: Path, suffix: str) -> Slice | None:
    """The header when the content is DICOM, whatever the name says."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return None
    if start[128:] == b"DICM" or suffix in _DICOM_SUFFIXES or suffix[1:].isdigit():
        return read_slice(path)
    return None
