"""Percentiles of HU against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.cache.histogram import PERCENTILES, HuHistogram

HU = st.integers(-1024, 3071)


@settings(deadline=None, max_examples=60)
@given(voxels=st.lists(HU, min_size=1, max_size=40), planes=st.sampled_from([1, 2, 4]))
def test_so_many_per_cent_do_not_exceed_it(voxels: list[int], planes: int) -> None:
    hu = np.resize(np.array(voxels, dtype=np.int16), (4, len(voxels), 1))
    histogram = HuHistogram()
    for start in range(0, 4, planes):
        histogram.add(hu[start : start + planes])
    found = histogram.percentiles()
    assert list(found) == ["0.5", "5", "50", "95", "99.5"]
    for percent, value in zip(PERCENTILES, found.values(), strict=True):
        assert (hu <= value).mean() >= percent / 100
        assert (hu < value).mean() < percent / 100  # no lower HU does


@pytest.mark.parametrize("value", [-1024, 0, 3071])
def test_one_value_is_every_percentile(value: int) -> None:
    histogram = HuHistogram()
    histogram.add(np.full((2, 3, 4), value, dtype=np.int16))
    assert set(histogram.percentiles().values()) == {value}
