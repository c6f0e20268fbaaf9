"""Memory of one process: what it holds from step to step, and what a step takes beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from prect.train.config import TrainConfig
from prect.train.forecast.figures import Figure, Memory, worst
from prect.train.forecast.footprint import PassCost
from prect.train.forecast.planned import Planned
from prect.train.networks import Encoder, describe_encoder, parameter_count
from prect.train.objectives import build_objective
from prect.train.objectives.heads import Projector
from prect.train.prefetch import region_bytes

FLOAT = 4
"""Bytes of a weight, a gradient or a moment."""
LIBRARIES = {"cpu": (5 * 10**8, "Python, torch, MONAI"), "cuda": (10**9, "CUDA, NCCL")}
"""Bytes assumed for what is there before the first tensor."""
FULL = 0.9
"""Share of a GPU's memory that may be planned for; the rest goes to pieces that nothing fits in."""


@dataclass(frozen=True)
class StateBytes:
    """What one process holds from step to step."""

    trainable: int
    """Parameters that are trained, of all processes together; a number."""
    frozen: int
    """The teacher's."""
    weights: int
    gradients: int
    optimizer: int
    """AdamW's moments: two, or three with ``optim.amsgrad``."""
    teacher: int
    gathered: int
    """With FSDP, whole parts of the network while they are used."""


def state_bytes(config: TrainConfig, world: int) -> StateBytes:
    """Weights and what goes with them, for each of ``world`` processes.

    Under FSDP each holds its part, and while a part of the network is used the whole of it: here
    the largest and the next, fetched ahead, with the gradient of the largest before and after it
    is shared out.
    """
    encoder = describe_encoder(config.network)
    with torch.device("meta"):
        objective = build_objective(config, encoder)
    parameters = [*encoder.parameters(), *objective.parameters()]
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters if not p.requires_grad)
    shared = world if config.train.parallel == "fsdp" else 1
    gathered = 0
    if shared > 1:
        heads = [module for module in objective.modules() if isinstance(module, Projector)]
        units = sorted((parameter_count(m) for m in (*_units(encoder), *heads)), reverse=True)
        gathered = FLOAT * (3 * units[0] + sum(units[1:2]))
    moments = 3 if config.optim.amsgrad else 2
    return StateBytes(
        trainable=trainable,
        frozen=frozen,
        weights=FLOAT * trainable // shared,
        gradients=FLOAT * trainable // shared,
        optimizer=FLOAT * moments * trainable // shared,
        teacher=FLOAT * frozen // shared,
        gathered=gathered,
    )


def _units(encoder: Encoder) -> list[nn.Module]:
    return encoder.blocks() or [encoder]


def memory_of(planned: Planned, state: StateBytes, cost: PassCost, peak: int | None) -> Memory:
    """What a process holds at most in a step.

    Args:
        planned: the run.
        state: what it holds from step to step.
        cost: what its passes take.
        peak: most that whole steps held on the GPU at hand, if they were run.
    """
    config = planned.config
    crops = planned.local * config.crops.per_volume * FLOAT * math.prod(config.crops.shown)
    data = planned.data
    largest = int(region_bytes(config, data.geometry, data.names.sources).max())
    # As they are stored, and as float32 in their window.
    regions = 3 * min(planned.local, config.data.batch_size) * largest
    libraries, named = LIBRARIES[planned.kind]
    parts = {
        "weights": Figure(state.weights, "B", "counted"),
        "gradients": Figure(state.gradients, "B", "counted"),
        "optimiser": Figure(state.optimizer, "B", "counted"),
        "teacher": Figure(state.teacher, "B", "counted"),
        "gathered": Figure(state.gathered, "B", "assumed", "largest parts of the network, whole"),
        "passes": Figure(cost.peak_bytes, "B", "counted", planned.precision),
        "crops": Figure(crops, "B", "counted"),
        "regions": Figure(regions, "B", "counted", "of the largest volumes"),
        "libraries": Figure(libraries, "B", "assumed", named),
    }
    parts = {name: part for name, part in parts.items() if part.value}
    total = Figure(sum(p.value for p in parts.values()), "B", worst(*parts.values()))
    measured = None if peak is None else Figure(peak, "B", "measured", "by torch, in whole steps")
    available = _available(planned)
    taken = total.value if measured is None else measured.value + libraries
    fits = None if available is None else taken <= FULL * available.value
    return Memory(parts, total, measured, available, fits)


def _available(planned: Planned) -> Figure | None:
    if planned.kind == "cpu":
        return None
    if planned.device is not None:
        held = torch.cuda.get_device_properties(planned.device).total_memory
        return Figure(held, "B", "measured", planned.name or "")
    if planned.gpu is None:
        return None
    return Figure(1e9 * planned.gpu.memory, "B", "counted", f"data sheet, {planned.gpu.name}")
