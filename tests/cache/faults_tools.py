"""A small data set, what an undisturbed build makes of it, and faults to disturb one with."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

from prect.cache.build import build, make_plan
from prect.cache.convert import convert
from prect.cache.profile import load_profile
from prect.ingest.survey import survey
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.volumes import body_volume, write_nifti

DATASET = "d"
PROFILE = load_profile("iso1.5")
PATIENCE = 120
"""Seconds after which a process that should have ended, or begun, counts as hanging."""
ORPHANS_WITHIN = 30
"""Seconds in which workers must notice that their driver has gone."""
_MANIFESTS = ("cache.parquet", "quarantine.parquet", "profile.json")

Tree = dict[str, bytes | None]


def tree(folder: Path) -> Tree:
    """Everything under a folder by relative path, hidden things too; None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass(frozen=True)
class Collection:
    """An ingested data set, and what one process that nothing disturbs makes of it."""

    template: Workspace
    stores: Tree
    manifests: Tree

    @property
    def count(self) -> int:
        """Volumes."""
        return sum(path.count("/") == 0 for path in self.stores)

    def fresh(self, folder: Path) -> Workspace:
        """A workspace in ``folder`` in which the data set is ingested and not built."""
        workspace = Workspace(folder)
        shutil.copytree(self.template.root, folder, dirs_exist_ok=True)
        return workspace

    def assert_undisturbed(self, workspace: Workspace) -> None:
        """Stores and manifests are those of an undisturbed build to the byte, and nothing else."""
        assert tree(workspace.dataset_cache(DATASET)) == self.stores
        assert tree(workspace.manifests) == self.manifests

    def assert_whole(self, workspace: Workspace) -> int:
        """Every store that has its name is whole, to the byte; returns how many there are."""
        cache = workspace.dataset_cache(DATASET)
        stores = [path for path in cache.glob("*") if not path.name.startswith(".")]
        for store in stores:
            expected = {
                path.removeprefix(f"{store.name}/"): content
                for path, content in self.stores.items()
                if path.startswith(f"{store.name}/")
            }
            assert tree(store) == expected
        return len(stores)


def make_collection(
    folder: Path, volumes: int = 8, shape: tuple[int, int, int] = (64, 60, 56)
) -> Collection:
    """Ingest made-up volumes of a shape (i, j, k) and store them one after the other."""
    (folder / "source").mkdir(parents=True)
    for seed in range(volumes):
        write_nifti(folder / "source" / f"v{seed}.nii.gz", body_volume(shape, seed))
    template = Workspace(folder / "template")
    survey(DATASET, folder / "source", template, salt=SALT)
    built = Workspace(shutil.copytree(template.root, folder / "built"))
    build_serially(built)
    collection = Collection(template, tree(built.dataset_cache(DATASET)), tree(built.manifests))
    assert collection.count == volumes
    return collection


def build_serially(workspace: Workspace) -> None:
    """Build in this process, one volume after the other; the manifests come last."""
    for job in make_plan(DATASET, workspace, PROFILE).jobs():
        convert(job)
    build(make_plan(DATASET, workspace, PROFILE), client=None)


def manifests_of_build(workspace: Workspace) -> Tree:
    """The manifests that a build writes; those that are there."""
    folder = workspace.cache_manifest(DATASET).parent
    return {name: (folder / name).read_bytes() for name in _MANIFESTS if (folder / name).exists()}


# Processes


def prect_command(workspace: Workspace, *arguments: object) -> list[str]:
    """The command line of a build, to be run as often as it takes."""
    command = [sys.executable, "-m", "prect", "build-cache", "-w", str(workspace.root)]
    return command + [str(argument) for argument in arguments]


def wait_until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait for something to be true; what waits longer than anyone would fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not come within {seconds:.0f} seconds"
        time.sleep(0.005)


@dataclass(frozen=True)
class Process:
    """A process with a session of its own; nothing of it outlives `running`."""

    popen: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def ended(self) -> bool:
        return self.popen.poll() is not None

    @property
    def output(self) -> str:
        """Standard output."""
        return (self.folder / "output").read_text()

    @property
    def messages(self) -> str:
        """Standard error."""
        return (self.folder / "messages").read_text()

    def children(self) -> list[psutil.Process]:
        """Living processes of its session, whether it lives itself or not."""
        others = [process for process in psutil.process_iter() if process.pid != self.pid]
        return [other for other in others if session(other) == self.pid and is_alive(other)]

    def workers(self) -> list[psutil.Process]:
        """Living processes of its session that multiprocessing has started: Dask workers."""
        return [child for child in self.children() if "--multiprocessing-fork" in arguments(child)]

    def wait(self, seconds: float = PATIENCE) -> int:
        """Exit status."""
        return self.popen.wait(seconds)


def assert_no_orphans(process: Process) -> None:
    """Whatever a process has started ends soon after it."""
    wait_until(lambda: not process.children(), "the end of the last child", ORPHANS_WITHIN)


