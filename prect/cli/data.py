"""Commands that make and count volumes: phantom, status."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    JsonOption,
    WorkspaceOption,
    console,
    count_table,
    emit_json,
    human_bytes,
    progress_bar,
)

if TYPE_CHECKING:
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
        if entry["orphans"]:
            name = entry["dataset"]
            console.print(f"stores without a usable source: prect remove {name} --orphans")
        codes = entry["codes"] | entry["quarantine_codes"]
        if codes:
            title = f"{entry['dataset']}: not usable, by reason"
            console.print(count_table(title, codes, "code", entry["examples"]))
