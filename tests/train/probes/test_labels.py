"""Label maps: found by the source's name, and brought to a view's grid through affines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prect.errors import ConfigError
from prect.manifests.sources import SourceRow, to_table, write_sources
from prect.phantom import ORGANS, PhantomCase
from prect.phantom.grid import EXACT_ANGLES, RIGHT_HANDED_CODES, build_grid, rotation_about
from prect.train.config import load_config
from prect.train.data import open_data
from prect.train.probes.labels import candidates, find_labels, labels_on, only
from prect.train.probes.volumes import ProbeVolume, probe_volumes
from prect.workspace import Workspace
from tests.conftest import Built


def octant(points: NDArray[np.float64], middle: NDArray[np.float64]) -> NDArray[np.int32]:
    """1 to 8: on which side of a point each of (..., 3) points lies along x, y and z."""
    return np.asarray(1 + ((points > middle) * [1, 2, 4]).sum(axis=-1), dtype=np.int32)


def world(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(*shape, 3) RAS mm of each voxel."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


@pytest.mark.parametrize("codes", [*RIGHT_HANDED_CODES, "RPS"])
@pytest.mark.parametrize("angle", EXACT_ANGLES)
@pytest.mark.parametrize("axis", [0, 2])
def test_any_index_order_and_angle_means_the_same_places(
    tmp_path: Path, codes: str, angle: tuple[float, float], axis: int
) -> None:
    turn = rotation_about(axis, *angle)
    grid = build_grid(codes, (50, 44, 30), (2.0, 2.0, 3.0), turn, (-60.0, -30.0, -40.0))
    middle = (grid.affine @ [*(np.array(grid.shape) / 2), 1])[:3]
    labels = octant(world(grid.affine, grid.shape), middle).astype(np.uint8)
    path = tmp_path / "labels.nii.gz"
    nib.save(nib.Nifti1Image(labels, grid.affine), path)

    affine = np.diag([3.5, 2.5, 4.0, 1.0])
    affine[:3, 3] = middle - 25
    volume = ProbeVolume("a", "a", torch.zeros(15, 20, 12), (52.5, 50.0, 48.0), affine)
    found = labels_on(volume, path)
    points = world(affine, (15, 20, 12))
    clear = (np.abs(points - middle) > 2.5).all(axis=-1)
    assert clear.mean() > 0.5
    assert (found[clear] == octant(points, middle)[clear]).all()


def test_outside_of_the_file_there_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii"
    nib.save(nib.Nifti1Image(np.full((4, 4, 4, 1), 3, dtype=np.int16), np.eye(4)), path)
    affine = np.eye(4)
    affine[:3, 3] = -2
    found = labels_on(ProbeVolume("a", "a", torch.zeros(9, 5, 9), (9.0, 5.0, 9.0), affine), path)
    expected = np.zeros((9, 5, 9), dtype=np.int32)
    expected[2:6, 2:5, 2:6] = 3
    assert (found == expected).all()
    assert only(found, [1, 3]).sum() == found.sum()
    assert only(found, [1]).sum() == 0


def test_negative_labels_are_background(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii"
    voxels = np.array([-1, 0, 2, -1000], dtype=np.int16).reshape(4, 1, 1)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    found = labels_on(ProbeVolume("a", "a", torch.zeros(4, 1, 1), (4.0, 1.0, 1.0)), path)
    assert found.ravel().tolist() == [0, 0, 2, 0]


def test_a_file_that_is_no_label_map_is_refused(tmp_path: Path) -> None:
    volume = ProbeVolume("a", "a", torch.zeros(2, 2, 2), (2.0, 2.0, 2.0))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"broken\.nii\.gz cannot be read"):
        labels_on(volume, broken)
    film = tmp_path / "film.nii"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3), dtype=np.uint8), np.eye(4)), film)
    with pytest.raises(ConfigError, match="have 4 axes"):
        labels_on(volume, film)


@pytest.fixture
def named(tmp_path: Path) -> Workspace:
    """A workspace whose manifest names four sources."""
    workspace = Workspace(tmp_path / "workspace")
    sources = ["a/ct.nii.gz", "b/ct.nii.gz", "case_0003.mha", "series/case_0004"]
    rows = [
        SourceRow("set", f"id{i}", "accepted", "", "", "nifti", source, "/root")
        for i, source in enumerate(sources)
    ]
    write_sources(workspace.sources("set"), to_table(rows))
    return workspace


CASES = [("set", f"id{i}") for i in range(4)]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_are_found_by_the_name_of_the_source(tmp_path: Path, named: Workspace) -> None:
    folder = tmp_path / "labels"
    touch(folder, "a/ct.nii.gz", "a/ct_labels.nii.gz", "set/b/ct.nii", "case_0003_seg.nii.gz")
    found = find_labels(folder, named, CASES)
    assert {case: str(path.relative_to(folder)) for case, path in found.files.items()} == {
        "set/id0": "a/ct_labels.nii.gz",
        "set/id1": "set/b/ct.nii",
        "set/id2": "case_0003_seg.nii.gz",
    }
    assert found.unmapped == ("set/series/case_0004",)
    assert next(candidates(folder, "set", "series/x.dcm")) == folder / "set/series/x_labels.nii.gz"


def test_one_file_for_two_cases_is_refused(tmp_path: Path, named: Workspace) -> None:
    folder = tmp_path / "labels"
    touch(folder, "ct.nii.gz")
    with pytest.raises(ConfigError, match=r"labels of set/a/ct\.nii\.gz and of set/b/ct\.nii\.gz"):
        find_labels(folder, named, CASES)
    with pytest.raises(ConfigError, match="does not exist"):
        find_labels(tmp_path / "nowhere", named, CASES)


def phantom_volumes(
    built: Built, masks: Path
) -> Iterator[tuple[str, ProbeVolume, NDArray[np.int32]]]:
    """Name, volume and labels of the phantoms that have a mask."""
    config = load_config("demo", overrides=['data.datasets=["phantoms"]'])
    data = open_data(built.workspace, config)
    volumes = probe_volumes(data, config, range(8))
    cases = [(data.table.dataset[row], data.table.case[row]) for row in volumes.rows]
    files = find_labels(masks, built.workspace, cases).files
    for volume in volumes:
        if volume.name in files:
            path = files[volume.name]
            yield path.name.removesuffix("_labels.nii.gz"), volume, labels_on(volume, path)


def test_phantoms_labels_lie_on_their_stored_volumes(
    phantom_built: Built, masks: Path, phantom_cases: dict[str, PhantomCase]
) -> None:
    seen = 0
    for name, volume, labels in phantom_volumes(phantom_built, masks):
        seen += 1
        step = np.abs(np.diag(volume.affine)[:3])
        for organ in {"liver", "heart", "spleen"} & phantom_cases[name].landmarks.keys():
            where = np.argwhere(labels == ORGANS[organ]).mean(axis=0)
            off = (volume.affine @ [*where, 1])[:3] - phantom_cases[name].landmarks[organ].centroid
            assert (np.abs(off) < 0.6 * step).all(), (name, organ, off, step)
        # In the window fat is at 0.18 and the liver at 0.5 and more.
        assert volume.image.numpy()[labels == ORGANS["liver"]].mean() > 0.45
    assert seen == len(phantom_cases)


def test_organs_lie_at_the_same_relative_place_of_the_plane(
    phantom_built: Built, masks: Path
) -> None:
    """What position retrieval takes for the truth, held against the organs themselves."""
    found = list(phantom_volumes(phantom_built, masks))
    extent = np.mean([volume.extent for _, volume, _ in found], axis=0)
    places: dict[str, list[NDArray[np.float64]]] = {}
    for _, volume, labels in found:
        for organ, value in ORGANS.items():
            voxels = np.argwhere(labels == value)
            if value > ORGANS["body"] and len(voxels) > 50:
                place = (voxels.mean(axis=0) + 0.5) / volume.image.shape * extent
                places.setdefault(organ, []).append(place)
    off = np.concatenate(
        [
            [a - b for a in each for b in each if a is not b]
            for each in places.values()
            if len(each) > 1
        ]
    )
    assert len(off) > 100
    assert np.linalg.norm(off[:, :2], axis=1).mean() < 20
    # Scans of the chest and of the trunk begin and end elsewhere: along z it is no truth.
    assert np.abs(off[:, 2]).mean() > 30
