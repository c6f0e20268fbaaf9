"""From a NIfTI file to the grid of training: prect against MONAI's chain of transforms.

    python benchmarks/harmonise.py --repeat 5 --json harmonise.json --files scan.nii.gz

Every run of an arm is a process of its own with one thread, so that CPU seconds and peak
memory are its own; imports and a small first volume come before the clock starts. Arms take
turns. Files are warm: each is read once before. Ratios are of one round, figures are medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Clock, goal, in_process, machine, memory, phantom, print_goals, spread
from rich import box
from rich.console import Console
from rich.table import Table

SPACING = 1.5
SPEED_GOAL = 4.0
"""MONAI's seconds over prect's."""
MEMORY_GOAL = 4.0
"""Peak memory over the int16 volume."""
EQUAL_GOAL = 0.999
"""Share of voxels within 1 HU of MONAI's."""
PROGRAM = Path(__file__)
LIBRARIES = ("prect", "monai", "torch", "numpy", "SimpleITK", "nibabel", "isal")


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    arm: str
    file: str
    round: int
    decode_s: float
    resample_s: float
    cpu_s: float
    peak_bytes: int
    """Beyond what the process held when the clock started."""
    volume_bytes: int
    """The decoded volume as int16."""

    @property
    def total_s(self) -> float:
        return self.decode_s + self.resample_s


# What the processes do


def monai_arm() -> Callable[[Path, Clock], int]:
    """MONAI's chain; returns the voxels of the source."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from monai.transforms.intensity.array import ScaleIntensityRange  # noqa: PLC0415

    torch.set_num_threads(1)
    load, spacing = monai_chain()
    scale = ScaleIntensityRange(a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True)

    def run(path: Path, clock: Clock) -> int:
        with clock.stage("decode"):
            image = load(path)
        voxels = int(np.prod(image.shape))
        with clock.stage("resample"):
            scale(spacing(image))
        return voxels

    return run


def monai_chain() -> tuple[Callable[[Path], Any], Callable[[Any], Any]]:
    """LoadImage; and EnsureChannelFirst, Orientation and Spacing, one after the other."""
    from monai.transforms.compose import Compose  # noqa: PLC0415
    from monai.transforms.io.array import LoadImage  # noqa: PLC0415
    from monai.transforms.spatial.array import Orientation, Spacing  # noqa: PLC0415
    from monai.transforms.utility.array import EnsureChannelFirst  # noqa: PLC0415

    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    resample = Compose(
        [
            EnsureChannelFirst(),
            Orientation("RAS", labels=labels),
            Spacing((SPACING,) * 3, mode="bilinear"),
        ]
    )
    return LoadImage(image_only=True), resample


def prect_arm(body_crop: bool) -> Callable[[Path, Clock], int]:
    """prect's reader and harmonisation; returns the voxels of the source."""
    from prect.ingest.harmonise import harmonise  # noqa: PLC0415
    from prect.ingest.readers import READERS  # noqa: PLC0415
    from prect.ingest.settings import Harmonisation  # noqa: PLC0415
    from prect.manifests.limits import Limits  # noqa: PLC0415

    settings = Harmonisation(spacing_mm=(SPACING, SPACING, SPACING), body_crop=body_crop)
    reader = READERS["nifti"]

    def run(path: Path, clock: Clock) -> int:
        with clock.stage("decode"):
            volume = reader.read(reader.read_header([path], Limits()))
        with clock.stage("resample"):
            harmonise(volume, settings)
        return volume.voxels.size

    return run


ARMS: dict[str, Callable[[], Callable[[Path, Clock], int]]] = {
    "MONAI": monai_arm,
    "prect": lambda: prect_arm(body_crop=False),
    "prect, body crop": lambda: prect_arm(body_crop=True),
}


