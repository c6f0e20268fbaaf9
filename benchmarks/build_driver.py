"""Memory and time of the process that plans and drives a build of 160,000 volumes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import BenchmarkError, Section, goal, memory, serve, task
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from prect.cache.convert import Job
    from prect.cache.profile import Profile
    from prect.manifests.sources import SourceRow
    from prect.manifests.stores import CacheRow
    from prect.workspace import Workspace

PROGRAM = Path(__file__)
DRIVER_GOAL = 1.0
"""GiB that the driver's process holds at most, imports included."""
GIB = 2**30


def driver(rows: int, jobs: int, folder: Path, console: Console) -> Section:
    """Plan and build a simulated manifest, each step in a process of its own.

    Args:
        rows: of the manifest, half of them DICOM series of about 200 files.
        jobs: how many of them to send through a real cluster.
        folder: for the workspace.
        console: for progress.
    """
    workspace = folder / "workspace"
    with console.status(f"driver: writing a manifest of {rows:,} rows"):
        task(PROGRAM, "simulate", workspace=workspace, rows=rows)
    steps = {
        "plan, nothing stored": ("plan", {"kept": 0}),
        f"{jobs:,} jobs through Dask": ("through_dask", {"jobs": jobs}),
        "plan and build, every job done at once": ("build_at_once", {"rows": rows}),
        "plan, everything stored": ("plan", {"kept": rows}),
    }
    results = {}
    for name, (step, arguments) in steps.items():
        with console.status(f"driver: {name}"):
            results[name] = task(PROGRAM, step, workspace=workspace, **arguments)
    shutil.rmtree(workspace)
    planned, dask, at_once, _ = (int(result["resident_bytes"]) for result in results.values())
    # A long build holds what each of the two holds beyond a plan.
    together = at_once + max(0, dask - planned)
    goals = [
        goal(
            "GiB that the driver holds at most",
            f"{rows:,} rows; a build of all, and what Dask adds to a plan",
            together / GIB,
            DRIVER_GOAL,
            most=True,
        )
    ]
    figures = {"rows": rows, "steps": results, "together_bytes": together}
    return Section(figures, [_driver_table(results, rows)], goals)


