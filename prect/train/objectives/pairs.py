"""What the objectives do with pairs of crops: cosines, and the terms that compare them with labels.

With labels y and similarities l in [0, 1] of the S random crops to the n bases of a volume, sums
over the S x n matrix and eps = 1e-6 against empty sums and infinite logarithms::

    L_pos   = - sum y log(1 - |y - l| + eps) / (sum y + eps)
    L_far   = - sum_{y=0} log(1 - l + eps) / (#{y=0} + eps)        VoCo version 2
    L_far^2 = sum_{y=0} l^2 / (#{y=0} + eps)                       VoCo version 1
    L_pred  = - 1/n sum log(1 - |y - l| + eps)                     the paper's form

Everything is one batched product or one sum: there is no loop over pairs, and nothing waits for
the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

EPS = 1e-6
_PAIRS = (-2, -1)

PairTerms = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(B, S, n) labels and similarities in [0, 1] to two (B,) terms: of pairs that overlap, and not."""


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(..., S, D) and (..., n, D) to the (..., S, n) cosine similarities of all pairs."""
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).mT


def similarities(cosine: torch.Tensor) -> torch.Tensor:
    """Cosines as similarities in [0, 1].

    A product in reduced precision may exceed 1 by more than eps, where the logarithm has no value.
    """
    return cosine.relu().clamp(max=1)


def log_terms(labels: torch.Tensor, similarity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L_pos and L_far, as VoCo version 2 has them; see :data:`PairTerms`."""
    return _positive(labels, similarity), _mean_of_empty(labels, _distance_cost(similarity))


def square_terms(
    labels: torch.Tensor, similarity: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_pos and L_far^2, as VoCo version 1 has them; see :data:`PairTerms`."""
    return _positive(labels, similarity), _mean_of_empty(labels, similarity.square())


def paper_terms(
    labels: torch.Tensor, similarity: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """L_pred, split into pairs with a label and without; see :data:`PairTerms`."""
    cost = _distance_cost((labels - similarity).abs()) / labels.shape[-1]
    empty = (labels == 0).to(cost.dtype)
    return (cost * (1 - empty)).sum(_PAIRS), (cost * empty).sum(_PAIRS)


def distance_sum(target: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """(B,) - 1/n sum log(1 - |target - similarity| + eps) of (B, S, n) pairs."""
    near, far = paper_terms(target, similarity)
    return near + far


def base_squares(bases: torch.Tensor) -> torch.Tensor:
    """2/(n(n-1)) sum_{a<b} relu(cos(q_a, stop(q_b)))^2, as both released versions have it.

    Args:
        bases: (B, n, D) the student's projections of the base crops, n at least 2.

    Returns:
        (B,); the gradient reaches the first of a pair only.
    """
    return _mean_of_base_pairs(similarities(cosines(bases, bases.detach())).square())


def base_cosines(bases: torch.Tensor) -> torch.Tensor:
    """2/(n(n-1)) sum_{a<b} |cos(q_a, q_b)|, the paper's form; see :func:`base_squares`."""
    return _mean_of_base_pairs(cosines(bases, bases).abs())


def _mean_of_base_pairs(matrix: torch.Tensor) -> torch.Tensor:
    n = matrix.shape[-1]
    return matrix.triu(diagonal=1).sum(_PAIRS) * (2 / (n * (n - 1)))


def _distance_cost(distance: torch.Tensor) -> torch.Tensor:
    return -torch.log(1 - distance + EPS)


def _positive(labels: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    near = labels * _distance_cost((labels - similarity).abs())
    return near.sum(_PAIRS) / (labels.sum(_PAIRS) + EPS)


def _mean_of_empty(labels: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    empty = (labels == 0).to(cost.dtype)
    return (empty * cost).sum(_PAIRS) / (empty.sum(_PAIRS) + EPS)
