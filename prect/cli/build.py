"""The command that stores volumes: build-cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    ExitCode,
    JsonOption,
    SchedulerOption,
    StrictOption,
    WorkspaceOption,
    console,
    emit_json,
    graceful,
    human_bytes,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from prect.cache.build import Outcome, Report
    from prect.cache.plan import Plan


class IntensityKind(StrEnum):
    """What is stored of the Hounsfield units."""

    HU = "hu"
    WINDOW = "window"


def build_cache(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATASET", help="Data sets to build; all when left out."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    profile: Annotated[
        str | None,
        typer.Option(
            help="iso1.5 (1.5 mm), voco2 (1.25 x 1.25 x 5 mm), or path of a TOML file; when left "
            "out, that of the data set's last build, else iso1.5."
        ),
    ] = None,
    intensity: Annotated[
        IntensityKind | None,
        typer.Option(
            help="hu: all HU as int16; window: the profile's window as one byte a voxel, a "
            "third of the size, one window for ever."
        ),
    ] = None,
    hu_step: Annotated[
        int | None,
        typer.Option(
            metavar="HU",
            min=1,
            max=64,
            help="Round to steps of so many HU; the error is half a step at most. "
            "1 for hu, 4 or what one byte asks for with a window.",
        ),
    ] = None,
    low_pass: Annotated[
        bool | None,
        typer.Option(
            "--low-pass/--no-low-pass",
            help="Smooth along the axes that shrink, against aliasing.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Local processes; one a core, as far as memory goes."),
    ] = None,
    scheduler: SchedulerOption = None,
    dashboard: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where local workers show Dask's dashboard (needs bokeh); port 0 is any.",
        ),
    ] = "127.0.0.1:0",
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try again what failed before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built.")] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Estimate disk, time and memory of the whole build from trial builds of a "
            "sample; nothing stays on the disk.",
        ),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, help="Volumes of the sample of --plan; 1 %, at least 20 and two a data set."
        ),
    ] = None,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Convert every usable volume into a chunked store; what is stored already stays."""
    from prect.cache.plan import make_plan
    from prect.cache.profile import load_profile, read_profile
    from prect.errors import ManifestError
    from prect.workspace import Workspace

    if sample is not None and not plan:
        raise typer.BadParameter("--sample goes with --plan")
    place = Workspace(workspace)
    kind = None if intensity is None else intensity.value
    names = list(dict.fromkeys(datasets or place.datasets()))
    if not names:
        raise ManifestError(
            f"nothing has been ingested in {workspace}; run: prect ingest NAME --source DIR"
        )
    base = None if profile is None else load_profile(profile)

    def plan_of(name: str) -> Plan:
        # A build that says nothing of the profile goes on with the one that is there.
        last = place.profile(name)
        known = base or (read_profile(last) if last.exists() else load_profile("iso1.5"))
        recipe = known.stored_as(kind, hu_step, low_pass)
        return make_plan(name, place, recipe, retry=retry_quarantined)

    if plan or dry_run:
        plans = [plan_of(name) for name in names]
        if plan:
            from prect.cli.planning import plan_build

            count = _worker_count(plans, workers, scheduler)
            plan_build(plans, workers=count, scheduler=scheduler, sample=sample, as_json=json)
        else:
            _show_plans(plans, as_json=json)
        return
    with (
        interruptible("what is stored stays, run it again to go on"),
        graceful("what is in flight") as stop,
        place.lock("build-cache"),
    ):
        plans = [plan_of(name) for name in names]
        reports = _build(plans, workers, scheduler, dashboard, stop, quiet=json)
    _show_reports(reports, as_json=json)
    if any(report.interrupted for report in reports):
        raise typer.Exit(ExitCode.INTERRUPTED)
    if strict and any(report.quarantine for report in reports):
        raise typer.Exit(ExitCode.QUARANTINED)


