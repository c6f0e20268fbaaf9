"""Weights of the voxels of a source in the samples along one axis.

Linear interpolation weighs the two neighbours of a sample. Where a grid is coarser than its
source, that leaves out voxels between and folds what is too fine for the grid into it (noise,
mostly); two low-pass kernels stand against this, one for each way of interpolating.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

_POSITION_BITS = 20
"""Positions are rounded to 2^-20 voxels: a weight and its complement are then exact in float32,
so that neither a flipped axis nor the noise of float64 changes the sum."""


def rounded(voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions or distances to the nearest 2^-20 voxels."""
    result: NDArray[np.float64] = np.round(voxels * 2**_POSITION_BITS) / 2**_POSITION_BITS
    return result


@dataclass(frozen=True)
class Line:
    """Samples along one axis, each a weighted sum of some voxels of the source."""

    taps: NDArray[np.intp]
    """(taps, n) voxels of the source; more than once where the edge is repeated."""
    weights: NDArray[np.float32]
    """(taps, n), of sum 1 for each sample; those of the first tap are never 0."""
    outside: NDArray[np.bool_]
    """(n,) samples beyond the edges, which lie half a voxel outside the outermost centres."""

    @classmethod
    def at(cls, position: NDArray[np.float64], size: int) -> Line:
        """Linear interpolation at positions in voxels along an axis of ``size`` voxels."""
        exact = rounded(position)
        inner = np.clip(exact, 0, size - 1)
        lower = np.floor(inner).astype(np.intp)
        weight = inner - lower
        return cls(
            taps=np.stack([lower, np.minimum(lower + 1, size - 1)]),
            weights=np.stack([1 - weight, weight]).astype(np.float32),
            outside=_outside(exact, size),
        )

    @classmethod
    def low_passed(cls, position: NDArray[np.float64], size: int, step: float) -> Line:
        """The triangle of linear interpolation, widened by the distance between two samples.

        A voxel at a distance of d voxels weighs max(0, 1 - abs(d) / f), and the weights of a
        sample are scaled to a sum of 1; this is the antialiased linear resizing of Pillow
        and torch. Beyond the border the edge is repeated. A ramp stays exactly the same ramp
        where f is a whole number, and is displaced by at most 0.09 voxels elsewhere.

        Args:
            position: (n,) voxels along an axis of ``size`` voxels.
            size: of that axis.
            step: f with the sign of the direction; up to 1, the kernel is that of `at`.
        """
        factor = float(rounded(np.array(abs(step))))
        if factor <= 1:
            return cls.at(position, size)
        exact = rounded(position)
        # Taps are in the order of the grid: a flipped source adds the same terms in the same
        # order, and so has the same float32 sums.
        direction = 1 if step > 0 else -1
        centre = direction * exact
        taps = np.floor(centre - factor) + 1 + np.arange(math.ceil(2 * factor))[:, None]
        weights = np.maximum(1 - np.abs(taps - centre) / factor, 0)
        return cls(
            taps=np.clip(direction * taps, 0, size - 1).astype(np.intp),
            weights=(weights / weights.sum(axis=0)).astype(np.float32),
            outside=_outside(exact, size),
        )

    def __getitem__(self, part: slice) -> Line:
        return Line(self.taps[:, part], self.weights[:, part], self.outside[part])

    def __len__(self) -> int:
        return len(self.outside)


def _outside(position: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    return (position < -0.5) | (position > size - 0.5)


def gaussian(variance: float) -> NDArray[np.float64]:
    """Weights of a discrete Gaussian of a variance in voxels squared, (2 r + 1,) of sum 1.

    At a distance of n voxels, exp(-t) I_n(t) (Lindeberg, Scale-space for discrete signals, 1990):
    unlike samples of the continuous Gaussian it has the variance t however small t is. r is four
    standard deviations and a voxel; the variance 0 is a single weight.
    """
    radius = math.ceil(4 * math.sqrt(variance)) + (variance > 0)
    distances = np.abs(np.arange(-radius, radius + 1))
    weights = np.asarray(special.ive(distances, variance), dtype=np.float64)
    weights /= weights.sum()
    return weights
