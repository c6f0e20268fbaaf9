"""The encoder and its objective as one module, so that one wrapper can distribute both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from prect.train.batch import CropBatch
from prect.train.config import TrainConfig
from prect.train.networks import Encoder, build_encoder
from prect.train.objectives import Objective, ObjectiveOutput, build_objective
from prect.train.weights import check_start, load_pretrained


class Learner(nn.Module):
    """Crops in, loss out."""

    def __init__(self, backbone: Encoder, objective: Objective) -> None:
        super().__init__()
        self.backbone = backbone
        self.objective = objective
        self.around_encoder: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered around the encoder's forward pass while training, to take its time."""

    def forward(self, batch: CropBatch) -> ObjectiveOutput:
        """The objective's result for a device batch."""
        output: ObjectiveOutput = self.objective(self._encode, batch)
        return output

    def pass_at_once(self, crops: int) -> None:
        """Let no pass of an encoder hold more than so many crops; 0 leaves it as it is."""
        for module in self.modules():
            if isinstance(module, Encoder) and crops:
                module.crops_at_once = min(module.crops_at_once or crops, crops)

    def _encode(self, crops: torch.Tensor) -> torch.Tensor:
        with self.around_encoder() if self.training else nullcontext():
            embeddings: torch.Tensor = self.backbone(crops)
        return embeddings


def build_learner(config: TrainConfig, *, pretrained: bool = False) -> Learner:
    """Encoder and objective with fresh weights; the same for the same ``run.seed``.

    Args:
        config: the settings.
        pretrained: put ``network.weights`` into the encoder, where it is set. A teacher that
            starts as a copy of the student copies them.

    Raises:
        CheckpointError: the file of weights cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        backbone = build_encoder(config.network)
        if pretrained and config.network.weights is not None:
            check_start(config.network)
            load_pretrained(config.network.weights, backbone)
        return Learner(backbone, build_objective(config, backbone))
