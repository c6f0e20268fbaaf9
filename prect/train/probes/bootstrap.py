"""Bootstrap intervals by patient: whole patients are drawn again, with all that belongs to them.

A figure is a function of how often each patient counts. Its interval is the 2.5th to 97.5th
percentile of the figure over resamples of the patients (Efron & Tibshirani, "An introduction to
the bootstrap", 1993, chapter 13). Two features measured on the same patients share the resamples,
so that their difference has an interval of its own.

Shapes: R resamples, V cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEAST_FOR_INTERVALS = 3
"""Patients below which intervals have no width: two are drawn both, always."""
_LEAST_PATIENTS = 2
"""Different patients in a resample: with one alone, nothing is compared across patients."""

Floats = NDArray[np.float64]


class Measured(Protocol):
    """What a probe has measured on V cases."""

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each case, (V,)."""

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """Figures by name, each (R,), when case v counts ``weights[r, v]`` times; (R, V)."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float | None
    """None where it is not defined, such as R^2 along an axis on which no place varies."""
    low: float | None
    high: float | None

    def overlaps(self, other: Estimate) -> bool:
        """Whether two intervals share a value; true where either is not defined."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return True
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Mean:
    """The mean of what was measured on the same cases several times, such as over seeds."""

    parts: Sequence[Measured]

    @property
    def patients(self) -> tuple[str, ...]:
        return self.parts[0].patients

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """Each figure's mean over the parts."""
        each = [part.figures(weights) for part in self.parts]
        return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}


def patient_weights(patients: Sequence[str], resamples: int, seed: int) -> Floats:
    """(R, V) how often each case counts in each resample of the patients.

    Resamples of one patient alone are drawn again.

    Raises:
        ValueError: there are fewer than two patients.
    """
    names, code = np.unique(np.asarray(patients), return_inverse=True)
    count = len(names)
    if count < _LEAST_PATIENTS:
        raise ValueError(f"{count} patients; two at least are needed to resample them")
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    while (alone := (weights > 0).sum(axis=1) < _LEAST_PATIENTS).any():
        weights[alone] = generator.multinomial(count, np.full(count, 1 / count), size=alone.sum())
    return np.asarray(weights[:, code], dtype=np.float64)


def estimates(
    measured: Measured, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure with its interval."""
    weights = patient_weights(measured.patients, resamples, seed)
    return _intervals(_whole(measured), measured.figures(weights))


def differences(
    first: Measured, second: Measured, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Every figure of ``first`` minus that of ``second``, over the same resamples.

    Raises:
        ValueError: they were not measured on the same cases.
    """
    if first.patients != second.patients:
        raise ValueError("figures of different cases have no difference by case")
    weights = patient_weights(first.patients, resamples, seed)
    one, other = first.figures(weights), second.figures(weights)
    whole, rest = _whole(first), _whole(second)
    names = [name for name in one if name in other]
    return _intervals(
        {name: whole[name] - rest[name] for name in names},
        {name: one[name] - other[name] for name in names},
    )


def ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, not a number where the whole is 0."""
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def mean_of_known(values: Floats) -> Floats:
    """(R,) mean over the last axis of (R, K) without what is not a number, which may be all."""
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


def _whole(measured: Measured) -> dict[str, Floats]:
    return measured.figures(np.ones((1, len(measured.patients))))


def _intervals(whole: dict[str, Floats], drawn: dict[str, Floats]) -> dict[str, Estimate]:
    result = {}
    for name, values in drawn.items():
        value = float(whole[name][0])
        defined = values[np.isfinite(values)]
        if not np.isfinite(value) or not len(defined):
            result[name] = Estimate(None, None, None)
            continue
        low, high = np.percentile(defined, [2.5, 97.5])
        result[name] = Estimate(value, float(low), float(high))
    return result
