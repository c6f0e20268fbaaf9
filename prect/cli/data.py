"""Commands that make, store and count volumes: phantom, build-cache, status."""

from __future__ import annotations

import os
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    ExitCode,
    JsonOption,
    SchedulerOption,
    StrictOption,
    WorkersOption,
    WorkspaceOption,
    console,
    count_table,
    emit_json,
    human_bytes,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from prect.cache.build import Plan, Report
    from prect.phantom import CaseRecord


class Size(StrEnum):
    """Size of a phantom."""

    SMALL = "small"
    CLINICAL = "clinical"


class FileFormat(StrEnum):
    """File format of a phantom."""

    NIFTI = "nifti"
    DICOM = "dicom"
    MHA = "mha"
    NRRD = "nrrd"
    MIXED = "mixed"


def phantom(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to write; must be empty.")
    ],
    cases: Annotated[int, typer.Option(min=1, help="Number of synthetic patients.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[
        Size,
        typer.Option(help="small: 2.2-3 mm pixels; clinical: 512x512, 0.6-0.9 mm by 0.8-5 mm."),
    ] = Size.SMALL,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="mixed takes the four formats in turn.")
    ] = FileFormat.MIXED,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write true organ masks (NIfTI) here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a non-empty folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written.")] = False,
    json: JsonOption = False,
) -> None:
    """Write synthetic CT patients, to try everything without data."""
    from prect.phantom import generate

    if dry_run:
        if json:
            emit_json({"directory": str(directory), "dry_run": True, "cases": []})
        else:
            console.print(f"would write {cases} {size} cases ({file_format}) to {directory}")
        return
    written: list[dict[str, Any]] = []
    with progress_bar("case", quiet=json) as progress:
        task = progress.add_task("phantom", total=cases)

        def on_case(record: CaseRecord) -> None:
            written.append({"name": record.name, "file": record.file, "format": record.format})
            progress.advance(task)

        table = generate(
            directory,
            cases=cases,
            seed=seed,
            size=size.value,
            format=file_format.value,
            masks=masks,
            overwrite=force,
            on_case=on_case,
        )
    if json:
        emit_json({"directory": str(directory), "table": str(table), "cases": written})
    else:
        console.print(f"{len(written)} cases in {directory}; the truth about them in {table}")


def build_cache(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(metavar="DATASET", help="Data sets to build; all when left out."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    profile: Annotated[
        str, typer.Option(help="Name of a profile that ships with prect, or path of a TOML file.")
    ] = "iso1.5",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try again what failed before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be built.")] = False,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Convert every accepted volume into a chunked store; what is stored already stays."""
    from prect.cache.build import build, make_plan
    from prect.cache.profile import load_profile
    from prect.cluster import cluster
    from prect.errors import ManifestError
    from prect.workspace import Workspace

    place = Workspace(workspace)
    recipe = load_profile(profile)
    names = list(dict.fromkeys(datasets or place.datasets()))
    if not names:
        raise ManifestError(
            f"nothing has been ingested in {workspace}; run: prect ingest NAME --source DIR"
        )
    if dry_run:
        plans = [make_plan(name, place, recipe, retry=retry_quarantined) for name in names]
        _show_plans(plans, as_json=json)
        return
    with (
        interruptible("what is stored stays, run it again to go on"),
        place.lock("build-cache"),
        ExitStack() as stack,
    ):
        plans = [make_plan(name, place, recipe, retry=retry_quarantined) for name in names]
        total = sum(len(plan.todo) for plan in plans)
        progress = stack.enter_context(progress_bar("volume", quiet=json or not total))
        task = progress.add_task("build-cache", total=total)
        client = None
        if total:
            count = min(workers or os.cpu_count() or 1, total)
            client = stack.enter_context(cluster(count, scheduler))
        reports = [build(plan, place, client, lambda _: progress.advance(task)) for plan in plans]
    _show_reports(reports, as_json=json)
    if strict and any(report.quarantine for report in reports):
        raise typer.Exit(ExitCode.QUARANTINED)


def _show_plans(plans: list[Plan], *, as_json: bool) -> None:
    summaries = [
        {
            "dataset": plan.dataset,
            "candidates": plan.sources,
            "accepted": len(plan.current) + len(plan.quarantined) + len(plan.todo),
            "kept": len(plan.current),
            "quarantined": len(plan.quarantined),
            "todo": len(plan.todo),
            "stale": plan.stale,
        }
        for plan in plans
    ]
    if as_json:
        emit_json({"dry_run": True, "datasets": summaries})
        return
    _print_summaries("what would be built", summaries)


def _show_reports(reports: list[Report], *, as_json: bool) -> None:
    summaries = [report.summary() for report in reports]
    if as_json:
        emit_json({"dry_run": False, "datasets": summaries})
        return
    shown = [
        {
            **summary,
            "bytes": human_bytes(summary["bytes"]),
            "source_bytes": human_bytes(summary["source_bytes"]),
        }
        for summary in summaries
    ]
    _print_summaries("accepted = stored + quarantined", shown)
    for report in reports:
        for row in report.quarantine:
            console.print(f"quarantined {row.dataset}/{row.case}: {row.code}: {row.reason}")
    if any(report.quarantine for report in reports):
        console.print("to try these again, run with --retry-quarantined")


def _print_summaries(title: str, summaries: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for summary in summaries:
        table.add_column(str(summary["dataset"]), justify="right")
    for name in summaries[0]:
        if name != "dataset":
            table.add_row(name.replace("_", " "), *(str(summary[name]) for summary in summaries))
    console.print(table)


def status(workspace: WorkspaceOption = DEFAULT_WORKSPACE, json: JsonOption = False) -> None:
    """Show what is ingested, rejected and why, stored, and how large it is."""
    from prect.manifests.status import workspace_status
    from prect.workspace import Workspace

    document = workspace_status(Workspace(workspace))
    if json:
        emit_json(document)
        return
    datasets: list[dict[str, Any]] = document["datasets"]  # type: ignore[assignment]
    if not datasets:
        console.print(f"nothing has been ingested in {workspace}")
        return
    table = Table(title=Text(f"workspace {workspace}"), title_justify="left")
    numbers = ["candidates", "usable", "stored", "quarantined", "pending"]
    if any(entry["orphans"] for entry in datasets):
        numbers.append("orphans")
    table.add_column("data set", min_width=10)
    short = {"candidates": "found", "quarantined": "failed"}
    for name in (*(short.get(number, number) for number in numbers), "on disk", "from"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in datasets:
        sizes = (human_bytes(entry["bytes"]), human_bytes(entry["source_bytes"]))
        table.add_row(entry["dataset"], *(str(entry[name]) for name in numbers), *sizes)
    console.print(table)
    for entry in datasets:
        codes = entry["codes"] | entry["quarantine_codes"]
        if codes:
            title = f"{entry['dataset']}: not usable, by reason"
            console.print(count_table(title, codes, "code", entry["examples"]))
