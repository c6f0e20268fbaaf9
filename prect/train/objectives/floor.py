"""The best loss that a constant similarity reaches: a bound that learning must beat.

A falling loss proves nothing as long as it stays above the value of pos + neg that one fixed
similarity for all pairs gives. That value is computed here for the crop placement and the loss in
use: the loss's own terms, averaged over volumes whose crops lie on a Sobol sequence, which fills
the space of placements evenly and is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from prect.train.config import CropConfig
from prect.train.crops import Grid, base_starts, overlap_shares, random_start_range
from prect.train.heldout import Floor
from prect.train.objectives.pairs import PairTerms

__all__ = ["Floor", "constant_floor"]

_VOLUMES = 2**14
_TOLERANCE = 1e-4
_GOLDEN = (5**0.5 - 1) / 2


@lru_cache(maxsize=16)
def constant_floor(crops: CropConfig, grid: Grid, terms: PairTerms) -> Floor:
    """The floor for a crop placement and a loss, to about 0.1 %.

    Args:
        crops: base grid, size, number and margin of crops.
        grid: voxels (x, y, z) of the view.
        terms: what the loss does with labels and similarities, as in ``Objective.terms``.
    """
    labels = _placed(crops, grid)

    def expected(similarity: float) -> float:
        positive, negative = terms(labels, torch.full_like(labels, similarity))
        return float((positive + negative).mean())

    best = _minimise(expected)
    return Floor(expected(best), best)


def _placed(crops: CropConfig, grid: Grid) -> torch.Tensor:
    """(volumes, S, n) float64 labels of volumes that stand for all placements."""
    first, last = random_start_range(crops, grid)
    engine = SobolEngine(3 * crops.random)
    points = engine.draw(_VOLUMES, dtype=torch.float64).reshape(-1, crops.random, 3).numpy()
    # Points lie on a grid of their own; in the middle of its cells none falls on a border.
    points = points + 0.5 / _VOLUMES
    starts = first + (points * (last - first + 1)).astype(np.int64)
    shares = overlap_shares(starts, base_starts(crops, grid), crops.size)
    return torch.from_numpy(shares.astype(np.float64))


def _minimise(function: Callable[[float], float]) -> float:
    """Golden-section search on [0, 1]; all terms are convex in the similarity."""
    low, high = 0.0, 1.0
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > _TOLERANCE:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2
