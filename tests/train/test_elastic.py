"""Processes that die, stall or are told to stop, under the launcher that users have."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prect.train.callbacks import Silent
from prect.train.launch import Launch, launch
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import list_checkpoints
from prect.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.train.state.checkpoints import newest, read_whole

MakeConfig = Any
STEPS, FATAL = 9, 6

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from prect.train.callbacks import Silent
from prect.train.config import load_config
from prect.train.launch import Launch, launch
from prect.train.trainer import Trainer

workspace, config, fault = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def stumble(trainer):
    if fault == "kill" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "stall":
        time.sleep(1000)

def watched(trainer, batches, request, own=Trainer._advance):
    step, rank = trainer.step + 1, trainer.place.rank
    if rank == 1 and step == FATAL:
        stumble(trainer)
    if fault == "slow":
        time.sleep(0.3)
    def told():
        for raw in batches:
            with (workspace / f"seen-{rank}.jsonl").open("a") as file:
                indices = [sample.index for sample in raw.samples]
                attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
                file.write(json.dumps([attempt, step, indices]) + "\\n")
            yield raw
    return own(trainer, told(), request)

Trainer._advance = watched

if __name__ == "__main__":
    how = Launch(procs=2, max_restarts=1 if fault == "kill" else 0)
    print(json.dumps(launch(load_config(None, config), workspace, Silent(), how)))
""".replace("FATAL", str(FATAL))


@pytest.fixture
def start(
    workspace: Workspace, make_config: MakeConfig, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run of two processes with a fault built in."""
    begun: list[subprocess.Popen[str]] = []

    def begin(fault: str, **train: Any) -> subprocess.Popen[str]:
        config = make_config(
            data={"batch_size": 1, "global_batch": 2},
            optim={"max_steps": STEPS},
            train={"checkpoint_every": 4, **train},
        )
        (tmp_path / "program.py").write_text(PROGRAM)
        (tmp_path / "config.json").write_text(config.model_dump_json())
        command = [tmp_path / "program.py", workspace.root, tmp_path / "config.json", fault]
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def seen(workspace: Workspace, rank: int) -> list[tuple[int, int, list[int]]]:
    text = (workspace.root / f"seen-{rank}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_killed_process_is_started_again_and_nothing_is_seen_twice_or_left_out(
    start: Callable[..., subprocess.Popen[str]], workspace: Workspace, make_config: MakeConfig
) -> None:
    process = start("kill")
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert json.loads(out)["step"] == STEPS
    committed = 4
    for rank in (0, 1):
        entries = seen(workspace, rank)
        first = [(step, i) for attempt, step, i in entries if attempt == 0]
        again = [(step, i) for attempt, step, i in entries if attempt == 1]
        # Up to the last commit the first attempt counts, and after it the second, from there on.
        assert [step for step, _ in again] == list(range(committed + 1, STEPS + 1))
        valid = [i for step, (i,) in first if step <= committed] + [i for _, (i,) in again]
        assert valid == [2 * step + rank for step in range(STEPS)]
    whole = make_config(
        run={"name": "whole"},
        data={"batch_size": 1, "global_batch": 2},
        optim={"max_steps": STEPS},
    )
    launch(whole, workspace.root, Silent(), Launch())
    ours, theirs = newest(workspace, "whole"), newest(workspace, "toy")
    counts = {float(t) for name, t in theirs.optimizer.items() if name.endswith(".step")}
    assert counts == {float(STEPS)}
    assert ours.backbone.keys() == theirs.backbone.keys()
    states = RunFolder(workspace.run("toy")).journal(STEPS).read()
    assert states["state"] == "finished"


def test_a_process_that_stalls_is_named_within_the_limit(
    start: Callable[..., subprocess.Popen[str]], workspace: Workspace
) -> None:
    limit = 4
    began = time.monotonic()
    process = start("stall", timeout_s=limit)
    while not (workspace.root / "seen-0.jsonl").exists() or len(seen(workspace, 0)) < FATAL:
        assert time.monotonic() - began < 100
        time.sleep(0.1)
    stalled = time.monotonic()
    _, errors = process.communicate(timeout=100)
    took = time.monotonic() - stalled
    assert process.returncode != 0
    assert f"no progress for {limit} s: the others wait for rank 1 on " in errors
    assert f"evaluating, logging or saving at step {FATAL - 1}" in errors
    assert took < limit + 40  # the one that sleeps is given half a minute to end
    assert [path.name for path in list_checkpoints(workspace.run("toy") / "checkpoints")] == [
        "step-00000004"
    ]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_processes_that_are_told_to_stop_save_together(
    start: Callable[..., subprocess.Popen[str]], workspace: Workspace, number: signal.Signals
) -> None:
    process = start("slow")
    began = time.monotonic()
    while not (workspace.root / "seen-1.jsonl").exists() or len(seen(workspace, 1)) < 2:
        assert time.monotonic() - began < 100
        time.sleep(0.05)
    asked = time.monotonic()
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert time.monotonic() - asked < 30
    assert process.returncode == 0, errors
    told = json.loads(out)
    assert told["stopped"] == number.name
    assert told["save_error"] is None
    saved = read_whole(list_checkpoints(workspace.run("toy") / "checkpoints")[-1])
    assert saved.step == told["step"] < STEPS
    for rank in (0, 1):
        assert [step for _, step, _ in seen(workspace, rank)] == list(range(1, saved.step + 1))
    assert process.poll() is not None


@pytest.mark.slow
@pytest.mark.parametrize("delay", [2.0, 5.0, 8.0])
def test_a_signal_as_the_processes_start_ends_them_too(
    start: Callable[..., subprocess.Popen[str]], workspace: Workspace, delay: float
) -> None:
    process = start("slow")
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    if process.returncode == 0:  # else it was too early for anybody to listen
        assert json.loads(out)["stopped"] == "SIGTERM"
    else:
        assert process.returncode == -signal.SIGTERM, errors
    found = list_checkpoints(workspace.run("toy") / "checkpoints")
    assert not found or read_whole(found[-1]).step < STEPS
