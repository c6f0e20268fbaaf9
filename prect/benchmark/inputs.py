"""What is read: phantoms or stores that are there, prepared for every arm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from prect.benchmark.boxes import SEED, WINDOW, Volume
from prect.benchmark.measuring import BenchmarkError
from prect.cache.convert import convert
from prect.cache.plan import usable_jobs
from prect.cache.profile import load_profile
from prect.cache.reader import StoreReader
from prect.cache.writer import StoreWriter
from prect.errors import ConfigError
from prect.ingest.survey import survey
from prect.manifests.stores import CacheRow, load_cache_table, write_cache_rows
from prect.phantom import generate
from prect.workspace import Workspace

DATASET = "phantoms"
PROFILE = "iso1.5"
Step = Callable[[str], None]
"""Told what is done next."""


def make_phantoms(
    folder: Path, cases: int, size: Literal["small", "clinical"], on_step: Step
) -> tuple[Workspace, list[CacheRow]]:
    """Synthetic patients, ingested and stored with prect's own functions.

    Returns:
        The workspace with a manifest of the stores, and its rows.

    Raises:
        BenchmarkError: a phantom was not stored.
    """
    on_step(f"making {cases} {size} phantoms")
    generate(folder / "source", cases=cases, seed=SEED, size=size, format="nifti")
    workspace = Workspace(folder / "workspace")
    on_step("ingesting the phantoms")
    survey(DATASET, folder / "source", workspace, salt="benchmark")
    rows = []
    for job in usable_jobs(DATASET, workspace, load_profile(PROFILE)):
        on_step(f"storing {job.source.source}")
        row = convert(job)
        if not isinstance(row, CacheRow):
            raise BenchmarkError(f"{job.source.source} was not stored: {row.reason}")
        rows.append(row)
    if len(rows) != cases:
        raise BenchmarkError(f"ingest took {len(rows)} of {cases} phantoms")
    write_cache_rows(workspace.cache_manifest(DATASET), rows)
    return workspace, rows


def choose_stores(workspace: Workspace, dataset: str, count: int) -> list[Path]:
    """Stores of a data set, spread evenly over its manifest.

    Raises:
        ManifestError: it has no stores.
    """
    table = load_cache_table(workspace, [dataset])
    rows = np.unique(np.linspace(0, len(table) - 1, count).astype(int))
    return [table.store(workspace, int(row)) for row in rows]


def prepare(store: Path, folder: Path, name: str) -> Volume:
    """Write what the arms need beside a store of HU: its window, and its bare voxels.

    The voxels are read by zarr-python, so that prect's reader is not compared with itself.

    Raises:
        ConfigError: the store does not hold all HU.
        StoreError: there is no readable store.
    """
    import zarr  # noqa: PLC0415

    with StoreReader(store) as reader:
        attributes = reader.attributes
    intensity, finest = attributes.intensity, attributes.levels[0]
    if intensity.kind != "hu" or intensity.step != 1:
        raise ConfigError(
            f"{store} holds {intensity}; the benchmark compares HU, take stores of --intensity hu"
        )
    voxels = np.asarray(zarr.open_array(store / finest.path, mode="r")[...], dtype=np.int16)
    raw = folder / f"{name}.int16"
    voxels.tofile(raw)
    profile = load_profile(PROFILE).model_copy(update={"window_hu": WINDOW}).stored_as("window")
    window = folder / f"{name}.window.ome.zarr"
    with StoreWriter(window) as writer:
        levels = writer.write_levels(
            voxels,
            finest.spacing,
            finest.chunk,
            profile.codec,
            len(attributes.levels),
            profile.intensity,
            coarse_codec=profile.coarse_codec,
        )
        told = {"intensity": profile.intensity, "levels": levels}
        writer.commit(attributes.model_copy(update=told))
    return Volume(
        name=name,
        hu=store,
        window=window,
        raw=raw,
        level=finest.path,
        shape=finest.shape,
        chunk=finest.chunk,
        offset=attributes.body_box.offset,
        full_shape=attributes.body_box.full_shape,
    )
