"""Crop geometry against counting voxels one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.train.config import CropConfig
from prect.train.crops import base_starts, overlap_shares, random_start_range

TRIPLE = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
SIZE = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[CropConfig, tuple[int, int, int]]:
    base_grid, size = draw(TRIPLE), draw(SIZE)
    spare = draw(st.tuples(*[st.integers(0, 3)] * 3))
    grid = [n * s + e for n, s, e in zip(base_grid, size, spare, strict=True)]
    return CropConfig(base_grid=base_grid, size=size), (grid[0], grid[1], grid[2])


@given(layouts(), st.tuples(*[st.floats(0, 1)] * 3))
@settings(max_examples=150, deadline=None)
def test_shares_count_voxels_and_sum_to_one(
    layout: tuple[CropConfig, tuple[int, int, int]], place: tuple[float, float, float]
) -> None:
    crops, grid = layout
    first, last = random_start_range(crops, grid)
    start = first + np.floor(np.array(place) * (last - first)).astype(np.int64)
    owner = np.full(grid, -1)
    for number, corner in enumerate(base_starts(crops, grid)):
        box = tuple(slice(a, a + s) for a, s in zip(corner, crops.size, strict=True))
        assert (owner[box] == -1).all()
        owner[box] = number
    inside = tuple(slice(a, a + s) for a, s in zip(start, crops.size, strict=True))
    counted = np.bincount(owner[inside].ravel(), minlength=crops.bases) / np.prod(crops.size)

    shares = overlap_shares(start[None], base_starts(crops, grid), crops.size)
    np.testing.assert_allclose(shares[0], counted, atol=1e-6)
    assert abs(shares.sum() - 1) < 1e-5


def test_published_layout_tiles_the_view() -> None:
    crops = CropConfig()
    starts = base_starts(crops, (192, 192, 64))
    assert starts[0].tolist() == [0, 0, 0]
    assert starts[-1].tolist() == [128, 128, 0]
    first, last = random_start_range(crops, (192, 192, 64))
    # Centres uniform in [32, 160], z fixed (voco.md): starts 32 voxels below.
    assert first.tolist() == [0, 0, 0]
    assert last.tolist() == [128, 128, 0]


def test_margin_keeps_random_crops_away_from_the_edge() -> None:
    crops = CropConfig(margin=(8, 0, 0))
    first, last = random_start_range(crops, (200, 192, 64))
    assert first.tolist() == [4 + 8, 0, 0]
    assert last.tolist() == [4 + 128 - 8, 128, 0]
