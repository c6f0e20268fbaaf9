"""VoCo version 2, intra-volume part: predict a crop's position by contrast with base crops.

Formulas of "Large-Scale 3D Medical Image Pre-training with Geometric Context Priors" (arXiv
2410.09890) as its released code runs them. With cosine similarities s = relu(cos), position
labels y, eps = 1e-6, sums over the S x n matrix of one volume and the mean over volumes::

    L_pos = - sum y log(1 - |y - s| + eps) / (sum y + eps)
    L_neg = - sum_{y=0} log(1 - s + eps) / (#{y=0} + eps)
    L_reg = 2 / (n (n - 1)) sum_{a<b} relu(cos(q_a, stop(q_b)))^2

Shapes: B volumes, S random crops and n bases a volume, D width of the projector.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from prect.train.batch import CropBatch
from prect.train.config import ObjectiveConfig
from prect.train.objectives.base import Objective, ObjectiveOutput
from prect.train.objectives.floor import NegativeTerm
from prect.train.objectives.heads import Projector

EPS = 1e-6


class VocoIntra(Objective):
    """Student projector against an exponential average of itself, on a shared backbone.

    The teacher starts as a copy of the student; the released code starts it at random, so that
    its first similarities mean nothing.
    """

    negative: NegativeTerm = "log"

    def __init__(self, config: ObjectiveConfig, random_crops: int, embedding: int) -> None:
        super().__init__()
        self.momentum = config.ema_momentum
        self.reg_weight = config.reg_weight
        self.random = random_crops
        self.student = Projector(embedding, config.projector_width)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, backbone: nn.Module, batch: CropBatch) -> ObjectiveOutput:
        """See :class:`Objective`."""
        embeddings = backbone(batch.crops)
        student = self.student(embeddings)
        with torch.no_grad():
            teacher = self.teacher(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._losses(student.float(), teacher.float(), batch)

    def _losses(
        self, student: torch.Tensor, teacher: torch.Tensor, batch: CropBatch
    ) -> ObjectiveOutput:
        by_volume = (batch.volumes, -1, student.shape[-1])
        student = functional.normalize(student, dim=-1).reshape(by_volume)
        teacher = functional.normalize(teacher, dim=-1).reshape(by_volume)
        cosine = student[:, : self.random] @ teacher[:, self.random :].mT
        positive, negative = cross_entropy_terms(batch.labels, cosine.relu())
        apart = base_similarity(student[:, self.random :])
        loss = (positive + negative + self.reg_weight * apart).mean()
        volume_terms = {"pos": positive.detach(), "neg": negative.detach()}
        terms = {name: values.mean() for name, values in volume_terms.items()}
        terms["reg"] = apart.detach().mean()
        return ObjectiveOutput(loss, terms, volume_terms, cosine.detach())

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.lerp_(student, 1 - self.momentum)


def cross_entropy_terms(
    labels: torch.Tensor, similarity: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_pos and L_neg of each volume.

    Args:
        labels: (B, S, n) overlap shares.
        similarity: (B, S, n) in [0, 1].

    Returns:
        Two (B,) tensors.
    """
    sums = (-2, -1)
    near = -(labels * torch.log(1 - (labels - similarity).abs() + EPS)).sum(sums)
    empty = (labels == 0).to(similarity.dtype)
    far = -(empty * torch.log(1 - similarity + EPS)).sum(sums)
    return near / (labels.sum(sums) + EPS), far / (empty.sum(sums) + EPS)


def base_similarity(bases: torch.Tensor) -> torch.Tensor:
    """L_reg of each volume.

    Args:
        bases: (B, n, D) normalised student embeddings of the base crops, n at least 2.

    Returns:
        (B,) mean squared similarity of two bases; its gradient reaches the first of a pair only.
    """
    n = bases.shape[1]
    similarity = (bases @ bases.detach().mT).relu()
    return similarity.triu(diagonal=1).square().sum((-2, -1)) * (2 / (n * (n - 1)))
