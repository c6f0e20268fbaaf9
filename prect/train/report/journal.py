"""What happened in a run besides its figures: its state, and incidents one could ask about later.

::

    runs/<name>/
      state.json        running, finished, stopped or failed; at which step, where, and why
      incidents.jsonl   one object a line: skipped steps, loss spikes, stragglers, failed saves, ...
"""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prect.train.report.lines import LineLog, write_json

State = Literal["running", "finished", "stopped", "failed"]
IncidentKind = Literal[
    "skipped", "spike", "straggler", "save_failed", "damaged_checkpoint", "changed", "sink_failed"
]


class Journal:
    """Written by rank 0."""

    def __init__(self, folder: Path, max_steps: int) -> None:
        self.path = folder / "state.json"
        self.incidents = LineLog(folder / "incidents.jsonl")
        self.max_steps = max_steps

    def be(self, state: State, step: int, reason: str | None = None) -> None:
        """Write the state of the run down."""
        document = {
            "state": state,
            "step": step,
            "max_steps": self.max_steps,
            "reason": reason,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path, document)

    def read(self) -> dict[str, Any]:
        """The state as it was written last; empty where none was."""
        try:
            document: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return document

    def record(self, step: int, kind: IncidentKind, text: str, **more: Any) -> None:
        """Write an incident down; ``step`` counts from 1, 0 is before the first."""
        self.incidents.write(step, {"kind": kind, "text": text, **more})
