"""What is told of a run: figures, each with how it was come by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from prect.train.precision import Precision

How = Literal["counted", "measured", "assumed"]


@dataclass(frozen=True)
class Figure:
    """A number and how it was come by."""

    value: float
    unit: str
    how: How
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """Of one process: of a GPU, or on a CPU of the machine."""

    parts: dict[str, Figure]
    total: Figure
    measured: Figure | None
    """Most that torch held at a time in whole steps on the GPU at hand."""
    available: Figure | None
    """Of the GPU."""
    fits: bool | None
    """None where the memory of the GPU is not known, and on a CPU."""


@dataclass(frozen=True)
class Reading:
    """What steps ask of the disk and the loader, on all processes together."""

    needed: Figure | None
    """Volumes a second."""
    decoded: Figure | None
    """MB a second of decoded voxels that this is."""
    stored: Figure | None
    """MB a second from the disk, about."""
    given: Figure | None
    """Volumes a second that the loader gives."""
    given_decoded: Figure | None
    ratio: Figure | None
    """Given over needed: below 1, training waits."""
    workers: Figure | None
    """``data.workers`` that would do."""


@dataclass(frozen=True)
class Course:
    """Steps and their time."""

    steps_per_epoch: Figure
    epochs: Figure
    operations: Figure
    """Of a step, on all processes together."""
    computing: Figure | None
    """Seconds of a step that never waits for data."""
    step: Figure | None
    """Seconds of a step with what its data takes."""
    steps_to_go: Figure
    evaluations_to_go: Figure
    to_go: Figure | None
    """Hours."""
    whole: Figure | None
    """Hours of the run from its first step."""


@dataclass(frozen=True)
class Forecast:
    """All that can be told of a run before it begins."""

    device: str
    processes: int
    precision: Precision
    trainable: Figure
    frozen: Figure
    memory: Memory
    reading: Reading
    course: Course
    unknown: tuple[str, ...]
    """What cannot be told, and why."""

    def as_json(self) -> dict[str, Any]:
        """Plain types; figures are objects of ``value``, ``unit``, ``how`` and ``note``."""
        return asdict(self)


def worst(*figures: Figure) -> How:
    """How a figure that is made of others was come by."""
    ways = {figure.how for figure in figures}
    order: tuple[How, ...] = ("assumed", "measured")
    return next((way for way in order if way in ways), "counted")
