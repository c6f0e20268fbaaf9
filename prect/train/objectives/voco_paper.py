"""VoCo as the papers write it (arXiv 2402.17300 and 2410.09890).

With s = relu(cos), random crops k and bases q, sg for a stopped gradient, stu and tea for the two
networks, and volume j the one after volume i in the global batch::

    L_pred  = - 1/n sum log(1 - |y - s(stu(k_i), stu(q_i))|)
    L_inter = - 1/n sum log(1 - |s(stu(k_i), stu(q_j)) - sg s(tea(k_i), tea(q_j))|)
    L_reg   = 2/(n(n-1)) sum_{a<b} |cos(stu(q_a), stu(q_b))|
    loss    = L_pred + lambda L_inter + L_reg

Sums are over the S x n matrix of a volume. The first paper has no teacher, and then there is no
L_inter. ``pos`` and ``neg`` are the parts of L_pred with and without overlap; their sum is L_pred.
"""

from __future__ import annotations

import torch

from prect.train.objectives.pairs import (
    base_cosines,
    cosines,
    distance_sum,
    paper_terms,
    similarities,
)
from prect.train.objectives.voco import Losses, Projections, Voco


class VocoPaper(Voco):
    """One logarithm for all pairs; a teacher gives the target between volumes only."""

    terms = staticmethod(paper_terms)

    def weights(self) -> dict[str, float]:
        """See :class:`Voco`."""
        return super().weights() | {"inter": self.settings.inter_weight}

    def losses(
        self, student: Projections, teacher: Projections | None, labels: torch.Tensor
    ) -> Losses:
        """See :class:`Voco`."""
        cosine = cosines(student.random, student.bases)
        positive, negative = paper_terms(labels, similarities(cosine))
        parts = {"pos": positive, "neg": negative, "reg": base_cosines(student.bases)}
        pairs = self.across_volumes(student, teacher)
        if pairs is not None:
            parts["inter"] = distance_sum(*pairs)
        return Losses(cosine, parts)
