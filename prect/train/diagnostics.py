"""Figures that tell whether an embedding is of use, whatever the loss says.

All of them run on the device of their tensors, in float64, and wait for nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def average_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1 along the last axis; equal values share the mean of the ranks they take.

    Args:
        values: (..., n) without NaN.

    Returns:
        (..., n) float64.
    """
    mine, others = values[..., :, None], values[..., None, :]
    below = (others < mine).sum(-1)
    equal = (others == mine).sum(-1)
    return below.double() + (equal.double() + 1) / 2


def spearman(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Rank correlation along the last axis: Pearson's of the ranks, ties averaged.

    Args:
        first: (..., n).
        second: (..., n).

    Returns:
        (...) float64 in [-1, 1]; 0 where one side has no order because all its values are equal.
    """
    a, b = (average_ranks(side) for side in (first, second))
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(-1) / scale.clamp_min(1e-300), 0.0)


def effective_rank(rows: torch.Tensor) -> torch.Tensor:
    """Number of directions that vectors spread over: exp of the entropy of the singular values.

    With p the singular values of the centred rows divided by their sum: exp(-sum p log p) (Roy and
    Vetterli 2007, "The effective rank"; RankMe, arXiv 2210.02885, uses it on embeddings). It is 1
    when all rows are equal or lie on one line, and min(N - 1, D) at most.

    Args:
        rows: (N, D).

    Returns:
        Scalar float64.
    """
    rows = rows.double()
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    # Equal rows differ by what float32 rounds away, and such noise would have every direction.
    noise = torch.finfo(torch.float32).eps * torch.linalg.vector_norm(rows)
    singular = torch.where(singular > noise, singular, 0.0)
    shares = singular / singular.sum().clamp_min(1e-300)
    return torch.exp(-torch.xlogy(shares, shares).sum())


def relative_spread(rows: torch.Tensor) -> torch.Tensor:
    """How far vectors lie from their mean: ||rows - mean|| / ||rows||.

    It is 0 when all rows are equal and 1 when their mean is 0. The effective rank does not tell
    these apart: vectors that differ from each other by a thousandth may do so in all directions.

    Args:
        rows: (N, D).

    Returns:
        Scalar float64; 0 where all rows are zero.
    """
    rows = rows.double()
    length = torch.linalg.vector_norm(rows).clamp_min(1e-300)
    spread: torch.Tensor = torch.linalg.vector_norm(rows - rows.mean(0)) / length
    return spread


def embedding_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each vector of the student and the teacher's of the same crop.

    Args:
        student: (..., D).
        teacher: (..., D).

    Returns:
        (...) float64 in [0, 2].
    """
    cosine = functional.cosine_similarity(student.double(), teacher.double(), dim=-1)
    return (1 - cosine).clamp_min(0)
