"""Values of other processes, with gradients that find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _SumOverRanks(torch.autograd.Function):
    """Sum over all ranks whose gradient is summed over all ranks too."""

    @staticmethod
    def forward(_ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all ranks, which have the same shape.

    The gradient is that of the sum of all ranks' losses: once averaged over the ranks, as
    DistributedDataParallel does, it is that of the mean loss.
    """
    total: torch.Tensor = _SumOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def of_next_volume(values: torch.Tensor, *, alone: bool) -> torch.Tensor | None:
    """For each volume, the values of the next volume of the global batch; the last has the first.

    The global batch is that of rank 0, then that of rank 1 and so on, so the result does not depend
    on how it is shared out.

    Args:
        values: (B, ...) of this rank; B is the same on all ranks.
        alone: close the ring within this rank, without a word to the others.

    Returns:
        (B, ...), differentiable; None if the batch holds one volume, which has no other.
    """
    world = 1 if alone else world_size()
    if len(values) * world < 2:
        return None
    first = values[:1]
    if world > 1:
        rank = dist.get_rank()
        # Each rank fills its own row of zeros; the sum of all is the list of first volumes.
        row = torch.zeros(world, *[1] * (values.ndim - 1), device=values.device, dtype=values.dtype)
        row[rank] = 1
        following = (rank + 1) % world
        first = sum_over_ranks(row * first)[following : following + 1]
    return torch.cat([values[1:], first])
