"""What a step of a network takes in operations and memory, counted without computing it."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from prect.train.architectures import NETWORKS
from prect.train.flops import encoder_flops
from prect.train.networks import describe_encoder, parameter_count

CROPS = 11
"""Of one volume: two random ones and nine bases."""
SIZE = 64
STATE_BYTES = 20
"""A weight, its gradient and AdamW's three moments (amsgrad), float32."""


def counts(network: str) -> dict[str, Any]:
    """Figures of one volume of crops of 64 x 64 x 64."""
    forward, step = flops(network)
    return {
        "network": network,
        "forward_flops": forward,
        "step_flops": step,
        "state_bytes": STATE_BYTES * parameter_count(describe_encoder(NETWORKS[network])),
        "kept_bytes": kept(network, checkpointing=False),
        "kept_bytes_checkpointing": kept(network, checkpointing=True),
    }


def flops(network: str) -> tuple[int, int]:
    """Operations of the encoder's forward pass, and of both passes, without any recomputing."""
    forward, both = encoder_flops(NETWORKS[network], (SIZE, SIZE, SIZE))
    return CROPS * forward, CROPS * both


def kept(network: str, *, checkpointing: bool) -> int:
    """Bytes that autograd keeps between both passes in float32, each storage once."""
    encoder = describe_encoder(
        NETWORKS[network].model_copy(update={"checkpointing": checkpointing})
    )
    weights = {p.untyped_storage()._cdata for p in encoder.parameters()}
    storages: dict[int, int] = {}
    alive = []  # or the next storage might be given the name of one that is gone

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(_crop())
    return CROPS * sum(storages.values())


def _crop() -> torch.Tensor:
    return torch.empty(1, 1, SIZE, SIZE, SIZE, device="meta")
