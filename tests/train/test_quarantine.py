"""The record of what could not be read: written by each rank, counted together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prect.errors import TrainingError
from prect.train.damage import (
    Damage,
    Incident,
    Quarantine,
    Restart,
    read_incidents,
    read_restarts,
)


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
    again.count()
    assert again.cases == {("d", f"early-{rank}") for rank in range(3)}


def test_what_was_met_before_a_resume_may_have_been_repaired(tmp_path: Path) -> None:
    first = Quarantine(2, tmp_path)
    first.record(1, [damage(0, "a", 2), damage(1, "b", 2)])
    resumed = Quarantine(2, tmp_path)
    resumed.rewind(3, world=1)
    resumed.record(4, [damage(9, "c", 10)])
    resumed.record(5, [damage(12, "a", 13)])
    assert resumed.cases == {("d", case) for case in "abc"}
    with pytest.raises(TrainingError, match=r"3 volumes .* d/a, d/c, d/e"):
        resumed.record(6, [damage(20, "e", 21)])


def test_counts_follow_the_files_of_the_other_ranks(tmp_path: Path) -> None:
    """Rank 0 looked before rank 1 had dropped what comes after the checkpoint."""
    ranks = [Quarantine(9, tmp_path, rank) for rank in range(2)]
    ranks[1].record(5, [damage(3, "late", 4)])
    ranks[1].restarted(2, RuntimeError("killed"))
    ranks[1].restarted(6, RuntimeError("killed"))
    ranks[0].rewind(3, world=2)
    ranks[0].count()
    assert (ranks[0].cases, ranks[0].restarts) == ({("d", "late")}, 2)
    ranks[1].rewind(3, world=2)
    ranks[0].count()
    assert (ranks[0].cases, ranks[0].restarts) == (set(), 1)
    assert read_restarts(tmp_path) == [Restart(2, "killed")]
    ranks[1].record(4, [damage(3, "again", 4)])
    ranks[0].count()
    assert ranks[0].cases == {("d", "again")}
