"""A file system that is full, over quota, read-only or broken: a clean stop, and on again."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from prect.cache.build import Report, build, make_plan
from prect.cache.convert import convert
from prect.cache.plan import State, store_state
from prect.cache.profile import Profile
from prect.errors import BuildError, WorkspaceError
from prect.manifests.stores import read_cache_rows
from prect.workspace import Workspace
from tests.cache.faults_tools import (
    DATASET,
    PATIENCE,
    PROFILE,
    Collection,
    FileSteps,
    Tree,
    build_serially,
    make_collection,
    manifests_of_build,
    prect_command,
    tree,
)

KINDS = {"open", "write", "fsync", "mkdir", "rename", "replace"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return make_collection(tmp_path_factory.mktemp("full"), 2, (40, 36, 32))


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """A cluster inside of this process, so that the files of its worker can be made to fail."""
    local = LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
    with local, Client(local) as client:
        yield client


@pytest.fixture(scope="module")
def begun(
    collection: Collection, threads: Client, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """One of the two volumes is stored, and the manifests tell of it; not to be changed."""
    workspace = collection.fresh(tmp_path_factory.mktemp("begun") / "workspace")
    stop = partial(next, iter([False]), True)  # after one volume was submitted
    report = build(make_plan(DATASET, workspace, PROFILE), threads, stop=stop)
    assert (report.built, report.interrupted) == (1, True)
    assert len(read_cache_rows(workspace.cache_manifest(DATASET))) == 1
    return workspace


def copy_of(workspace: Workspace, folder: Path) -> Workspace:
    return Workspace(shutil.copytree(workspace.root, folder))


def failing(number: int) -> Callable[[str], None]:
    """What a step does that fails with this errno."""

    def act(_: str) -> None:
        raise OSError(number, os.strerror(number))

    return act


def build_all(workspace: Workspace, client: Client | None) -> Report:
    return build(make_plan(DATASET, workspace, PROFILE), client)


@pytest.fixture(scope="module")
def steps(begun: Workspace, threads: Client, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of all steps of the build that finishes what was begun, in order."""
    workspace = copy_of(begun, tmp_path_factory.mktemp("steps") / "workspace")
    with FileSteps(workspace.root, None).watched() as counted:
        build_all(workspace, threads)
    assert set(counted.names) == KINDS
    return counted.names


def stop_and_go_on(
    workspace: Workspace, disturbed: FileSteps, client: Client, collection: Collection, number: int
) -> None:
    """A build on a file system that fails stops cleanly; one that has room again completes it."""
    before = manifests_of_build(workspace)
    after = {
        path.removeprefix(f"{DATASET}/"): content for path, content in collection.manifests.items()
    }
    with disturbed.watched(), pytest.raises(BuildError) as caught:
        build_all(workspace, client)
    message = str(caught.value)
    assert f"{workspace.root} cannot be written: {os.strerror(number)}." in message
    assert message.endswith("run the same command again")
    assert 1 <= collection.assert_whole(workspace) <= 2
    assert not [*workspace.cache.rglob(".*"), *workspace.manifests.rglob(".*.tmp")]
    for name, content in manifests_of_build(workspace).items():
        assert content in (before.get(name), after[name]), name
    build_all(workspace, client)
    collection.assert_undisturbed(workspace)


def test_a_disk_that_is_full_from_any_step_on(
    collection: Collection, begun: Workspace, threads: Client, steps: list[str], tmp_path: Path
) -> None:
    for at in range(len(steps)):
        workspace = copy_of(begun, tmp_path / str(at))
        full = FileSteps(workspace.root, at, failing(errno.ENOSPC), lasting=True)
        stop_and_go_on(workspace, full, threads, collection, errno.ENOSPC)
        assert full.names[: at + 1] == steps[: at + 1]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_one_step_of_each_kind_that_fails(
    collection: Collection,
    begun: Workspace,
    threads: Client,
    steps: list[str],
    tmp_path: Path,
    number: int,
) -> None:
    last = len(steps) - 1 - steps[::-1].index("write")
    for at in sorted({*map(steps.index, KINDS), last}):
        workspace = copy_of(begun, tmp_path / str(at))
        once = FileSteps(workspace.root, at, failing(number))
        stop_and_go_on(workspace, once, threads, collection, number)


def test_a_writer_that_fails_leaves_neither_files_nor_descriptors(
    begun: Workspace, tmp_path: Path
) -> None:
    """Whoever calls it has nothing to clear up, wherever the disk was full."""
    workspace = copy_of(begun, tmp_path / "workspace")
    before = tree(workspace.cache)
    (job,) = make_plan(DATASET, workspace, PROFILE).jobs()
    with FileSteps(workspace.cache, None).watched() as steps:
        convert(job)
    shutil.rmtree(job.store)
    for at in range(steps.names.index("rename")):
        full = FileSteps(workspace.cache, at, failing(errno.ENOSPC), lasting=True)
        with full.watched(), pytest.raises(OSError, match="No space left on device"):
            convert(job)
        assert tree(workspace.cache) == before
    assert not [path for path in Path("/proc/self/fd").iterdir() if leads_into(path, workspace)]


