"""Teachers: exponential averages of the student, which never get a gradient.

Two kinds: of the projector alone, which works on the student's own embeddings (as released for
VoCo version 2), and of encoder and projector, which embeds the crops once more (version 1).
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from prect.train.config import NetworkConfig, TrainConfig
from prect.train.networks import Encoder, build_encoder, describe_encoder
from prect.train.objectives.heads import Projector


class Teacher(nn.Module):
    """An exponential average of a projector and, where it has an own, of the encoder."""

    backbone: Encoder | None

    def __init__(self, projector: Projector, backbone: Encoder | None) -> None:
        super().__init__()
        self.projector = projector
        self.backbone = backbone
        self.requires_grad_(False)

    @torch.no_grad()
    def embed(self, crops: torch.Tensor) -> torch.Tensor | None:
        """(N, 1, x, y, z) crops to (N, E) embeddings of its own encoder; None if it has none."""
        if self.backbone is None:
            return None
        embeddings: torch.Tensor = self.backbone(crops)
        return embeddings

    @torch.no_grad()
    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, E) embeddings to (N, D) projections."""
        projected: torch.Tensor = self.projector(embeddings)
        return projected

    @torch.no_grad()
    def follow(self, projector: Projector, backbone: nn.Module, momentum: float) -> None:
        """Keep ``momentum`` of the weights and take the rest from the student."""
        _follow(self.projector, projector, momentum)
        if self.backbone is not None:
            _follow(self.backbone, backbone, momentum)


def build_teacher(config: TrainConfig, student: Projector, backbone: Encoder) -> Teacher | None:
    """The teacher that a configuration names, or None; on the meta device if the student is."""
    settings = config.objective
    kind = settings.teacher_kind
    if kind == "none":
        return None
    if settings.teacher_init == "student":
        own = copy.deepcopy(backbone) if kind == "network" else None
        return Teacher(copy.deepcopy(student), own)
    projector = Projector(backbone.embedding, settings.width, settings.norm)
    own = _fresh(config.network, backbone) if kind == "network" else None
    return Teacher(projector, own)


def momentum_at(progress: float, begin: float, end: float | None) -> float:
    """Share of the teacher that is kept: a half cosine from ``begin`` to ``end``.

    Grill et al. 2020 (arXiv 2006.07733), section 3.3, with any end.

    Args:
        progress: share of the run that is done, in [0, 1].
        begin: the share at the start.
        end: the share at the end; None keeps ``begin``.
    """
    if end is None:
        return begin
    return end - (end - begin) * (1 + math.cos(math.pi * progress)) / 2


def _fresh(network: NetworkConfig, backbone: Encoder) -> Encoder:
    """An encoder like the student's with other weights."""
    if next(backbone.parameters()).is_meta:
        return describe_encoder(network)
    return build_encoder(network)


def _follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    averaged: list[tuple[torch.Tensor, torch.Tensor]] = list(
        zip(teacher.parameters(), student.parameters(), strict=True)
    )
    for ours, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        if ours.is_floating_point():
            averaged.append((ours, theirs))
        else:
            ours.copy_(theirs)  # a count or an index has no average
    move = get_ema_multi_avg_fn(momentum)
    move([ours for ours, _ in averaged], [theirs for _, theirs in averaged], None)
