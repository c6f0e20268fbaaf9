"""Totals of many units from a sample of them: stratified samples and ratio estimators.

Sections of W. G. Cochran, Sampling Techniques, 3rd edition, Wiley 1977, are named where a
formula comes from there.

A quantity that is unknown (bytes stored) is nearly proportional to one that is known for every
unit (voxels of the grid). A ratio estimator measures the proportion on the sample and applies
it to the known total; its error comes only from how far single units stray from proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that holds the truth in about 95 of 100 samples."""

    value: float
    low: float | None
    """None where the sample is too small to tell."""
    high: float | None

    def times(self, factor: float) -> Interval:
        """The same in another unit; ``factor`` is not negative."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Interval(self.value * factor, low, high)


@dataclass(frozen=True)
class Sample:
    """Units drawn from a population, one from each of its strata."""

    units: Integers
    """(n,) positions in the population."""
    weights: Integers
    """(n,) units in the stratum that each was drawn from: how many it stands for."""


@dataclass(frozen=True)
class Moments:
    """An estimated total and how sure it is."""

    value: float
    variance: float | None
    freedom: int = 0
    """Degrees of freedom of the variance; of no account where that is 0."""


def allocate(counts: Sequence[int], sizes: Sequence[float], total: int) -> list[int]:
    """How many units to draw from each population.

    Two each where ``total`` allows, since one has no spread; then where most of the size lies,
    which is near the optimum when units spread in proportion to their size (section 5.5).

    Args:
        counts: units of each population.
        sizes: of all units of each population together.
        total: units to draw.
    """
    limits, weights = np.array(counts), np.array(sizes, dtype=np.float64)
    given = np.zeros(len(counts), dtype=np.int64)
    each = 2 if np.minimum(limits, 2).sum() <= total else 1
    for place in np.argsort(-weights, kind="stable"):
        given[place] = min(each, limits[place], total - given.sum())
    while given.sum() < min(total, limits.sum()):
        given[np.where(given < limits, weights / (given + 1), -1.0).argmax()] += 1
    return [int(n) for n in given]


def draw(
    sizes: Floats, count: int, chance: np.random.Generator, certain: int | None = None
) -> Sample:
    """Draw from strata of neighbours in size, as many as units are drawn, one unit from each.

    Args:
        sizes: (N,) of all units.
        count: units to draw, N at most.
        chance: where the randomness comes from.
        certain: a unit that is drawn in any case, as a stratum of its own.
    """
    order = np.argsort(sizes, kind="stable")
    strata: list[Integers] = []
    if certain is not None and count > 1:
        strata.append(np.array([certain]))
        order = order[order != certain]
    if count > len(strata):
        strata += np.array_split(order, count - len(strata))
    units = [int(chance.choice(stratum)) for stratum in strata]
    return Sample(np.array(units, dtype=np.int64), np.array([len(s) for s in strata]))


def ratio_total(values: Floats, sizes: Floats, weights: Integers, total_size: float) -> Moments:
    """The total of a quantity over the population that a sample was drawn from.

    The combined ratio estimator over strata (section 6.11). One unit a stratum shows no spread
    within strata, so they are collapsed (section 5A.12) and the residuals pooled: the variance is
    that of a simple random sample (section 6.4), too large rather than too small when strata
    differ. A unit that stands for itself alone adds none, and says nothing of the others: its
    residual is left out where two are left without it. The variance is 0 when every unit was drawn.

    Args:
        values: (n,) the quantity, of each unit drawn.
        sizes: (n,) what it is thought to be proportional to.
        weights: (n,) of `Sample`.
        total_size: sum of the sizes of all units of the population.
    """
    ratio = float(weights @ values) / float(weights @ sizes)
    others = float(weights @ (weights - 1))
    if others == 0:
        return Moments(ratio * total_size, 0.0)
    drawn = weights > 1
    if np.count_nonzero(drawn) < 2:
        drawn[:] = True
    spread = _spread(values[drawn], sizes[drawn], ratio)
    variance = None if spread is None else spread * others
    return Moments(ratio * total_size, variance, int(np.count_nonzero(drawn)) - 1)


def predicted_total(
    values: Floats, sizes: Floats, weights: Integers, total_size: float, count: int
) -> Moments:
    """The total over a population of ``count`` units of which nothing was drawn.

    The ratio of another population's sample is taken over. The variance is that of ``count``
    units that stray from it as that sample does, plus that of the ratio itself; how far the two
    populations differ is not in it, since nothing tells.
    """
    ratio = float(weights @ values) / float(weights @ sizes)
    spread = _spread(values, sizes, ratio)
    if spread is None:
        return Moments(ratio * total_size, None)
    of_ratio = (total_size / float(sizes.mean())) ** 2 / len(values)
    return Moments(ratio * total_size, spread * (count + of_ratio), len(values) - 1)


def _spread(values: Floats, sizes: Floats, ratio: float) -> float | None:
    """Variance of what single units stray from proportion."""
    if len(values) < 2:
        return None
    strays = values - ratio * sizes
    return float(strays @ strays) / (len(values) - 1)


def interval(parts: Iterable[Moments], least: float = 0.0) -> Interval:
    """The sum of independent totals, with its 95 % interval from Student's t.

    The degrees of freedom are Satterthwaite's for a sum of variances (section 5.4).

    Args:
        parts: the totals.
        least: what the sum is known to reach.
    """
    from scipy.special import stdtrit  # noqa: PLC0415, a third of a second that --help saves

    parts = list(parts)
    value = math.fsum(part.value for part in parts)
    if any(part.variance is None for part in parts):
        return Interval(value, None, None)
    known = [(part.variance or 0.0, part.freedom) for part in parts]
    variance = math.fsum(v for v, _ in known)
    if variance == 0:
        return Interval(value, value, value)
    freedom = variance**2 / math.fsum(v**2 / n for v, n in known if v)
    reach = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2)) * math.sqrt(variance)
    return Interval(value, min(value, max(least, value - reach)), value + reach)


def counted(found: int, drawn: int, value: float, count: int, known: tuple[int, int]) -> Interval:
    """How many of a population have a property, with the exact binomial interval.

    That of Clopper and Pearson, Biometrika 26 (1934) 404, which says how many there may be even
    when none was found.

    Args:
        found: units drawn that have it.
        drawn: units drawn, 1 or more.
        value: the estimate of how many of the population have it.
        count: units of the population.
        known: units of the population that are known to have it, and known not to have it.
    """
    from scipy.special import betaincinv  # noqa: PLC0415, as above

    rest = (1 - _CONFIDENCE) / 2
    low = float(betaincinv(found, drawn - found + 1, rest)) if found else 0.0
    high = float(betaincinv(found + 1, drawn - found, 1 - rest)) if found < drawn else 1.0
    least, most = known[0], count - known[1]
    return Interval(value, min(value, max(least, low * count)), max(value, min(most, high * count)))
