"""Control groups: found, refused with a reason, used and removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from prect.benchmark import compare
from prect.benchmark.boxes import Volume, draw_turns
from prect.benchmark.compare import runners, starve
from prect.benchmark.measuring import BenchmarkError
from prect.benchmark.starved import Cgroup, find_parent, groups_above

MOUNTS = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"


def test_the_groups_of_this_process() -> None:
    root = Path("/sys/fs/cgroup")
    groups = "9:memory:/old\n0::/user.slice/session\n"
    assert groups_above(MOUNTS, groups) == [root / "user.slice/session", root / "user.slice"]
    assert groups_above(MOUNTS, "0::/\n") == [root]
    assert groups_above("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n", groups) == []
    assert groups_above(MOUNTS, "9:memory:/old\n") == []


def group(folder: Path, controllers: str, shared: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.subtree_control").write_text(shared)
    return folder


def test_the_first_group_that_hands_on_the_control_of_memory(tmp_path: Path) -> None:
    above = group(tmp_path / "above", "cpu memory", "cpu memory")
    own = group(above / "own", "cpu memory", "")
    assert find_parent([own, above]) == above
    assert find_parent([above, own]) == above


@pytest.mark.parametrize(
    ("controllers", "shared", "reason"),
    [
        ("cpu io", "", "do not control memory"),
        ("cpu memory", "cpu", "does not hand on"),
    ],
)
def test_why_there_is_none(tmp_path: Path, controllers: str, shared: str, reason: str) -> None:
    with pytest.raises(BenchmarkError, match=reason):
        find_parent([group(tmp_path / "own", controllers, shared)])


def test_why_there_is_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="has no control groups"):
        find_parent([])
    with pytest.raises(BenchmarkError, match="cannot be read"):
        find_parent([tmp_path / "missing"])


def test_a_group_takes_the_process_and_the_limit(tmp_path: Path) -> None:
    with Cgroup(4711, tmp_path) as cgroup:
        assert (cgroup.path / "cgroup.procs").read_text() == "4711"
        (cgroup.path / "memory.swap.max").write_text("max")
        cgroup.limit(123456)
        assert (cgroup.path / "memory.max").read_text() == "123456"
        assert (cgroup.path / "memory.swap.max").read_text() == "0"
        for file in cgroup.path.iterdir():  # which the kernel does of itself
            file.unlink()
    assert not cgroup.path.exists()


def test_a_group_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no control group could be made"):
        Cgroup(4711, tmp_path / "missing").__enter__()


def test_reads_short_of_memory_are_timed_in_processes_with_a_limit(
    volumes: list[Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "group"
    parent.mkdir()
    monkeypatch.setattr(compare, "find_parent", lambda: parent)
    turns = draw_turns(volumes, 1)
    with runners(["prect", "monai-cache"], volumes, tmp_path, lambda _: None) as started:
        told = starve(started, volumes, turns, lambda _: None)
    if (reason := started[0].not_measured.get("starved")) is not None:
        pytest.skip(f"no file can be dropped from the page cache here: {reason}")
    assert told["measured"] is True
    reads = started[0].to_json()["reads"]["starved"]
    assert {view["reads"] for view in reads.values()} == {2}
    assert started[1].not_measured["starved"] == "in memory"
    (made,) = parent.iterdir()
    assert made.name != f"prect-benchmark-{started[0].process.pid}"
    given = int((made / "memory.max").read_text())
    files = sum(started[0].facts["bytes"].values())
    assert given > files / 4
