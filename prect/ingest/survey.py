"""Judging every candidate of a data set: from a folder to its source manifest."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from prect.errors import ManifestError, VolumeError
from prect.ingest.checks import check_geometry, check_voxels
from prect.ingest.discover import UNREADABLE, Candidate, Discovery
from prect.ingest.readers import READERS, Header
from prect.ingest.readers.base import finite
from prect.ingest.readers.dicom import DicomReader
from prect.ingest.settings import Limits
from prect.ingest.volume import orientation_of, spacing_of
from prect.manifests.sources import (
    SourceRow,
    Verdict,
    count_codes,
    count_verdicts,
    read_sources,
    write_sources,
)
from prect.workspace import Workspace, check_name


@dataclass(frozen=True)
class Survey:
    """What ingest found in a folder."""

    dataset: str
    root: Path
    rows: tuple[SourceRow, ...]
    other_files: dict[str, int] = field(default_factory=dict)
    """Files that are no image, by suffix; they have no row."""

    def summary(self) -> dict[str, object]:
        """Counts that add up: every candidate has one verdict."""
        return {
            "dataset": self.dataset,
            "source": str(self.root),
            "candidates": len(self.rows),
            "verdicts": count_verdicts(self.rows),
            "codes": count_codes(self.rows),
            "other_files": self.other_files,
        }


_INCOMPLETE = (
    "dicom.incomplete_folder",
    "another DICOM file of the folder cannot be read; slices at the ends may be missing",
)


class Judge:
    """Gives one candidate its row."""

    def __init__(self, dataset: str, root: Path, salt: str, limits: Limits) -> None:
        self.dataset = dataset
        self.root = root
        self.limits = limits
        self._key = hashlib.blake2b(salt.encode()).digest()

    def hashed(self, *parts: str) -> str:
        """Salted BLAKE2b-64 of the parts, 16 hexadecimal digits."""
        text = "\x1f".join(parts).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=self._key, digest_size=8).hexdigest()

    def case_id(self, candidate: Candidate) -> str:
        """Id of a case: stable while the file keeps its place under the root."""
        group = ""
        if candidate.slices:
            group = repr((candidate.slices[0].group, candidate.stack))
        return self.hashed("case", self.dataset, candidate.source, group)

    def row(self, candidate: Candidate) -> SourceRow:
        """Judge one candidate; never raises for what is wrong with its files."""
        try:
            with warnings.catch_warnings():
                # Libraries warn of oddities on every file; the checks decide which of them matter.
                warnings.simplefilter("ignore")
                return self._usable_row(candidate)
        except VolumeError as error:
            return self._row(candidate, Verdict.REJECTED, error.code, error.reason)
        except Exception as error:  # one odd file must not end the survey of 160,000
            reason = f"{type(error).__name__}: {error}"
            return self._row(candidate, Verdict.REJECTED, "file.unexpected", reason)

    def _usable_row(self, candidate: Candidate) -> SourceRow:
        if candidate.format in UNREADABLE:
            raise VolumeError(*UNREADABLE[candidate.format])
        if not all(map(_is_text, (candidate.source, *candidate.members))):
            raise VolumeError("file.name", "the name is not valid UTF-8; rename it")
        reader = READERS[candidate.format]
        if isinstance(reader, DicomReader):
            header = reader.header_of(candidate.slices, self.limits)
        else:
            header = reader.read_header(candidate.paths(self.root), self.limits)
        if candidate.incomplete:
            header = replace(header, warnings=(*header.warnings, _INCOMPLETE))
        finding = check_geometry(header.shape, header.affine, self.limits)
        if finding is None:
            sample, remarks = finite(reader.read_sample(header))
            header = replace(header, warnings=header.warnings + remarks)
            finding = check_voxels(sample, self.limits)
        if finding is not None:
            return self._row(candidate, Verdict.REJECTED, finding.code, finding.reason, header)
        digest = reader.digest(header)
        if header.warnings:
            code, reason = header.warnings[0]
            return self._row(candidate, Verdict.WARNED, code, reason, header, digest)
        return self._row(candidate, Verdict.ACCEPTED, "", "", header, digest)

    def _row(
        self,
        candidate: Candidate,
        verdict: Verdict,
        code: str,
        reason: str,
        header: Header | None = None,
        digest: str = "",
    ) -> SourceRow:
        paths = candidate.paths(self.root) if header is None else header.paths
        status = [path.stat() for path in paths if path.is_file()]
        known: dict[str, object] = {}
        if header is not None:
            known = {
                "shape": header.shape,
                "spacing": tuple(float(s) for s in spacing_of(header.affine)),
                "orientation": orientation_of(header.affine),
                "warnings": tuple(code for code, _ in header.warnings),
            }
        members = candidate.members
        if header is not None and members:
            members = tuple(path.name for path in header.paths)
        return SourceRow(
            dataset=self.dataset,
            case=self.case_id(candidate),
            verdict=verdict.value,
            code=code,
            reason=reason,
            format=candidate.format,
            source=_printable(candidate.source),
            root=str(self.root),
            members=tuple(map(_printable, members)),
            patient=self._patient(candidate, header),
            series=self.hashed("series", header.series_id) if header and header.series_id else "",
            source_digest=digest,
            bytes=sum(s.st_size for s in status),
            mtime_ns=max((s.st_mtime_ns for s in status), default=0),
            **known,  # type: ignore[arg-type]
        )

    def _patient(self, candidate: Candidate, header: Header | None) -> str:
        """Hashed patient id; a file that names no patient is a patient of its own."""
        if header is not None and header.patient_id:
            return self.hashed("patient", self.dataset, header.patient_id)
        return self.hashed("patient", self.dataset, "", candidate.source)


def _is_text(name: str) -> bool:
    """Whether a path is valid UTF-8; the system hands out others with escaped bytes."""
    return name == _printable(name)


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def survey(
    dataset: str,
    root: Path,
    workspace: Workspace,
    *,
    limits: Limits | None = None,
    salt: str | None = None,
    write: bool = True,
    replace_all: bool = False,
    on_row: Callable[[SourceRow], None] | None = None,
) -> Survey:
    """Find and judge every candidate under ``root``, and write the source manifest.

    Args:
        dataset: name of the data set in the workspace.
        root: folder with the foreign files.
        workspace: where the manifest is written.
        limits: limits of the checks; the defaults when left out.
        salt: secret for hashed ids; the workspace's own, made at random, when left out.
        write: ``False`` judges and writes nothing.
        replace_all: allow a manifest that holds none of the volumes of the one before.
        on_row: called after each candidate.

    Raises:
        WorkspaceError: ``root`` is no folder, the name cannot be used, or the salt differs.
        ManifestError: nothing of the earlier manifest was found again.
    """
    check_name(dataset, "dataset")
    root = root.resolve()
    discovery = Discovery(root, excluded=workspace.root.resolve())
    secret = workspace.salt(salt) if write else salt or "dry run"
    judge = Judge(dataset, root, secret, limits or Limits())
    rows = []
    for candidate in discovery:
        row = judge.row(candidate)
        rows.append(row)
        if on_row is not None:
            on_row(row)
    if write:
        if not replace_all:
            _refuse_loss(workspace.sources(dataset), rows, root)
        write_sources(workspace.sources(dataset), rows)
    other = dict(discovery.other_files.most_common())
    return Survey(dataset, root, tuple(rows), other)


def _refuse_loss(path: Path, rows: list[SourceRow], root: Path) -> None:
    """An unmounted disk or a wrong folder must not wipe out what is known of a data set."""
    before = {row.case for row in read_sources(path)} if path.exists() else set()
    if before and not before & {row.case for row in rows}:
        raise ManifestError(
            f"none of the {len(before)} candidates of the earlier manifest lies under {root}; "
            "is the disk mounted and the folder right? To replace the manifest, give --replace"
        )
