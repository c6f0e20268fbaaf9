"""One stream, however many processes read it and wherever they take it up."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prect.train.collate import BatchMemory, RawBatch
from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.dataset import ViewDataset
from prect.train.loader import train_loader
from prect.workspace import Workspace
from tests.train.conftest import DATASET

MakeConfig = Any
GLOBAL_BATCH, STEPS = 24, 3
WORLDS = (1, 2, 3, 4, 8)
Entry = tuple[Any, ...]


def box_config(make_config: MakeConfig, world: int = 1, workers: int = 0) -> TrainConfig:
    """Aligned boxes that must hold body: all that a place can depend on."""
    config: TrainConfig = make_config(
        data={"batch_size": GLOBAL_BATCH // world, "workers": workers},
        view={
            "kind": "box",
            "grid": [32, 32, 16],
            "spacing": [1.5, 1.5, 2.0],
            "foreground": 0.5,
            "align": True,
        },
    )
    return config


def entries(views: ViewDataset, batch: RawBatch) -> list[Entry]:
    """Case, box, crops, augmentation and voxels of each volume of a batch."""
    crops = (batch.starts, batch.flips, batch.turns, batch.shifts, batch.labels)
    found = []
    for i, (sample, region) in enumerate(zip(batch.samples, batch.regions, strict=True)):
        voxels = hashlib.blake2b(region.numpy().tobytes()).hexdigest()
        numbers = [tensor[i].tolist() for tensor in crops]
        found.append(
            (sample.index, views.names.store(sample.row).name, sample.region, numbers, voxels)
        )
    return found


def read(
    views: ViewDataset, config: TrainConfig, steps: range, world: int, *, recycle: bool = False
) -> dict[int, list[Entry]]:
    """What all ranks together see at each step, in order; one rank after the other."""
    seen: dict[int, list[Entry]] = {step: [] for step in steps}
    for rank in range(world):
        batches = train_loader(views, config, steps, rank=rank, world=world, recycle=recycle)
        for step, batch in zip(steps, batches, strict=True):
            seen[step] += entries(views, batch)
    return seen


def reference(views: ViewDataset) -> dict[int, list[Entry]]:
    """The same without loader, batch or process: one sample after the other."""
    seen: dict[int, list[Entry]] = {}
    for step in range(STEPS):
        batches = [
            views.read_batch([index])
            for index in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
        ]
        seen[step] = [entry for batch in batches for entry in entries(views, batch)]
    assert [entry[0] for step in seen.values() for entry in step] == list(range(72))
    return seen


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(worlds=st.lists(st.sampled_from(WORLDS), min_size=STEPS, max_size=STEPS))
def test_each_step_may_be_read_by_another_world(
    stores: Workspace, make_config: MakeConfig, worlds: list[int]
) -> None:
    """A run that is stopped after every step and goes on with another number of ranks."""
    whole = box_config(make_config)
    data = open_data(stores, whole)
    seen: dict[int, list[Entry]] = {}
    for step, world in enumerate(worlds):
        config = box_config(make_config, world)
        seen |= read(data.views(config), config, range(step, step + 1), world)
    assert seen == reference(data.views(whole))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more than cores
@pytest.mark.parametrize(
    ("world", "workers", "recycle"),
    [
        *((world, 0, False) for world in WORLDS),
        (8, 0, True),
        (1, 4, False),
        (1, 4, True),
        (2, 2, True),
        (3, 1, False),
        (4, 1, True),
    ],
)
def test_the_stream_is_the_same_for_any_world_and_workers_from_any_step(
    stores: Workspace, make_config: MakeConfig, world: int, workers: int, recycle: bool
) -> None:
    config = box_config(make_config, world, workers)
    data = open_data(stores, config)
    expected = reference(data.views(config))
    for first in (0, 2) if workers == 0 else (1,):
        steps = range(first, STEPS)
        found = read(data.views(config), config, steps, world, recycle=recycle)
        assert found == {step: expected[step] for step in steps}


def test_weights_recipes_and_patches_change_nothing_of_that(
    stores: Workspace, make_config: MakeConfig
) -> None:
    config: TrainConfig = make_config(
        data={
            "batch_size": GLOBAL_BATCH // 2,
            "workers": 1,
            "weights": {DATASET: 1.5},
            "recipes": {DATASET: "patch"},
        },
        view={"kind": "box", "grid": [96, 96, 96], "spacing": [1.5, 1.5, 1.5], "patches": 3},
        crops={"base_grid": [2, 2, 2], "size": [48, 48, 48]},
    )
    data = open_data(stores, config)
    expected = reference(data.views(config))
    assert read(data.views(config), config, range(STEPS), 2, recycle=True) == expected
    volumes = [entry[1] for step in expected.values() for entry in step]
    assert all(len(set(volumes[i : i + 3])) == 1 for i in range(0, len(volumes), 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_page_locked_batches_are_copies_that_stay_sound(
    stores: Workspace, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """As torch would do it, if there were an accelerator here."""
    copies: list[torch.Tensor] = []

    def clone(tensor: torch.Tensor, *_: object) -> torch.Tensor:
        copies.append(tensor.clone())
        return copies[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", clone)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    config = make_config(data={"workers": workers, "batch_size": 2})
    views = open_data(stores, config).views(config)
    steps = range(12)
    batches = list(train_loader(views, config, steps, pin_memory=True, recycle=True))
    assert len(copies) == 2 * len(steps)
    assert all(any(batch.voxels is copy for copy in copies) for batch in batches)
    for step, batch in zip(steps, batches, strict=True):
        assert entries(views, batch) == entries(views, views.read_batch((2 * step, 2 * step + 1)))


def test_whole_volumes_of_different_sizes_share_a_batch(
    stores: Workspace, make_config: MakeConfig
) -> None:
    config = make_config(data={"batch_size": 8, "workers": 1})
    views = open_data(stores, config).views(config)
    (batch,) = train_loader(views, config, range(1))
    assert len({tuple(region.shape) for region in batch.regions}) > 1
    for sample, region in zip(batch.samples, batch.regions, strict=True):
        _, alone = views[sample.index]
        torch.testing.assert_close(region, alone)
    assert (len(batch), batch.voxel_bytes) == (8, sum(r.nbytes for r in batch.regions))


def test_a_batch_from_a_worker_is_two_tensors_in_shared_memory(
    stores: Workspace, make_config: MakeConfig
) -> None:
    config = make_config(data={"batch_size": 8, "workers": 1})
    views = open_data(stores, config).views(config)
    (batch,) = train_loader(views, config, range(1))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 2
    assert all(tensor.is_shared() for tensor in tensors)
    assert all(r.untyped_storage().data_ptr() == batch.voxels.data_ptr() for r in batch.regions)


@pytest.mark.parametrize(("workers", "mib"), [(0, 1), (1, 2), (2, 512)])
def test_recycled_memory_is_good_until_the_next_batch_is_asked_for(
    stores: Workspace, make_config: MakeConfig, workers: int, mib: int
) -> None:
    """Workers that are far ahead by then must have written elsewhere."""
    config = make_config(data={"workers": workers, "batch_size": 2, "prefetch_mib": mib})
    views = open_data(stores, config).views(config)
    addresses = set()
    for step, batch in enumerate(train_loader(views, config, range(60), recycle=True)):
        time.sleep(0.005)
        addresses.add(batch.voxels.data_ptr())
        assert entries(views, batch) == entries(views, views.read_batch((2 * step, 2 * step + 1)))
    assert workers or len(addresses) < 10


def test_memory_is_used_in_turn_and_grows() -> None:
    memory = BatchMemory(slots=2)
    taken = []
    for count in (10, 20, 5, 30, 6):
        memory.turn()
        taken.append(memory.take(count))
        assert taken[-1].shape == (count,)
    first, second, third, fourth, fifth = (tensor.data_ptr() for tensor in taken)
    assert first == third == fifth
    assert len({first, second, fourth}) == 3
    fresh = BatchMemory(shared=True)
    both = [fresh.take(4), fresh.take(4)]
    assert all(tensor.is_shared() for tensor in both)
    assert both[0].data_ptr() != both[1].data_ptr()


def test_numbers_survive_being_packed(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config(augment={"flip": 0.5, "rotate": 0.5, "shift": 1.0})
    views = open_data(stores, config).views(config)
    batch = views.read_batch(range(5))
    for i, sample in enumerate(batch.samples):
        assert sample.describe() == views.sampler.sample(i).describe()
        assert batch.starts[i].tolist() == sample.starts.tolist()
        assert batch.flips[i].tolist() == sample.flips.tolist()
        assert batch.turns[i].tolist() == sample.turns.tolist()
        assert batch.shifts[i].tolist() == sample.shifts.tolist()
        assert tuple(batch.windows[i].tolist()) == sample.window
    torch.testing.assert_close(batch.labels.sum(dim=-1), torch.ones(5, 2))


def test_no_step_means_no_process(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config(data={"workers": 4})
    views = open_data(stores, config).views(config)
    assert list(train_loader(views, config, range(3, 3))) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # from Python 3.12 on
def test_a_child_forked_after_the_parent_has_read_reads_the_same(
    stores: Workspace, make_config: MakeConfig
) -> None:
    """Its own files, its own decoder, no lock that the parent held."""
    config = box_config(make_config)
    views = open_data(stores, config).views(config)
    expected = digest(views, range(20))
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:  # pytest must not run on in the child, whatever happens
        try:
            os.write(send, digest(views, range(20)))
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as told:
        assert told.read() == expected
    assert os.waitpid(child, 0)[1] == 0
    assert digest(views, range(20)) == expected


def digest(views: ViewDataset, indices: Iterable[int]) -> bytes:
    state = hashlib.blake2b()
    for index in indices:
        state.update(views[index][1].numpy().tobytes())
    return state.digest()
