"""What goes wrong in a run is said as what it is, and harms nothing that was kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prect.errors import (
    CheckpointError,
    ChunkError,
    ConfigError,
    HopelessError,
    ManifestError,
    StoreError,
    WorkspaceError,
)
from prect.manifests.stores import load_cache_table, read_cache_rows, write_cache_rows
from prect.train.callbacks import Silent
from prect.train.config import TrainConfig, load_config, parse_config
from prect.train.data import open_data
from prect.train.launch import Launch, launch
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import list_checkpoints, load_checkpoint, step_of
from prect.workspace import Workspace
from tests.train.conftest import DATASET

MakeConfig = Any


@pytest.fixture
def own_stores(stores: Workspace, tmp_path: Path) -> Workspace:
    """A workspace whose stores and manifests a test may damage."""
    shutil.copytree(stores.root, tmp_path / "own")
    return Workspace(tmp_path / "own")


def train(workspace: Workspace, config: TrainConfig, **options: Any) -> dict[str, Any]:
    return launch(config, workspace.root, Silent(), Launch(**options))


def damage_all(workspace: Workspace) -> None:
    """Flip a byte in the middle of each shard of each store."""
    for shard in workspace.cache.rglob("c.0.0.0"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 3] ^= 0x40
        shard.write_bytes(bytes(data))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_chunk_ends_the_run_with_its_name(
    own_stores: Workspace, make_config: MakeConfig, workers: int
) -> None:
    config = make_config(data={"workers": workers}, train={"eval_every": 0})
    train(own_stores, config)
    damage_all(own_stores)
    longer = make_config(data={"workers": workers}, optim={"max_steps": 40})
    with pytest.raises(ChunkError, match="checksum") as caught:
        train(own_stores, longer)
    assert caught.value.case.startswith("case-")
    assert any("sample" in note for note in caught.value.__notes__)


@pytest.mark.slow
def test_a_damaged_chunk_is_named_from_several_processes(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    damage_all(own_stores)
    with pytest.raises(HopelessError, match=r"rank \d failed: .*checksum"):
        train(own_stores, make_config(), procs=2, max_restarts=1)


def test_a_manifest_that_does_not_match_its_stores_is_refused(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    path = own_stores.cache_manifest(DATASET)
    rows = read_cache_rows(path)
    write_cache_rows(path, [*rows[1:], type(rows[0])(**{**vars(rows[0]), "source_digest": "x"})])
    with pytest.raises(StoreError, match="built from another source"):
        open_data(own_stores, make_config())
    write_cache_rows(path, [type(row)(**{**vars(row), "profile": "other"}) for row in rows])
    with pytest.raises(StoreError, match="with another profile"):
        open_data(own_stores, make_config())
    write_cache_rows(path, rows)
    shutil.rmtree(own_stores.store(DATASET, rows[0].case))
    with pytest.raises(StoreError, match="no store at"):
        open_data(own_stores, make_config())
    with pytest.raises(ManifestError, match="has no stores"):
        load_cache_table(own_stores, ["nothing"])


def test_a_window_that_the_stores_hold_a_part_of_is_refused(
    own_stores: Workspace, make_config: MakeConfig
) -> None:
    def open_with(low: float, high: float) -> None:
        view = {"grid": [32, 32, 16], "window": [low, high]}
        open_data(own_stores, make_config(view=view))

    path = own_stores.cache_manifest(DATASET)
    rows = read_cache_rows(path)
    part = {"hu_low": -175, "hu_high": 250, "intensity": "window -175..250"}
    write_cache_rows(path, [type(row)(**{**vars(row), **part}) for row in rows])
    open_with(-175, 250)
    open_with(-100, 200)
    for window in ((-1000, 200), (-100, 251)):
        with pytest.raises(ConfigError, match=r"hold -175\.\.250 HU only"):
            open_with(*window)
    write_cache_rows(path, rows)
    open_with(-2000, 5000)


def test_a_flipped_bit_of_a_checkpoint_is_found(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    train(workspace, make_config())
    path = list_checkpoints(RunFolder(workspace.run("toy")).checkpoints)[-1]
    shard = next(path.glob("*.safetensors"))
    sound = shard.read_bytes()
    for position in np.linspace(0, len(sound) - 1, 12).astype(int):
        damaged = bytearray(sound)
        damaged[position] ^= 0x10
        shard.write_bytes(bytes(damaged))
        with pytest.raises(CheckpointError, match="does not match its checksum"):
            load_checkpoint(path)
    shard.write_bytes(sound)
    assert load_checkpoint(path).step == 4


def test_going_back_to_an_older_checkpoint_drops_the_later_ones(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    pace = {"checkpoint_every": 1, "keep_last": 9}
    train(workspace, make_config(train=pace))
    folder = RunFolder(workspace.run("toy"))
    older = list_checkpoints(folder.checkpoints)[1]
    assert step_of(older) == 2
    shorter = make_config(optim={"max_steps": 3}, train=pace | {"keep_last": 1})
    train(workspace, shorter, resume=str(older))
    assert [step_of(path) for path in list_checkpoints(folder.checkpoints)] == [3]


def test_fewer_steps_than_were_done_are_refused(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    train(workspace, make_config())
    with pytest.raises(CheckpointError, match="has done 4 steps already"):
        train(workspace, make_config(optim={"max_steps": 3}))
    assert RunFolder(workspace.run("toy")).read()[0].optim.max_steps == 4


def test_one_run_has_one_trainer(workspace: Workspace, make_config: MakeConfig) -> None:
    with (
        RunFolder(workspace.run("toy")).lock(),
        pytest.raises(WorkspaceError, match="is training in"),
    ):
        train(workspace, make_config())


def test_a_line_of_metrics_is_the_mean_of_all_steps_since_the_last(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    """Evaluations and checkpoints in between take nothing away from it."""
    every = make_config(run={"name": "every"}, optim={"max_steps": 6})
    rare = make_config(
        run={"name": "rare"},
        optim={"max_steps": 6},
        train={"log_every": 6, "eval_every": 4, "checkpoint_every": 5},
    )
    losses = {}
    for config in (every, rare):
        train(workspace, config)
        text = (workspace.run(config.run.name) / "metrics.jsonl").read_text("utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        losses[config.run.name] = [line["loss"] for line in lines if "loss" in line]
    assert losses["rare"] == [pytest.approx(np.mean(losses["every"]), rel=1e-5)]


def test_settings_that_cannot_work_are_refused_before_the_first_step() -> None:
    base = load_config("tiny").model_dump(mode="json")
    with pytest.raises(ConfigError, match="one voxel at the coarsest scale"):
        parse_config(base | {"crops": base["crops"] | {"size": [32, 32, 32]}})
    with pytest.raises(ConfigError, match="finite"):
        load_config("demo", overrides=["optim.clip_norm=inf"])
    easy = load_config("demo", overrides=["data.datasets=one", "run.name=7"])
    assert (easy.data.datasets, easy.run.name) == (("one",), "7")
