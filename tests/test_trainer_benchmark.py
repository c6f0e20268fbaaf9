"""The benchmark of the trainer: its arithmetic, its turns, and that it writes what it measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import Built

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
PLAYER = """
import sys, time
sys.path.insert(0, {folder!r})
from measuring import serve
from trainer_turns import InTurn

def steps(*, port, seconds, number, log, fail=False):
    turns = InTurn(port, 3, 2)
    for step in range(1, number + 1):
        time.sleep(seconds)
        with open(log, "a") as file:
            file.write(f"{{seconds}}\\n")
        if fail and step == 4:
            raise ValueError("broken on purpose")
        turns.on_step(step, None)
    return {{"done": number}}

serve({{"steps": steps}})
"""


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("trainer_report", monkeypatch)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("trainer_turns", monkeypatch)


@pytest.fixture
def player(tmp_path: Path) -> Path:
    path = tmp_path / "player.py"
    path.write_text(PLAYER.format(folder=str(FOLDER)))
    return path


def made_block(*seconds: float) -> dict[str, Any]:
    return {"seconds": list(seconds), "cpu_s": 2 * sum(seconds), "faults": 30}


def made_turns(ratios: list[float], **changes: Any) -> dict[str, Any]:
    """Pairs of blocks of two steps; the second arm takes a second and a half a block."""
    bare = [made_block(0.5, 1.0) for _ in ratios]
    trainer = [made_block(0.5 * ratio, 1.0 * ratio) for ratio in ratios]
    run = {"preset": "demo", "arms": ["trainer", "bare"], "procs": 1, "gpus": 0, "keep": True}
    return (
        run
        | {"counts": True, "round": 0, "blocks": [trainer, bare], "same_weights": True}
        | changes
    )


def made_document(report: ModuleType, **changes: Any) -> dict[str, Any]:
    parts = dict.fromkeys((*report.ANY_LOOP, *report.OWN, *report.OF_A_LINE), 0.0)
    parts |= {"forward": 0.04, "backward": 0.06, "a line of figures": 0.0005, "sinks": 0.0002}
    document: dict[str, Any] = {
        "turns": [made_turns([1.01, 1.02, 1.00]), made_turns([1.03, 1.015, 1.0], round=1)],
        "inside": [{"preset": "demo", "steps": 160, "step_s": 0.101, "parts": parts}],
        "waits": [
            {"preset": "demo", "workers": 2, "shares": [0.02, 0.004]},
            {"preset": "demo", "workers": 2, "shares": [0.006, 0.005]},
        ],
        "checkpoints": [
            {
                **{"preset": "demo", "gpus": 0, "bytes": 7e6, "usual_bytes": 7e6},
                **{"stall_s": [0.02, 0.005, 0.007], "usual_stall_s": [0.012, 0.011, 0.013]},
                **{"commit_s": [0.06, 0.07, 0.05], "restore_s": [0.04], "usual_restore_s": [0.03]},
            }
        ],
        "resume": [
            {
                **{"preset": "demo", "steps": 12, "stopped": [2, 7], "tensors": 164},
                **{"differ": 0, "equal": True},
            }
        ],
        "gpu": None,
        "failures": [],
        "left_out": [],
        "machine": {
            **{"cores": 2, "threads": 2, "load": 0.1, "python": "3.11"},
            "versions": {"torch": "2"},
        },
    }
    document |= changes
    return document | {"goals": report.goals_of(document)}


def unmet(document: dict[str, Any]) -> list[str]:
    return [goal["name"] for goal in document["goals"] if not goal["met"]]


def cells(text: str, first: str) -> list[str]:
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.split("|")[1:-1]]


def test_pairs_of_blocks_are_compared(report: ModuleType) -> None:
    document = made_document(report)
    assert unmet(document) == []
    found = {goal["name"]: goal["ratio"] for goal in document["goals"]}
    assert found["overhead over a bare loop"] == pytest.approx(0.0125)
    # A step of 101 ms with 100 ms that any loop needs.
    assert found["the same, by clocks inside of the trainer"] == pytest.approx(0.01)
    assert found["waiting for data"] == pytest.approx(0.0055)
    row = cells(report.figures(document), "demo: trainer over bare")
    assert row[2] == "+1.25%"
    assert row[3] == "+0.00% to +3.00%"  # six pairs: the lowest and the highest
    assert row[5] == "+1.00%, +1.50%"
    assert row[9:] == ["15, 15", "6"]
    # Six pairs leave the interval at the lowest and the highest, on both sides of the goal.
    assert "too unsteady" in report.figures(document)
    steady = made_document(report, turns=[made_turns([1.01] * 6)])
    assert "too unsteady" not in report.figures(steady)


def test_the_slow_pair_counts_in_the_sum_and_not_in_the_median(report: ModuleType) -> None:
    found = report.compared([made_turns([1.01, 1.01, 1.01, 1.01, 1.96])])
    assert found.rounds == [pytest.approx(0.01)]
    assert found.quick == pytest.approx(0.01)
    assert found.whole == pytest.approx(0.2)
    assert found.cpu == pytest.approx(0.2)


def test_interval_of_a_median(report: ModuleType) -> None:
    values = [float(n) for n in range(1, 17)]
    # P(at most 3 of 16 coins) = 1.06 %, at most 4: 3.8 %.
    assert report.interval(values[::-1]) == (4.0, 13.0)
    assert report.interval([2.0, 1.0]) == (1.0, 2.0)
    assert report.interval([1.0]) == (1.0, 1.0)


def test_each_goal_can_be_missed(report: ModuleType) -> None:
    slow = made_document(report, turns=[made_turns([1.03, 1.04, 1.00])])
    assert unmet(slow) == ["overhead over a bare loop"]
    changes: list[dict[str, Any]] = [{"arms": ["bare", "bare again"]}, {"keep": False}]
    other = [made_turns([1.5], counts=False, **change) for change in (*changes, {"procs": 2})]
    assert unmet(made_document(report, turns=other)) == []
    document = made_document(report)
    inside = document["inside"][0] | {"step_s": 0.103}
    assert unmet(made_document(report, inside=[inside])) == [
        "the same, by clocks inside of the trainer"
    ]
    waits = [{"preset": "demo", "workers": 2, "shares": [0.011]}]
    assert unmet(made_document(report, waits=waits)) == ["waiting for data"]
    differs = document["resume"][0] | {"differ": 1, "equal": False}
    missed = made_document(report, resume=[differs])
    assert unmet(missed) == ["tensors that differ after SIGTERM and going on"]
    text = report.figures(missed)
    assert cells(text, "demo | 12 | 2, 7")[3:] == ["164", "1", "false"]
    assert "- tensors that differ after SIGTERM and going on (demo): 1, the goal is <= 0" in text


def test_what_was_not_measured_is_not_in_the_page(report: ModuleType, tmp_path: Path) -> None:
    empty: dict[str, Any] = {
        name: [] for name in ("turns", "inside", "waits", "checkpoints", "resume")
    }
    failed = [{"what": "demo, inside", "why": "Traceback ...\nOSError: no room"}]
    document = made_document(report, **empty, failures=failed, left_out=["demo, round 2"])
    assert document["goals"] == []
    text = report.figures(document)
    assert "**" not in text
    assert "- failed: demo, inside: OSError: no room" in text
    assert "- not measured for want of time: demo, round 2" in text
    assert "- not measured: a GPU" in text
    measuring = importlib.import_module("measuring")
    page = tmp_path / "trainer-benchmark.md"
    page.write_text((FOLDER.parent / "docs" / page.name).read_text())
    measuring.write_page(text, page)
    assert text.strip() in page.read_text()


def test_rows_of_a_gpu(report: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is full at eight volumes; one combination cannot run; time ends before the last."""
    gpu, measuring = load("trainer_gpu", monkeypatch), load("measuring", monkeypatch)

    def task(_program: Path, name: str, ask: dict[str, Any]) -> dict[str, Any]:
        assert name == "fed"
        settings = ask["settings"]
        assert settings["data.global_batch"] == settings["data.batch_size"]
        assert settings["data.datasets"] == ["phantoms"]
        if settings["train.compile"] and settings["train.precision"] == "bfloat16":
            raise measuring.BenchmarkError("no compiler")
        if settings["data.batch_size"] == 8:
            return {"failed": "OutOfMemoryError: full", "out_of_memory": True}
        row = {"step_s": 0.5, "wait_share": 0.002, "volumes_per_s": 4.0, "memory_mib": 2048.0}
        return {"failed": None, **row, "mfu": 0.4, "stalls_s": [0.3, 0.1]}

    begun: list[str] = []
    monkeypatch.setattr(gpu, "task", task)
    rows, failures, left_out = gpu.rows(
        {"preset": "voco-b", "settings": {"data.datasets": ["phantoms"]}},
        64,
        ("bfloat16", "float32"),
        lambda: len(begun) < 7,
        begun.append,
    )
    kinds = [(row["precision"], row["compiled"], row["batch"]) for row in rows]
    eager = [("bfloat16", False, 2), ("bfloat16", False, 4)]
    assert kinds == [*eager, ("float32", False, 2), ("float32", False, 4)]
    assert failures == [{"what": "voco-b, bfloat16, compiled", "why": "no compiler"}]
    assert left_out == ["voco-b, float32, compiled, batch 2 and more"]
    found = {"device": "NVIDIA H200", "preset": "voco-b", "rows": rows}
    document = made_document(report, gpu=found)
    assert unmet(document) == ["seconds that a checkpoint holds up a step, GPU"]
    row = cells(report.figures(document), "bfloat16 | no | 4")
    assert row[3:] == ["4.00", "500", "0.20%", "40.0%", "2.0", "300, 100"]


