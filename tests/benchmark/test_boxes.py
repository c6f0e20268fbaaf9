"""Boxes are the same for everybody, lie inside, and can be aligned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from prect.benchmark.blosc_layout import FIRST_CACHE, blosc_layout
from prect.benchmark.boxes import ALIGNED, VIEWS, Volume, bursts, draw_turns

FULL = (200, 150, 300)


def test_boxes_lie_inside_and_repeat(volumes: list[Volume]) -> None:
    large = [replace(volume, shape=FULL) for volume in volumes]
    turns = draw_turns(large, 3)
    assert turns == draw_turns(large, 3)
    assert len(turns) == 3 * len(large) * (len(VIEWS) + 1)
    for turn in turns:
        wanted = VIEWS["v2 region" if turn.view == ALIGNED else turn.view]
        assert turn.box.shape == tuple(min(a, b) for a, b in zip(wanted, FULL, strict=True))
        for start, size, full in zip(turn.box.start, turn.box.shape, FULL, strict=True):
            assert 0 <= start <= full - size
    assert len({turn.box.start for turn in turns}) > len(turns) / 2


def test_a_burst_is_one_box_of_every_view_of_one_volume(volumes: list[Volume]) -> None:
    turns = draw_turns(volumes, 2)
    groups = bursts(turns)
    assert [turn for group in groups for turn in group] == turns
    for group in groups:
        assert [turn.view for turn in group] == [*VIEWS, ALIGNED]
        assert len({turn.volume for turn in group}) == 1


def test_an_aligned_box_has_a_place_of_its_own_on_the_grid(volumes: list[Volume]) -> None:
    volume = replace(volumes[0], shape=(400, 550, 500), chunk=(24, 32, 32))
    turns = draw_turns([volume], 12)
    far = 0
    for before, turn in pairwise(turns):
        if turn.view == ALIGNED:
            assert before.view == "v2 region"
            assert all(s % c == 0 for s, c in zip(turn.box.start, volume.chunk, strict=True))
            moved = [b - a for a, b in zip(turn.box.start, before.box.start, strict=True)]
            far += any(not 0 <= m < c for m, c in zip(moved, volume.chunk, strict=True))
    assert far >= 10, "the region before it is not the one that it was moved down from"


def test_blosc_layout_follows_the_rule() -> None:
    # 48 rounded down is 32; two of the three axes must halve for int16 to fit 26 kB.
    chunk, block = blosc_layout((300, 320, 320), (96, 96, 96), 2)
    assert sorted(block) == [16, 16, 32]
    assert 2 * block[0] * block[1] * block[2] <= FIRST_CACHE
    assert all(c % b == 0 for c, b in zip(chunk, block, strict=True))
    # float32 needs one axis more.
    assert blosc_layout((300, 320, 320), (96, 96, 96), 4)[1] == (16, 16, 16)


def test_blosc_layout_of_a_small_image_is_the_image() -> None:
    chunk, block = blosc_layout((10, 12, 14), (96, 96, 96), 2)
    assert chunk == (10, 12, 14)
    assert all(b <= n for b, n in zip(block, (10, 12, 14), strict=True))


def test_blosc_layout_stops_at_one_and_a_half_patches() -> None:
    chunk, _ = blosc_layout((4096, 4096, 4096), (16, 16, 16), 1)
    assert sum(chunk) / 3 / 16 <= 1.5
