"""Overlaps found by sorting are those that comparing every pair finds."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.errors import ManifestError
from prect.manifests import sketches as sketches_module
from prect.manifests.sketches import (
    MIN_SHARE,
    MIN_SHARED,
    SKETCH_DTYPE,
    SKETCH_SIZE,
    overlaps,
    unpack,
)


def column(sketches: list[list[int]]) -> pa.ChunkedArray:
    packed = [np.array(sorted(s), dtype=SKETCH_DTYPE).tobytes() for s in sketches]
    half = len(packed) // 2
    return pa.chunked_array([packed[:half], packed[half:]], pa.binary())


def compared_one_by_one(sketches: list[list[int]]) -> dict[tuple[int, int], float]:
    found = {}
    for (a, one), (b, other) in itertools.combinations(enumerate(sketches), 2):
        complete = min(max(s) if len(s) == SKETCH_SIZE else 2**64 for s in (one, other))
        fewer = min(sum(hash_ <= complete for hash_ in s) for s in (one, other))
        shared = len(set(one) & set(other))
        if shared >= MIN_SHARED and shared >= MIN_SHARE * fewer:
            found[a, b] = shared / fewer
    return found


def found_at_once(sketches: list[list[int]]) -> dict[tuple[int, int], float]:
    found = overlaps(unpack(column(sketches)))
    pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
    return dict(zip(pairs, found.share.tolist(), strict=True))


def made_up(seed: int, volumes: int) -> list[list[int]]:
    """Bottom-k sketches of sets that overlap in all degrees, small and large, some empty."""
    rng = np.random.default_rng(seed)
    universe = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    sketches = []
    for _ in range(volumes):
        first, length = int(rng.integers(0, 3900)), int(rng.choice([0, 5, 40, 300, 1500]))
        sketches.append(sorted(set(universe[first : first + length].tolist()))[:SKETCH_SIZE])
    return sketches


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30))
def test_every_overlap_is_found_and_no_other(seed: int, volumes: int) -> None:
    sketches = made_up(seed, volumes)
    assert found_at_once(sketches) == compared_one_by_one(sketches)


def test_pairs_that_are_counted_in_one_slot_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sketches_module, "_MAX_SLOT_BITS", 2)
    for seed in range(5):
        sketches = made_up(seed, 30)
        assert found_at_once(sketches) == compared_one_by_one(sketches)


def test_the_made_up_sketches_overlap_in_all_degrees() -> None:
    shares = [s for seed in range(5) for s in compared_one_by_one(made_up(seed, 30)).values()]
    assert min(shares) < 0.4
    assert max(shares) == 1.0


def test_the_estimated_share_is_that_of_a_crop_in_the_whole() -> None:
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 2**64, 100_000, dtype=np.uint64).tolist()
    crop = whole[:30_000]
    other = [*whole[:10_000], *rng.integers(0, 2**64, 20_000, dtype=np.uint64).tolist()]
    sketches = [sorted(patterns)[:SKETCH_SIZE] for patterns in (whole, crop, other)]
    found = found_at_once(sketches)
    assert found[0, 1] == 1.0
    assert found[1, 2] == pytest.approx(1 / 3, abs=0.15)


def test_a_hash_that_very_many_volumes_have_tells_nothing() -> None:
    rng = np.random.default_rng(2)
    common = rng.integers(0, 2**64, 20, dtype=np.uint64).tolist()
    own = rng.integers(0, 2**64, (100, 50), dtype=np.uint64).tolist()
    assert len(found_at_once([common + mine for mine in own[:60]])) == 60 * 59 // 2
    assert found_at_once([common + mine for mine in own]) == {}


def test_20000_volumes_without_copies_and_a_few_with() -> None:
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 2**64, (20_000, SKETCH_SIZE), dtype=np.uint64)
    hashes[7, :40] = hashes[19_999, :40]
    hashes[:, -1] = hashes[np.arange(20_000) // 60, -1]  # one that many share by chance
    hashes.sort(axis=1)
    packed = pa.chunked_array([[row.tobytes() for row in hashes]], pa.binary())
    found = overlaps(unpack(packed))
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(7, 19_999)]


def test_what_is_no_sketch_is_refused() -> None:
    for wrong in (b"1234567", b"\0" * 8 * (SKETCH_SIZE + 1)):
        with pytest.raises(ManifestError, match="ingest again"):
            unpack(pa.chunked_array([[b"", wrong]], pa.binary()))
    assert len(unpack(pa.chunked_array([], pa.binary()))) == 0
    assert unpack(pa.chunked_array([[b"", b""]], pa.binary())).sizes.tolist() == [0, 0]


def test_a_slice_of_a_column_is_read_where_it_lies() -> None:
    whole = column([[1, 2, 3], [4, 5], [6], [7, 8]])
    sketches = unpack(pa.chunked_array([whole.combine_chunks().slice(1, 2)]))
    assert sketches.hashes.tolist() == [4, 5, 6]
    assert sketches.bounds.tolist() == [0, 2, 3]