def test_processes_compute_in_turns(turns: ModuleType, player: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    asked = {"number": 9, "log": str(log)}
    with (
        turns.Player(player, "steps", {}, seconds=0.02, **asked) as slow,
        turns.Player(player, "steps", {}, seconds=0.001, **asked) as fast,
    ):
        first, second = turns.in_turns([slow, fast], 3)
        assert [each.finish() for each in (slow, fast)] == [{"done": 9}] * 2
    assert [len(block.seconds) for block in (*first, *second)] == [2] * 6
    assert all(0.02 <= s < 0.2 for block in first for s in block.seconds)
    assert sum(sum(block.seconds) for block in second) < sum(sum(b.seconds) for b in first)
    lines = log.read_text().split()[6:]  # the first blocks are side by side
    assert lines == ["0.02"] * 2 + ["0.001"] * 4 + ["0.02"] * 4 + ["0.001"] * 2


@pytest.mark.slow
def test_a_process_that_fails_is_told_of(turns: ModuleType, player: Path, tmp_path: Path) -> None:
    asked = {"seconds": 0.001, "number": 9, "log": str(tmp_path / "log")}
    with (
        turns.Player(player, "steps", {}, **asked) as good,
        turns.Player(player, "steps", {}, fail=True, **asked) as bad,
    ):
        with pytest.raises(turns.BenchmarkError, match="broken on purpose"):
            turns.in_turns([good, bad], 3)
        assert good.process.poll() is None
    assert good.process.poll() is not None


def test_the_page_of_the_docs_has_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = load("measuring", monkeypatch)
    text = (FOLDER.parent / "docs" / "trainer-benchmark.md").read_text()
    assert text.count(measuring.BEGIN) == text.count(measuring.END) == 1
    assert text.index(measuring.BEGIN) < text.index(measuring.END)


@pytest.mark.slow
def test_it_measures_and_writes(phantom_built: Built, tmp_path: Path) -> None:
    path = tmp_path / "trainer.json"
    options = ["--steps", 10, "--rounds", 2, "--threads", 1, "--minutes", 0, "--json", path]
    options += ["--checkpoints", "demo", "--workspace", phantom_built.workspace.root]
    options += ["--dir", tmp_path / "work"]
    parts = ["overhead", "inside", "wait", "checkpoints", "resume"]
    command = [sys.executable, "-W", "ignore", "trainer.py", *options, "--parts", *parts]
    done = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        cwd=FOLDER,
    )
    assert "Traceback" not in done.stderr, done.stderr
    document: dict[str, Any] = json.loads(path.read_text())
    assert document["failures"] == []
    assert len(document["left_out"]) == 4  # the control, two second rounds, two processes
    assert done.returncode == (0 if all(goal["met"] for goal in document["goals"]) else 1)
    (own,) = document["turns"]
    assert own["arms"] == ["trainer", "bare"]
    assert own["same_weights"]
    assert [[len(block["seconds"]) for block in arm] for arm in own["blocks"]] == [[10], [10]]
    (inside,) = document["inside"]
    for name in ("forward", "backward", "agreeing on the step", "a line of figures", "state.json"):
        assert inside["parts"][name] > 0, name
    assert sum(inside["parts"].values()) < 1.05 * inside["step_s"]
    (checkpoints,) = document["checkpoints"]
    assert min(checkpoints["stall_s"]) > 0
    assert checkpoints["bytes"] == pytest.approx(checkpoints["usual_bytes"], rel=0.05)
    (resume,) = document["resume"]
    assert resume["equal"]
    assert resume["stopped"] == [2, 7]
    assert len(document["waits"][0]["shares"]) == 1
    assert list((tmp_path / "work").iterdir()) == []
