"""The arms of the trainer benchmark: the same steps by prect's trainer, and by a bare loop.

The bare loop is what one writes who wants nothing but the steps: the same batches from the same
loader with the same workers, cropping, both passes, clipping, AdamW, the teacher's step and the
schedule. It logs nothing, saves nothing, agrees on nothing, and heeds no signal. Both end with the
same weights, bit for bit on a CPU.

Run as a program it does one task in a process of its own; see `measuring.serve`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measuring import serve
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from trainer_turns import InTurn

from prect.train.batch import assemble, join
from prect.train.callbacks import Silent
from prect.train.config import TrainConfig, load_config
from prect.train.data import open_data
from prect.train.launch import Launch, launch
from prect.train.learner import build_learner
from prect.train.loader import start_server, train_loader
from prect.train.optimizer import build_optimizer
from prect.train.parallel import Place, backend_of, compile_encoder, distribute
from prect.train.precision import autocast, set_tf32
from prect.train.run_folder import RunFolder
from prect.train.schedule import learning_rate
from prect.train.state.checkpoint import list_checkpoints, load_checkpoint
from prect.workspace import Workspace

PROGRAM = Path(__file__)
TRAINER, BARE, AGAIN = "trainer", "bare", "bare again"


@dataclass(frozen=True)
class Ask:
    """What all tasks are asked for."""

    preset: str
    settings: Mapping[str, Any]
    """By dotted path, over the preset."""
    workspace: str
    procs: int = 1
    """Processes, on a CPU."""
    gpus: int = 0

    @property
    def config(self) -> TrainConfig:
        """The settings of the run."""
        given = [f"{path}={json.dumps(value)}" for path, value in self.settings.items()]
        return load_config(self.preset, None, given)

    @property
    def root(self) -> Path:
        """Of the workspace."""
        return Path(self.workspace)


class TrainerInTurn(InTurn, Silent):
    """A callback of the trainer; the bare loop calls `on_step` just so."""


def in_turn(ask: Ask, port: int, first: int, block: int) -> TrainerInTurn:
    """What gives a process its turns."""
    settle = torch.cuda.synchronize if ask.gpus else None
    return TrainerInTurn(port, first, block, settle)


def by_trainer(*, ask: dict[str, Any], port: int, first: int, block: int) -> dict[str, Any]:
    """All steps of a run by the trainer, in turns with another process."""
    wanted = Ask(**ask)
    how = Launch(gpus=wanted.gpus, procs=wanted.procs)
    summary = launch(wanted.config, wanted.root, in_turn(wanted, port, first, block), how)
    saved = load_checkpoint(list_checkpoints(RunFolder(Path(summary["folder"])).checkpoints)[-1])
    return {"weights": digest(saved.tensors("backbone."))}


def by_bare_loop(*, ask: dict[str, Any], port: int, first: int, block: int) -> dict[str, Any]:
    """The same steps without the trainer."""
    wanted = Ask(**ask)
    if wanted.procs == 1:
        return bare_loop(wanted, in_turn(wanted, port, first, block))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=wanted.procs,
        run_id="bare",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    results: dict[int, dict[str, Any]] = elastic_launch(settings, bare_loop)(
        wanted, in_turn(wanted, port, first, block)
    )
    return results[0]


def bare_loop(ask: Ask, turns: InTurn) -> dict[str, Any]:
    """One process's part of the bare loop."""
    config = ask.config
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = Place(torch.device("cuda" if ask.gpus else "cpu"), rank, world)
    torch.set_num_threads(config.train.threads)
    set_tf32(config.train.tf32)
    start_server()
    if world > 1:
        dist.init_process_group(backend_of(place), rank=rank, world_size=world)
    data = open_data(Workspace(ask.root), config)
    learner = build_learner(config).to(place.device)
    passes, steps = config.passes(world), config.optim.max_steps
    if passes > 1:
        learner.pass_at_once(config.data.batch_size * config.crops.per_volume)
    if config.train.compile:
        compile_encoder(learner)
    model = distribute(learner, config, place)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = build_optimizer(config, learner, place.device)
    loader = train_loader(
        data.views(config, "train"),
        config,
        range(steps),
        rank=rank,
        world=world,
        pin_memory=place.on_gpu,
        recycle=True,
    )
    with closing(loader) as batches:
        for step in range(steps):
            parts = []
            for _ in range(passes):
                with torch.no_grad():
                    raw = next(batches).to(place.device)
                    parts.append(assemble(raw, config.view, config.crops))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config.optim)
            with autocast(config, place.device):
                loss = model(join(parts)).loss
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
            optimizer.step()
            learner.objective.after_step((step + 1) / steps)
            if rank == 0:
                turns.on_step(step + 1, None)
    weights = digest(learner.backbone.state_dict())
    if world > 1:
        dist.destroy_process_group()
    return {"weights": weights}


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The same for tensors that are equal bit for bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def run(*, ask: dict[str, Any]) -> dict[str, Any]:
    """A run of the trainer as it is, and the lines that it wrote of its training."""
    wanted = Ask(**ask)
    how = Launch(gpus=wanted.gpus, procs=wanted.procs)
    summary = launch(wanted.config, wanted.root, Silent(), how)
    lines = RunFolder(Path(summary["folder"])).metrics.read()
    return {"lines": [line for line in lines if "wait_share" in line]}


class StopAt(Silent):
    """Sends this process SIGTERM after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        """See the class."""
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def resume(*, ask: dict[str, Any], stops: list[int]) -> dict[str, Any]:
    """A run in one go, and one that is stopped after some steps and goes on; are they equal?

    Compared are all tensors of networks and optimiser in the last checkpoints.
    """
    wanted = Ask(**ask)
    ends = {}
    for name, callbacks in (("whole", [Silent()]), ("parts", [*map(StopAt, stops), Silent()])):
        config = Ask(**ask | {"settings": {**wanted.settings, "run.name": name}}).config
        told = [launch(config, wanted.root, callback) for callback in callbacks]
        saved = load_checkpoint(
            list_checkpoints(RunFolder(Path(told[-1]["folder"])).checkpoints)[-1]
        )
        ends[name] = {n: t for n, t in saved.tensors("").items() if not n.startswith("rng.")}
        halted = [each["step"] for each in told[:-1]]
    whole, parts = ends["whole"], ends["parts"]
    same = [n for n in whole.keys() & parts.keys() if torch.equal(whole[n], parts[n])]
    names = whole.keys() | parts.keys()
    return {
        "steps": config.optim.max_steps,
        "stopped": halted,
        "tensors": len(names),
        "differ": len(names) - len(same),
        "equal": len(same) == len(names),
    }


if __name__ == "__main__":
    serve({"by_trainer": by_trainer, "by_bare_loop": by_bare_loop, "run": run, "resume": resume})
