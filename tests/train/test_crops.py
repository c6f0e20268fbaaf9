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
    free = [(n - 1) * s // 2 for n, s in zip(base_grid, size, strict=True)]
    margin = draw(st.tuples(*[st.integers(0, most) for most in free]))
    crops = CropConfig(base_grid=base_grid, size=size, margin=margin)
    return crops, (grid[0], grid[1], grid[2])


PLACE = st.tuples(*[st.floats(0, 1)] * 3)


@given(layouts(), st.lists(PLACE, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_shares_count_voxels_and_sum_to_one(
    layout: tuple[CropConfig, tuple[int, int, int]], places: list[tuple[float, float, float]]
) -> None:
    crops, grid = layout
    first, last = random_start_range(crops, grid)
    starts = first + np.round(np.array(places) * (last - first)).astype(np.int64)
    owner = np.full(grid, -1)
    for number, corner in enumerate(base_starts(crops, grid)):
        box = tuple(slice(a, a + s) for a, s in zip(corner, crops.size, strict=True))
        assert (owner[box] == -1).all()
        owner[box] = number
    shares = overlap_shares(starts, base_starts(crops, grid), crops.size)
    for start, share in zip(starts, shares, strict=True):
        inside = tuple(slice(a, a + s) for a, s in zip(start, crops.size, strict=True))
        assert owner[inside].shape == crops.size
        counted = np.bincount(owner[inside].ravel(), minlength=crops.bases)
        np.testing.assert_allclose(share, counted / np.prod(crops.size), atol=1e-6)
        assert (share > 0).tolist() == (counted > 0).tolist()
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-6)


@given(st.tuples(st.integers(0, 128), st.integers(0, 128)))
@settings(max_examples=50, deadline=None)
def test_with_depth_fixed_shares_are_areas(place: tuple[int, int]) -> None:
    """The published label, dx dy / roi^2."""
    crops = CropConfig()
    bases = base_starts(crops, (192, 192, 64))
    shares = overlap_shares(np.array([[*place, 0]]), bases, crops.size)[0]
    for share, base in zip(shares, bases, strict=True):
        dx, dy = (max(0, 64 - abs(a - b)) for a, b in zip(place, base[:2], strict=True))
        assert share == np.float32(dx * dy / 64**2)


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
