"""Traces of chosen steps: those steps and no others, in files that tools can read."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import profiler as profiler_state

from prect.errors import ConfigError
from prect.train.report.profiling import MOST_STEPS, StepProfiler, parse_steps


@pytest.mark.parametrize(
    ("text", "steps"), [("10", (10, 10)), ("10-12", (10, 12)), (" 1 - 2 ", (1, 2)), ("7-7", (7, 7))]
)
def test_steps_are_a_number_or_a_range(text: str, steps: tuple[int, int]) -> None:
    assert parse_steps(text) == steps
    assert parse_steps(f"1-{MOST_STEPS}") == (1, MOST_STEPS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "give 10 or 10-12"),
        ("ten", "give 10 or 10-12"),
        ("-3", "give 10 or 10-12"),
        ("1-2-3", "give 10 or 10-12"),
        ("1.5", "give 10 or 10-12"),
        ("0", "before step 1"),
        ("0-3", "before step 1"),
        ("12-10", "give 10-12"),
        (f"1-{MOST_STEPS + 1}", f"give {MOST_STEPS} at most"),
    ],
)
def test_nonsense_is_refused_with_what_would_do(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        parse_steps(text)


def train(profiler: StepProfiler, first: int, last: int) -> list[bool]:
    """Some steps of a tiny network; whether each was profiled."""
    torch.manual_seed(0)
    device = profiler.device
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
    network.to(device)
    profiled = []
    for step in range(first, last + 1):
        profiler.before_step(step)
        profiled.append(profiler_state._is_profiler_enabled)
        network(torch.zeros(1, 1, 4, 4, 4, device=device)).sum().backward()
        profiler.after_step(step)
    return profiled


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return document


def names(trace: dict[str, Any]) -> list[str]:
    return [str(event.get("name")) for event in trace["traceEvents"] if event.get("ph") == "X"]


def test_only_the_chosen_steps_are_traced(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 3, 4, 1, torch.device("cpu"))
    assert train(profiler, 1, 6) == [False, False, True, True, False, False]
    profiler.close()
    trace, table = sorted((tmp_path / "profile").iterdir())
    assert (trace.name, table.name) == ("rank1-steps-3-4.json.gz", "rank1-steps-3-4.txt")
    assert profiler.written == trace

    document = read(trace)
    assert [name for name in names(document) if name.startswith("step ")] == ["step 3", "step 4"]
    convolutions = [
        event for event in document["traceEvents"] if event.get("name") == "aten::conv3d"
    ]
    assert len(convolutions) == 2
    assert convolutions[0]["args"]["Input Dims"][0] == [1, 1, 4, 4, 4]
    assert any(event.get("name") == "[memory]" for event in document["traceEvents"])

    text = table.read_text()
    assert "steps 3 to 4 of rank 1, by the time" in text
    assert "steps 3 to 4 of rank 1, by the memory" in text
    assert "aten::convolution_backward" in text


def test_a_run_that_begins_and_ends_within_the_steps_leaves_its_part(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 2, 9, 0, torch.device("cpu"))
    train(profiler, 5, 6)
    profiler.close()
    profiler.close()
    assert profiler.written == tmp_path / "profile" / "rank0-steps-5-6.json.gz"
    assert "step 6" in names(read(profiler.written))
    assert not profiler_state._is_profiler_enabled


def test_a_run_without_the_steps_leaves_nothing(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 7, 8, 0, torch.device("cpu"))
    assert not any(train(profiler, 1, 3))
    profiler.close()
    assert profiler.written is None
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_fails_leaves_no_profiler_running(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 1, 3, 0, torch.device("cpu"))
    profiler.before_step(1)
    profiler.close()
    assert not profiler_state._is_profiler_enabled
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_of_a_gpu_are_in_the_trace(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 2, 2, 0, torch.device("cuda", 0))
    train(profiler, 1, 3)
    assert profiler.written is not None
    kinds = {event.get("cat") for event in read(profiler.written)["traceEvents"]}
    assert {"kernel", "cpu_op"} <= kinds
    assert "(cuda)" in (tmp_path / "profile" / "rank0-steps-2-2.txt").read_text()
