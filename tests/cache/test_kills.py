"""SIGKILL of a worker, of the scheduler, of the driver: whole stores, and the same in the end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

import psutil
import pytest

from prect.workspace import Workspace
from tests.cache.faults_tools import (
    DATASET,
    PATIENCE,
    Collection,
    FileSteps,
    Gate,
    Process,
    assert_no_orphans,
    build_serially,
    dask_cluster,
    make_collection,
    manifests_of_build,
    prect_command,
    running,
    wait_until,
)

SHARD = "*/cache/d/.*/0/c.0.0.0"
"""The finest level of a store that has no name yet."""
FOLDER = "*/cache/d"
"""The folder of all stores, just after one got its name."""
MANIFEST = "*/manifests/d/.cache.parquet.*"
"""The manifest of the stores, under its temporary name."""
ENDS_WITHIN = 60
"""Seconds in which a build must notice that its scheduler has gone."""
MOMENTS = 50
_LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("kills"), 4, (40, 36, 32))


def resume(collection: Collection, workspace: Workspace, folder: Path) -> None:
    """Run the same command again; its end is that of a build that nothing has disturbed."""
    with running(prect_command(workspace, "--workers", 2), folder) as process:
        assert process.wait() == 0, process.messages
    collection.assert_undisturbed(workspace)


# A moment of every kind


def test_a_worker_killed_in_mid_write_and_after_a_commit(
    collection: Collection, tmp_path: Path
) -> None:
    """The build itself goes on: a job whose worker died is done again."""
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", f"{FOLDER}*")
    command = prect_command(workspace, "--workers", 2)
    with running(command, tmp_path / "run", gate.environment) as process:
        killed: dict[str, int] = {}
        while len(killed) < 2:
            held = gate.next()
            for pattern in (SHARD, FOLDER):
                if fnmatch(held.path, pattern) and pattern not in killed:
                    killed[pattern] = held.pid
                    assert held.pid in [worker.pid for worker in process.workers()]
                    os.kill(held.pid, signal.SIGKILL)
            held.release()
        gate.open()
        assert process.wait() == 0, process.messages
    assert killed[SHARD] != killed[FOLDER]
    collection.assert_undisturbed(workspace)


def test_a_driver_killed_in_mid_write_and_in_mid_manifest(
    collection: Collection, tmp_path: Path
) -> None:
    workspace = collection.fresh(tmp_path / "workspace")
    for number, pattern in enumerate((SHARD, MANIFEST)):
        gate = Gate(tmp_path / f"gate{number}", pattern)
        command = prect_command(workspace, "--workers", 1)
        with running(command, tmp_path / f"run{number}", gate.environment) as process:
            gate.next()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert_no_orphans(process)
            collection.assert_whole(workspace)
        hidden = [*workspace.cache.rglob(".*.tmp-*"), *workspace.manifests.rglob(".*.tmp")]
        assert hidden, "the moment was not hit"
    assert collection.assert_whole(workspace) == collection.count
    resume(collection, workspace, tmp_path / "resumed")


def test_a_scheduler_killed_in_mid_write(collection: Collection, tmp_path: Path) -> None:
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", SHARD)
    with dask_cluster(tmp_path / "dask", workers=1, environment=gate.environment) as dask:
        command = prect_command(workspace, "--scheduler", dask.address)
        with running(command, tmp_path / "run") as process:
            gate.next().release()
            wait_until(lambda: workspace.stored_cases(DATASET), "the first store")
            gate.next()
            os.kill(dask.scheduler.pid, signal.SIGKILL)
            assert process.wait(ENDS_WITHIN) == 1
            assert process.output == ""
            lines = process.messages.splitlines()
            assert lines[-1].startswith("error: the Dask scheduler has gone")
            assert "Traceback" not in process.messages
    assert collection.assert_whole(workspace) >= 1
    build_serially(workspace)
    collection.assert_undisturbed(workspace)


@pytest.mark.slow
def test_a_nanny_killed_in_mid_write(collection: Collection, tmp_path: Path) -> None:
    """The worker that it looked after ends with it; the other one does all the rest."""
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", SHARD)
    with dask_cluster(tmp_path / "dask", environment=gate.environment) as dask:
        command = prect_command(workspace, "--scheduler", dask.address)
        with running(command, tmp_path / "run") as process:
            held = gate.next()
            (nanny,) = [n for n in dask.workers if held.pid in [c.pid for c in n.children()]]
            os.kill(nanny.pid, signal.SIGKILL)
            assert_no_orphans(nanny)
            gate.open()
            assert process.wait() == 0, process.messages
    collection.assert_undisturbed(workspace)


@pytest.mark.slow
def test_a_driver_of_an_external_cluster_killed_in_mid_write(
    collection: Collection, tmp_path: Path
) -> None:
    """Its workers finish what they are at, for nobody; then they do the same for its successor."""
    workspace = collection.fresh(tmp_path / "workspace")
    gate = Gate(tmp_path / "gate", SHARD)
    with dask_cluster(tmp_path / "dask", environment=gate.environment) as dask:
        command = prect_command(workspace, "--scheduler", dask.address)
        with running(command, tmp_path / "run") as process:
            gate.next()
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        with running(command, tmp_path / "resumed") as process:
            gate.open()
            assert process.wait() == 0, process.messages
    collection.assert_undisturbed(workspace)


# Every step of a writer


def _build_until(workspace: Workspace, at: int | None) -> None:
    """Build in this process, and die at the step of this number, in the middle of a write."""

    def die(_: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with FileSteps(workspace.root, at, die).watched():
        build_serially(workspace)


def test_a_writer_killed_at_every_step(tmp_path: Path) -> None:
    """Of a store, then of the manifests: every open, write, flush and rename."""
    collection = make_collection(tmp_path / "collection", 1, (40, 36, 32))
    counted = collection.fresh(tmp_path / "counted")
    with FileSteps(counted.root, None).watched() as steps:
        build_serially(counted)
    collection.assert_undisturbed(counted)
    # Forked from a process that has the libraries and no thread.
    context = multiprocessing.get_context("forkserver")
    seen: Counter[str] = Counter()
    for at, name in enumerate(steps.names):
        workspace = collection.fresh(tmp_path / str(at))
        process = context.Process(target=_build_until, args=(workspace, at))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
        process.close()
        collection.assert_whole(workspace)
        written = manifests_of_build(workspace)
        assert all(collection.manifests[f"{DATASET}/{n}"] == b for n, b in written.items())
        seen["store"] += bool(list(workspace.cache.rglob(".*.tmp-*")))
        seen["manifest"] += bool(list(workspace.manifests.rglob(".*.tmp")))
        seen[name] += 1
        build_serially(workspace)
        collection.assert_undisturbed(workspace)
    assert seen["store"] > 20
    assert seen["manifest"] >= 9
    assert {"mkdir", "open", "write", "fsync", "rename", "replace"} < set(seen)


# Random moments


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Volumes that take long enough for many moments."""
    return make_collection(tmp_path_factory.mktemp("larger"), 20, (112, 104, 96))


