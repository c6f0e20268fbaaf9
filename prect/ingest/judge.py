"""Judging one item: from its files to rows of the source manifest."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from prect.errors import VolumeError
from prect.ingest.checks import geometry_findings, voxel_findings
from prect.ingest.discover import UNREADABLE, Item
from prect.ingest.findings import (
    Finding,
    failed,
    first_rejection,
    of_error,
    warnings_of,
)
from prect.ingest.fingerprint import sketch, voxel_digest
from prect.ingest.readers import READERS, Header
from prect.ingest.readers.dicom import DicomReader, Slice, group_slices, read_slices
from prect.ingest.rescale import Rescale, rescaled, rules_digest
from prect.ingest.volume import Volume, orientation_of, spacing_of
from prect.manifests.cards import Card
from prect.manifests.codes import Effect
from prect.manifests.sources import SourceRow, Verdict

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima", "")
"""Names whose content may be DICOM without the magic word of part 10."""
_PASSING = {"file.unreadable", "file.unexpected", "file.worker_died", "dicom.undecodable"}
"""What may be the fault of the disk, the memory or a missing decoder: the item is never taken for
unchanged, so that the next ingest looks at it again."""
_INCOMPLETE = failed(
    "dicom.incomplete_folder",
    "another DICOM file of the folder cannot be read; slices at the ends may be missing",
)


class _Ids(TypedDict):
    patient: str
    study: str
    series: str


@dataclass(frozen=True)
class Candidate:
    """What may be one CT volume."""

    format: str
    """A key of `READERS`, or of `UNREADABLE`."""
    source: str
    """Path of the file, or of the folder that holds the series, relative to the root."""
    members: tuple[str, ...] = ()
    """DICOM: file names inside ``source``; empty when ``source`` is the only file."""
    slices: tuple[Slice, ...] = ()
    """DICOM: the headers, already read."""
    number: int = 0
    """DICOM: place among the volumes of its series in this folder."""
    incomplete: bool = False
    """DICOM: a file of the same folder could not be read, so slices may be missing."""
    error: VolumeError | None = None
    """Why no reader takes it."""

    def paths(self, root: Path) -> tuple[Path, ...]:
        """The files of the candidate."""
        base = root / self.source
        return tuple(base / member for member in self.members) or (base,)


@dataclass
class Examination:
    """All that judging a candidate brought to light."""

    findings: list[Finding] = field(default_factory=list)
    """Every check made, passed ones too, in order; the first that rejects decides."""
    header: Header | None = None
    volume: Volume | None = None
    """In HU; ``None`` when it was rejected before its voxels were read."""
    slope: float = 1.0
    intercept: float = 0.0
    voxel_digest: str = ""
    sketch: bytes = b""

    @property
    def rejection(self) -> Finding | None:
        """The check that decided against the candidate."""
        return first_rejection(tuple(self.findings))


@dataclass
class Judged:
    """What a batch of items came to."""

    rows: list[SourceRow] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    """Files without a known name that turned out to be no DICOM, by suffix."""


class Judge:
    """Gives items their rows; runs on a worker, so it carries only what that needs.

    Args:
        card: limits, patterns and corrections.
        root: folder that sources are relative to.
        salt: secret for hashed ids.

    Raises:
        ConfigError: the card names a table that cannot be read.
    """

    def __init__(self, card: Card, root: Path, salt: str) -> None:
        self.card = card
        self.root = root
        self.rules = rules_digest(card, root)
        self._key = hashlib.blake2b(salt.encode()).digest()

    @cached_property
    def _rescale(self) -> Rescale:
        return Rescale(self.card, self.root)

    def judge(self, items: Sequence[Item]) -> Judged:
        """The rows of a batch of items; never raises for what is wrong with their files.

        Raises:
            ConfigError: the card names a table that cannot be read.
        """
        judged = Judged()
        self._rescale  # noqa: B018 - read before the first file, since its faults are the card's
        with warnings.catch_warnings():
            # Libraries warn of oddities on every file; the checks decide which of them matter.
            warnings.simplefilter("ignore")
            for item in items:
                candidates = self.candidates(item, judged.other_files)
                rows = [self.row(item, candidate) for candidate in candidates]
                if any(row.judged_code in _PASSING for row in rows):
                    rows = [replace(row, state="") for row in rows]
                judged.rows += rows
        return judged

    def died(self, item: Item) -> SourceRow:
        """The row of an item that killed the process which looked at it."""
        error = VolumeError("file.worker_died", "the process that read it died; see the remedy")
        candidate = Candidate("unread", item.key.rstrip("/"), error=error)
        return replace(self.row(item, candidate), state="")  # never taken for unchanged

    def candidates(self, item: Item, other_files: Counter[str]) -> Iterator[Candidate]:
        """What the item holds; counts files that turn out to be no image."""
        if item.kind in UNREADABLE:
            yield Candidate(item.kind, item.key, error=VolumeError(*UNREADABLE[item.kind]))
        elif (exclusion := self.card.exclusion(item.key)) is not None:
            error = VolumeError("card.excluded", exclusion.reason)
            yield Candidate(item.kind, item.key.rstrip("/"), error=error)
        elif item.kind == "dicom":
            yield from self._dicom(item, other_files)
        else:
            yield Candidate(item.kind, item.key)

    def _dicom(self, item: Item, other_files: Counter[str]) -> Iterator[Candidate]:
        folder = item.key.rstrip("/")
        slices: list[Slice] = []
        incomplete = False
        for name in item.names:
            path = self.root / folder / name
            try:
                found = _dicom_slices(path)
            except (VolumeError, OSError) as error:
                incomplete = True
                yield Candidate(
                    "dicom", _inside(folder, name), error=_as_volume_error(error), incomplete=True
                )
                continue
            slices += found
            if not found:
                other_files[path.suffix.lower() or name] += 1
        numbers: Counter[str] = Counter()
        for group in group_slices(slices):
            series = group[0].series_uid
            names = tuple(dict.fromkeys(part.path.name for part in group))
            alone = len(names) == 1
            source = _inside(folder, names[0]) if alone else folder
            members = () if alone else names
            yield Candidate("dicom", source, members, group, numbers[series], incomplete)
            numbers[series] += 1

    def examine(self, candidate: Candidate) -> Examination:
        """Make every check, as far as the files can be read; never raises for what is wrong."""
        examination = Examination()
        try:
            self._examine(candidate, examination)
        except VolumeError as error:
            examination.findings.append(of_error(error))
        except OSError as error:  # the message of the system names the file, its number does not
            reason = f"cannot be read: {error.strerror or type(error).__name__}"
            examination.findings.append(failed("file.unreadable", reason))
        except Exception as error:  # one odd file must not end the survey of 160,000
            # A library's message may quote the header, so only its kind is told.
            reason = f"reading it fails with {type(error).__name__}"
            examination.findings.append(failed("file.unexpected", reason))
        return examination

    def _examine(self, candidate: Candidate, examination: Examination) -> None:
        if candidate.error is not None:
            raise candidate.error
        if not all(map(_is_text, (candidate.source, *candidate.members))):
            raise VolumeError("file.name", "the name is not valid UTF-8; rename it")
        line = self._rescale.of(candidate.source)
        reader = READERS[candidate.format]
        if isinstance(reader, DicomReader):
            header = reader.header_of(candidate.slices, self.card.limits)
        else:
            header = reader.read_header(candidate.paths(self.root), self.card.limits)
        if candidate.incomplete:
            header = replace(header, findings=(*header.findings, _INCOMPLETE))
        examination.header = header
        examination.findings += header.findings
        examination.findings += geometry_findings(header, self.card.limits)
        # Read even when that rejected it: copies of a test set are to be found all the same.
        volume = reader.read(header)
        examination.findings += volume.findings[len(header.findings) :]
        if line is not None:
            examination.slope, examination.intercept = line
            volume = rescaled(volume, *line)
            formula = f"HU = {line[0]:g} * value {line[1]:+g}, by the card"
            examination.findings.append(failed("card.rescaled", formula, formula))
        examination.findings += voxel_findings(volume, self.card.limits)
        examination.volume = volume
        examination.voxel_digest = voxel_digest(volume)
        examination.sketch = sketch(volume)

    def row(self, item: Item, candidate: Candidate) -> SourceRow:
        """The row of one candidate."""
        examination = self.examine(candidate)
        remarks = warnings_of(tuple(examination.findings))
        decisive = examination.rejection or _exclusion(examination) or next(iter(remarks), None)
        row = replace(
            self._bare_row(item, candidate, examination.header),
            judged=_verdict(decisive).value,
            judged_code=decisive.code if decisive else "",
            judged_reason=decisive.reason if decisive else "",
            slope=examination.slope,
            intercept=examination.intercept,
            warnings=tuple(finding.code for finding in remarks),
            voxel_digest=examination.voxel_digest,
            sketch=examination.sketch,
        )
        if examination.volume is None:
            return row
        return replace(row, source_digest=examination.volume.source_digest)

    def _bare_row(self, item: Item, candidate: Candidate, header: Header | None) -> SourceRow:
        """What the files and their headers say, without a verdict."""
        members = candidate.members
        paths = candidate.paths(self.root)
        if header is not None:
            paths = header.paths
            members = tuple(path.name for path in paths) if members else ()
        status = [found for path in paths if (found := _status(path)) is not None]
        row = SourceRow(
            dataset=self.card.name,
            case=self.case_id(candidate),
            verdict="",
            code="",
            reason="",
            format=candidate.format,
            source=_printable(candidate.source),
            root=str(self.root),
            members=tuple(map(_printable, members)),
            split=item.split,
            bytes=sum(s.st_size for s in status),
            mtime_ns=max((s.st_mtime_ns for s in status), default=0),
            item=_printable(item.key),
            state=item.state,
            rules=self.rules,
            **self._ids(candidate, header),
        )
        if header is None:
            return row
        i, j, k = (float(s) for s in spacing_of(header.affine))
        return replace(
            row,
            stack=self.hashed("stack", header.stack) if header.stack else "",
            kind=header.kind,
            shape=header.shape,
            spacing=(i, j, k),
            orientation=orientation_of(header.affine),
        )

    def hashed(self, *parts: str) -> str:
        """Salted BLAKE2b-64 of the parts, 16 hexadecimal digits."""
        text = "\x1f".join(parts).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=self._key, digest_size=8).hexdigest()

    def case_id(self, candidate: Candidate) -> str:
        """Id of a case: stable while the file keeps its place under the root."""
        part = ""
        if candidate.slices:
            part = f"{candidate.slices[0].series_uid}\x1f{candidate.number}"
        return self.hashed("case", self.card.name, candidate.source, part)

    def _ids(self, candidate: Candidate, header: Header | None) -> _Ids:
        """Hashed ids; what names no patient belongs to the patient of its study, or to its own."""
        name, source = self.card.name, candidate.source
        patient, study, series = "", "", ""
        if header is not None:
            patient, study, series = header.patient_id, header.study_id, header.series_id
        elif candidate.slices:
            first = candidate.slices[0]
            patient, study, series = first.patient_id, first.study_uid, first.series_uid
        patient = self.card.patient_of(source) or patient
        series = self.card.series_of(source) or series
        own = (patient,) if patient else ("", study) if study else ("", "", source)
        return {
            "patient": self.hashed("patient", name, *own),
            "study": self.hashed("study", study) if study else "",
            "series": self.hashed("series", series) if series else "",
        }


def _verdict(decisive: Finding | None) -> Verdict:
    if decisive is None:
        return Verdict.ACCEPTED
    return {
        Effect.REJECT: Verdict.REJECTED,
        Effect.EXCLUDE: Verdict.EXCLUDED,
        Effect.WARN: Verdict.WARNED,
    }[decisive.effect]


def _exclusion(examination: Examination) -> Finding | None:
    excluding = (f for f in examination.findings if not f.passed and f.effect is Effect.EXCLUDE)
    return next(excluding, None)


def _dicom_slices(path: Path) -> tuple[Slice, ...]:
    """The headers when the content is DICOM, whatever the name says.

    Raises:
        VolumeError: ``dicom.damaged_header``, named DICOM and none, or empty, as a download that
            failed leaves them.
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        start = file.read(132)
    named = suffix in _DICOM_SUFFIXES or suffix[1:].isdigit()
    if not named and start[128:] != b"DICM":
        return ()
    slices = read_slices(path)
    if not slices and (not any(start) or (suffix in _DICOM_SUFFIXES[:-1] and not _is_dicom(start))):
        raise VolumeError("dicom.damaged_header", "it holds no DICOM, or nothing at all")
    return slices


def _is_dicom(start: bytes) -> bool:
    return start[128:] == b"DICM"


def _as_volume_error(error: VolumeError | OSError) -> VolumeError:
    if isinstance(error, VolumeError):
        return error
    return VolumeError("file.unreadable", f"cannot be read: {error.strerror or 'unknown cause'}")


def _inside(folder: str, name: str) -> str:
    return name if folder in ("", ".") else f"{folder}/{name}"


def _status(path: Path) -> os.stat_result | None:
    """Size and times of a file; ``None`` for a folder, and where the verdict is that it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _is_text(name: str) -> bool:
    """Whether a path is valid UTF-8; the system hands out others with escaped bytes."""
    return name == _printable(name)


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
