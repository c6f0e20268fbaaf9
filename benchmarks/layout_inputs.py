"""The volumes that layout.py measures on: phantoms that it makes, files that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layout_reads import BOXES
from layout_sweep import Grid
from measuring import SEED, BenchmarkError

from prect.cache.profile import Profile
from prect.cache.writer import pool
from prect.errors import PrectError
from prect.ingest.harmonise import harmonise
from prect.ingest.readers import FORMAT_OF, READERS
from prect.ingest.volume import Volume, spacing_of
from prect.manifests.limits import Limits
from prect.phantom import make_case


@dataclass(frozen=True)
class Source:
    """A volume before it is brought onto a grid."""

    name: str
    volume: Volume


def read_source(path: Path) -> Source:
    """A NIfTI, MetaImage or NRRD file, or a folder of one DICOM series.

    Raises:
        BenchmarkError: it is none of these, or no usable CT volume.
    """
    paths, format = [path], "dicom"
    if path.is_dir():
        paths = sorted(member for member in path.iterdir() if member.is_file())
    else:
        found = [name for suffix, name in FORMAT_OF.items() if path.name.endswith(suffix)]
        if not found:
            raise BenchmarkError(
                f"{path} is no folder, and its suffix none of {', '.join(FORMAT_OF)}"
            )
        format = found[0]
    reader = READERS[format]
    try:
        return Source(path.name, reader.read(reader.read_header(paths, Limits())))
    except PrectError as error:
        raise BenchmarkError(f"{path}: {error}") from error


def make_phantom(index: int, size: Literal["small", "clinical"]) -> Source:
    case = make_case(SEED, index, size)
    return Source(f"phantom {index}", Volume(case.hu, case.affine, "nifti", source_digest=""))


def to_grid(source: Source, profile: Profile) -> Grid:
    """The volume as build-cache would store it."""
    harmonised = harmonise(source.volume, profile.harmonisation)
    levels = [harmonised.voxels]
    while len(levels) < profile.storage.levels:
        levels.append(pool(levels[-1]))
    return Grid(source.name, profile.name, tuple(levels), harmonised.spacing, harmonised.full_shape)


def remarks(source: Source, grid: Grid) -> list[str]:
    """What makes a volume less than typical for what is measured here."""
    found = []
    shape = grid.levels[0].shape
    for view, sizes in BOXES.items():
        if short := [f"{n} of {s}" for n, s in zip(shape, sizes, strict=True) if n < s]:
            found.append(
                f"{grid.name} on {grid.profile} is smaller than the {view} "
                f"({', '.join(short)} voxels along an axis): its reads hold padding"
            )
    coarse = [float(mm) for mm in spacing_of(source.volume.affine)]
    if max(coarse) > 2 * max(grid.spacing):
        found.append(
            f"{grid.name} on {grid.profile} is interpolated from voxels of {max(coarse):g} mm: "
            "neighbours are alike, and it shrinks more than a scan of its size would"
        )
    return found
