"""What other programs see of a store: the right voxels at the right place, without prect."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray
from ome_zarr_models.v05.image import Image

from prect.phantom import ORGANS, make_case
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