Phase = Callable[[Workspace, Process], bool]


def starts(_: Workspace, __: Process) -> bool:
    """Nothing has been done yet."""
    return True


def employs(_: Workspace, process: Process) -> bool:
    """A build has its first worker."""
    return bool(process.workers())


def writes(workspace: Workspace, _: Process) -> bool:
    """A build writes its first store."""
    return workspace.dataset_cache(DATASET).exists()


def come_to(phase: Phase, workspace: Workspace, process: Process) -> None:
    what = f"a build that {phase.__name__}"
    wait_until(lambda: phase(workspace, process) or process.ended, what)


class Moments:
    """Random times from a fixed seed, and what was going on at each.

    A fifth of them is spread from ``first`` to the end of a build that nothing disturbs, the
    others from its first store on.
    """

    def __init__(self, collection: Collection, folder: Path, first: Phase, seed: int) -> None:
        self.chance = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.spans: dict[Phase, float] = {}
        workspace = collection.fresh(folder / "workspace")
        with running(prect_command(workspace, "--workers", 2), folder / "run") as process:
            for phase in (first, writes):
                come_to(phase, workspace, process)
                self.spans[phase] = -time.monotonic()
            assert process.wait() == 0, process.messages
        for phase in self.spans:
            self.spans[phase] += time.monotonic()
        collection.assert_undisturbed(workspace)
        rare = MOMENTS // 5
        self._times = [
            (phase, (number + self.chance.random()) / count * self.spans[phase])
            for phase, count in ((first, rare), (writes, MOMENTS - rare))
            for number in range(count)
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._times)))

    def await_one(self, number: int, workspace: Workspace, process: Process) -> None:
        """Sleep until it comes, and tell what is going on from what has been written."""
        phase, seconds = self._times[number]
        come_to(phase, workspace, process)
        time.sleep(seconds)
        cache, listed = workspace.dataset_cache(DATASET), manifests_of_build(workspace)
        if process.ended:
            moment = "after the end"
        elif not cache.exists():
            moment = "before the first store"
        elif "cache.parquet" in listed or list(workspace.manifests.rglob(".*.tmp")):
            moment = "manifests and end"
        elif list(cache.glob(".*.tmp-*")):
            moment = "writing"
        else:
            moment = "between stores"
        self.seen[moment] += 1
        _LOG.info("moment %d of %d: %s", self.seen.total(), MOMENTS, moment)

    def assert_spread(self) -> None:
        """Most of them have hit a build at work."""
        _LOG.info("%s; seconds: %s", dict(self.seen), [round(s, 1) for s in self.spans.values()])
        assert self.seen.total() == MOMENTS
        assert self.seen["writing"] >= 10, self.seen
        assert self.seen["after the end"] <= MOMENTS // 2, self.seen


