"""Label maps beside the volumes: which file belongs to a case, and its labels on a view's grid.

Case ids are hashes, so a file is found by the name of the case's source, which the source
manifest keeps: ``case_0003.mha`` has its labels in ``case_0003_labels.nii.gz`` or the like.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from prect.errors import ConfigError
from prect.manifests.sources import read_source_table, usable
from prect.train.probes.volumes import ProbeVolume
from prect.workspace import Workspace

_IMAGE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".dcm")
_ENDINGS = (".nii.gz", ".nii")
_SUFFIXES = ("_labels", "_label", "_seg", "_mask", "")

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class LabelFiles:
    """Label files of a workspace's cases."""

    folder: Path
    files: Mapping[str, Path]
    """By ``dataset/case``."""
    unmapped: tuple[str, ...]
    """Sources of the cases without a file, as ``dataset/source``."""


def find_labels(folder: Path, workspace: Workspace, cases: Iterable[tuple[str, str]]) -> LabelFiles:
    """The label file of each case.

    A source ``a/case_0003.mha`` of data set D is looked for as ``case_0003`` with ``_labels``,
    ``_label``, ``_seg``, ``_mask`` or nothing behind it, as ``.nii.gz`` or ``.nii``, in the
    folder's ``D/a``, ``D``, ``a`` and in the folder itself; the first that exists is taken.

    Args:
        folder: where label maps lie.
        workspace: whose source manifests name the files.
        cases: data set and case.

    Raises:
        ConfigError: the folder does not exist, or one file would belong to two cases.
        ManifestError: a data set has no source manifest.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"the labels folder {folder} does not exist; give a folder of NIfTI files"
        )
    sources: dict[str, dict[str, str]] = {}
    files: dict[str, Path] = {}
    unmapped, owner = [], dict[Path, str]()
    for dataset, case in cases:
        if dataset not in sources:
            sources[dataset] = _sources(workspace, dataset)
        source = sources[dataset].get(case, case)
        path = next((p for p in candidates(folder, dataset, source) if p.is_file()), None)
        if path is None:
            unmapped.append(f"{dataset}/{source}")
            continue
        if path in owner:
            raise ConfigError(
                f"{path} would hold the labels of {owner[path]} and of {dataset}/{source}; keep "
                "the labels in the same sub-folders as the sources"
            )
        owner[path] = f"{dataset}/{source}"
        files[f"{dataset}/{case}"] = path
    return LabelFiles(folder, files, tuple(unmapped))


def candidates(folder: Path, dataset: str, source: str) -> Iterator[Path]:
    """Where the labels of a source may lie, the likeliest first."""
    relative = PurePosixPath(source)
    stem = relative.name
    for ending in _IMAGE_ENDINGS:
        if stem.lower().endswith(ending):
            stem = stem[: -len(ending)]
            break
    parent = relative.parent
    for place in dict.fromkeys(
        [folder / dataset / parent, folder / dataset, folder / parent, folder]
    ):
        for suffix in _SUFFIXES:
            for ending in _ENDINGS:
                yield place / f"{stem}{suffix}{ending}"


def _sources(workspace: Workspace, dataset: str) -> dict[str, str]:
    """Source path of each case."""
    table = read_source_table(workspace.sources(dataset), ["case", "source", "verdict"])
    used = zip(table["case"].to_pylist(), table["source"].to_pylist(), usable(table), strict=True)
    return {case: source for case, source, taken in used if taken}


def labels_on(volume: ProbeVolume, path: Path) -> Labels:
    """The labels of a file on the grid of a volume, by nearest neighbour; 0 outside of the file.

    Negative values, which some tools write where a voxel is to be ignored, are background too.

    Both grids are brought together in RAS mm through their affines, so the file may have any
    index order, spacing and angle.

    Returns:
        (X, Y, Z) int32.

    Raises:
        ConfigError: the file is no readable three-dimensional NIfTI.
    """
    try:
        image: Any = nib.load(path)
        voxels = np.asarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    except (OSError, EOFError, ValueError, ImageFileError) as error:
        raise ConfigError(f"labels {path} cannot be read as NIfTI: {error}") from error
    voxels = (
        voxels.reshape(voxels.shape[:3]) if voxels.size == np.prod(voxels.shape[:3]) else voxels
    )
    if voxels.ndim != 3:
        raise ConfigError(f"labels {path} have {voxels.ndim} axes, expected 3: one label a voxel")
    x, y, z = volume.image.shape
    labels = resample(voxels, np.linalg.inv(affine) @ volume.affine, (x, y, z))
    return np.maximum(labels, 0)


def resample(
    voxels: NDArray[np.generic], matrix: NDArray[np.float64], shape: tuple[int, int, int]
) -> Labels:
    """Nearest neighbours of a grid's voxels, 0 where there are none.

    Args:
        voxels: (i, j, k) integers, or whole numbers of another type.
        matrix: (4, 4) index on the new grid to index of ``voxels``.
        shape: of the new grid.
    """
    result = np.zeros(shape, dtype=np.int32)
    y, z = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    limits = np.array(voxels.shape)
    # One plane at a time: three indices for each voxel of a whole volume would be many times it.
    for x in range(shape[0]):
        index = [
            np.rint(row[0] * x + row[1] * y + row[2] * z + row[3]).astype(np.int64)
            for row in matrix[:3]
        ]
        inside = np.logical_and.reduce(
            [(i >= 0) & (i < n) for i, n in zip(index, limits, strict=True)]
        )
        taken = voxels[tuple(i[inside] for i in index)]
        result[x][inside] = np.rint(taken).astype(np.int32)
    return result


def only(labels: Labels, values: Iterable[int]) -> Labels:
    """Labels with all values but some set to 0."""
    return np.where(np.isin(labels, list(values)), labels, 0).astype(np.int32)
