"""The scans that build.py measures on: phantoms that it makes, files that it is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any, Literal

from measuring import SEED, BenchmarkError, phantom, result_of, serve, start_task, task

PROGRAM = Path(__file__)
Size = Literal["small", "clinical"]
LONG_SPACING_MM = 1.0
"""Between the slices of the long volume."""


@dataclass(frozen=True)
class Scan:
    """One volume, ingested."""

    name: str
    real: bool
    recipes: tuple[str, ...]
    """Recipes that its part of the body belongs to; a file of unknown content to all."""
    reference: Path
    """What MONAI reads: the file itself, or a NIfTI copy where MONAI has no reader."""
    case: str
    """Id in the data set ``scans``."""
    source_bytes: int


@dataclass(frozen=True)
class Collection:
    """Scans in a workspace of their own."""

    workspace: Path
    scans: tuple[Scan, ...]
    first: Path
    """A small phantom that every process reads before its clock starts."""
    first_case: str
    """Its id in the data set ``first``."""


def collect(
    folder: Path, first: Path, files: Sequence[Path], phantoms: Sequence[int], size: Size
) -> Collection:
    """Make phantoms, link files beside them, and ingest both.

    Args:
        folder: new, for all that is made.
        first: a small phantom.
        files: real CT: NIfTI, MetaImage or NRRD files, or folders of one DICOM series each.
        phantoms: numbers of those to make.
        size: of the phantoms.

    Raises:
        BenchmarkError: prect does not take a file, or takes several volumes from it.
    """
    source, workspace = folder / "source", folder / "workspace"
    source.mkdir(parents=True)
    for index in phantoms:
        phantom(index, size, source / f"phantom{index}")
    for file in files:
        _link(file, source)
    ingest(workspace, first=first, scans=source)
    names = [f"phantom{index}.nii.gz" for index in phantoms]
    regions = [_recipes(index, size) for index in phantoms]
    scans = [
        _scan(workspace, source / name, recipes, real=False)
        for name, recipes in zip(names, regions, strict=True)
    ]
    scans += [
        _scan(workspace, source / file.name, ("abdomen", "chest"), real=True) for file in files
    ]
    return Collection(workspace, tuple(scans), first, only_case(workspace, "first"))


def ingest(workspace: Path, **sources: Path) -> None:
    """Ingest folders, or single files, as data sets.

    Args:
        workspace: folder of the manifests.
        sources: folder or file by name of the data set.
    """
    folders = {}
    for name, source in sources.items():
        folders[name] = source
        if source.is_file():
            folders[name] = workspace.with_name(f"{workspace.name}-{name}")
            folders[name].mkdir(parents=True)
            (folders[name] / source.name).symlink_to(source)
    task(PROGRAM, "survey", workspace=workspace, folders={n: str(f) for n, f in folders.items()})


def _link(file: Path, folder: Path) -> None:
    """Link a file or a folder into another folder, with the file that a detached header names."""
    from prect.ingest.readers import DETACHED  # noqa: PLC0415

    file = file.resolve()
    together = [file]
    if file.suffix in DETACHED:
        together = sorted(file.parent.glob(f"{file.stem}.*"))
    for each in together:
        (folder / each.name).symlink_to(each)


def _recipes(index: int, size: Size) -> tuple[str, ...]:
    from prect.phantom import sample_parameters  # noqa: PLC0415

    region = sample_parameters(SEED, index, size).scan.region
    return ("abdomen", "chest") if region == "trunk" else (region,)


def _scan(workspace: Path, path: Path, recipes: tuple[str, ...], *, real: bool) -> Scan:
    from prect.manifests.sources import Verdict, read_sources  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    rows = [
        row
        for row in read_sources(Workspace(workspace).sources("scans"))
        if row.source == path.name or row.source.startswith(f"{path.name}/")
    ]
    taken = [row for row in rows if Verdict(row.verdict).usable]
    if len(taken) != 1:
        verdicts = "; ".join(f"{row.source}: {row.verdict} {row.reason}" for row in rows)
        raise BenchmarkError(
            f"one usable volume is expected of {path.name}, not {len(taken)} ({verdicts})"
        )
    (row,) = taken
    reference = path
    if row.format in ("metaimage", "nrrd"):
        copies = workspace.with_name("copies")
        reference = copies / f"{path.name}.nii.gz"
        task(PROGRAM, "copy", source=path, path=reference)
    elif row.format == "dicom":
        reference = path.parent / row.source
    return Scan(path.name, real, recipes, reference, row.case, row.bytes)


def only_case(workspace: Path, dataset: str) -> str:
    """Id of the only volume of a data set.

    Raises:
        BenchmarkError: there is another number of them.
    """
    (case,) = cases(workspace, dataset, 1)
    return case


def cases(workspace: Path, dataset: str, count: int) -> list[str]:
    """Ids of the usable volumes of a data set.

    Raises:
        BenchmarkError: there are not ``count`` of them.
    """
    from prect.manifests.sources import read_source_table, usable  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    table = read_source_table(Workspace(workspace).sources(dataset), ["case", "verdict"])
    found: list[str] = table["case"].to_numpy()[usable(table)].tolist()
    if len(found) != count:
        raise BenchmarkError(f"ingest takes {len(found)} of {count} volumes of {dataset}")
    return found


def survey(workspace: str, folders: dict[str, str]) -> dict[str, Any]:
    """Ingest folders by the names of their data sets."""
    from prect.cluster import Workers  # noqa: PLC0415
    from prect.ingest.survey import survey as ingested  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    with Workers(os.cpu_count() or 1) as workers:
        return {
            name: ingested(
                name, Path(folder), Workspace(workspace), salt="benchmark", workers=workers
            ).usable
            for name, folder in folders.items()
        }


# Many volumes


def many(folder: Path, workspace: Path, volumes: int, size: Size) -> None:
    """A data set ``many`` of so many volumes: a few phantoms of like size, over and over.

    Ingest would find the copies. They are there for build-cache, which does the same with a
    copy as with any other volume, and takes them from a manifest that this function writes.
    """
    distinct = min(volumes, 8)
    source = folder / "distinct"
    source.mkdir(parents=True)
    indices = list(islice(_of_one_size(size), distinct))
    cores = os.cpu_count() or 1
    parts = [indices[n::cores] for n in range(cores) if indices[n::cores]]
    running = [
        start_task(PROGRAM, "phantoms", folder=source, indices=part, size=size) for part in parts
    ]
    for process in running:
        result_of(process)
    ingest(workspace, distinct=source)
    task(PROGRAM, "repeat", workspace=workspace, folder=folder / "many", volumes=volumes)


def _of_one_size(size: Size) -> Iterator[int]:
    """Numbers of phantoms; workers of volumes of one size wait little at the end of a build."""
    from prect.phantom import sample_parameters  # noqa: PLC0415

    for index in count(1000):  # others than the rest of the program makes
        i, j, k = sample_parameters(SEED, index, size).scan.grid.shape
        if size == "small" or 200 <= i * j * k / 512**2 <= 300:
            yield index


def phantoms(folder: str, indices: list[int], size: Size) -> dict[str, Any]:
    """Write phantoms."""
    for index in indices:
        phantom(index, size, Path(folder) / f"phantom{index}")
    return {"written": len(indices)}


def repeat(workspace: str, folder: str, volumes: int) -> dict[str, Any]:
    """Write the manifest of ``many`` from that of ``distinct``, and links to its files."""
    from prect.manifests.cards import generic_card, write_card  # noqa: PLC0415
    from prect.manifests.sources import read_sources, to_table, write_sources  # noqa: PLC0415
    from prect.workspace import Workspace  # noqa: PLC0415

    place, links = Workspace(workspace), Path(folder)
    links.mkdir()
    rows = []
    for number, row in zip(range(volumes), cycle(read_sources(place.sources("distinct")))):
        link = links / f"{number:04d}.nii.gz"
        link.symlink_to(Path(row.root) / row.source)
        again = replace(row, dataset="many", case=f"{number:016x}", root=str(links))
        rows.append(replace(again, source=link.name, item=link.name))
    write_sources(place.sources("many"), to_table(rows))
    write_card(place.card("many"), generic_card("many"))
    return {"rows": len(rows)}


# A long volume


def long_volume(
    stem: str, slices: int, file_format: Literal["nifti", "dicom"], oblique: bool
) -> dict[str, Any]:
    """Write a phantom that goes on for ``slices`` slices of 512 x 512.

    Its slices are those of a clinical phantom there and back again, each with noise of its
    own, so that no two are the same and it compresses as CT does.

    Args:
        stem: path without suffix.
        slices: 1 mm apart.
        file_format: of the file.
        oblique: turn the volume by 4.3 degrees about the axis from left to right.
    """
    import numpy as np  # noqa: PLC0415

    from prect.phantom import make_case  # noqa: PLC0415
    from prect.phantom.grid import EXACT_ANGLES, rotation_about  # noqa: PLC0415
    from prect.phantom.write import write_case  # noqa: PLC0415

    case = make_case(SEED, 1, "clinical")
    scan = case.parameters.scan
    depth = len(case.hu)
    hu = np.empty((slices, *case.hu.shape[1:]), dtype=np.int16)
    rng = np.random.default_rng(SEED)
    for k, plane in enumerate(hu):
        noise = np.rint(rng.normal(0, 6, plane.shape)).astype(np.int16)
        away = k % (2 * depth)
        np.clip(case.hu[min(away, 2 * depth - 1 - away)] + noise, -1024, 3071, out=plane)
    i, j, _ = scan.grid.spacing
    turn = rotation_about(0, *EXACT_ANGLES[int(oblique)])
    grid = replace(
        scan.grid,
        shape=(*scan.grid.shape[:2], slices),
        spacing=(i, j, LONG_SPACING_MM),
        direction=tuple(map(tuple, (turn @ np.array(scan.grid.direction)).tolist())),
    )
    parameters = replace(case.parameters, scan=replace(scan, grid=grid))
    path = write_case(replace(case, parameters=parameters, hu=hu), Path(stem), file_format)
    return {"path": str(path), "shape": grid.shape, "spacing_mm": grid.spacing}


def copy(source: str, path: str) -> dict[str, Any]:
    """Write a file that ITK reads as NIfTI, for MONAI."""
    import SimpleITK as sitk  # noqa: PLC0415

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.ReadImage(source), path)
    return {"path": path}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "survey": survey,
    "phantoms": phantoms,
    "repeat": repeat,
    "long_volume": long_volume,
    "copy": copy,
}

if __name__ == "__main__":
    serve(TASKS)
