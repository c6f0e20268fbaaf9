"""Judging every candidate of a data set: from a folder to its source manifest."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prect.errors import VolumeError
from prect.ingest.checks import Finding, check_geometry, check_voxels
from prect.ingest.discover import Candidate, Discovery
from prect.ingest.readers import READERS, Header
from prect.ingest.readers.dicom import DicomReader
from prect.ingest.settings import Limits
from prect.ingest.volume import orientation_of, spacing_of
from prect.manifests.sources import SourceRow, Verdict, count_codes, count_verdicts, write_sources
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


class Judge:
    """Gives one candidate its row."""

    def __init__(self, dataset: str, root: Path, salt: str, limits: Limits) -> None:
        self.dataset = dataset
        self.root = root
        self.limits = limits
        self._salt = salt.encode()

    def hashed(self, *parts: str) -> str:
        """Salted BLAKE2b-64 of the parts, 16 hexadecimal digits."""
        text = "\x1f".join(parts).encode()
        return hashlib.blake2b(text, key=self._salt[:64], digest_size=8).hexdigest()

    def case_id(self, candidate: Candidate) -> str:
        """Id of a case: stable while the file keeps its place under the root."""
        first = candidate.slices[0] if candidate.slices else None
        group = "" if first is None else repr(first.group)
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
        if candidate.format == "archive":
            raise VolumeError("file.archive", "an archive; unpack it and ingest again")
        if candidate.format == "folder":
            raise VolumeError("file.unreadable_folder", "the folder cannot be listed")
        reader = READERS[candidate.format]
        if isinstance(reader, DicomReader):
            header = reader.header_of(candidate.slices, self.limits)
        else:
            header = reader.read_header(candidate.paths(self.root), self.limits)
        finding = check_geometry(header.shape, header.affine, self.limits)
        if finding is None:
            finding = check_voxels(reader.read_sample(header), self.limits)
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
            source=candidate.source,
            root=str(self.root),
            members=members,
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


def survey(
    dataset: str,
    root: Path,
    workspace: Workspace,
    *,
    limits: Limits | None = None,
    salt: str | None = None,
    write: bool = True,
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
        on_row: called after each candidate.

    Raises:
        WorkspaceError: ``root`` is no folder, the name cannot be used, or the salt differs.
    """
    check_name(dataset, "dataset")
    root = root.resolve()
    discovery = Discovery(root)
    secret = workspace.salt(salt) if write else salt or "dry run"
    judge = Judge(dataset, root, secret, limits or Limits())
    rows = []
    for candidate in discovery:
        row = judge.row(candidate)
        rows.append(row)
        if on_row is not None:
            on_row(row)
    if write:
        write_sources(workspace.sources(dataset), rows)
    other = dict(discovery.other_files.most_common())
    return Survey(dataset, root, tuple(rows), other)


__all__ = ["Finding", "Judge", "Survey", "survey"]
