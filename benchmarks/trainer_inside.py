"""Where the seconds of a step of the trainer go, taken inside of it, and what checkpoints cost.

A run has its parts wrapped in clocks: those that any training loop has (waiting, crops, both
passes, clipping, AdamW, the teacher) and those that are the trainer's own. What neither has is the
rest: Python between them. A checkpoint is held against ``torch.save`` of the same tensors in the
training thread, the usual way.

Run as a program it does one task in a process of its own; see `measuring.serve`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import serve
from trainer_arms import Ask

from prect.train import trainer
from prect.train.callbacks import Silent
from prect.train.data import open_data
from prect.train.guards.guard import Guard
from prect.train.learner import build_learner
from prect.train.loader import start_server
from prect.train.optimizer import build_optimizer
from prect.train.parallel import Place
from prect.train.precision import scaler_of
from prect.train.report import reporter as reporting
from prect.train.report.journal import Journal
from prect.train.report.lines import LineLog
from prect.train.state.checkpoint import Record, load_checkpoint, name_of, software_versions
from prect.train.state.run_state import RunState
from prect.train.state.saving import Saver, Team
from prect.workspace import Workspace

PROGRAM = Path(__file__)
WAITING = "waiting for data"
ANY_LOOP = (
    *(WAITING, "crops", "learning rate", "forward", "backward"),
    *("clipping", "AdamW", "teacher"),
)
"""Parts that a bare loop has, too."""
OWN = (
    *("agreeing on the step", "following the loss", "summing up figures", "a line of figures"),
    *("record of a checkpoint", "copy of a checkpoint"),
)
"""The trainer's own."""
OF_A_LINE = ("means", "times", "writing lines", "state.json", "sinks")
"""Parts of a line of figures."""


