"""Memory of a worker that builds a long volume."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import build_arms
import build_inputs
from build_inputs import ingest, only_case
from measuring import Section, goal, task
from rich import box
from rich.console import Console
from rich.table import Table

WORKER_GOAL = 4.0
"""Peak beyond the imports over the decoded int16 volume."""


@dataclass(frozen=True)
class Peak:
    """One build of the long volume."""

    file: str
    """Its format, and whether its axes are turned against the body's."""
    low_pass: bool
    seconds: float
    volume_bytes: int
    peak_bytes: int
    """Beyond what the process held when the clock started."""
    resident_bytes: int
    """All of the process, imports included."""


BUILDS = (
    ("nifti", False),
    ("nifti", True),
    ("nifti, oblique", False),
    ("nifti, oblique", True),
    ("dicom", False),
)
"""File, and whether the axes that shrink are smoothed."""


def worker(
    slices: int, files: Sequence[str], folder: Path, first: Path, console: Console
) -> Section:
    """Build a volume of 512 x 512 x ``slices`` and watch the memory.

    Args:
        slices: of the volume.
        files: kinds of file, of `BUILDS`.
        folder: for all that is made.
        first: a small phantom.
        console: for progress.
    """
    peaks = []
    for file in files:
        place = folder / file.replace(", ", "-")
        with console.status(f"memory: making {slices} slices, {file}"):
            workspace = _ingested(file, slices, place, first)
        for name, low_pass in BUILDS:
            if name == file:
                with console.status(f"memory: {file}, low-pass {low_pass}"):
                    peaks.append(_peak(workspace, file, low_pass, place))
        shutil.rmtree(place)
    worst = max(peaks, key=lambda peak: peak.peak_bytes)
    goals = [
        goal(
            "peak memory of a worker over the decoded volume",
            f"512 x 512 x {slices}, {worst.file}{', low-pass' if worst.low_pass else ''}",
            worst.peak_bytes / worst.volume_bytes,
            WORKER_GOAL,
            most=True,
        )
    ]
    return Section({"builds": [asdict(peak) for peak in peaks]}, [_peak_table(peaks)], goals)


def _ingested(file: str, slices: int, place: Path, first: Path) -> Path:
    """A workspace with the long volume, ingested as the data set ``long``."""
    source, workspace = place / "source", place / "workspace"
    source.mkdir(parents=True)
    file_format, _, turned = file.partition(", ")
    task(
        build_inputs.PROGRAM,
        "long_volume",
        stem=source / "long",
        slices=slices,
        file_format=file_format,
        oblique=bool(turned),
    )
    ingest(workspace, first=first, long=source)
    return workspace


def _peak(workspace: Path, file: str, low_pass: bool, place: Path) -> Peak:
    result = task(
        build_arms.PROGRAM,
        "timed",
        workspace=workspace,
        dataset="long",
        case=only_case(workspace, "long"),
        first=only_case(workspace, "first"),
        recipe="abdomen",
        folder=place / "stores",
        low_pass=low_pass,
    )
    return Peak(
        file=file,
        low_pass=low_pass,
        seconds=result["seconds"],
        volume_bytes=result["volume_bytes"],
        peak_bytes=result["peak_bytes"],
        resident_bytes=result["resident_bytes"],
    )


def _peak_table(peaks: Iterable[Peak]) -> Table:
    table = Table(title="a worker that builds a long volume, profile iso1.5", box=box.SIMPLE_HEAD)
    table.add_column("file", no_wrap=True)
    table.add_column("low-pass", no_wrap=True)
    for name in ("volume MB", "peak MB", "peak / volume", "with imports MB", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    for peak in peaks:
        table.add_row(
            peak.file,
            "yes" if peak.low_pass else "no",
            f"{peak.volume_bytes / 1e6:.0f}",
            f"{peak.peak_bytes / 1e6:.0f}",
            f"{peak.peak_bytes / peak.volume_bytes:.2f}",
            f"{peak.resident_bytes / 1e6:.0f}",
            f"{peak.seconds:.1f}",
        )
    return table
