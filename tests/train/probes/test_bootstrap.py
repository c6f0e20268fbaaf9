"""Intervals by patient, against samples whose spread is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from prect.train.probes.bootstrap import (
    Estimate,
    Floats,
    Mean,
    differences,
    estimates,
    patient_weights,
)


@dataclass(frozen=True)
class Numbers:
    """A number a case; the figure is their mean."""

    values: Floats
    patients: tuple[str, ...]

    def figures(self, weights: Floats) -> dict[str, Floats]:
        nothing = np.full(len(weights), np.nan)
        return {"mean": weights @ self.values / weights.sum(axis=1), "undefined": nothing}


def sample(count: int, seed: int = 0, shift: float = 0.0) -> Numbers:
    values = np.random.default_rng(seed).normal(3.0, 2.0, count)
    return Numbers(values + shift, tuple(f"patient-{i:03d}" for i in range(count)))


def bounds(estimate: Estimate) -> tuple[float, float, float]:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.value, estimate.low, estimate.high


def test_interval_of_a_mean_is_that_of_theory() -> None:
    numbers = sample(300)
    value, low, high = bounds(estimates(numbers)["mean"])
    error = numbers.values.std() / np.sqrt(300)
    assert value == pytest.approx(numbers.values.mean())
    assert low == pytest.approx(value - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.15 * error)
    assert estimates(numbers)["undefined"] == Estimate(None, None, None)


def test_more_cases_of_the_same_patients_do_not_narrow_the_interval() -> None:
    once = sample(20)
    often = Numbers(np.repeat(once.values, 5), tuple(np.repeat(once.patients, 5)))
    assert bounds(estimates(often)["mean"]) == pytest.approx(bounds(estimates(once)["mean"]))
    alone = Numbers(often.values, tuple(str(i) for i in range(100)))
    _, low, high = bounds(estimates(alone)["mean"])
    _, wide_low, wide_high = bounds(estimates(once)["mean"])
    assert high - low < 0.6 * (wide_high - wide_low)


def test_difference_of_the_same_patients_is_sharper_than_two_intervals() -> None:
    first, second = sample(30), sample(30, shift=0.5)
    assert estimates(first)["mean"].overlaps(estimates(second)["mean"])
    assert bounds(differences(second, first)["mean"]) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="different cases"):
        differences(first, sample(31))


def test_mean_over_seeds_is_within_each_resample() -> None:
    first, second = sample(30), sample(30, shift=1.0)
    assert bounds(differences(Mean([first, second]), first)["mean"]) == pytest.approx((0.5,) * 3)


def test_intervals_touch_or_not() -> None:
    one = Estimate(1.0, 0.0, 2.0)
    assert one.overlaps(Estimate(2.5, 2.0, 3.0))
    assert not one.overlaps(Estimate(2.5, 2.1, 3.0))
    assert not Estimate(2.5, 2.1, 3.0).overlaps(one)
    assert one.overlaps(Estimate(None, None, None))


def test_every_resample_has_two_patients() -> None:
    weights = patient_weights(["a", "a", "b"], 500, seed=1)
    assert set(map(tuple, weights)) == {(1.0, 1.0, 1.0)}
    weights = patient_weights(list("abcd"), 2000, seed=1)
    assert (weights.sum(axis=1) == 4).all()
    assert ((weights > 0).sum(axis=1) >= 2).all()
    with pytest.raises(ValueError, match="1 patients"):
        patient_weights(["a", "a"], 10, seed=0)
