"""The run that is told of: its settings, its volumes, and what it will compute on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from prect.train.config import TrainConfig
from prect.train.data import TrainingData
from prect.train.forecast.footprint import DeviceKind
from prect.train.gpus import Gpu, find_gpu
from prect.train.precision import Precision, resolved_precision
from prect.train.prefetch import PrefetchPlan, plan_prefetch


@dataclass(frozen=True)
class Planned:
    """A run before it begins."""

    config: TrainConfig
    data: TrainingData
    world: int
    from_step: int
    device: torch.device | None
    """At hand, and of the kind that the run will have; None for GPUs that are only planned for."""
    name: str | None
    """Of its GPUs."""

    @property
    def kind(self) -> DeviceKind:
        """What the run computes on."""
        return "cpu" if self.device is not None and self.device.type == "cpu" else "cuda"

    @property
    def local(self) -> int:
        """Volumes that each process adds to a step."""
        return self.config.local_batch(self.world)

    @property
    def volumes(self) -> int:
        """Volumes a step."""
        return self.config.step_volumes(self.world)

    @property
    def title(self) -> str:
        """The device in words."""
        return self.name or ("CPU" if self.kind == "cpu" else "GPUs of an unknown model")

    @cached_property
    def gpu(self) -> Gpu | None:
        """What is known of its GPUs."""
        return None if self.name is None else find_gpu(self.name)

    @cached_property
    def reading(self) -> PrefetchPlan:
        """Workers of each process, and what they hold ready."""
        data, pinned = self.data, self.kind == "cuda"
        return plan_prefetch(self.config, data.geometry, data.names, pin_memory=pinned)

    @property
    def precision(self) -> Precision:
        """That it computes in; GPUs that are not at hand are judged by their names."""
        if self.device is not None:
            return resolved_precision(self.config, self.device)
        if self.config.train.precision != "auto":
            return self.config.train.precision
        return "bfloat16" if self.gpu is None or self.gpu.bfloat16 else "float16"
