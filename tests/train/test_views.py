"""Views show the right place, at the right level."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prect.cache.writer import pool
from prect.train.batch import resize
from prect.train.views import Geometry, Region, View, box_view, plan_region, whole_view

LEVELS = 3


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    shape = draw(st.tuples(*[st.integers(12, 40)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.5, 4)] * 3))
    return Geometry(shape, spacing, LEVELS)


GRID = st.tuples(*[st.integers(4, 24)] * 3)
PLACE = st.tuples(*[st.floats(0, 0.999)] * 3)


def read(levels: list[NDArray[np.int16]], region: Region) -> NDArray[np.int16]:
    """The region of a volume held in memory; the voxels outside repeat the edge."""
    volume = levels[region.level]
    index = [
        np.clip(np.arange(start, start + n), 0, full - 1)
        for start, n, full in zip(region.start, region.shape, volume.shape, strict=True)
    ]
    return volume[np.ix_(*index)]


def shown(region: NDArray[np.int16], grid: tuple[int, int, int]) -> NDArray[np.float32]:
    """A region on the view's grid, (x, y, z)."""
    image = resize(torch.from_numpy(region).float()[None, None], grid[::-1])
    return image[0, 0].permute(2, 1, 0).numpy()


def ramp_levels(volume: Geometry, axis: int) -> tuple[list[NDArray[np.int16]], float]:
    """Levels of a volume whose HU is proportional to the position along one axis, and HU a mm."""
    extent = volume.shape[axis] * volume.spacing[axis]
    slope = 20000 / extent
    centres = (np.arange(volume.shape[axis]) + 0.5) * volume.spacing[axis] * slope
    ramp = np.round(centres).astype(np.int16)
    view = [1, 1, 1]
    view[axis] = -1
    levels = [np.ascontiguousarray(np.broadcast_to(ramp.reshape(view), volume.shape))]
    for _ in range(LEVELS - 1):
        levels.append(pool(levels[-1]))
    return levels, slope


def check_ramp(volume: Geometry, view: View, axis: int) -> None:
    """Each output voxel inside the volume shows the HU of its own place, to half a voxel."""
    levels, slope = ramp_levels(volume, 2 - axis)
    region = plan_region(view, volume)
    image = shown(read(levels, region), view.grid) / slope
    wanted = region.centres(view.grid)[axis]
    along = np.moveaxis(image, axis, 0).reshape(view.grid[axis], -1)
    edge = region.spacing[2 - axis]
    extent = volume.shape[2 - axis] * volume.spacing[2 - axis]
    # An output voxel that reaches beyond the volume's end shows what was made up there.
    margin = max(edge, wanted[1] - wanted[0])
    inside = (wanted > margin) & (wanted < extent - margin)
    error = np.abs(along - wanted[:, None])[inside]
    assert error.size == 0 or error.max() <= 0.501 * edge
    assert np.ptp(along, axis=1).max() <= 1e-3 * edge


@given(geometries(), GRID, st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_whole_view_keeps_a_ramp(volume: Geometry, grid: tuple[int, int, int], axis: int) -> None:
    check_ramp(volume, whole_view(volume, grid), axis)


@given(geometries(), GRID, st.tuples(*[st.floats(0.5, 9)] * 3), PLACE, st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_box_view_keeps_a_ramp(
    volume: Geometry,
    grid: tuple[int, int, int],
    voxel: tuple[float, float, float],
    place: tuple[float, float, float],
    axis: int,
) -> None:
    check_ramp(volume, box_view(volume, grid, voxel, place), axis)


@given(geometries(), GRID, st.tuples(*[st.floats(0.5, 9)] * 3), PLACE)
@settings(max_examples=400, deadline=None)
def test_level_is_the_coarsest_that_is_fine_enough(
    volume: Geometry,
    grid: tuple[int, int, int],
    voxel: tuple[float, float, float],
    place: tuple[float, float, float],
) -> None:
    view = box_view(volume, grid, voxel, place)
    level = plan_region(view, volume).level

    def fine_enough(number: int) -> bool:
        return all(
            mm * 2**number <= out + 1e-6
            for mm, out in zip(volume.spacing[::-1], view.spacing, strict=True)
        )

    assert fine_enough(level) or level == 0
    assert level == LEVELS - 1 or not fine_enough(level + 1)


@given(geometries(), GRID, st.tuples(*[st.floats(0.5, 9)] * 3), PLACE)
@settings(max_examples=400, deadline=None)
def test_region_lies_half_a_voxel_from_the_box_at_most(
    volume: Geometry,
    grid: tuple[int, int, int],
    voxel: tuple[float, float, float],
    place: tuple[float, float, float],
) -> None:
    view = box_view(volume, grid, voxel, place)
    region = plan_region(view, volume)
    start = np.multiply(region.start, region.spacing)[::-1]
    size = np.multiply(region.shape, region.spacing)[::-1]
    edge = np.array(region.spacing[::-1])
    # The coarse levels reach up to a voxel beyond the volume; there a larger box is not centred.
    extent = np.multiply(volume.shape, volume.spacing)[::-1]
    limit = np.where(np.array(view.size) > extent, 0.75, 0.5001) * edge
    assert (np.abs(start - view.start) <= limit).all()
    assert (np.abs(size - view.size) <= np.maximum(0.5001 * edge, edge - view.size)).all()
    available = -(-np.array(volume.shape) // 2**region.level)
    fits = np.array(region.shape) <= available
    inside = (np.array(region.start) >= 0) & (np.array(region.start) + region.shape <= available)
    assert (inside | ~fits).all()


def test_box_at_the_spacing_of_the_store_is_not_resampled() -> None:
    volume = Geometry((80, 90, 100), (1.5, 1.5, 1.5), LEVELS)
    region = plan_region(box_view(volume, (48, 48, 32), (1.5, 1.5, 1.5), (0.5, 0, 0.99)), volume)
    assert (region.level, region.shape) == (0, (32, 48, 48))
    voxels = np.random.default_rng(0).integers(-175, 250, region.shape).astype(np.int16)
    np.testing.assert_array_equal(shown(voxels, (48, 48, 32)), voxels.T)


def test_box_larger_than_the_volume_has_it_in_the_middle() -> None:
    volume = Geometry((10, 10, 10), (1.0, 1.0, 1.0), LEVELS)
    region = plan_region(box_view(volume, (20, 10, 10), (1, 1, 1), (0.7, 0.7, 0.7)), volume)
    assert region.start == (0, 0, -5)
    assert region.shape == (10, 10, 20)
