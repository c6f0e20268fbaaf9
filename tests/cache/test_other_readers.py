"""What other programs see of a store: the right voxels at the right place, without prect."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.image import Image

from prect.cache.intensity import Intensity
from prect.cache.reader import StoreReader
from prect.phantom import ORGANS, make_case
from tests.cache.stores import random_hu, write_store
from tests.conftest import Built

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that ome-zarr imports
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

Level = tuple[NDArray[np.int16], NDArray[np.float64], NDArray[np.float64]]
"""Voxels (z, y, x), scale and translation in millimetres (z, y, x)."""


def by_ome_zarr_py(path: Path) -> list[Level]:
    """As napari-ome-zarr opens it."""
    (node,) = Reader(parse_url(path))()
    assert [axis["name"] for axis in node.metadata["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in node.metadata["axes"]} == {"millimeter"}
    levels = []
    for data, (scale, shift) in zip(
        node.data, node.metadata["coordinateTransformations"], strict=True
    ):
        place = np.array(scale["scale"]), np.array(shift["translation"])
        levels.append((data.compute(scheduler="synchronous"), *place))
    return levels


def by_tensorstore(path: Path) -> list[Level]:
    """Tensorstore reads the arrays; a validating model of OME-Zarr tells their place."""
    (multiscale,) = Image.from_zarr(zarr.open_group(path, mode="r")).ome_attributes.multiscales
    levels = []
    for dataset in multiscale.datasets:
        file = {"driver": "file", "path": str(path / dataset.path)}
        voxels = tensorstore.open({"driver": "zarr3", "kvstore": file}).result().read().result()
        place = dataset.model_dump()["coordinateTransformations"]
        scale, shift = place[0]["scale"], place[1]["translation"]
        levels.append((voxels, np.array(scale), np.array(shift)))
    return levels


@pytest.mark.parametrize("read", [by_ome_zarr_py, by_tensorstore])
def test_an_organ_is_where_it_truly_is(phantom_built: Built, read: object) -> None:
    rows = {row.source: row for row in phantom_built.survey.rows}
    assert callable(read)
    compared = 0
    for index, suffix in enumerate((".nii.gz", "", ".mha", ".nrrd")):
        case = make_case(1, index, "small")
        row = rows[f"case_{index:04d}{suffix}"]
        for voxels, scale, shift in read(phantom_built.workspace.store("phantoms", row.case)):
            for name in {"liver", "spleen", "bladder"} & case.landmarks.keys():
                world = np.array(case.landmarks[name].centroid)[::-1]
                z, y, x = np.round((world - shift) / scale).astype(int)
                organ = case.hu[case.labels == ORGANS[name]]
                found = voxels[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
                assert abs(float(found.mean()) - float(np.median(organ))) < 60, (index, name)
                compared += 1
    assert compared >= 12


def codes_by_zarr_python(path: Path) -> NDArray[Any]:
    codes: NDArray[Any] = np.asarray(zarr.open_array(path, mode="r")[...])
    return codes


def codes_by_tensorstore(path: Path) -> NDArray[Any]:
    file = {"driver": "file", "path": str(path)}
    codes: NDArray[Any] = (
        tensorstore.open({"driver": "zarr3", "kvstore": file}).result().read().result()
    )
    return codes


@pytest.mark.parametrize("read", [codes_by_zarr_python, codes_by_tensorstore])
@pytest.mark.parametrize(
    "window",
    [
        Intensity.window(-175, 250),
        Intensity.window(-1000, 1000, 8),
        Intensity.window(-160, 244, 7),  # whose last step reaches beyond the window
    ],
    ids=str,
)
def test_codes_of_a_window_stand_for_the_hu_of_the_contract(
    tmp_path: Path, window: Intensity, read: Callable[[Path], NDArray[Any]]
) -> None:
    """Clause 5 of docs/format.md, from the attributes of the store alone."""
    path = tmp_path / "case.ome.zarr"
    volume = random_hu((20, 33, 17))
    write_store(path, volume, levels=2, intensity=window)
    text = json.loads((path / "zarr.json").read_text())
    stated = text["attributes"]["prect"]["intensity"]
    assert stated["kind"] == "window"
    low, high, step = (int(stated[key]) for key in ("low", "high", "step"))
    for level in (0, 1):
        codes = read(path / str(level))
        assert codes.dtype == np.uint8
        assert codes.min() >= 1  # 0 fills what was never written
        hu = np.minimum(low + (codes.astype(int) - 1) * step, high)
        with StoreReader(path) as reader:
            own = reader.read(level, (0, 0, 0), reader.levels[level].shape)
        np.testing.assert_array_equal(hu, own)
        if level == 0:
            clipped = np.clip(volume.astype(int), low, high)
            np.testing.assert_array_equal(codes, 1 + (clipped - low + step // 2) // step)
            assert np.abs(hu - clipped).max() <= step // 2
            assert hu.min() == low
