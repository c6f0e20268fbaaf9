"""A stored volume given back as a NIfTI file, with the geometry that it has in the store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from prect.cache.reader import StoreReader
from prect.errors import ConfigError, StoreError, WorkspaceError
from prect.manifests.cases import Case, CaseIndex, known_datasets
from prect.manifests.sources import Verdict, read_source_table
from prect.manifests.stores import read_quarantine
from prect.workspace import STORE_SUFFIX, Workspace

_SUFFIXES = (".nii.gz", ".nii")
_SCANNER = 1
"""NIfTI-1 sform and qform code: coordinates of the scanner."""


@dataclass(frozen=True)
class NiftiExport:
    """What is, or would be, written."""

    path: Path
    store: Path
    dataset: str
    case: str
    level: int
    shape: tuple[int, int, int]
    """Voxels, (x, y, z)."""
    spacing: tuple[float, float, float]
    """Millimetres, (x, y, z)."""
    affine: NDArray[np.float64]
    """(4, 4) index (x, y, z) to RAS millimetres."""
    intensity: str
    """What the store keeps of the HU: all of it, or a window, in which case the rest is clipped."""


def find_store(workspace: Workspace, text: str) -> Path:
    """The store that a user means.

    Args:
        workspace: where to look.
        text: a case id, ``DATASET/CASE``, ``DATASET:SOURCE``, the source as ingest names it, or
            the path of a store anywhere.

    Raises:
        ManifestError: no volume, or more than one, is called so.
        StoreError: the volume has no store; says why.
    """
    path = Path(text)
    if path.name.endswith(STORE_SUFFIX) and path.is_dir():
        return path
    case = CaseIndex(workspace, known_datasets(workspace)).one(text)
    store = workspace.store(*case)
    if not store.is_dir():
        raise StoreError(f"{case.name} has no store: {_why_not_stored(workspace, case)}")
    return store


def _why_not_stored(workspace: Workspace, case: Case) -> str:
    path = workspace.sources(case.dataset)
    if not path.exists():
        return "its manifest names it, but it is not there; run: prect verify --rebuild-manifest"
    table = read_source_table(path, ["case", "verdict", "code", "reason"])
    for row in table.filter(pc.equal(table["case"], case.case)).to_pylist():
        if not Verdict(row["verdict"]).usable:
            return f"it is {row['verdict']} ({row['code']}: {row['reason']})"
    for failed in read_quarantine(workspace.quarantine(case.dataset)):
        if failed.case == case.case:
            return f"it is quarantined ({failed.code}: {failed.reason})"
    return f"run: prect build-cache {case.dataset}"


def level_affine(affine: NDArray[np.float64], level: int) -> NDArray[np.float64]:
    """Affine of a pooled level.

    A voxel of level n averages 2**n voxels of level 0 along each axis, so its centre is the mean
    of theirs: the first one lies (2**n - 1) / 2 voxels of level 0 further in.

    Args:
        affine: (4, 4) level-0 index (x, y, z) to RAS millimetres.
        level: 0 is the finest.

    Returns:
        (4, 4) index (x, y, z) of ``level`` to RAS millimetres.
    """
    factor = 2.0**level
    to_finest = np.diag([factor, factor, factor, 1.0])
    to_finest[:3, 3] = (factor - 1) / 2
    pooled: NDArray[np.float64] = affine @ to_finest
    return pooled


def plan_export(store: Path, path: Path, *, level: int = 0, force: bool = False) -> NiftiExport:
    """What `export_nifti` would write; reads no voxel and writes nothing.

    Raises:
        As `export_nifti`, but for voxels that are damaged and a disk that is full.
    """
    _suffix(path)
    if path.exists() and not force:
        raise WorkspaceError(f"{path} exists already; give --force to replace it")
    with StoreReader(store) as reader:
        return _described(reader, path, level)


def export_nifti(store: Path, path: Path, *, level: int = 0, force: bool = False) -> NiftiExport:
    """Write one level of a store as NIfTI-1.

    The file holds int16 HU in the index order (x, y, z) and says millimetres; sform and qform,
    code 1 (scanner), place it where the store does. It appears under its name when it is whole.

    Args:
        store: folder of the store.
        path: file to write, ``.nii`` or ``.nii.gz``.
        level: resolution level, 0 is the finest.
        force: replace a file that is there.

    Raises:
        ConfigError: ``path`` ends otherwise.
        WorkspaceError: ``path`` exists, and ``force`` is not given.
        StoreError: there is no such store or level.
        ChunkError: a chunk is missing or damaged; nothing is written.
        OSError: the file cannot be written; nothing is left of it.
    """
    plan = plan_export(store, path, level=level, force=force)
    with StoreReader(store) as reader:
        voxels = reader.read(level, (0, 0, 0), reader.levels[level].shape)
    # Not copied: NIfTI runs x fastest, as (z, y, x) in C order does.
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), plan.affine, dtype=np.int16)
    image.set_sform(plan.affine, code=_SCANNER)
    image.set_qform(plan.affine, code=_SCANNER)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"prect {plan.dataset}/{plan.case} level {level}"[:79]
    _save(image, path)
    return plan


def _described(reader: StoreReader, path: Path, level: int) -> NiftiExport:
    if not 0 <= level < len(reader.levels):
        raise StoreError(f"{reader.path} has the levels 0 to {len(reader.levels) - 1}, not {level}")
    geometry = reader.levels[level]
    return NiftiExport(
        path=path,
        store=reader.path,
        dataset=reader.dataset,
        case=reader.case,
        level=level,
        shape=(geometry.shape[2], geometry.shape[1], geometry.shape[0]),
        spacing=(geometry.spacing[2], geometry.spacing[1], geometry.spacing[0]),
        affine=level_affine(reader.affine, level),
        intensity=str(reader.attributes.intensity),
    )


def _suffix(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return suffix
    raise ConfigError(f"{path} must be a file name that ends in {' or '.join(_SUFFIXES)}")


def _save(image: nib.Nifti1Image, path: Path) -> None:
    suffix = _suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # nibabel tells the kind of file by its suffix.
    temporary = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}.tmp{suffix}")
    try:
        nib.save(image, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
