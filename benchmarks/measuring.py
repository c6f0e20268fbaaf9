"""What the benchmark programs share: runs in processes of their own, peaks, goals, the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from prect.benchmark.tables import TextTable

SEED = 7
"""Of the phantoms that the programs make."""
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    )
}


BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
"""Between these a program writes its figures into a page of docs/."""


class BenchmarkError(Exception):
    """What is measured failed, or did something else than what is measured here."""


@dataclass(frozen=True)
class Section:
    """What one part of a program measured."""

    figures: dict[str, Any]
    """For the JSON file."""
    tables: list[Table]
    goals: list[dict[str, Any]]
    """Of `goal`."""


class Clock:
    """Seconds of the stages of one pass."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def memory() -> tuple[int, int]:
    """Bytes resident now, and at most since this process began.

    Linux counts a parent's pages in ru_maxrss of its child, so its own counters are read.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        import resource  # noqa: PLC0415

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def start(
    program: Path, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A program in a process of its own, with one thread, and variables beside those here."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_THREAD | (environment or {}),
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a process of `start`; the JSON object that it writes as its last line.

    Raises:
        BenchmarkError: it failed.
    """
    out, err = process.communicate()
    if process.returncode:
        raise BenchmarkError(f"{process.args!r} ended with {process.returncode}\n{err}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def in_process(program: Path, *arguments: object) -> dict[str, Any]:
    """Run a program as `start` does and wait for its result.

    Raises:
        BenchmarkError: it failed.
    """
    return result_of(start(program, *arguments))


def serve(tasks: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Do what the command line asks for, a task and its arguments in JSON; print its result."""
    name, text = sys.argv[1:]
    result = tasks[name](**json.loads(text))
    sys.stdout.write(f"\n{json.dumps(result)}\n")


def start_task(program: Path, name: str, **arguments: object) -> subprocess.Popen[str]:
    """Let a program that calls `serve` begin a task in a process of its own."""
    return start(program, name, json.dumps(arguments, default=str))


def task(program: Path, name: str, **arguments: object) -> dict[str, Any]:
    """Let a program that calls `serve` do a task in a process of its own.

    Raises:
        BenchmarkError: it failed.
    """
    return result_of(start_task(program, name, **arguments))


def prect(*arguments: object) -> tuple[dict[str, Any], float]:
    """Run a command of prect with ``--json`` and one thread; its object, and seconds.

    Raises:
        BenchmarkError: it failed.
    """
    command = [sys.executable, "-m", "prect", *map(str, arguments), "--json"]
    began = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise BenchmarkError(f"{command[2:]!r} ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout), seconds


def phantom(index: int, size: Literal["small", "clinical"], stem: Path, seed: int = SEED) -> Path:
    """A phantom as ``.nii.gz``."""
    from prect.phantom import make_case  # noqa: PLC0415
    from prect.phantom.write import write_case  # noqa: PLC0415

    return write_case(make_case(seed, index, size=size), stem, "nifti")


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """A new folder that is removed at the end."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="prect-benchmark-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def spread(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def goal(name: str, worst: str, ratio: float, limit: float, *, most: bool) -> dict[str, Any]:
    """A figure and its bound.

    Args:
        name: what the figure is.
        worst: what it was measured on.
        ratio: the figure.
        limit: its bound.
        most: the figure may be at most, else must be at least, the bound.
    """
    met = ratio <= limit if most else ratio >= limit
    bound = f"{'<=' if most else '>='} {limit:g}"
    return {"name": name, "worst": worst, "ratio": ratio, "goal": bound, "met": met}


def print_goals(goals: Sequence[dict[str, Any]], console: Console) -> None:
    """One line a goal, with its verdict."""
    for each in goals:
        verdict = "[green]met[/green]" if each["met"] else "[red]falls short[/red]"
        console.print(
            f"{each['name']}: {each['ratio']:.4g} ({each['worst']}), goal {each['goal']}: {verdict}"
        )


def machine(libraries: Sequence[str]) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
    }


def write_page(figures: str, page: Path) -> None:
    """Put figures between the marks of a page.

    Raises:
        BenchmarkError: the page has no marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchmarkError(f"{page} has no {BEGIN} followed by {END}")
    text = f"{before}{BEGIN}\n\n{figures.rstrip()}\n\n{END}{after}"
    page.write_text(text, encoding="utf-8")


def on_console(table: TextTable) -> Table:
    """The table as rich draws it."""
    shown = Table(*table.header, title=table.title)
    for row in table.rows:
        shown.add_row(*row)
    return shown
