"""Does VoCo learn? Small runs on phantoms, held against what is needed to say so.

    python benchmarks/learn.py --json learn.json --docs docs

For voco-v1 and voco-v2, several seeds each: on held-out patients pos + neg at most 0.7 times the
untrained network's and below the best constant's, top-1 at least 1.4 times the untrained
network's, and position retrieval across patients with an interval below those of both controls,
the untrained network and HU histograms. With labels dealt out at random the same run must fail.
Then variants of the teacher, one run each. The program makes, ingests and stores the phantoms
itself, in a folder that it removes; runs are one process each with one thread, as many at a time
as there are cores. Its status is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from learn_report import draw, figures, goals_of, tables
from learn_runs import DATASET, GEOMETRIES, PROGRAM, VARIANTS, Extent, Run, runs
from measuring import (
    SEED,
    BenchmarkError,
    machine,
    on_console,
    phantom,
    print_goals,
    scratch,
    task,
    write_page,
)
from rich.console import Console

from prect.errors import PrectError
from prect.workspace import Workspace

FULL = Extent(
    cases=48,
    heldout=16,
    steps=150,
    eval_every=25,
    probe_every=50,
    views=96,
    queries=32,
    gallery=512,
    seeds=3,
    variants=tuple(VARIANTS),
)
QUICK = Extent(
    cases=6, heldout=2, steps=2, eval_every=1, probe_every=2, views=2, queries=2, gallery=9, seeds=1
)


def store_phantoms(folder: Path, cases: int, workers: int) -> Path:
    """Make, ingest and store small phantoms of the whole trunk; the workspace that holds them.

    Scans of other regions are left out: a place of the chest cannot be found in an abdomen.
    """
    from prect.cache.build import build, make_plan  # noqa: PLC0415
    from prect.cache.profile import load_profile  # noqa: PLC0415
    from prect.cluster import cluster  # noqa: PLC0415
    from prect.ingest.survey import survey  # noqa: PLC0415
    from prect.phantom import sample_parameters  # noqa: PLC0415

    workspace = Workspace(folder / "workspace")
    source = folder / "phantoms"
    source.mkdir()
    trunks = (n for n in count() if sample_parameters(SEED, n, "small").scan.region == "trunk")
    for index in islice(trunks, cases):
        phantom(index, "small", source / f"phantom_{index:04d}")
    survey(DATASET, source, workspace, salt="learn")
    plan = make_plan(DATASET, workspace, load_profile("iso1.5"))
    with workspace.lock("build-cache"), cluster(workers) as client:
        build(plan, client)
    return workspace.root


def borrowed(root: Path, dataset: str, folder: Path) -> Path:
    """A workspace of its own that reads the stores of another."""
    theirs, own = Workspace(root), Workspace(folder / "workspace")
    if not theirs.cache_manifest(dataset).exists():
        raise BenchmarkError(f"{root} holds no stores of {dataset}; run prect build-cache first")
    own.root.mkdir(parents=True)
    (own.root / "cache").symlink_to(theirs.cache.resolve())
    (own.root / "manifests").symlink_to(theirs.manifests.resolve())
    return own.root


def measure(
    wanted: Sequence[Run],
    workspace: Path,
    dataset: str,
    extent: Extent,
    jobs: int,
    console: Console,
) -> list[dict[str, Any]]:
    """The results of all runs, in their order; each is told of when it is done."""

    def one(run: Run) -> dict[str, Any]:
        result = task(
            PROGRAM,
            "train_and_probe",
            workspace=str(workspace),
            dataset=dataset,
            run=asdict(run),
            queries=extent.queries,
            gallery=extent.gallery,
        )
        seconds = sum(result["seconds"].values())
        error = result["retrieval"]["trained"]["value"]
        console.print(
            f"{run.name}: {result['summary']['verdict']} Retrieval {error:.0f} mm. {seconds:.0f} s"
        )
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, wanted))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--objectives", nargs="+", choices=GEOMETRIES, default=list(GEOMETRIES), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each objective")
    parser.add_argument("--no-variants", action="store_true", help="leave out the teachers")
    parser.add_argument(
        "--workspace", type=Path, metavar="DIR", help="take its stores; make no phantoms"
    )
    parser.add_argument("--dataset", default=DATASET, metavar="NAME", help="of that workspace")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="two steps; for a test of the program")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to work; removed at the end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing; show such a file"
    )
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="put table and pictures into learning.md there"
    )
    return parser.parse_args()


def found(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run everything; the document that ``--json`` writes."""
    extent = QUICK if options.quick else FULL
    if options.seeds:
        extent = replace(extent, seeds=options.seeds)
    if options.no_variants:
        extent = replace(extent, variants=())
    wanted = runs(extent, tuple(options.objectives))
    with scratch(options.dir) as folder:
        if options.workspace is None:
            console.print(f"{extent.cases} phantoms")
            workspace = store_phantoms(folder, extent.cases, options.jobs)
        else:
            workspace = borrowed(options.workspace, options.dataset, folder)
        results = measure(wanted, workspace, options.dataset, extent, options.jobs, console)
    return {
        "extent": asdict(extent),
        "runs": results,
        "settings": {run.name: dict(run.settings) for run in wanted},
        "goals": goals_of(results),
        "machine": machine(["prect", "torch", "monai", "numpy"]) | {"jobs": options.jobs},
    }


def main() -> None:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 160, markup=True, highlight=False)
    try:
        if options.read:
            document = json.loads(options.read.read_text(encoding="utf-8"))
            document["goals"] = goals_of(document["runs"])
        else:
            document = found(options, console)
        for table in tables(document):
            console.print(on_console(table))
        print_goals(document["goals"], console)
        if options.json:
            options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        if options.docs:
            draw(document, options.docs)
            write_page(figures(document), options.docs / "learning.md")
    except (BenchmarkError, PrectError) as error:
        raise SystemExit(str(error)) from None
    if not all(goal["met"] for goal in document["goals"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
