"""`network.weights`: a run begins with the weights of a file, and goes on with its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prect.cli import app
from prect.errors import CheckpointError
from prect.train.callbacks import Silent
from prect.train.data import open_data
from prect.train.launch import Launch, launch
from prect.train.learner import build_learner
from prect.train.networks import build_encoder
from prect.train.parallel import Place
from prect.train.trainer import Trainer
from prect.workspace import Workspace

MakeConfig = Any
CPU = Place(torch.device("cpu"))


@pytest.fixture
def weights(tmp_path: Path, make_config: MakeConfig) -> Path:
    """An encoder like that of the toy settings, with weights of another seed."""
    torch.manual_seed(99)
    state = build_encoder(make_config().network).state_dict()
    path = tmp_path / "weights.safetensors"
    save_file({f"module.{name}": tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_only_a_new_run_takes_the_weights(
    workspace: Workspace, make_config: MakeConfig, weights: Path
) -> None:
    config = make_config(network={"weights": str(weights)})
    wanted = load_file(weights)
    data = open_data(workspace, config)
    trainer = Trainer(config, data, CPU, Silent())
    for name, tensor in trainer.learner.backbone.state_dict().items():
        assert torch.equal(tensor, wanted[f"module.{name}"]), name
    assert trainer.run()["weights"] == str(weights)

    weights.unlink()  # a run that goes on needs the file no more
    again = Trainer(config, data, CPU, Silent())
    for name, tensor in again.learner.state_dict().items():
        assert torch.equal(tensor, trainer.learner.state_dict()[name]), name


def test_teacher_starts_from_the_weights_too(make_config: MakeConfig, weights: Path) -> None:
    config = make_config(network={"weights": str(weights)}, objective={"name": "voco-v1"})
    learner = build_learner(config, pretrained=True)
    wanted = {name.removeprefix("module."): t for name, t in load_file(weights).items()}
    found = {
        name: tensor
        for name, tensor in learner.objective.state_dict().items()
        if "teacher" in name and any(name.endswith(key) for key in wanted)
    }
    assert len(found) == len(wanted)
    for name, tensor in wanted.items():
        (copy,) = (t for key, t in found.items() if key.endswith(f".{name}"))
        assert torch.equal(copy, tensor), name


def test_plan_tells_what_a_run_begins_with(
    workspace: Workspace, make_config: MakeConfig, weights: Path
) -> None:
    file = workspace.root / "toy.json"
    file.write_text(make_config(network={"weights": str(weights)}).model_dump_json())
    command = ["train", "--config", str(file), "--dry-run", "--no-measure", "--gpus", "0", "--json"]
    result = CliRunner().invoke(app, [*command, "--workspace", str(workspace.root)])
    assert result.exit_code == 0, result.exception
    said = json.loads(result.stdout)["weights"]
    count = len(load_file(weights))
    assert said.startswith(f"{weights}: {count} of {count} tensors of segresnet, feature size 8")
    assert "begins with" in result.stderr


@pytest.mark.parametrize("procs", [1, 2])
def test_wrong_weights_stop_a_run_before_it_begins(
    workspace: Workspace, make_config: MakeConfig, weights: Path, procs: int
) -> None:
    config = make_config(network={"weights": str(weights), "feature_size": 16})
    with pytest.raises(CheckpointError, match="differ in shape"):
        launch(config, workspace.root, Silent(), Launch(procs=procs))
    assert not workspace.run("toy").exists()
