"""Multinomial logistic regression, corrected to the true shares of the classes.

Shapes: n voxels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from prect.train.probes.dense import on_grid

_ITERATIONS = 100
_CHUNK = 2**16
"""Rows that are looked at in float64 at once."""


@dataclass(frozen=True)
class LinearClassifier:
    """Class scores: weight @ features + bias."""

    weight: torch.Tensor
    """(K, D) float32."""
    bias: torch.Tensor
    """(K,) float32."""

    def with_shares(
        self, drawn: NDArray[np.float64], true: NDArray[np.float64]
    ) -> LinearClassifier:
        """The classifier for classes with ``true`` shares, from one fitted to ``drawn`` ones.

        Scores are logarithms of probabilities up to a constant, so by Bayes' rule the logarithm
        of true / drawn is added to those of each class.
        """
        return LinearClassifier(
            self.weight, self.bias + torch.from_numpy(np.log(true / drawn)).float()
        )

    def classify(self, maps: Sequence[torch.Tensor], size: tuple[int, int, int]) -> torch.Tensor:
        """(N, *size) best class of each voxel of crops, from their maps (N, c, ...).

        Linear maps and linear interpolation may change places, so a map is scored on its own
        grid, and only the scores are brought to the crop's.
        """
        scores = self.bias.view(1, -1, 1, 1, 1)
        begin = 0
        for one in maps:
            weight = self.weight[:, begin : begin + one.shape[1]].to(one.device)
            begin += one.shape[1]
            scores = scores + on_grid(torch.einsum("kc,ncxyz->nkxyz", weight, one), size).cpu()
        return scores.argmax(dim=1)


def fit_classifier(
    features: torch.Tensor, classes: torch.Tensor, count: int, penalty: float
) -> LinearClassifier:
    """Logistic regression by L-BFGS on features brought to unit variance.

    Memory is one more copy of the features, which stay as they are.

    Args:
        features: (n, D) float32.
        classes: (n,) int64, 0 to ``count`` - 1.
        count: K.
        penalty: weight of the squared coefficients beside the mean log-likelihood.
    """
    mean, scale = _moments(features)
    scaled = (features - mean).div_(scale)
    weight = torch.zeros(count, features.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        likelihood = functional.cross_entropy(scaled @ weight.T + bias, classes)
        value = likelihood + penalty * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)
    unscaled = weight.detach().double() / scale.double()
    moved = bias.detach().double() - unscaled @ mean.double()
    return LinearClassifier(unscaled.float(), moved.float())


def _moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (D,) float32 of (n, D); 1 for a feature that does not vary.

    Summed twice, in parts: a sum of squares alone would lose small spreads about large means.
    """
    parts = features.split(_CHUNK)
    count = len(features)
    mean = torch.stack([part.double().sum(dim=0) for part in parts]).sum(dim=0) / count
    squares = torch.stack([(part.double() - mean).square().sum(dim=0) for part in parts])
    scale = (squares.sum(dim=0) / count).sqrt()
    return mean.float(), torch.where(scale > 1e-8, scale, torch.ones_like(scale)).float()
