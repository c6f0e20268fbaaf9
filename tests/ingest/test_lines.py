"""The weights of one axis, whichever way it runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.ingest.lines import Line, gaussian


@pytest.mark.parametrize("variance", [0.0, 0.01, 0.3, 2.0, 20.0])
def test_the_gaussian_has_its_variance(variance: float) -> None:
    weights = gaussian(variance)
    distance = np.arange(len(weights)) - len(weights) // 2
    assert weights.sum() == pytest.approx(1)
    assert weights @ distance**2 == pytest.approx(variance, rel=1e-3)
    np.testing.assert_array_equal(weights, weights[::-1])


@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 40),
    step=st.floats(1.0, 9.0) | st.floats(-9.0, -1.0),
    start=st.floats(-20, 60),
)
def test_weights_of_a_line(size: int, step: float, start: float) -> None:
    line = Line.low_passed(start + step * np.arange(12.0), size, step)
    np.testing.assert_allclose(line.weights.sum(axis=0), 1, rtol=1e-6)
    assert (line.weights >= 0).all()
    assert (line.weights[0] > 0).all()
    assert line.taps.min() >= 0
    assert line.taps.max() < size
    assert len(line.taps) <= 2 * abs(step) + 1


@settings(deadline=None, max_examples=50)
@given(
    size=st.integers(2, 40),
    step=st.floats(1.01, 9.0),
    start=st.floats(-20, 30),
    stray=st.floats(-1e-11, 1e-11),
)
def test_a_mirrored_line_has_the_same_weights_to_the_bit(
    size: int, step: float, start: float, stray: float
) -> None:
    """In the order of the grid, whatever the last bits of float64 are."""
    # Far from a tie between two multiples of the 2^-20 voxels that positions are rounded to.
    exact = np.round((start + step * np.arange(9.0)) * 2**20) / 2**20
    step = round(step * 2**20) / 2**20
    line = Line.low_passed(exact, size, step)
    mirrored = Line.low_passed(size - 1 - exact + stray, size, -step + stray)
    np.testing.assert_array_equal(mirrored.weights, line.weights)
    np.testing.assert_array_equal(mirrored.taps, size - 1 - line.taps)
