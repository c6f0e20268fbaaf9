"""A box lies where the body is, on the grid of chunks, and is shown where it is read."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prect.cache.reader import StoreReader
from prect.errors import StoreError
from prect.phantom import make_case
from prect.train.config import ViewConfig
from prect.train.placing import CANDIDATES, VolumeLayout, align, body_share, place_view
from prect.train.views import Geometry, Region, View, Voxels, box_view, plan_region
from tests.cache.stores import SPACING, write_store

LEVELS = 3
BODY_HU = -500


@dataclass
class Layout:
    """Chunks of one shape and an occupancy a level, counted from voxels."""

    chunk: Voxels
    body: list[NDArray[np.bool_]]
    """(z, y, x) of each level."""

    @property
    def levels(self) -> list[Any]:
        return [SimpleNamespace(chunk=self.chunk) for _ in self.body]

    def occupancy(self, level: int) -> NDArray[np.uint8]:
        body = self.body[level]
        grid = [-(-n // c) for n, c in zip(body.shape, self.chunk, strict=True)]
        result = np.zeros(grid, dtype=np.uint8)
        for position in np.ndindex(*grid):
            part = tuple(
                slice(p * c, (p + 1) * c) for p, c in zip(position, self.chunk, strict=True)
            )
            result[position] = np.ceil(body[part].mean() * 255)
        return result


def share_of(region: Region, volume: Geometry, layout: VolumeLayout) -> float:
    level = region.level
    return body_share(region, volume, layout.levels[level].chunk, layout.occupancy(level))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    shape = draw(st.tuples(*[st.integers(12, 60)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.5, 4)] * 3))
    return Geometry(shape, spacing, LEVELS)


GRID = st.tuples(*[st.integers(4, 32)] * 3)
VOXEL = st.tuples(*[st.floats(0.5, 9)] * 3)
PLACE = st.tuples(*[st.floats(0, 0.999)] * 3)
CHUNK = st.tuples(*[st.integers(1, 24)] * 3)


@given(geometries(), GRID, VOXEL, PLACE, CHUNK)
@settings(max_examples=300, deadline=None)
def test_aligned_box_is_on_the_grid_inside_and_near(
    volume: Geometry,
    grid: Voxels,
    voxel: tuple[float, float, float],
    place: tuple[float, float, float],
    chunk: Voxels,
) -> None:
    asked = box_view(volume, grid, voxel, place)
    before = plan_region(asked, volume)
    view, region = align(asked, before, volume, chunk)
    assert (region.level, region.shape, region.spacing) == (
        before.level,
        before.shape,
        before.spacing,
    )
    for axis, available in enumerate(volume.level_shape(region.level)):
        start, count, step = region.start[axis], region.shape[axis], chunk[axis]
        if count > available:
            assert start == before.start[axis]
            continue
        assert 0 <= start <= available - count
        assert start % step == 0 or start == available - count
        assert abs(start - before.start[axis]) <= step / 2
        # What is shown is what is read.
        assert view.start[2 - axis] == start * region.spacing[axis]


@given(geometries(), GRID, VOXEL, CHUNK)
@settings(max_examples=300, deadline=None)
def test_aligned_boxes_reach_both_ends(
    volume: Geometry, grid: Voxels, voxel: tuple[float, float, float], chunk: Voxels
) -> None:
    for place, at_end in ((0.0, False), (1.0, True)):
        asked = box_view(volume, grid, voxel, (place, place, place))
        region = align(asked, plan_region(asked, volume), volume, chunk)[1]
        full = volume.level_shape(region.level)
        for start, count, available in zip(region.start, region.shape, full, strict=True):
            # A coarse level may reach a voxel beyond the volume, where no box asks to be.
            if count <= available and at_end:
                assert available - count - 1 <= start <= available - count
            elif count <= available:
                assert start == 0


def test_aligned_box_reads_fewer_chunks() -> None:
    volume, chunk = Geometry((160, 300, 300), (1.5, 1.5, 1.5), LEVELS), (24, 32, 32)
    settings_ = {"kind": "box", "grid": (192, 192, 64), "spacing": (1.5, 1.5, 1.5)}
    layout = Layout(chunk, [np.ones(volume.level_shape(level), bool) for level in range(LEVELS)])
    rng = np.random.default_rng(0)

    def chunks(region: Region) -> int:
        axes = zip(region.start, region.shape, chunk, strict=True)
        return int(np.prod([-(-(s + n) // c) - s // c for s, n, c in axes]))

    read: dict[bool, list[int]] = {}
    for on in (False, True):
        config = ViewConfig.model_validate(settings_ | {"align": on})
        read[on] = [
            chunks(place_view(config, volume, rng.random((1, 3)), layout)[1]) for _ in range(200)
        ]
    assert np.mean(read[True]) < 0.8 * np.mean(read[False])


@given(geometries(), CHUNK, st.data())
@settings(max_examples=100, deadline=None)
def test_body_share_is_what_the_chunks_hold(
    volume: Geometry, chunk: Voxels, data: st.DataObject
) -> None:
    """Equal to spreading each chunk's share over its voxels and counting them one by one."""
    level = data.draw(st.integers(0, LEVELS - 1))
    shape = volume.level_shape(level)
    start = data.draw(st.tuples(*[st.integers(-20, n) for n in shape]))
    size = data.draw(st.tuples(*[st.integers(1, 40)] * 3))
    region = Region(level, start, size, (1.0, 1.0, 1.0))
    body = [np.random.default_rng(7).random(volume.level_shape(i)) < 0.4 for i in range(LEVELS)]
    layout = Layout(chunk, body)
    spread = layout.occupancy(level).astype(float)
    for axis, step in enumerate(chunk):
        spread = spread.repeat(step, axis=axis)
    spread = np.pad(spread[: shape[0], : shape[1], : shape[2]], 60)
    part = spread[tuple(slice(s + 60, s + 60 + n) for s, n in zip(start, size, strict=True))]
    missing = np.prod(size) - part.size  # the padding ends before the box: there is nothing there
    assert missing >= 0
    np.testing.assert_allclose(
        share_of(region, volume, layout), part.sum() / 255 / np.prod(size), atol=1e-12
    )


