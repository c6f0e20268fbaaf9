"""A small volume that every arm can read, and a run of all of them on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from prect.benchmark.arms import arms
from prect.benchmark.boxes import Volume, draw_turns
from prect.benchmark.compare import Runner, compare, runners
from prect.benchmark.inputs import prepare
from prect.workspace import Workspace
from tests.train.conftest import DATASET, toy_volume, write_toy_store


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> list[Volume]:
    """Two stored volumes with their windows and bare voxels; only to be read."""
    folder = tmp_path_factory.mktemp("volumes")
    workspace = Workspace(folder / "workspace")
    found = []
    for number in range(2):
        write_toy_store(workspace, f"case-{number}", f"patient-{number}", toy_volume(number))
        store = workspace.store(DATASET, f"case-{number}")
        found.append(prepare(store, folder, f"volume{number}"))
    return found


@dataclass(frozen=True)
class Compared:
    """What was measured of every arm."""

    runners: dict[str, Runner]
    folder: Path
    """Of the files of the arms."""


def compare_arms(names: Sequence[str], volumes: Sequence[Volume], folder: Path) -> Compared:
    """Run arms by name, one round warm and cold."""
    turns = draw_turns(volumes, 1)
    with runners(names, volumes, folder, lambda _: None) as started:
        compare(started, volumes, turns, turns, lambda _: None)
    return Compared({runner.name: runner for runner in started}, folder)


@pytest.fixture(scope="session")
def compared(volumes: list[Volume], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """All arms, once."""
    return compare_arms(list(arms()), volumes, tmp_path_factory.mktemp("arms"))
