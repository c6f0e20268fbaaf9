"""What the folders of runs tell: which run is where, what it has measured, what happened to it.

Only reads, and needs no torch, so that a login node answers at once. A run may be writing at the
same time, may have been killed in the middle of a line, and may be of an older release: what a
folder does not tell is None.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prect.errors import TrainingError
from prect.files import is_locked
from prect.train.damage import read_incidents, read_restarts
from prect.train.heldout import Floor, Heldout, heldout_from
from prect.train.report.lines import LineLog
from prect.train.verdict import has_learned
from prect.workspace import Workspace

RunState = Literal["running", "finished", "stopped", "failed", "killed", "never began"]
Line = Mapping[str, Any]

_CHECKPOINT = re.compile(r"step-(\d{8})(\.pt)?")
_TIMING = re.compile(r"timing-rank(\d+)\.jsonl")
_RECENT = 20
"""Lines that an estimate of the speed goes by."""
_NAMED_RUNS = 20


@dataclass(frozen=True)
class RunInfo:
    """A run in short."""

    name: str
    folder: Path
    state: RunState
    reason: str | None
    """Why it stopped or failed."""
    step: int
    """Optimiser steps done."""
    max_steps: int | None
    loss: float | None
    """The newest of the training."""
    heldout: Mapping[str, float]
    """Newest held-out figures by the names of `Heldout`, with ``floor`` and ``step``; may be
    empty."""
    learned: bool | None
    """Whether the newest held-out figures are clearly better than untrained; None: not known."""
    volumes_per_s: float | None
    """Of all processes together."""
    wait_share: float | None
    """Share of time in which training processes wait for data, in [0, 1]."""
    incidents: Mapping[str, int]
    """How many there were, by kind."""
    checkpoints: Sequence[int]
    """Steps of those committed, ascending."""
    updated: datetime | None
    """When it wrote last, UTC."""
    seconds_left: float | None
    """At its recent speed, without evaluations and checkpoints; for a run that is running."""


@dataclass(frozen=True)
class Happening:
    """An incident of a run."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class RunRecord:
    """All that a run has written of itself."""

    info: RunInfo
    training: Sequence[Line]
    """Lines of ``metrics.jsonl`` about the training, in order of steps."""
    evaluations: Sequence[Line]
    """Those about held-out patients."""
    incidents: Sequence[Happening]
    """In order of steps, with what could not be read."""
    timings: Mapping[int, Sequence[Line]]
    """Lines of ``timing-rank<R>.jsonl`` by rank."""


def list_runs(workspace: Workspace) -> list[RunInfo]:
    """All runs of a workspace, the one that wrote last first."""
    infos = [read_run(folder).info for folder in _folders(workspace)]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(infos, key=lambda info: (info.updated or never, info.name), reverse=True)


def find_run(workspace: Workspace, text: str) -> Path:
    """The folder of the run of that name, or else that path.

    Raises:
        TrainingError: there is no such run; names those that there are, the nearest first.
    """
    folders = _folders(workspace)
    for folder in folders:
        if folder.name == text:
            return folder
    path = Path(text)
    if len(path.parts) > 1 and path.is_dir():
        return path
    if not folders:
        raise TrainingError(f"there is no run {text!r}, and no other in {workspace.runs}")
    names = sorted(
        (folder.name for folder in folders),
        key=lambda name: difflib.SequenceMatcher(None, text.lower(), name.lower()).ratio(),
        reverse=True,
    )
    more = f" and {len(names) - _NAMED_RUNS} more" if len(names) > _NAMED_RUNS else ""
    raise TrainingError(
        f"there is no run {text!r} in {workspace.runs}; there are {', '.join(names[:_NAMED_RUNS])}"
        + more
    )


def read_run(folder: Path) -> RunRecord:
    """Everything in the folder of a run, as far as it is there."""
    lines = LineLog(folder / "metrics.jsonl").read()
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "heldout_total" in line]
    incidents = _incidents(folder)
    return RunRecord(
        info=_info(folder, lines, training, evaluations, incidents),
        training=training,
        evaluations=evaluations,
        incidents=incidents,
        timings=_timings(folder),
    )


