"""Commands around a training run: train, replay."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from prect.cli.console import (
    DEFAULT_WORKSPACE,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
    interruptible,
)

if TYPE_CHECKING:
    from prect.train.callbacks import RunStart
    from prect.train.config import TrainConfig
    from prect.train.evaluate import Heldout
    from prect.workspace import Workspace


def train(
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: demo, tiny, voco-v1, voco-b, voco-b-mix, voco-l, voco-h."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file, or config.json of an earlier run; overrides the preset."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value (TOML), repeatable; overrides the file."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, show_default="all", help="GPUs to use; 0: train on the CPU."),
    ] = None,
    procs: Annotated[int, typer.Option(min=1, help="Processes when training on the CPU.")] = 1,
    max_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Optimiser steps; same as --set optim.max_steps=N. A run resumed with another "
            "number follows the new schedule of the learning rate from there.",
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: go on from the newest checkpoint of the run; never: want a new run; "
            "else the path of a checkpoint or run folder."
        ),
    ] = "auto",
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run; write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Pre-train an encoder from stores, and measure it on held-out patients."""
    from prect.train.config import load_config
    from prect.workspace import Workspace

    overrides = list(settings or [])
    if max_steps is not None:
        overrides.append(f"optim.max_steps={max_steps}")
    resolved = load_config(preset, config, overrides)
    if resume not in ("auto", "never"):
        resume = str(run_path(resume, workspace))
    if dry_run:
        gpus = _present_gpus() if gpus is None else gpus
        plan = _plan(resolved, Workspace(workspace), gpus, procs, resume)
        _show_plan(plan, resolved, as_json)
        return
    # OpenMP threads that spin while they wait take the cores from the workers that read, and
    # from whatever else runs; it must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from prect.train.launch import launch

    gpus = _present_gpus() if gpus is None else gpus
    listener = _Listener(interactive=console.is_terminal)
    with interruptible("the same command goes on from the newest checkpoint"):
        try:
            summary = launch(
                resolved, Path(workspace), listener, gpus=gpus, procs=procs, resume=resume
            )
        finally:
            listener.close()
    if not _leads():
        return
    _print_summary(summary)
    if as_json:
        emit_json(summary)