def _driver_table(results: dict[str, dict[str, Any]], rows: int) -> Table:
    table = Table(title=f"the driver, a manifest of {rows:,} rows", box=box.SIMPLE_HEAD)
    table.add_column("step", no_wrap=True)
    for name in ("plan s", "build s", "ms a volume", "peak MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in results.items():
        build = [result.get("build_s"), result.get("ms_a_volume")]
        table.add_row(
            name,
            f"{result['plan_s']:.1f}",
            *("" if figure is None else f"{figure:.1f}" for figure in build),
            f"{result['resident_bytes'] / 2**20:.0f}",
        )
    table.caption = (
        "Peak of the whole process, imports included; the scheduler of a local cluster lives in "
        "it. Through Dask: the files are missing, so that the workers have nothing to do but say "
        "so. At once: the volumes' rows come from a stand-in for the cluster."
    )
    return table


# What the driver's processes do


def simulate(workspace: str, rows: int) -> dict[str, Any]:
    """Write the source manifest of a data set ``simulated``; its files do not exist."""
    import pyarrow as pa  # noqa: PLC0415

    from prect.manifests.cards import generic_card, write_card  # noqa: PLC0415
    from prect.manifests.sources import to_table, write_sources  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    place = Workspace(workspace)
    root = place.root / "source"
    root.mkdir(parents=True)
    # As objects, the names of a hundred thousand series take gigabytes.
    batch = 2000
    tables = [
        to_table(_row(n, root) for n in range(start, min(start + batch, rows)))
        for start in range(0, rows, batch)
    ]
    write_sources(place.sources("simulated"), pa.concat_tables(tables))
    write_card(place.card("simulated"), generic_card("simulated"))
    return {"bytes": place.sources("simulated").stat().st_size}


def _row(number: int, root: Path) -> SourceRow:
    import hashlib  # noqa: PLC0415

    from prect.manifests.sources import SourceRow, Verdict  # noqa: PLC0415

    def digest(what: str, size: int) -> bytes:
        return hashlib.blake2b(f"{what} {number}".encode(), digest_size=size).digest()

    dicom = number % 2 == 0
    slices = 150 + number % 101
    series = f"1.2.826.0.1.3680043.10.511.3.{10**17 + number}"
    source = f"PATIENT-{number // 4:06d}/{series}" if dicom else f"volume-{number:06d}.nii.gz"
    members = tuple(f"1-{k:03d}.dcm" for k in range(1, slices + 1)) if dicom else ()
    return SourceRow(
        dataset="simulated",
        case=digest("case", 8).hex(),
        verdict=Verdict.ACCEPTED.value,
        code="",
        reason="",
        format="dicom" if dicom else "nifti",
        source=source,
        root=str(root),
        members=members,
        judged=Verdict.ACCEPTED.value,
        patient=digest("patient", 8).hex(),
        study=digest("study", 8).hex(),
        series=digest("series", 8).hex(),
        source_digest=digest("source", 16).hex(),
        voxel_digest=digest("voxels", 16).hex(),
        sketch=b"".join(digest(f"sketch {part}", 64) for part in range(8)),
        bytes=slices * 527_000,
        mtime_ns=1_600_000_000_000_000_000 + number,
        shape=(512, 512, slices),
        spacing=(0.7, 0.7, 2.0),
        orientation="LPS",
        item=f"{source}/" if dicom else source,
        state=digest("state", 16).hex(),
        rules=digest("rules", 16).hex(),
    )


def plan(workspace: str, kept: int) -> dict[str, Any]:
    """Plan a build; ``kept`` is how many stores it must find."""
    place, profile = _of(workspace)
    seconds, made = _planned(place, profile)
    if len(made.kept) != kept:
        raise BenchmarkError(f"the plan keeps {len(made.kept)} stores, not {kept}")
    return {"plan_s": seconds, "resident_bytes": memory()[1]}


def build_at_once(workspace: str, rows: int) -> dict[str, Any]:
    """Plan and build, with a stand-in for the cluster; then make the stores' folders, empty."""
    from unittest.mock import patch  # noqa: PLC0415

    from prect import retries  # noqa: PLC0415
    from prect.cache import build as engine  # noqa: PLC0415

    place, profile = _of(workspace)
    seconds, made = _planned(place, profile)
    began = time.perf_counter()
    with patch.object(retries, "run_bounded", _stand_in):
        client: Any = object()
        report = engine.build(made, client)
    build_s = time.perf_counter() - began
    peak = memory()[1]
    if report.built != rows:
        raise BenchmarkError(f"{report.built} of {rows} volumes were built")
    for case in report.stored["case"].to_pylist():
        place.store("simulated", case).mkdir(parents=True)
    return {
        "plan_s": seconds,
        "build_s": build_s,
        "ms_a_volume": 1000 * build_s / rows,
        "resident_bytes": peak,
    }


def _stand_in(
    client: object,
    function: Callable[[Job], object],
    jobs: Iterable[Job],
    at_once: int | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[Job, CacheRow]]:
    """`prect.cluster.run_bounded` without a cluster: the row of each volume, at once."""
    from prect.cache.rows import origin_of  # noqa: PLC0415
    from prect.manifests.stores import CacheRow  # noqa: PLC0415

    del client, function, at_once, stop
    for job in jobs:
        source = job.source
        yield (
            job,
            CacheRow(
                dataset=source.dataset,
                case=source.case,
                patient=source.patient,
                series=source.series,
                source_digest=source.source_digest,
                profile=job.profile.digest,
                shape=(200, 230, 230),
                spacing=(1.5, 1.5, 1.5),
                levels=3,
                bytes=11_000_000,
                source_bytes=source.bytes,
                made_from=origin_of(vars(source)),
                digest=source.source_digest,
            ),
        )


def through_dask(workspace: str, jobs: int) -> dict[str, Any]:
    """Build with a local cluster of two workers, and stop after so many volumes."""
    from prect.cache.build import build  # noqa: PLC0415
    from prect.cluster import cluster  # noqa: PLC0415

    place, profile = _of(workspace)
    seconds, made = _planned(place, profile)
    done: list[float] = []
    with cluster(2) as client:
        build(
            made,
            client,
            on_outcome=lambda _: done.append(time.perf_counter()),
            stop=lambda: len(done) >= jobs,
        )
    build_s = done[-1] - done[0]
    return {
        "plan_s": seconds,
        "build_s": build_s,
        "ms_a_volume": 1000 * build_s / (len(done) - 1),
        "resident_bytes": memory()[1],
    }


def _of(workspace: str) -> tuple[Workspace, Profile]:
    from prect.cache.profile import load_profile  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    return Workspace(workspace), load_profile("iso1.5")


def _planned(workspace: Workspace, profile: Profile) -> tuple[float, Any]:
    from prect.cache.plan import make_plan  # noqa: PLC0415

    began = time.perf_counter()
    made = make_plan("simulated", workspace, profile)
    return time.perf_counter() - began, made


if __name__ == "__main__":
    serve(
        {
            "simulate": simulate,
            "plan": plan,
            "build_at_once": build_at_once,
            "through_dask": through_dask,
        }
    )
