"""The best loss that a constant similarity reaches: a bound that learning must beat.

A falling loss proves nothing as long as it stays above the value of pos + neg that one fixed
similarity for all pairs gives. That value is computed here for the crop placement and the loss
in use: start positions are independent along the axes, so expectations over placements are
sums over the products of three short lists of overlaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prect.train.config import CropConfig
from prect.train.crops import Grid, base_starts, random_start_range

_EPS = 1e-6
_TOLERANCE = 1e-6
_GOLDEN = (5**0.5 - 1) / 2

Array = NDArray[np.float64]
NegativeTerm = Literal["log", "square"]


@dataclass(frozen=True)
class Floor:
    """Smallest expected pos + neg of a constant similarity."""

    value: float
    similarity: float


def constant_floor(crops: CropConfig, grid: Grid, negative: NegativeTerm) -> Floor:
    """The floor for a crop placement and a loss.

    Args:
        crops: base grid, size, number and margin of crops.
        grid: voxels (x, y, z) of the view.
        negative: ``log`` for -log(1 - s) (VoCo v2), ``square`` for s^2 (v1), both averaged over
            the pairs without overlap.
    """
    shares, weights, zero_pair = _placements(crops, grid)

    def expected(similarity: float) -> float:
        near = -np.log(1 - np.abs(shares - similarity) + _EPS)
        # The labels of a volume sum to the number of its random crops, up to eps.
        positive = float((weights * shares * near).sum() / (weights * shares).sum())
        far = similarity**2 if negative == "square" else -np.log(1 - similarity + _EPS)
        return positive + zero_pair * float(far)

    best = _minimise(expected)
    return Floor(expected(best), best)


def _placements(crops: CropConfig, grid: Grid) -> tuple[Array, Array, float]:
    """Shares of a crop in a base with their expected counts, and the chance of an empty pair."""
    bases = base_starts(crops, grid)
    first, last = random_start_range(crops, grid)
    shares, weights, full = np.ones(1), np.ones(1), 1.0
    for axis, size in enumerate(crops.size):
        starts = np.arange(first[axis], last[axis] + 1)
        distance = np.abs(starts[:, None] - np.unique(bases[:, axis]))
        overlap = np.maximum(size - distance, 0) / size
        full *= float((overlap > 0).all(axis=1).mean())
        values, counts = np.unique(overlap, return_counts=True)
        shares = np.multiply.outer(shares, values).ravel()
        weights = np.multiply.outer(weights, counts / len(starts)).ravel()
    overlapping = shares > 0
    # A volume without any empty pair has no negative term; its S crops are independent.
    zero_pair = 1 - full**crops.random
    return shares[overlapping], weights[overlapping], zero_pair


def _minimise(function: Callable[[float], float]) -> float:
    """Golden-section search on [0, 1]; both terms are convex in the similarity."""
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
