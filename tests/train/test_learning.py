"""Both objectives learn on phantoms within seconds, and do not when labels are dealt out at random.

The bars are those of benchmarks/learn.py, lower: a network of 40,000 parameters on six patients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prect.train.callbacks import Silent
from prect.train.config import load_config
from prect.train.launch import launch
from prect.workspace import Workspace
from tests.conftest import Built

LARGEST_LOSS_RATIO = {"voco-v1": 0.8, "voco-v2": 0.7}
SMALLEST_TOP1_RATIO = {"voco-v1": 1.25, "voco-v2": 1.3}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "voco-v1": {
        "view.grid": [48, 48, 12],
        "crops.base_grid": [4, 4, 1],
        "crops.size": [12, 12, 12],
        "crops.resize": [8, 8, 8],
        "optim.max_steps": 100,
    },
    "voco-v2": {
        "view.grid": [36, 36, 12],
        "crops.base_grid": [3, 3, 1],
        "crops.size": [12, 12, 12],
        "optim.max_steps": 80,
    },
}
SETTINGS: dict[str, Any] = {
    "data.datasets": ["phantoms"],
    "data.batch_size": 4,
    "data.workers": 0,
    "data.heldout_minimum": 2,
    "network.blocks": [1, 1, 1],
    "objective.projector_width": 64,
    "optim.lr": 1e-3,
    "optim.warmup_steps": 5,
    "train.eval_every": 0,
    "train.eval_views": 48,
    "train.eval_batch": 4,
    "train.checkpoint_every": 1000,
    "train.threads": 1,
}


@pytest.fixture
def place(phantom_built: Built, tmp_path: Path) -> Path:
    """A workspace for runs, with the stores of the session's phantoms."""
    own = Workspace(tmp_path / "workspace")
    own.root.mkdir()
    (own.root / "cache").symlink_to(phantom_built.workspace.cache)
    (own.root / "manifests").symlink_to(phantom_built.workspace.manifests)
    return own.root


def train(place: Path, objective: str, *, shuffled: bool) -> dict[str, Any]:
    settings = {
        **SETTINGS,
        **GEOMETRIES[objective],
        "objective.name": objective,
        "augment.shuffle_labels": shuffled,
    }
    overrides = [f"{path}={json.dumps(value)}" for path, value in settings.items()]
    return launch(load_config("demo", None, overrides), place, Silent())


def clears_the_bar(summary: dict[str, Any], objective: str) -> bool:
    trained, untrained = summary["heldout"], summary["untrained"]
    return bool(
        trained["total"] <= LARGEST_LOSS_RATIO[objective] * untrained["total"]
        and trained["total"] < summary["floor"]["value"]
        and trained["top1"] >= SMALLEST_TOP1_RATIO[objective] * untrained["top1"]
    )


@pytest.mark.parametrize("objective", GEOMETRIES)
def test_it_learns_where_crops_belong(place: Path, objective: str) -> None:
    summary = train(place, objective, shuffled=False)
    assert clears_the_bar(summary, objective), summary["verdict"]
    assert summary["heldout"]["spearman"] > summary["untrained"]["spearman"]
    assert not summary["collapsed"]


@pytest.mark.parametrize("objective", [pytest.param("voco-v1", marks=pytest.mark.slow), "voco-v2"])
def test_it_does_not_learn_from_shuffled_labels(place: Path, objective: str) -> None:
    summary = train(place, objective, shuffled=True)
    assert not clears_the_bar(summary, objective), summary["verdict"]
    assert not summary["learned"]
    assert [each["cause"] for each in summary["advice"]] == ["shuffled labels"]
