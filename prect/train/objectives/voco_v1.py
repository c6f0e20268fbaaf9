"""VoCo version 1 (CVPR 2024, arXiv 2402.17300) as its released code runs it.

With s = relu(cos), random crops k and bases q of one volume, and stu and tea for the two networks::

    l     = (s(stu(k), tea(q)) + s(tea(k), stu(q))) / 2
    loss  = L_pos(y, l) + L_far^2(y, l) + L_reg

The terms are those of :mod:`prect.train.objectives.pairs`. The teacher is an average of the whole
network; without one, the student stands in its place with its gradient stopped.
"""

from __future__ import annotations

import torch

from prect.train.objectives.pairs import base_squares, cosines, similarities, square_terms
from prect.train.objectives.voco import Losses, Projections, Voco, in_place_of_teacher


class VocoV1(Voco):
    """Each crop is seen by the student once as random crop's side and once as base's side."""

    terms = staticmethod(square_terms)

    def losses(
        self, student: Projections, teacher: Projections | None, labels: torch.Tensor
    ) -> Losses:
        """See :class:`Voco`."""
        taught = in_place_of_teacher(student, teacher)
        crop_side = cosines(student.random, taught.bases)
        base_side = cosines(taught.random, student.bases)
        similarity = (similarities(crop_side) + similarities(base_side)) / 2
        positive, negative = square_terms(labels, similarity)
        parts = {"pos": positive, "neg": negative, "reg": base_squares(student.bases)}
        return Losses((crop_side + base_side) / 2, parts)
