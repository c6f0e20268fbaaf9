"""Stored volumes in other people's training loops."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandSpatialCropd
from monai.transforms.spatial.dictionary import RandFlipd
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import prect
from prect.cache.reader import StoreReader
from prect.errors import ConfigError, ManifestError, StoreError, TrainingError
from prect.manifests.stores import load_cache_table
from prect.train.config import ViewConfig
from prect.train.open_dataset import VolumeDataset, open_dataset
from prect.workspace import Workspace
from tests.train.conftest import DATASET

# The stores' spacing is 1.5 x 1.5 x 2 mm, so this box is read as it is stored.
NATIVE = ViewConfig(kind="box", grid=(20, 16, 12), spacing=(1.5, 1.5, 2.0))


def everything(dataset: VolumeDataset) -> list[dict[str, Any]]:
    return [dataset[i] for i in range(len(dataset))]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    plain = all(a[key] == b[key] for key in ("dataset", "case", "index"))
    return plain and torch.equal(a["image"], b["image"]) and torch.equal(a["affine"], b["affine"])


def test_items_are_hu_in_ras_order_with_their_place(stores: Workspace) -> None:
    items = everything(prect.open_dataset(stores, DATASET, NATIVE, split="all"))
    assert Counter(item["case"] for item in items) == {f"case-{i}": 1 for i in range(9)}
    for item in items:
        assert item["image"].shape == (1, 20, 16, 12)
        assert item["image"].dtype == torch.int16
        with StoreReader(stores.store(item["dataset"], item["case"])) as reader:
            full = reader.read(0, (0, 0, 0), reader.levels[0].shape)
            place = np.linalg.inv(reader.affine) @ item["affine"].numpy()
        np.testing.assert_allclose(place[:3, :3], np.eye(3))
        x, y, z = place[:3, 3].round().astype(int)
        stored = full[z : z + 12, y : y + 16, x : x + 20].transpose(2, 1, 0)
        np.testing.assert_array_equal(item["image"][0].numpy(), stored)


def test_whole_volumes_are_resized_and_the_affine_follows(stores: Workspace) -> None:
    """The corners of the grid are those of the volume, and a place keeps its brightness."""
    view = ViewConfig(grid=(10, 10, 10), window=(-1024, 1024))
    item = open_dataset(stores, DATASET, view, split="all", hu=False)[0]
    assert item["image"].dtype == torch.float32
    assert 0 <= item["image"].min() < item["image"].max() <= 1
    raw = open_dataset(stores, DATASET, view, split="all", resize=False)[0]
    assert (raw["case"], raw["image"].dtype) == (item["case"], torch.int16)
    assert min(raw["image"].shape[1:]) > 10
    ends = [corners(i["image"].shape[1:], i["affine"].numpy()) for i in (raw, item)]
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-9)
    with StoreReader(stores.store(DATASET, item["case"])) as reader:
        volume = corners(reader.levels[0].shape[::-1], reader.affine)
    # The level that was read is 3 x 3 x 4 mm, and its last voxel may reach over the edge.
    np.testing.assert_allclose(ends[1], volume, atol=2)

    hu = open_dataset(stores, DATASET, view, split="all")[0]
    assert hu["image"].dtype == torch.int16
    np.testing.assert_allclose(
        (hu["image"].numpy() + 1024) / 2048, item["image"].numpy(), atol=0.6 / 2048
    )


def corners(shape: Sequence[int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, 3) mm, first and last corner of an image of ``shape`` (x, y, z)."""
    index = np.array([[-0.5, -0.5, -0.5, 1], [*(n - 0.5 for n in shape), 1]])
    return np.asarray((index @ affine.T)[:, :3])


def test_epochs_differ_and_repeat(stores: Workspace) -> None:
    dataset = open_dataset(stores, DATASET, NATIVE, seed=5)
    first = everything(dataset)
    dataset.set_epoch(1)
    second = everything(dataset)
    assert [item["index"] for item in second] == list(range(len(dataset), 2 * len(dataset)))
    assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    dataset.set_epoch(0)
    assert all(map(same, everything(dataset), first))
    assert all(map(same, everything(open_dataset(stores, DATASET, NATIVE, seed=5)), first))
    other = everything(open_dataset(stores, DATASET, NATIVE, seed=6))
    assert not all(map(same, other, first))
    with pytest.raises(IndexError, match="of an epoch of 7"):
        dataset[len(dataset)]
    with pytest.raises(ValueError, match="counted from 0"):
        dataset.set_epoch(-1)