def measure(arm: str, path: Path, first: Path) -> dict[str, float]:
    """One pass over ``path`` in this process, after one over the small volume ``first``."""
    run = ARMS[arm]()
    run(first, Clock())
    path.read_bytes()
    before, _ = memory()
    clock = Clock()
    cpu = time.process_time()
    voxels = run(path, clock)
    cpu = time.process_time() - cpu
    _, peak = memory()
    return {
        "decode_s": clock.seconds["decode"],
        "resample_s": clock.seconds["resample"],
        "cpu_s": cpu,
        "peak_bytes": peak - before,
        "volume_bytes": 2 * voxels,
    }


def compare(path: Path) -> dict[str, float]:
    """prect's interpolation on MONAI's own grid, in HU before the intensities are scaled.

    Compared is what lies between the outermost voxel centres of the source (MONAI repeats the
    border further out) and what no padding touches (MONAI interpolates over it). Both are
    clipped to what prect stores.
    """
    import numpy as np  # noqa: PLC0415

    from prect.ingest.readers import READERS  # noqa: PLC0415
    from prect.ingest.resample import PADDING_HU, resampler  # noqa: PLC0415
    from prect.manifests.limits import Limits  # noqa: PLC0415
    from prect.units import HU_MAX, HU_MIN  # noqa: PLC0415

    load, spacing = monai_chain()
    image = spacing(load(path))
    theirs = np.clip(image.numpy()[0].transpose(2, 1, 0), HU_MIN, HU_MAX)
    reader = READERS["nifti"]
    volume = reader.read(reader.read_header([path], Limits()))
    transform = np.linalg.inv(volume.affine) @ image.affine.numpy().astype(np.float64)
    z, y, x = theirs.shape
    whole = (slice(0, z, 1), slice(0, y, 1), slice(0, x, 1))
    ours = resampler(volume.voxels, transform, (z, y, x)).sample(whole)
    padding = (volume.voxels <= PADDING_HU).astype(np.int16) * np.int16(1000)
    compared = resampler(padding, transform, (z, y, x)).sample(whole) == 0
    k, j, i = np.ogrid[:z, :y, :x]
    for row, size in zip(transform, volume.shape, strict=False):
        position = row[0] * i + row[1] * j + row[2] * k + row[3]
        compared &= (position >= 0) & (position <= size - 1)
    difference = np.abs(ours[compared] - theirs[compared])
    return {
        "compared": float(compared.mean()),
        "within_1_hu": float((difference <= 1).mean()),
        "largest_hu": float(difference.max()),
    }


# What the program does


def run_all(files: Sequence[Path], repeat: int, first: Path, console: Console) -> list[Run]:
    runs = []
    for file in files:
        for number in range(repeat):
            for arm in ARMS:
                with console.status(f"{file.name}, round {number + 1} of {repeat}, {arm}"):
                    result = in_process(PROGRAM, "--arm", arm, "--first", first, "--files", file)
                runs.append(
                    Run(
                        arm=arm,
                        file=file.name,
                        round=number,
                        decode_s=result["decode_s"],
                        resample_s=result["resample_s"],
                        cpu_s=result["cpu_s"],
                        peak_bytes=int(result["peak_bytes"]),
                        volume_bytes=int(result["volume_bytes"]),
                    )
                )
    return runs


def of(runs: Sequence[Run], arm: str, file: str) -> list[Run]:
    return [run for run in runs if (run.arm, run.file) == (arm, file)]


def ratios(runs: Sequence[Run], arm: str, file: str, figure: str) -> list[float]:
    """MONAI's figure over that of ``arm``, round by round."""
    pairs = zip(of(runs, "MONAI", file), of(runs, arm, file), strict=True)
    return [getattr(theirs, figure) / getattr(ours, figure) for theirs, ours in pairs]


def memory_share(runs: Sequence[Run]) -> float:
    """Median of peak memory over the decoded volume."""
    return median(run.peak_bytes / run.volume_bytes for run in runs)


