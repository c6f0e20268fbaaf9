"""Stores that are damaged, gone, or end the process that reads them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from prect.errors import ChunkError, StoreError, TrainingError
from prect.manifests.stores import load_cache_table
from prect.train.callbacks import RunStart, Silent
from prect.train.config import TrainConfig
from prect.train.damage import (
    Damage,
    Quarantine,
    read_incidents,
    read_restarts,
)
from prect.train.data import open_data, split_data
from prect.train.dataset import PoolFactory, ViewDataset
from prect.train.isolation import find_deadly
from prect.train.launch import launch
from prect.train.loader import train_loader, worker_context
from prect.train.open_dataset import open_dataset
from prect.train.replay import replay
from prect.workspace import Workspace
from tests.train.conftest import DATASET
from tests.train.simulated import (
    BrokenDisk,
    EndsBy,
    OutOfMemory,
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
    config = simulated_config(make_config, workers=workers, max_damaged=0.01)
    views = simulated_views(simulated, config, lambda cases: {"damaged": cases[:2]})
    with pytest.raises(TrainingError, match="2 volumes cannot be read") as too_many:
        list(train_loader(views, config, range(40)))
    assert not reading_processes()
    del broken, caught, too_many


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
    with pytest.raises(TrainingError, match="none of the 20 volumes can be read"):
        next(train_loader(views, config, range(1)))


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks every five seconds whether its workers live; here it does so more often."""
    waits = _MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waits, "__defaults__", (0.2,))


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
    assert log.restarts == len(read_restarts(tmp_path)) == 2


@pytest.mark.usefixtures("watchful")
def test_under_raise_a_death_ends_the_run_with_its_cause(
    simulated: Workspace, make_config: MakeConfig
) -> None:
    config = simulated_config(make_config, on_damage="raise", workers=1)
    views = simulated_views(simulated, config, lambda cases: {"deadly": cases})
    with pytest.raises(TrainingError, match=r"died while step 1 was awaited.*exited") as caught:
        next(train_loader(views, config, range(4)))
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 0), (0.01, 1), (0.29, 6), (0.25, 6), (0.125, 3), (1.0, 24)]
)
def test_one_volume_at_least_may_be_damaged(
    simulated: Workspace, make_config: MakeConfig, share: float, expected: int
) -> None:
    config = simulated_config(make_config, max_damaged=share)
    assert simulated_views(simulated, config, lambda _: {}).allowed_damage == expected
    hundred = Namespace(names=Namespace(cases=range(100)), config=config)
    allowed: Any = ViewDataset.allowed_damage.fget  # type: ignore[attr-defined]
    assert allowed(hundred) == round(100 * share - 0.1)


def test_a_missing_store_is_met_by_the_loader_and_a_foreign_one_is_refused(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    config = quarantining(make_config)
    first, second = (own_stores.store(DATASET, f"case-{i}") for i in range(2))
    shutil.rmtree(first)
    open_data(own_stores, config)
    assert len(open_dataset(own_stores, DATASET, split="all", on_damage="quarantine")) == 9
    with pytest.raises(StoreError, match="no store at"):
        open_data(own_stores, make_config())
    with pytest.raises(StoreError, match="no store at"):
        open_dataset(own_stores, DATASET)
    shutil.rmtree(second)
    shutil.copytree(own_stores.store(DATASET, "case-2"), second)
    with pytest.raises(StoreError, match="built from another source"):
        open_data(own_stores, config)


class UsedUp(SimulatedPool):
    """Stores cannot be opened for want of something; the store is sound."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def get(self, path: str | os.PathLike[str]) -> SimulatedStore:
        try:
            raise OSError(self.number, os.strerror(self.number))
        except OSError as error:
            raise StoreError(f"no store at {path} ({error.strerror})") from error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, r"ulimit -n.* data\.open_stores"),
        (errno.ENFILE, "ulimit -n"),
        (errno.ENOMEM, r"data\.workers"),
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
    ],
)
def test_what_this_process_lacks_is_no_damage(
    simulated: Workspace, make_config: MakeConfig, number: int, remedy: str
) -> None:
    config = simulated_config(make_config, max_damaged=1.0)
    data = split_data(simulated, load_cache_table(simulated, ["sim"]), config)
    log = Quarantine(99)
    loader = train_loader(
        data.views(config, pool=partial(UsedUp, number)), config, STEPS, quarantine=log
    )
    with pytest.raises(TrainingError, match=remedy):
        next(loader)
    assert not log.cases


def test_too_few_files_at_the_start_are_no_damage(
    stores: Workspace, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(path: Path) -> None:
        UsedUp(errno.EMFILE).get(path)

    monkeypatch.setattr("prect.train.data.StoreReader", no_more)
    with pytest.raises(TrainingError, match="ulimit -n"):
        open_data(stores, quarantining(make_config))


@pytest.mark.parametrize(
    ("number", "times", "deadly"),
    [
        (signal.SIGKILL, "xx", False),  # together, then alone; not alone again
        (signal.SIGABRT, "xx", True),
    ],
)
def test_only_what_kills_twice_is_to_blame_for_a_kill(
    simulated: Workspace, make_config: MakeConfig, tmp_path: Path,
    number: signal.Signals, times: str, deadly: bool,
) -> None:  # fmt: skip
    config = simulated_config(make_config, max_damaged=1.0)
    left = tmp_path / "left"
    left.write_text(times)
    data = split_data(simulated, load_cache_table(simulated, ["sim"]), config)
    views = data.views(config, pool=partial(EndsBy, number, left))
    found = find_deadly(views, [[5]], worker_context())
    assert list(found) == ([5] if deadly else [])


@pytest.mark.usefixtures("watchful")
def test_a_worker_that_was_killed_for_no_reason_is_replaced_again_and_again(
    simulated: Workspace, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the run goes on in between; each time is written down."""
    monkeypatch.setattr("prect.train.loader._MOST_MYSTERIES", 1)
    monkeypatch.setattr("prect.train.loader.find_deadly", lambda *_: {})
    config = simulated_config(make_config, workers=1, batch_size=1)
    views = simulated_views(simulated, config, lambda _: {})
    log = Quarantine(1, tmp_path)
    seen = []
    kills = {5, 6, 25, 26}  # in pairs: the second is looked into
    for batch in train_loader(views, config, range(40), quarantine=log):
        seen += [sample.index for sample in batch.samples]
        if len(seen) in kills:
            for process in reading_processes():
                process.kill()
    assert seen == list(range(40))
    assert log.restarts == len(read_restarts(tmp_path)) == 4
    assert not log.cases


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


class AnotherRank(Silent):
    """Meets damage, and has its workers started again, while rank 0 trains."""

    def on_step(self, step: int, metrics: Mapping[str, float] | None) -> None:  # noqa: ARG002
        if step == 2:
            log = Quarantine(9, self.folder, rank=1)
            log.record(step, [Damage(7, "d", "elsewhere", None, None, "gone", 8)])
            log.restarted(step, RuntimeError("killed"))

    def on_start(self, start: RunStart) -> None:
        self.folder = start.folder


def test_the_summary_tells_what_all_ranks_met(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    summary = launch(quarantining(make_config), own_stores.root, AnotherRank())
    assert (summary["quarantined"], summary["worker_restarts"]) == ([["d", "elsewhere"]], 1)


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
