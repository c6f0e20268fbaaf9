"""``prect train --dry-run`` as people and scripts see it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from prect.cli import app
from prect.cli.forecast import quantity
from prect.workspace import Workspace

MakeConfig = Any


@pytest.fixture
def run(workspace: Workspace, make_config: MakeConfig) -> Any:
    path = workspace.root / "toy.json"
    path.write_text(make_config().model_dump_json())

    def call(*options: str) -> Any:
        command = ["train", "--config", str(path), "--workspace", str(workspace.root), *options]
        result = CliRunner().invoke(app, command, terminal_width=200)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def test_gpus_that_are_not_here_are_planned_for(run: Any, workspace: Workspace) -> None:
    done = run("--dry-run", "--no-measure", "--gpus", "8", "--gpu-model", "L4", "--json")
    plan = json.loads(done.stdout)
    told = plan["forecast"]
    assert (told["device"], told["processes"], told["precision"]) == ("L4", 8, "bfloat16")
    assert told["memory"]["fits"] is True
    assert told["memory"]["available"]["value"] == 24e9
    assert told["course"]["to_go"]["how"] == "assumed"
    assert plan["global_batch"] == 16
    assert plan["steps_per_epoch"] == told["course"]["steps_per_epoch"]["value"] == 1
    text = " ".join(done.stderr.split())
    assert "8 x L4, bfloat16" in text
    assert "this fits into the 24.0 GB of the GPU" in text
    assert "not known: what the loader gives" in text
    assert re.search(r"memory, together . +\d+\.\d GB", text)
    assert not workspace.runs.exists()


def test_what_does_not_fit_has_remedies_that_are_not_taken_yet(run: Any) -> None:
    large = (
        *("--set", "view.grid=[512,512,512]", "--set", "crops.size=[256,256,512]"),
        *("--set", "train.parallel=fsdp"),
    )
    text = run("--dry-run", "--no-measure", "--gpus", "2", "--gpu-model", "T4", *large).stderr
    text = " ".join(text.split())
    assert "this does NOT fit into the 16.0 GB of the GPU" in text
    assert "data.batch_size with the same data.global_batch, or network.crops_at_once=N" in text
    assert "set train.parallel=fsdp" not in text


def test_a_model_alone_means_one_gpu(run: Any) -> None:
    done = run("--dry-run", "--no-measure", "--gpu-model", "V100", "--json")
    told = json.loads(done.stdout)["forecast"]
    assert (told["processes"], told["precision"]) == (1, "float16")


def test_what_the_loader_gives_is_told(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prect.train.forecast.trial.READING_S", 0.1)
    text = " ".join(run("--dry-run", "--gpus", "0", "--procs", "2").stderr.split())
    assert "2 x CPU, float32" in text
    assert re.search(r"the loader gives (only )?\d+\.\d+ (times|of) what the steps need", text)
    assert "not known" not in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--gpu-model", "H100"), "go with --dry-run"),
        (("--no-measure",), "go with --dry-run"),
        (("--dry-run", "--gpus", "0", "--gpu-model", "H100"), "one GPU or more"),
    ],
)
def test_options_that_say_nothing_together_are_refused(
    run: Any, options: tuple[str, ...], reason: str
) -> None:
    done = run(*options)
    assert done.exit_code == 2
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.5e9, "B", "2.5 GB"),
        (43.57e12, "FLOP", "43.6 TFLOP"),
        (0.28341, "s", "0.283 s"),
        (12345.6, "MB/s", "12,346 MB/s"),
        (0.25, "h", "15.0 min"),
        (30.0, "h", "30.0 h"),
        (36.0 * 24, "h", "36.0 days"),
        (6.25, "epochs", "6.25"),
        (250_000, "steps", "250,000"),
    ],
)
def test_quantities_have_units_that_people_read(value: float, unit: str, text: str) -> None:
    assert quantity({"value": value, "unit": unit}) == text
