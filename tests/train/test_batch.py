"""From raw regions to crops, against torch's own flips and rotations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.train.batch import assemble, gather_crops, show
from prect.train.config import CropConfig, ViewConfig
from prect.train.loader import RawBatch

SIZE = (4, 4, 3)


@given(
    flips=st.tuples(*[st.booleans()] * 3),
    turns=st.integers(0, 3),
    start=st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 2)),
)
@settings(max_examples=100, deadline=None)
def test_gather_equals_cut_flip_and_rotate(
    flips: tuple[bool, bool, bool], turns: int, start: tuple[int, int, int]
) -> None:
    grids = torch.rand(2, 9, 10, 5, generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([[[0, 0, 0], start], [start, [1, 2, 0]]])
    flipped = torch.zeros(2, 2, 3, dtype=torch.bool)
    turned = torch.zeros(2, 2, dtype=torch.int64)
    flipped[0, 1] = torch.tensor(flips)
    turned[0, 1] = turns
    crops = gather_crops(grids, starts, flipped, turned, SIZE)

    x, y, z = start
    cut = grids[0, x : x + 4, y : y + 4, z : z + 3]
    axes = [axis for axis, on in enumerate(flips) if on]
    torch.testing.assert_close(crops[0, 1], torch.rot90(cut.flip(axes), turns, (0, 1)))
    torch.testing.assert_close(crops[1, 0], grids[1, x : x + 4, y : y + 4, z : z + 3])
    torch.testing.assert_close(crops[0, 0], grids[0, :4, :4, :3])


def test_axes_change_from_zyx_to_xyz() -> None:
    region = torch.zeros(4, 6, 8, dtype=torch.int16)
    region[1, 2, 3] = 100
    shown = show(region, ViewConfig(grid=(8, 6, 4), window=(0, 100)))
    assert shown.shape == (8, 6, 4)
    assert shown[3, 2, 1] == 1
    assert shown.sum() == 1


def test_window_clips() -> None:
    region = torch.tensor([-1024, -175, 37, 250, 3071], dtype=torch.int16).view(5, 1, 1)
    shown = show(region, ViewConfig(grid=(1, 1, 5)))
    torch.testing.assert_close(shown.flatten(), torch.tensor([0, 0, (37 + 175) / 425, 1, 1]))


def test_coarse_axes_average_all_voxels() -> None:
    """A thin bright slice between two output voxels must not vanish."""
    region = torch.zeros(24, 4, 4, dtype=torch.int16)
    region[10] = 600
    shown = show(region, ViewConfig(grid=(4, 4, 4), window=(0, 600)))
    torch.testing.assert_close(shown.mean(), torch.tensor(1 / 24))


def test_random_crops_come_first_and_shift_is_added() -> None:
    crops = CropConfig(base_grid=(2, 1, 1), size=(4, 4, 4), random=1)
    region = torch.arange(4 * 4 * 8, dtype=torch.int16).view(4, 4, 8)
    starts = torch.tensor([[[2, 0, 0], [0, 0, 0], [4, 0, 0]]])
    shifts = torch.tensor([[0.1, 0.0, -0.1]])
    raw = RawBatch(
        samples=[],
        regions=[region],
        starts=starts,
        flips=torch.zeros(1, 3, 3, dtype=torch.bool),
        turns=torch.zeros(1, 3, dtype=torch.int64),
        shifts=shifts,
        labels=torch.full((1, 1, 2), 0.5),
    )
    batch = assemble(raw, ViewConfig(grid=(8, 4, 4), window=(0, 1000)), crops)
    assert batch.crops.shape == (3, 1, 4, 4, 4)
    image = region.permute(2, 1, 0) / 1000
    for crop, (x, shift) in zip(batch.crops, [(2, 0.1), (0, 0.0), (4, -0.1)], strict=True):
        torch.testing.assert_close(crop[0], image[x : x + 4] + shift)
    assert (batch.volumes, batch.random) == (1, 1)
    assert raw.voxel_bytes == 4 * 4 * 8 * 2


@pytest.mark.parametrize("grid", [(5, 7, 3), (16, 9, 20)])
def test_constant_stays_constant(grid: tuple[int, int, int]) -> None:
    region = torch.full((9, 11, 13), 37, dtype=torch.int16)
    shown = show(region, ViewConfig(grid=grid))
    torch.testing.assert_close(shown, torch.full(grid, (37 + 175) / 425))