def session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Process]:
    """A process, and at the end nothing of it: whatever is left is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output").open("wb") as output, (folder / "messages").open("wb") as messages:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=messages,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        )
    try:
        yield Process(popen, folder)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait(PATIENCE)


@dataclass(frozen=True)
class DaskCluster:
    """A scheduler and two workers that are processes of their own, as on another machine."""

    address: str
    scheduler: Process
    workers: list[Process]


@contextmanager
def dask_cluster(
    folder: Path, *options: str, workers: int = 2, environment: dict[str, str] | None = None
) -> Iterator[DaskCluster]:
    """Start ``dask scheduler`` and ``dask worker`` with its ``options``."""
    file = folder / "scheduler.json"
    common = ["--no-dashboard", "--scheduler-file", str(file), "--host", "127.0.0.1"]
    dask = [sys.executable, "-m"]
    scheduling = [*dask, "distributed.cli.dask_scheduler", "--port", "0", *common]
    working = [*dask, "distributed.cli.dask_worker", *common, *(options or ["--nthreads", "1"])]
    with ExitStack() as stack:
        scheduler = stack.enter_context(running(scheduling, folder / "scheduler"))
        processes = [
            stack.enter_context(running(working, folder / f"worker{number}", environment))
            for number in range(workers)
        ]
        wait_until(lambda: file.exists() and file.read_text().endswith("}"), "the scheduler")
        yield DaskCluster(json.loads(file.read_text())["address"], scheduler, processes)


# Moments

_HOLD = """
import fnmatch, os, time

_fsync, _count = os.fsync, iter(range(10**9))

def fsync(descriptor):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    gate = os.environ["GATE"]
    if fnmatch.fnmatch(path, os.environ["GATE_PATTERN"]) and not os.path.exists(gate + "/open"):
        held = f"{gate}/{os.getpid()}-{next(_count)}"
        with open(held + ".new", "w") as file:
            file.write(path)
        os.rename(held + ".new", held + ".held")
        while os.path.exists(held + ".held") and not os.path.exists(gate + "/open"):
            time.sleep(0.002)
    _fsync(descriptor)

os.fsync = fsync
"""


@dataclass(frozen=True)
class Held:
    """A process that waits at the gate."""

    marker: Path
    pid: int
    path: str
    """What it is about to flush to disk."""

    def release(self) -> None:
        """Let it go on to the next gate."""
        self.marker.unlink()


class Gate:
    """Where every process that inherits `environment` waits before it flushes certain files.

    So a test picks a moment of a build by what is being done, on a slow machine as on a fast one.

    Args:
        folder: to be made.
        pattern: of the paths of the files, as `fnmatch` has them.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder = folder
        self.pattern = pattern
        self._seen: set[Path] = set()
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_HOLD)

    @property
    def environment(self) -> dict[str, str]:
        paths = [str(self.folder), os.environ.get("PYTHONPATH", "")]
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "GATE": str(self.folder),
            "GATE_PATTERN": self.pattern,
        }

    def waiting(self) -> list[Held]:
        """Living processes that wait now."""
        found = []
        for marker in sorted(self.folder.glob("*.held")):
            pid = int(marker.name.split("-")[0])
            if psutil.pid_exists(pid):
                with suppress(FileNotFoundError):
                    found.append(Held(marker, pid, marker.read_text()))
        return found

    def next(self, seconds: float = PATIENCE) -> Held:
        """The next process that comes to the gate."""
        new: list[Held] = []

        def arrived() -> bool:
            new[:] = [held for held in self.waiting() if held.marker not in self._seen]
            return bool(new)

        wait_until(arrived, f"a process that flushes {self.pattern}", seconds)
        self._seen.add(new[0].marker)
        return new[0]

    def open(self) -> None:
        """Let everybody pass from now on."""
        (self.folder / "open").touch()


# Faults of the file system

Act = Callable[[str], None]


class _Raw(io.FileIO):
    """A file whose every write(2) is a step; the one that fails has written half."""

    def __init__(self, path: Path, mode: str, steps: FileSteps) -> None:
        super().__init__(path, mode)
        self._steps = steps

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._steps.failing("write"):
            super().write(view[: len(view) // 2])
            self._steps.act("write")
        return super().write(view) or 0


class FileSteps:
    """Counts the steps that change files under a folder, and lets something happen at one.

    Steps are every open for writing, write, fsync, mkdir and rename, in the order of the calls.

    Args:
        folder: others are not disturbed.
        at: number of the step, from 0; None to count only.
        act: called with the step's name instead of the step, or after half of a write.
        lasting: steps after that one fail as well, as on a full disk.
    """

    def __init__(
        self, folder: Path, at: int | None, act: Act = lambda _: None, *, lasting: bool = False
    ) -> None:
        self.folder = str(folder)
        self.at = at
        self.act = act
        self.lasting = lasting
        self.names: list[str] = []

    def failing(self, name: str) -> bool:
        """Count a step; whether it is one that fails."""
        number = len(self.names)
        self.names.append(name)
        if self.at is None:
            return False
        return number == self.at or (self.lasting and number > self.at)

    def step(self, name: str, path: object) -> None:
        """Count a step on a path, and let it fail."""
        if str(path).startswith(self.folder) and self.failing(name):
            self.act(name)

    @contextmanager
    def watched(self) -> Iterator[FileSteps]:
        """Within this block the steps of this process are counted and fail."""
        with ExitStack() as stack:
            for name in ("mkdir", "rename", "replace"):
                stack.enter_context(patch.object(os, name, self._before(name, getattr(os, name))))
            stack.enter_context(patch.object(os, "fsync", self._fsync(os.fsync)))
            stack.enter_context(patch.object(Path, "open", self._open(Path.open)))
            yield self

    def _before(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if name != "mkdir" or not Path(path).exists():  # else it changes nothing
                self.step(name, path)
            return function(path, *args, **options)

        return call

    def _fsync(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            self.step("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())
            function(descriptor)

        return call

    def _open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if mode not in ("wb", "xb") or not str(path).startswith(self.folder):
                return function(path, mode, *args, **options)
            self.step("open", path)
            return io.BufferedWriter(_Raw(path, mode[0], self))

        return call