@pytest.mark.slow
def test_a_worker_killed_at_random_moments(larger: Collection, tmp_path: Path) -> None:
    moments = Moments(larger, tmp_path / "measured", employs, seed=1)
    for number in moments:
        folder = tmp_path / str(number)
        workspace = larger.fresh(folder / "workspace")
        with running(prect_command(workspace, "--workers", 2), folder / "run") as process:
            moments.await_one(number, workspace, process)
            workers = sorted(process.workers(), key=lambda worker: worker.pid)
            if workers:
                with suppress(psutil.NoSuchProcess):
                    moments.chance.choice(workers).kill()
            assert process.wait() == 0, (number, process.messages)
            larger.assert_undisturbed(workspace)
            assert_no_orphans(process)
        shutil.rmtree(folder)
    moments.assert_spread()


@pytest.mark.slow
def test_a_driver_killed_at_random_moments(larger: Collection, tmp_path: Path) -> None:
    moments = Moments(larger, tmp_path / "measured", starts, seed=2)
    for number in moments:
        folder = tmp_path / str(number)
        workspace = larger.fresh(folder / "workspace")
        with running(prect_command(workspace, "--workers", 2), folder / "run") as process:
            moments.await_one(number, workspace, process)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert_no_orphans(process)
        larger.assert_whole(workspace)
        resume(larger, workspace, folder / "resumed")
        shutil.rmtree(folder)
    moments.assert_spread()


@pytest.mark.slow
def test_a_scheduler_killed_at_random_moments(larger: Collection, tmp_path: Path) -> None:
    moments = Moments(larger, tmp_path / "measured", starts, seed=3)
    longest = 0.0
    for number in moments:
        folder = tmp_path / str(number)
        workspace = larger.fresh(folder / "workspace")
        with dask_cluster(folder / "dask") as dask:
            command = prect_command(workspace, "--scheduler", dask.address)
            with running(command, folder / "run") as process:
                moments.await_one(number, workspace, process)
                os.kill(dask.scheduler.pid, signal.SIGKILL)
                begin = time.monotonic()
                status = process.wait(ENDS_WITHIN)
                longest = max(longest, time.monotonic() - begin)
                if status != 0:
                    assert status == 1, (number, process.messages)
                    last = process.messages.splitlines()[-1]
                    assert last.startswith("error: the Dask scheduler has gone"), number
                assert "Traceback" not in process.messages
        if larger.assert_whole(workspace) < larger.count:
            assert status == 1
        resume(larger, workspace, folder / "resumed")
        shutil.rmtree(folder)
    _LOG.info("the longest time until the build had ended was %.1f s", longest)
    moments.assert_spread()
