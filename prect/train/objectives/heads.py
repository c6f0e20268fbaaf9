"""Projection heads, with a batch norm that sees the batches of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


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


class BatchStatisticsNorm(nn.Module):
    """Batch norm without affine weights or running averages, in float32, across all ranks.

    torch's SyncBatchNorm needs CUDA; this one runs on gloo as well. In evaluation mode each
    process normalises its own batch, so that ranks may evaluate different numbers of batches.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, D) over N; every rank must bring the same N."""
        x = x.float()
        mean = self._mean(x)
        centred = x - mean
        variance = self._mean(centred.square())
        return centred * torch.rsqrt(variance + self.eps)

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=0)
        if self.training and dist.is_initialized() and dist.get_world_size() > 1:
            total: torch.Tensor = _SumOverRanks.apply(mean)  # type: ignore[no-untyped-call]
            return total / dist.get_world_size()
        return mean


class Projector(nn.Sequential):
    """Linear-norm-ReLU twice, then Linear; (N, embedding) to (N, width).

    A bias before the norm would be taken out again by the mean, so there is none.
    """

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__(
            nn.Linear(embedding, width, bias=False),
            BatchStatisticsNorm(),
            nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False),
            BatchStatisticsNorm(),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
        )
