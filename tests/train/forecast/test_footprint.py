"""Memory of passes that are never computed: against a hand's count and against real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prect.train.config import TrainConfig, load_config
from prect.train.forecast import footprint
from prect.train.forecast.footprint import crops_in_a_pass, step_cost
from prect.train.networks import Encoder

SIDE, CHANNELS, WIDTH = 16, 4, 3
MAP = 4 * CHANNELS * SIDE**3
"""Bytes of the convolution's result for a crop, float32."""
MEASURE = """
import json, sys
from pathlib import Path
import torch
from prect.train.batch import CropBatch
from prect.train.config import load_config
from prect.train.learner import build_learner
from prect.train.optimizer import build_optimizer
from prect.train.forecast.footprint import step_cost
from prect.train.forecast.memory import state_bytes

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

preset, *overrides = sys.argv[1:]
config = load_config(preset, overrides=overrides)
torch.set_num_threads(1)
crops, volumes = config.crops, config.local_batch(1)
cost, state = step_cost(config, 1, "float32", "cpu"), state_bytes(config, 1)
torch.autograd.backward(torch.nn.functional.conv3d(
    torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 3, 3, 3, requires_grad=True)).sum())
before = resident("VmRSS")
learner = build_learner(config)
learner.pass_at_once(crops.per_volume * config.data.batch_size)
optimizer = build_optimizer(config, learner, torch.device("cpu"))
shown = torch.rand(volumes * crops.per_volume, 1, *crops.shown)
batch = CropBatch(shown, torch.rand(volumes, crops.random, crops.bases).softmax(-1))
torch.autograd.backward(learner(batch).loss)
optimizer.step()
held = state.weights + state.gradients + state.optimizer + state.teacher + shown.nbytes
print(json.dumps({"counted": held + cost.peak_bytes, "measured": resident("VmHWM") - before}))
"""


class HandCounted(Encoder):
    """A convolution, a ReLU and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, CHANNELS, 3, padding=1, bias=False)
        self.linear = nn.Linear(CHANNELS, WIDTH, bias=False)

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(self.convolution(crops).relu().mean(dim=(2, 3, 4)))
        return result


@pytest.fixture
def hand_counted(monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    def build(network: Any) -> Encoder:
        encoder = HandCounted()
        encoder.crops_at_once = network.crops_at_once
        return encoder

    monkeypatch.setattr(footprint, "build_encoder", build)
    overrides = [f"crops.size=[{SIDE}, {SIDE}, {SIDE}]", "data.batch_size=1"]
    return load_config("demo", overrides=overrides)


def test_three_maps_live_at_a_time_in_the_backward_pass(hand_counted: TrainConfig) -> None:
    """ReLU's result, which it keeps, the gradient that comes to it, and the one that it hands on.

    The convolution's own result is given back as soon as ReLU has read it.
    """
    cost = step_cost(hand_counted, 1, "float32", "cpu")
    assert 3 * 11 * MAP <= cost.peak_bytes < 3.02 * 11 * MAP


def test_operations_are_counted_as_carried_out(hand_counted: TrainConfig) -> None:
    convolution, linear = 2 * 27 * CHANNELS * SIDE**3, 2 * CHANNELS * WIDTH
    once = 11 * (2 * convolution + 3 * linear)
    assert step_cost(hand_counted, 1, "float32", "cpu").flops == once
    network = hand_counted.network.model_copy(update={"crops_at_once": 1})
    chunked = hand_counted.model_copy(update={"network": network})
    again = step_cost(chunked, 1, "float32", "cpu")
    # What comes last is not computed again: its gradient asks for what it was given.
    assert again.flops == once + 11 * convolution
    assert 3 * MAP <= again.peak_bytes < 3.2 * MAP


def test_memory_that_is_moved(hand_counted: TrainConfig) -> None:
    """Forward the convolution writes a map, ReLU reads and writes one, the mean reads one.

    Backward the mean's gradient is spread out and ReLU's reads two maps and writes one, which the
    convolution reads; so ten at least, and no more than a few besides.
    """
    moved = step_cost(hand_counted, 1, "float32", "cpu").moved_bytes
    assert 9 * 11 * MAP < moved < 13 * 11 * MAP


def test_autocast_halves_maps_of_convolutions(hand_counted: TrainConfig) -> None:
    whole = step_cost(hand_counted, 1, "float32", "cuda").peak_bytes
    half = step_cost(hand_counted, 1, "bfloat16", "cuda").peak_bytes
    assert 0.49 * whole < half < 0.6 * whole


def test_attention_stays_in_float32_under_autocast() -> None:
    """Most of what a transformer without checkpointing keeps are its softmaxes."""
    options = ["network.checkpointing=false", "data.batch_size=1", "data.global_batch=1"]
    config = load_config("voco-b", overrides=options)
    whole = step_cost(config, 1, "float32", "cuda").peak_bytes
    half = step_cost(config, 1, "bfloat16", "cuda").peak_bytes
    assert 0.85 * whole < half < whole
    again = load_config("voco-b", overrides=options[1:])
    saved = step_cost(again, 1, "bfloat16", "cuda").peak_bytes
    assert saved < 0.5 * half


def test_a_share_beyond_the_batch_is_passed_in_parts() -> None:
    config = load_config("demo", overrides=["data.batch_size=2", "data.global_batch=8"])
    assert [crops_in_a_pass(config, world) for world in (1, 2, 4, 8)] == [22, 22, 22, 11]
    in_parts, whole = (step_cost(config, world, "float32", "cpu") for world in (1, 4))
    # Each part is computed twice; four times the volumes need no more memory.
    assert in_parts.flops > 4 * whole.flops
    assert in_parts.peak_bytes < 1.1 * whole.peak_bytes


def measured(*arguments: str) -> float:
    """Counted over measured bytes of a step in a process of its own.

    Pieces of 64 KiB and more are given back to the system at once, so that what is measured is
    memory in use and not what the C library holds on to.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return float(found["counted"] / found["measured"])


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory of a process is read from /proc"
)


@needs_proc
@pytest.mark.slow
def test_a_real_step_holds_what_was_counted() -> None:
    fewer = ("crops.base_grid=[2, 1, 1]", "crops.random=1", "data.batch_size=1")
    ratio = measured("demo", "crops.size=[64, 64, 64]", "view.grid=[128, 64, 64]", *fewer)
    assert 0.8 < ratio < 1.05


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("network.checkpointing=true",),
        ("network.crops_at_once=1",),
        ("objective.teacher=network",),
    ],
)
def test_a_real_step_of_a_transformer_holds_what_was_counted(options: tuple[str, ...]) -> None:
    ratio = measured("tiny", "crops.base_grid=[2, 1, 1]", "crops.random=1", *options)
    assert 0.93 < ratio < 1.03
