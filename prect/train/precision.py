"""Which floating-point type the network computes in."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

from prect.train.config import TrainConfig

Precision = Literal["float32", "bfloat16", "float16"]

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolved_precision(config: TrainConfig, device: torch.device) -> Precision:
    """``train.precision`` on a device, without ``auto``.

    bfloat16 reaches as far as float32 and needs no loss scaling, so GPUs that compute in it do;
    others take float16, and CPUs float32.
    """
    wanted = config.train.precision
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Context in which a forward pass runs; losses leave it and stay in float32."""
    precision = resolved_precision(config, device)
    lower = precision != "float32"
    return torch.autocast(device.type, _TYPES.get(precision, torch.bfloat16), enabled=lower)


def scaler_of(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of the loss; it does nothing unless the network computes in float16.

    float16 ends at 6e-8, where many gradients begin. So the loss is multiplied, and the scale is
    halved at each overflow and doubled after 2000 steps without one.
    """
    enabled = resolved_precision(config, device) == "float16"
    return torch.amp.GradScaler(device.type, enabled=enabled)


def set_tf32(on: bool) -> None:
    """Whether GPUs may round the factors of float32 products and convolutions to TF32.

    It holds for the process. torch 2.9 has new switches, which torch.compile cannot read; the old
    ones set the new ones, too, and some releases give notice that they will go.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")
        torch.backends.cuda.matmul.allow_tf32 = on
        torch.backends.cudnn.allow_tf32 = on
