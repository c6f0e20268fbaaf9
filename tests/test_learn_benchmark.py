"""The program that shows that VoCo learns: it runs, and its status follows its bars."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Built

# It runs the program, which has a make target of its own.
pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).resolve().parents[1] / "benchmarks" / "learn.py"
OPTIONS = ("--quick", "--objectives", "voco-v2", "--jobs", "2")


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, phantom_built: Built) -> Path:
    """The file of a run of two steps."""
    folder = tmp_path_factory.mktemp("learn")
    written = folder / "learn.json"
    done = run_program(
        *OPTIONS,
        *("--workspace", phantom_built.workspace.root, "--dir", folder / "work"),
        *("--json", written),
    )
    assert done.returncode == 1, done.stderr
    assert "falls short" in done.stdout
    return written


def test_two_steps_do_not_clear_the_bar(quick: Path) -> None:
    document = json.loads(quick.read_text())
    assert [run["variant"] for run in document["runs"]] == ["default", "shuffled labels"]
    for run in document["runs"]:
        assert [line["step"] for line in run["evaluations"]] == [0, 1, 2]
        assert [point["step"] for point in run["retrieval_course"]] == [0, 2]
        assert set(run["retrieval"]) == {"trained", "untrained", "histogram"}
        assert not run["summary"]["learned"]
    met = {goal["name"]: goal["met"] for goal in document["goals"]}
    assert not met["voco-v2: pos + neg over untrained"]
    assert not list(quick.parent.joinpath("work").iterdir())


def learned(document: dict[str, Any]) -> dict[str, Any]:
    """The same document, as if the first run had learned all that it must."""
    trained = document["runs"][0]
    trained["summary"]["untrained"] |= {"total": 0.5, "top1": 0.4, "chance": 0.11}
    trained["summary"]["heldout"] |= {"total": 0.34, "top1": 0.57}
    trained["summary"]["floor"]["value"] = 0.6
    trained["retrieval"] = {
        "trained": {"value": 40, "low": 35, "high": 45},
        "untrained": {"value": 60, "low": 50, "high": 70},
        "histogram": {"value": 80, "low": 75, "high": 85},
    }
    return document


@pytest.mark.parametrize(
    ("part", "change", "missed"),
    [
        (None, {}, None),
        ("heldout", {"total": 0.36}, "pos + neg over untrained"),
        ("heldout", {"top1": 0.5}, "top-1 over untrained"),
        ("floor", {"value": 0.3}, "pos + neg over best constant"),
        ("untrained", {"value": 50, "low": 44, "high": 60}, "lower end of untrained"),
        ("histogram", {"value": 50, "low": 44, "high": 60}, "lower end of histogram"),
    ],
)
def test_goals_are_the_bars(
    quick: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str | None,
    change: dict[str, float],
    missed: str | None,
) -> None:
    document = learned(json.loads(quick.read_text()))
    trained = document["runs"][0]
    if part is not None:
        where = trained["retrieval"] if "low" in change else trained["summary"]
        where[part] |= change
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    goals = importlib.import_module("learn_report").goals_of(document["runs"])
    short = [goal["name"] for goal in goals if not goal["met"]]
    assert len(short) == (0 if missed is None else 1)
    assert missed is None or missed in short[0]


def test_control_that_clears_the_bar_is_a_failure(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = learned(json.loads(quick.read_text()))
    first, shuffled = document["runs"]
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    goals_of = importlib.import_module("learn_report").goals_of
    assert all(goal["met"] for goal in goals_of([first, shuffled]))
    for key in ("summary", "retrieval"):
        shuffled[key] = first[key]
    assert [g["name"] for g in goals_of([first, shuffled]) if not g["met"]] == [
        "voco-v2, shuffled labels: bar cleared (0: it fails, as it must)"
    ]


def test_run_that_is_read_again_makes_page_and_pictures(quick: Path, tmp_path: Path) -> None:
    page = tmp_path / "learning.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    made_up = tmp_path / "made-up.json"
    made_up.write_text(json.dumps(learned(json.loads(quick.read_text()))))
    done = run_program("--read", made_up, "--docs", tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- figures -->\n\n")
    assert text.endswith("<!-- end of figures -->\nafter\n")
    assert "old" not in text
    assert "| voco-v2, shuffled labels, seed 0 |" in text
    assert (tmp_path / "learning-voco-v2.png").stat().st_size > 10_000
