"""How the time and the memory of ``prect ingest`` grow with the number of DICOM series.

A tree of N series, each a few files that hold a header and no pixels, is laid out as a
collection of studies is: patient, study, series. Then ``python -m prect ingest`` runs on it
in a process of its own, twice: on a new workspace, and again on the unchanged tree. Times
are those of the whole command; the files have just been written, so the page cache is warm.
Memory is that of the command and of its workers, at its highest of two looks a second; a
page that several processes share is divided among them (proportional set size).

    python benchmarks/ingest_scale.py --counts 1000,10000,100000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import psutil
from measuring import BenchmarkError, scratch
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

SERIES_PER_PATIENT = 2
PATIENTS_PER_FOLDER = 500
SLICE_THICKNESS_MM = 2.5
PRIVATE_BYTES = 3000
"""Scanners add private elements of some kilobytes to each header."""
LOOK_EVERY_S = 0.5
"""A look walks the page tables of the processes and holds them up meanwhile."""
MIB = 2**20

# Stand for what differs from file to file; a value that replaces one has the same length.
PATIENT = "PATIENT-00000000"
STUDY, SERIES, INSTANCE = (f"1.2.826.0.1.3680043.10.511.{role}.1000000000" for role in (1, 2, 3))
POSITION = "00000.00"
NUMBER = "00000007"


@dataclass(frozen=True)
class Measured:
    """One run of the command."""

    seconds: float
    peak_mib: float
    """Command and workers together."""
    driver_peak_mib: float
    """The command's own process."""


@dataclass(frozen=True)
class Row:
    """One size of tree."""

    series: int
    files: int
    seconds: float
    series_per_second: float
    peak_mib: float
    driver_peak_mib: float
    again_seconds: float
    """On the unchanged tree."""
    again_peak_mib: float
    speedup: float
    """Times that the second run is faster than the first."""


def header_template() -> bytes:
    """A CT header as a scanner writes it, without pixels; about 4.5 kB."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientID, dataset.PatientName = PATIENT, "BENCHMARK^SERIES"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, SERIES
    dataset.SOPInstanceUID, dataset.InstanceNumber = INSTANCE, NUMBER
    dataset.FrameOfReferenceUID = f"{SERIES}.1"
    dataset.Manufacturer, dataset.ManufacturerModelName = "prect", "benchmark"
    dataset.SeriesDescription, dataset.ProtocolName = "series of headers", "CHEST"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = "20200101"
    dataset.BodyPartExamined, dataset.PatientPosition = "CHEST", "HFS"
    dataset.ConvolutionKernel, dataset.KVP, dataset.XRayTubeCurrent = "STANDARD", "120", "200"
    dataset.ImagePositionPatient = ["-250", "-250", POSITION]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.PixelSpacing, dataset.SliceThickness = ["0.9765625"] * 2, str(SLICE_THICKNESS_MM)
    dataset.Rows = dataset.Columns = 512
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.RescaleType = 0, "HU"
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    block = dataset.private_block(0x0029, "PRECT BENCHMARK", create=True)
    block.add_new(0x10, "OB", bytes(PRIVATE_BYTES))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, UID(INSTANCE)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    file = FileDataset(buffer, dataset, file_meta=meta, preamble=bytes(128))
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Headers:
    """Header files made by putting values into the places of a template."""

    def __init__(self, template: bytes) -> None:
        marks = [mark.encode() for mark in (PATIENT, STUDY, SERIES, INSTANCE, POSITION, NUMBER)]
        places = sorted((place, mark) for mark in marks for place in _places(template, mark))
        self._parts: list[bytes] = []
        self._marks: list[bytes] = []
        end = 0
        for place, mark in places:
            self._parts.append(template[end:place])
            self._marks.append(mark)
            end = place + len(mark)
        self._rest = template[end:]

    def file(self, series: int, slice_number: int, instance: int) -> bytes:
        """The bytes of one slice of one series; ``instance`` is another one for every file."""
        patient = series // SERIES_PER_PATIENT
        values = {
            PATIENT: f"PATIENT-{patient:08d}",
            STUDY: _uid(STUDY, patient),
            SERIES: _uid(SERIES, series),
            INSTANCE: _uid(INSTANCE, instance),
            POSITION: f"{slice_number * SLICE_THICKNESS_MM:08.2f}",
            NUMBER: f"{slice_number + 1:08d}",
        }
        by_mark = {mark.encode(): value.encode() for mark, value in values.items()}
        pieces: list[bytes] = []
        for part, mark in zip(self._parts, self._marks, strict=True):
            pieces += (part, by_mark[mark])
        return b"".join((*pieces, self._rest))


def _places(data: bytes, mark: bytes) -> Iterator[int]:
    place = data.find(mark)
    while place >= 0:
        yield place
        place = data.find(mark, place + len(mark))


def _uid(mark: str, number: int) -> str:
    """The UID that stands for the mark, with another last component of the same length."""
    stem, _, last = mark.rpartition(".")
    return f"{stem}.{int(last) + number}"


def write_tree(root: Path, series: int, slices: int) -> int:
    """Write a tree of so many series of so many slices; returns the number of files."""
    headers = Headers(header_template())
    for number in range(series):
        patient = number // SERIES_PER_PATIENT
        group = f"{patient // PATIENTS_PER_FOLDER:04d}"
        folder = root / group / f"PATIENT-{patient:08d}" / "study" / _uid(SERIES, number)
        folder.mkdir(parents=True)
        for slice_number in range(slices):
            path = folder / f"{slice_number + 1:04d}.dcm"
            instance = number * slices + slice_number
            path.write_bytes(headers.file(number, slice_number, instance))
    return series * slices


def ingest(source: Path, workspace: Path, workers: int) -> tuple[Measured, dict[str, int]]:
    """Run the command once; what it took, and its counts of candidates, kept and judged.

    Raises:
        BenchmarkError: it failed.
    """
    command = [sys.executable, "-m", "prect", "ingest", "scale", "--source", str(source)]
    command += ["--workspace", str(workspace), "--workers", str(workers), "--json"]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        total, driver = _watch(process)
        seconds = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise BenchmarkError(
                f"ingest ended with {process.returncode}: {err.read().decode(errors='replace')}"
            )
        summary = json.load(out)
    counts = {name: int(summary[name]) for name in ("candidates", "kept", "judged")}
    return Measured(seconds, total / MIB, driver / MIB), counts


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for a process; peak bytes of it with its children, and of it alone."""
    own = psutil.Process(process.pid)
    total = driver = 0
    while process.poll() is None:
        try:
            alone = _resident(own)
            children = sum(_resident(child) for child in own.children(recursive=True))
        except psutil.NoSuchProcess:
            continue  # it has just ended
        total, driver = max(total, alone + children), max(driver, alone)
        time.sleep(LOOK_EVERY_S)
    return total, driver


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # it has just ended


