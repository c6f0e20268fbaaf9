"""What building the stores costs: bytes, seconds and memory, against MONAI's PersistentDataset.

    python benchmarks/build.py --json build.json --files scan.nii.gz folder-of-a-dicom-series

Sections, each of which can be chosen by --only:

size        bytes of a store against PersistentDataset's file of the same volume
throughput  seconds from file to cache on one core, MONAI's chain and prect's, and by stage
scaling     seconds of build-cache with one worker and with two
memory      peak of a worker that builds 512 x 512 x 1200 voxels
driver      memory and time of the process that plans a build of 160,000 volumes
projection  bytes of all volumes of PreCT-160K, from the sizes measured

Every run is a process of its own with one thread; arms take turns; files are warm: each is
read once before. Phantoms are made by the program; real scans are given by --files.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import build_driver
import build_memory
import build_size
import build_speed
from build_inputs import Size, collect
from measuring import BenchmarkError, Section, machine, phantom, print_goals, scratch
from rich.console import Console

SECTIONS = ("size", "throughput", "scaling", "memory", "driver", "projection")
LIBRARIES = (
    *("prect", "monai", "torch", "numpy", "SimpleITK", "nibabel", "isal"),
    *("numcodecs", "pyarrow", "distributed"),
)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    size: Size
    """Of the phantoms."""
    phantoms: tuple[int, ...]
    """Numbers of those that are scans."""
    timed: int
    """Scans that throughput takes."""
    rounds: int
    copies: int
    """Volumes that scaling builds."""
    slices: int
    """Of the long volume."""
    files: tuple[str, ...]
    """Kinds of file that it is written as."""
    rows: int
    """Of the simulated manifest."""
    jobs: int
    """Of these, how many go through a real cluster."""


FULL = Extent(
    size="clinical",
    phantoms=(0, 1, 2, 3),
    timed=2,
    rounds=3,
    copies=40,
    slices=1200,
    files=("nifti", "nifti, oblique", "dicom"),
    rows=160_000,
    jobs=2000,
)
QUICK = Extent(
    size="small",
    phantoms=(5, 274),  # small ones of abdomen and chest
    timed=1,
    rounds=1,
    copies=4,
    slices=120,
    files=("nifti",),
    rows=4000,
    jobs=200,
)


def measure(
    chosen: set[str], extent: Extent, files: list[Path], folder: Path, console: Console
) -> dict[str, Section]:
    """Measure the sections chosen, in the order of `SECTIONS`."""
    sections: dict[str, Section] = {}
    with console.status("making phantoms"):
        # Read first by every process, for what is imported or made ready on first use.
        first = phantom(999, "small", folder / "first")
        if chosen & {"size", "throughput", "projection"}:
            scans = collect(folder / "scans", first, files, extent.phantoms, extent.size)
    if chosen & {"size", "projection"}:
        sizes = build_size.measure(scans, folder / "size", console)
        sections["size"] = build_size.section(sizes)
        if "projection" in chosen:
            sections["projection"] = build_size.projection(sizes)
    if "throughput" in chosen:
        sections["throughput"] = build_speed.throughput(
            scans, extent.timed, extent.rounds, folder / "throughput", console
        )
    if "scaling" in chosen:
        sections["scaling"] = build_speed.scaling(
            extent.copies, extent.size, extent.rounds, folder / "scaling", first, console
        )
    if "memory" in chosen:
        sections["memory"] = build_memory.worker(
            extent.slices, extent.files, folder / "memory", first, console
        )
    if "driver" in chosen:
        sections["driver"] = build_driver.driver(
            extent.rows, extent.jobs, folder / "driver", console
        )
    return sections


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--files",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="real CT: NIfTI, MetaImage or NRRD files, or folders of one DICOM series each",
    )
    parser.add_argument(
        "--only", default=",".join(SECTIONS), metavar="SECTION,SECTION", help="all when left out"
    )
    parser.add_argument("--quick", action="store_true", help="small phantoms, one round")
    parser.add_argument("--phantoms", type=int, metavar="N", help="scans to make, at most")
    parser.add_argument("--rounds", type=int, metavar="N", help="of what is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this folder, keep it")
    options = parser.parse_args()
    options.only = set(options.only.split(","))
    if unknown := options.only - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if len({file.name for file in options.files}) < len(options.files):
        parser.error("two of the files have one name, and names tell them apart in the tables")
    if missing := [str(file) for file in options.files if not file.exists()]:
        parser.error(f"not there: {', '.join(missing)}")
    if options.phantoms == 0 and not options.files:
        parser.error("no phantoms and no files: there is nothing to measure")
    if options.keep is not None and options.keep.exists():
        parser.error(f"{options.keep} exists; --keep wants a new folder")
    return options


def main() -> None:
    options = arguments()
    extent = QUICK if options.quick else FULL
    extent = replace(
        extent,
        phantoms=extent.phantoms[: options.phantoms],
        rounds=options.rounds or extent.rounds,
    )
    console = Console(width=None if sys.stdout.isatty() else 120)
    with scratch(None) if options.keep is None else nullcontext(options.keep) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            sections = measure(options.only, extent, options.files, folder, console)
        except BenchmarkError as error:
            raise SystemExit(str(error)) from None
    goals = [each for section in sections.values() for each in section.goals]
    for section in sections.values():
        for table in section.tables:
            console.print(table)
    print_goals(goals, console)
    if options.quick:
        console.print("--quick tries the program out; what it measures is too small for the goals")
    if options.json:
        document = {
            "sections": {name: section.figures for name, section in sections.items()},
            "goals": goals,
            "extent": asdict(extent),
            "machine": machine(LIBRARIES),
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
