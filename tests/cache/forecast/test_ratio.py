"""Samples and ratio estimators, on populations that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.cache.forecast.ratio import allocate, draw, interval, ratio_total


def test_intervals_hold_what_they_promise() -> None:
    """Populations as CT collections are: skewed sizes, bytes near proportion, some failures."""
    chance = np.random.default_rng(0)
    held, errors = 0, []
    for seed in range(600):
        sizes = chance.lognormal(16, 0.5, 400)
        values = sizes * chance.normal(0.6, 0.12, 400) * (chance.random(400) > 0.02)
        drawn = draw(sizes, 20, np.random.default_rng(seed), certain=int(sizes.argmax()))
        assert int(sizes.argmax()) in drawn.units
        assert drawn.weights.sum() == 400
        units = drawn.units
        total = ratio_total(values[units], sizes[units], drawn.weights, float(sizes.sum()))
        found = interval([total])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= values.sum() <= found.high
        errors.append(found.value / values.sum() - 1)
    assert 0.92 <= held / 600 <= 0.99
    assert abs(np.mean(errors)) < 0.005


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_strata_hold_every_unit_once(count: int, wanted: int, seed: int) -> None:
    wanted = min(count, wanted)
    sizes = np.random.default_rng(seed).lognormal(0, 1, count)
    drawn = draw(sizes, wanted, np.random.default_rng(seed), certain=seed % count)
    assert len(set(drawn.units)) == wanted
    assert drawn.weights.sum() == count
    assert np.ptp(drawn.weights[1:] if wanted > 1 else drawn.weights) <= 1 or wanted < 3
    again = draw(sizes, wanted, np.random.default_rng(seed), certain=seed % count)
    assert (again.units == drawn.units).all()
    if wanted == count:
        sizes_drawn = sizes[drawn.units]
        total = ratio_total(sizes_drawn**2, sizes_drawn, drawn.weights, float(sizes.sum()))
        assert total.value == pytest.approx((sizes**2).sum())
        assert total.variance == 0


def test_a_textbook_sample_gives_the_textbook_error() -> None:
    """Equal strata: N (N - n) / n times the residual variance (Cochran, section 6.4)."""
    values, sizes = np.array([2.0, 5.0, 7.0, 8.0]), np.array([1.0, 2.0, 3.0, 4.0])
    total = ratio_total(values, sizes, np.array([5, 5, 5, 5]), 60.0)
    ratio = 22 / 10
    residual = ((values - ratio * sizes) ** 2).sum() / 3
    assert total.value == pytest.approx(60 * ratio)
    assert total.variance == pytest.approx(20 * 16 / 4 * residual)
    found = interval([total])
    assert found.high == pytest.approx(total.value + 3.182446 * np.sqrt(20 * 16 / 4 * residual))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0.1, 10)), min_size=1, max_size=8),
    st.integers(1, 100),
)
def test_every_data_set_gets_two_where_possible(
    populations: list[tuple[int, float]], total: int
) -> None:
    counts = [count for count, _ in populations]
    given_out = allocate(counts, [count * size for count, size in populations], total)
    assert sum(given_out) == min(total, sum(counts))
    assert all(0 <= n <= count for n, count in zip(given_out, counts, strict=True))
    if total >= sum(min(2, count) for count in counts):
        assert all(n >= min(2, count) for n, count in zip(given_out, counts, strict=True))


def test_a_unit_that_stands_for_itself_alone_adds_no_error() -> None:
    values, sizes = np.array([90.0, 2.0, 5.0, 7.0]), np.array([100.0, 1.0, 2.0, 3.0])
    total = ratio_total(values, sizes, np.array([1, 5, 5, 5]), 130.0)
    ratio = (90 + 5 * 14) / (100 + 5 * 6)
    residual = ((values[1:] - ratio * sizes[1:]) ** 2).sum() / 2
    assert total.value == pytest.approx(130 * ratio)
    assert total.freedom == 2
    assert total.variance == pytest.approx(3 * 5 * 4 * residual)
    two = ratio_total(values[:2], sizes[:2], np.array([1, 5]), 130.0)  # one shows no spread
    assert two.freedom == 1
    assert two.variance is not None