def speed_table(runs: Sequence[Run], files: Sequence[str]) -> Table:
    table = Table(title=f"one volume to {SPACING} mm: seconds, and ratios", box=box.SIMPLE_HEAD)
    table.add_column("arm", no_wrap=True)
    for name in ("decode", "resample", "MONAI / own", "CPU", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for file in files:
        table.add_row(f"[bold]{file}[/bold]")
        for arm in ARMS:
            mine = of(runs, arm, file)
            table.add_row(
                f"  {arm}",
                f"{median(run.decode_s for run in mine):.2f}",
                f"{median(run.resample_s for run in mine):.2f}",
                spread(ratios(runs, arm, file, "total_s")),
                f"{median(ratios(runs, arm, file, 'cpu_s')):.2f}",
                f"{memory_share(mine):.1f}",
            )
    table.caption = (
        "Medians (lowest-highest). MONAI / own: wall seconds, round by round; CPU: the same of "
        "CPU seconds; memory: peak over the decoded int16 volume."
    )
    return table


def equality_table(equality: dict[str, dict[str, float]]) -> Table:
    table = Table(title="prect's interpolation on MONAI's grid", box=box.SIMPLE_HEAD)
    for name in ("file", "voxels compared", "within 1 HU", "largest difference, HU"):
        table.add_column(name, justify="left" if name == "file" else "right")
    for file, same in equality.items():
        table.add_row(
            file,
            f"{same['compared']:.1%}",
            f"{same['within_1_hu']:.4%}",
            f"{same['largest_hu']:.2f}",
        )
    return table


def goals_of(runs: Sequence[Run], equality: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """prect without the crop against each goal; the worst file counts."""
    speed = {file: median(ratios(runs, "prect", file, "total_s")) for file in equality}
    memory = {file: memory_share(of(runs, "prect", file)) for file in equality}
    equal = {file: same["within_1_hu"] for file, same in equality.items()}
    slowest, largest = min(speed, key=speed.__getitem__), max(memory, key=memory.__getitem__)
    least = min(equal, key=equal.__getitem__)
    return [
        goal("MONAI's seconds over prect's", slowest, speed[slowest], SPEED_GOAL, most=False),
        goal("peak memory over the volume", largest, memory[largest], MEMORY_GOAL, most=True),
        goal("share within 1 HU of MONAI", least, equal[least], EQUAL_GOAL, most=False),
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--files", type=Path, nargs="+", default=[], help="NIfTI files")
    parser.add_argument("--phantoms", type=int, default=2, help="clinical phantoms to make")
    parser.add_argument("--repeat", type=int, default=3, help="rounds for each file")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--arm", choices=[*ARMS, "compare"], help=argparse.SUPPRESS)
    parser.add_argument("--first", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if len({file.name for file in options.files}) < len(options.files):
        parser.error("two of the files have one name, and names tell them apart in the tables")
    return options


def main() -> None:
    options = arguments()
    if options.arm:
        (path,) = options.files
        result = (
            compare(path) if options.arm == "compare" else measure(options.arm, path, options.first)
        )
        sys.stdout.write(f"\n{json.dumps(result)}\n")
        return
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("making phantoms"):
            made = range(options.phantoms)
            files = [phantom(n, "clinical", folder / f"phantom{n}") for n in made]
            files += options.files
            # Read first by every process, for what is imported or made ready on first use.
            first = phantom(0, "small", folder / "first")
        runs = run_all(files, options.repeat, first, console)
        with console.status("comparing voxels"):
            equality = {
                file.name: in_process(PROGRAM, "--arm", "compare", "--files", file)
                for file in files
            }
    goals = goals_of(runs, equality)
    console.print(speed_table(runs, [file.name for file in files]))
    console.print(equality_table(equality))
    print_goals(goals, console)
    if options.json:
        document = {
            "arms": [asdict(run) for run in runs],
            "equality": equality,
            "goals": goals,
            "machine": machine(LIBRARIES),
        }
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
