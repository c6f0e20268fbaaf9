"""A look at what this machine can do: seconds of a step, and volumes a second from its stores.

Both run what training runs, for some seconds, and write nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from prect.train.batch import CropBatch
from prect.train.config import TrainConfig
from prect.train.dataset import ViewDataset
from prect.train.flops import encoder_flops
from prect.train.forecast.footprint import crops_in_a_pass, step_cost
from prect.train.forecast.memory import state_bytes
from prect.train.learner import build_learner
from prect.train.loader import train_loader
from prect.train.networks import build_encoder
from prect.train.optimizer import build_optimizer
from prect.train.parallel import clip_gradients
from prect.train.precision import autocast, resolved_precision, scaler_of, set_tf32
from prect.train.prefetch import plan_prefetch

READING_S = 4.0
"""Time for reading, once all workers have begun to give."""
STEP_S = 20.0
"""Time for steps; a pass that has begun is ended."""
_PATIENCE = 4
"""Times that reading may take from its first batch."""
_MANY = 1_000_000
_GAUGE = 1024
"""Rows of the matrices whose product tells how fast a device can be at best."""
_HOPE = 4
"""Times that a crop may take longer than a product of matrices with as many operations."""
_STEPS = 5
_ALONE = {"batch_size": 1, "global_batch": 1}


@dataclass(frozen=True)
class ReadTrial:
    """What the run's loader gave one training process that did nothing else."""

    volumes_per_s: float
    mb_per_s: float
    """Decoded voxels, 10^6 bytes."""
    volumes: int
    seconds: float


@dataclass(frozen=True)
class StepTrial:
    """Seconds that computing took on a device."""

    volume_s: float | None
    """For each volume; None where it was not measured."""
    note: str
    """On what, or why not."""
    peak_bytes: int | None = None
    """Memory of a GPU in whole steps."""


def measure_reading(
    views: ViewDataset,
    config: TrainConfig,
    step: int,
    world: int,
    *,
    pin_memory: bool = False,
    seconds: float | None = None,
) -> ReadTrial:
    """Let the run's loader read as fast as it can, as the first of ``world`` processes has it.

    Args:
        views: the stream of training samples.
        config: the run's settings.
        step: step to begin with.
        world: processes of the run.
        pin_memory: hand batches out in page-locked memory.
        seconds: for how long, once all workers have begun to give; `READING_S` when left out.

    Raises:
        ConfigError, StoreError, TrainingError: as :func:`prect.train.loader.train_loader`.
    """
    plan = plan_prefetch(config, views.sampler.volumes, views.names, pin_memory=pin_memory)
    limit = READING_S if seconds is None else seconds
    came: list[tuple[float, int, int]] = []
    steps = range(step, step + _MANY)
    loader = train_loader(views, config, steps, world=world, pin_memory=pin_memory, recycle=True)
    with closing(loader) as batches:
        for batch in batches:
            now = time.perf_counter()
            came.append((now, len(batch), batch.voxel_bytes))
            # The first batches of all workers come at about the same time.
            enough = len(came) > plan.workers + 1 and now - came[plan.workers][0] >= limit
            if enough or now - came[0][0] >= _PATIENCE * limit:
                break
    begin = min(plan.workers, len(came) - 2)
    counted = came[begin + 1 :]
    spent, volumes = counted[-1][0] - came[begin][0], sum(n for _, n, _ in counted)
    read = sum(size for _, _, size in counted)
    return ReadTrial(volumes / spent, read / 1e6 / spent, volumes, spent)


def measure_step(
    config: TrainConfig, world: int, device: torch.device, free: int | None = None
) -> StepTrial:
    """Time whole steps on made-up crops, or where they would take too long some crops' passes.

    Communication between processes and torch.compile are left out.

    Args:
        config: the run's settings.
        world: processes of the run; one of them is measured.
        device: where to compute.
        free: bytes of memory that may be taken on a CPU; no matter how many when left out.
    """
    if device.type == "cuda":
        set_tf32(config.train.tf32)
        return _whole_steps(config, world, device, STEP_S)
    with _threads(config):
        return _on_cpu(config, world, free)


