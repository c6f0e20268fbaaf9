"""What the trainer benchmark measures: runs, their settings, and in which order."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trainer_inside
from measuring import BenchmarkError, scratch, task
from trainer_arms import AGAIN, BARE, PROGRAM, TRAINER
from trainer_turns import KEEP_MEMORY, Player, in_turns

GPU_PRESET = "voco-b"
TASKS = {TRAINER: "by_trainer", BARE: "by_bare_loop", AGAIN: "by_bare_loop"}
WAIT_STEPS, WAIT_WORKERS = 80, 2
SAVES = 5


@dataclass(frozen=True)
class Pace:
    """How the steps of a preset are measured."""

    log_every: int
    """Steps of a line of figures, and of a block: each block has one line, in its middle, so that
    what is written in the background is written in the same turn."""
    first: int
    """Steps that are not counted: memory is fetched, workers start, operations are counted."""
    steps: int
    """Counted steps of each arm in a round."""
    resumed: int
    """Steps of the runs that are stopped and go on."""
    stops: tuple[int, ...]
    """Steps after which they are sent SIGTERM."""
    light: bool = True
    """Whether memory has room for a step of both arms at once, with all that is freed kept."""


PACES = {
    "demo": Pace(log_every=10, first=15, steps=160, resumed=12, stops=(1, 6)),
    "tiny": Pace(log_every=1, first=1, steps=4, resumed=4, stops=(2,), light=False),
    GPU_PRESET: Pace(log_every=10, first=15, steps=80, resumed=0, stops=()),
}


@dataclass(frozen=True)
class Variant:
    """Two arms of a preset, and what is special about them."""

    preset: str
    arms: tuple[str, str] = (TRAINER, BARE)
    procs: int = 1
    gpus: int = 0
    keep: bool = True
    """Whether glibc is told to keep memory, where there is room."""
    counts: bool = True
    """Whether a goal is set for it."""


@dataclass(frozen=True)
class Work:
    """Something to measure."""

    name: str
    kind: str
    """Of the same kind are those that take as long."""
    section: str
    """Of the document, to which the result is added."""
    do: Callable[[], dict[str, Any]]


class Plan:
    """What is measured, on one workspace."""

    def __init__(self, options: argparse.Namespace, workspace: Path, folder: Path) -> None:
        self.options, self.workspace, self.folder = options, workspace, folder
        self._runs = 0

    def ask(self, preset: str, procs: int = 1, gpus: int = 0, **settings: Any) -> dict[str, Any]:
        """An `Ask` of a run of its own name, as plain types; dots are written as ``__``."""
        self._runs += 1
        common = {
            "run.name": f"{preset}-{self._runs}",
            "data.datasets": [self.options.dataset],
            "data.heldout_minimum": 2,
            "train.eval_every": 0,
            "train.eval_views": 2,
            "train.log_every": PACES[preset].log_every if preset in PACES else 10,
            "train.threads": max(1, self.options.threads // procs),
        }
        given = {name.replace("__", "."): value for name, value in settings.items()}
        place = {"workspace": str(self.workspace), "procs": procs, "gpus": gpus}
        return {"preset": preset, "settings": common | given, **place}

    def always(self) -> Iterator[Work]:
        """What is measured in any case, the shortest way to all goals first."""
        wanted = self.options.parts
        for preset in self.options.networks:
            if "overhead" in wanted:
                yield self._turns(Variant(preset), 0)
            if "inside" in wanted:
                yield Work(f"{preset}, inside", "", "inside", partial(self.inside, preset))
            if "wait" in wanted:
                yield self._wait(preset, 0)
        if "checkpoints" in wanted:
            for preset in self.options.checkpoints:
                yield self._checkpoints(preset)
        if "resume" in wanted:
            for preset in self.options.networks:
                yield Work(f"{preset}, resume", "", "resume", partial(self.resume, preset))
        if "gpu" in wanted and self.options.gpu:
            yield self._turns(Variant(GPU_PRESET, gpus=1, counts=False), 0)
            yield self._checkpoints(GPU_PRESET, gpus=1)

    def more(self) -> Iterator[Work]:
        """What is measured if there is time: control, processes, memory as it is, more rounds."""
        first = self.options.networks[0]
        others = [
            Variant(first, procs=2, counts=False),
            Variant(first, keep=False, counts=False),
        ]
        if "overhead" in self.options.parts:
            yield self._turns(Variant(first, (BARE, AGAIN), counts=False), 0)
        for number in range(1, self.options.rounds):
            if "overhead" in self.options.parts:
                for preset in self.options.networks:
                    yield self._turns(Variant(preset), number)
            if "wait" in self.options.parts:
                yield self._wait(first, number)
            if "overhead" in self.options.parts and others and PACES[first].light:
                yield self._turns(others.pop(0), 0)

    def _turns(self, variant: Variant, number: int) -> Work:
        kind = f"{variant.preset}, {' and '.join(variant.arms)}"
        kind += f", {variant.procs} processes" if variant.procs > 1 else ""
        kind += ", GPU" if variant.gpus else ""
        kind += "" if variant.keep else ", memory as it is"
        name = f"{kind}, round {number + 1}"
        return Work(name, kind, "turns", lambda: self.turns(variant) | {"round": number})

    def _wait(self, preset: str, number: int) -> Work:
        name = f"{preset}, waiting for data, round {number + 1}"
        return Work(name, preset, "waits", lambda: self.wait(preset) | {"round": number})

    def _checkpoints(self, preset: str, gpus: int = 0) -> Work:
        name = f"{preset}, checkpoints{', GPU' if gpus else ''}"
        return Work(name, "", "checkpoints", partial(self.checkpoints, preset, gpus))

    # What is measured

    def turns(self, variant: Variant) -> dict[str, Any]:
        """Two arms in turns; both must end with the same weights, where rounding is the same."""
        pace, block = PACES[variant.preset], PACES[variant.preset].log_every
        pairs = -(-(self.options.steps or pace.steps) // block)
        environment = KEEP_MEMORY if variant.keep and pace.light else {}
        more = {"data__global_batch": 2} if variant.gpus else {}
        with ExitStack() as stack:
            players = []
            for arm in variant.arms:
                ask = self.ask(
                    variant.preset,
                    variant.procs,
                    variant.gpus,
                    optim__max_steps=pace.first + pairs * block,
                    **more,
                )
                asked = {"ask": ask, "first": pace.first, "block": block}
                player = Player(PROGRAM, TASKS[arm], environment, **asked)
                players.append(stack.enter_context(player))
                if not pace.light:
                    player.meet()  # its first step is over before the other one begins
            blocks = in_turns(players, pairs)
            weights = {player.finish()["weights"] for player in players}
        if len(weights) > 1 and not variant.gpus:
            raise BenchmarkError(f"{' and '.join(variant.arms)} end with different weights")
        plain = [[asdict(each) for each in arm] for arm in blocks]
        return asdict(variant) | {
            "keep": bool(environment),
            "blocks": plain,
            "same_weights": len(weights) == 1,
        }

    def inside(self, preset: str) -> dict[str, Any]:
        """Parts of the trainer's step."""
        pace = PACES[preset]
        last = pace.first + (self.options.steps or pace.steps)
        ask = self.ask(preset, optim__max_steps=last)
        found = task(trainer_inside.PROGRAM, "parts", ask=ask, first=pace.first)
        return {"preset": preset, **found}

    def wait(self, preset: str) -> dict[str, Any]:
        """Share of the time that is spent waiting for data, line by line, the first left out."""
        every = PACES[preset].log_every
        steps = min(self.options.steps or PACES[preset].steps, WAIT_STEPS)
        more = {"data__workers": WAIT_WORKERS, "optim__max_steps": every + steps}
        lines = task(PROGRAM, "run", ask=self.ask(preset, **more))["lines"][1:]
        shares = [line["wait_share"] for line in lines]
        return {"preset": preset, "workers": WAIT_WORKERS, "shares": shares}

    def checkpoints(self, preset: str, gpus: int) -> dict[str, Any]:
        """Saving and restoring."""
        with scratch(self.folder) as folder:
            asked = {"ask": self.ask(preset, gpus=gpus), "saves": SAVES, "folder": folder}
            found = task(trainer_inside.PROGRAM, "checkpoints", **asked)
        return {"preset": preset, "gpus": gpus, **found}

    def resume(self, preset: str) -> dict[str, Any]:
        """Whether a run that was stopped equals one that was not; two passes a step."""
        pace = PACES[preset]
        more = {"data__batch_size": 1, "data__global_batch": 2, "optim__max_steps": pace.resumed}
        found = task(PROGRAM, "resume", ask=self.ask(preset, **more), stops=pace.stops)
        return {"preset": preset, **found}
