"""Which floating-point type the network computes in."""

from __future__ import annotations

import torch

from prect.train.config import TrainConfig


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Context in which a forward pass runs; losses leave it and stay in float32.

    bfloat16 needs no loss scaling, which float16 does; GPUs without it compute in float32.
    """
    wanted = config.train.precision
    if wanted == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = "bfloat16" if capable else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted == "bfloat16")
