"""Stores that are damaged, gone, or end the process that reads them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from prect.errors import ChunkError, StoreError, TrainingError
from prect.manifests.stores import load_cache_table
from prect.train.callbacks import Silent
from prect.train.config import TrainConfig
from prect.train.damage import Damage, Incident, Quarantine, read_incidents
from prect.train.data import open_data, split_data
from prect.train.dataset import PoolFactory, ViewDataset
from prect.train.launch import launch
from prect.train.loader import train_loader
from prect.train.replay import replay
from prect.workspace import Workspace
from tests.train.conftest import DATASET
from tests.train.simulated import (
    SimulatedPool,
    SimulatedStore,
    simulated_pool,
    write_simulated_manifest,
)

MakeConfig = Any
STEPS = range(6)


@pytest.fixture
def own_stores(stores: Workspace, tmp_path: Path) -> Workspace:
    """A workspace whose stores a test may damage."""
    shutil.copytree(stores.root, tmp_path / "own")
    return Workspace(tmp_path / "own")


def quarantining(make_config: MakeConfig, **data: Any) -> TrainConfig:
    config: TrainConfig = make_config(
        data={"on_damage": "quarantine", "max_damaged": 0.5, **data}, train={"eval_every": 0}
    )
    return config


def flip_a_byte(workspace: Workspace, case: str) -> None:
    """In the middle of the shard of every level."""
    for shard in workspace.store(DATASET, case).rglob("c.0.0.0"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 3] ^= 0x40
        shard.write_bytes(bytes(data))


def cases_of(views: ViewDataset, indices: list[int]) -> list[str]:
    return [views.names.case(views.sampler.sample(index).row) for index in indices]


def shown(views: ViewDataset, config: TrainConfig, quarantine: Quarantine) -> list[int]:
    """The index that each sample of the first steps really shows."""
    batches = train_loader(views, config, STEPS, quarantine=quarantine)
    return [sample.index for batch in batches for sample in batch.samples]


def first_that_reads(views: ViewDataset, index: int, bad: set[str]) -> int:
    while cases_of(views, [index])[0] in bad:
        index += 1
    return index


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_replaced_by_the_next_that_can(
    own_stores: Workspace, make_config: MakeConfig, tmp_path: Path, workers: int
) -> None:
    config = quarantining(make_config, workers=workers)
    views = open_data(own_stores, config).views(config)
    bad = set(cases_of(views, list(range(3))))
    flipped, gone, *_ = sorted(bad)
    bad = {flipped, gone}
    flip_a_byte(own_stores, flipped)
    shutil.rmtree(own_stores.store(DATASET, gone))

    log = Quarantine(views.allowed_damage, tmp_path / "run")
    indices = range(len(STEPS) * config.data.batch_size)
    expected = [first_that_reads(views, index, bad) for index in indices]
    assert expected != list(indices)
    assert shown(views, config, log) == expected

    incidents = read_incidents(tmp_path / "run")
    assert log.cases == {(DATASET, case) for case in bad}
    assert {(i.damage.index, i.damage.replaced_by) for i in incidents} == {
        (index, first_that_reads(views, index, bad))
        for index in range(max(expected) + 1)
        if index != first_that_reads(views, index, bad)
    }
    for incident in incidents:
        damage = incident.damage
        (case,) = cases_of(views, [damage.index])
        assert (damage.dataset, damage.case, incident.domain) == (DATASET, case, "train")
        if case == flipped:
            assert damage.level is not None
            assert "checksum" in damage.reason
        else:
            assert (damage.level, damage.chunk) == (None, None)
            assert "no store at" in damage.reason


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(bad=st.sets(st.integers(0, 19), max_size=10), world=st.sampled_from([1, 2, 3, 4, 6]))
def test_replacement_does_not_depend_on_the_world(
    simulated: Workspace, make_config: MakeConfig, bad: set[int], world: int
) -> None:
    config = simulated_config(make_config, batch_size=12 // world, max_damaged=0.5)
    views = simulated_views(simulated, config, lambda cases: {"damaged": [cases[i] for i in bad]})
    names = {views.names.case(views_rows(views)[i]) for i in bad}
    found: dict[int, int] = {}
    for rank in range(world):
        for step, batch in enumerate(train_loader(views, config, range(4), rank=rank, world=world)):
            first = (step * world + rank) * config.data.batch_size
            found |= {first + i: sample.index for i, sample in enumerate(batch.samples)}
    assert found == {index: first_that_reads(views, index, names) for index in range(48)}


def test_under_raise_the_error_names_everything(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    config = make_config()
    views = open_data(own_stores, config).views(config)
    first, second = cases_of(views, [0, 1])
    flip_a_byte(own_stores, first)
    shutil.rmtree(own_stores.store(DATASET, second))
    with pytest.raises(ChunkError, match="level") as caught:
        next(train_loader(views, config, STEPS))
    assert (caught.value.case, caught.value.chunk) != (second, None)
    assert caught.value.__notes__ == [f"data set {DATASET}, case {first}, sample 0"]
    with pytest.raises(StoreError, match="no store at") as missing:
        views[1]
    assert missing.value.__notes__ == [f"data set {DATASET}, case {second}, sample 1"]


class BrokenDisk(SimulatedPool):
    """Reads fail as those of a disk or a file server do."""

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


class OutOfMemory(SimulatedPool):
    """Fails for a reason that is not the data's."""

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        raise RuntimeError(f"no room for {path}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_disk_is_damage_and_any_other_is_none(
    simulated: Workspace, make_config: MakeConfig, workers: int
) -> None:
    config = simulated_config(make_config, on_damage="raise", workers=workers)
    data = split_data(simulated, load_cache_table(simulated, ["sim"]), config)
    with pytest.raises(StoreError, match=r"ome.zarr cannot be read: Input/output error") as broken:
        next(train_loader(data.views(config, pool=BrokenDisk), config, STEPS))
    assert not reading_processes(), "an error must not keep workers alive"
    config = simulated_config(make_config, workers=workers)
    with pytest.raises(RuntimeError, match="no room for") as caught:
        next(train_loader(data.views(config, pool=OutOfMemory), config, STEPS))
    assert not isinstance(caught.value, TrainingError)
    assert not reading_processes()
    del broken, caught


