"""One training step of prect against plain implementations of the same loss.

    python benchmarks/step.py --json step.json --docs docs

Every run of an arm is a process of its own, so that its peak memory is its own; arms take turns.
A step is cropping, forward and backward pass of one volume (11 crops of 64 x 64 x 64); the
optimiser is timed apart. First each network runs once with the first objective and each arm that
the goals compare. What else there is (the other objectives on the first network, crops one by one,
further rounds) is begun while it will likely end within --minutes. On a GPU precision,
torch.compile, the largest batch and waiting for data follow. The status is 1 when something failed
or a goal is missed; figures are written all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import BenchmarkError, machine, on_console, print_goals, task, write_page
from rich.console import Console
from step_arms import ARMS, CHUNKED, LITERAL, PRECT
from step_counts import counts, flops
from step_gpu import gpu_figures
from step_report import (
    check_same,
    figures,
    goals_of,
    has_parts,
    outside,
    seconds,
    tables,
    with_differences,
)

from prect.errors import PrectError
from prect.train.architectures import NETWORKS

PROGRAM = Path(__file__).with_name("step_arms.py")
OBJECTIVES = ("voco-v2", "voco-v1", "voco-paper")
LIBRARIES = ("prect", "torch", "monai", "numpy")
USUAL_SECONDS = {"demo": 8.0, "tiny": 60.0, "voco-b": 90.0, "voco-l": 250.0, "voco-h": 900.0}
"""Of a process with prect on two cores, to tell how long it will take before the first is done."""
USUAL_FACTOR = {LITERAL: 2.0, CHUNKED: 1.7}
"""Of other arms."""


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    network: str
    objective: str
    arm: str
    round: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.objective}, {self.arm}, round {self.round + 1}"

    @property
    def usual_s(self) -> float:
        return USUAL_SECONDS[self.network] * USUAL_FACTOR.get(self.arm, 1.0)


@dataclass
class Measured:
    """Processes that ended, did not, or were not begun."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    spent: dict[Task, float] = field(default_factory=dict)
    """Seconds of whole processes."""

    def expected(self, wanted: Sequence[Task]) -> float:
        """Seconds that tasks will take, by those of the same kind or by this machine's pace."""
        pace = sum(self.spent.values()) / (sum(t.usual_s for t in self.spent) or 1.0) or 1.0
        total = 0.0
        for each in wanted:
            kind = (each.network, each.arm)
            same = [s for t, s in self.spent.items() if (t.network, t.arm) == kind]
            total += median(same) if same else pace * each.usual_s
        return total


def planned(options: argparse.Namespace) -> tuple[list[Task], list[Task]]:
    """What is always measured, and what is measured when there is time."""
    first, *others = options.objectives
    compared = [arm for arm in options.arms if arm != CHUNKED] or options.arms
    rest = [arm for arm in options.arms if arm not in compared]
    always = [Task(network, first, arm, 0) for network in options.networks for arm in compared]
    network = options.networks[0]
    more = [Task(network, objective, PRECT, 0) for objective in others]
    more += [Task(network, first, arm, 0) for arm in rest]
    more += [
        Task(network, first, arm, number)
        for number in range(1, options.repeat)
        for network in options.networks
        for arm in compared
    ]
    return always, more


def run_all(options: argparse.Namespace, console: Console) -> Measured:
    """Measure what is planned; a process that fails is told of and the next begun."""
    always, more = planned(options)
    found, began = Measured(), time.perf_counter()
    minutes = found.expected(always) / 60
    console.print(
        f"{len(always)} processes, usually {minutes:.0f} min; {len(more)} more if in time"
    )
    for number, each in enumerate([*always, *more]):
        left = 60 * options.minutes - (time.perf_counter() - began)
        if number >= len(always) and found.expected([each]) > left:
            found.left_out.append(each.name)
            console.print(f"{each.name}: left out, would take more than --minutes")
            continue
        start = time.perf_counter()
        line = _run(each, options, found)
        found.spent[each] = time.perf_counter() - start
        ahead = found.expected(always[number + 1 :])
        told = f"; some {ahead / 60:.1f} min to go" if ahead else ""
        console.print(f"{each.name}: {line} [{found.spent[each]:.0f} s{told}]", markup=False)
    return found


