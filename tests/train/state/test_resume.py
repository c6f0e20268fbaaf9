"""A run that is stopped or killed anywhere and goes on equals one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from prect.errors import CheckpointError
from prect.train.callbacks import RunStart, Silent
from prect.train.config import TrainConfig, load_config
from prect.train.data import open_data
from prect.train.parallel import Place
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import list_checkpoints, load_checkpoint
from prect.train.trainer import Trainer
from prect.workspace import Workspace
from tests.conftest import REPOSITORY
from tests.train.state.checkpoints import assert_same_state, newest

MakeConfig = Any
CPU = Place(torch.device("cpu"))


class SignalAt(Silent):
    """Sends this process a signal after a step; 0 is as the run begins."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number = step, number
        self.notices: list[str] = []

    def on_start(self, _: RunStart) -> None:
        if self.step == 0:
            os.kill(os.getpid(), self.number)

    def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)

    def on_notice(self, step: int, text: str) -> None:
        self.notices.append(f"{step}: {text}")


def run(
    workspace: Workspace, config: TrainConfig, callback: Silent | None = None, **options: Any
) -> dict[str, Any]:
    data = open_data(workspace, config)
    return Trainer(config, data, CPU, callback or Silent(), **options).run()


def figures(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """What `metrics.jsonl` holds but for times."""
    kept = ("step", "loss", "pos", "grad_norm", "lr", "heldout_total", "heldout_rank")
    lines = RunFolder(workspace.run(name)).metrics.read()
    return [{k: v for k, v in line.items() if k in kept} for line in lines]


STEPS = 8
"""More than an epoch of the toy stores has, so an edge of it is among them."""


@pytest.mark.parametrize(
    "shape",
    [
        {"objective": {"name": "voco-v2"}},
        {
            "objective": {"name": "voco-v1", "ema_momentum": 0.5, "ema_momentum_end": 1.0},
            "data": {"batch_size": 1, "global_batch": 3, "workers": 1},
        },
    ],
    ids=["v2", "v1, three passes a step, a worker"],
)
def test_a_run_stopped_at_every_step_equals_one_that_was_not(
    workspace: Workspace, make_config: MakeConfig, shape: dict[str, Any]
) -> None:
    settings = shape | {
        "optim": {"lr": 1e-3, "warmup_steps": 2, "max_steps": STEPS},
        "train": {"checkpoint_every": 5, "eval_every": 3},
    }
    run(workspace, make_config(run={"name": "whole"}, **settings))
    halted = make_config(run={"name": "parts"}, **settings)
    assert len(open_data(workspace, halted).sampler(halted)) < STEPS * 2
    for step in range(1, STEPS):
        told = run(workspace, halted, SignalAt(0))
        assert (told["stopped"], told["step"], told["save_error"]) == ("SIGTERM", step, None)
        assert RunFolder(workspace.run("parts")).journal(STEPS).read()["state"] == "stopped"
        assert newest(workspace, "parts").step == step
    run(workspace, halted)
    assert_same_state(newest(workspace, "whole"), newest(workspace, "parts"))
    assert figures(workspace, "whole") == figures(workspace, "parts")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_other_signals_stop_a_run_too(
    workspace: Workspace, make_config: MakeConfig, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    told = run(workspace, make_config(), SignalAt(1, number))
    assert (told["stopped"], told["step"]) == (number.name, 2)
    assert newest(workspace, "toy").step == 2
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_a_run_at_once(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    class Impatient(Silent):
        def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
            if step == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)  # an echo of the first
                time.sleep(0.6)
                os.kill(os.getpid(), signal.SIGINT)
                raise AssertionError("the second interrupt was not heeded")

    with pytest.raises(KeyboardInterrupt):
        run(workspace, make_config(), Impatient())
    assert list_checkpoints(RunFolder(workspace.run("toy")).checkpoints) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from prect.train.callbacks import RunStart, Silent
from prect.train.config import load_config
from prect.train.launch import launch

class KillAt(Silent):
    def on_step(self, step, metrics):
        if step == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

launch(load_config(None, Path(sys.argv[2])), Path(sys.argv[1]), KillAt())
"""


@pytest.mark.parametrize("step", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_from_its_last_commit(
    workspace: Workspace, make_config: MakeConfig, tmp_path: Path, step: int
) -> None:
    pace = {"optim": {"max_steps": STEPS}, "train": {"checkpoint_every": 3}}
    run(workspace, make_config(run={"name": "whole"}, **pace))
    killed = make_config(run={"name": "killed"}, **pace)
    (tmp_path / "config.json").write_text(killed.model_dump_json())
    command = [sys.executable, "-c", KILLED, workspace.root, tmp_path / "config.json", step]
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, cwd=REPOSITORY, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    state = RunFolder(workspace.run("killed")).journal(STEPS).read()
    assert state["state"] == "running"  # it had no time to say otherwise
    run(workspace, killed)
    assert_same_state(newest(workspace, "whole"), newest(workspace, "killed"))
    assert figures(workspace, "whole") == figures(workspace, "killed")


def test_random_states_come_back(workspace: Workspace, make_config: MakeConfig) -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random(), random.gauss(0, 1)]

    class Draw(Silent):
        def __init__(self) -> None:
            self.drawn: dict[int, list[float]] = {}

        def on_step(self, step: int, _: Mapping[str, float] | None) -> None:
            self.drawn[step] = draw()

    before, after = Draw(), Draw()
    config = make_config(train={"checkpoint_every": 2, "keep_last": 9})
    run(workspace, config, before)
    older = list_checkpoints(RunFolder(workspace.run("toy")).checkpoints)[0]
    torch.manual_seed(1)
    random.seed(1)
    run(workspace, config, after, resume=str(older))
    assert after.drawn == {step: before.drawn[step] for step in (3, 4)}


def test_what_has_changed_is_refused_unless_it_is_allowed(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    run(workspace, make_config())
    other = make_config(
        optim={"lr": 2e-3, "max_steps": 6},
        data={"heldout_minimum": 3, "batch_size": 1},
    )
    with pytest.raises(CheckpointError) as caught:
        run(workspace, other)
    text = str(caught.value)
    assert "optim.lr (0.001 -> 0.002)" in text
    assert "data.heldout_minimum (2 -> 3)" in text
    assert "made with 2 volumes a step, this one would have 1 (set data.global_batch=2)" in text
    assert "--allow-changed" in text
    callback = SignalAt(99)
    run(workspace, other, callback, allow_changed=True)
    assert newest(workspace, "toy").step == 6
    assert any("going on although" in notice for notice in callback.notices)
    incidents = RunFolder(workspace.run("toy")).journal(6).incidents.read()
    assert [(each["step"], each["kind"]) for each in incidents] == [(4, "changed")]


def test_a_manifest_that_has_changed_is_told_apart(
    stores: Workspace, tmp_path: Path, make_config: MakeConfig
) -> None:
    import shutil

    from prect.manifests.stores import read_cache_rows, write_cache_rows

    own = Workspace(tmp_path / "own")
    shutil.copytree(stores.root, own.root)
    run(own, make_config())
    path = own.cache_manifest("toy")
    write_cache_rows(path, read_cache_rows(path)[:-1])
    with pytest.raises(CheckpointError, match=r"manifest has changed .*toy volumes 9 -> 8"):
        run(own, make_config(optim={"max_steps": 6}))
    run(own, make_config(optim={"max_steps": 6}), allow_changed=True)
    assert newest(own, "toy").step == 6


def test_a_damaged_newest_checkpoint_is_set_aside_and_told_of(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    run(workspace, make_config(run={"name": "whole"}))
    run(workspace, make_config())
    folder = RunFolder(workspace.run("toy"))
    shard = next(list_checkpoints(folder.checkpoints)[-1].glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    callback = SignalAt(99)
    run(workspace, make_config(), callback)
    assert any("does not match its checksum" in notice for notice in callback.notices)
    assert_same_state(newest(workspace, "whole"), newest(workspace, "toy"))
    assert [p.name[:21] for p in folder.checkpoints.glob("damaged-*")] == ["damaged-step-00000004"]
    assert folder.journal(4).incidents.read()[0]["kind"] == "damaged_checkpoint"


def test_a_full_disk_is_told_of_and_the_run_goes_on_or_stops(
    workspace: Workspace, make_config: MakeConfig, tmp_path: Path
) -> None:
    """On a file system of its own, which really is full."""
    config = make_config(
        run={"name": "full"}, optim={"max_steps": 6}, train={"checkpoint_every": 2, "keep_last": 3}
    )
    whole = run(workspace, make_config(run={"name": "whole"}, optim={"max_steps": 6}))
    size = sum(
        f.stat().st_size
        for f in list_checkpoints(Path(whole["folder"]) / "checkpoints")[-1].iterdir()
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "on_full_disk.py").write_text(ON_A_FULL_DISK)
    room = workspace.run("full")
    room.mkdir(parents=True)
    mount = f"mount -t tmpfs -o size={int(2.5 * size)} tmpfs {room}"
    allowed = subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True)
    if allowed.returncode:
        pytest.skip(f"no file system can be mounted here: {allowed.stderr.decode()}")
    command = (
        f"{mount} && exec {sys.executable} {tmp_path}/on_full_disk.py {workspace.root} {tmp_path}"
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "No space left" in told["goes_on"]["error"]
    assert told["goes_on"]["checkpoints"] == [2, 4]
    assert told["goes_on"]["incidents"] == ["save_failed"]
    assert "No space left" in told["stops"]["error"]
    assert told["stops"]["step"] < 60
    assert told["with_room"] == 6


ON_A_FULL_DISK = """
import json, sys
from pathlib import Path
from prect.errors import HopelessError
from prect.train.callbacks import RunStart, Silent
from prect.train.state.checkpoint import list_checkpoints, step_of
from prect.train.config import load_config
from prect.train.launch import launch
from prect.train.run_folder import RunFolder
from prect.workspace import Workspace

root, folder = Path(sys.argv[1]), Path(sys.argv[2])
told = {}

class Notices(Silent):
    def __init__(self):
        self.texts = []
    def on_notice(self, step, text):
        self.texts.append(text)

def train(**changes):
    config = load_config(None, folder / "config.json", [f"{k}={v}" for k, v in changes.items()])
    listener = Notices()
    try:
        launch(config, root, listener)
    except HopelessError as error:
        listener.texts.append(str(error))
    run = RunFolder(Workspace(root).run("full"))
    journal = run.journal(config.optim.max_steps)
    return {
        "error": " ".join(listener.texts),
        "step": journal.read().get("step", 0),
        "checkpoints": [step_of(path) for path in list_checkpoints(run.checkpoints)],
        "incidents": [each["kind"] for each in journal.incidents.read()],
    }

# Of three checkpoints the third finds no room: all steps are done, but that one is not there.
told["goes_on"] = train(**{"optim.max_steps": 6, "train.log_every": 60, "train.keep_last": 9})
long = {"optim.max_steps": 60, "train.keep_last": 9}
told["stops"] = train(**long, **{"train.on_save_error": "stop"})
from prect.train.state.saving import drop
drop(list_checkpoints(RunFolder(Workspace(root).run("full")).checkpoints)[0])
told["with_room"] = train(**{"optim.max_steps": 6})["checkpoints"][-1]
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["demo", "tiny"])
def test_the_real_presets_go_on_bit_for_bit(
    phantom_workspace: Workspace, tmp_path: Path, preset: str
) -> None:
    own = Workspace(tmp_path / preset)
    own.root.mkdir()
    (own.root / "cache").symlink_to(phantom_workspace.cache)
    (own.root / "manifests").symlink_to(phantom_workspace.manifests)
    steps = 12 if preset == "demo" else 4
    asked = {
        "data.datasets": "phantoms",
        "data.heldout_minimum": 2,
        "optim.max_steps": steps,
        "train.eval_views": 2,
        "train.log_every": 1,
        "train.log_to": "[]",
        "data.batch_size": 1,
        "data.global_batch": 2,
    }
    overrides = [f"{path}={value}" for path, value in asked.items()]
    run(own, load_config(preset, None, [*overrides, "run.name=whole"]))
    halted = load_config(preset, None, [*overrides, "run.name=parts"])
    for step in (1, steps // 2):
        run(own, halted, SignalAt(step))
    run(own, halted)
    assert_same_state(newest(own, "whole"), newest(own, "parts"))
    assert load_checkpoint(list_checkpoints(own.run("parts") / "checkpoints")[-1]).step == steps
