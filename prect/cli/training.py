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
    ExitCode,
    JsonOption,
    WorkspaceOption,
    console,
    emit_json,
    interruptible,
)
from prect.cli.forecast import plan_run, show_plan

if TYPE_CHECKING:
    from prect.train.callbacks import RunStart
    from prect.train.evaluate import Heldout


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
    nodes: Annotated[
        int,
        typer.Option(min=1, help="Machines that take part; the same command runs on each of them."),
    ] = 1,
    rendezvous: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where several machines meet: on the first one."),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="Times that all processes of a run of several are started again, from the newest "
            "checkpoint, because one of them has died.",
        ),
    ] = 3,
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
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed",
            help="Go on from a checkpoint although the manifest or the settings have changed.",
        ),
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="STEPS", help="Steps to write a trace of, e.g. 20 or 20-22; counted from 1."
        ),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would run, the memory and time that it takes and whether reading keeps "
            "up; write nothing.",
        ),
    ] = False,
    gpu_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With --dry-run: plan for GPUs that are not here, e.g. H100."
        ),
    ] = None,
    no_measure: Annotated[
        bool, typer.Option("--no-measure", help="With --dry-run: time nothing, only count.")
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
    if (gpu_model or no_measure) and not dry_run:
        raise typer.BadParameter("--gpu-model and --no-measure go with --dry-run")
    # OpenMP threads that spin while they wait take the cores from the workers that read, and
    # from whatever else runs; it must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if dry_run:
        if gpu_model and gpus == 0:
            raise typer.BadParameter("--gpu-model goes with one GPU or more, not with --gpus 0")
        gpus = _present_gpus() or (1 if gpu_model else 0) if gpus is None else gpus
        plan = plan_run(
            resolved,
            Workspace(workspace),
            gpus=gpus,
            world=(gpus or procs) * nodes,
            resume=resume,
            allow_changed=allow_changed,
            gpu_model=gpu_model,
            measure=not no_measure,
        )
        show_plan(plan, resolved, as_json=as_json)
        return
    from prect.train.launch import Launch, launch
    from prect.train.report.profiling import parse_steps

    how = Launch(
        gpus=_present_gpus() if gpus is None else gpus,
        procs=procs,
        nodes=nodes,
        rendezvous=rendezvous or "localhost:0",
        max_restarts=max_restarts,
        resume=resume,
        allow_changed=allow_changed,
        profile=parse_steps(profile) if profile is not None else None,
    )
    listener = _Listener(interactive=console.is_terminal)
    with interruptible("the same command goes on from the newest checkpoint"):
        try:
            summary = launch(resolved, Path(workspace), listener, how)
        finally:
            listener.close()
    if _leads():
        _print_summary(summary)
        if as_json:
            emit_json(summary)
    if summary.get("stopped"):
        raise typer.Exit(_exit_of_stop(summary["stopped"]))


def _exit_of_stop(name: str) -> ExitCode:
    """What a shell or a cluster is told of a run that was stopped and saved."""
    return ExitCode.INTERRUPTED if name == "SIGINT" else ExitCode.TRY_AGAIN


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
            f"{start.parameters:,} parameters, {start.computing}, {start.reading}{went_on}"
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

    def on_notice(self, step: int, text: str) -> None:
        console.print(f"step {step}: {text}", style="yellow")

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
    if summary.get("stopped"):
        _print_stop(summary)
        return
    console.print(_heldout_table(summary))
    console.print(summary["verdict"])
    if summary["quarantined"]:
        damaged = ", ".join("/".join(case) for case in summary["quarantined"])
        console.print(
            f"{len(summary['quarantined'])} volumes could not be read: {damaged}", style="yellow"
        )
    if summary["skipped"] or summary["spikes"]:
        console.print(
            f"{summary['skipped']} steps were skipped, {summary['spikes']} losses were spikes: "
            f"{summary['folder']}/incidents.jsonl",
            style="yellow",
        )
    if summary["worker_restarts"]:
        console.print(
            f"reading processes died and were started again {summary['worker_restarts']} "
            f"times: {summary['folder']}/quarantine-rank*.jsonl",
            style="yellow",
        )


def _print_stop(summary: Mapping[str, Any]) -> None:
    error = summary["save_error"]
    state = "saved" if error is None else f"NOT saved: {error}"
    console.print(
        f"{summary['run']} stopped by {summary['stopped']} after step {summary['step']} of "
        f"{summary['max_steps']}, {state}; the same command goes on",
        style="yellow" if error is None else "bold red",
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