def reading_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [process for process in children if process.name() == "pt_data_worker"]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Twenty volumes to train on and four held out that exist in name only."""
    workspace = Workspace(tmp_path_factory.mktemp("simulated"))
    write_simulated_manifest(workspace, {"sim": 24}, (60, 60, 60))
    return workspace


def simulated_config(make_config: MakeConfig, **data: Any) -> TrainConfig:
    config: TrainConfig = make_config(
        data={"datasets": ["sim"], "on_damage": "quarantine", **data},
        view={"kind": "box", "grid": [32, 32, 16], "spacing": [1.5, 1.5, 1.5]},
    )
    return config


def simulated_views(workspace: Workspace, config: TrainConfig, faults: Any) -> ViewDataset:
    """``faults`` makes the arguments of the pool from the cases to train on."""
    data = split_data(workspace, load_cache_table(workspace, ["sim"]), config)
    cases = [data.table.case[row] for row in data.rows["train"]]
    pool: PoolFactory = simulated_pool(**{k: tuple(v) for k, v in faults(cases).items()})
    return data.views(config, pool=pool)


def test_too_much_damage_ends_the_run_and_is_named(
    simulated: Workspace, make_config: MakeConfig
) -> None:
    config = simulated_config(make_config, max_damaged=0.1, batch_size=1)
    views = simulated_views(simulated, config, lambda cases: {"damaged": cases[:3]})
    assert views.allowed_damage == 2
    with pytest.raises(TrainingError, match=r"3 volumes cannot be read.*allows 2: sim/sim-") as e:
        list(train_loader(views, config, range(40)))
    assert all(views.names.case(row) in str(e.value) for row in views_rows(views)[:3])


def views_rows(views: ViewDataset) -> list[int]:
    return sorted({views.sampler.sample(index).row for index in range(len(views))})


def test_a_stream_of_which_nothing_reads_comes_to_an_end(
    simulated: Workspace, make_config: MakeConfig
) -> None:
    config = simulated_config(make_config, max_damaged=1.0)
    views = simulated_views(simulated, config, lambda cases: {"damaged": cases})
    with pytest.raises(TrainingError, match="20 volumes cannot be read"):
        next(train_loader(views, config, range(1)))


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every five seconds whether its workers live; here it does so more often."""
    waits = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waits, "__defaults__", (0.5,))


