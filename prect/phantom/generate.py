"""A folder of synthetic patients, with a table of the truth about them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prect.errors import ConfigError, WorkspaceError
from prect.phantom.case import PhantomCase, make_case, sample_parameters
from prect.phantom.patient import SIZES, Size

CollectionFormat = Literal["nifti", "dicom", "mha", "nrrd", "mixed"]
CaseFormat = Literal["nifti", "dicom", "mha", "nrrd"]

# The order in which ``mixed`` goes through the formats.
_CYCLE: tuple[CaseFormat, ...] = ("nifti", "dicom", "mha", "nrrd")
COLLECTION_FORMATS: tuple[CollectionFormat, ...] = (*_CYCLE, "mixed")

TABLE_NAME = "phantom.json"
_CASE_FILE = re.compile(r"case_\d{4,}(\.nii\.gz|\.mha|\.nrrd)?")
_LABELS_FILE = re.compile(r"case_\d{4,}_labels\.nii\.gz")


@dataclass(frozen=True)
class CaseRecord:
    """What was written for one case."""

    name: str
    file: str
    """File, or folder for DICOM, relative to the collection."""
    format: CaseFormat
    labels: str | None
    """Name of the label file in the folder of masks, or None."""
    case: PhantomCase

    def to_json(self) -> dict[str, Any]:
        """Row of the collection's table."""
        grid = self.case.grid
        return {
            "name": self.name,
            "file": self.file,
            "format": self.format,
            "labels": self.labels,
            "shape_ijk": list(grid.shape),
            "spacing_ijk_mm": list(grid.spacing),
            "affine_ras": self.case.affine.tolist(),
            "organs": {name: asdict(mark) for name, mark in self.case.landmarks.items()},
            "parameters": self.case.parameters.to_json(),
        }


def generate(
    directory: Path,
    *,
    cases: int,
    seed: int = 0,
    size: Size = "small",
    format: CollectionFormat = "nifti",
    masks: Path | None = None,
    overwrite: bool = False,
    on_case: Callable[[CaseRecord], None] | None = None,
) -> Path:
    """Write synthetic patients and ``phantom.json``, the table of what they are.

    Case i depends on the seed, the size and i only. The table is written first without the truth
    about each case and at the end with it, so that an interrupted run can be told from a whole one.

    Args:
        directory: folder of the collection; made if need be.
        cases: how many, at least 1.
        seed: 0 to 2**64 - 1.
        size: ``small`` or ``clinical``.
        format: format of all cases, or ``mixed`` to go through the four formats case by case.
        masks: folder that receives ``case_0000_labels.nii.gz`` and so on; not inside ``directory``.
        overwrite: replace the cases of an earlier collection in these folders. Files that are
            not listed in its table are left alone.
        on_case: called after each case is written, with its voxels still in memory.

    Returns:
        Path of the table.

    Raises:
        ConfigError: a number or name is out of range, or ``masks`` lies inside ``directory``.
        WorkspaceError: a folder is not empty and ``overwrite`` is false, or what is there is not
            an earlier collection.
    """
    _check(directory, cases, size, format, masks)
    sample_parameters(seed, 0, size)
    planned = [_plan(index, format, masks is not None) for index in range(cases)]
    _prepare(directory, masks, overwrite)
    table = directory / TABLE_NAME
    header: dict[str, Any] = {"seed": seed, "size": size, "format": format, "complete": False}
    _write_table(table, {**header, "cases": planned})
    rows = []
    for record in _write_cases(directory, planned, seed, size, masks):
        rows.append(record.to_json())
        if on_case is not None:
            on_case(record)
    _write_table(table, {**header, "complete": True, "cases": rows})
    return table


def _check(
    directory: Path, cases: int, size: Size, format: CollectionFormat, masks: Path | None
) -> None:
    if cases < 1:
        raise ConfigError(f"cases is {cases}, expected at least 1")
    if size not in SIZES:
        raise ConfigError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
    if format not in COLLECTION_FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(COLLECTION_FORMATS)}")
    if masks is not None and masks.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(
            f"the folder of masks {masks} lies inside {directory}, where label maps would be taken "
            "for scans; give a folder outside it"
        )


def _plan(index: int, format: CollectionFormat, with_labels: bool) -> dict[str, Any]:
    """Names of the files of one case, before it is made."""
    from prect.phantom.write import file_name  # noqa: PLC0415 - loads SimpleITK and nibabel

    name = f"case_{index:04d}"
    chosen = _CYCLE[index % len(_CYCLE)] if format == "mixed" else format
    return {
        "name": name,
        "file": file_name(name, chosen),
        "format": chosen,
        "labels": f"{name}_labels.nii.gz" if with_labels else None,
    }


def _write_cases(
    directory: Path, planned: list[dict[str, Any]], seed: int, size: Size, masks: Path | None
) -> Iterator[CaseRecord]:
    from prect.phantom.write import write_case, write_labels  # noqa: PLC0415 - as in _plan

    for index, plan in enumerate(planned):
        case = make_case(seed, index, size)
        write_case(case, directory / case.name, plan["format"])
        if masks is not None:
            write_labels(case, masks / plan["labels"])
        yield CaseRecord(**plan, case=case)


def _prepare(directory: Path, masks: Path | None, overwrite: bool) -> None:
    """Make the folders, or clear an earlier collection out of them."""
    folders = [directory] if masks is None else [directory, masks]
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise WorkspaceError(f"{folder} is not a folder; name another one")
        if folder.is_dir() and any(folder.iterdir()) and not overwrite:
            raise WorkspaceError(
                f"{folder} is not empty; choose an empty folder, or pass overwrite to replace "
                "an earlier phantom collection"
            )
    if directory.is_dir() and any(directory.iterdir()):
        _clear(directory, masks)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def _clear(directory: Path, masks: Path | None) -> None:
    """Delete what the table in ``directory`` lists, and nothing else."""
    table = directory / TABLE_NAME
    try:
        rows = json.loads(table.read_text(encoding="utf-8"))["cases"]
        files = [str(row["file"]) for row in rows]
        labels = [str(row["labels"]) for row in rows if row["labels"] is not None]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(
            f"{directory} is not empty and holds no readable {TABLE_NAME}, so it is not a phantom "
            "collection that may be overwritten; choose another folder"
        ) from error
    # A table could have been edited: only names that this module gives are deleted.
    for name in filter(_CASE_FILE.fullmatch, files):
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            for slice_file in path.glob("[0-9]*.dcm"):
                slice_file.unlink()
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    if masks is not None:
        for name in filter(_LABELS_FILE.fullmatch, labels):
            (masks / name).unlink(missing_ok=True)
    table.unlink()


def _write_table(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
