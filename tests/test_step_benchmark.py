"""The benchmark of a step: all arms compute the same thing, and it writes what it measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
COMPARE = """
import json, step_arms
found = {}
for objective in ("voco-v1", "voco-v2", "voco-paper"):
    for arm in ("literal", "literal loss, encoder in one call", "prect"):
        result = step_arms.measure(
            arm=arm, network="demo", objective=objective, steps=1, warmup=0, threads=1,
            device="cpu", batch=2,
        )
        found.setdefault(objective, {})[arm] = result
print(json.dumps(found))
"""
FAILS = """
import sys, step
from measuring import BenchmarkError, task
def broken(program, name, **asked):
    if asked["arm"] == "literal":
        raise BenchmarkError("no memory")
    return task(program, name, **asked)
step.task = broken
step.main()
"""
CPU_ONCE = ("--networks", "demo", "--minutes", 0, "--threads", 1, "--device", "cpu")


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=200, cwd=FOLDER
    )


def run_python(*arguments: object) -> str:
    done = python(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("step_report")


def made_run(arm: str, seconds: float, gradient: tuple[float, ...] = (3.0, 4.0)) -> dict[str, Any]:
    parts = {"step": seconds}
    if arm != "literal":
        parts = {"crops": 0.01 * seconds, "heads": 0.02 * seconds, "backbone": 0.97 * seconds}
    return {
        **{"network": "tiny", "objective": "voco-v2", "arm": arm, "round": 0, "parts": parts},
        **{"optimiser_s": {"AdamW": 0.03 * seconds}, "peak_bytes": 10**9},
        **{"loss": 0.5, "gradient": 5.0, "first_gradient": list(gradient)},
    }


def made_document(report: ModuleType) -> dict[str, Any]:
    runs = [made_run("literal", 30), made_run(report.ONE_CALL, 12), made_run("prect", 10)]
    document: dict[str, Any] = {
        **{"runs": report.with_differences(runs), "counted": [], "gpu": None, "load": 0.1},
        "failures": [{"what": "tiny, voco-v1", "why": "no memory"}],
        "machine": {
            **{"cores": 2, "threads": 2, "device": "cpu", "python": "3.11"},
            "versions": {"torch": "2"},
        },
    }
    return document | {"goals": report.goals_of(document)}


@pytest.mark.slow
def test_plain_implementations_compute_the_same() -> None:
    """Two volumes, so that version 2 has its term between volumes."""
    found = json.loads(run_python("-c", COMPARE).splitlines()[-1])
    losses = {name: arms["literal"]["loss"] for name, arms in found.items()}
    assert len(set(losses.values())) == 3
    for arms in found.values():
        plain = arms.pop("literal")
        for own in arms.values():
            assert own["loss"] == pytest.approx(plain["loss"], rel=1e-4)
            assert own["gradient"] == pytest.approx(plain["gradient"], rel=1e-3)
            largest = max(map(abs, plain["first_gradient"]))
            assert largest > 0
            assert own["first_gradient"] == pytest.approx(
                plain["first_gradient"], rel=0, abs=5e-3 * largest
            )


@pytest.mark.slow
def test_it_writes_what_it_measured_though_an_arm_fails(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    done = python(
        *("-c", FAILS, *CPU_ONCE, "--objectives", "voco-paper", "--arms", "literal", "prect"),
        *("--repeat", 2, "--json", path),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failed = "demo, voco-paper, literal, round 1"
    assert failed in done.stderr
    document: dict[str, Any] = json.loads(path.read_text())
    assert document["failures"] == [{"what": failed, "why": "no memory"}]
    (run,) = document["runs"]
    assert (run["network"], run["objective"], run["arm"]) == ("demo", "voco-paper", "prect")
    rest = ["demo, voco-paper, literal, round 2", "demo, voco-paper, prect, round 2"]
    assert document["left_out"] == rest
    assert set(run["parts"]) == {"crops", "heads", "backbone"}
    assert run["peak_bytes"] > 0
    outside, with_optimiser = document["goals"]
    seconds, backbone = sum(run["parts"].values()), run["parts"]["backbone"]
    assert outside["ratio"] == pytest.approx(1 - backbone / seconds)
    seconds += sum(run["optimiser_s"].values())
    assert with_optimiser["ratio"] == pytest.approx(1 - backbone / seconds)
    counted = {row["network"]: row for row in document["counted"]}
    # Twice the channels are four times the products; windows and first layers grow less.
    steps = [counted[name]["step_flops"] for name in ("voco-b", "voco-l", "voco-h")]
    assert all(3 < larger / smaller < 4 for smaller, larger in pairwise(steps))
    for row in counted.values():
        assert 2.5 < row["step_flops"] / row["forward_flops"] < 3.1
        assert row["kept_bytes_checkpointing"] < 0.5 * row["kept_bytes"]
    assert counted["voco-b"]["state_bytes"] == pytest.approx(20 * 53.16e6, rel=1e-3)


def test_arms_that_differ_in_the_gradient_alone_are_refused(report: ModuleType) -> None:
    same = report.with_differences([made_run("literal", 3), made_run("prect", 1, (3.0, 4.01))])
    report.check_same(same)
    other = report.with_differences([made_run("literal", 3), made_run("prect", 1, (4.0, 3.0))])
    assert other[1]["differs"]["gradient"] == pytest.approx(2**0.5 / 5)
    with pytest.raises(Exception, match=r"gradient of prect differs by 0\.28"):
        report.check_same(other)


def test_tables_go_between_the_marks_of_the_page(report: ModuleType, tmp_path: Path) -> None:
    measuring = importlib.import_module("measuring")
    page = tmp_path / "step.md"
    page.write_text(f"before\n{measuring.BEGIN}\nold\n{measuring.END}\nafter\n")
    measuring.write_page(report.figures(made_document(report)), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Failed: tiny, voco-v1: no memory" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| tiny, voco-v2 | prect |")]
    cells = [cell.strip() for cell in row.split("|")]
    # Three times and 1.2 times the seconds; 3 % of 10 s, and 0.3 s more of 10.3 s with AdamW.
    assert cells[4:6] == ["3.00", "1.20"]
    assert cells[8] == "3.00%"
    assert cells[10] == "5.83%"
    page.write_text("no marks")
    with pytest.raises(Exception, match="has no"):
        measuring.write_page(report.figures(made_document(report)), page)


def test_gpu_figures_are_kept_when_a_combination_fails(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of each kind fails; memory is full at four volumes."""
    gpu = importlib.import_module("step_gpu")

    def task(_program: Path, name: str, **asked: Any) -> dict[str, Any]:
        if name == "wait":
            raise gpu.BenchmarkError("no workers")
        if name == "agreement":
            row = {"loss": 0.03, "cosine": 0.02, "projection": 0.999}
            return {"cuda float32": row, "cuda bfloat16": row}
        if asked["compiled"] and asked["precision"] == "float32":
            return {"failed": "RuntimeError: no compiler", "out_of_memory": False}
        if asked["batch"] == 4:
            return {"failed": "OutOfMemoryError: full", "out_of_memory": True}
        return {"failed": None, "volumes_per_s": 2.0 * asked["batch"], "peak_bytes": 10**9}

    monkeypatch.setattr(gpu, "task", task)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    found = gpu.gpu_figures("voco-b", 2 * 10**12, Console(quiet=True))
    assert [row["batch"] for row in found["rows"]] == [1, 2] * 3
    assert found["rows"][0]["mfu"] == pytest.approx(4 / 989)
    assert found["failures"] == [
        {"what": "voco-b, float32, compiled", "why": "batch 1: RuntimeError: no compiler"},
        {"what": "voco-b, wait", "why": "no workers"},
    ]
    document = made_document(report) | {"gpu": found}
    met = {goal["name"]: goal["met"] for goal in report.goals_of(document)}
    assert not met["relative difference of the loss"]
    assert met["largest difference of a cosine"]
    assert met["lowest cosine of a projection with itself"]
    assert "voco-b on NVIDIA H100" in report.figures(document)


@pytest.mark.parametrize("page", ["step.md", "learning.md"])
def test_the_page_of_the_docs_has_the_marks(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    measuring = importlib.import_module("measuring")
    text = (FOLDER.parent / "docs" / page).read_text()
    assert text.count(measuring.BEGIN) == text.count(measuring.END) == 1
    assert text.index(measuring.BEGIN) < text.index(measuring.END)


@pytest.mark.slow
def test_precisions_are_compared_on_several_volumes() -> None:
    asked = json.dumps({"network": "demo", "devices": ["cpu"], "volumes": 2})
    found = json.loads(run_python("step_gpu.py", "agreement", asked).splitlines()[-1])
    assert set(found) == {"cpu bfloat16"}
    figures = found["cpu bfloat16"]
    # bfloat16 keeps eight bits: it must differ, though little.
    assert 0 < figures["cosine"] < 0.05
    assert figures["loss"] < 0.02
    assert 0.99 < figures["projection"] < 1
