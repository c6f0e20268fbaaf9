"""The optimiser, whose state is there before the first step.

So a checkpoint can be read into it in place, whole or in parts, without a copy.
"""

from __future__ import annotations

import torch

from prect.train.config import TrainConfig
from prect.train.learner import Learner


def build_optimizer(
    config: TrainConfig, learner: Learner, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, with the state that it would make at its first step.

    Args:
        config: the settings.
        learner: as it will be trained: distributed already, if it is to be.
        device: where its parameters lie. On GPUs one fused kernel does a step.
    """
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.AdamW(
        [parameter for parameter in learner.parameters() if parameter.requires_grad],
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        amsgrad=config.optim.amsgrad,
        fused=fused,
    )
    moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if config.optim.amsgrad else [])]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            # Unless the kernel itself counts, the count lies where Python reads it.
            where = parameter.device if fused else torch.device("cpu")
            state["step"] = torch.zeros((), dtype=torch.float32, device=where)
            for moment in moments:
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return optimizer


def optimizer_tensors(
    learner: Learner, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimiser's own tensors as ``<parameter name>.<state key>``, to be read and written.

    Args:
        learner: the parameters' names are those of its ``state_dict``.
        optimizer: of that learner.
    """
    return {
        f"{name}.{key}": tensor
        for name, parameter in learner.named_parameters()
        if parameter in optimizer.state
        for key, tensor in optimizer.state[parameter].items()
    }
