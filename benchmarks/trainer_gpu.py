"""The trainer on a GPU: voco-b from stores to steps, and what a checkpoint keeps it from.

Each combination of precision, torch.compile and batch is a run of the trainer in a process of its
own, with batches that double until memory is full.

Run as a program it does one task in a process of its own; see `measuring.serve`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import serve, task
from step_gpu import doubled
from trainer_arms import run

PROGRAM = Path(__file__)
PRECISIONS = ("bfloat16", "float32")
STEPS, LOG_EVERY, SAVE_EVERY = 40, 10, 15
"""Checkpoints between two lines, so that each is in a line of its own."""
PREFETCH_MIB = 8192
SMALLEST = 2


def rows(
    ask: dict[str, Any],
    largest: int,
    precisions: Sequence[str],
    in_time: Callable[[], bool],
    told: Callable[[str], None],
) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[str]]:
    """Figures of all combinations, what failed, and what was left out for want of time.

    Args:
        ask: an `Ask` of a run on a GPU.
        largest: volumes of the largest batch.
        precisions: those of ``train.precision`` to try.
        in_time: whether another run may begin.
        told: is told what begins.
    """
    found: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    left_out: list[str] = []

    def measure(batch: int, what: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        if batch > largest:
            return None
        if not in_time():
            left_out.append(f"{what}, batch {batch} and more")
            return None
        told(f"{what}, batch {batch}")
        return task(PROGRAM, "fed", ask=asked_for(ask, batch=batch, **asked))

    for precision, compiled in product(precisions, (False, True)):
        what = f"{ask['preset']}, {precision}, {'compiled' if compiled else 'eager'}"
        asked = {"precision": precision, "compiled": compiled}
        done, why = doubled(partial(measure, what=what, asked=asked), SMALLEST)
        found += [asked | row for row in done]
        if why:
            failures.append({"what": what, "why": why})
    return found, failures, left_out


def asked_for(ask: dict[str, Any], *, precision: str, compiled: bool, batch: int) -> dict[str, Any]:
    """What a run of one combination is asked for."""
    settings = {
        "run.name": f"{precision}-{compiled}-{batch}",
        "train.precision": precision,
        "train.compile": compiled,
        "train.log_every": LOG_EVERY,
        "train.checkpoint_every": SAVE_EVERY,
        "train.keep_last": 1,
        "data.batch_size": batch,
        "data.global_batch": batch,
        "data.prefetch_mib": PREFETCH_MIB,
        "optim.max_steps": STEPS,
    }
    return ask | {"settings": {**ask["settings"], **settings}}


def fed(*, ask: dict[str, Any]) -> dict[str, Any]:
    """Medians of the lines of a run after its first one.

    A combination that cannot run is a result too: ``failed`` has the error's text.
    """
    try:
        lines = run(ask=ask)["lines"][1:]
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError)
        return {"failed": f"{type(error).__name__}: {error}", "out_of_memory": full}
    names = ("step_s", "wait_share", "volumes_per_s", "read_mb_per_s", "memory_mib", "tflops")
    means = {name: median(line[name] for line in lines) for name in names}
    stalls = [line["save_stall_s"] for line in lines if line["save_stall_s"]]
    mfu = median(line["mfu"] for line in lines) if "mfu" in lines[0] else None
    return {"failed": None, **means, "mfu": mfu, "stalls_s": stalls}


if __name__ == "__main__":
    serve({"fed": fed})