def test_splits_share_no_patient(stores: Workspace) -> None:
    table = load_cache_table(stores, [DATASET])
    patient = dict(zip(table.case, table.patient, strict=True))
    parts = [
        {patient[item["case"]] for item in everything(open_dataset(stores, DATASET, split=split))}
        for split in ("train", "heldout")
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(patient.values())


def test_weights_are_passes_over_a_data_set(stores: Workspace) -> None:
    twice = open_dataset(stores, DATASET, NATIVE, split="all", weights={DATASET: 2})
    assert set(Counter(item["case"] for item in everything(twice)).values()) == {2}


def _batches(dataset: VolumeDataset, **options: Any) -> list[dict[str, Any]]:
    return list(DataLoader(dataset, batch_size=3, **options))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from Python 3.12 on
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_any_kind_give_what_the_parent_read(stores: Workspace, method: str) -> None:
    dataset = open_dataset(stores, DATASET, NATIVE, hu=False)
    here = _batches(dataset)  # the parent has open stores from here on
    there = _batches(dataset, num_workers=2, multiprocessing_context=method)
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert a["case"] == b["case"]
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)


def test_workers_that_stay_see_the_next_epoch(stores: Workspace) -> None:
    dataset = open_dataset(stores, DATASET, NATIVE)
    loader = DataLoader(
        dataset, num_workers=1, persistent_workers=True, multiprocessing_context="forkserver"
    )
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        first = epoch * len(dataset)
        assert [int(item["index"]) for item in loader] == list(range(first, first + len(dataset)))


def test_it_may_be_pickled_after_it_was_read(stores: Workspace) -> None:
    dataset = open_dataset(stores, DATASET, NATIVE)
    dataset.set_epoch(2)
    first = dataset[0]
    copy: VolumeDataset = pickle.loads(pickle.dumps(dataset))
    assert same(copy[0], first)


@pytest.fixture
def own_stores(stores: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(stores.root, tmp_path / "own")
    return Workspace(tmp_path / "own")


def test_damage_is_raised_or_warned_of(own_stores: Workspace) -> None:
    options: dict[str, Any] = {"view": NATIVE, "split": "all"}
    strict = open_dataset(own_stores, DATASET, **options)
    lenient = open_dataset(own_stores, DATASET, on_damage="quarantine", max_damaged=0.2, **options)
    second = strict[1]
    shutil.rmtree(own_stores.store(DATASET, lenient[0]["case"]))
    strict, lenient = (pickle.loads(pickle.dumps(d)) for d in (strict, lenient))
    with pytest.raises(StoreError, match="no store at"):
        strict[0]
    with pytest.warns(UserWarning, match="sample 0 was replaced by 1: toy, case case-"):
        shown = lenient[0]
    assert same(shown, second)
    shutil.rmtree(own_stores.store(DATASET, second["case"]))
    reopened: VolumeDataset = pickle.loads(pickle.dumps(lenient))
    with (
        pytest.warns(UserWarning, match="was replaced by 2"),
        pytest.raises(TrainingError, match="2 volumes cannot be read"),
    ):
        reopened[1]


def test_what_cannot_be_opened_is_said(stores: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"recipe 'v3' does not exist; there are patch"):
        open_dataset(stores, DATASET, "v3")
    with pytest.raises(ManifestError, match="has no stores"):
        open_dataset(stores.root, "nothing")


GUIDE = Path(__file__).parents[2] / "docs" / "reading.md"


def guide_example() -> str:
    """The block of code that follows the words on open_dataset in the guide."""
    _, _, rest = GUIDE.read_text(encoding="utf-8").partition("gives a plain torch data set:\n\n")
    block, _, _ = rest.partition("\n\n`image` is")
    return textwrap.dedent(block)


@pytest.mark.slow
def test_the_example_of_the_guide_runs(stores: Workspace, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    example = guide_example().replace('"prect-data"', repr(str(stores.root)))
    script.write_text(example.replace('"abdomen"', repr(DATASET)).replace("workers=4", "workers=2"))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 4
    assert all(line.endswith("(2, 1, 64, 64, 64)") for line in (lines[0], lines[4]))


def test_monai_transforms_take_the_items(stores: Workspace) -> None:
    """The flip mirrors along x, and the crop keeps its place in the affine."""
    plain = open_dataset(stores, DATASET, NATIVE)[0]
    steps = Compose(
        [
            RandFlipd("image", prob=1.0, spatial_axis=0),
            RandSpatialCropd("image", roi_size=(8, 8, 8), random_size=False, random_center=False),
        ]
    )
    item = open_dataset(stores, DATASET, NATIVE, transform=steps)[0]
    expected = plain["image"].flip(1)[:, 6:14, 4:12, 2:10]
    np.testing.assert_array_equal(np.asarray(item["image"]), expected.numpy())


def test_import_of_prect_leaves_torch_alone() -> None:
    code = (
        "import prect, sys; assert 'torch' not in sys.modules; assert 'open_dataset' in dir(prect)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prect.nothing  # noqa: B018
