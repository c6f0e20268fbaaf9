"""The folder of a run: settings, metrics, checkpoints, summary.

::

    runs/<name>/
      config.json                the resolved configuration; can be given to --config
      run.json                   manifest digest, volumes a step, software versions
      metrics.jsonl              one object a line
      quarantine-rank<R>.jsonl   samples that could not be read, and what replaced them
      checkpoints/               step-<steps>.pt
      summary.json               held-out figures at the end
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prect.errors import CheckpointError, TrainingError
from prect.files import locked, make_folder
from prect.train.checkpoint import (
    Checkpoint,
    check_resumable,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    software_versions,
    step_of,
)
from prect.train.config import TrainConfig, parse_config
from prect.train.metrics import MetricsLog


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
    def metrics(self) -> MetricsLog:
        return MetricsLog(self.path / "metrics.jsonl")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

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
        self, config: TrainConfig, manifest_digest: str, global_batch: int, step: int
    ) -> None:
        """Write what the run is, and rewind it to the step that it goes on from.

        Metrics and checkpoints of later steps belong to a future that this run leaves: kept,
        they would be taken for its newest.
        """
        make_folder(self.path)
        for path in list_checkpoints(self.checkpoints):
            if step_of(path) > step:
                path.unlink()
        write_json(self.config, config.model_dump(mode="json"))
        record = {
            "manifest_digest": manifest_digest,
            "global_batch": global_batch,
            "versions": software_versions(),
        }
        write_json(self.record, record)
        self.metrics.rewind(step if step else -1)

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


def starting_point(
    folder: RunFolder, resume: str, config: TrainConfig, manifest_digest: str, global_batch: int
) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a fresh start.

    Args:
        folder: the run's folder, which may not exist yet.
        resume: ``auto`` goes on from the newest checkpoint if there is one, ``never`` wants a
            new folder, anything else is the path of a checkpoint or of another run's folder.
        config: the settings to go on with.
        manifest_digest: digest of the data to go on with.
        global_batch: volumes a step on all processes together.

    Raises:
        TrainingError: ``never``, and the folder exists.
        CheckpointError: the checkpoint is missing, damaged, or belongs to other data or settings.
    """
    if resume == "never":
        if folder.config.exists():
            raise TrainingError(
                f"run folder {folder.path} exists already; go on with --resume auto, choose "
                "another name with --set run.name=NAME, or delete the folder"
            )
        return None
    if resume == "auto":
        found = list_checkpoints(folder.checkpoints)
        if not found:
            return None
        path = found[-1]
    else:
        path = find_checkpoint(Path(resume))
    try:
        checkpoint = load_checkpoint(path)
        check_resumable(checkpoint, config, manifest_digest, global_batch)
    except CheckpointError as error:
        error.add_note(f"checkpoint {path}")
        raise
    return checkpoint


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
