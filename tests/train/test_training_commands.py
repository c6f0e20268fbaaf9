"""The commands around a run, as scripts use them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from prect.cli import app
from prect.errors import CheckpointError, ConfigError
from prect.workspace import Workspace

MakeConfig = Any


@pytest.fixture
def config_file(workspace: Workspace, make_config: MakeConfig) -> str:
    path = workspace.root / "toy.json"
    path.write_text(make_config().model_dump_json())
    return str(path)


def call(workspace: Workspace, *arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--workspace", str(workspace.root)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_train_export_and_replay(workspace: Workspace, config_file: str) -> None:
    options = ("--set", 'data.datasets=["toy"]', "--set", "run.name=mine", "--gpus", "0")
    result = call(workspace, "train", "--config", config_file, *options, "--json")
    summary = json.loads(result.stdout)
    assert (summary["run"], summary["step"]) == ("mine", 4)
    assert "step 4/4" in result.stderr
    assert summary["verdict"] in result.stderr.replace("\n", " ")
    lines = (workspace.run("mine") / "metrics.jsonl").read_text("utf-8").splitlines()
    assert all("step" in json.loads(line) for line in lines)

    target = workspace.root / "weights.safetensors"
    exported = json.loads(call(workspace, "export", "mine", str(target), "--json").stdout)
    assert exported["step"] == 4
    assert len(load_file(target)) == exported["tensors"]
    checkpoint = str(workspace.run("mine") / "checkpoints" / "step-00000002")
    again = call(workspace, "export", checkpoint, str(target), "--force", "--json")
    assert json.loads(again.stdout)["step"] == 2

    dry = call(workspace, "replay", "--run", "mine", "--step", "1", "--dry-run", "--json")
    assert not (workspace.run("mine") / "replay").exists()
    replayed = json.loads(
        call(workspace, "replay", "--run", "mine", "--step", "1", "--json").stdout
    )
    assert len(replayed["samples"]) == 2
    assert json.loads(dry.stdout) == replayed | {"dry_run": True}
    case = replayed["samples"][1]["case"]
    assert f"sample 1: toy/{case}, box from (0 0 0) mm" in dry.stderr.replace("\n", " ")
    assert (workspace.run("mine") / "replay" / "step-00000001.png").stat().st_size > 0


def test_dry_run_plans_and_writes_nothing(workspace: Workspace, config_file: str) -> None:
    result = call(
        workspace, "train", "--config", config_file, "--dry-run", "--json", "--procs", "2",
        "--gpus", "0", "--max-steps", "7", "--no-measure",
    )  # fmt: skip
    plan = json.loads(result.stdout)
    assert plan["config"]["optim"]["max_steps"] == 7
    assert plan["global_batch"] == 4
    assert plan["crops_per_step"] == 4 * (2 + 4)
    assert plan["reading"] == "reading in the training process"
    assert plan["train_volumes"] + plan["heldout_volumes"] == 9
    assert not workspace.runs.exists()


def test_dry_run_counts_parameters_of_the_published_network(workspace: Workspace) -> None:
    result = call(
        workspace, "train", "--preset", "voco-b", "--set", "data.datasets=['toy']",
        "--set", "data.heldout_minimum=2", "--dry-run", "--no-measure", "--json",
        "--gpus", "0",
    )  # fmt: skip
    assert json.loads(result.stdout)["parameters"]["backbone"] == pytest.approx(53.16e6, rel=1e-3)


def test_errors_are_typed(workspace: Workspace, config_file: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean optim\.lr"):
        call(workspace, "train", "--config", config_file, "--set", "optim.lrr=1")
    with pytest.raises(CheckpointError, match="does not exist"):
        call(workspace, "export", "nothing", str(workspace.root / "out.safetensors"))
