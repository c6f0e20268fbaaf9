"""From raw regions to crops, against torch's own flips and rotations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.train.batch import assemble, gather_crops, show
from prect.train.collate import pack
from prect.train.config import CropConfig, ViewConfig
from prect.train.sampling import Sample
from prect.train.views import Region, View

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


def sample(
    region: torch.Tensor, window: tuple[float, float], starts: list[list[int]], shifts: list[float]
) -> Sample:
    """A sample whose first crop is a random one; all lie as they are."""
    count = len(starts)
    z, y, x = region.shape
    return Sample(
        index=0,
        epoch=0,
        row=0,
        view=View((0, 0, 0), (1, 1, 1), (1, 1, 1)),
        region=Region(0, (0, 0, 0), (z, y, x), (1, 1, 1)),
        window=window,
        starts=np.array(starts),
        flips=np.zeros((count, 3), dtype=np.bool_),
        turns=np.zeros(count, dtype=np.int64),
        shifts=np.array(shifts, dtype=np.float32),
    )


def shown(
    regions: Sequence[torch.Tensor],
    grid: tuple[int, int, int],
    windows: Sequence[tuple[float, float]] = (),
) -> torch.Tensor:
    """The regions as one batch, windowed and on the grid."""
    windows = windows or [(-175.0, 250.0)] * len(regions)
    starts, shifts = [[0, 0, 0]] * 3, [0.0] * 3
    samples = [sample(r, w, starts, shifts) for r, w in zip(regions, windows, strict=True)]
    flat = torch.cat([region.flatten() for region in regions])
    crops = CropConfig(base_grid=(2, 1, 1), size=(4, 4, 4), random=1)
    return show(pack(samples, flat, crops), grid)


def test_axes_change_from_zyx_to_xyz() -> None:
    region = torch.zeros(4, 6, 8, dtype=torch.int16)
    region[1, 2, 3] = 100
    image = shown([region], (8, 6, 4), [(0, 100)])[0]
    assert image.shape == (8, 6, 4)
    assert image[3, 2, 1] == 1
    assert image.sum() == 1


def test_window_clips() -> None:
    region = torch.tensor([-1024, -175, 37, 250, 3071], dtype=torch.int16).view(5, 1, 1)
    image = shown([region], (1, 1, 5))
    torch.testing.assert_close(image.flatten(), torch.tensor([0, 0, (37 + 175) / 425, 1, 1]))


def test_coarse_axes_average_all_voxels() -> None:
    """A thin bright slice between two output voxels must not vanish."""
    region = torch.zeros(24, 4, 4, dtype=torch.int16)
    region[10] = 600
    image = shown([region], (4, 4, 4), [(0, 600)])
    torch.testing.assert_close(image.mean(), torch.tensor(1 / 24))


@pytest.mark.parametrize("equal", [True, False])
def test_each_volume_of_a_batch_is_shown_as_it_is_alone(equal: bool) -> None:
    """Whatever other volumes it shares the batch with: of its shape, of others, in any window."""
    shapes = [(9, 6, 8)] * 4 if equal else [(9, 6, 8), (5, 5, 5), (9, 6, 8), (30, 3, 8)]
    noise = torch.Generator().manual_seed(0)
    regions = [
        torch.randint(-1024, 3072, shape, generator=noise).to(torch.int16) for shape in shapes
    ]
    windows = [(-175.0, 250.0), (-1000.0, 500.0), (0.0, 100.0), (-175.0, 250.0)]
    together = shown(regions, (8, 6, 4), windows)
    for image, region, window in zip(together, regions, windows, strict=True):
        torch.testing.assert_close(image, shown([region], (8, 6, 4), [window])[0])


def test_random_crops_come_first_and_shift_is_added() -> None:
    crops = CropConfig(base_grid=(2, 1, 1), size=(4, 4, 4), random=1)
    region = torch.arange(4 * 4 * 8, dtype=torch.int16).view(4, 4, 8)
    one = sample(region, (0, 1000), [[2, 0, 0], [0, 0, 0], [4, 0, 0]], [0.1, 0.0, -0.1])
    raw = pack([one], region.flatten(), crops)
    batch = assemble(raw, ViewConfig(grid=(8, 4, 4), window=(0, 1)), crops)
    assert batch.crops.shape == (3, 1, 4, 4, 4)
    image = region.permute(2, 1, 0) / 1000
    for crop, (x, shift) in zip(batch.crops, [(2, 0.1), (0, 0.0), (4, -0.1)], strict=True):
        torch.testing.assert_close(crop[0], image[x : x + 4] + shift)
    assert (batch.volumes, batch.random) == (1, 1)
    assert raw.voxel_bytes == 4 * 4 * 8 * 2
    torch.testing.assert_close(batch.labels, torch.tensor([[[0.5, 0.5]]]))


def test_crops_are_resized_where_the_recipe_says_so() -> None:
    crops = CropConfig(base_grid=(2, 1, 1), size=(4, 4, 4), resize=(2, 8, 4), random=1)
    region = torch.arange(8, dtype=torch.int16).expand(4, 4, 8).contiguous()
    one = sample(region, (0, 8), [[2, 0, 0], [0, 0, 0], [4, 0, 0]], [0.0, 0.0, 0.5])
    batch = assemble(pack([one], region.flatten(), crops), ViewConfig(grid=(8, 4, 4)), crops)
    assert batch.crops.shape == (3, 1, 2, 8, 4)
    for crop, pairs in zip(batch.crops, [(2.5, 4.5), (0.5, 2.5), (8.5, 10.5)], strict=True):
        expected = (torch.tensor(pairs) / 8)[:, None, None].expand(2, 8, 4)
        torch.testing.assert_close(crop[0], expected)


@pytest.mark.parametrize("grid", [(5, 7, 3), (16, 9, 20)])
def test_constant_stays_constant(grid: tuple[int, int, int]) -> None:
    region = torch.full((9, 11, 13), 37, dtype=torch.int16)
    torch.testing.assert_close(shown([region], grid)[0], torch.full(grid, (37 + 175) / 425))
