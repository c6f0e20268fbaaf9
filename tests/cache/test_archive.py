"""Stores that releases of the past wrote are still read, and still found sound."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image

from prect.cache.checks.validate import check_store
from prect.cache.reader import StoreReader

ARCHIVE = Path(__file__).parent / "archive"
STORES = [
    pytest.param(folder / f"{case}.ome.zarr", facts, id=f"{folder.name}-{facts['stored']}")
    for folder in sorted(ARCHIVE.glob("v*"))
    for case, facts in json.loads((folder / "expected.json").read_text()).items()
]


def test_the_archive_is_complete() -> None:
    assert len(STORES) == 4
    assert len(list(ARCHIVE.glob("v*/*.ome.zarr"))) == len(STORES)


@pytest.mark.parametrize("store", sorted(ARCHIVE.glob("v*/*.ome.zarr")), ids=lambda s: s.name)
def test_an_archived_store_is_sound(store: Path) -> None:
    assert check_store(store, deep=True) == []
    Image.from_zarr(zarr.open_group(store, mode="r"))


@pytest.mark.parametrize(("store", "facts"), STORES)
def test_an_archived_store_reads_as_it_was_written(store: Path, facts: dict[str, Any]) -> None:
    with StoreReader(store) as reader:
        assert str(reader.attributes.intensity) == facts["intensity"]
        np.testing.assert_array_equal(reader.affine, facts["affine"])
        assert len(reader.levels) == len(facts["levels"])
        for number, wanted in enumerate(facts["levels"]):
            level = reader.levels[number]
            assert list(level.shape) == wanted["shape"]
            assert list(level.spacing) == wanted["spacing_mm"]
            hu = reader.read(number, (0, 0, 0), level.shape)
            digest = hashlib.blake2b(hu.astype("<i2").tobytes(), digest_size=16)
            assert digest.hexdigest() == wanted["hu_blake2b_128"]
            z, y, x = (size // 2 for size in level.shape)
            assert hu[z, y, x] == wanted["hu_at_centre"]
            assert hu.mean() == pytest.approx(wanted["hu_mean"], abs=1e-3)
