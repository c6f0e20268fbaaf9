"""Checkpoints for tests: written as a run writes them, and read whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from prect.train.config import TrainConfig
from prect.train.networks import build_encoder
from prect.train.state.checkpoint import Record, list_checkpoints, load_checkpoint, name_of
from prect.train.state.saving import Saver, Team
from prect.workspace import Workspace

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stored:
    """The content of a checkpoint."""

    step: int
    backbone: Tensors
    objective: Tensors
    optimizer: Tensors


def read_whole(path: Path) -> Stored:
    """Everything that a checkpoint holds of networks and optimiser, checksums compared."""
    found = load_checkpoint(path)
    parts = (found.tensors(f"{part}.") for part in ("backbone", "objective", "optimizer"))
    return Stored(found.step, *parts)


def newest(workspace: Workspace, name: str) -> Stored:
    """The newest checkpoint of a run."""
    return read_whole(list_checkpoints(workspace.run(name) / "checkpoints")[-1])


def assert_same_state(a: Stored, b: Stored) -> None:
    """Networks and optimiser are equal bit for bit."""
    assert a.step == b.step
    for part in ("backbone", "objective", "optimizer"):
        ours, theirs = getattr(a, part), getattr(b, part)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


def record(config: TrainConfig, step: int) -> Record:
    return Record(
        step=step,
        config=config.model_dump(mode="json"),
        manifest_digest="d",
        sources={},
        global_batch=2,
        world=1,
        untrained={},
        guard={},
        scaler={},
        versions={"prect": "0"},
    )


def encoder_weights(config: TrainConfig, step: int = 7) -> Tensors:
    """Weights of an encoder that are others for each step."""
    torch.manual_seed(step)
    return build_encoder(config.network).state_dict()


def write_checkpoint(
    folder: Path,
    config: TrainConfig,
    step: int = 7,
    *,
    backbone: Tensors | None = None,
    objective: Tensors | None = None,
    keep_last: int = 9,
    keep_every: int = 0,
) -> Path:
    """Save a checkpoint into a ``checkpoints`` folder, alone, and wait for it."""
    saver = Saver(folder, Team(), keep_last=keep_last, keep_every=keep_every)
    parts = {"backbone": backbone or encoder_weights(config, step), "objective": objective or {}}
    tensors = {f"{part}.{n}": t for part, named in parts.items() for n, t in named.items()}
    saver.begin(tensors, record(config, step))
    saved = saver.wait()
    assert saved is not None
    assert saved.error is None
    return folder / name_of(step)
