"""Clusters of every kind, two builds at once, and two writers of the same store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
from numpy.typing import NDArray

from prect.cache.build import Report, build, make_plan
from prect.cache.convert import Job, convert
from prect.cache.format import StoreAttributes
from prect.cache.reader import StoreReader
from prect.cache.writer import clear_leftovers
from prect.cluster import cluster
from prect.errors import ClusterError, StoreError
from prect.ingest.survey import survey
from prect.manifests.stores import CacheRow, QuarantineRow
from prect.workspace import Workspace
from tests.cache.faults_tools import (
    DATASET,
    PROFILE,
    Collection,
    DaskCluster,
    Gate,
    dask_cluster,
    make_collection,
    prect_command,
    running,
    tree,
    wait_until,
)
from tests.cache.stores import random_hu, write_store
from tests.conftest import SALT, run_prect
from tests.ingest.volumes import body_volume, write_nifti

SHARD = "*/cache/d/.*/0/c.0.0.0"
"""The finest level of a store that has no name yet."""


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("clusters"), 6, (40, 36, 32))


@pytest.mark.slow
def test_workers_with_many_threads_do_one_volume_each(
    collection: Collection, tmp_path: Path
) -> None:
    """Two processes of an external cluster, four threads each, build what a single one builds."""
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", SHARD)
    options = ("--nthreads", "4")
    with (
        dask_cluster(tmp_path / "dask", *options, environment=gate.environment) as dask,
        cluster(1, dask.address) as client,
    ):
        client.wait_for_workers(2)
        command = prect_command(workspace, "--scheduler", dask.address)
        with running(command, tmp_path / "run") as process:
            first, second = gate.next(), gate.next()
            # Each process has threads and volumes left, and one of these waits at the gate.
            wait_until(
                lambda: sum(len(jobs) for jobs in client.processing().values()) == 4,
                "two volumes a process",
            )
            time.sleep(0.3)
            assert first.pid != second.pid
            assert {held.pid for held in gate.waiting()} == {first.pid, second.pid}
            assert len(gate.waiting()) == 2
            gate.open()
            assert process.wait() == 0, process.messages
    collection.assert_undisturbed(workspace)


@contextmanager
def one_worker(folder: Path, gate: Gate) -> Iterator[DaskCluster]:
    """An external cluster whose worker nobody starts again."""
    options = ("--nthreads", "1", "--no-nanny")
    with dask_cluster(folder, *options, workers=1, environment=gate.environment) as dask:
        yield dask


@pytest.mark.parametrize(
    ("hit", "message"),
    [
        ("worker", "has had no worker for 5 seconds"),
        pytest.param("scheduler", "the Dask scheduler has gone", marks=pytest.mark.slow),
    ],
)
def test_a_cluster_that_has_come_to_a_standstill_is_given_up(
    collection: Collection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hit: str,
    message: str,
) -> None:
    """The last worker is killed, or the scheduler no longer answers."""
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", SHARD)
    with one_worker(tmp_path / "dask", gate) as dask:
        process, number = {
            "worker": (dask.workers[0], signal.SIGKILL),
            "scheduler": (dask.scheduler, signal.SIGSTOP),
        }[hit]

        def strike() -> None:
            gate.next()
            monkeypatch.setattr("prect.cluster._WORKERS_WITHIN", 5)
            monkeypatch.setattr("prect.cluster._LOOK_EVERY", 0.2)
            os.kill(process.pid, number)

        striker = threading.Thread(target=strike)
        striker.start()
        with (
            pytest.raises(ClusterError, match=message),
            cluster(1, dask.address) as client,
        ):
            build(make_plan(DATASET, workspace, PROFILE), client)
        striker.join()
        os.kill(dask.scheduler.pid, signal.SIGCONT)
    assert collection.assert_whole(workspace) == 0


def test_another_release_on_the_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(1) as local:
        address = str(local.scheduler_info()["address"])
        with cluster(1, address):
            pass
        monkeypatch.setattr("prect.cluster.__version__", "999")
        with pytest.raises(ClusterError, match="install prect 999 where"), cluster(1, address):
            pass


def test_two_builds_at_once(collection: Collection, tmp_path: Path) -> None:
    """The second one says so, and leaves the first one alone; on another host it would be so too,
    since what it meets is a lock on a file of the workspace.
    """
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", SHARD)
    command = prect_command(workspace, "--workers", 1)
    with running(command, tmp_path / "run", gate.environment) as process:
        gate.next()
        before = tree(workspace.root)
        second = run_prect(*command[3:], expect=1)
        (error,) = second.stderr.splitlines()
        assert error.startswith(f"error: build-cache is already running on {workspace.root}")
        assert f"process {process.pid}" in error
        assert tree(workspace.root) == before
        gate.open()
        assert process.wait() == 0, process.messages
    collection.assert_undisturbed(workspace)


# Volumes that kill their workers


def _die(job: Job) -> CacheRow | QuarantineRow:
    if "deadly" in job.source.source:
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(job)


def ten_with_two_deadly(tmp_path: Path) -> Workspace:
    folder = tmp_path / "source"
    folder.mkdir()
    for seed in range(10):
        name = f"deadly{seed}" if seed in (2, 7) else f"sound{seed}"
        write_nifti(folder / f"{name}.nii.gz", body_volume(seed=seed))
    workspace = Workspace(tmp_path / "workspace")
    survey(DATASET, folder, workspace, salt=SALT)
    return workspace


def assert_two_quarantined(workspace: Workspace, report: Report) -> None:
    counts = report.summary()
    assert (counts["stored"], counts["quarantined"], counts["pending"]) == (8, 2, 0)
    assert {row.code for row in report.quarantine} == {"build.worker_died"}
    sources = {
        job.source.source: job.store
        for job in make_plan(DATASET, Workspace(workspace.root), PROFILE).jobs()
    }
    assert sorted(sources) == ["deadly2.nii.gz", "deadly7.nii.gz"]
    assert not list(workspace.cache.rglob(".*"))


def test_local_workers_that_dask_has_given_up_are_replaced(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does some time after a worker has died, if it has died again and is not yet back."""
    monkeypatch.setattr("prect.cluster._LOOK_EVERY", 0.2)
    workspace = collection.fresh(tmp_path / "workspace")

    async def give_up(local: Any) -> None:
        for name in list(local.workers):
            await local.workers.pop(name).close()

    with cluster(1) as client:
        client.sync(give_up, client.cluster)
        assert not client.nthreads()
        build(make_plan(DATASET, workspace, PROFILE), client)
    collection.assert_undisturbed(workspace)