class Clocks:
    """Seconds of every call of what is wrapped, by name."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, list[float]] = defaultdict(list)

    def around(self, owner: Any, attribute: str, name: str) -> None:
        """Take the time of calls of a function or method from now on."""
        call: Callable[..., Any] = getattr(owner, attribute)

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self.calls[name].append(time.perf_counter() - began)

        setattr(owner, attribute, timed)

    def around_items(self, owner: Any, attribute: str, name: str) -> None:
        """The same of each item of the generators that a function makes."""
        make: Callable[..., Generator[Any]] = getattr(owner, attribute)

        def timed(*arguments: Any, **named: Any) -> Generator[Any]:
            items = make(*arguments, **named)
            try:
                while True:
                    began = time.perf_counter()
                    item = next(items, None)
                    self.calls[name].append(time.perf_counter() - began)
                    if item is None:
                        return
                    yield item
                    del item
            finally:
                items.close()

        setattr(owner, attribute, timed)


class _Between(Silent):
    """Notes time and calls at the first and the last of some steps."""

    def __init__(self, clocks: Clocks, first: int, last: int) -> None:
        self.clocks, self.first, self.last = clocks, first, last
        self.seconds = 0.0
        self.sums: dict[str, float] = {}

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        """See the class."""
        if step == self.first:
            self.clocks.calls.clear()
            self.seconds = time.perf_counter()
        elif step == self.last:
            self.seconds = time.perf_counter() - self.seconds
            self.sums = {name: sum(calls) for name, calls in self.clocks.calls.items()}


def parts(*, ask: dict[str, Any], first: int) -> dict[str, Any]:
    """Seconds a step of each part of the trainer.

    Args:
        ask: an `Ask` of a run on the CPU, where nothing computes on after a call has returned.
        first: steps that are not counted.
    """
    wanted = Ask(**ask)
    config = wanted.config
    last = config.optim.max_steps
    clocks = Clocks()
    between = _Between(clocks, first, last)
    start_server()
    data = open_data(Workspace(wanted.root), config)
    clocks.around_items(trainer, "train_loader", WAITING)
    runs = trainer.Trainer(config, data, Place(torch.device("cpu")), between)
    for owner, attribute, name in (
        (trainer, "assemble", "crops"),
        (trainer, "learning_rate", "learning rate"),
        (runs, "model", "forward"),
        (torch.autograd, "backward", "backward"),
        (trainer, "clip_gradients", "clipping"),
        (runs.optimizer, "zero_grad", "AdamW"),
        (runs.optimizer, "step", "AdamW"),
        (runs.learner.objective, "after_step", "teacher"),
        (trainer, "agree", "agreeing on the step"),
        (runs.guard, "follow", "following the loss"),
        (runs.window, "add", "summing up figures"),
        (runs.reporter, "line", "a line of figures"),
        (runs.state, "tensors", "record of a checkpoint"),
        (runs.state, "record", "record of a checkpoint"),
        (runs.saver, "begin", "copy of a checkpoint"),
        (runs.window, "means", "means"),
        (runs.window, "timing", "times"),
        (LineLog, "write", "writing lines"),
        (Journal, "be", "state.json"),
        (reporting, "write_all", "sinks"),
    ):
        clocks.around(owner, attribute, name)
    runs.run()
    counted = last - first
    return {
        "steps": counted,
        "step_s": between.seconds / counted,
        "parts": {
            name: between.sums.get(name, 0.0) / counted for name in (*ANY_LOOP, *OWN, *OF_A_LINE)
        },
    }


def checkpoints(*, ask: dict[str, Any], saves: int, folder: str) -> dict[str, Any]:
    """Seconds of saving and restoring the state of a run, by prect and the usual way in turns.

    Files lie in the page cache when they are read.

    Args:
        ask: an `Ask`; only networks and optimiser matter.
        saves: of each.
        folder: to write to.
    """
    wanted = Ask(**ask)
    config = wanted.config
    torch.set_num_threads(config.train.threads)
    device = torch.device("cuda" if wanted.gpus else "cpu")
    learner = build_learner(config).to(device)
    optimizer = build_optimizer(config, learner, device)
    team, scaler = Team(), scaler_of(config, device)
    state = RunState(learner, optimizer, scaler, Guard(0.0), team, device)
    own, usual = Path(folder) / "own", Path(folder) / "usual.pt"
    saver = Saver(own, team, keep_last=1, pinned=device.type == "cuda")
    found: defaultdict[str, list[float]] = defaultdict(list)

    def took(name: str, work: Callable[[], Any]) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found[name].append(time.perf_counter() - began)
        return result

    def save_own(step: int) -> None:
        record = _record(config.model_dump(mode="json"), step)
        took("stall_s", lambda: saver.begin(state.tensors(), record))
        saved = saver.wait()
        if saved is None or saved.error is not None:
            raise OSError(f"no checkpoint: {saved.error if saved else 'nothing was written'}")
        found["commit_s"].append(saved.seconds)

    def save_usual(_: int) -> None:
        everything = {"model": learner.state_dict(), "optimizer": optimizer.state_dict()}
        took("usual_stall_s", lambda: torch.save(everything, usual))

    def restore_usual() -> None:
        everything = torch.load(usual, weights_only=True, map_location=device)
        learner.load_state_dict(everything["model"])
        optimizer.load_state_dict(everything["optimizer"])

    for step in range(1, saves + 1):
        both = [save_own, save_usual]
        for save in both if step % 2 else reversed(both):
            save(step)
    path = own / name_of(saves)
    for _ in range(saves):
        took("restore_s", lambda: state.restore(load_checkpoint(path)))
        took("usual_restore_s", restore_usual)
    size = sum(file.stat().st_size for file in path.iterdir())
    return {**found, "bytes": size, "usual_bytes": usual.stat().st_size}


def _record(config: dict[str, Any], step: int) -> Record:
    return Record(
        step=step,
        config=config,
        manifest_digest="",
        sources={},
        global_batch=1,
        world=1,
        untrained={},
        guard=Guard(0.0).state(),
        scaler={},
        versions=software_versions(),
    )


if __name__ == "__main__":
    serve({"parts": parts, "checkpoints": checkpoints})
