"""Precision, torch.compile, the largest batch and waiting for data, of a step on one GPU.

Each combination is tried in a process of its own with batches that double until memory is full.
MFU is the share of the GPU's stated bfloat16 peak (dense) that the operations of forward and
backward pass make use of; recomputing, which checkpointing does, is not counted as use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measuring import BenchmarkError, scratch, serve, task
from rich.console import Console
from step_arms import Stopwatch, made_up, only_float32, settings
from torch.nn.functional import cosine_similarity

from prect.train.batch import assemble
from prect.train.config import TrainConfig, load_config
from prect.train.flops import peak_flops
from prect.train.learner import Learner, build_learner
from prect.train.objectives import ObjectiveOutput
from prect.train.precision import autocast

PROGRAM = Path(__file__)
WARMUP, STEPS = 2, 5
VOLUMES = 4
"""That precisions are compared on."""
PHANTOMS, RUN_STEPS, LOG_EVERY = 12, 60, 20
"""Of the run whose waiting for data is measured."""


def gpu_figures(network: str, flops: int, console: Console) -> dict[str, Any]:
    """All that is measured on a GPU; what fails is listed, and the rest measured all the same.

    Args:
        network: a name of `prect.train.architectures.NETWORKS`.
        flops: operations of forward and backward pass of one volume.
        console: for progress.
    """
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for precision, compiled in product(("float32", "bfloat16"), (False, True)):
        what = f"{network}, {precision}, {'compiled' if compiled else 'eager'}"
        console.print(what)
        found, why = _batches(network, precision, compiled)
        rows += found
        if why:
            failures.append({"what": what, "why": why})
    peak = peak_flops(torch.cuda.get_device_name(), "bfloat16")
    for row in rows:
        row["mfu"] = flops * row["volumes_per_s"] / peak if peak else None
    whole: dict[str, Any] = {}
    for name, asked in (
        ("agreement", {"network": network, "devices": ["cpu", "cuda"], "volumes": VOLUMES}),
        ("wait", {"preset": network, "gpus": 1, "phantoms": PHANTOMS}),
    ):
        console.print(f"{network}, {name}")
        try:
            whole[name] = task(PROGRAM, name, **asked)
        except BenchmarkError as error:
            whole[name] = None
            failures.append({"what": f"{network}, {name}", "why": str(error)})
    device = torch.cuda.get_device_name()
    return whole | {"network": network, "device": device, "rows": rows, "failures": failures}


def _batches(network: str, precision: str, compiled: bool) -> tuple[list[dict[str, Any]], str]:
    """Figures of all batches that fit, and why it ended if not for memory."""
    asked = {"precision": precision, "compiled": compiled}
    rows, why = doubled(
        lambda batch: task(PROGRAM, "pace", network=network, **asked, batch=batch), 1
    )
    return [asked | row for row in rows], why


def doubled(
    measure: Callable[[int], dict[str, Any] | None], first: int
) -> tuple[list[dict[str, Any]], str]:
    """Figures of batches of 1, 2, 4, ... volumes that fit, and why it ended if not for memory.

    Args:
        measure: figures of a batch, ``failed`` and ``out_of_memory`` among them; None to end.
        first: volumes of the smallest.
    """
    rows: list[dict[str, Any]] = []
    batch = first
    while True:
        try:
            result = measure(batch)
        except BenchmarkError as error:
            return rows, str(error)
        if result is None:
            return rows, ""
        if result["failed"] is not None:
            full = result["out_of_memory"] and rows
            return rows, "" if full else f"batch {batch}: {result['failed']}"
        rows.append({"batch": batch, **result})
        batch *= 2


# What a process does


def pace(network: str, precision: str, compiled: bool, batch: int) -> dict[str, Any]:
    """Volumes a second of cropping, both passes, AdamW and the teacher's step.

    A combination that cannot run is a result too: ``failed`` has the error's text.
    """
    device = torch.device("cuda")
    try:
        seconds = _steps(_config(network, precision, batch), compiled, device)
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError)
        return {"failed": f"{type(error).__name__}: {error}", "out_of_memory": full}
    peak = torch.cuda.max_memory_allocated(device)
    return {"failed": None, "volumes_per_s": batch / seconds, "peak_bytes": peak}


def _config(network: str, precision: str, batch: int) -> TrainConfig:
    config = settings(network, "voco-v2", "prect", batch)
    loop = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": loop})


def _steps(config: TrainConfig, compiled: bool, device: torch.device) -> float:
    """Seconds of a step, the mean of some after whole ones that are not timed."""
    learner = build_learner(config).to(device)
    model: Learner = torch.compile(learner) if compiled else learner  # type: ignore[assignment]
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, amsgrad=True)
    raw = made_up(config).to(device)
    watch = Stopwatch(device)
    for number in range(WARMUP + STEPS):
        if number == WARMUP:
            watch.begin()
        with torch.no_grad():
            crops = assemble(raw, config.view, config.crops)
        with autocast(config, device):
            output = model(crops)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(output.loss)
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
        optimizer.step()
        learner.objective.after_step(0.5)
    watch.lap("steps")
    return watch.seconds["steps"] / STEPS


def agreement(network: str, devices: list[str], volumes: int) -> dict[str, Any]:
    """How far each device and precision is from float32 on the CPU, by the same weights.

    Relative difference of the loss, largest difference of a cosine of random crop and base, and
    the lowest cosine of a crop's projection with the same in float32.
    """
    only_float32()
    torch.set_num_threads(os.cpu_count() or 1)
    true = _forward(network, "float32", "cpu", volumes)
    found = {}
    for device, precision in product(devices, ("float32", "bfloat16")):
        if (device, precision) == ("cpu", "float32"):
            continue
        seen = _forward(network, precision, device, volumes)
        same = cosine_similarity(seen.student.cpu(), true.student, dim=-1)
        found[f"{device} {precision}"] = {
            "loss": abs(float(seen.loss) / float(true.loss) - 1),
            "cosine": float((seen.cosine.cpu() - true.cosine).abs().max()),
            "projection": float(same.min()),
        }
    return found


def _forward(network: str, precision: str, device: str, volumes: int) -> ObjectiveOutput:
    config, place = _config(network, precision, volumes), torch.device(device)
    learner = build_learner(config).to(place)
    with torch.no_grad():
        batch = assemble(made_up(config).to(place), config.view, config.crops)
        with autocast(config, place):
            output: ObjectiveOutput = learner(batch)
    return output


def wait(preset: str, gpus: int, phantoms: int) -> dict[str, Any]:
    """Figures of the last steps of a short run on small phantoms, as ``metrics.jsonl`` has them."""
    from learn import store_phantoms  # noqa: PLC0415

    from prect.train.callbacks import Silent  # noqa: PLC0415
    from prect.train.launch import Launch, launch  # noqa: PLC0415

    asked = {
        "data.datasets": "phantoms",
        "optim.max_steps": RUN_STEPS,
        "optim.warmup_steps": LOG_EVERY,
        "train.log_every": LOG_EVERY,
        "train.eval_every": 0,
        "train.eval_views": 2,
        "data.heldout_minimum": 2,
        "run.name": "wait",
    }
    config = load_config(preset, None, [f"{path}={value}" for path, value in asked.items()])
    with scratch(None) as folder:
        workspace = store_phantoms(folder, phantoms, os.cpu_count() or 1)
        summary = launch(config, workspace, Silent(), Launch(gpus=gpus))
        text = (Path(summary["folder"]) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if "wait_share" in line]
    return {name: lines[-1][name] for name in ("step", "wait_share", "volumes_per_s", "step_s")}


if __name__ == "__main__":
    serve({"pace": pace, "agreement": agreement, "wait": wait})
