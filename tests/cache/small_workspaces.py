"""Workspaces with a few tiny stored volumes, made in a second and without Dask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prect.cache.build import build, make_plan
from prect.cache.convert import convert
from prect.cache.profile import load_profile
from prect.ingest.survey import survey
from prect.manifests.sources import SourceRow, read_sources
from prect.manifests.stores import CacheRow
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.volumes import body_volume, write_nifti


def small_workspace(folder: Path, datasets: Mapping[str, Mapping[str, int]]) -> Workspace:
    """Ingest and store made-up volumes.

    Args:
        folder: holds a folder of foreign files for each data set, and the folder ``workspace``.
        datasets: for each data set the names of its files and their seeds; the same seed gives
            the same voxels, so such files are copies.
    """
    workspace = Workspace(folder / "workspace")
    for dataset, files in datasets.items():
        (folder / dataset).mkdir()
        for name, seed in files.items():
            write_nifti(folder / dataset / f"{name}.nii.gz", body_volume(seed=seed))
        survey(dataset, folder / dataset, workspace, salt=SALT)
    for dataset in datasets:
        store_all(workspace, dataset)
    return workspace


def store_all(workspace: Workspace, dataset: str) -> None:
    """What build-cache does, in this process."""
    profile = load_profile("iso1.5")
    for job in make_plan(dataset, workspace, profile).jobs():
        assert isinstance(convert(job), CacheRow)
    build(make_plan(dataset, workspace, profile), client=None)


def source_rows(workspace: Workspace, dataset: str) -> dict[str, SourceRow]:
    """Rows by the name of the file, without its suffix."""
    rows = read_sources(workspace.sources(dataset))
    return {row.source.removesuffix(".nii.gz"): row for row in rows}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but lock files, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }
