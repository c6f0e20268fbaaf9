"""How the processes of a run share its work: whole copies of the network (DDP), or parts (FSDP2).

Either way a step is that of one process with the global batch: gradients are averaged over the
processes, and every process has the same weights, or its part of the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from prect.errors import ConfigError
from prect.train.batch import CropBatch
from prect.train.config import TrainConfig
from prect.train.learner import Learner
from prect.train.networks import Encoder
from prect.train.objectives import ObjectiveOutput
from prect.train.objectives.heads import Projector


@dataclass(frozen=True)
class Place:
    """Where this process computes, and its part in the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.device.type == "cuda"

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            dist.barrier()


def backend_of(place: Place) -> str:
    """What the processes talk through, as ``torch.distributed.init_process_group`` takes it.

    GPUs have gloo beside NCCL: a checkpoint that is written while training goes on is agreed upon
    from the memory of the host.
    """
    return "cpu:gloo,cuda:nccl" if place.on_gpu else "gloo"


def distribute(learner: Learner, config: TrainConfig, place: Place) -> nn.Module:
    """What to call in a training step: a batch of this process in, its result out.

    The learner stays what evaluation calls and what is saved, under the same names. All processes
    begin with the weights of rank 0. Every forward pass of the result must be followed by its
    backward pass, which averages the gradients over the processes.

    Args:
        learner: on the device of ``place``. With ``train.parallel = "fsdp"`` and more than one
            process its parameters become :class:`~torch.distributed.tensor.DTensor`, so an
            optimiser must be built afterwards.
        config: the settings.
        place: device, rank and number of processes; a single process computes with the learner
            as it is. For more of them the default process group must be there.
    """
    if place.world == 1:
        return learner
    if config.train.parallel == "fsdp":
        _shard(learner, place)
        return learner
    return _Replica(learner, place)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradient down to ``max_norm`` where it is longer; of all processes together.

    Args:
        parameters: parameters with the gradients of a step, whole or in parts.
        max_norm: largest norm.

    Returns:
        The norm before, 0-dimensional, the same on all processes; not finite where any gradient
        is not, and then the gradients are of no use.
    """
    total = torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
    return total.full_tensor() if isinstance(total, DTensor) else total


def compile_encoder(learner: Learner) -> None:
    """Have torch.compile translate the encoders, in place; to be done before they are distributed.

    The translation itself happens at the first passes.

    Raises:
        ConfigError: what torch.compile needs to make code for this device is missing.
    """
    device = next(learner.parameters()).device
    try:
        # The smallest program goes all the way: through the compiler and back into memory.
        torch.compile(torch.nn.functional.gelu)(torch.zeros(8, device=device))
    except Exception as error:
        needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++)"
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"train.compile: torch.compile cannot make code for {device.type}, for which it needs "
            f"{needs}: {reason}. Install what is missing, or set train.compile=false"
        ) from error
    for encoder in _encoders(learner):
        encoder.compile()


class _Replica(nn.Module):
    """One of several copies of a learner, with DistributedDataParallel between them."""

    def __init__(self, learner: Learner, place: Place) -> None:
        super().__init__()
        # No buffer ever changes, so none needs sending at each step; torch 2.13 renamed the switch.
        known = inspect.signature(DistributedDataParallel).parameters
        switch = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {switch: False}
        self.copies = DistributedDataParallel(
            _LossFirst(learner),
            device_ids=[place.device] if place.on_gpu else None,
            gradient_as_bucket_view=True,
            static_graph=True,
            **options,
        )

    def forward(self, batch: CropBatch) -> ObjectiveOutput:
        """See :class:`Learner`."""
        output: ObjectiveOutput
        loss, output = self.copies(batch)
        return replace(output, loss=loss)


class _LossFirst(nn.Module):
    """Shows DistributedDataParallel the loss alone.

    With a static graph it begins to average at the tensors that a module returns, which it does
    not find in a dataclass; and those that it finds it makes part of the graph, with copies.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch: CropBatch) -> tuple[torch.Tensor, ObjectiveOutput]:
        """The loss, and all there is."""
        output: ObjectiveOutput = self.learner(batch)
        return output.loss, output


def _shard(learner: Learner, place: Place) -> None:
    """Leave each process its part of every parameter; whole ones exist while they are used.

    The parts are float32 and so are gradients: autocast casts what has been gathered.
    """
    # Shards of different weights would be no network at all; DistributedDataParallel sends, too.
    for tensor in (*learner.parameters(), *learner.buffers()):
        dist.broadcast(tensor.detach(), src=0)
    # Parts of a parameter are runs of memory, which channels-last order does not allow.
    learner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    mesh = init_device_mesh(place.device.type, (place.world,))
    encoders = _encoders(learner)
    blocks = [block for encoder in encoders for block in encoder.blocks()]
    heads = [module for module in learner.modules() if isinstance(module, Projector)]
    # From the inside out: each takes what those within it have left. Nothing is left for the
    # learner, which is there to be the root.
    for module in (*blocks, *encoders, *heads, learner):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _encoders(learner: Learner) -> list[Encoder]:
    """The student's encoder and, where it has an own, the teacher's."""
    return [module for module in learner.modules() if isinstance(module, Encoder)]
