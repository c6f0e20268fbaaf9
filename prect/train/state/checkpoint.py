"""Checkpoints on disk: a folder of safetensors and one JSON file, read without running code.

::

    runs/<name>/checkpoints/step-00000200/
      checkpoint.json            step, settings, digests, versions, and a checksum of every file
      shard-*.safetensors        tensors, written by torch.distributed.checkpoint

Tensors are named ``backbone.*`` and ``objective.*`` (the networks), ``optimizer.<parameter>.<key>``
and ``rng.<rank>.<source>``. A folder of that name is complete: it was written under a hidden name,
synced, and renamed after all processes had finished.
"""

from __future__ import annotations

import json
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from prect.errors import CheckpointError

CHECKPOINT_FORMAT = 2
RECORD = "checkpoint.json"
SUFFIX = ".safetensors"
_NAME = re.compile(r"step-(\d{8})")
_PIECE = 2**23


@dataclass(frozen=True)
class Record:
    """What a checkpoint says beside its tensors."""

    step: int
    """Optimiser steps done."""
    config: dict[str, Any]
    manifest_digest: str
    sources: dict[str, Any]
    """By data set: ``volumes``, ``profiles`` (digests) and ``held_out``."""
    global_batch: int
    """Volumes a step on all processes together; with the step it fixes what was seen."""
    world: int
    """Processes that wrote it; any number may go on from it."""
    untrained: dict[str, Any]
    """Held-out figures of the same network before its first step."""
    guard: dict[str, Any]
    """Steps skipped so far and the recent course of the loss."""
    scaler: dict[str, Any]
    """State of the loss scaler; empty where none is used."""
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint."""

    path: Path
    record: Record
    files: dict[str, dict[str, Any]]
    """``bytes`` and ``crc32c`` (hexadecimal) by name."""

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.record.step

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run."""
        return self.record.config

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CheckpointError: a file is missing or damaged; names it.
        """
        for name, known in self.files.items():
            try:
                found = checksum(self.path / name)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path} is damaged: {name} cannot be read ({error.strerror})"
                ) from error
            if found != known:
                raise CheckpointError(
                    f"{self.path} is damaged: {name} does not match its checksum "
                    f"({found['bytes']:,} of {known['bytes']:,} bytes); delete this folder, and "
                    "the one before is taken"
                )

    def names(self) -> dict[str, torch.Size]:
        """Shape of every tensor by name."""
        return {name: entry.size for name, entry in self._entries().items()}

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with a prefix, without it, on the CPU.

        Args:
            prefix: for instance ``backbone.``; nothing else is read.
        """
        wanted = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in self._entries().items()
            if name.startswith(prefix)
        }
        read_into(self.path, wanted)
        return {name.removeprefix(prefix): tensor for name, tensor in wanted.items()}

    def _entries(self) -> dict[str, TensorStorageMetadata]:
        found = HuggingFaceStorageReader(str(self.path)).read_metadata().state_dict_metadata
        return {n: entry for n, entry in found.items() if isinstance(entry, TensorStorageMetadata)}


def read_into(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    group: torch.distributed.ProcessGroup | None = None,
) -> None:
    """Fill tensors in place with those of the same names.

    Args:
        path: folder of the checkpoint.
        tensors: plain ones, or shards of distributed ones (DTensor).
        group: the processes that read together; alone when left out.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    if not tensors:
        return
    reader = HuggingFaceStorageReader(str(path))
    try:
        with alone_is_fine():
            load(dict(tensors), storage_reader=reader, process_group=group, no_dist=group is None)
    except (CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint does not fit the network: {cause_of(error)}"
        ) from error


def cause_of(error: BaseException) -> str:
    """What torch's checkpointing failed for, without its tracebacks, the first rank's only."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (first, _) = min(error.failures.items())
        return f"rank {rank}: {first}"
    return str(error)


@contextmanager
def alone_is_fine() -> Iterator[None]:
    """Keep torch from warning that a single process reads or writes a checkpoint."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def load_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: its folder.
        verify: compare its files with their checksums, which reads all of them.

    Raises:
        CheckpointError: it is missing, no checkpoint of prect, of another format, or damaged.
    """
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist")
    if path.is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint of prect: one is a folder named step-*; a file of weights "
            "can be a start, with --set network.weights=FILE"
        )
    try:
        document = json.loads((path / RECORD).read_text("utf-8"))
        if document.pop("format") != CHECKPOINT_FORMAT:
            raise CheckpointError(f"{path} has another format than {CHECKPOINT_FORMAT}")
        files = document.pop("files")
        checkpoint = Checkpoint(path, Record(**document), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path} is not a checkpoint of prect, or it is damaged ({RECORD}: {error}); give a "
            "run folder or a folder named step-* that prect train wrote, or delete it and the one "
            "before is taken"
        ) from error
    if verify:
        checkpoint.verify()
    return checkpoint


def checksum(path: Path) -> dict[str, Any]:
    """Size and crc32c of a file."""
    crc = size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = google_crc32c.extend(crc, piece)
            size += len(piece)
    return {"bytes": size, "crc32c": f"{crc:08x}"}


def list_checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints of a ``checkpoints`` folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def name_of(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Steps done when a checkpoint of `list_checkpoints` was written."""
    return int(path.name.removeprefix("step-"))


def find_checkpoint(place: Path) -> Path:
    """The newest checkpoint of a run folder or of its ``checkpoints``, or the folder itself.

    Raises:
        CheckpointError: there is no such folder, or the run has no checkpoint yet.
    """
    if place.is_file() or (place / RECORD).exists() or _NAME.fullmatch(place.name):
        return place
    if not place.is_dir():
        raise CheckpointError(f"{place} does not exist; give a run folder or a checkpoint")
    found = list_checkpoints(place / "checkpoints") or list_checkpoints(place)
    if not found:
        raise CheckpointError(f"run {place} has no checkpoint yet")
    return found[-1]


def software_versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    packages = ("prect", "torch", "monai", "numpy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "unknown"
