"""What a faulty writer could put into a shard: everything is signed, and wrong all the same."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc

from prect.cache.checks.validate import check_store
from prect.cache.format import Codec
from prect.cache.intensity import Intensity
from prect.cache.reader import StoreReader
from tests.cache.stores import random_hu
from tests.cache.whole_stores import (
    INTENSITIES,
    PLAIN,
    SHAPE,
    Shard,
    both,
    codes,
    edit_attributes,
    edit_shard,
    files_of,
    only_deep,
    restore,
    scan,
    write_whole,
)


def test_an_index_that_is_not_one_of_whole_chunks_in_order(store: Path) -> None:
    sound = files_of(store)
    shard = Shard(store, 1)
    entries = shard.entries()
    (a, m), (b, n) = entries[:2]
    wrong = {
        "swapped": [(b, n), (a, m), *entries[2:]],
        "gap": [(a, m - 1), *entries[1:]],
        "overlap": [(a, m), (b - 1, n + 1), *entries[2:]],
        "empty": [(a, 0), *entries[1:]],
        "beyond": [*entries[:-1], (entries[-1][0], 2**63)],
        "huge": [(a, 2**64 - 1), *entries[1:]],
        "half missing": [(2**64 - 1, m), *entries[1:]],
        "short": [*entries[:-1], (entries[-1][0], entries[-1][1] - 1)],
    }
    for name, table in wrong.items():
        edit_shard(store, 1, shard.data(table))
        found = both(store)
        assert codes(found) == {"store.shard_index"}, name
        assert {fault.level for fault in found} == {1}
        restore(store, sound)
    frame = shard.frames[0]
    for other in (bytes(16), frame + bytes(16 * 16 * 16 * 2)):  # too short, too long for a chunk
        shard.frames[0] = other
        edit_shard(store, 1, shard.data())
        assert codes(both(store)) == {"store.shard_index"}
        restore(store, sound)


def _frame(values: np.ndarray[Any, Any], codec: Codec | None = None) -> bytes:
    codec = codec or Codec(cname="lz4hc")
    data: bytes = blosc.compress(
        np.ascontiguousarray(values), codec.cname.encode(), codec.clevel, blosc.SHUFFLE, 0
    )
    return data


@PLAIN
@given(data=st.data())
def test_a_frame_that_lies_is_found_and_does_no_harm(store: Path, data: st.DataObject) -> None:
    """A damaged frame whose checksum is right: what a writer with bad memory leaves."""
    files = files_of(store)
    shard = Shard(store, 0)
    frame = bytearray(shard.frames[2])
    places = st.integers(0, 31) | st.integers(0, len(frame) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        frame[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        frame = frame[: max(17, data.draw(st.integers(17, len(frame))))]
    shard.frames[2] = bytes(frame)
    try:
        edit_shard(store, 0, shard.data())
        faults = check_store(store, deep=True)
        same = bytes(frame) == Shard(store, 1).frames[0]
        assert same or codes(faults) <= {
            "store.chunk_codec",
            "store.shard_index",
            "store.value",
            "store.padding",
            "store.statistics",
            "store.pooling",
        }
    finally:
        restore(store, files)


def test_a_chunk_of_another_codec_size_or_type(store: Path) -> None:
    sound = files_of(store)
    values = np.zeros((16, 16, 16), dtype=np.int16)
    wrong = {
        "decodes to": _frame(values[1:]),
        "blosc format 4": _frame(values, Codec(cname="zstd")),
        "elements of 1": _frame(values.view(np.uint8)),
        "its frame says": _frame(values) + b"\0",
        "does not decode": _frame(random_hu((16, 16, 16)) // 64)[:16] + bytes(4000),
    }
    cut = wrong["does not decode"]
    wrong["does not decode"] = cut[:12] + struct.pack("<I", len(cut)) + cut[16:]
    for detail, frame in wrong.items():
        shard = Shard(store, 0)
        shard.frames[3] = frame
        edit_shard(store, 0, shard.data())
        (fault,) = only_deep(store)
        assert (fault.code, fault.chunk) == ("store.chunk_codec", (0, 1, 0))
        assert detail in fault.detail
        restore(store, sound)


ILLEGAL = {
    "hu": [-1025, 3072, -32768, 32767],
    "hu10": [-1023, -1025, 3072, 7, -32768],
    "window": [0, 108, 255],
}
LEGAL = {"hu": [-1024, 3071, 0], "hu10": [-1024, 3071, 6], "window": [1, 107]}


@pytest.mark.parametrize("name", INTENSITIES)
def test_values_that_the_intensity_cannot_have_made(tmp_path: Path, name: str) -> None:
    store = tmp_path / "case.ome.zarr"
    intensity = INTENSITIES[name]
    write_whole(store, np.zeros(SHAPE, np.int16), intensity=intensity)
    with StoreReader(store) as reader:
        codec = reader.attributes.levels[0].codec
    sound = files_of(store)
    for value in (*ILLEGAL[name], *LEGAL[name]):
        shard = Shard(store, 0)
        voxels = np.frombuffer(blosc.decompress(shard.frames[0]), intensity.dtype).copy()
        voxels[5] = value
        shard.frames[0] = _frame(voxels, codec)
        edit_shard(store, 0, shard.data())
        found = [f for f in only_deep(store) if f.code == "store.value"]
        assert [f.chunk for f in found] == ([(0, 0, 0)] if value in ILLEGAL[name] else []), value
        restore(store, sound)


@pytest.mark.parametrize("name", INTENSITIES)
def test_voxels_beyond_the_level(tmp_path: Path, name: str) -> None:
    store = tmp_path / "case.ome.zarr"
    intensity = INTENSITIES[name]
    write_whole(store, np.zeros(SHAPE, np.int16), intensity=intensity)
    with StoreReader(store) as reader:
        codec = reader.attributes.levels[1].codec
    shard = Shard(store, 1)  # 19 x 10 x 17 voxels
    last = np.frombuffer(blosc.decompress(shard.frames[-1]), intensity.dtype).copy()
    assert last[-1] == intensity.fill
    last[-1] = last[0]
    shard.frames[-1] = _frame(last, codec)
    edit_shard(store, 1, shard.data())
    (fault,) = only_deep(store)
    assert (fault.code, fault.level, fault.chunk) == ("store.padding", 1, (1, 0, 1))
    assert fault.detail.startswith(f"1 of {16**3 - 3 * 10} voxels")


@pytest.mark.parametrize("name", INTENSITIES)
@pytest.mark.parametrize("chunk", [(16, 16, 16), (7, 9, 64)])
@pytest.mark.parametrize("voxel", [(0, 0, 0), (18, 9, 16), (15, 3, 2), (14, 8, 15)])
def test_a_level_that_is_not_the_mean_of_the_one_before(
    tmp_path: Path, chunk: tuple[int, int, int], voxel: tuple[int, int, int], name: str
) -> None:
    """The coarser level of another volume, which differs in the mean of one voxel."""
    intensity = INTENSITIES[name]
    volume = random_hu(SHAPE) % 300 - 100
    z, y, x = (2 * n for n in voxel)
    other = volume.copy()
    # Too much for what a step may lose; without one, a single HU.
    other[z : z + 2, y : y + 2, x : x + 2] += 2 * intensity.step if intensity.max_error else 1
    store = tmp_path / "case.ome.zarr"
    foreign = tmp_path / "foreign" / "case.ome.zarr"
    write_whole(store, volume, chunk=chunk, levels=2, intensity=intensity)
    write_whole(foreign, other, chunk=chunk, levels=2, intensity=intensity)
    edit_shard(store, 1, (foreign / "1" / "c.0.0.0").read_bytes())
    found = [fault for fault in only_deep(store) if fault.code != "store.statistics"]
    place = tuple(n // c for n, c in zip(voxel, chunk, strict=True))
    assert [(f.code, f.level, f.chunk) for f in found] == [("store.pooling", 1, place)]
    assert f"voxel {voxel}" in found[0].detail


def test_a_level_of_another_volume_is_told_once(tmp_path: Path) -> None:
    store, foreign = tmp_path / "case.ome.zarr", tmp_path / "foreign" / "case.ome.zarr"
    write_whole(store, random_hu((100, 20, 20)), levels=2)
    write_whole(foreign, random_hu((100, 20, 20), seed=1), levels=2)
    edit_shard(store, 1, (foreign / "1" / "c.0.0.0").read_bytes())
    found = [fault for fault in only_deep(store) if fault.code == "store.pooling"]
    assert [(fault.level, fault.chunk) for fault in found] == [(1, (0, 0, 0))]


def test_what_a_step_or_a_window_loses_is_no_fault(tmp_path: Path) -> None:
    store = tmp_path / "case.ome.zarr"
    clipped = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        low = int(rng.integers(-1024, 1))
        high = int(rng.integers(low + 1, 3072))
        step = int(rng.integers(1, 65))
        intensity = Intensity(step=step)
        if seed % 3:
            intensity = Intensity.window(low, high, max(step, -(-(high - low) // 253)))
        hu = rng.normal(rng.integers(low, high + 1), rng.integers(1, 400), (9, 8, 11))
        volume = np.clip(hu, -1024, 3071).astype(np.int16)
        write_whole(store, volume, intensity=intensity)
        assert check_store(store, deep=True) == [], seed
        clipped += bool((volume < intensity.low).any() and (volume > intensity.high).any())
    assert clipped > 5


def test_statistics_of_other_voxels(store: Path, tmp_path: Path) -> None:
    sound = files_of(store)
    with StoreReader(store) as reader:
        median = reader.attributes.hu_percentiles["50"]
    edit_attributes(store, lambda a: a["hu_percentiles"].update({"50": median + 1}))
    (fault,) = only_deep(store)
    assert (fault.code, fault.file) == ("store.statistics", "zarr.json")
    restore(store, sound)
    other = write_whole(tmp_path / "b" / "case.ome.zarr", scan(SHAPE, seed=200))
    occupancy = other.levels[2].occupancy
    edit_attributes(store, lambda a: a["levels"][2].update(occupancy=occupancy))
    (fault,) = only_deep(store)
    assert (fault.code, fault.level) == ("store.statistics", 2)
