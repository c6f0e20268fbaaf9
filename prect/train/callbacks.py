"""What the trainer tells the outside world; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prect.train.evaluate import Heldout


@dataclass(frozen=True)
class RunStart:
    """What is known when the first step begins."""

    folder: Path
    step: int
    """Steps that were done before."""
    max_steps: int
    global_batch: int
    train_volumes: int
    heldout_volumes: int
    parameters: int
    """Of encoder and heads."""
    reading: str
    """How regions reach the training process: reading processes, batches ahead and their size."""
    computing: str
    """Processes, how they share the network, precision, and passes a step."""


class Callback(Protocol):
    """Called on rank 0 only. Must be picklable when several processes are launched."""

    def on_start(self, start: RunStart) -> None:
        """Before the first step."""

    def on_step(self, step: int, metrics: Mapping[str, float] | None) -> None:
        """After each step; ``metrics`` are given when a line was written."""

    def on_eval(self, step: int, heldout: Heldout, sentence: str) -> None:
        """After an evaluation; ``sentence`` says in a few words whether the network learns."""

    def on_notice(self, step: int, text: str) -> None:
        """When something happened that a person should know of: an incident, a stop."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """After the last evaluation."""


class Silent:
    """Listens to nothing."""

    def on_start(self, start: RunStart) -> None:
        """Ignored."""

    def on_step(self, step: int, metrics: Mapping[str, float] | None) -> None:
        """Ignored."""

    def on_eval(self, step: int, heldout: Heldout, sentence: str) -> None:
        """Ignored."""

    def on_notice(self, step: int, text: str) -> None:
        """Ignored."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Ignored."""
