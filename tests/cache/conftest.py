"""A whole store, and a small built workspace, for the tests that damage them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from tests.cache.inline import inline_client
from tests.cache.places import Place, build_three
from tests.cache.whole_stores import SHAPE, scan, write_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "case.ome.zarr"
    write_whole(path, scan(SHAPE))
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / whole.name)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with inline_client() as client:
        yield client


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, client: Client) -> Path:
    return build_three(tmp_path_factory.mktemp("built"), client)


@pytest.fixture
def place(built: Path, tmp_path: Path, client: Client) -> Place:
    return Place(built, tmp_path, client)
