"""Runs of several processes: the same samples, the same losses, and one decision for all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from prect.train.callbacks import Silent
from prect.train.config import TrainConfig, load_config
from prect.train.data import open_data
from prect.train.objectives import ObjectiveOutput
from prect.train.parallel import Place
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import list_checkpoints
from prect.train.trainer import Trainer
from prect.workspace import Workspace
from tests.train.state.checkpoints import Stored, assert_same_state, read_whole

MakeConfig = Any
CPU = torch.device("cpu")
STEPS, STOPPED, BAD_STEP = 50, 7, 3
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:torch.*", "ignore::FutureWarning:torch.*"
)


class StopAfter(Silent):
    """Rank 0 is sent SIGTERM after a step, and the others agree one step later."""

    def __init__(self, step: int) -> None:
        self.last = step

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        if step == self.last:
            os.kill(os.getpid(), signal.SIGTERM)


def trained(
    config: TrainConfig,
    root: Path,
    name: str,
    place: Place,
    *,
    hook: Any = None,
    callback: Silent | None = None,
) -> None:
    """Run, and keep the indices that this rank saw."""
    renamed = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    workspace = Workspace(root)
    trainer = Trainer(renamed, open_data(workspace, renamed), place, callback or Silent())
    seen: list[list[int]] = []
    following = trainer._batches

    def watched() -> Any:
        for raw in following():
            seen.append([sample.index for sample in raw.samples])
            yield raw

    trainer._batches = watched  # type: ignore[method-assign]
    if hook is not None:
        trainer.model.register_forward_hook(hook)
    trainer.run()
    (root / f"{name}-seen-{place.rank}.json").write_text(json.dumps(seen))


def poison() -> Any:
    """A hook that makes the loss of one training step not a number."""
    calls = 0

    def hook(module: torch.nn.Module, _: Any, output: ObjectiveOutput) -> ObjectiveOutput | None:
        nonlocal calls
        calls += module.training
        return replace(output, loss=output.loss * torch.nan) if calls == BAD_STEP else None

    return hook


def one_rank(rank: int, root: Path) -> None:
    torch.set_num_threads(1)
    config = load_config(None, root / "config.json")
    short = config.model_copy(update={"optim": config.optim.model_copy(update={"max_steps": 6})})
    for world in (2, 4):
        if rank >= world:
            continue
        address = f"file://{root}/meeting-{world}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
        place = Place(CPU, rank, world)
        trained(config, root, f"world-{world}", place)
        if world == 2:
            trained(short, root, "bad", place, hook=poison() if rank == 1 else None)
            trained(config, root, "parts", place, callback=StopAfter(STOPPED - 1))
            trained(config, root, "parts", place)
            sharded = config.train.model_copy(update={"parallel": "fsdp"})
            sharing = config.model_copy(update={"train": sharded})
            trained(sharing, root, "sharded", place, callback=StopAfter(STOPPED - 1))
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(stores: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Runs of 1, 2 and 4 processes with the same settings, and one with a bad step."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "cache").symlink_to(stores.cache)
    (root / "manifests").symlink_to(stores.manifests)
    asked = {
        "run.name": "ranks",
        "data.datasets": "toy",
        "data.workers": 0,
        "data.heldout_minimum": 2,
        "data.batch_size": 2,
        "data.global_batch": 4,
        "view.grid": [32, 32, 16],
        "crops.base_grid": [2, 2, 1],
        "crops.size": [16, 16, 16],
        "network.name": "segresnet",
        "network.feature_size": 8,
        "network.blocks": [1, 1],
        "objective.projector_width": 16,
        # A teacher that begins as the student sits on the kink of |teacher - student|, where a
        # difference in the last bit turns the gradient.
        "objective.teacher_init": "random",
        "optim.lr": 1e-5,
        "optim.warmup_steps": 2,
        "optim.max_steps": STEPS,
        "train.log_every": 1,
        "train.eval_every": 0,
        "train.eval_views": 4,
        "train.checkpoint_every": STEPS,
        "train.threads": 1,
        "train.log_to": [],
    }
    config = load_config(None, None, [f"{path}={json.dumps(v)}" for path, v in asked.items()])
    (root / "config.json").write_text(config.model_dump_json())
    processes = start_processes(one_rank, (root,), nprocs=4, join=False, start_method="forkserver")
    trained(config, root, "world-1", Place(CPU))
    while not processes.join():
        pass
    trained(config, root, "sharded", Place(CPU))  # what two processes shared, one goes on with
    return Workspace(root)


def losses(runs: Workspace, name: str) -> list[float]:
    lines = RunFolder(runs.run(name)).metrics.read()
    return [line["loss"] for line in lines if "loss" in line]


def samples(runs: Workspace, name: str, world: int, passes: int) -> list[list[int]]:
    """Indices of each step, those of all ranks one after the other."""
    ranks = [json.loads((runs.root / f"{name}-seen-{r}.json").read_text()) for r in range(world)]
    return [
        [
            index
            for seen in ranks
            for part in seen[step * passes : (step + 1) * passes]
            for index in part
        ]
        for step in range(len(ranks[0]) // passes)
    ]


def last(runs: Workspace, name: str) -> Stored:
    return read_whole(list_checkpoints(runs.run(name) / "checkpoints")[-1])


def test_any_number_of_processes_sees_the_same_samples(runs: Workspace) -> None:
    expected = [list(range(4 * step, 4 * step + 4)) for step in range(STEPS)]
    assert samples(runs, "world-1", 1, passes=2) == expected
    assert samples(runs, "world-2", 2, passes=1) == expected
    assert samples(runs, "world-4", 4, passes=1) == expected


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_processes_has_the_same_losses(runs: Workspace, world: int) -> None:
    one, several = losses(runs, "world-1"), losses(runs, f"world-{world}")
    assert len(several) == STEPS
    assert several == pytest.approx(one, rel=1e-3)
    assert several[:10] == pytest.approx(one[:10], rel=2e-5)
    ours, theirs = last(runs, "world-1"), last(runs, f"world-{world}")
    for name, tensor in ours.backbone.items():
        torch.testing.assert_close(theirs.backbone[name], tensor, rtol=1e-2, atol=2e-3, msg=name)


def test_each_rank_writes_its_part_and_its_times(runs: Workspace) -> None:
    (path,) = list_checkpoints(runs.run("world-4") / "checkpoints")
    sizes = [file.stat().st_size for file in sorted(path.glob("shard-*.safetensors"))]
    assert len(sizes) == 4
    assert max(sizes) < 2 * min(sizes)
    for rank in range(4):
        lines = RunFolder(runs.run("world-4")).timing(rank).read()
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        assert all(0 < line["encoder_s"] < line["step_s"] for line in lines)


def test_a_loss_that_is_bad_on_one_rank_is_skipped_by_all(runs: Workspace) -> None:
    folder = RunFolder(runs.run("bad"))
    (incident,) = folder.journal(6).incidents.read()
    assert (incident["step"], incident["kind"], incident["ranks"]) == (BAD_STEP, "skipped", [1])
    lines = [line for line in folder.metrics.read() if "step_s" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert ["loss" in line for line in lines] == [True, True, False, True, True, True]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 1, 1, 1]
    end = last(runs, "bad")
    assert all(tensor.isfinite().all() for tensor in end.backbone.values())
    counts = {float(t) for name, t in end.optimizer.items() if name.endswith(".step")}
    assert counts == {5.0}  # of six steps one was not taken


def test_processes_that_are_stopped_go_on_bit_for_bit(runs: Workspace) -> None:
    assert_same_state(last(runs, "parts"), last(runs, "world-2"))
    assert losses(runs, "parts") == losses(runs, "world-2")


def test_parts_that_processes_shared_are_gone_on_with_by_one(runs: Workspace) -> None:
    several = losses(runs, "sharded")
    assert len(several) == STEPS
    assert several == pytest.approx(losses(runs, "world-1"), rel=2e-3)
    assert several[:STOPPED] == pytest.approx(losses(runs, "world-1")[:STOPPED], rel=2e-5)
