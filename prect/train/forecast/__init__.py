"""What a run will be, told before it begins: parameters, memory, data, time.

Every figure says how it was come by. *Counted* ones follow from settings, shapes and manifests.
*Measured* ones were timed on this machine. *Assumed* ones rest on a maker's figures or on a rule of
thumb, which they name; a figure that is made of several is as good as the worst of them.
"""

from __future__ import annotations

import torch

from prect.train.config import TrainConfig
from prect.train.data import TrainingData
from prect.train.dataset import PoolFactory
from prect.train.forecast.figures import Figure, Forecast
from prect.train.forecast.footprint import step_cost
from prect.train.forecast.memory import memory_of, state_bytes
from prect.train.forecast.pace import computing_of, course_of, reading_of
from prect.train.forecast.planned import Planned
from prect.train.forecast.trial import measure_reading, measure_step
from prect.train.loader import start_server

__all__ = ["Figure", "Forecast", "forecast"]


def forecast(
    config: TrainConfig,
    data: TrainingData,
    *,
    world: int,
    device: torch.device | None,
    gpu_model: str | None = None,
    from_step: int = 0,
    measure: bool = True,
    free_memory: int | None = None,
    pool: PoolFactory | None = None,
) -> Forecast:
    """Tell what a run will be; takes up to half a minute where it measures, and writes nothing.

    Args:
        config: the run's settings.
        data: its volumes.
        world: processes of the run.
        device: that is at hand, of the kind that the run will have; None for GPUs that are not.
        gpu_model: GPUs to plan for instead, by name.
        from_step: step that the run goes on from.
        measure: time steps on the device at hand, and reading.
        free_memory: bytes that timing steps on a CPU may take; no matter how many when left out.
        pool: makes the pools to read stores through; the default opens stores on disk.

    Raises:
        ConfigError: the global batch cannot be shared out among ``world`` processes.
        StoreError, TrainingError: reading is measured, and a store cannot be read.
    """
    if measure and config.data.workers:
        start_server()  # it loads what workers need while the rest is counted
    here = device if gpu_model is None else None
    on_gpu = here is not None and here.type == "cuda"
    name = torch.cuda.get_device_name(here) if on_gpu else gpu_model
    planned = Planned(config, data, world, from_step, here, name)
    state = state_bytes(config, world)
    cost = step_cost(config, world, planned.precision, planned.kind)
    read = steps = None
    unknown = []
    if measure:
        # Page-locked copies may leave room for fewer workers than were asked for.
        fewer = config.data.model_copy(update={"workers": planned.reading.workers})
        views = data.views(config, "train", pool)
        loading = config.model_copy(update={"data": fewer})
        read = measure_reading(views, loading, from_step, world, pin_memory=on_gpu)
        if here is not None:
            steps = measure_step(config, world, here, free_memory)
    else:
        unknown.append("what the loader gives: it was not to be measured")
    computing, why = computing_of(planned, cost, steps)
    unknown += [] if computing is not None else [f"time: {why}"]
    reading = reading_of(planned, computing, read)
    return Forecast(
        device=planned.title,
        processes=world,
        precision=planned.precision,
        trainable=Figure(state.trainable, "parameters", "counted"),
        frozen=Figure(state.frozen, "parameters", "counted"),
        memory=memory_of(planned, state, cost, steps.peak_bytes if steps else None),
        reading=reading,
        course=course_of(planned, computing, reading),
        unknown=tuple(unknown),
    )
