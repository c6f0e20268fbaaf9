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


def test_the_group_of_version_1_comes_after_those_of_version_2() -> None:
    mounts = (
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    groups = "9:memory:/job/7\n1:cpu:/\n0::/\n"
    root = Path("/sys/fs/cgroup")
    assert groups_above(mounts, groups) == [root / "unified", root / "memory/job/7"]


def test_version_1_is_taken_where_version_2_does_not_control_memory(tmp_path: Path) -> None:
    second = group(tmp_path / "second", "", "")
    first = tmp_path / "first"
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("9223372036854771712")
    assert find_parent([second, first]) == first
    with pytest.raises(BenchmarkError, match=r"do not control memory.*rlimit.*page cache"):
        find_parent([second])


def test_a_group_of_version_1_limits_memory_and_the_sum_with_swap(tmp_path: Path) -> None:
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712")
    with Cgroup(4711, tmp_path) as cgroup:
        (cgroup.path / "memory.memsw.limit_in_bytes").write_text("9223372036854771712")
        cgroup.limit(123456)
        assert (cgroup.path / "memory.limit_in_bytes").read_text() == "123456"
        assert (cgroup.path / "memory.memsw.limit_in_bytes").read_text() == "123456"
        assert not (cgroup.path / "memory.max").exists()


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


@pytest.mark.parametrize("refused", ["the group", "the limit"])
def test_an_arm_whose_group_is_refused_says_so_and_the_others_are_measured(
    volumes: list[Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    groups = []

    class Grudging(Cgroup):
        def __enter__(self) -> Cgroup:
            groups.append(self)
            if self is groups[0] and refused == "the group":
                self.path = tmp_path / "missing" / "group"
            entered = super().__enter__()
            if self is groups[0]:
                (self.path / "memory.max").mkdir()  # which cannot be written to
            return entered

    monkeypatch.setattr(compare, "find_parent", lambda: tmp_path)
    monkeypatch.setattr(compare, "Cgroup", Grudging)
    turns = draw_turns(volumes, 1)
    with runners(["memmap", "prect"], volumes, tmp_path, lambda _: None) as started:
        plain = started[0].process
        told = starve(started, volumes, turns, lambda _: None)
        assert started[0].process is plain
        plain.ask("memory", "VmRSS")  # and it lives
    if "dropped" in started[1].not_measured.get("starved", ""):
        pytest.skip("no file can be dropped from the page cache here")
    said = {"the group": "no control group could be made", "the limit": "memory was refused"}
    assert said[refused] in started[0].not_measured["starved"]
    assert told["measured"] is True
    assert set(started[1].to_json()["reads"]) == {"starved"}


def test_where_every_group_is_refused_it_was_not_measured(
    volumes: list[Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "find_parent", lambda: tmp_path / "missing")
    turns = draw_turns(volumes, 1)
    with runners(["memmap"], volumes, tmp_path, lambda _: None) as started:
        told = starve(started, volumes, turns, lambda _: None)
        assert starve(started, volumes, [], lambda _: None)["reason"] == "left out of this run"
    assert told["measured"] is False
    assert "no control group could be made" in told["reason"]


def test_reads_short_of_memory_are_timed_in_processes_with_a_limit(
    volumes: list[Volume], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "group"
    parent.mkdir()
    monkeypatch.setattr(compare, "find_parent", lambda: parent)
    turns = draw_turns(volumes, 1)
    with runners(["prect", "decode-limit"], volumes, tmp_path, lambda _: None) as started:
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
