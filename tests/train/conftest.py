"""A small workspace of written stores, and settings small enough for a step in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from prect.cache.format import BodyBox, Codec, SourceAttributes, StoreAttributes
from prect.cache.intensity import Intensity
from prect.cache.rows import stored_row
from prect.cache.writer import StoreWriter
from prect.manifests.stores import CacheRow, write_cache_rows
from prect.train.config import TrainConfig, parse_config
from prect.workspace import Workspace

DATASET = "toy"
LEVELS = 3
MakeConfig = Callable[..., TrainConfig]


def toy_volume(seed: int) -> NDArray[np.int16]:
    """(z, y, x) HU: a soft ellipse whose brightness tells the place, with some noise."""
    rng = np.random.default_rng(seed)
    nz, ny, nx = rng.integers(30, 50, 3)
    z, y, x = np.meshgrid(
        *(np.linspace(-1, 1, n) for n in (nz, ny, nx)), indexing="ij", sparse=True
    )
    inside = (x / 0.9) ** 2 + (y / 0.8) ** 2 < 1
    tissue = 40 + 60 * np.sin(3 * x + rng.normal(0, 0.1)) * np.cos(2 * y) + 40 * z
    noise = rng.normal(0, 10, (nz, ny, nx))
    return np.where(inside, tissue + noise, -1000).astype(np.int16)


def write_toy_store(
    workspace: Workspace, case: str, patient: str, voxels: NDArray[np.int16]
) -> CacheRow:
    spacing = (2.0, 1.5, 1.5)
    identity = tuple(tuple(float(v) for v in row) for row in np.eye(4))
    nz, ny, nx = voxels.shape
    with StoreWriter(workspace.store(DATASET, case)) as writer:
        levels = writer.write_levels(voxels, spacing, (16, 16, 16), Codec(), LEVELS)
        writer.commit(
            StoreAttributes(
                format_version=1,
                dataset=DATASET,
                case=case,
                patient=patient,
                series=case,
                made_from="m",
                source_digest=case,
                profile={},
                profile_digest="p",
                affine=identity,  # type: ignore[arg-type]
                source=SourceAttributes(
                    format="nifti",
                    bytes=1,
                    shape=(nx, ny, nz),
                    spacing=spacing,
                    orientation="RAS",
                ),
                body_box=BodyBox(offset=(0, 0, 0), full_shape=(nz, ny, nx)),
                hu_percentiles={},
                intensity=Intensity(),
                levels=levels,
                software={},
            )
        )
    return stored_row(workspace.store(DATASET, case))


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Nine stored volumes of eight patients; only to be read."""
    workspace = Workspace(tmp_path_factory.mktemp("stores"))
    rows = [
        write_toy_store(workspace, f"case-{i}", f"patient-{i % 8}", toy_volume(i)) for i in range(9)
    ]
    write_cache_rows(workspace.cache_manifest(DATASET), rows)
    return workspace


@pytest.fixture
def workspace(stores: Workspace, tmp_path: Path) -> Workspace:
    """A workspace of its own for each test, with the stores of the session."""
    own = Workspace(tmp_path / "workspace")
    own.root.mkdir()
    (own.root / "cache").symlink_to(stores.cache)
    (own.root / "manifests").symlink_to(stores.manifests)
    return own


@pytest.fixture
def make_config() -> MakeConfig:
    """Small settings; keyword arguments are sections to change."""

    def make(**sections: dict[str, object]) -> TrainConfig:
        settings: dict[str, dict[str, object]] = {
            "run": {"name": "toy", "seed": 3},
            "data": {"datasets": [DATASET], "workers": 0, "heldout_minimum": 2},
            "view": {"grid": [32, 32, 16]},
            "crops": {"base_grid": [2, 2, 1], "size": [16, 16, 16]},
            "network": {"name": "segresnet", "feature_size": 8, "blocks": [1, 1]},
            "objective": {"projector_width": 16},
            "optim": {"lr": 1e-3, "warmup_steps": 2, "max_steps": 4},
            "train": {
                "log_every": 1,
                "eval_views": 4,
                "checkpoint_every": 2,
                "threads": 1,
                "log_to": [],
            },
        }
        for name, values in sections.items():
            settings[name] = settings.get(name, {}) | values
        return parse_config(settings)

    return make
