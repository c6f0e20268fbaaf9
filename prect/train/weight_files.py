"""Weight files of all kinds as one flat table of tensors, read without running code.

Two formats are read: safetensors, and what ``torch.save`` writes, the latter with torch's
``weights_only`` reader, which builds tensors and plain types and refuses everything else. Tables
within tables get dotted names, so ``{"state_dict": {"module.conv.weight": ...}}`` holds
``state_dict.module.conv.weight``.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from prect.errors import CheckpointError
from prect.train.state.checkpoint import RECORD, load_checkpoint

_DEPTH = 4
"""Tables within tables that are looked into; optimizer state lies deeper or is numbered."""
_DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
)
"""What torch and zipfile raise on bytes that are no file of theirs."""


@dataclass(frozen=True)
class WeightFile:
    """The content of a weight file, on the CPU."""

    path: Path
    format: Literal["safetensors", "torch", "checkpoint"]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    """What the file says of itself: prect's exports and checkpoints name run, step and view,
    others at most a step or an epoch."""


def read_weights(path: Path) -> WeightFile:
    """Read all tensors of a file, or those of the networks of a checkpoint of prect.

    Raises:
        CheckpointError: the file is missing, a folder of something else, damaged, would run code,
            or holds no tensors.
    """
    if path.is_dir() and not (path / RECORD).exists():
        raise CheckpointError(
            f"{path} is a folder; give a weight file, for a run one of its checkpoints "
            "(checkpoints/step-*)"
        )
    if not path.exists():
        raise CheckpointError(f"weight file {path} does not exist")
    if path.is_dir():
        read = _read_checkpoint
    else:
        read = _read_safetensors if _is_safetensors(path) else _read_torch
    found = read(path)
    if not found.tensors:
        raise CheckpointError(f"{path} holds no tensors")
    unusable = [n for n, t in found.tensors.items() if t.layout != torch.strided or t.is_meta]
    if unusable:
        raise CheckpointError(f"{path}: {unusable[0]} is sparse or without numbers")
    return found


def run_metadata(
    config: Mapping[str, Any], *, step: int, version: str, digest: str
) -> dict[str, str]:
    """What prect says of weights of its own: the table that its exports carry.

    Args:
        config: the run's settings, as a checkpoint holds them.
        step: optimiser steps done.
        version: of prect when the checkpoint was written.
        digest: of the manifests of the run's volumes.
    """
    network, view = config["network"], config["view"]
    return {
        "producer": f"prect {version}",
        "network": str(network["name"]),
        "feature_size": str(network["feature_size"]),
        "axes": "batch, channel, x, y, z in RAS",
        "window_hu": " ".join(f"{hu:g}" for hu in view["window"]),
        "view": json.dumps(view),
        "objective": str(config["objective"]["name"]),
        "run": str(config["run"]["name"]),
        "step": str(step),
        "manifest_digest": digest,
    }


def _read_checkpoint(path: Path) -> WeightFile:
    checkpoint = load_checkpoint(path)
    tensors = {
        part + name: tensor
        for part in ("backbone.", "objective.")
        for name, tensor in checkpoint.tensors(part).items()
    }
    record = checkpoint.record
    said = run_metadata(
        record.config,
        step=record.step,
        version=record.versions["prect"],
        digest=record.manifest_digest,
    )
    return WeightFile(path, "checkpoint", tensors, said)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)  # length of the header, then its first brace
    return start[8:] == b"{"


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}); copy it again"
        ) from error
    return WeightFile(path, "safetensors", tensors, metadata)


def _read_torch(path: Path) -> WeightFile:
    try:
        damaged = None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch does not look at the checksums, so a flipped bit would pass as a weight.
                damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise CheckpointError(_explain(path, error)) from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: {damaged} does not match its checksum")
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}, not a table of named tensors (a state_dict)"
        )
    return WeightFile(path, "torch", dict(_named(state)), _said(state))


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
        return (
            f"{path} holds more than tensors and plain types, so reading it could run code, and "
            "prect does not; where you trust its source, load it there and save its state_dict "
            "alone, as safetensors or with torch.save"
        )
    return f"{path} is damaged or no weight file: neither safetensors nor from torch.save"


def _named(
    table: Mapping[Any, Any], prefix: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a table and of tables in it; those with numbers for names are no modules."""
    for name, value in table.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, torch.Tensor):
            yield prefix + name, value.detach()
        elif isinstance(value, Mapping) and depth:
            yield from _named(value, f"{prefix}{name}.", depth - 1)


def _said(state: Mapping[Any, Any]) -> dict[str, str]:
    """What a torch file says beside its tensors."""
    plain = (str, int, float)
    return {str(k): str(v)[:200] for k, v in state.items() if isinstance(v, plain)}
