"""The folder of a run: settings, metrics, checkpoints, summary.

::

    runs/<name>/
      config.json                the resolved configuration; can be given to --config
      run.json                   manifest digest, volumes a step, software versions
      state.json                 whether it runs, has finished, was stopped or failed, and why
      metrics.jsonl              figures of all processes together, one object a line
      timing-rank<R>.jsonl       what each process did with its time
      incidents.jsonl            skipped steps, loss spikes, stragglers, failed saves
      quarantine-rank<R>.jsonl   samples that could not be read, and what replaced them
      checkpoints/               step-<steps>/, one folder each
      tensorboard/, profile/     event files; traces of --profile
      summary.json               held-out figures at the end
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prect.errors import TrainingError
from prect.files import locked, make_folder
from prect.train.config import TrainConfig, parse_config
from prect.train.report.journal import Journal
from prect.train.report.lines import LineLog, write_json
from prect.train.state.checkpoint import list_checkpoints, software_versions, step_of
from prect.train.state.saving import drop


@dataclass(frozen=True)
class RunFolder:
    """Paths inside the folder of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> LineLog:
        return LineLog(self.path / "metrics.jsonl")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def timing(self, rank: int) -> LineLog:
        """What one process did with its time."""
        return LineLog(self.path / f"timing-rank{rank}.jsonl")

    def journal(self, max_steps: int) -> Journal:
        """State and incidents of the run."""
        return Journal(self.path, max_steps)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run for one trainer; released when the process ends.

        Raises:
            WorkspaceError: another process is training in this folder.
        """
        make_folder(self.path)
        busy = (
            f"process {{holder}} is training in {self.path}; wait for it to end, or choose "
            "another name with --set run.name=NAME"
        )
        return locked(self.path / ".lock", busy)

    def begin(
        self,
        config: TrainConfig,
        manifest_digest: str,
        global_batch: int,
        step: int,
        damaged: Iterable[Path] = (),
    ) -> None:
        """Write what the run is, and rewind it to the step that it goes on from.

        What was written after that step belongs to a future that this run leaves: kept, it would be
        taken for its newest. Damaged checkpoints are set aside under another name.
        """
        make_folder(self.path)
        for path in damaged:
            if path.parent == self.checkpoints:
                path.rename(path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
        for path in list_checkpoints(self.checkpoints):
            if step_of(path) > step:
                drop(path)
        write_json(self.config, config.model_dump(mode="json"))
        record = {
            "manifest_digest": manifest_digest,
            "global_batch": global_batch,
            "versions": software_versions(),
        }
        write_json(self.record, record)
        for path in self.path.glob("*.jsonl"):
            if not path.name.startswith("quarantine-"):  # each rank sees to its own
                LineLog(path).rewind(step if step else -1)

    def read(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration and record of an existing run.

        Raises:
            TrainingError: the folder is not that of a run.
        """
        try:
            config = json.loads(self.config.read_text("utf-8"))
            record: dict[str, Any] = json.loads(self.record.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{self.path} is not the folder of a run: config.json or run.json is missing or "
                "damaged; give the name of a run in the workspace, or its folder"
            ) from error
        return parse_config(config), record
