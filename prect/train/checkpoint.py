"""Single-file checkpoints: written whole, read without running code.

``runs/<name>/checkpoints/step-00000200.pt`` holds tensors and plain types only, so it is read
with ``weights_only=True``. A file with that name is complete: it was written under another
name, synced, and renamed.
"""

from __future__ import annotations

import os
import pickle
import platform
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prect.errors import CheckpointError
from prect.files import sync_folder
from prect.train.config import TrainConfig

CHECKPOINT_FORMAT = 1
_UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
)
_NAME = re.compile(r"step-(\d{8})\.pt")

_FREE_SECTIONS = {
    "run": {"name"},
    "data": {"workers", "prefetch_mib", "open_stores", "on_damage", "max_damaged", "batch_size"},
    "network": {"checkpointing", "crops_at_once"},
    "optim": {"max_steps"},
    "train": {"log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "threads"},
}
"""Settings that may change when a run goes on: its length, its pace, its bookkeeping, and how it
saves memory. The file that it began with is not read again, but a run has no other beginning."""


@dataclass
class Checkpoint:
    """The state of a run after a number of steps."""

    step: int
    """Optimiser steps done."""
    backbone: dict[str, torch.Tensor]
    objective: dict[str, torch.Tensor]
    """Student and teacher heads."""
    optimizer: dict[str, Any]
    config: dict[str, Any]
    manifest_digest: str
    global_batch: int
    """Volumes a step on all processes together; with the step it fixes what was seen."""
    untrained: dict[str, Any]
    """Held-out figures of the same network before its first step."""
    versions: dict[str, str]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Commit a checkpoint and delete all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{checkpoint.step:08d}.pt"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = {"format": CHECKPOINT_FORMAT} | {
        field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)
    }
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    # A process that was killed while it wrote leaves a hidden file behind.
    for old in [*list_checkpoints(folder)[:-keep], *folder.glob(".step-*.tmp")]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: the file is missing, not a checkpoint of prect, damaged, or of another
            format version.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch does not look at the checksums, so a flipped bit would pass as a weight.
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of prect, or it is damaged; give a run folder or a file "
            "named step-*.pt that prect train wrote, or delete it and the one before is taken"
        ) from error
    if damaged:
        raise CheckpointError(
            f"{path} is damaged: {damaged} does not match its checksum; delete it, and the one "
            "before is taken"
        )
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of prect: it has no format number")
    if state.pop("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(f"{path} has another format than {CHECKPOINT_FORMAT}")
    missing = {field.name for field in fields(Checkpoint)} ^ set(state)
    if missing:
        raise CheckpointError(f"{path} is not a complete checkpoint: {sorted(missing)} differ")
    return Checkpoint(**state)


def list_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints of a ``checkpoints`` folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def step_of(path: Path) -> int:
    """Steps done when a checkpoint of `list_checkpoints` was written."""
    return int(path.stem.removeprefix("step-"))


def find_checkpoint(place: Path) -> Path:
    """The newest committed checkpoint of a run folder or its ``checkpoints``, or the file itself.

    Raises:
        CheckpointError: there is no such file or folder, or the run has no checkpoint yet.
    """
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"{place} does not exist; give a run folder or a checkpoint file")
    found = list_checkpoints(place / "checkpoints") or list_checkpoints(place)
    if not found:
        raise CheckpointError(f"run {place} has no checkpoint yet")
    return found[-1]


def check_resumable(
    checkpoint: Checkpoint, config: TrainConfig, manifest_digest: str, global_batch: int
) -> None:
    """Refuse to go on with other data or settings than the run began with.

    Raises:
        CheckpointError: names what differs.
    """
    if checkpoint.manifest_digest != manifest_digest:
        raise CheckpointError(
            f"the cache manifest has changed since the checkpoint was written (digest "
            f"{checkpoint.manifest_digest[:12]}, now {manifest_digest[:12]}), so the samples would "
            "be others; start a new run with another run.name"
        )
    if checkpoint.global_batch != global_batch:
        raise CheckpointError(
            f"the run was made with {checkpoint.global_batch} volumes a step, this one would have "
            f"{global_batch}; choose data.batch_size times processes to be "
            f"{checkpoint.global_batch}"
        )
    if config.optim.max_steps < checkpoint.step:
        raise CheckpointError(
            f"the run has done {checkpoint.step} steps already, more than optim.max_steps = "
            f"{config.optim.max_steps}; ask for more, or start a new run with another run.name"
        )
    differing = differing_settings(checkpoint.config, config.model_dump(mode="json"))
    if differing:
        raise CheckpointError(
            f"settings differ from those of the checkpoint: {', '.join(differing)}; take them "
            "back, or start a new run with another run.name"
        )


def differing_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``section.key (old -> new)`` of every setting that must not change and did."""
    result = []
    for section in sorted(set(before) | set(after)):
        old, new = before.get(section, {}), after.get(section, {})
        for key in sorted((set(old) | set(new)) - _FREE_SECTIONS.get(section, set())):
            if old.get(key) != new.get(key):
                result.append(f"{section}.{key} ({old.get(key)} -> {new.get(key)})")
    return result


def software_versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    packages = ("prect", "torch", "monai", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "unknown"
