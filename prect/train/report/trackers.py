"""TensorBoard, Weights & Biases and MLflow: how each is told of a run and of its figures.

A run that goes on does so under the id that it had. TensorBoard then hides the figures of the
future that was left; the other two keep them, and show the newer ones beside them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from prect.train.config import TrainConfig
from prect.train.report.lines import write_json

PROJECT = "prect"
"""W&B project and MLflow experiment, unless their environment variables name others."""
_FLUSH_SECONDS = 10
_FINISH_SECONDS = 8.0
"""W&B's own limit at the end, below that of the sink."""
_PARAMS_A_REQUEST = 100
"""Limit of MLflow."""
_SPEED = {
    "step_s",
    "wait_s",
    "encoder_s",
    "wait_share",
    "volumes_per_s",
    "read_mb_per_s",
    "memory_mib",
    "save_stall_s",
    "tflops",
    "mfu",
}


class Tracker(Protocol):
    """What a foreign library does with figures; raises whatever that library raises."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write one line of ``metrics.jsonl``."""

    def close(self) -> None:
        """Write what is left, and say that the run has ended."""


def grouped(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures under names with a group: ``train/loss``, ``heldout/top1``, ``speed/step_s``."""
    return {_group(name): value for name, value in figures.items()}


def _group(name: str) -> str:
    if name.startswith("heldout_"):
        return f"heldout/{name.removeprefix('heldout_')}"
    return f"speed/{name}" if name in _SPEED else f"train/{name}"


class TensorBoardTracker:
    """Event files in ``tensorboard/``."""

    def __init__(self, config: TrainConfig, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes a second

        # Events from purge_step on are those of a future that was left; 0 is the evaluation
        # before the first step.
        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=step + 1 if step else 0,
            flush_secs=_FLUSH_SECONDS,
        )
        text = json.dumps(config.model_dump(mode="json"), indent=2)
        self._writer.add_text("config", f"```json\n{text}\n```", step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in grouped(figures).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class WandbTracker:
    """A run at Weights & Biases, or on disk where WANDB_MODE is ``offline``."""

    def __init__(self, config: TrainConfig, folder: Path, _step: int) -> None:
        import wandb  # noqa: PLC0415 - an extra

        known = _remembered(folder / "wandb.json")
        if "id" not in known:
            known = {"id": secrets.token_hex(8)}
            write_json(folder / "wandb.json", known)
        self._run = wandb.init(
            id=known["id"],
            resume="allow",
            project=wandb.setup().settings.project or PROJECT,
            name=config.run.name,
            dir=str(folder),
            config=config.model_dump(mode="json"),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off", finish_timeout=_FINISH_SECONDS, finish_timeout_raises=True
            ),
        )
        # W&B's own step cannot go back, as that of a run does when it goes on from a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({"step": step, **grouped(figures)})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class MlflowTracker:
    """A run on the server that MLFLOW_TRACKING_URI names, or in ``runs/mlflow.db``."""

    def __init__(self, config: TrainConfig, folder: Path, step: int) -> None:
        import mlflow  # noqa: PLC0415 - an extra

        self._max_steps, self._step = config.optim.max_steps, step
        uri = f"sqlite:///{folder.parent / 'mlflow.db'}"
        if mlflow.is_tracking_uri_set():
            uri = mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(uri)
        known = _remembered(folder / "mlflow.json")
        if known.get("uri") == uri:
            self._run: str = known["run"]
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._create(config)
            write_json(folder / "mlflow.json", {"uri": uri, "run": self._run})

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric  # noqa: PLC0415 - an extra

        now = int(time.time() * 1000)
        named = grouped(figures).items()
        metrics = [Metric(name, value, now, step) for name, value in named]
        self._client.log_batch(self._run, metrics=metrics)
        self._step = step

    def close(self) -> None:
        """See `Tracker`."""
        ended = self._step >= self._max_steps
        self._client.set_terminated(self._run, "FINISHED" if ended else "KILLED")

    def _create(self, config: TrainConfig) -> str:
        from mlflow.entities import Param  # noqa: PLC0415 - an extra
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME  # noqa: PLC0415

        name = MLFLOW_EXPERIMENT_NAME.get() or PROJECT
        present = self._client.get_experiment_by_name(name)
        experiment = present.experiment_id if present else self._client.create_experiment(name)
        created: str = self._client.create_run(experiment, run_name=config.run.name).info.run_id
        # Only once: MLflow takes no other value for a parameter, and a run that goes on may
        # have another number of workers.
        params = [Param(key, value) for key, value in _flat(config.model_dump(mode="json"))]
        for begin in range(0, len(params), _PARAMS_A_REQUEST):
            self._client.log_batch(created, params=params[begin : begin + _PARAMS_A_REQUEST])
        return created


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings as ``section.key`` and text."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _remembered(path: Path) -> dict[str, Any]:
    """What a file says of the run's id; nothing when there is none yet."""
    try:
        known: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return known