@pytest.mark.slow
def test_workers_that_die_while_they_start_are_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole: Any = distributed.LocalCluster
    attempts: list[int] = []

    def first_fails(**options: Any) -> Any:
        attempts.append(options["n_workers"])
        if len(attempts) % fails_until:
            raise RuntimeError("Nanny failed to start.")
        return whole(**options)

    monkeypatch.setattr(distributed, "LocalCluster", first_fails)
    fails_until = 2
    with cluster(1) as client:
        assert client.submit(abs, -3).result() == 3
    assert attempts == [1, 1]
    fails_until = 100
    with pytest.raises(ClusterError, match=r"1 worker processes could not be started"), cluster(1):
        pass
    assert len(attempts) == 2 + 3


@pytest.mark.slow
def test_two_deadly_volumes_among_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prect.cache.build.convert", _die)
    workspace = ten_with_two_deadly(tmp_path)
    with cluster(2) as client:
        report = build(make_plan(DATASET, workspace, PROFILE), client)
    assert_two_quarantined(workspace, report)


@pytest.mark.slow
def test_two_deadly_volumes_on_an_external_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Dask lets a job take four workers with it before it gives it up."""
    monkeypatch.setattr("prect.cache.build.convert", _die)
    workspace = ten_with_two_deadly(tmp_path)
    with dask_cluster(tmp_path / "dask") as dask, cluster(1, dask.address) as client:
        report = build(make_plan(DATASET, workspace, PROFILE), client)
    assert_two_quarantined(workspace, report)


# Two writers of one store

ROUNDS = 200
SHAPE = (20, 18, 16)


def _store(path: Path, number: int) -> StoreAttributes:
    """Write one of two stores, whose shards differ in size."""
    volume = random_hu(SHAPE) if number else np.zeros(SHAPE, dtype=np.int16)
    return write_store(path, volume, chunk=(8, 8, 8), levels=2)


def _store_often(path: Path, number: int, begin: Event) -> None:
    begin.wait()
    for _ in range(ROUNDS):
        _store(path, number)


def _clear_often(folder: Path, end: Event) -> None:
    while not end.wait(0.002):
        clear_leftovers(folder)


def test_two_writers_of_one_store_a_reader_and_one_who_clears(tmp_path: Path) -> None:
    """Who reads gets one of the two stores, or is told that there is none; never a mixture."""
    path = tmp_path / "case.ome.zarr"
    volumes: dict[str, list[NDArray[np.int16]]] = {}
    for number in (0, 1):
        attributes = _store(path, number)
        with StoreReader(path) as reader:
            levels = [
                reader.read(n, (0, 0, 0), level.shape) for n, level in enumerate(reader.levels)
            ]
        volumes[attributes.levels[0].shard_digest] = levels
    context = multiprocessing.get_context("forkserver")
    begin, end = context.Event(), context.Event()
    writers = [context.Process(target=_store_often, args=(path, n, begin)) for n in (0, 1)]
    clearer = context.Process(target=_clear_often, args=(tmp_path, end))
    for process in (*writers, clearer):
        process.start()
    begin.set()
    seen: Counter[str] = Counter()
    while any(writer.is_alive() for writer in writers):
        try:
            with StoreReader(path) as reader:
                which = reader.attributes.levels[0].shard_digest
                for number, expected in enumerate(volumes[which]):
                    read = reader.read(number, (0, 0, 0), reader.levels[number].shape)
                    assert np.array_equal(read, expected)
        except StoreError:
            which = "no store"
        seen[which] += 1
    end.set()
    for process in (*writers, clearer):
        process.join()
        assert process.exitcode == 0
        process.close()
    assert all(seen[which] > 0 for which in volumes), seen
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