def replay(
    *,
    run: Annotated[str, typer.Option(help="Run name or folder.")],
    step: Annotated[int, typer.Option(min=1, help="Step, counted from 1 as in metrics.jsonl.")],
    out: Annotated[
        Path | None, typer.Option(show_default="<run>/replay", help="Folder to write to.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the step saw; write no file.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a step saw: its samples as JSON and as a picture."""
    from prect.train.replay import replay as replay_step
    from prect.workspace import Workspace

    folder = run_path(run, workspace)
    target = out or folder / "replay"
    result = replay_step(Workspace(workspace), folder, step, target, dry_run=dry_run)
    for sample in result.document["samples"]:
        console.print(_sample_line(sample), highlight=False)
    console.print(f"{result.samples}\n{result.picture}" + (" (not written)" if dry_run else ""))
    if as_json:
        files = {"samples_file": str(result.samples), "picture": str(result.picture)}
        emit_json(result.document | files | {"dry_run": dry_run})


def _sample_line(sample: Mapping[str, Any]) -> str:
    """A sample of a replayed step in one line: what, where, and what it stands for."""
    start, size = (" ".join(f"{mm:.0f}" for mm in sample["view"][key]) for key in ("start", "size"))
    line = (
        f"sample {sample['index']}: {sample['dataset']}/{sample['case']}, box from ({start}) mm, "
        f"({size}) mm wide in x, y, z, level {sample['level']}"
    )
    cause = sample["replaces"]
    if cause is not None:
        line += (
            f"; in place of sample {cause['index']}, {cause['dataset']}/{cause['case']}: "
            f"{cause['reason']}"
        )
    return line


class _Listener:
    """Shows a run's progress: a line that moves on a terminal, plain lines elsewhere."""

    def __init__(self, *, interactive: bool) -> None:
        self._interactive = interactive
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._max_steps = 0
        self._begin = 0.0

    def on_start(self, start: RunStart) -> None:
        self._begin = time.monotonic()
        self._max_steps = start.max_steps
        went_on = f", going on from step {start.step}" if start.step else ""
        console.print(
            f"{start.folder}: {start.train_volumes:,} volumes to train on, "
            f"{start.heldout_volumes:,} held out, {start.global_batch} a step, "
            f"{start.parameters:,} parameters, {start.reading}{went_on}"
        )
        if self._interactive:
            columns = ("{task.description}", BarColumn(), "{task.completed}/{task.total} steps")
            texts = [TextColumn(c) if isinstance(c, str) else c for c in columns]
            self._progress = Progress(
                *texts, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "training", total=start.max_steps, completed=start.step, note=""
            )

    def on_step(self, step: int, metrics: Mapping[str, float] | None) -> None:
        note = None if metrics is None else _step_note(metrics)
        if self._progress is not None:
            if note is None:
                self._progress.update(self._task, completed=step)
            else:
                self._progress.update(self._task, completed=step, note=note)
        elif note is not None:
            console.print(f"step {step}/{self._max_steps}  {note}")

    def on_eval(self, step: int, heldout: Heldout, sentence: str) -> None:
        console.print(f"step {step}: held-out {_heldout_note(heldout)}; {sentence}")

    def close(self) -> None:
        """Give the terminal back; a bar that is left running hides the cursor."""
        if self._progress is not None:
            self._progress.stop()

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.close()
        seconds = time.monotonic() - self._begin
        console.print(f"{summary['step']} steps done, {seconds:.0f} s in this session")


def _step_note(metrics: Mapping[str, float]) -> str:
    return (
        f"loss {metrics['loss']:.3f}  pos {metrics['pos']:.3f}  neg {metrics['neg']:.3f}  "
        f"gradient {metrics['grad_norm']:.2g}  {metrics['volumes_per_s']:.1f} volumes/s  "
        f"waiting {metrics['wait_share']:.0%}"
    )


def _heldout_note(heldout: Heldout) -> str:
    parts = [
        f"pos {heldout.pos:.3f} + neg {heldout.neg:.3f} = {heldout.total:.3f}",
    ]
    others = {
        "Spearman": heldout.spearman,
        "rank": heldout.rank,
        "teacher distance": heldout.teacher_distance,
    }
    parts += [f"{name} {value:.2f}" for name, value in others.items() if value is not None]
    return ", ".join(parts)


_SUMMARY_ROWS = {
    "pos": "pos",
    "neg": "neg",
    "total": "pos + neg",
    "top1": "top-1",
    "spearman": "Spearman",
    "rank": "effective rank",
    "rank_projected": "effective rank, projected",
    "spread": "spread",
    "spread_projected": "spread, projected",
    "teacher_distance": "teacher distance",
}


def _print_summary(summary: Mapping[str, Any]) -> None:
    console.print(_heldout_table(summary))
    console.print(summary["verdict"])
    if summary["quarantined"]:
        damaged = ", ".join("/".join(case) for case in summary["quarantined"])
        console.print(
            f"{len(summary['quarantined'])} volumes could not be read: {damaged}", style="yellow"
        )
    if summary["worker_restarts"]:
        console.print(
            f"reading processes died and were started again {summary['worker_restarts']} "
            f"times: {summary['folder']}/quarantine-rank*.jsonl",
            style="yellow",
        )


def _heldout_table(summary: Mapping[str, Any]) -> Table:
    """Held-out figures of the trained and the untrained network, and what they are held against."""
    table = Table("held out", "trained", "untrained", "reference", title=summary["run"])
    trained, untrained = summary["heldout"], summary["untrained"]
    references = {
        "total": f"{summary['floor']['value']:.3f} (best constant)",
        "top1": f"{trained['chance']:.3f} (chance)",
        "spearman": "0 (no order)",
        "rank": "1 (collapse)",
        "rank_projected": "1 (collapse)",
        "spread": "0 (collapse)",
        "spread_projected": "0 (collapse)",
    }
    for key, name in _SUMMARY_ROWS.items():
        values = [
            f"{each[key]:.3f}" if each[key] is not None else "" for each in (trained, untrained)
        ]
        table.add_row(name, *values, references.get(key, ""))
    return table


def _show_plan(plan: dict[str, Any], config: TrainConfig, as_json: bool) -> None:
    console.print_json(data=plan["config"])
    parameters = plan["parameters"]
    console.print(
        f"network {config.network.name}: {parameters['backbone']:,} parameters, heads "
        f"{parameters['objective']:,} (teacher included)\n"
        f"crops a step: {plan['crops_per_step']} ({plan['global_batch']} volumes of "
        f"{config.crops.random} random and {config.crops.bases} base crops)\n"
        f"volumes: {plan['train_volumes']:,} to train on, {plan['heldout_volumes']:,} held out, "
        f"of {', '.join(config.data.datasets)}\n"
        f"steps an epoch: {plan['steps_per_epoch']:,}, epochs: {plan['epochs']:.2f}\n"
        f"{plan['reading']}\n"
        + (f"begins with {plan['weights']}\n" if plan["weights"] else "")
        + f"run folder: {plan['folder']}, from step {plan['from_step']} to "
        f"{config.optim.max_steps} (nothing was written)"
    )
    if as_json:
        emit_json(plan)


def _plan(
    config: TrainConfig, workspace: Workspace, gpus: int, procs: int, resume: str
) -> dict[str, Any]:
    """What a run would be; it may ask for more GPUs than are here."""
    import torch

    from prect.train.data import open_data
    from prect.train.networks import describe_encoder, parameter_count
    from prect.train.objectives import build_objective
    from prect.train.prefetch import plan_prefetch
    from prect.train.run_folder import RunFolder, starting_point
    from prect.train.weights import check_start

    data = open_data(workspace, config)
    encoder = describe_encoder(config.network)
    with torch.device("meta"):
        heads = build_objective(config, encoder)
    global_batch = config.data.batch_size * (gpus or procs)
    samples = len(data.sampler(config))
    folder = RunFolder(workspace.run(config.run.name))
    start = starting_point(folder, resume, config, data.table.digest, global_batch)
    weights = check_start(config.network) if start is None else None
    return {
        "weights": weights.describe() if weights else None,
        "from_step": start.step if start else 0,
        "folder": str(workspace.run(config.run.name)),
        "config": config.model_dump(mode="json"),
        "parameters": {
            "backbone": parameter_count(encoder),
            "objective": parameter_count(heads),
        },
        "global_batch": global_batch,
        "crops_per_step": global_batch * config.crops.per_volume,
        "train_volumes": len(data.rows["train"]),
        "heldout_volumes": len(data.rows["heldout"]),
        "steps_per_epoch": -(-samples // global_batch),
        "epochs": config.optim.max_steps * global_batch / samples,
        "reading": plan_prefetch(config, data.geometry, data.names, pin_memory=gpus > 0).describe(),
    }


def run_path(text: str, workspace: str) -> Path:
    """The folder of the run of that name in the workspace, or else the text as a path."""
    from prect.workspace import Workspace

    path = Path(text)
    if len(path.parts) > 1 or path.is_file():
        return path
    run = Workspace(workspace).runs / text
    return path if path.exists() and not run.exists() else run


def _present_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _leads() -> bool:
    return os.environ.get("RANK", "0") == "0"
