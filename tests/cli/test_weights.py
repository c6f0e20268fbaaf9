"""`prect export` and `prect weights`, as scripts use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from prect.cli import app
from prect.errors import CheckpointError
from prect.train.config import load_config
from prect.train.learner import build_learner
from tests.train.state.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one run, of which there is a checkpoint."""
    root = tmp_path_factory.mktemp("workspace")
    config = load_config("demo", overrides=["run.name=mine"])
    learner = build_learner(config)
    write_checkpoint(
        root / "runs" / "mine" / "checkpoints",
        config,
        backbone=learner.backbone.state_dict(),
        objective=learner.objective.state_dict(),
    )
    return root


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def export(workspace: Path, target: Path, *options: str) -> dict[str, Any]:
    result = call("export", "mine", target, "--workspace", workspace, "--json", *options)
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_exports_say_what_they_hold(workspace: Path, tmp_path: Path) -> None:
    target = tmp_path / "w.safetensors"
    assert export(workspace, target, "--dry-run", "--everything")["dry_run"]
    assert not target.exists()
    backbone = export(workspace, target)
    assert backbone["tensors"] == len(load_file(target))
    everything = export(workspace, target, "--force", "--everything")
    assert everything["everything"]
    assert everything["tensors"] == len(load_file(target)) > backbone["tensors"]

    result = call("weights", target, "--json")
    held = json.loads(result.stdout)
    assert held["network"] == "demo (segresnet, feature size 8, blocks 1 1 1 1)"
    assert (held["format"], held["prefix"]) == ("safetensors", "backbone.")
    assert len(held["taken"]) == backbone["tensors"]
    assert held["left"] == []
    assert len(held["unexpected"]) == everything["tensors"] - backbone["tensors"]
    assert held["parameters"] == backbone["parameters"]
    assert held["embedding"] == 8 * 15
    assert (held["metadata"]["run"], held["metadata"]["step"]) == ("mine", "7")
    for text in ("demo (segresnet", "says: step", "objective.student", "prefix"):
        assert text in result.stderr


def test_checkpoint_and_foreign_file_are_told(workspace: Path, tmp_path: Path) -> None:
    (checkpoint,) = (workspace / "runs" / "mine" / "checkpoints").iterdir()
    held = json.loads(call("weights", checkpoint, "--json").stdout)
    assert (held["format"], held["metadata"]["step"]) == ("checkpoint", "7")
    torch.save({"fc.weight": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no encoder that prect knows"):
        call("weights", tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        call("weights", tmp_path / "missing.pt")
