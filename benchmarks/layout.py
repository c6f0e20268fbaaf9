"""Which inner chunk and codec the stores should have: bytes, codec speed and reads of VoCo's views.

    python benchmarks/layout.py --json layout.json --files scan.nii.gz folder-of-a-dicom-series

First all layouts are swept in memory, for every profile and every form of the intensities: HU,
HU in steps, a window as one byte and as clipped HU. Then those that encode fast enough and that
no other beats in both size and decode speed are written by prect's writer and read by prect's
reader, warm and cold, with the default beside them. Ratios are float32 bytes of the whole field
of view (what MONAI's PersistentDataset holds) over stored bytes. Phantoms are made by the
program; real scans are given by --files. The stores are written to the folder that --dir names,
whose disk is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from layout_inputs import make_phantom, read_source, remarks, to_grid
from layout_reads import Candidate, Reads, measure
from layout_sweep import (
    ONE_BLOCK,
    CodecChoice,
    Form,
    Grid,
    Reference,
    Row,
    Sweep,
    chunk_name,
    front,
    measure_chunk,
)
from layout_tables import Found
from measuring import BenchmarkError, scratch
from numcodecs import blosc
from rich.console import Console

from prect.cache.intensity import Intensity
from prect.cache.profile import Profile, load_profile
from prect.errors import PrectError
from prect.units import Triple

HU, WINDOW = "hu", "window"
"""What prect stores by --intensity alone; the reads of these are timed."""
FORMS = (HU, WINDOW, "hu-step-2", "hu-step-4", "window-int16")
CHUNKS: tuple[Triple, ...] = (
    *((16, 16, 16), (24, 24, 24), (32, 32, 32), (16, 32, 32), (24, 48, 24)),
    *((16, 48, 48), (32, 48, 48), (48, 48, 48), (16, 64, 64), (64, 64, 64)),
)
FEW_CHUNKS: tuple[Triple, ...] = ((32, 32, 32), (24, 48, 24), (16, 48, 48), (16, 64, 64))
HU_CODECS: tuple[CodecChoice, ...] = (
    ("lz4", 5, "bitshuffle", 0),
    *(("lz4hc", level, "bitshuffle", 0) for level in (1, 3, 5, 6, 9)),
    ("lz4hc", 1, "bitshuffle", ONE_BLOCK),
    *(("lz4hc", level, "shuffle", 0) for level in (1, 3, 5, 6, 9)),
    ("lz4hc", 1, "shuffle", ONE_BLOCK),
    *(("zstd", level, "shuffle", 0) for level in (1, 3, 5)),
    *(("zstd", level, "shuffle", ONE_BLOCK) for level in (1, 3)),
)
STEP_CODECS: tuple[CodecChoice, ...] = (
    ("lz4", 5, "bitshuffle", 0),
    *(("lz4hc", level, "bitshuffle", 0) for level in (1, 3)),
    ("lz4hc", 5, "shuffle", 0),
    *(("zstd", level, "shuffle", ONE_BLOCK) for level in (1, 3)),
)
BYTE_CODECS: tuple[CodecChoice, ...] = (
    ("lz4", 5, "noshuffle", 0),
    *(("lz4hc", level, "noshuffle", 0) for level in (1, 5, 9)),
    ("lz4hc", 3, "bitshuffle", 0),
    *(("zstd", level, "noshuffle", 0) for level in (1, 3, 5)),
    *(("zstd", level, "noshuffle", ONE_BLOCK) for level in (1, 3, 5)),
)


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    size: Literal["small", "clinical"]
    """Of the phantoms."""
    phantoms: int
    rounds: int
    """Boxes of each view and volume."""
    chunks: Sequence[Triple]
    """For HU and the window of the first profile."""
    few_chunks: Sequence[Triple]
    """For everything else."""
    stride: int
    """1 for all codecs, 2 for every other."""
    forms: Sequence[str] = FORMS
    """Names of the forms."""


FULL = Extent("clinical", 2, 6, CHUNKS, FEW_CHUNKS, 1)
QUICK = Extent("small", 1, 2, FEW_CHUNKS[::3], FEW_CHUNKS[:1], 4)


def forms_of(profile: Profile) -> tuple[Form, ...]:
    """What may be stored of a volume."""
    low, high = profile.window_hu
    return (
        Form(HU, Intensity()),
        Form(WINDOW, Intensity.window(low, high)),
        Form("hu-step-2", Intensity(step=2)),
        Form("hu-step-4", Intensity(step=4)),
        Form("window-int16", Intensity(), clip=(low, high)),
    )


def sweeps_of(profiles: Sequence[Profile], extent: Extent) -> list[Sweep]:
    """What is swept of every profile, the default layout always among it."""
    codecs_of = {HU: HU_CODECS, WINDOW: BYTE_CODECS}
    sweeps = []
    for profile in profiles:
        for form in forms_of(profile):
            if form.name not in extent.forms:
                continue
            dense = profile is profiles[0] and form.name in codecs_of
            chunks = extent.chunks if dense else extent.few_chunks
            codecs = codecs_of.get(form.name, STEP_CODECS)[:: extent.stride]
            sweeps.append(Sweep(profile, form, chunks, codecs))
    return sweeps


def run_reads(
    sweep: Sweep,
    rows: Sequence[Row],
    best: Sequence[Row],
    grids: Sequence[Grid],
    rounds: int,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[list[Reads], str | None]:
    """Read times of the default, of its codec in every chunk, and of the best of the sweep.

    Returns:
        The figures, and why cold reads were not measured, or None when they were.

    Raises:
        BenchmarkError: a store has other bytes than the sweep found for its layout.
    """
    layouts = [sweep.default]
    layouts += [row.layout for row in rows if row.layout.codec == sweep.default.codec]
    layouts += [row.layout for row in best]
    candidates = [Candidate(sweep.profile.name, sweep.form, one) for one in dict.fromkeys(layouts)]
    reads, reason = measure(candidates, grids, rounds, folder, say)
    swept = {row.layout: row.level_bytes for row in rows}
    for each in reads:
        if each.shard_bytes != swept[each.candidate.layout]:
            raise BenchmarkError(
                f"{each.candidate.layout}: the sweep found {swept[each.candidate.layout]} bytes, "
                f"the stores have {each.shard_bytes}"
            )
    return reads, reason


def run(
    profiles: Sequence[Profile],
    files: Sequence[Path],
    extent: Extent,
    folder: Path,
    say: Callable[[str], None],
) -> Found:
    """Measure everything; the real scans come first.

    Raises:
        BenchmarkError: a file is no usable CT volume, or stores are not as expected.
    """
    sources = [read_source(path) for path in files]
    sources += [make_phantom(index, extent.size) for index in range(extent.phantoms)]
    grids: dict[str, list[Grid]] = {}
    notes = []
    for profile in profiles:
        grids[profile.name] = [to_grid(source, profile) for source in sources]
        for source, grid in zip(sources, grids[profile.name], strict=True):
            notes += remarks(source, grid)
    found = Found(Reference(grids[profiles[0].name][0].levels[0]), grids, notes=notes)
    sources.clear()
    for sweep in sweeps_of(profiles, extent):
        mine = grids[sweep.profile.name]
        rows: list[Row] = []
        for chunk in sweep.chunks:
            say(f"{sweep.name}: {chunk_name(chunk)}")
            rows += measure_chunk(sweep, chunk, mine, found.reference)
        found.rows[sweep] = rows
        if sweep.form.name in (HU, WINDOW) and extent.rounds:
            best = front(rows, found.reference)
            found.reads[sweep], reason = run_reads(
                sweep, rows, best, mine, extent.rounds, folder, say
            )
            if reason is not None:
                notes.append(f"{sweep.name}: cold reads could not be measured: {reason}")
    return found


def chunk_of(text: str) -> Triple:
    """A chunk (z, y, x) from a text like 16x48x48."""
    z, y, x = (int(part) for part in text.split("x"))
    if min(z, y, x) < 1:
        raise ValueError(text)
    return z, y, x


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
    parser.add_argument("--phantoms", type=int, metavar="N", help="scans to make")
    parser.add_argument("--profiles", nargs="+", default=["iso1.5", "voco2"], metavar="PROFILE")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="boxes of each view and volume; 0: sweep alone"
    )
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS, metavar="FORM")
    parser.add_argument(
        "--chunks", type=chunk_of, nargs="+", metavar="ZxYxX", help="other inner chunks than usual"
    )
    parser.add_argument("--quick", action="store_true", help="a small phantom, few layouts")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where stores are written, removed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args()
    if len({file.name for file in options.files}) < len(options.files):
        parser.error("two of the files have one name, and names tell them apart in the tables")
    if missing := [str(file) for file in options.files if not file.exists()]:
        parser.error(f"not there: {', '.join(missing)}")
    if options.phantoms == 0 and not options.files:
        parser.error("no volumes: give --files, or a number of --phantoms")
    return options


def main() -> None:
    options = arguments()
    extent = QUICK if options.quick else FULL
    extent = replace(
        extent,
        phantoms=extent.phantoms if options.phantoms is None else options.phantoms,
        rounds=extent.rounds if options.rounds is None else options.rounds,
        forms=options.forms,
        chunks=options.chunks or extent.chunks,
        few_chunks=options.chunks or extent.few_chunks,
    )
    blosc.use_threads = False
    console = Console(width=None if sys.stdout.isatty() else 160)
    with scratch(options.dir) as folder, console.status("preparing volumes") as status:
        try:
            profiles = [load_profile(name) for name in options.profiles]
            found = run(profiles, options.files, extent, folder, status.update)
        except (BenchmarkError, PrectError) as error:
            raise SystemExit(str(error)) from None
    for table in found.tables():
        console.print(table)
    for note in found.notes:
        console.print(f"note: {note}")
    if options.json:
        options.json.write_text(json.dumps(found.document(), indent=2) + "\n")


if __name__ == "__main__":
    main()
