"""Made-up folders of runs, as a trainer would have left them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

UPDATED = "2026-01-02T03:04:05+00:00"


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def training_line(step: int, loss: float = 0.5, **more: float) -> dict[str, Any]:
    parts = {"pos": loss / 2, "neg": loss / 4}
    figures = {
        "grad_norm": 1.0 / step,
        "lr": 1e-4,
        "step_s": 2.0,
        "wait_share": 0.01,
        "volumes_per_s": 8.0,
        "read_mb_per_s": 100.0,
        "memory_mib": 2048.0,
    }
    return {"step": step, "loss": loss, **parts, **figures, **more}


def evaluation_line(step: int, total: float, top1: float) -> dict[str, Any]:
    figures = {"pos": total / 2, "neg": total / 2, "total": total, "top1": top1, "chance": 0.25}
    named = {f"heldout_{name}": value for name, value in figures.items()}
    return {"step": step, **named, "heldout_views": 4, "heldout_floor": 0.6}


def write_run(
    folder: Path,
    *,
    steps: int = 4,
    max_steps: int = 10,
    totals: Mapping[int, tuple[float, float]] | None = None,
    state: str | None = "stopped",
    incidents: Iterable[Mapping[str, Any]] = (),
    ranks: int = 1,
) -> Path:
    """A run of some steps; ``totals`` are held-out pos + neg and top-1 by step."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"optim": {"max_steps": max_steps}}))
    evaluated = {0: (0.8, 0.3)} if totals is None else totals
    lines = [training_line(step, 1 / step) for step in range(1, steps + 1)]
    lines += [evaluation_line(step, *figures) for step, figures in evaluated.items()]
    write_lines(folder / "metrics.jsonl", sorted(lines, key=lambda line: line["step"]))
    if state is not None:
        told = {
            "state": state,
            "step": steps,
            "max_steps": max_steps,
            "reason": "SIGTERM" if state == "stopped" else None,
            "host": "node",
            "pid": 1,
            "updated": UPDATED,
        }
        (folder / "state.json").write_text(json.dumps(told))
    if incidents:
        write_lines(folder / "incidents.jsonl", incidents)
    for rank in range(ranks):
        timing = {"step_s": 2.0, "wait_s": 0.02 * (rank + 1), "encoder_s": 1.0}
        write_lines(folder / f"timing-rank{rank}.jsonl", [{"step": steps, **timing}])
    (folder / "checkpoints" / f"step-{steps:08d}").mkdir(parents=True)
    return folder
