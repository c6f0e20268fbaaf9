"""What a store and its source are called in manifests."""

from __future__ import annotations

from pathlib import Path

import pytest

from prect.cache.rows import ORIGIN_COLUMNS, origin_of, store_bytes, stored_row
from prect.errors import StoreError
from prect.manifests.sources import SOURCES_SCHEMA, read_source_table, to_rows
from prect.manifests.stores import read_cache_rows
from tests.cache.stores import random_hu, write_store
from tests.conftest import Built


def test_the_row_is_that_of_the_manifest(phantom_built: Built) -> None:
    workspace, dataset = phantom_built.workspace, phantom_built.dataset
    rows = read_cache_rows(workspace.cache_manifest(dataset))
    assert len(rows) == 8
    assert [stored_row(workspace.store(dataset, row.case)) for row in rows] == rows


def test_the_origin_of_a_store_is_that_of_its_source(phantom_built: Built) -> None:
    """Of a whole row as of its few columns."""
    path = phantom_built.workspace.sources(phantom_built.dataset)
    few = read_source_table(path, ["case", *ORIGIN_COLUMNS]).to_pylist()
    whole = to_rows(read_source_table(path, SOURCES_SCHEMA.names))
    assert [origin_of(row) for row in few] == [origin_of(vars(row)) for row in whole]
    stored = read_cache_rows(phantom_built.workspace.cache_manifest(phantom_built.dataset))
    origins = {row["case"]: origin_of(row) for row in few}
    assert {row.case: row.made_from for row in stored}.items() <= origins.items()
    for column in ORIGIN_COLUMNS:
        other = few[0] | {column: few[0][column] * 2}
        assert origin_of(other) != origin_of(few[0]) or not few[0][column], column


def test_a_store_without_its_attributes_has_no_row(tmp_path: Path) -> None:
    path = tmp_path / "case.ome.zarr"
    write_store(path, random_hu((8, 8, 8)))
    files = [file for file in path.rglob("*") if file.is_file()]
    assert stored_row(path).bytes == store_bytes(path) == sum(f.stat().st_size for f in files)
    (path / "zarr.json").unlink()
    with pytest.raises(StoreError):
        stored_row(path)
