"""VoCo version 2 (arXiv 2410.09890) as its released code runs it.

With s = relu(cos), random crops k and bases q, sg for a stopped gradient, stu and tea for the two
projectors on one encoder, and volume j the one after volume i in the global batch::

    L_ce(y, l) = L_pos(y, l) + L_far(y, l)
    intra      = L_ce(y, s(stu(k_i), sg tea(q_i)))
    inter      = L_ce(sg s(tea(k_i), tea(q_j)), s(stu(k_i), stu(q_j)))
    loss       = intra + inter + L_reg

The terms are those of :mod:`prect.train.objectives.pairs`. Without a teacher the student stands in
its place with its gradient stopped, and the inter term is left out: target and prediction would be
the same number.
"""

from __future__ import annotations

import torch

from prect.train.objectives.pairs import base_squares, cosines, log_terms, similarities
from prect.train.objectives.voco import Losses, Projections, Voco, in_place_of_teacher


class VocoV2(Voco):
    """Position by contrast with the bases of a crop's own volume and of the next one."""

    terms = staticmethod(log_terms)

    def weights(self) -> dict[str, float]:
        """See :class:`Voco`."""
        inter = self.settings.inter_weight
        return super().weights() | {"inter_pos": inter, "inter_neg": inter}

    def losses(
        self, student: Projections, teacher: Projections | None, labels: torch.Tensor
    ) -> Losses:
        """See :class:`Voco`."""
        taught = in_place_of_teacher(student, teacher)
        cosine = cosines(student.random, taught.bases)
        positive, negative = log_terms(labels, similarities(cosine))
        parts = {"pos": positive, "neg": negative, "reg": base_squares(student.bases)}
        pairs = self.across_volumes(student, teacher)
        if pairs is not None:
            target, prediction = pairs
            parts["inter_pos"], parts["inter_neg"] = log_terms(target, prediction)
        return Losses(cosine, parts)
