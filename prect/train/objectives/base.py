"""What every pretext task offers to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from prect.train.batch import CropBatch
from prect.train.objectives.floor import NegativeTerm


@dataclass
class ObjectiveOutput:
    """The result of one forward pass; everything but ``loss`` is detached."""

    loss: torch.Tensor
    """Scalar to minimise, float32."""
    terms: dict[str, torch.Tensor]
    """Named scalar parts of the loss, means over the volumes."""
    volume_terms: dict[str, torch.Tensor]
    """(B,) the parts that compare crops with bases, for each volume."""
    cosine: torch.Tensor
    """(B, S, n) similarity of each random crop to each base, in [-1, 1]."""


class Objective(nn.Module, ABC):
    """A loss on crops, with its own heads and, where it has one, its teacher.

    Called as ``objective(backbone, batch)``; the backbone belongs to the caller.
    """

    negative: NegativeTerm
    """Form of the loss on pairs without overlap; fixes the floor."""

    @abstractmethod
    def forward(self, backbone: nn.Module, batch: CropBatch) -> ObjectiveOutput:
        """The loss of a device batch; must not wait for the device."""

    @abstractmethod
    def after_step(self) -> None:
        """Update whatever follows the student; called after each optimiser step."""