@pytest.mark.usefixtures("watchful")
def test_a_store_that_ends_its_reader_is_found_and_replaced(
    simulated: Workspace, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = simulated_config(make_config, max_damaged=0.2, workers=2, batch_size=2)
    views = simulated_views(
        simulated,
        config,
        lambda cases: {"deadly": [cases[0]], "damaged": [cases[1]]},
    )
    bad = {views.names.case(row) for row in views_rows(views)[:2]}
    deadly = views.names.case(views_rows(views)[0])
    log = Quarantine(views.allowed_damage, tmp_path)
    found = []
    for batch in train_loader(views, config, range(10), quarantine=log):
        found += [sample.index for sample in batch.samples]
    assert found == [first_that_reads(views, index, bad) for index in range(20)]
    (killed,) = {i.damage.reason for i in read_incidents(tmp_path) if i.damage.case == deadly}
    assert "ended by SIGKILL" in killed
    assert log.cases == {("sim", case) for case in bad}


@pytest.mark.usefixtures("watchful")
def test_under_raise_a_death_ends_the_run_with_its_cause(
    simulated: Workspace, make_config: MakeConfig
) -> None:
    config = simulated_config(make_config, on_damage="raise", workers=1)
    views = simulated_views(simulated, config, lambda cases: {"deadly": cases})
    with pytest.raises(TrainingError, match=r"died while step 1 was awaited.*exited") as caught:
        next(train_loader(views, config, range(4)))
    assert isinstance(caught.value.__cause__, RuntimeError)


def damage(index: int, case: str, replaced_by: int) -> Damage:
    return Damage(index, "d", case, 1, (0, 2, 3), "torn", replaced_by)


def test_ranks_write_apart_and_count_together(tmp_path: Path) -> None:
    ranks = [Quarantine(2, tmp_path, rank) for rank in range(2)]
    ranks[0].record(1, [damage(0, "a", 1)])
    ranks[0].record(2, [damage(9, "a", 10)])
    ranks[1].record(2, [damage(12, "b", 13)], "heldout")
    assert ranks[1].cases == {("d", "a"), ("d", "b")}
    with pytest.raises(TrainingError, match=r"3 volumes .* d/a, d/b, d/c"):
        ranks[0].record(3, [damage(20, "c", 22)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quarantine-rank0.jsonl",
        "quarantine-rank1.jsonl",
    ]
    line = json.loads((tmp_path / "quarantine-rank1.jsonl").read_text("utf-8"))
    assert line == {
        "step": 2, "domain": "heldout", "index": 12, "dataset": "d", "case": "b", "level": 1,
        "chunk": [0, 2, 3], "reason": "torn", "replaced_by": 13,
    }  # fmt: skip
    assert read_incidents(tmp_path)[1] == Incident(2, "train", damage(9, "a", 10))


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for rank in range(3):
        log = Quarantine(9, tmp_path, rank)
        log.record(1, [damage(rank, f"early-{rank}", 9)])
        log.record(5, [damage(40 + rank, f"late-{rank}", 49)])
    with (tmp_path / "quarantine-rank1.jsonl").open("a") as file:
        file.write('{"step": 1, "index": 3, "da')
    for rank in range(2):
        Quarantine(9, tmp_path, rank).rewind(3, world=2)
    assert [i.damage.case for i in read_incidents(tmp_path)] == ["early-0", "early-1", "early-2"]
    again = Quarantine(9, tmp_path, 0)
    again.rewind(3, world=2)
    assert again.cases == {("d", f"early-{rank}") for rank in range(3)}


def test_a_run_goes_on_without_a_damaged_store_and_replay_tells(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    config = quarantining(make_config)
    views = open_data(own_stores, config).views(config)
    (bad,) = cases_of(views, [0])
    sound = own_stores.store(DATASET, bad)
    shutil.copytree(sound, own_stores.root / "sound")
    flip_a_byte(own_stores, bad)
    summary = launch(config, own_stores.root, Silent())
    assert summary["quarantined"] == [[DATASET, bad]]

    run = own_stores.run(config.run.name)
    recorded = {i.damage.index: i.damage for i in read_incidents(run) if i.step == 1}
    # Mended since: the record, not the store, says what was seen.
    shutil.rmtree(sound)
    shutil.copytree(own_stores.root / "sound", sound)
    told = replay(own_stores, run, 1, own_stores.root / "out").document["samples"]
    assert told[0]["index"] == recorded[0].replaced_by
    assert told[0]["replaces"]["case"] == bad
    assert "checksum" in told[0]["replaces"]["reason"]
    assert [sample["replaces"] is None for sample in told] == [False, 1 not in recorded]
    assert (own_stores.root / "out" / "step-00000001.png").exists()


def test_held_out_volumes_are_replaced_too(own_stores: Workspace, make_config: MakeConfig) -> None:
    config = quarantining(make_config)
    data = open_data(own_stores, config)
    bad = data.table.case[data.rows["heldout"][0]]
    flip_a_byte(own_stores, bad)
    summary = launch(config, own_stores.root, Silent())
    assert summary["quarantined"] == [[DATASET, bad]]
    assert summary["heldout"]["views"] == config.train.eval_views
    incidents = read_incidents(own_stores.run(config.run.name))
    assert {(i.step, i.domain) for i in incidents} == {(0, "heldout"), (4, "heldout")}