def _info(
    folder: Path,
    lines: Sequence[Line],
    training: Sequence[Line],
    evaluations: Sequence[Line],
    incidents: Sequence[Happening],
) -> RunInfo:
    told, summary = _document(folder / "state.json"), _document(folder / "summary.json")
    optim = _document(folder / "config.json").get("optim", {})
    max_steps = told.get("max_steps", optim.get("max_steps"))
    step = max([told.get("step", 0), *(line["step"] for line in lines[-1:])])
    state = _state(folder, told, summary, max_steps, bool(lines))
    newest = training[-1] if training else {}
    return RunInfo(
        name=folder.name,
        folder=folder,
        state=state,
        reason=told.get("reason") if state == told.get("state") else None,
        step=step,
        max_steps=max_steps,
        loss=newest.get("loss"),
        heldout=_heldout(evaluations[-1]) if evaluations else {},
        learned=_learned(evaluations, summary),
        volumes_per_s=newest.get("volumes_per_s"),
        wait_share=newest.get("wait_share"),
        incidents=dict(Counter(incident.kind for incident in incidents)),
        checkpoints=_checkpoints(folder / "checkpoints"),
        updated=_updated(folder, told, state),
        seconds_left=_seconds_left(training, max_steps, step) if state == "running" else None,
    )


def _state(
    folder: Path, told: Line, summary: Line, max_steps: int | None, has_figures: bool
) -> RunState:
    """The state that the run told, unless it was killed before it could tell."""
    lock = folder / ".lock"
    held = is_locked(lock)
    known: RunState | None = told.get("state")
    if known == "running":
        return "running" if held else "killed"
    if known is not None:
        return known
    # A release without state.json; a process that was killed leaves its name in the lock.
    if held:
        return "running"
    if summary and summary.get("step") == max_steps:
        return "finished"
    if not has_figures:
        return "never began"
    return "killed" if lock.exists() and lock.stat().st_size else "stopped"


def _learned(evaluations: Sequence[Line], summary: Line) -> bool | None:
    """The run's own verdict if it is about the newest figures, else that on these figures."""
    if not evaluations or summary.get("step") == evaluations[-1]["step"]:
        return summary.get("learned")
    first, last = _heldout(evaluations[0]), _heldout(evaluations[-1])
    known = {field.name for field in fields(Heldout)}
    if first["step"] != 0 or last["step"] == 0 or "floor" not in last:
        return None
    try:
        untrained, trained = (
            heldout_from({name: value for name, value in each.items() if name in known})
            for each in (first, last)
        )
    except TypeError:
        return None  # an older release measured less
    # The lines do not tell at which similarity the best constant lies.
    return has_learned(trained, untrained, Floor(last["floor"], math.nan))


def _heldout(line: Line) -> dict[str, Any]:
    prefix = "heldout_"
    named = {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
    return {"step": line["step"], **named}


def _incidents(folder: Path) -> list[Happening]:
    found = [
        Happening(line["step"], str(line.get("kind")), str(line.get("text")))
        for line in LineLog(folder / "incidents.jsonl").read()
    ]
    for unreadable in read_incidents(folder):
        damage = unreadable.damage
        instead = f"sample {damage.replaced_by} in its place"
        text = f"{damage.dataset}/{damage.case}: {damage.reason}; {instead}"
        found.append(Happening(unreadable.step, "unreadable", text))
    for restart in read_restarts(folder):
        found.append(Happening(restart.step, "reader_died", restart.restart))
    return sorted(found, key=lambda happening: happening.step)


def _timings(folder: Path) -> dict[int, list[dict[str, Any]]]:
    ranks = {
        int(found[1]): path
        for path in folder.glob("timing-rank*.jsonl")
        if (found := _TIMING.fullmatch(path.name))
    }
    return {rank: LineLog(path).read() for rank, path in sorted(ranks.items())}


def _checkpoints(folder: Path) -> tuple[int, ...]:
    if not folder.is_dir():
        return ()
    found = [_CHECKPOINT.fullmatch(path.name) for path in folder.iterdir()]
    return tuple(sorted(int(each[1]) for each in found if each))


def _updated(folder: Path, told: Line, state: RunState) -> datetime | None:
    """What the run says; where it cannot say more, when its files were changed."""
    said = [datetime.fromisoformat(told["updated"])] if "updated" in told else []
    if said and state != "running":
        return said[0]
    for path in (folder / "metrics.jsonl", folder / "config.json"):
        if path.exists():
            return max([*said, datetime.fromtimestamp(path.stat().st_mtime, UTC)])
    return said[0] if said else None


def _seconds_left(training: Sequence[Line], max_steps: int | None, step: int) -> float | None:
    seconds = [line["step_s"] for line in training[-_RECENT:] if "step_s" in line]
    if not seconds or max_steps is None:
        return None
    return float(sum(seconds) / len(seconds) * max(0, max_steps - step))


def _folders(workspace: Workspace) -> list[Path]:
    if not workspace.runs.is_dir():
        return []
    entries = workspace.runs.iterdir()
    return sorted(path for path in entries if path.is_dir() and not path.name.startswith("."))


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none, or not a whole one."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
