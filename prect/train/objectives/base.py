"""What every pretext task offers to the trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from prect.train.batch import CropBatch
from prect.train.objectives.pairs import PairTerms


@dataclass
class ObjectiveOutput:
    """The result of one forward pass; everything but ``loss`` is detached.

    Shapes: B volumes, S random crops and n bases a volume, E numbers an embedding, D a projection.
    """

    loss: torch.Tensor
    """Scalar to minimise, float32."""
    terms: dict[str, torch.Tensor]
    """Named scalar parts of the loss before their weights, means over the volumes."""
    volume_terms: dict[str, torch.Tensor]
    """(B,) the parts that compare crops with the bases of their own volume: ``pos`` and ``neg``."""
    cosine: torch.Tensor
    """(B, S, n) similarity of each random crop to each base, in [-1, 1]."""
    embeddings: torch.Tensor
    """(B, S + n, E) float32, the encoder's; random crops come first."""
    student: torch.Tensor
    """(B, S + n, D) float32, the student's projections."""
    teacher: torch.Tensor | None
    """(B, S + n, D) float32, the teacher's projections, where there is a teacher."""


Encode = Callable[[torch.Tensor], torch.Tensor]
"""An encoder, or a function that calls it: (N, 1, x, y, z) crops to (N, E) embeddings."""


class Objective(nn.Module, ABC):
    """A loss on crops, with its own heads and, where it has one, its teacher.

    Called as ``objective(backbone, batch)``; the backbone belongs to the caller.
    """

    terms: PairTerms
    """The parts of the loss that compare crops with bases; they fix the floor."""

    @abstractmethod
    def forward(self, backbone: Encode, batch: CropBatch) -> ObjectiveOutput:
        """The loss of a device batch; must not wait for the device."""

    @abstractmethod
    def after_step(self, progress: float) -> None:
        """Update whatever follows the student; called after each optimiser step.

        Args:
            progress: share of the run's steps that are done, this one included, in (0, 1].
        """
