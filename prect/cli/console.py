"""What every command shares: where text goes, and what ends up there.

People read standard error, scripts read standard output: with ``--json`` exactly one
JSON object is written to standard output and nothing else.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# Without a terminal a sentence or a path stays on one line, for grep and for copying.
# Markup is off: a path may hold brackets.
console = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, markup=False)

WorkspaceOption = Annotated[
    str,
    typer.Option(
        "--workspace",
        "-w",
        envvar="PRECT_WORKSPACE",
        help="Folder that holds manifests, stores and runs.",
        show_default=True,
    ),
]
DEFAULT_WORKSPACE = "./prect-data"
JsonOption = Annotated[
    bool, typer.Option("--json", help="Write one JSON object to standard output, nothing else.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit with status 3 when a volume is not usable.")
]

WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Local processes; one a core when left out.")
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Use this Dask cluster, e.g. tcp://host:8786."),
]


_ECHO_SECONDS = 0.5
"""A signal that follows so soon is the same one: launchers pass on what a terminal sends to all."""


class ExitCode(IntEnum):
    """Exit status of a command that did not simply succeed; 2, wrong usage, is Typer's."""

    USER_ERROR = 1
    QUARANTINED = 3
    TRY_AGAIN = 75
    """A run was stopped by a signal and has saved; EX_TEMPFAIL of sysexits.h, for a requeue."""
    INTERRUPTED = 130


def emit_json(document: dict[str, Any]) -> None:
    """Write one JSON object to standard output."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed
        return Text(f"{task.completed / elapsed:.2f} {self.unit}/s" if elapsed else "")


@contextmanager
def progress_bar(unit: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar with count, rate and time left on standard error; nothing when ``quiet``."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet) as progress:
        yield progress


def count_table(
    title: str, counts: dict[str, int], header: str, examples: dict[str, str] | None = None
) -> Table:
    """A table of names and numbers, and one example for each where there are any."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column(header, no_wrap=True)
    table.add_column("volumes", justify="right")
    if examples is not None:
        table.add_column("for example", overflow="fold")
    for name, count in counts.items():
        more = () if examples is None else (Text(examples.get(name, "")),)
        table.add_row(Text(name), str(count), *more)
    return table


@contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """Turn Ctrl-C into one sentence and the exit status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"interrupted; {remedy}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@contextmanager
def graceful(what: str) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end work in order; a second one ends it at once.

    Args:
        what: what is finished first, for the message.

    Yields:
        A function that says whether to stop.
    """
    asked: list[float] = []

    def handle(*_: object) -> None:
        now = time.monotonic()
        if asked:
            if now - asked[0] > _ECHO_SECONDS:
                raise KeyboardInterrupt
            return
        asked.append(now)
        # Where the signal cuts into a write to the same stream, the message cannot be shown.
        with suppress(RuntimeError):
            console.print(f"stopping: {what} is finished first; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def human_bytes(count: float) -> str:
    """``12.3 MB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
