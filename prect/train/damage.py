"""What cannot be read: its record, and the point at which a run must stop.

Under ``data.on_damage = "quarantine"`` a sample whose store is missing or damaged is replaced by
the next index of the stream that reads. Which one that is depends on the stores alone, so every
world size and every number of workers replaces it by the same. Each rank writes what it met to a
file of its own::

    runs/<name>/quarantine-rank<R>.jsonl    one object a line, flushed to disk
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prect.errors import ChunkError, StoreError, TrainingError
from prect.units import Triple

Domain = Literal["train", "heldout"]
_NAMED_CASES = 10


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

    @classmethod
    def parse(cls, line: str) -> Incident | None:
        """The incident of a line; None for a line that a crash cut off."""
        try:
            fields: dict[str, Any] = json.loads(line)
            step, domain = int(fields.pop("step")), fields.pop("domain")
            chunk = fields.pop("chunk")
            return cls(step, domain, Damage(**fields, chunk=tuple(chunk) if chunk else None))
        except (ValueError, KeyError, TypeError):
            return None


def read_incidents(folder: Path) -> list[Incident]:
    """What all ranks of a run have recorded, by step and index."""
    found: list[Incident] = []
    for path in sorted(folder.glob("quarantine-rank*.jsonl")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [incident for line in lines if (incident := Incident.parse(line)) is not None]
    return sorted(found, key=lambda incident: (incident.step, incident.damage.index))


class Quarantine:
    """Counts and records the damage that one rank meets; knows that of the others' files.

    Args:
        allowed: distinct cases that may be damaged; one more stops the run.
        folder: the run's folder; nothing is written when it is left out.
        rank: number of this process.
    """

    def __init__(self, allowed: int, folder: Path | None = None, rank: int = 0) -> None:
        self.allowed = allowed
        self._folder = folder
        self._rank = rank
        self.cases: set[tuple[str, str]] = set()
        """Data set and case of all that is known to be damaged."""

    def rewind(self, step: int, world: int) -> None:
        """Drop what was recorded after ``step``: a resumed run meets it again.

        Each rank sees to its own file, and rank 0 to those of ranks that are no more.
        """
        if self._folder is None:
            return
        for path in self._folder.glob("quarantine-rank*.jsonl"):
            owner = path.stem.removeprefix("quarantine-rank")
            if owner == str(self._rank) or (self._rank == 0 and int(owner) >= world):
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                found = [Incident.parse(line) for line in lines]
                kept = [entry.line() for entry in found if entry is not None and entry.step <= step]
                _write_whole(path, "".join(kept))
        self._count()

    def record(self, step: int, damages: Sequence[Damage], domain: Domain = "train") -> None:
        """Write what a step met.

        Raises:
            TrainingError: more cases are damaged than the run allows; names them.
        """
        if not damages:
            return
        incidents = [Incident(step, domain, damage) for damage in damages]
        self.cases |= {(damage.dataset, damage.case) for damage in damages}
        if self._folder is not None:
            self._append(incident.line() for incident in incidents)
            self._count()
        check_share(self.cases, self.allowed)

    def _append(self, lines: Iterable[str]) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"quarantine-rank{self._rank}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    def _count(self) -> None:
        assert self._folder is not None
        damages = [incident.damage for incident in read_incidents(self._folder)]
        self.cases |= {(damage.dataset, damage.case) for damage in damages}


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
