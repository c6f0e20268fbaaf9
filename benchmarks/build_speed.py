"""Seconds of a build: prect's against the reference's on one core, and on one worker or two."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import build_arms
from build_arms import RECIPES
from build_inputs import Collection, Scan, Size, cases, ingest, many
from measuring import (
    BenchmarkError,
    Section,
    goal,
    phantom,
    prect,
    result_of,
    spread,
    start_task,
    task,
)
from rich import box
from rich.console import Console
from rich.table import Table

SPEED_GOAL = 3.0
"""The reference's seconds over prect's."""
SCALING_GOAL = 1.8
"""Seconds of one worker over those of two."""
ARMS = ("MONAI", "prect")
_BARE = 16
"""Volumes are enough to tell what processes that need no start reach."""


# One core


@dataclass(frozen=True)
class Run:
    """One volume, once, in a process of its own."""

    arm: str
    file: str
    recipe: str
    round: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    """Beyond what the process held when the clock started."""
    stages: dict[str, float]
    """Seconds by stage, from a second pass; prect's only."""


def throughput(
    collection: Collection, volumes: int, rounds: int, folder: Path, console: Console
) -> Section:
    """Time both arms on the scans, arms in turn.

    Args:
        collection: real scans come first.
        volumes: how many scans to take, at most.
        rounds: how often.
        folder: new, where the arms write.
        console: for progress.
    """
    scans = sorted(collection.scans, key=lambda scan: not scan.real)[:volumes]
    runs = []
    for scan in scans:
        for recipe in RECIPES:
            for number in range(rounds):
                with console.status(f"throughput: {scan.name}, {recipe}, round {number + 1}"):
                    folder.mkdir()
                    results = _both(collection, scan, recipe, folder)
                    shutil.rmtree(folder)
                runs += [
                    Run(
                        arm=arm,
                        file=scan.name,
                        recipe=recipe,
                        round=number,
                        seconds=result["seconds"],
                        cpu_s=result["cpu_s"],
                        peak_bytes=result["peak_bytes"],
                        stages=result.get("stages", {}),
                    )
                    for arm, result in zip(ARMS, results, strict=True)
                ]
    files = [scan.name for scan in scans]
    ratios = {
        (file, recipe): median(_ratios(runs, file, recipe, "seconds"))
        for file in files
        for recipe in RECIPES
    }
    slowest = min(ratios, key=ratios.__getitem__)
    goals = [
        goal(
            "MONAI's transforms and PersistentDataset: seconds over prect's",
            ", ".join(slowest),
            ratios[slowest],
            SPEED_GOAL,
            most=False,
        )
    ]
    tables = [_speed_table(runs, files), _stage_table(runs, files)]
    return Section({"runs": [asdict(run) for run in runs]}, tables, goals)


