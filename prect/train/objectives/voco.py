"""What the VoCo objectives share: two projections of every crop, and the step of the teacher.

Shapes: B volumes, S random crops and n bases a volume, E numbers an embedding, D a projection.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch

from prect.train.batch import CropBatch
from prect.train.config import TrainConfig
from prect.train.networks import Encoder
from prect.train.objectives.base import Encode, Objective, ObjectiveOutput
from prect.train.objectives.heads import Projector
from prect.train.objectives.pairs import cosines, similarities
from prect.train.objectives.ranks import of_next_volume
from prect.train.objectives.teacher import build_teacher, momentum_at


@dataclass(frozen=True)
class Projections:
    """The projections of one side, float32."""

    random: torch.Tensor
    """(B, S, D) of the random crops, k."""
    bases: torch.Tensor
    """(B, n, D) of the base crops, q."""


@dataclass(frozen=True)
class Losses:
    """What a form of the loss makes of two sides."""

    cosine: torch.Tensor
    """(B, S, n) what is compared with the labels, before it is made a similarity."""
    parts: dict[str, torch.Tensor]
    """(B,) each; ``pos`` and ``neg`` compare crops with bases of their own volume."""


class Voco(Objective):
    """A student's projector, perhaps a teacher, and a form of the loss."""

    def __init__(self, config: TrainConfig, backbone: Encoder) -> None:
        """Heads with fresh weights from torch's random state, and the teacher.

        Args:
            config: the run's settings.
            backbone: the student's encoder as training begins.
        """
        super().__init__()
        settings = config.objective
        self.settings = settings
        self.student = Projector(backbone.embedding, settings.width, settings.norm)
        self.teacher = build_teacher(config, self.student, backbone)
        # In a tuple, so that the encoder does not become a part of this module.
        self._followed = (backbone,)

    def forward(self, backbone: Encode, batch: CropBatch) -> ObjectiveOutput:
        """See :class:`Objective`."""
        # The teacher goes first: what it computes is given back before the student needs memory.
        own = self.teacher.embed(batch.crops) if self.teacher is not None else None
        embeddings = backbone(batch.crops)
        shown = _without_dropped(embeddings, batch)
        student = self.student(shown).float()
        teacher = None
        if self.teacher is not None:
            seen = shown.detach() if own is None else _without_dropped(own, batch)
            teacher = self.teacher(seen).float()
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.compare(embeddings, student, teacher, batch)

    def compare(
        self,
        embeddings: torch.Tensor,
        student: torch.Tensor,
        teacher: torch.Tensor | None,
        batch: CropBatch,
    ) -> ObjectiveOutput:
        """The loss of projections, in their own precision.

        Args:
            embeddings: (B * (S + n), E), only passed on.
            student: (B * (S + n), D), with gradient.
            teacher: (B * (S + n), D), without gradient; None where there is no teacher.
            batch: for the labels.
        """
        by_volume = (batch.volumes, -1, student.shape[-1])
        student = student.reshape(by_volume)
        teacher = None if teacher is None else teacher.reshape(by_volume)
        taught = None if teacher is None else split(teacher, batch.random)
        losses = self.losses(split(student, batch.random), taught, batch.labels)
        weights = self.weights()
        weighted = [weights.get(name, 1.0) * part for name, part in losses.parts.items()]
        return ObjectiveOutput(
            loss=torch.stack(weighted).sum(dim=0).mean(),
            terms={name: part.detach().mean() for name, part in losses.parts.items()},
            volume_terms={name: losses.parts[name].detach() for name in ("pos", "neg")},
            cosine=losses.cosine.detach(),
            embeddings=embeddings.detach().unflatten(0, by_volume[:2]),
            student=student.detach(),
            teacher=teacher,
        )

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student; see :class:`Objective`."""
        if self.teacher is not None:
            settings = self.settings
            momentum = momentum_at(progress, settings.ema_momentum, settings.ema_momentum_end)
            self.teacher.follow(self.student, self._followed[0], momentum)

    @abstractmethod
    def losses(
        self, student: Projections, teacher: Projections | None, labels: torch.Tensor
    ) -> Losses:
        """The parts of the loss.

        Args:
            student: with gradient.
            teacher: without gradient.
            labels: (B, S, n).
        """

    def across_volumes(
        self, student: Projections, teacher: Projections | None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Similarities of random crops to the bases of the next volume of the global batch.

        In evaluation mode the next volume is that of the process's own batch.

        Returns:
            (B, S, n) of the teacher, without gradient, and of the student; None without a teacher,
            at weight 0 and where there is one volume only.
        """
        if teacher is None or self.settings.inter_weight == 0:
            return None
        both = torch.cat([student.bases, teacher.bases], dim=-1)
        following = of_next_volume(both, alone=not self.training)
        if following is None:
            return None
        student_bases, teacher_bases = following.chunk(2, dim=-1)
        target = similarities(cosines(teacher.random, teacher_bases.detach()))
        return target, similarities(cosines(student.random, student_bases))

    def weights(self) -> dict[str, float]:
        """Weights of parts that do not weigh 1."""
        return {"reg": self.settings.reg_weight}


def split(projections: torch.Tensor, random: int) -> Projections:
    """(B, S + n, D) as random crops and bases."""
    return Projections(projections[:, :random], projections[:, random:])


def in_place_of_teacher(student: Projections, teacher: Projections | None) -> Projections:
    """The teacher or, without one, the student with its gradient stopped."""
    return teacher or Projections(student.random.detach(), student.bases.detach())


def _without_dropped(embeddings: torch.Tensor, batch: CropBatch) -> torch.Tensor:
    if batch.dropped is None:
        return embeddings
    return embeddings.masked_fill(batch.dropped[:, None], 0)
