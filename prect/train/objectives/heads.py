"""Projection heads, with a batch norm that sees the batches of all ranks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from prect.errors import TrainingError
from prect.train.objectives.ranks import sum_over_ranks, world_size

Norm = Literal["batch", "layer"]


class BatchStatisticsNorm(nn.Module):
    """Batch norm without affine weights or running averages, in float32, across all ranks.

    torch's SyncBatchNorm needs CUDA; this one runs on gloo as well. In evaluation mode each
    process normalises its own batch, so that ranks may evaluate different numbers of batches.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, D) over N; every rank must bring the same N.

        Raises:
            TrainingError: there is one row in all, which has no statistics.
        """
        world = world_size() if self.training else 1
        if len(x) * world < 2:
            raise TrainingError(
                "batch statistics of a single crop make it zero, whatever it shows; bring two "
                "crops or more, or set objective.norm='layer'"
            )
        x = x.float()
        centred = x - _mean(x, world)
        variance = _mean(centred.square(), world)
        return centred * torch.rsqrt(variance + self.eps)


def _mean(x: torch.Tensor, world: int) -> torch.Tensor:
    mean = x.mean(dim=0)
    return sum_over_ranks(mean) / world if world > 1 else mean


class Projector(nn.Sequential):
    """Linear-norm-ReLU twice, then Linear; (N, embedding) to (N, width).

    No norm has affine weights. A bias before a batch norm would be taken out again by the mean, so
    there is none; a layer norm leaves it in.
    """

    def __init__(self, embedding: int, width: int, norm: Norm = "batch") -> None:
        super().__init__(
            *_hidden(embedding, width, norm), *_hidden(width, width, norm), nn.Linear(width, width)
        )


def _hidden(inputs: int, width: int, norm: Norm) -> list[nn.Module]:
    if norm == "layer":
        layer = nn.LayerNorm(width, elementwise_affine=False)
        return [nn.Linear(inputs, width), layer, nn.ReLU(inplace=True)]
    return [nn.Linear(inputs, width, bias=False), BatchStatisticsNorm(), nn.ReLU(inplace=True)]
