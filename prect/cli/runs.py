"""Commands about training runs: which there are, and what became of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
)

if TYPE_CHECKING:
    from prect.train.report.runs import Line, RunInfo, RunRecord

_WIDE = 130
"""Characters a line from which every figure of a run has a column."""
_UNLIMITED = 200
"""Characters a line where no terminal sets a limit."""
_STYLES = {"running": "green", "failed": "bold red", "killed": "bold red", "never began": "dim"}
_NEWEST = 10
"""Incidents that are shown one by one."""
_UNITS = {
    "grad_norm": "before clipping",
    "step_s": "s",
    "volumes_per_s": "volumes/s",
    "read_mb_per_s": "MB/s",
    "memory_mib": "MiB",
    "save_stall_s": "s",
    "tflops": "TFLOP/s",
}
_PERCENT = {"wait_share", "mfu", "top1", "chance"}
_REFERENCES = {"total": ("floor", "best constant"), "top1": ("chance", "chance")}

app = typer.Typer(invoke_without_command=True)


@app.callback()
def runs(
    context: typer.Context,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """List training runs: how far each is, whether it learns, how fast it is, what happened."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter(f"--json goes after {context.invoked_subcommand!r}")
        context.obj = workspace
        return
    from prect.train.report.runs import list_runs
    from prect.workspace import Workspace

    place = Workspace(workspace)
    found = list_runs(place)
    if json:
        emit_json({"workspace": workspace, "runs": [_document(info) for info in found]})
        return
    if not found:
        console.print(f"no runs in {place.runs}")
        return
    wide = _width() >= _WIDE
    _print_table(_list_table(found, wide=wide))
    if not wide:
        console.print(f"a terminal of {_WIDE} characters a line shows more columns")


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of a run, or its folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", show_default="<run>/curves.png", help="Picture to write; is replaced."
        ),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the tables, draw nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Draw the curves of a run, and print its newest figures, incidents and times by process."""
    from prect.train.report.runs import find_run, read_run
    from prect.workspace import Workspace

    if workspace == DEFAULT_WORKSPACE:
        workspace = context.obj  # where it stands before the name of this command
    folder = find_run(Workspace(workspace), name)
    record = read_run(folder)
    target = out or folder / "curves.png"
    draws = bool(record.training or record.evaluations)
    if draws and not dry_run:
        from prect.train.report.curves import draw_curves

        draw_curves(record, target)
    if json:
        picture = str(target) if draws else None
        emit_json(_full_document(record) | {"picture": picture, "dry_run": dry_run})
        return
    _print_record(record)
    if draws:
        console.print(f"curves: {target}" + (" (dry run, not written)" if dry_run else ""))
    else:
        console.print("no figures yet, so there is nothing to draw")


def _document(info: RunInfo) -> dict[str, Any]:
    return asdict(info) | {
        "folder": str(info.folder),
        "checkpoints": list(info.checkpoints),
        "updated": info.updated.isoformat() if info.updated else None,
    }


def _full_document(record: RunRecord) -> dict[str, Any]:
    return _document(record.info) | {
        "training": record.training[-1] if record.training else None,
        "untrained": _heldout_of(record.evaluations[0]) if record.evaluations else None,
        "happenings": [asdict(incident) for incident in record.incidents],
        "ranks": {str(rank): lines[-1] for rank, lines in record.timings.items() if lines},
    }


def _heldout_of(line: Line) -> dict[str, Any]:
    return {k.removeprefix("heldout_"): v for k, v in line.items()}


def _list_table(found: Sequence[RunInfo], *, wide: bool) -> Table:
    table = Table(title="runs", title_justify="left", box=box.SIMPLE_HEAD)
    columns = {title: show for title, (show, always) in _COLUMNS.items() if always or wide}
    for title in columns:
        table.add_column(title, justify="left" if title in _TEXTS else "right", no_wrap=True)
    table.add_column("incidents", overflow="fold" if wide else "ellipsis", no_wrap=not wide)
    for info in found:
        style = _STYLES.get(info.state, "")
        cells = [
            Text(show(info), style=style if title == "state" else "")
            for title, show in columns.items()
        ]
        count = sum(info.incidents.values())
        table.add_row(*cells, _counts(info.incidents) if wide else str(count or ""))
    return table


def _print_record(record: RunRecord) -> None:
    info = record.info
    why = f" ({info.reason})" if info.reason else ""
    left = "" if info.seconds_left is None else f", about {_span(info.seconds_left)} left"
    console.print(
        f"{info.name}: {info.state}{why}, {_steps(info)} steps{left}, "
        f"last heard of {_ago(info.updated) or 'never'}"
    )
    saved = ", ".join(f"{step:,}" for step in info.checkpoints) or "none"
    console.print(f"checkpoints: {saved}")
    if record.training:
        _print_table(_training_table(record.training[-1]))
    if record.evaluations:
        _print_table(_heldout_table(record))
    timed = {rank: lines[-1] for rank, lines in record.timings.items() if lines}
    if timed:
        _print_table(_timing_table(timed))
    _print_incidents(record)


def _training_table(line: Line) -> Table:
    table = Table(title=f"training, step {line['step']:,}", title_justify="left", box=box.SIMPLE)
    for title, justify in (("figure", "left"), ("value", "right"), ("unit", "left")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for name, value in line.items():
        if name != "step":
            table.add_row(Text(name), _figure(name, value), _UNITS.get(name, ""))
    return table


def _heldout_table(record: RunRecord) -> Table:
    """Newest held-out figures beside those before the first step."""
    first, last = (_heldout_of(record.evaluations[place]) for place in (0, -1))
    learned = _learned(record.info.learned) or "unknown"
    title = f"held out, step {last['step']:,}; learned: {learned}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("figure")
    for name in ("now", f"step {first['step']:,}"):
        table.add_column(name, justify="right")
    table.add_column("held against")
    references = {reference for reference, _ in _REFERENCES.values()}
    for name in [name for name in last if name not in {"step", "views", *references}]:
        reference, said = _REFERENCES.get(name, ("", ""))
        against = f"{_figure(reference, last[reference])} ({said})" if reference in last else ""
        before = _figure(name, first[name]) if name in first else ""
        table.add_row(Text(name), _figure(name, last[name]), before, against)
    return table


def _timing_table(timed: Mapping[int, Line]) -> Table:
    """What each process did with its time, means a step since its last line."""
    names = list(dict.fromkeys(name for line in timed.values() for name in line))
    table = Table(title="times by process, means a step", title_justify="left", box=box.SIMPLE)
    for name in ("rank", *names):
        # In words, so that a narrow terminal can break the titles of columns.
        words = name.replace("_per_s", "/s").replace("_", " ")
        table.add_column(words, justify="right", overflow="fold")
    for rank, line in timed.items():
        values = [
            f"{line[name]:,}" if name == "step" else _figure(name, line[name])
            for name in names
            if name in line
        ]
        table.add_row(str(rank), *values)
    return table


def _print_incidents(record: RunRecord) -> None:
    found = record.incidents
    if not found:
        console.print("incidents: none")
        return
    shown = found[-_NEWEST:]
    newest = f"; the newest {len(shown)}:" if len(shown) < len(found) else ":"
    console.print(f"incidents: {_counts(record.info.incidents)}{newest}")
    for incident in shown:
        kind = incident.kind.replace("_", " ")
        console.print(f"  step {incident.step:,}, {kind}: {incident.text}", soft_wrap=True)


def _print_table(table: Table) -> None:
    Console(stderr=True, width=_width(), highlight=False).print(table)


def _width() -> int:
    return console.width if console.is_terminal else _UNLIMITED


def _steps(info: RunInfo) -> str:
    return f"{info.step:,}" + (f"/{info.max_steps:,}" if info.max_steps is not None else "")


def _figure(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if name in _PERCENT:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _learned(learned: bool | None) -> str:
    return {True: "yes", False: "no", None: ""}[learned]


def _counts(incidents: Mapping[str, int]) -> str:
    ordered = sorted(incidents.items(), key=lambda each: -each[1])
    return ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in ordered)


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return ""
    return f"{_span(max(0.0, (datetime.now(UTC) - moment).total_seconds()))} ago"


def _span(seconds: float) -> str:
    """A length of time in its two largest units: ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


_TEXTS = {"run", "state", "learned"}
_COLUMNS: dict[str, tuple[Callable[[RunInfo], str], bool]] = {
    "run": (lambda info: info.name, True),
    "state": (lambda info: info.state, True),
    "steps": (_steps, True),
    "loss": (lambda info: _number(info.loss), False),
    "pos+neg": (lambda info: _number(info.heldout.get("total")), True),
    "top-1": (lambda info: _percent(info.heldout.get("top1")), False),
    "learned": (lambda info: _learned(info.learned), True),
    "volumes/s": (lambda info: _number(info.volumes_per_s, 1), False),
    "waiting": (lambda info: _percent(info.wait_share, 1), False),
    "saved": (lambda info: f"{info.checkpoints[-1]:,}" if info.checkpoints else "", False),
    "updated": (lambda info: _ago(info.updated), False),
    "left": (lambda info: "" if info.seconds_left is None else _span(info.seconds_left), False),
}
"""Title of a column: what it shows of a run, and whether a narrow terminal has it, too."""