def _both(
    collection: Collection, scan: Scan, recipe: str, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    theirs = task(
        build_arms.PROGRAM,
        "reference",
        file=scan.reference,
        recipe=recipe,
        cache=folder / "persistent",
        first=collection.first,
    )
    ours = task(
        build_arms.PROGRAM,
        "timed",
        workspace=collection.workspace,
        dataset="scans",
        case=scan.case,
        first=collection.first_case,
        recipe=recipe,
        folder=folder,
        stages=True,
    )
    return theirs, ours


def _of(runs: Sequence[Run], arm: str, file: str, recipe: str) -> list[Run]:
    return [run for run in runs if (run.arm, run.file, run.recipe) == (arm, file, recipe)]


def _ratios(runs: Sequence[Run], file: str, recipe: str, figure: str) -> list[float]:
    """MONAI's figure over prect's, round by round."""
    pairs = zip(*(_of(runs, arm, file, recipe) for arm in ARMS), strict=True)
    return [getattr(theirs, figure) / getattr(ours, figure) for theirs, ours in pairs]


def _speed_table(runs: Sequence[Run], files: Sequence[str]) -> Table:
    table = Table(title="file to cache, one core", box=box.SIMPLE_HEAD)
    table.add_column("volume, recipe", no_wrap=True)
    for name in ("MONAI s", "prect s", "MONAI / prect", "CPU", "MONAI MB", "prect MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for file in files:
        for recipe in RECIPES:
            arms = [_of(runs, arm, file, recipe) for arm in ARMS]
            table.add_row(
                f"{file}, {recipe}",
                *(f"{median(run.seconds for run in mine):.2f}" for mine in arms),
                spread(_ratios(runs, file, recipe, "seconds")),
                f"{median(_ratios(runs, file, recipe, 'cpu_s')):.2f}",
                *(f"{median(run.peak_bytes for run in mine) / 1e6:.0f}" for mine in arms),
            )
    table.caption = (
        "Medians (lowest-highest) of wall seconds, ratios round by round; CPU: the same ratio of "
        "CPU seconds; MB: peak memory beyond the imports. prect writes to disk before it ends "
        "(fsync), MONAI leaves that to the system."
    )
    return table


def _stage_table(runs: Sequence[Run], files: Sequence[str]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.stages))
    table = Table(title="prect by stage, seconds", box=box.SIMPLE_HEAD)
    table.add_column("volume, recipe", no_wrap=True)
    for name in (*names, "rest", "all"):
        table.add_column(name, justify="right", no_wrap=True)
    for file in files:
        for recipe in RECIPES:
            mine = _of(runs, "prect", file, recipe)
            parts = [median(run.stages[name] for run in mine) for name in names]
            whole = median(run.seconds for run in mine)
            figures = [*parts, whole - sum(parts), whole]
            table.add_row(f"{file}, {recipe}", *(f"{seconds:.2f}" for seconds in figures))
    table.caption = (
        "Stages are timed in a second pass; rest: what the whole took in excess of them."
    )
    return table


# One worker, and two


@dataclass(frozen=True)
class Timing:
    """One round of one number of workers, in seconds."""

    workers: int
    round: int
    build_s: float
    """The whole command."""
    nothing_s: float
    """The same command again, with nothing left to do."""
    start_s: float
    """The command on one small phantom a worker: with starting and stopping the workers."""
    bare_s: float | None
    """Some of the volumes in as many processes without any engine, the longest; first round."""


def scaling(
    volumes: int, size: Size, rounds: int, folder: Path, first: Path, console: Console
) -> Section:
    """Time build-cache on copies with one worker and two, in turn.

    Args:
        volumes: how many to build.
        size: of the phantoms.
        rounds: how often.
        folder: new, for phantoms and workspaces.
        first: a small phantom.
        console: for progress.
    """
    with console.status(f"scaling: making {volumes} phantoms"):
        ingested = _prepare(folder, volumes, size, first)
    timings = []
    for number in range(rounds):
        for workers in (1, 2):
            with console.status(f"scaling: {workers} workers, round {number + 1}"):
                timings.append(_timing(ingested, folder, volumes, workers, number))
    what, ratios = f"{volumes} volumes", dict(_scaling_ratios(timings))
    figures = {
        "volumes": volumes,
        "timings": [asdict(timing) for timing in timings],
        "ratios": ratios,
    }
    goals = [
        goal(
            f"one worker's seconds over two's, {name}",
            what,
            median(ratios[name]),
            SCALING_GOAL,
            most=False,
        )
        for name in ("whole command", "less start-up")
    ]
    return Section(figures, [_scaling_table(timings, volumes)], goals)


def _prepare(place: Path, volumes: int, size: Size, first: Path) -> Path:
    """A workspace with the data sets ``many``, ``first``, ``start1`` and ``start2``, ingested."""
    for workers in (1, 2):
        (place / f"start{workers}").mkdir(parents=True)
        for index in range(workers):
            # Others than those of the other sets: copies would not be taken.
            phantom(10 * workers + index, "small", place / f"start{workers}" / f"small{index}")
    workspace = place / "ingested"
    ingest(workspace, first=first, start1=place / "start1", start2=place / "start2")
    many(place, workspace, volumes, size)
    return workspace


def _timing(ingested: Path, place: Path, volumes: int, workers: int, number: int) -> Timing:
    workspace, stores = place / "workspace", place / "stores"
    shutil.copytree(ingested, workspace)
    build_s = _command(workspace, "many", workers, built=volumes)
    nothing_s = _command(workspace, "many", workers, built=0)
    start_s = _command(workspace, f"start{workers}", workers, built=workers)
    shutil.rmtree(workspace)
    bare_s = None
    if number == 0:
        stores.mkdir()
        bare_s = _bare(ingested, stores, volumes, workers)
        shutil.rmtree(stores)
    return Timing(workers, number, build_s, nothing_s, start_s, bare_s)


def _command(workspace: Path, dataset: str, workers: int, built: int) -> float:
    """Seconds of build-cache.

    Raises:
        BenchmarkError: it built another number of volumes.
    """
    document, seconds = prect(
        "build-cache", dataset, "--workspace", workspace, "--workers", workers
    )
    (summary,) = document["datasets"]
    if summary["built"] != built:
        raise BenchmarkError(f"build-cache {dataset} built {summary['built']}, not {built}")
    return seconds


def _bare(ingested: Path, stores: Path, volumes: int, processes: int) -> float:
    """Seconds of the longest of so many processes, which share the volumes out beforehand."""
    every = cases(ingested, "many", volumes)[:_BARE]
    (first,) = cases(ingested, "first", 1)
    running = [
        start_task(
            build_arms.PROGRAM,
            "bare",
            workspace=ingested,
            dataset="many",
            first=first,
            folder=stores,
            part=every[n::processes],
        )
        for n in range(processes)
    ]
    return max(float(result_of(process)["seconds"]) for process in running)


def _scaling_ratios(timings: Sequence[Timing]) -> Iterator[tuple[str, list[float]]]:
    """One worker's seconds over two's, round by round."""
    pairs = [
        (one, two)
        for one in timings
        for two in timings
        if (one.workers, two.workers) == (1, 2) and one.round == two.round
    ]
    yield "whole command", [one.build_s / two.build_s for one, two in pairs]
    for name, figure in (("less nothing to do", "nothing_s"), ("less start-up", "start_s")):
        yield (
            name,
            [
                (one.build_s - getattr(one, figure)) / (two.build_s - getattr(two, figure))
                for one, two in pairs
            ],
        )
    yield (
        "bare processes",
        [one.bare_s / two.bare_s for one, two in pairs if one.bare_s and two.bare_s],
    )


def _scaling_table(timings: Sequence[Timing], volumes: int) -> Table:
    table = Table(title=f"prect build-cache, {volumes} volumes, seconds", box=box.SIMPLE_HEAD)
    for name in ("workers", "command", "nothing to do", "start-up", "bare processes"):
        table.add_column(name, justify="right", no_wrap=True)
    for workers in (1, 2):
        mine = [timing for timing in timings if timing.workers == workers]
        names = ("build_s", "nothing_s", "start_s", "bare_s")
        figures = ([getattr(timing, name) for timing in mine] for name in names)
        cells = [spread([each for each in every if each is not None]) for every in figures]
        table.add_row(str(workers), *cells)
    ratios = dict(_scaling_ratios(timings))
    order = ("whole command", "less nothing to do", "less start-up", "bare processes")
    table.add_row("1 / 2", *(spread(ratios[name]) for name in order))
    table.caption = (
        "1 / 2: of the whole command; less the seconds of the same command with nothing to do; "
        "less those of a build of one small phantom a worker, which starts and stops them; and "
        "of processes that share the volumes out with no engine: what this machine allows."
    )
    return table