def _run(each: Task, options: argparse.Namespace, found: Measured) -> str:
    """Measure one task; a line about it."""
    asked = {"network": each.network, "objective": each.objective, "arm": each.arm}
    try:
        result = task(
            PROGRAM,
            "measure",
            **asked,
            steps=options.steps,
            warmup=options.warmup,
            threads=options.threads,
            device=options.device,
            batch=options.batch,
        )
    except BenchmarkError as error:
        found.failures.append({"what": each.name, "why": str(error)})
        return f"failed: {str(error).splitlines()[-1]}"
    in_order = sorted(result["parts"], key=lambda parts: sum(parts.values()))
    middle = in_order[(len(in_order) - 1) // 2]
    run = asked | result | {"round": each.round, "parts": middle, "steps": result["parts"]}
    found.runs.append(run)
    share = f", {outside(run):.2%} outside of the encoder" if has_parts(run) else ""
    return f"{seconds(run):.2f} s, {run['peak_bytes'] / 1e9:.2f} GB{share}"


def arguments() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=["tiny", "voco-b"], choices=NETWORKS)
    add("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    add("--arms", nargs="+", default=ARMS, choices=ARMS)
    add("--repeat", type=int, default=2, metavar="N", help="rounds at most (default 2)")
    add("--minutes", type=float, default=15.0, help="begin no further round later (default 15)")
    add("--steps", type=int, metavar="N", help="timed steps of a process (CPU 1, GPU 5)")
    add("--warmup", type=int, metavar="N", help="steps before that (CPU 0, GPU 2)")
    add("--batch", type=int, default=1, metavar="N", help="volumes a step")
    add("--threads", type=int, default=os.cpu_count(), metavar="N", help="of each process")
    add("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--read", type=Path, metavar="FILE", help="measure nothing; show such a file")
    add("--docs", type=Path, metavar="DIR", help="put the tables into step.md there")
    options = parser.parse_args()
    if options.device == "cuda" and not on_gpu:
        parser.error("--device cuda: torch finds no GPU here; use --device cpu")
    options.steps = options.steps or (5 if options.device == "cuda" else 1)
    if options.warmup is None:
        options.warmup = 2 if options.device == "cuda" else 0
    return options


def measured(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run everything; the document of ``--json``, which is written whenever there is more of it."""
    load = os.getloadavg()[0]
    found = run_all(options, console)
    document: dict[str, Any] = {
        "runs": with_differences(found.runs),
        "counted": [counts(name) for name in ("tiny", "voco-b", "voco-l", "voco-h")],
        "gpu": None,
        "failures": found.failures,
        "left_out": found.left_out,
        "load": load,
        "machine": machine(LIBRARIES) | {"threads": options.threads, "device": options.device},
    }
    _finish(document, options)
    if options.device == "cuda":
        document["gpu"] = gpu_figures("voco-b", flops("voco-b")[1], console)
        document["failures"] = found.failures + document["gpu"]["failures"]
        _finish(document, options)
    return document


def _finish(document: dict[str, Any], options: argparse.Namespace) -> None:
    document["goals"] = goals_of(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    try:
        if options.read:
            document = json.loads(options.read.read_text(encoding="utf-8"))
            document["goals"] = goals_of(document)
        else:
            document = measured(options, console)
        for table in tables(document):
            console.print(on_console(table))
        print_goals(document["goals"], console)
        check_same(document["runs"])
        if options.docs:
            write_page(figures(document), options.docs / "step.md")
    except (BenchmarkError, PrectError) as error:
        raise SystemExit(str(error)) from None
    failed = [each["what"] for each in document["failures"]]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")
    if not all(goal["met"] for goal in document["goals"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
