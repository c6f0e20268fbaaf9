"""Operations of a training step, for MFU: the share of a GPU's peak that a run makes use of.

A multiply and an add are two operations. They are counted on the meta device, where nothing is
computed, so they hold for networks and crops of any size. Counted are the encoders alone: heads
and loss are less than a thousandth. What checkpointing computes again is no use that is made of a
GPU, and so it is left out.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from prect.train.config import NetworkConfig, TrainConfig
from prect.train.gpus import find_gpu
from prect.train.networks import describe_encoder
from prect.train.precision import Precision
from prect.train.sections import Ints3


@lru_cache
def encoder_flops(network: NetworkConfig, size: Ints3) -> tuple[int, int]:
    """Operations of an encoder for one crop: of its forward pass, and of both passes.

    Args:
        network: the encoder's settings.
        size: voxels of the crop, (x, y, z).
    """
    plain = network.model_copy(update={"checkpointing": False, "crops_at_once": 0})
    encoder = describe_encoder(plain)
    with FlopCounterMode(display=False) as counter:
        embeddings = encoder(torch.empty(1, 1, *size, device="meta"))
        forward = counter.get_total_flops()
        torch.autograd.backward(embeddings.sum())
    return forward, counter.get_total_flops()


def step_flops(config: TrainConfig) -> int:
    """Operations of a training step for each volume of it, all its crops together.

    Both passes of the student, and the forward pass of a teacher that has an encoder of its own.
    """
    forward, both = encoder_flops(config.network, config.crops.shown)
    teacher = forward if config.objective.teacher_kind == "network" else 0
    return config.crops.per_volume * (both + teacher)


def peak_flops(
    device_name: str | None, precision: Precision, config: TrainConfig | None = None
) -> float | None:
    """Operations a second that a GPU's maker states, dense; None for a GPU that is not known.

    Args:
        device_name: as ``torch.cuda.get_device_name`` has it, or as people say it; None for what
            is no GPU.
        precision: that a run computes in, without ``auto``.
        config: its settings: ``train.peak_tflops`` takes the place of the maker's figure, and
            ``train.tf32`` makes float32 products those of TF32, which they are not without it.
    """
    if config is not None and config.train.peak_tflops:
        return 1e12 * config.train.peak_tflops
    gpu = None if device_name is None else find_gpu(device_name)
    rounds = precision == "float32" and config is not None and config.train.tf32
    tflops = None if gpu is None else gpu.tflops("tf32" if rounds else precision)
    return None if tflops is None else 1e12 * tflops