def test_body_share_of_another_store_is_refused() -> None:
    volume = Geometry((40, 40, 40), (1.0, 1.0, 1.0), 1)
    other = Layout((16, 16, 16), [np.ones((60, 40, 40), bool)])
    with pytest.raises(StoreError, match="not the manifest's"):
        share_of(Region(0, (0, 0, 0), (4, 4, 4), (1, 1, 1)), volume, other)


def phantom_layout(tmp_path: Any) -> tuple[Geometry, StoreReader, NDArray[np.int16]]:
    """A phantom's body in a field of view twice as wide, as a store of its own."""
    hu = make_case(3, 0, "small").hu
    volume = np.full((hu.shape[0], 2 * hu.shape[1], 2 * hu.shape[2]), -1000, dtype=np.int16)
    volume[:, : hu.shape[1], : hu.shape[2]] = hu
    write_store(tmp_path / "p.ome.zarr", volume, chunk=(8, 8, 8))
    return Geometry(volume.shape, SPACING, LEVELS), StoreReader(tmp_path / "p.ome.zarr"), volume


def test_foreground_is_reached_where_a_candidate_has_it(tmp_path: Any) -> None:
    volume, reader, hu = phantom_layout(tmp_path)
    wanted = 0.3
    shape = {"kind": "box", "grid": (24, 24, 16), "spacing": SPACING[::-1]}
    blind = ViewConfig.model_validate(shape)
    aware = ViewConfig.model_validate(shape | {"foreground": wanted})
    rng = np.random.default_rng(5)

    def true_share(region: Region) -> float:
        part = hu[tuple(slice(s, s + n) for s, n in zip(region.start, region.shape, strict=True))]
        return float((part > BODY_HU).mean())

    before, after = [], []
    for _ in range(150):
        places = rng.random((CANDIDATES, 3))
        shares = [
            share_of(place_view(blind, volume, place[None], None)[1], volume, reader)
            for place in places
        ]
        region = place_view(aware, volume, places, reader)[1]
        share = share_of(region, volume, reader)
        # The first that has enough, else the best.
        enough = [s for s in shares if s >= wanted]
        assert share == (enough[0] if enough else max(shares))
        before.append(true_share(place_view(blind, volume, places, None)[1]))
        after.append(true_share(region))
    assert np.mean(np.array(after) >= 0.8 * wanted) > 5 * np.mean(np.array(before) >= 0.8 * wanted)
    assert np.mean(after) > 5 * np.mean(before)


@given(geometries(), GRID, VOXEL, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_foreground_and_align_go_together(
    volume: Geometry, grid: Voxels, voxel: tuple[float, float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    layout = Layout(
        (6, 8, 8), [rng.random(volume.level_shape(level)) < 0.5 for level in range(LEVELS)]
    )
    options = {"kind": "box", "grid": grid, "spacing": voxel, "align": True, "foreground": 1.0}
    places = rng.random((CANDIDATES, 3))
    view, region = place_view(ViewConfig.model_validate(options), volume, places, layout)
    tried = []
    for x, y, z in places:
        asked = box_view(volume, grid, voxel, (x, y, z))
        tried.append(align(asked, plan_region(asked, volume), volume, layout.chunk))
    shares = [share_of(one, volume, layout) for _, one in tried]
    assume(max(shares) < 1)
    assert (view, region) == tried[int(np.argmax(shares))]


def test_whole_views_need_no_layout() -> None:
    volume = Geometry((40, 50, 60), (2.0, 1.0, 1.0), LEVELS)
    view, region = place_view(ViewConfig(grid=(24, 24, 16)), volume, np.zeros((8, 3)), None)
    assert view == View((0, 0, 0), (60, 50, 80), (24, 24, 16))
    assert region.start == (0, 0, 0)
