"""The trainer from end to end on small stores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from prect.errors import CheckpointError, ConfigError, HopelessError, TrainingError
from prect.train.callbacks import RunStart, Silent
from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.launch import Launch, launch
from prect.train.parallel import Place
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import list_checkpoints
from prect.train.trainer import Trainer
from prect.workspace import Workspace
from tests.train.state.checkpoints import assert_same_state, newest, read_whole

MakeConfig = Any
CPU = Place(torch.device("cpu"))


def run(workspace: Workspace, config: TrainConfig, resume: str = "auto") -> dict[str, Any]:
    return Trainer(config, open_data(workspace, config), CPU, Silent(), resume=resume).run()


def metrics(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    text = (workspace.run(name) / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_run_leaves_metrics_checkpoints_and_summary(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    config = make_config(train={"keep_last": 2, "checkpoint_every": 1})
    summary = run(workspace, config)

    folder = RunFolder(workspace.run("toy"))
    lines = metrics(workspace, "toy")
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "heldout_total" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["step"] for line in evaluations] == [0, 4]
    parts = ("pos", "neg", "reg", "inter_pos", "inter_neg")
    for line in steps:
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), rel=1e-5)
    assert all(0 <= line["wait_share"] <= 1 and line["volumes_per_s"] > 0 for line in steps)
    assert [p.name for p in list_checkpoints(folder.checkpoints)] == [
        "step-00000003",
        "step-00000004",
    ]
    assert summary == json.loads(folder.summary.read_text("utf-8"))
    assert summary["untrained"]["total"] == evaluations[0]["heldout_total"]
    assert summary["heldout"]["rank"] == evaluations[1]["heldout_rank"]
    assert summary["training"] == {k: v for k, v in steps[-1].items() if k != "step"}
    assert folder.read()[0] == config


OBJECTIVES = [
    pytest.param({"name": "voco-v2"}, marks=pytest.mark.slow),
    {"name": "voco-v1", "ema_momentum": 0.5, "ema_momentum_end": 1.0},
]
"""Version 1 has an encoder as teacher; its momentum depends on how much of the run is done."""


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resumed_run_equals_one_that_was_never_stopped(
    workspace: Workspace, make_config: MakeConfig, objective: dict[str, object]
) -> None:
    run(workspace, make_config(run={"name": "whole"}, objective=objective))
    halted = make_config(run={"name": "parts"}, objective=objective)
    trainer = Trainer(halted, open_data(workspace, halted), CPU, _StopAfter(3))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    run(workspace, halted)

    assert_same_state(newest(workspace, "whole"), newest(workspace, "parts"))
    timeless = [
        [
            {k: v for k, v in line.items() if k in ("step", "loss", "lr", "heldout_total")}
            for line in m
        ]
        for m in (metrics(workspace, "whole"), metrics(workspace, "parts"))
    ]
    assert timeless[0] == timeless[1]


class _StopAfter(Silent):
    def __init__(self, step: int) -> None:
        self.last = step

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        if step == self.last:
            raise KeyboardInterrupt


def test_workers_do_not_change_the_result(workspace: Workspace, make_config: MakeConfig) -> None:
    run(workspace, make_config(run={"name": "none"}))
    run(workspace, make_config(run={"name": "two"}, data={"workers": 2}))
    assert_same_state(newest(workspace, "none"), newest(workspace, "two"))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*", "ignore::FutureWarning:torch.*")
def test_two_processes_equal_one_with_the_same_volumes_a_step(
    workspace: Workspace, make_config: MakeConfig, objective: dict[str, object]
) -> None:
    together = make_config(run={"name": "one"}, data={"batch_size": 2}, objective=objective)
    apart = make_config(run={"name": "two"}, data={"batch_size": 1}, objective=objective)
    one = launch(together, workspace.root, Silent())
    two = launch(apart, workspace.root, Silent(), Launch(procs=2))

    assert two["heldout"]["total"] == pytest.approx(one["heldout"]["total"], rel=1e-3)
    assert two["untrained"] == pytest.approx(one["untrained"], rel=1e-6)
    ours, theirs = newest(workspace, "one"), newest(workspace, "two")
    for name, tensor in ours.objective.items():
        torch.testing.assert_close(theirs.objective[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    losses = [[m["loss"] for m in metrics(workspace, n) if "loss" in m] for n in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_teacher_whose_momentum_has_come_to_one_stands_still(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    """The schedule follows the share of the run that is done: the last step is kept out of it."""
    objective = {"name": "voco-v1", "ema_momentum": 0.0, "ema_momentum_end": 1.0}
    run(workspace, make_config(objective=objective, train={"checkpoint_every": 1}))
    paths = list_checkpoints(workspace.run("toy") / "checkpoints")
    before, last = (read_whole(path).objective for path in paths[-2:])
    kept = [name for name in last if name.startswith("teacher.backbone.")]
    assert kept
    for name in kept:
        torch.testing.assert_close(last[name], before[name], rtol=0, atol=0)
    moved = read_whole(paths[-3]).objective
    assert any(not torch.equal(moved[name], before[name]) for name in kept)


def test_teacher_follows_the_student_at_each_step(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    run(workspace, make_config(objective={"ema_momentum": 0.0}))
    heads = newest(workspace, "toy").objective
    names = [name for name in heads if name.startswith("teacher.")]
    assert names
    for name in names:
        student = heads[name.replace("teacher.projector.", "student.")]
        torch.testing.assert_close(heads[name], student, rtol=0, atol=0)


def test_finished_run_is_left_as_it_is(workspace: Workspace, make_config: MakeConfig) -> None:
    first = run(workspace, make_config())
    before = metrics(workspace, "toy")
    assert run(workspace, make_config()) == first
    assert metrics(workspace, "toy") == before


def test_longer_run_goes_on(workspace: Workspace, make_config: MakeConfig) -> None:
    run(workspace, make_config())
    seen = _Start()
    longer = make_config(optim={"lr": 1e-3, "warmup_steps": 2, "max_steps": 6})
    Trainer(longer, open_data(workspace, longer), CPU, seen).run()
    assert seen.start is not None
    assert seen.start.step == 4
    assert newest(workspace, "toy").step == 6


class _Start(Silent):
    start: RunStart | None = None

    def on_start(self, start: RunStart) -> None:
        self.start = start


def test_other_settings_are_refused_by_name(workspace: Workspace, make_config: MakeConfig) -> None:
    run(workspace, make_config())
    with pytest.raises(CheckpointError, match=r"crops\.random \(2 -> 3\)"):
        run(workspace, make_config(crops={"random": 3}))
    with pytest.raises(CheckpointError, match="2 volumes a step, this one would have 1"):
        run(workspace, make_config(data={"batch_size": 1}))


def test_existing_folder_is_refused_with_never(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    run(workspace, make_config(), resume="never")
    with pytest.raises(TrainingError, match="--resume auto"):
        run(workspace, make_config(), resume="never")


def test_missing_checkpoint_is_refused(workspace: Workspace, make_config: MakeConfig) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        run(workspace, make_config(), resume=str(workspace.root / "no.pt"))
    assert not workspace.run("toy").exists()


def test_loss_that_is_not_finite_stops_the_run_at_its_step(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    config = make_config(optim={"max_steps": 9}, train={"max_skipped": 3, "checkpoint_every": 1})
    poison = _Poison()
    trainer = Trainer(config, open_data(workspace, config), CPU, poison)
    poison.trainer = trainer
    with pytest.raises(HopelessError, match=r"step 5: 3 steps in a row .* not finite"):
        trainer.run()
    assert newest(workspace, "toy").step == 2
    journal = RunFolder(workspace.run("toy")).journal(9)
    assert [(i["step"], i["kind"], i["ranks"]) for i in journal.incidents.read()] == [
        (step, "skipped", [0]) for step in (3, 4, 5)
    ]
    state = journal.read()
    assert (state["state"], state["step"]) == ("failed", 5)
    assert "not finite" in state["reason"]


class _Poison(Silent):
    trainer: Trainer

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        if step == 2:
            with torch.no_grad():
                self.trainer.parameters[0].fill_(torch.nan)


def test_run_without_data_sets_names_those_there_are(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    with pytest.raises(ConfigError, match=r"data\.datasets is empty"):
        run(workspace, make_config(data={"datasets": []}))


def test_more_gpus_than_present_are_refused(workspace: Workspace, make_config: MakeConfig) -> None:
    with pytest.raises(TrainingError, match="64 GPUs are asked for"):
        launch(make_config(), workspace.root, Silent(), Launch(gpus=64))
