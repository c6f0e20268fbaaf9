"""Weights for other programs: the backbone alone, as safetensors, under MONAI's names.

A SwinUNETR export loads into ``monai.networks.nets.SwinUNETR(use_v2=True)`` with
``load_state_dict(..., strict=False)``: all its tensors match, the decoder stays as it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from prect.errors import CheckpointError
from prect.train.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from prect.train.config import NetworkConfig, parse_config
from prect.train.networks import describe_encoder


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    checkpoint: Path
    network: str
    step: int
    tensors: int
    parameters: int


def export_weights(
    source: Path, target: Path, *, force: bool = False, dry_run: bool = False
) -> Export:
    """Write the backbone of a checkpoint, or of a run's newest one, to a safetensors file.

    With ``dry_run`` everything is checked and nothing is written.

    Raises:
        CheckpointError: the source is missing, foreign or incomplete, or the target exists and
            ``force`` is not given.
    """
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists already; give --force to replace it")
    path = find_checkpoint(source)
    checkpoint = load_checkpoint(path)
    network = parse_config(checkpoint.config).network
    check_backbone(checkpoint.backbone, network)
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.backbone.items()}
    if not dry_run:
        _write(weights, target, _metadata(checkpoint, network))
    count = sum(tensor.numel() for tensor in weights.values())
    return Export(target, path, network.name, checkpoint.step, len(weights), count)


def check_backbone(weights: dict[str, torch.Tensor], network: NetworkConfig) -> None:
    """Compare every name and shape with those of the network.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    expected = {name: tuple(t.shape) for name, t in describe_encoder(network).state_dict().items()}
    present = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected == present:
        return
    missing = sorted(expected.keys() - present.keys())
    surplus = sorted(present.keys() - expected.keys())
    reshaped = sorted(n for n in expected.keys() & present.keys() if expected[n] != present[n])
    raise CheckpointError(
        f"the checkpoint does not hold the weights of {network.name}: {len(missing)} tensors "
        f"missing, {len(surplus)} unexpected, {len(reshaped)} of another shape; first: "
        f"{(missing + surplus + reshaped)[0]}"
    )


def _metadata(checkpoint: Checkpoint, network: NetworkConfig) -> dict[str, str]:
    return {
        "format": "pt",
        "producer": f"prect {checkpoint.versions['prect']}",
        "network": network.name,
        "feature_size": str(network.feature_size),
        "axes": "batch, channel, x, y, z in RAS",
        "window_hu": " ".join(f"{hu:g}" for hu in checkpoint.config["view"]["window"]),
        "view": json.dumps(checkpoint.config["view"]),
        "objective": str(checkpoint.config["objective"]["name"]),
        "run": str(checkpoint.config["run"]["name"]),
        "step": str(checkpoint.step),
        "manifest_digest": checkpoint.manifest_digest,
    }


def _write(weights: dict[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        save_file(weights, temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
