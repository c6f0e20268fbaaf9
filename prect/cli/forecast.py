"""What ``prect train --dry-run`` tells: the settings, and what the run will be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from prect.cli.console import console, emit_json, human_bytes

if TYPE_CHECKING:
    import torch

    from prect.train.config import TrainConfig
    from prect.workspace import Workspace

_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "moments of AdamW",
    "teacher": "teacher",
    "gathered": "gathered by FSDP",
    "passes": "passes of the encoder",
    "crops": "crops",
    "regions": "regions read",
    "libraries": "libraries",
}


def plan_run(
    config: TrainConfig,
    workspace: Workspace,
    *,
    gpus: int,
    world: int,
    resume: str,
    allow_changed: bool = False,
    gpu_model: str | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """What a run would be; it may ask for more GPUs than are here.

    Args:
        config: the settings.
        workspace: of its data.
        gpus: GPUs on this machine that it would use.
        world: its processes on all machines.
        resume: see :func:`prect.train.state.resume.starting_point`.
        allow_changed: plan to go on although data or settings are others than they were.
        gpu_model: GPUs to plan for, by name.
        measure: time reading and, on a device that is here, steps.

    Raises:
        ConfigError: no GPU of this name is known, and ``train.peak_tflops`` does not say what it
            can do.
    """
    from prect.cache.memory import available_memory
    from prect.train.data import open_data
    from prect.train.forecast import forecast
    from prect.train.gpus import named_gpu
    from prect.train.networks import describe_encoder, parameter_count
    from prect.train.prefetch import plan_prefetch
    from prect.train.run_folder import RunFolder
    from prect.train.state.resume import origin_of, starting_point
    from prect.train.weights import check_start

    if gpu_model is not None and not config.train.peak_tflops:
        named_gpu(gpu_model)
    data = open_data(workspace, config)
    folder = RunFolder(workspace.run(config.run.name))
    origin = origin_of(data, config, world)
    start = starting_point(
        folder, resume, config, origin, allow_changed=allow_changed, verify=False
    )
    weights = check_start(config.network) if start.checkpoint is None else None
    found = forecast(
        config,
        data,
        world=world,
        device=_device_here(gpus),
        gpu_model=gpu_model,
        from_step=start.step,
        measure=measure,
        free_memory=available_memory(),
    )
    backbone = parameter_count(describe_encoder(config.network))
    return {
        "weights": weights.describe() if weights else None,
        "from_step": start.step,
        "folder": str(folder.path),
        "config": config.model_dump(mode="json"),
        "parameters": {
            "backbone": backbone,
            "objective": int(found.trainable.value + found.frozen.value) - backbone,
        },
        "global_batch": origin.global_batch,
        "crops_per_step": origin.global_batch * config.crops.per_volume,
        "train_volumes": len(data.rows["train"]),
        "heldout_volumes": len(data.rows["heldout"]),
        "steps_per_epoch": int(found.course.steps_per_epoch.value),
        "epochs": found.course.epochs.value,
        "reading": plan_prefetch(config, data.geometry, data.names, pin_memory=gpus > 0).describe(),
        "forecast": found.as_json(),
    }


def show_plan(plan: Mapping[str, Any], config: TrainConfig, *, as_json: bool) -> None:
    """Print a plan of `plan_run` for people, and as JSON where that is asked for."""
    console.print_json(data=plan["config"])
    parameters, told = plan["parameters"], plan["forecast"]
    console.print(
        f"network {config.network.name}: {parameters['backbone']:,} parameters, heads "
        f"{parameters['objective']:,} (teacher included)\n"
        f"crops a step: {plan['crops_per_step']} ({plan['global_batch']} volumes of "
        f"{config.crops.random} random and {config.crops.bases} base crops)\n"
        f"volumes: {plan['train_volumes']:,} to train on, {plan['heldout_volumes']:,} held out, "
        f"of {', '.join(config.data.datasets)}\n"
        f"{plan['reading']}"
    )
    console.print(_table(told))
    for sentence in _sentences(told, config):
        console.print(sentence)
    console.print(
        (f"begins with {plan['weights']}\n" if plan["weights"] else "")
        + f"run folder: {plan['folder']}, from step {plan['from_step']} to "
        f"{config.optim.max_steps} (nothing was written)"
    )
    if as_json:
        emit_json(dict(plan))


def _device_here(gpus: int) -> torch.device | None:
    """What the run would compute on, if it is here."""
    import torch

    if gpus == 0:
        return torch.device("cpu")
    return torch.device("cuda", 0) if torch.cuda.is_available() else None


def _table(told: Mapping[str, Any]) -> Table:
    count = told["processes"]
    title = f"{count} x {told['device']}, {told['precision']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("how it was come by", overflow="fold")
    for section in (_memory_rows, _step_rows, _reading_rows, _run_rows):
        for name, figure in section(told):
            if figure is not None:
                note = f": {figure['note']}" if figure["note"] else ""
                table.add_row(name, quantity(figure), figure["how"] + note)
        table.add_section()
    return table


_Rows = Iterator[tuple[str, Mapping[str, Any] | None]]


def _memory_rows(told: Mapping[str, Any]) -> _Rows:
    memory = told["memory"]
    yield "trained parameters", told["trainable"]
    if told["frozen"]["value"]:
        yield "teacher's parameters", told["frozen"]
    for name, figure in memory["parts"].items():
        yield f"  {_PARTS[name]}", figure
    yield "memory, together", memory["total"]
    yield "  seen in whole steps", memory["measured"]
    yield "memory of the GPU", memory["available"]


def _step_rows(told: Mapping[str, Any]) -> _Rows:
    course = told["course"]
    yield "operations of a step", course["operations"]
    yield "computing a step", course["computing"]


def _reading_rows(told: Mapping[str, Any]) -> _Rows:
    reading = told["reading"]
    yield "steps need", reading["needed"]
    yield "  decoded", reading["decoded"]
    yield "  from the disk", reading["stored"]
    yield "the loader gives", reading["given"]
    yield "  decoded", reading["given_decoded"]


def _run_rows(told: Mapping[str, Any]) -> _Rows:
    course = told["course"]
    yield "steps an epoch", course["steps_per_epoch"]
    yield "epochs", course["epochs"]
    yield "a step with its data", course["step"]
    yield "steps to go", course["steps_to_go"]
    yield "evaluations to go", course["evaluations_to_go"]
    yield "time to go", course["to_go"]
    yield "time of the whole run", course["whole"]


def _sentences(told: Mapping[str, Any], config: TrainConfig) -> Iterator[str]:
    """What the figures come to."""
    memory, reading = told["memory"], told["reading"]
    if memory["fits"] is not None:
        size = human_bytes(memory["available"]["value"])
        yield (
            f"this fits into the {size} of the GPU"
            if memory["fits"]
            else f"this does NOT fit into the {size} of the GPU, or too closely: set "
            + ", or ".join(_savers(config, told["processes"]))
        )
    if reading["ratio"] is not None:
        ratio, workers = reading["ratio"]["value"], int(reading["workers"]["value"])
        if ratio >= 1:
            yield f"the loader gives {ratio:.1f} times what the steps need"
        else:
            yield (
                f"the loader gives only {ratio:.2f} of what the steps need, so training would wait "
                f"for data: with cores for it data.workers={workers} (and data.prefetch_mib for as "
                "many) would do"
            )
    for text in told["unknown"]:
        yield f"not known: {text}"


def _savers(config: TrainConfig, processes: int) -> Iterator[str]:
    """Settings that save memory and are not set."""
    if config.network.name == "swin_unetr" and not config.network.checkpointing:
        yield "network.checkpointing=true"
    if processes > 1 and config.train.parallel == "ddp":
        yield "train.parallel=fsdp"
    if config.data.batch_size > 1:
        yield "a smaller data.batch_size with the same data.global_batch"
    if config.network.crops_at_once != 1:
        yield "network.crops_at_once=N"
    yield "a smaller network"


def quantity(figure: Mapping[str, Any]) -> str:
    """A figure of a forecast with its unit, in a size that people read."""
    value, unit = figure["value"], figure["unit"]
    if unit == "B":
        return human_bytes(value)
    if unit == "FLOP":
        return f"{value / 1e12:.3g} TFLOP"
    if unit == "h":
        if value >= 48:
            return f"{value / 24:.1f} days"
        return f"{value:.1f} h" if value >= 1 else f"{60 * value:.1f} min"
    if unit in {"s", "volumes/s", "MB/s"}:
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return f"{value:,.2f}" if unit == "epochs" else f"{value:,.0f}"
