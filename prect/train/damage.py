"""What cannot be read: its record, and the point at which a run must stop.

Under ``data.on_damage = "quarantine"`` a sample whose store is missing or damaged is replaced by
the next index of the stream that reads. Which one that is depends on the stores alone, so every
world size and every number of workers replaces it by the same. Each rank writes what it met to a
file of its own, and each time that its workers had to be started again::

    runs/<name>/quarantine-rank<R>.jsonl    one object a line, flushed to disk
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from prect.errors import ChunkError, PrectError, StoreError, TrainingError
from prect.train.sampling import Domain
from prect.units import Triple

_Error = TypeVar("_Error", bound=PrectError)
OnDamage = Literal["raise", "quarantine"]
_NAMED_CASES = 10
_FILES = "files are open; allow more (ulimit -n) or lower data.open_stores"
_MEMORY = "memory is in use; lower data.workers, data.batch_size or data.prefetch_mib"
_SPACE = "space is in use on a device; make room there"
_USED_UP = {
    errno.EMFILE: f"as many {_FILES}",
    errno.ENFILE: f"on this machine as many {_FILES}",
    errno.ENOMEM: f"all {_MEMORY}",
    errno.ENOSPC: f"all {_SPACE}",
    errno.EDQUOT: f"all your {_SPACE}",
}
"""Errors that tell of this process and its machine, not of a store."""


class UnreadableError(Exception):
    """A sample could not be read; carries the error of its store. Never leaves `prect.train`."""

    def __init__(self, index: int, row: int, error: StoreError) -> None:
        super().__init__(index, row, error)
        self.index, self.row, self.error = index, row, error


@dataclass(frozen=True)
class Damage:
    """One index of the stream that could not be read."""

    index: int
    dataset: str
    case: str
    level: int | None
    """Level that was read; unknown when the store could not be opened."""
    chunk: Triple | None
    """Inner chunk, (z, y, x); unknown when the whole shard or store is concerned."""
    reason: str
    replaced_by: int
    """The index that was shown in its place."""

    @classmethod
    def of(cls, found: UnreadableError, dataset: str, case: str, replaced_by: int) -> Damage:
        """The record of a failed read."""
        error = found.error
        level, chunk, reason = None, None, str(error)
        if isinstance(error, ChunkError):
            level, chunk, reason = error.level, error.chunk, error.detail
        return cls(found.index, dataset, case, level, chunk, reason, replaced_by)


@dataclass(frozen=True)
class Incident:
    """A damage, and when the run met it."""

    step: int
    """Counted from 1 as in ``metrics.jsonl``; 0 is the evaluation before the first step."""
    domain: Domain
    damage: Damage

    def line(self) -> str:
        """As one line of a record."""
        return json.dumps({"step": self.step, "domain": self.domain, **asdict(self.damage)}) + "\n"


@dataclass(frozen=True)
class Restart:
    """The workers of a rank were started again, because one of them had died."""

    step: int
    """The step that was awaited, counted from 1."""
    restart: str
    """How it died."""

    def line(self) -> str:
        """As one line of a record."""
        return json.dumps(asdict(self)) + "\n"


def _parse(line: str) -> Incident | Restart | None:
    """What a line of a record tells; None for a line that a crash cut off."""
    try:
        fields: dict[str, Any] = json.loads(line)
        step = int(fields.pop("step"))
        if "restart" in fields:
            return Restart(step, **fields)
        domain, chunk = fields.pop("domain"), fields.pop("chunk")
        return Incident(step, domain, Damage(**fields, chunk=tuple(chunk) if chunk else None))
    except (ValueError, KeyError, TypeError):
        return None


def _records(folder: Path) -> Iterator[Path]:
    return folder.glob("quarantine-rank*.jsonl")


def _entries(path: Path) -> list[Incident | Restart]:
    parsed = map(_parse, path.read_text(encoding="utf-8").splitlines())
    return [entry for entry in parsed if entry is not None]


def read_incidents(folder: Path) -> list[Incident]:
    """What all ranks of a run could not read, by step and index."""
    entries = [entry for path in _records(folder) for entry in _entries(path)]
    found = [entry for entry in entries if isinstance(entry, Incident)]
    return sorted(found, key=lambda incident: (incident.step, incident.damage.index))


def read_restarts(folder: Path) -> list[Restart]:
    """When workers of any rank were started again, by step."""
    entries = [entry for path in _records(folder) for entry in _entries(path)]
    found = [entry for entry in entries if isinstance(entry, Restart)]
    return sorted(found, key=lambda restart: restart.step)


class Quarantine:
    """Counts and records the damage that one rank meets; knows that of the others' files.

    Args:
        allowed: distinct cases that may be damaged; one more stops the run. What was met before
            a run was resumed does not count: it may have been repaired, or is met again.
        folder: the run's folder; nothing is written when it is left out.
        rank: number of this process.
    """

    def __init__(self, allowed: int, folder: Path | None = None, rank: int = 0) -> None:
        self.allowed = allowed
        self._folder = folder
        self._rank = rank
        self.cases: set[tuple[str, str]] = set()
        """Data set and case of all that was replaced, in the whole run."""
        self.restarts = 0
        """Times that workers were started again, in the whole run."""
        self._session: set[tuple[str, str]] = set()
        self._begin = -1

    def rewind(self, step: int, world: int) -> None:
        """Drop what was recorded after ``step``: a resumed run meets it again.

        Each rank sees to its own file, and rank 0 to those of ranks that are no more. When all
        have done so, they may `count`.
        """
        self._begin = step
        if self._folder is None:
            return
        for path in _records(self._folder):
            owner = path.stem.removeprefix("quarantine-rank")
            if owner == str(self._rank) or (self._rank == 0 and int(owner) >= world):
                kept = [entry.line() for entry in _entries(path) if entry.step <= step]
                _write_whole(path, "".join(kept))

    def record(self, step: int, damages: Sequence[Damage], domain: Domain = "train") -> None:
        """Write what a step met.

        Raises:
            TrainingError: more cases are damaged than the run allows; names them.
        """
        if not damages:
            return
        cases = {(damage.dataset, damage.case) for damage in damages}
        known = cases <= self._session
        self.cases |= cases
        self._session |= cases
        self._append(Incident(step, domain, damage).line() for damage in damages)
        if not known:
            self.count()
            check_share(self._session, self.allowed)

    def restarted(self, step: int, cause: BaseException | None) -> None:
        """Write that workers are started again for the step that is awaited."""
        self.restarts += 1
        self._append([Restart(step, str(cause)).line()])

    def _append(self, lines: Iterable[str]) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"quarantine-rank{self._rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def count(self) -> None:
        """Count again what the files of all ranks hold."""
        if self._folder is None:
            return
        incidents = read_incidents(self._folder)
        self.cases = _cases(incidents)
        self._session = _cases(entry for entry in incidents if entry.step > self._begin)
        self.restarts = len(read_restarts(self._folder))


def _cases(incidents: Iterable[Incident]) -> set[tuple[str, str]]:
    return {(entry.damage.dataset, entry.damage.case) for entry in incidents}


def bare(error: _Error) -> _Error:
    """An error without those it came from, to be sent to another process.

    They may hold the error itself, and where a library has taught pickle to take them along (that
    of Dask has), it would never come to an end.
    """
    error.__cause__ = error.__context__ = error.__traceback__ = None
    return error


def check_resources(error: BaseException | None) -> None:
    """Refuse to take for damage what comes of a lack of resources.

    Raises:
        TrainingError: the error, or one that it was raised from, says that files, memory or space
            are used up; names the remedy.
    """
    first = error
    while error is not None:
        if isinstance(error, OSError) and error.errno in _USED_UP:
            raise TrainingError(
                f"stores cannot be read: {_USED_UP[error.errno]} ({os.strerror(error.errno)})"
            ) from first
        error = error.__cause__


def check_share(cases: Iterable[tuple[str, str]], allowed: int) -> None:
    """Stop when too much is damaged.

    Raises:
        TrainingError: more than ``allowed`` of these (data set, case); names them.
    """
    named = sorted(f"{dataset}/{case}" for dataset, case in set(cases))
    if len(named) <= allowed:
        return
    more = f" and {len(named) - _NAMED_CASES} more" if len(named) > _NAMED_CASES else ""
    raise TrainingError(
        f"{len(named)} volumes cannot be read, data.max_damaged allows {allowed}: "
        f"{', '.join(named[:_NAMED_CASES])}{more}. To build them again from their sources, run: "
        "prect verify --deep --repair"
    )


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