def _on_cpu(config: TrainConfig, world: int, free: int | None) -> StepTrial:
    begun = time.perf_counter()
    share = config.local_batch(world) * config.crops.per_volume
    cost = step_cost(config, world, resolved_precision(config, torch.device("cpu")), "cpu")
    _, both = encoder_flops(config.network, config.crops.shown)
    room = _room(config, free)
    if room < 1:
        return StepTrial(None, "one crop would not fit into the memory of this machine")
    least = both / _best_rate()
    if least > STEP_S / _HOPE:
        return StepTrial(None, f"a single crop would take {least:.0f} s here at the very least")
    # What passes of the run compute again comes in by its operations.
    repeated = cost.flops / (share * both)
    pilot = _Pilot(config)
    one = pilot.seconds(1)
    left = STEP_S - (time.perf_counter() - begun)
    if room >= share and 3 * one * share * repeated < left:
        return _whole_steps(config, world, torch.device("cpu"), left)
    crops = max(1, min(int(left / (1.5 * one)), crops_in_a_pass(config, world), room))
    each = pilot.seconds(crops) / crops if left > 1.5 * one else one
    note = f"passes of {crops} crop{'s' if crops > 1 else ''}, scaled by operations"
    return StepTrial(config.crops.per_volume * each * repeated, note)


def _room(config: TrainConfig, free: int | None) -> int:
    """Crops for which there is memory on a CPU, without checkpointing."""
    if free is None:
        return _MANY
    plain = _plain(config).model_copy(update={"data": config.data.model_copy(update=_ALONE)})
    cost = step_cost(plain, 1, resolved_precision(config, torch.device("cpu")), "cpu")
    state = state_bytes(config, 1)
    held = state.weights + state.gradients + state.optimizer + state.teacher
    return (free - held) * config.crops.per_volume // cost.peak_bytes


def _plain(config: TrainConfig) -> TrainConfig:
    """The same without any passes that are computed again."""
    network = config.network.model_copy(update={"checkpointing": False, "crops_at_once": 0})
    return config.model_copy(update={"network": network})


class _Pilot:
    """Passes of some crops through an encoder like the run's."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.encoder = build_encoder(_plain(config).network)

    def seconds(self, crops: int) -> float:
        """Time of both passes."""
        images = torch.rand(crops, 1, *self.config.crops.shown)
        start = time.perf_counter()
        with autocast(self.config, images.device):
            embeddings = self.encoder(images)
        torch.autograd.backward(embeddings.sum())
        self.encoder.zero_grad(set_to_none=True)
        return time.perf_counter() - start


def _whole_steps(config: TrainConfig, world: int, device: torch.device, limit: float) -> StepTrial:
    volumes = config.local_batch(world)
    begun, seconds = time.perf_counter(), []
    try:
        for took in _steps(config, volumes, world, device):
            seconds.append(took)
            spent = time.perf_counter() - begun
            if len(seconds) > _STEPS or spent * (1 + 1 / len(seconds)) > limit:
                break
    except torch.OutOfMemoryError:
        return StepTrial(None, f"{volumes} volumes do not fit into the memory of this GPU")
    timed = seconds[1:] or seconds  # the first also makes memory ready, and chooses kernels
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    what = f"{len(timed)} whole step{'s' if len(timed) > 1 else ''} of {volumes} volumes"
    return StepTrial(median(timed) / volumes, what, peak)


def _steps(config: TrainConfig, volumes: int, world: int, device: torch.device) -> Iterator[float]:
    """Seconds of one training step after the other, with crops that are noise."""
    learner = build_learner(config).to(device)
    learner.pass_at_once(crops_in_a_pass(config, world))
    optimizer = build_optimizer(config, learner, device)
    scaler = scaler_of(config, device)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    crops = config.crops
    batch = CropBatch(
        torch.rand(volumes * crops.per_volume, 1, *crops.shown, device=device),
        torch.rand(volumes, crops.random, crops.bases, device=device).softmax(dim=-1),
    )
    while True:
        start = time.perf_counter()
        with autocast(config, device):
            output = learner(batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(output.loss))
        scaler.unscale_(optimizer)
        clip_gradients(parameters, config.optim.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        learner.objective.after_step(1 / config.optim.max_steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield time.perf_counter() - start


def _best_rate() -> float:
    """Operations a second of a product of matrices, which no network reaches."""
    a = torch.rand(_GAUGE, _GAUGE)
    took = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(a, a)
        took.append(time.perf_counter() - start)
    return 2 * _GAUGE**3 / min(took)


@contextmanager
def _threads(config: TrainConfig) -> Iterator[None]:
    """As many threads as the run will have, given back at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.train.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