def _build(
    plans: list[Plan],
    workers: int | None,
    scheduler: str | None,
    dashboard: str,
    stop: Callable[[], bool],
    *,
    quiet: bool,
) -> list[Report]:
    from prect.cache.build import Report, build
    from prect.cluster import cluster
    from prect.cluster import dashboard as dashboard_link
    from prect.manifests.stores import QuarantineRow

    total = sum(len(plan.todo) for plan in plans)
    with ExitStack() as stack:
        client = None
        if total:
            count = _worker_count(plans, workers, scheduler)
            client = stack.enter_context(cluster(min(count, total), scheduler, dashboard))
            _say_stale(plans)
            link = dashboard_link(client)
            if link is not None and not quiet:
                console.print(f"Dask dashboard: {link}")
        progress = stack.enter_context(progress_bar("volume", quiet=quiet or not total))
        task = progress.add_task("build-cache", total=total)
        failed = 0

        def on_outcome(outcome: Outcome) -> None:
            nonlocal failed
            failed += isinstance(outcome, QuarantineRow)
            note = f", {failed} quarantined" if failed else ""
            progress.update(task, advance=1, description=f"build-cache{note}")

        # A data set that is not begun keeps the manifest it has.
        return [
            Report.begun(plan) if plan.todo and stop() else build(plan, client, on_outcome, stop)
            for plan in plans
        ]


def _worker_count(plans: list[Plan], workers: int | None, scheduler: str | None) -> int:
    """Local processes; a warning when so many may not fit into memory."""
    from prect.cache.memory import available_memory, default_workers, memory_needed

    largest = max((plan.largest for plan in plans), default=0)
    fit = default_workers([(largest,)])
    if scheduler is not None or not largest:
        return workers or fit
    needed = memory_needed((largest,))
    if (workers or fit) * needed > available_memory():
        console.print(
            f"warning: {workers or fit} workers may hold {human_bytes(needed)} each, and "
            f"{human_bytes(available_memory())} of memory are free; fewer --workers are safe"
        )
    return workers or fit


def _say_stale(plans: list[Plan]) -> None:
    for plan in plans:
        for reason, count in plan.stale.items():
            console.print(
                f"{plan.dataset}: {count} stores are built again ({reason}), as {_in_words(plan)}"
            )


def _show_plans(plans: list[Plan], *, as_json: bool) -> None:
    summaries = [
        {
            "dataset": plan.dataset,
            "profile": _in_words(plan),
            "candidates": plan.sources,
            "usable": plan.usable,
            "kept": len(plan.kept),
            "quarantined": len(plan.quarantined),
            "todo": len(plan.todo),
            "stale": sum(plan.stale.values()),
        }
        for plan in plans
    ]
    if as_json:
        emit_json({"dry_run": True, "datasets": summaries})
        return
    _say_stale(plans)
    _print_summaries("what would be built", summaries)


def _show_reports(reports: list[Report], *, as_json: bool) -> None:
    summaries = [{**report.summary(), "profile": _in_words(report.plan)} for report in reports]
    interrupted = any(report.interrupted for report in reports)
    if as_json:
        emit_json({"dry_run": False, "interrupted": interrupted, "datasets": summaries})
        return
    shown = [
        {
            **summary,
            "bytes": human_bytes(summary["bytes"]),
            "source_bytes": human_bytes(summary["source_bytes"]),
        }
        for summary in summaries
    ]
    _print_summaries("usable = stored + quarantined + pending", shown)
    for report in reports:
        for row in report.quarantine:
            console.print(f"quarantined {row.dataset}/{row.case}: {row.code}: {row.reason}")
    if any(report.quarantine for report in reports):
        console.print("to try these again, run with --retry-quarantined")
    if interrupted:
        console.print("interrupted; what is stored stays, run it again to go on")


def _in_words(plan: Plan) -> str:
    return f"{plan.profile.name}, {plan.profile.intensity}"


def _print_summaries(title: str, summaries: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for summary in summaries:
        table.add_column(str(summary["dataset"]), justify="right")
    for name in summaries[0]:
        if name != "dataset":
            table.add_row(name.replace("_", " "), *(str(summary[name]) for summary in summaries))
    console.print(table)
