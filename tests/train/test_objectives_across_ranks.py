"""A global batch gives the same loss and gradient, however many processes share it.

That holds for the batch norm of the projectors as for the ring between volumes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from prect.train.batch import CropBatch
from prect.train.objectives import ObjectiveOutput
from prect.train.objectives.voco import Voco
from tests.train.test_objectives import OBJECTIVES, Flat, make, make_batch

CROPS = 6
SHARES = [(3, 2), (3, 1), (2, 3)]
"""Processes, and volumes of each."""
Figures = dict[str, Any]


class Pair(nn.Module):
    """Encoder and objective under one wrapper, with a teacher that is not the student."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone: Flat
        self.objective: Voco
        self.backbone, self.objective = make(name, teacher="projector", inter_weight=0.7)
        generator = torch.Generator().manual_seed(9)
        assert self.objective.teacher is not None
        for weight in self.objective.teacher.parameters():
            weight.add_(0.3 * torch.rand(weight.shape, generator=generator))

    def forward(self, batch: CropBatch) -> ObjectiveOutput:
        output: ObjectiveOutput = self.objective(self.backbone, batch)
        return output


def part(batch: CropBatch, rank: int, volumes: int) -> CropBatch:
    rows = slice(rank * volumes * CROPS, (rank + 1) * volumes * CROPS)
    return CropBatch(batch.crops[rows], batch.labels[rank * volumes : (rank + 1) * volumes])


def step(model: nn.Module, pair: Pair, batch: CropBatch) -> Figures:
    output = model(batch)
    torch.autograd.backward(output.loss)
    gradients = {n: p.grad for n, p in pair.named_parameters() if p.grad is not None}
    kept = {"cosine": output.cosine, "embeddings": output.embeddings, **output.volume_terms}
    terms = {name: value.detach() for name, value in output.terms.items()}
    return {"loss": output.loss.detach(), "terms": terms, "kept": kept, "gradients": gradients}


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for world, volumes in SHARES:
        if rank >= world:
            continue
        address = f"file://{folder}/meeting-{world}-{volumes}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
        figures = {}
        for name in OBJECTIVES:
            pair = Pair(name)
            batch = part(make_batch(world * volumes), rank, volumes)
            figures[name] = step(DistributedDataParallel(pair), pair, batch)
            if rank == 0:  # an evaluation asks nobody, so the others need not be there
                figures[name]["alone"] = pair.eval()(batch).terms
        torch.save(figures, Path(folder) / f"{world}-{volumes}-{rank}.pt")
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    start_processes(one_rank, args=(str(folder),), nprocs=3, start_method="forkserver")
    return folder


@pytest.mark.parametrize(("world", "volumes"), SHARES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_processes_equal_one_with_the_same_global_batch(
    results: Path, name: str, world: int, volumes: int
) -> None:
    ranks = [torch.load(results / f"{world}-{volumes}-{rank}.pt")[name] for rank in range(world)]
    pair = Pair(name)
    batch = make_batch(world * volumes)
    one = step(pair, pair, batch)

    assert ("inter" in one["terms"]) == (name == "voco-paper")
    assert ("inter_pos" in one["terms"]) == (name == "voco-v2")
    losses = torch.stack([rank["loss"] for rank in ranks])
    torch.testing.assert_close(losses.mean(), one["loss"])
    for term, value in one["terms"].items():
        each = torch.stack([rank["terms"][term] for rank in ranks])
        torch.testing.assert_close(each.mean(), value)
    for kept, value in one["kept"].items():
        torch.testing.assert_close(torch.cat([rank["kept"][kept] for rank in ranks]), value)
    for rank in ranks:
        assert set(rank["gradients"]) == set(one["gradients"])
        for parameter, gradient in one["gradients"].items():
            ours = rank["gradients"][parameter]
            torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=5e-5, msg=parameter)

    alone = Pair(name).eval()(part(batch, 0, volumes)).terms
    torch.testing.assert_close(ranks[0]["alone"], alone)


def test_inter_term_reaches_the_next_process(results: Path) -> None:
    """Without the neighbour's volume in the ring the values above would not be those of one."""
    pair = Pair("voco-v2").eval()
    closed = pair(part(make_batch(6), 0, 2)).terms["inter_neg"]
    ring = torch.load(results / "3-2-0.pt")["voco-v2"]["terms"]["inter_neg"]
    assert not torch.isclose(ring, closed, rtol=1e-3)
