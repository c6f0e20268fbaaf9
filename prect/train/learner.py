"""The encoder and its objective as one module, so that one wrapper can distribute both."""

from __future__ import annotations

import torch
from torch import nn

from prect.errors import CheckpointError
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

    def forward(self, batch: CropBatch) -> ObjectiveOutput:
        """The objective's result for a device batch."""
        output: ObjectiveOutput = self.objective(self.backbone, batch)
        return output

    def load(self, backbone: dict[str, torch.Tensor], objective: dict[str, torch.Tensor]) -> None:
        """Take the weights of a checkpoint, all of them.

        Raises:
            CheckpointError: names or shapes differ.
        """
        try:
            self.backbone.load_state_dict(backbone)
            self.objective.load_state_dict(objective)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint does not fit the network: {error}") from error


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