def measure(series: int, slices: int, folder: Path, workers: int) -> Row:
    """Build a tree of so many series in a folder and ingest it twice.

    Raises:
        BenchmarkError: the command failed, or the counts are not those of the tree.
    """
    tree, workspace = folder / "tree", folder / "workspace"
    files = write_tree(tree, series, slices)
    first, counts = ingest(tree, workspace, workers)
    _expect(counts, {"candidates": series, "kept": 0, "judged": series})
    again, counts = ingest(tree, workspace, workers)
    _expect(counts, {"candidates": series, "kept": series, "judged": 0})
    return Row(
        series=series,
        files=files,
        seconds=round(first.seconds, 2),
        series_per_second=round(series / first.seconds, 1),
        peak_mib=round(first.peak_mib, 1),
        driver_peak_mib=round(first.driver_peak_mib, 1),
        again_seconds=round(again.seconds, 2),
        again_peak_mib=round(again.peak_mib, 1),
        speedup=round(first.seconds / again.seconds, 1),
    )


def _expect(counts: dict[str, int], expected: dict[str, int]) -> None:
    if counts != expected:
        raise BenchmarkError(f"ingest counted {counts}, the tree has {expected}")


def _report(rows: Sequence[Row], workers: int) -> dict[str, object]:
    """The figures, and what they were measured on."""
    return {
        "rows": [asdict(row) for row in rows],
        "header_bytes": len(header_template()),
        "workers": workers,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("prect", "pydicom", "distributed")},
    }


def _table(rows: Sequence[Row], workers: int) -> Table:
    title = f"prect ingest, {workers} workers; again: on the unchanged tree"
    table = Table(title=title, title_justify="left")
    for heading in ("series", "files", "s", "series/s", "peak MiB", "driver MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("again s", "again MiB", "faster"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{value:,}" for value in asdict(row).values()))
    return table


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(text)
    return counts


def main() -> int:
    """Measure every size asked for; print a table, or JSON."""
    parser = argparse.ArgumentParser(description="How prect ingest scales with series of DICOM.")
    parser.add_argument("--counts", type=_counts, default=[1_000, 10_000, 100_000], metavar="N,N")
    parser.add_argument("--slices", type=int, default=3, metavar="N", help="files of each series")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where trees are made, and removed")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args()
    progress = Console(stderr=True)
    rows: list[Row] = []
    for count in options.counts:
        progress.print(f"{count:,} series ...")
        with scratch(options.dir) as folder:
            rows.append(measure(count, options.slices, folder, options.workers))
    if options.json:
        sys.stdout.write(json.dumps(_report(rows, options.workers), indent=2) + "\n")
    else:
        Console(width=100).print(_table(rows, options.workers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
