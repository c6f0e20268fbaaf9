"""Weights for other programs: a run's encoder, or all of its networks, as safetensors.

The encoder alone has MONAI's names: a SwinUNETR export loads into
``monai.networks.nets.SwinUNETR(use_v2=True)`` with ``load_state_dict(..., strict=False)``; all its
tensors match, the decoder stays as it was. Everything is ``backbone.*`` and ``objective.*``, the
names of `prect.train.learner.Learner`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from prect.errors import CheckpointError
from prect.train.config import NetworkConfig, parse_config
from prect.train.learner import build_learner
from prect.train.networks import describe_encoder, without_storage
from prect.train.state.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from prect.train.weight_files import run_metadata


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    checkpoint: Path
    network: str
    step: int
    tensors: int
    parameters: int
    everything: bool
    """Whether the heads and the teacher are in it."""


def export_weights(
    source: Path,
    target: Path,
    *,
    everything: bool = False,
    force: bool = False,
    dry_run: bool = False,
) -> Export:
    """Write the weights of a checkpoint, or of a run's newest one, to a safetensors file.

    Args:
        source: run folder or checkpoint.
        target: file to write.
        everything: write the heads and the teacher too; the backbone alone otherwise.
        force: replace ``target`` where it exists.
        dry_run: check everything and write nothing.

    Raises:
        CheckpointError: the source is missing, foreign or incomplete, or the target exists and
            ``force`` is not given.
    """
    if target.exists() and not force:
        raise CheckpointError(f"{target} exists already; give --force to replace it")
    path = find_checkpoint(source)
    checkpoint = load_checkpoint(path)
    network = NetworkConfig.model_validate(checkpoint.config["network"])
    weights = checkpoint.tensors("backbone.")
    expected: Mapping[str, torch.Tensor] = describe_encoder(network).state_dict()
    if everything:
        heads = checkpoint.tensors("objective.")
        weights = {
            **{f"backbone.{name}": tensor for name, tensor in weights.items()},
            **{f"objective.{name}": tensor for name, tensor in heads.items()},
        }
        with without_storage():
            expected = build_learner(parse_config(checkpoint.config)).state_dict()
    check_complete(weights, expected, network.name)
    if not dry_run:
        whole = {name: tensor.contiguous() for name, tensor in weights.items()}
        _write(whole, target, _metadata(checkpoint, everything))
    count = sum(tensor.numel() for tensor in weights.values())
    return Export(target, path, network.name, checkpoint.step, len(weights), count, everything)


def check_complete(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], network: str
) -> None:
    """Compare every name and shape with those of the network.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    present = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted == present:
        return
    missing = sorted(wanted.keys() - present.keys())
    surplus = sorted(present.keys() - wanted.keys())
    reshaped = sorted(n for n in wanted.keys() & present.keys() if wanted[n] != present[n])
    raise CheckpointError(
        f"the checkpoint does not hold the weights of {network}: {len(missing)} tensors "
        f"missing, {len(surplus)} unexpected, {len(reshaped)} of another shape; first: "
        f"{(missing + surplus + reshaped)[0]}"
    )


def _metadata(checkpoint: Checkpoint, everything: bool) -> dict[str, str]:
    said = run_metadata(
        checkpoint.config,
        step=checkpoint.step,
        version=checkpoint.record.versions["prect"],
        digest=checkpoint.record.manifest_digest,
    )
    contents = {"contents": "backbone and objective" if everything else "backbone"}
    # With the settings, the learner that the tensors belong to can be built from the file alone.
    config = {"config": json.dumps(checkpoint.config)} if everything else {}
    return {"format": "pt"} | said | contents | config


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
