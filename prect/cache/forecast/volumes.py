"""The volumes that a plan has to build, by column: what is known of each without opening it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prect.cache.plan import Plan
from prect.ingest.settings import Harmonisation
from prect.manifests.parquet import stream_batches
from prect.manifests.sources import SOURCES_SCHEMA

_COLUMNS = ["case", "bytes", "shape", "spacing", "orientation"]
_WORLD_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_BATCH = 4096

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Volumes:
    """The volumes to build of one data set; N of them, in the order of the source manifest."""

    dataset: str
    cases: tuple[str, ...]
    source_bytes: Integers
    """(N,)"""
    source_voxels: Integers
    """(N,) of the file."""
    grid_voxels: Integers
    """(N,) of the whole field of view on the grid of the profile; see `grid_shapes`."""

    shapes: Integers
    """(N, 3) voxels of the file, (i, j, k)."""

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def work(self) -> Integers:
        """(N,) voxels that a worker has to do with: those it reads, and those it makes."""
        return self.source_voxels + self.grid_voxels

    @property
    def held(self) -> Integers:
        """(N,) voxels of file or grid, whichever has more: what a worker's memory goes with."""
        return np.maximum(self.source_voxels, self.grid_voxels)


def volumes_to_build(plan: Plan) -> Volumes:
    """What a plan has to build.

    Raises:
        ManifestError: the source manifest has gone since the plan was made.
    """
    table = pa.concat_tables(_rows(plan)).combine_chunks()
    shapes = _triples(table["shape"]).astype(np.int64)
    spacings = _triples(table["spacing"]).astype(np.float64)
    letters = table["orientation"].to_pylist()
    grid = grid_shapes(shapes, spacings, letters, plan.profile.harmonisation)
    return Volumes(
        dataset=plan.dataset,
        cases=tuple(table["case"].to_pylist()),
        source_bytes=table["bytes"].to_numpy(),
        source_voxels=shapes.prod(axis=1),
        grid_voxels=grid.prod(axis=1),
        shapes=shapes,
    )


def _rows(plan: Plan) -> Iterable[pa.Table]:
    yield SOURCES_SCHEMA.empty_table().select(_COLUMNS)
    if plan.todo:
        wanted = pa.array(sorted(plan.todo), pa.string())
        path = plan.workspace.sources(plan.dataset)
        for batch in stream_batches(path, SOURCES_SCHEMA, _COLUMNS, _BATCH):
            yield batch.filter(pc.is_in(batch["case"], wanted))


def _triples(column: pa.ChunkedArray) -> NDArray[np.generic]:
    """(N, 3) from lists of three."""
    flat: NDArray[np.generic] = pc.list_flatten(column).to_numpy()
    return flat.reshape(-1, 3)


def grid_shapes(
    shapes: Integers, spacings: Floats, orientations: Sequence[str], settings: Harmonisation
) -> Integers:
    """Voxels of whole fields of view on the grid of a profile, before the body crop.

    What `prect.ingest.harmonise` makes, from what the source manifest says. Exact where the axes
    of the file are those of the body; the field of view of an oblique volume reaches further than
    its own axes, which is left out here, since the manifest does not tell the angles.

    Args:
        shapes: (N, 3) voxels of the files, (i, j, k).
        spacings: (N, 3) millimetres, (i, j, k).
        orientations: (N,) closest directions of (i, j, k), for example LPS.
        settings: spacing of the grid.

    Returns:
        (N, 3) voxels, (z, y, x).
    """
    axes = np.array([[_WORLD_AXES[a] for a in letters] for letters in orientations], dtype=np.intp)
    lengths = np.empty(shapes.shape)
    np.put_along_axis(lengths, axes.reshape(-1, 3), shapes * spacings, axis=1)
    grid = np.maximum(np.round(lengths / np.array(settings.spacing_mm)), 1)
    voxels: Integers = grid.astype(np.int64)[:, ::-1]
    return voxels
