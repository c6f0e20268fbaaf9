"""The command that measures reading: benchmark-io."""

from __future__ import annotations

import json as json_module
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    ExitCode,
    WorkspaceOption,
    console,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from prect.benchmark.tables import TextTable

_VERDICTS = {"pass": "green", "falls short": "red", "not measured": "yellow"}
_WIDE = 130
"""Columns of a terminal that has room for every figure."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that temporary files are removed."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def benchmark_io(
    context: typer.Context,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write every figure to this file, as JSON."),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Draw the medians (ms) to this file, as PNG."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A trial of a minute: small phantoms and few boxes."),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Read stores of this data set of --workspace, not phantoms."
        ),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Boxes of each view and volume; 12, with --quick 2."),
    ] = None,
    volumes: Annotated[
        int | None, typer.Option(min=1, help="Volumes that are read; 4, with --quick 1.")
    ] = None,
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arms",
            metavar="NAME",
            help="Compare prect with this reader only; may be repeated. --dry-run lists them.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for temporary files (about 2 GB), on the disk to be measured.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured.")] = False,
) -> None:
    """Measure reading against other libraries, warm and cold, and the loader end to end."""
    from dataclasses import replace

    from prect.benchmark.run import Plan, failures, run
    from prect.workspace import Workspace

    given = context.get_parameter_source("workspace")
    if dataset is None and given is not None and given.name == "COMMANDLINE":
        raise typer.BadParameter("--workspace needs --dataset: phantoms have a workspace of theirs")
    plan = Plan.quick() if quick else Plan()
    if rounds is not None:
        starved = rounds if plan.starved_rounds else 0
        plan = replace(plan, rounds=rounds, cold_rounds=rounds, starved_rounds=starved)
    if volumes is not None:
        plan = replace(plan, volumes=volumes)
    for path in (json, png):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"the folder of {path} does not exist")
    if dry_run:
        _show_plan(plan, dataset, arms)
        return
    place = None if dataset is None else (Workspace(workspace), dataset)
    with (
        interruptible("nothing is left behind, and nothing was written"),
        _terminable(),
        progress_bar("step", quiet=False) as progress,
    ):
        task = progress.add_task("benchmark-io", total=None)

        def on_step(text: str) -> None:
            progress.update(task, advance=1, description=text)

        document = run(plan, names=arms, dataset=place, folder=folder, on_step=on_step)
    _write(document, json, png)
    _show(document)
    for line in failures(document):
        console.print(Text("error: ", style="bold red") + Text(line))
    if failures(document):
        raise typer.Exit(ExitCode.USER_ERROR)


def _show_plan(plan: Any, dataset: str | None, names: list[str] | None) -> None:
    from dataclasses import asdict

    from prect.benchmark.run import chosen_arms

    console.print(f"inputs: {dataset or f'{plan.volumes} {plan.size} phantoms'}")
    console.print(f"arms: {', '.join(chosen_arms(names))}")
    for name, value in asdict(plan).items():
        console.print(f"{name.replace('_', ' ')}: {value}")


def _write(document: dict[str, Any], json: Path | None, png: Path | None) -> None:
    if json is not None:
        text = json_module.dumps(document, indent=1, allow_nan=False)
        json.write_text(text + "\n", encoding="utf-8")
    if png is not None:
        from prect.benchmark.chart import draw

        draw(document, png)


def _show(document: dict[str, Any]) -> None:
    from prect.benchmark.tables import tables

    known = document["machine"]
    console.print(f"{known['processor']}, {known['cores']} cores, {known['system']}")
    named = (f"{name} {found}" for name, found in known["versions"].items() if found)
    console.print(f"Python {known['python']}, {', '.join(named)}")
    console.print(f"prect's decoder: {document['decoder']}")
    for each in tables(document):
        console.print(_rich(each))
        console.print()
    verdicts = [goal["met"] for goal in document["goals"]]
    console.print(
        f"{verdicts.count(True)} goals passed, {verdicts.count(False)} fall short, "
        f"{verdicts.count(None)} were not measured"
    )


def _rich(table: TextTable) -> Table:
    shown = Table(title=Text(table.title), title_justify="left")
    columns = table.brief if console.width < _WIDE else None
    for number, name in enumerate(table.header[:columns]):
        shown.add_column(Text(name), overflow="fold", justify="right" if number else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell, style=_VERDICTS.get(cell, "")) for cell in row[:columns]))
    return shown
