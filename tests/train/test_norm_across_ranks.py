"""Batch norm over two processes equals batch norm over both halves together."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from prect.train.objectives.heads import BatchStatisticsNorm

ROWS, WIDTH = 6, 5


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * ROWS, WIDTH, generator=generator) * 2 + 3
    return x, torch.randn(2 * ROWS, WIDTH, generator=generator)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    x, weights = (t[rank * ROWS : (rank + 1) * ROWS].clone() for t in inputs())
    x.requires_grad_()
    norm = BatchStatisticsNorm()
    y = norm(x)
    torch.autograd.backward((y.square() * weights).sum())
    alone = norm.eval()(x)
    torch.save((y.detach(), x.grad, alone.detach()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    spawn(one_rank, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    x, weights = inputs()
    x.requires_grad_()
    y = BatchStatisticsNorm()(x)
    torch.autograd.backward((y.square() * weights).sum())

    torch.testing.assert_close(torch.cat([p[0] for p in parts]), y.detach())
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), x.grad)
    for part, half in zip(parts, torch.split(x.detach(), ROWS), strict=True):
        torch.testing.assert_close(part[2], BatchStatisticsNorm()(half))
