"""What the trainer costs beside the steps themselves: overhead, waiting, checkpoints, resuming.

    python benchmarks/trainer.py --json trainer.json --docs docs

Steps by the trainer are held against a bare loop of the same steps on the same data. Both are
processes of their own that compute in turns, a block of steps each, so that the machine's drift
meets both; pairs of blocks are compared. What the trainer does of its own is timed inside of it,
too. Then waiting for data, checkpoints against torch.save, and whether a run that was stopped and
went on equals one that was not. On a GPU voco-b from stores follows. The program makes its data
itself, in a folder that it removes. The status is 1 when something failed or a goal is missed;
figures are written all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trainer_gpu
from learn import borrowed, store_phantoms
from measuring import BenchmarkError, machine, on_console, print_goals, scratch, write_page
from rich.console import Console
from trainer_plan import GPU_PRESET, Plan
from trainer_report import figures, goals_of, tables

from prect.errors import PrectError

PAGE = "trainer-benchmark.md"
LIBRARIES = ("prect", "torch", "monai", "numpy")
PARTS = ("overhead", "inside", "wait", "checkpoints", "resume", "gpu")
PHANTOMS = 12


def measure(plan: Plan, document: dict[str, Any], console: Console, began: float) -> None:
    """Measure what is planned; what fails is told of and the next begun."""
    options = plan.options
    spent: dict[str, float] = {}
    always, more = list(plan.always()), list(plan.more())
    for number, work in enumerate([*always, *more]):
        left = 60 * options.minutes - (time.perf_counter() - began)
        if number >= len(always) and spent.get(work.kind, max(spent.values(), default=0.0)) > left:
            document["left_out"].append(work.name)
            continue
        start = time.perf_counter()
        try:
            document[work.section].append(work.do())
            told = "done"
        except BenchmarkError as error:
            document["failures"].append({"what": work.name, "why": str(error)})
            told = f"failed: {str(error).splitlines()[-1]}"
        seconds = time.perf_counter() - start
        spent[work.kind] = seconds
        console.print(f"{work.name}: {told} [{seconds:.0f} s]", markup=False)
        _finish(document, options)


def measure_gpu(plan: Plan, document: dict[str, Any], console: Console) -> None:
    """voco-b from stores; it has as many minutes again."""
    options, began = plan.options, time.perf_counter()

    def in_time() -> bool:
        return bool(time.perf_counter() - began < 60 * options.minutes)

    workers = {"data__workers": options.workers} if options.workers else {}
    rows, failures, left_out = trainer_gpu.rows(
        plan.ask(GPU_PRESET, gpus=1, **workers),
        options.largest,
        options.precisions,
        in_time,
        console.print,
    )
    document["gpu"] = {"device": torch.cuda.get_device_name(), "preset": GPU_PRESET, "rows": rows}
    document["failures"] += failures
    document["left_out"] += left_out
    _finish(document, options)


def measured(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run everything; the document of ``--json``, which is written whenever there is more of it."""
    began = time.perf_counter()
    about = machine(LIBRARIES) | {"threads": options.threads}
    sections: tuple[str, ...] = ("turns", "inside", "waits", "checkpoints", "resume")
    document: dict[str, Any] = {name: [] for name in (*sections, "failures", "left_out")}
    document |= {"gpu": None, "machine": about}
    with scratch(options.dir) as folder:
        if options.workspace is None:
            console.print(f"{PHANTOMS} phantoms")
            workspace = store_phantoms(folder, PHANTOMS, options.threads)
        else:
            workspace = borrowed(options.workspace, options.dataset, folder)
        plan = Plan(options, workspace, folder)
        measure(plan, document, console, began)
        if "gpu" in options.parts and options.gpu:
            measure_gpu(plan, document, console)
    _finish(document, options)
    return document


def _finish(document: dict[str, Any], options: argparse.Namespace) -> None:
    document["goals"] = goals_of(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--networks", nargs="+", default=["demo"], choices=("demo", "tiny"), help="presets")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to measure (default all)")
    add("--rounds", type=int, default=3, metavar="N", help="rounds at most (default 3)")
    add("--steps", type=int, metavar="N", help="counted steps of an arm (demo 160, tiny 4)")
    add("--minutes", type=float, default=10.0, help="begin no further round later (10)")
    add("--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="of each arm")
    checkpoints = ("demo", "tiny", GPU_PRESET, "voco-l", "voco-h")
    add("--checkpoints", nargs="+", default=checkpoints[:3], choices=checkpoints, metavar="PRESET")
    add("--precisions", nargs="+", default=trainer_gpu.PRECISIONS, help="on a GPU")
    add("--largest", type=int, default=64, metavar="N", help="batch on a GPU (default 64)")
    add("--workers", type=int, metavar="N", help="on a GPU; as the preset has it when left out")
    add("--workspace", type=Path, metavar="DIR", help="take its stores; make no phantoms")
    add("--dataset", default="phantoms", metavar="NAME", help="of that workspace")
    add("--dir", type=Path, metavar="DIR", help="where to work; removed at the end")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--read", type=Path, metavar="FILE", help="measure nothing; show such a file")
    add("--docs", type=Path, metavar="DIR", help=f"put the tables into {PAGE} there")
    options = parser.parse_args()
    options.gpu = torch.cuda.is_available()
    return options


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
        if options.docs:
            write_page(figures(document), options.docs / PAGE)
    except (BenchmarkError, PrectError) as error:
        raise SystemExit(str(error)) from None
    failed = [each["what"] for each in document["failures"]]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")
    if not all(goal["met"] for goal in document["goals"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