def leads_into(link: Path, workspace: Workspace) -> bool:
    try:
        return workspace.root in link.readlink().parents
    except FileNotFoundError:  # what the folder of links was listed with
        return False


def test_an_older_store_outlives_a_failed_replacement(
    collection: Collection, tmp_path: Path, threads: Client
) -> None:
    workspace = collection.fresh(tmp_path / "workspace")
    build_serially(workspace)
    older = tree(workspace.dataset_cache(DATASET))
    other = Profile.model_validate({"name": "iso3", "harmonisation": {"spacing_mm": (3, 3, 3)}})
    renames = []
    with FileSteps(workspace.cache, None).watched() as counted:
        convert(next(make_plan(DATASET, copy_of(workspace, tmp_path / "c"), other).jobs()))
    for job in make_plan(DATASET, workspace, other).jobs():
        with FileSteps(workspace.cache, None).watched() as counted:
            convert(job)
        renames = [number for number, name in enumerate(counted.names) if name == "rename"]
        break
    assert len(renames) == 3  # the name is taken, the older one goes aside, the name is free
    shutil.rmtree(workspace.root)
    for at in renames:
        workspace = collection.fresh(tmp_path / str(at))
        build_serially(workspace)
        job = next(make_plan(DATASET, workspace, other).jobs())
        with (
            FileSteps(workspace.cache, at, failing(errno.EIO)).watched(),
            pytest.raises(OSError, match="Input/output error"),
        ):
            convert(job)
        assert tree(workspace.dataset_cache(DATASET)) == older
        assert build(make_plan(DATASET, workspace, other), threads).summary()["built"] == 2
        assert store_state(job.store, other, "") is State.OTHER_SOURCE


def test_a_manifest_that_cannot_be_written_in_mid_build(
    collection: Collection, tmp_path: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in flight is finished and counted before the build stops."""
    monkeypatch.setattr("prect.cache.build._MANIFEST_EVERY", 1)
    workspace = collection.fresh(tmp_path / "workspace")
    manifest = workspace.cache_manifest(DATASET).parent
    full = FileSteps(manifest, 0, failing(errno.ENOSPC), lasting=True)
    with full.watched(), pytest.raises(BuildError, match=r"\(2 by this run\)"):
        build_all(workspace, threads)
    assert collection.assert_whole(workspace) == 2
    assert not manifests_of_build(workspace)
    assert build_all(workspace, None).summary()["kept"] == 2
    collection.assert_undisturbed(workspace)


def test_a_file_system_without_locks(
    collection: Collection, tmp_path: Path, threads: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    workspace = collection.fresh(tmp_path / "workspace")
    with monkeypatch.context() as patched:
        patched.setattr("prect.files.fcntl.flock", no_locks)
        with pytest.raises(WorkspaceError, match=r"cannot be locked .*file system with locks"):
            workspace.lock("build-cache").__enter__()
        with pytest.raises(BuildError, match=r"cannot be locked .*file system with locks"):
            build_all(workspace, threads)
        assert not tree(workspace.dataset_cache(DATASET))
    assert build_all(workspace, threads).summary()["stored"] == 2
    collection.assert_undisturbed(workspace)


SCRIPT = """
set -e
mount -t tmpfs -o size="$1" none "$2"
cp -r "$3/." "$2"
shift 3
status() { "$@" || echo "status $?" >&2; }
status "$@"
find "$PRECT_WORKSPACE" -name '.*.ome.zarr.*' -o -name '.*.tmp' >&2
mount -o remount,size=100m,ro "$PRECT_WORKSPACE"
status "$@"
mount -o remount,rw "$PRECT_WORKSPACE"
status "$@"
cp -r "$PRECT_WORKSPACE" "$OUT"
"""


def occupied(files: Tree) -> int:
    """Bytes that files and folders take on a tmpfs, which gives them whole pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(page * -(-len(content or b"") // page) for content in files.values())


def test_a_real_file_system_that_is_full_and_then_read_only(tmp_path: Path) -> None:
    """A tmpfs of which one store takes more than half, in a mount namespace of its own."""
    unshare = ["unshare", "-rm"]
    place = tmp_path / "mount"
    place.mkdir()
    trial = [*unshare, "mount", "-t", "tmpfs", "none", str(place)]
    if not shutil.which("unshare") or subprocess.run(trial, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs; the injected faults above remain")
    collection = make_collection(tmp_path / "collection", 2, (64, 60, 56))
    room = occupied(tree(collection.template.root)) + occupied(collection.stores) * 3 // 4
    manifests = 40_000  # of the build, and its lock
    command = prect_command(Workspace(place), "--workers", 1)
    done = subprocess.run(
        [
            *(*unshare, "sh", "-c", SCRIPT, "sh"),
            *(str(room + manifests), str(place), str(collection.template.root)),
            *command,
        ],
        env=os.environ | {"PRECT_WORKSPACE": str(place), "OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    full, read_only, *rest = done.stderr.split("status 1\n")
    assert f"error: the build of {DATASET} stopped, {place} cannot be written: No space" in full
    assert "Volumes that were stored stay (1 by this run)" in full
    assert "error: " in read_only
    assert "Read-only file system" in read_only
    assert "Traceback" not in done.stderr
    assert len(rest) == 1
    collection.assert_undisturbed(Workspace(tmp_path / "out"))
