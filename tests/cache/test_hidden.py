"""Hidden names are recognised exactly, and folders go though their files are open."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

import pytest

from prect.cache.forecast.trial import KEEPER, clear_trials, trial_folder
from prect.cache.format import Codec
from prect.cache.hidden import Mark, delete, hidden_name, is_temporary, parse_hidden
from prect.cache.reader import StoreReader
from prect.cache.upkeep.leftovers import State, clear, find_leftovers
from prect.cache.writer import StoreWriter, clear_leftovers
from prect.workspace import Workspace
from tests.cache.stores import SPACING, random_hu, write_store

STORE = "case.ome.zarr"


def open_paths() -> set[Path]:
    """Paths of the files that this process has open."""
    paths = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            paths.add(link.readlink())
    return paths


@pytest.fixture
def nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an NFS client does: an open file is renamed by unlink, and goes when it is closed."""
    unlink, rmdir = os.unlink, os.rmdir

    def full(path: str | os.PathLike[str], dir_fd: int | None) -> Path:
        folder = Path.cwd() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        return folder / path

    def silly_unlink(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
        file = full(path, dir_fd)
        if file not in open_paths():
            unlink(file)
        elif file.name.startswith(".nfs"):
            raise OSError(errno.EBUSY, "Device or resource busy", str(file))
        else:
            file.rename(file.with_name(f".nfs{secrets.token_hex(6)}"))

    def late_rmdir(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
        folder = full(path, dir_fd)
        for entry in folder.iterdir():
            if entry.name.startswith(".nfs") and entry not in open_paths():
                unlink(entry)
        rmdir(folder)

    monkeypatch.setattr(os, "unlink", silly_unlink)
    monkeypatch.setattr(os, "remove", silly_unlink)
    monkeypatch.setattr(os, "rmdir", late_rmdir)


def leftover(folder: Path, token: str = "12ab") -> Path:
    path = folder / f".{STORE}.tmp-{token}"
    (path / "0").mkdir(parents=True)
    (path / "zarr.json").touch()
    (path / "0" / "c.0.0.0").write_bytes(b"1")
    return path


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        (".c.ome.zarr.tmp-12ab", ("c", Mark.TEMPORARY)),
        (".c.ome.zarr.tmp-12ab-old", ("c", Mark.TEMPORARY)),
        (".a.b.ome.zarr.removed-0", ("a.b", Mark.REMOVED)),
        (".c.ome.zarr.broken-9f", ("c", Mark.BROKEN)),
        (".c.ome.zarr.broken-9f-old", None),
        (".notes.tmp-keep", None),
        (".notes.ome.zarr.tmp-keep", None),
        (".x.tmp-1", None),
        ("c.ome.zarr.tmp-12ab", None),
        (".c.ome.zarr", None),
        (".ome.zarr.tmp-1", None),
    ],
)
def test_only_exact_names_are_ours(name: str, parsed: tuple[str, Mark] | None) -> None:
    assert parse_hidden(name) == parsed
    assert is_temporary(Path(name)) is (parsed is not None and parsed[1] is Mark.TEMPORARY)


@pytest.mark.parametrize("mark", Mark)
def test_new_names_are_recognised(mark: Mark) -> None:
    path = hidden_name(Path("folder") / STORE, mark)
    assert (path.parent, parse_hidden(path.name)) == (Path("folder"), ("case", mark))
    assert hidden_name(Path(STORE), mark) != hidden_name(Path(STORE), mark)


@pytest.mark.usefixtures("nfs")
class TestOpenFilesThatStay:
    def test_a_leftover_is_cleared(self, tmp_path: Path) -> None:
        made = [leftover(tmp_path, token) for token in ("01", "02")]
        assert clear_leftovers(tmp_path) == made
        assert list(tmp_path.iterdir()) == []

    def test_gc_clears(self, tmp_path: Path) -> None:
        workspace = Workspace(tmp_path)
        leftover(workspace.cache / "d")
        assert [entry.state for entry in clear(find_leftovers(workspace))] == [State.CLEARED]
        assert list((workspace.cache / "d").iterdir()) == []

    def test_a_writer_without_a_commit_leaves_nothing(self, tmp_path: Path) -> None:
        with StoreWriter(tmp_path / STORE) as writer:
            writer.write_levels(random_hu((8, 8, 8)), SPACING, (8, 8, 8), Codec(), 1)
        assert list(tmp_path.iterdir()) == []

    def test_trials_leave_nothing(self, tmp_path: Path) -> None:
        with trial_folder(tmp_path / "cache"):
            pass
        assert list(tmp_path.iterdir()) == []
        killed = tmp_path / ".plan-12ab"
        killed.mkdir()
        (killed / KEEPER).write_text("open")
        assert clear_trials(tmp_path) == [killed]
        assert list(tmp_path.iterdir()) == []

    def test_what_a_reader_has_open_is_left_for_later(self, tmp_path: Path) -> None:
        path = leftover(tmp_path)
        with (path / "0" / "c.0.0.0").open("rb"):
            assert clear_leftovers(tmp_path) == []
            assert clear_leftovers(tmp_path) == []  # unlink of its .nfs file: EBUSY
            assert path.is_dir()
        assert clear_leftovers(tmp_path) == [path]
        assert list(tmp_path.iterdir()) == []

    def test_a_store_that_is_read_is_replaced(self, tmp_path: Path) -> None:
        write_store(tmp_path / STORE, random_hu((8, 8, 8)))
        with StoreReader(tmp_path / STORE) as reader:
            reader.read(0, (0, 0, 0), (8, 8, 8))
            write_store(tmp_path / STORE, random_hu((9, 8, 8)))
        with StoreReader(tmp_path / STORE) as reader:
            assert reader.levels[0].shape == (9, 8, 8)
        clear_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [STORE]


