"""Time: of a step, of what its data takes to be read, and of the whole run."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np

from prect.manifests.stores import read_cache_table
from prect.train.config import TrainConfig
from prect.train.flops import encoder_flops, peak_flops, step_flops
from prect.train.forecast.figures import Course, Figure, How, Reading, worst
from prect.train.forecast.footprint import PassCost
from prect.train.forecast.planned import Planned
from prect.train.forecast.trial import ReadTrial, StepTrial
from prect.train.prefetch import region_bytes

EFFICIENCY = 0.5
"""Share of its maker's figures that a GPU is assumed to reach, in operations and in bytes of its
memory, which are taken one after the other. Of published encoders it is mostly the bytes: their
maps are large, and what is done to each voxel is little."""


def computing_of(
    planned: Planned, cost: PassCost, trial: StepTrial | None
) -> tuple[Figure | None, str]:
    """Seconds of a step that never waits for data, or why they are not known.

    Args:
        planned: the run.
        cost: what its passes take.
        trial: what was measured, if the device is at hand.
    """
    if trial is not None:
        if trial.volume_s is None:
            return None, trial.note
        # Processes on a CPU share its cores, so together they are no faster than one.
        volumes = planned.volumes if planned.kind == "cpu" else planned.local
        alone = planned.world == 1 or planned.kind == "cpu"
        note = trial.note + ("" if alone else "; without communication")
        return Figure(volumes * trial.volume_s, "s", "measured", note), ""
    if planned.device is not None:
        return None, "it was not to be measured"
    peak = peak_flops(planned.name, planned.precision, planned.config)
    if planned.gpu is None or peak is None:
        named = f" of {planned.name}" if planned.name else ""
        return None, f"the speed{named} is not known"
    bandwidth = 1e9 * planned.gpu.bandwidth
    note = (
        f"{cost.flops / 1e12:.3g} TFLOP at {peak / 1e12:.0f} TFLOPS and "
        f"{cost.moved_bytes / 1e9:.0f} GB of memory at {planned.gpu.bandwidth:.0f} GB/s, of both "
        f"{EFFICIENCY:.0%} assumed to be reached; without communication"
    )
    seconds = (cost.flops / peak + cost.moved_bytes / bandwidth) / EFFICIENCY
    return Figure(seconds, "s", "assumed", note), ""


def reading_of(planned: Planned, computing: Figure | None, trial: ReadTrial | None) -> Reading:
    """What steps ask of disk and loader, and what these give.

    Args:
        planned: the run.
        computing: seconds of a step that never waits.
        trial: what was measured.
    """
    needed = decoded = stored = given = given_decoded = ratio = workers = None
    if computing is not None:
        size, share = _volume_mb(planned), _stored_share(planned)
        needed = Figure(planned.volumes / computing.value, "volumes/s", computing.how)
        note = f"{size:.1f} MB a volume, as it is decoded"
        decoded = Figure(needed.value * size, "MB/s", needed.how, note)
        note = f"stores take {share:.0%} of what they decode to"
        stored = Figure(decoded.value * share, "MB/s", "assumed", note)
    if trial is not None:
        times, note = _readers(planned, trial)
        how: How = "measured" if times == 1 else "assumed"
        given = Figure(times * trial.volumes_per_s, "volumes/s", how, note)
        given_decoded = Figure(times * trial.mb_per_s, "MB/s", how)
        if needed is not None:
            ratio = Figure(given.value / needed.value, "", worst(given, needed))
            here = max(1, planned.reading.workers)
            workers = Figure(math.ceil(here / ratio.value), "workers", ratio.how, "each process")
    return Reading(needed, decoded, stored, given, given_decoded, ratio, workers)


def _readers(planned: Planned, trial: ReadTrial) -> tuple[float, str]:
    """How many times what one process was given all of them get, and what that rests on."""
    workers, world = planned.reading.workers, planned.world
    who = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "the training process"
    note = f"{trial.volumes} volumes in {trial.seconds:.1f} s by {who}"
    if trial.volumes > len(planned.data.rows["train"]):
        note += ", all from the system's memory but the first time"
    if world == 1:
        return 1, note
    if planned.device is None:
        return world, f"{note}; {world} times: each process is taken to have such a machine"
    times = min(world, max(1.0, (os.cpu_count() or 1) / max(1, workers)))
    return times, f"{note}; {times:g} times, for which there are cores"


def course_of(planned: Planned, computing: Figure | None, reading: Reading) -> Course:
    """Steps, and the hours that they take.

    Args:
        planned: the run.
        computing: seconds of a step that never waits.
        reading: what its data takes.
    """
    config, last = planned.config, planned.config.optim.max_steps
    samples = len(planned.data.sampler(config))
    step = None if computing is None else _step(planned, computing, reading)
    evaluations = evaluations_from(config, planned.from_step)
    to_go = whole = None
    if computing is not None and step is not None:
        evaluation = _evaluation_s(planned, computing, reading)
        seconds = (last - planned.from_step) * step.value + evaluations * evaluation
        to_go = Figure(seconds / 3600, "h", step.how)
        seconds = last * step.value + evaluations_from(config, 0) * evaluation
        whole = Figure(seconds / 3600, "h", step.how)
    return Course(
        steps_per_epoch=Figure(-(-samples // planned.volumes), "steps", "counted"),
        epochs=Figure(last * planned.volumes / samples, "epochs", "counted"),
        operations=Figure(planned.volumes * step_flops(config), "FLOP", "counted"),
        computing=computing,
        step=step,
        steps_to_go=Figure(last - planned.from_step, "steps", "counted"),
        evaluations_to_go=Figure(evaluations, "evaluations", "counted"),
        to_go=to_go,
        whole=whole,
    )


def evaluations_from(config: TrainConfig, step: int) -> int:
    """Evaluations that a run still makes after a step; 0 is before the first one."""
    last, every = config.optim.max_steps, config.train.eval_every
    untrained = step == 0
    between = (last // every - step // every) if every else 0
    at_the_end = step < last and (every == 0 or last % every > 0)
    return untrained + between + at_the_end


def _step(planned: Planned, computing: Figure, reading: Reading) -> Figure:
    """Seconds of a step with what its data takes."""
    if reading.given is None:
        return replace(computing, note="data left out")
    workers, reads = planned.reading.workers, planned.volumes / reading.given.value
    how = worst(computing, reading.given)
    if workers == 0:
        return Figure(computing.value + reads, "s", how, "data is read between steps")
    busy = computing.value
    if planned.kind == "cpu":
        # Who reads takes the cores from who computes.
        busy += reads * workers * planned.world / (os.cpu_count() or 1)
    if reads > busy:
        return Figure(reads, "s", how, "waits for data")
    return Figure(busy, "s", how)


def _evaluation_s(planned: Planned, computing: Figure, reading: Reading) -> float:
    """Seconds of an evaluation: forward passes of volumes that each process reads for itself."""
    config = planned.config
    forward, both = encoder_flops(config.network, config.crops.shown)
    teacher = forward if config.objective.teacher_kind == "network" else 0
    each = computing.value / planned.volumes * (forward + teacher) / (both + teacher)
    if reading.given is not None:
        each += max(1, planned.reading.workers) / reading.given.value
    return config.train.eval_views * each


def _volume_mb(planned: Planned) -> float:
    """Mean of the MB that are decoded for a sample."""
    config, data = planned.config, planned.data
    sources, rows = data.names.sources, data.rows["train"]
    sizes = region_bytes(config, data.geometry, sources)[rows]
    weights = np.array([config.data.weights.get(name, 1.0) for name in sources.names])
    return float(np.average(sizes, weights=weights[sources.code[rows]])) / 1e6


def _stored_share(planned: Planned) -> float:
    """Bytes on disk for each byte of voxels, of all stores together."""
    on_disk = voxels = 0.0
    for name in planned.data.names.sources.names:
        path = planned.data.workspace.cache_manifest(name)
        table = read_cache_table(path, ["bytes", "shape", "levels"])
        sides = table["shape"].combine_chunks().flatten().to_numpy()
        shapes = sides.astype(np.int64).reshape(-1, 3).prod(axis=1)
        on_disk += float(np.sum(table["bytes"].to_numpy()))
        # Each level has an eighth of the voxels of the one before.
        levels = (1 - 0.125 ** table["levels"].to_numpy()) / (1 - 0.125)
        voxels += float(np.sum(2 * shapes * levels))
    return on_disk / voxels