@pytest.mark.parametrize("on_nfs", [False, True])
def test_a_writer_notices_that_its_folder_went_before_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, on_nfs: bool
) -> None:
    if on_nfs:
        request.getfixturevalue("nfs")
    flock = fcntl.flock
    cleared: list[str] = []

    def late(file: int, kind: int) -> None:
        if not cleared:  # the writer has made the file, and is about to lock it
            cleared.extend(path.name for path in tmp_path.iterdir())
            monkeypatch.setattr("prect.files.fcntl.flock", flock)
            clear_leftovers(tmp_path)
            assert not list(tmp_path.glob(".*/zarr.json"))
        flock(file, kind)

    monkeypatch.setattr("prect.files.fcntl.flock", late)
    write_store(tmp_path / STORE, random_hu((8, 8, 8)))
    assert len(cleared) == 1
    with StoreReader(tmp_path / STORE) as reader:
        assert reader.levels[0].shape == (8, 8, 8)
    clear_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [STORE]


def test_the_lock_file_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leftover(tmp_path)
    lock = (path / "zarr.json").open("r+b")
    unlink = Path.unlink

    def check(self: Path, missing_ok: bool = False) -> None:
        if self.name == "zarr.json":
            assert [entry.name for entry in path.iterdir()] == ["zarr.json"]
            assert not lock.closed
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", check)
    assert delete(path, lock)
    assert lock.closed
    assert not path.exists()


def test_links_go_and_what_they_point_to_stays(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    write_store(target / STORE, random_hu((8, 8, 8)))
    folder = tmp_path / "d"
    made = leftover(folder)
    (made / "1").symlink_to(target)
    (folder / f".{STORE}.tmp-34").symlink_to(target / STORE)
    (folder / f".{STORE}.tmp-56").symlink_to(tmp_path / "nowhere")
    (folder / f".{STORE}.tmp-78").write_text("a file")
    assert len(clear_leftovers(folder)) == 4
    assert list(folder.iterdir()) == []
    assert sorted(p.name for p in (target / STORE).iterdir()) == ["0", "1", "2", "zarr.json"]


def test_foreign_hidden_things_stay(tmp_path: Path) -> None:
    (tmp_path / ".notes.tmp-keep").mkdir()
    (tmp_path / ".notes.tmp-keep" / "mine").write_text("precious")
    (tmp_path / ".x.tmp-1").write_text("mine, too")
    assert clear_leftovers(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_deleting_what_is_gone_is_no_error(tmp_path: Path) -> None:
    assert delete(tmp_path / "nothing")


def test_a_store_that_is_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / STORE
    write_store(target, random_hu((8, 8, 8)))
    path = tmp_path / "d" / STORE
    path.parent.mkdir()
    path.symlink_to(target)
    write_store(path, random_hu((9, 8, 8)))
    assert not path.is_symlink()
    assert [entry.name for entry in path.parent.iterdir()] == [STORE]
    for store, depth in ((path, 9), (target, 8)):
        with StoreReader(store) as reader:
            assert reader.levels[0].shape == (depth, 8, 8)


def test_a_failure_before_there_is_a_temporary_name_leaves_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / STORE, random_hu((8, 8, 8)))

    def fail(_: int) -> str:
        raise MemoryError

    monkeypatch.setattr("prect.cache.hidden.secrets.token_hex", fail)
    with pytest.raises(MemoryError), StoreWriter(tmp_path / STORE):
        pass
    monkeypatch.undo()
    with StoreReader(tmp_path / STORE) as reader:
        assert reader.levels[0].shape == (8, 8, 8)
