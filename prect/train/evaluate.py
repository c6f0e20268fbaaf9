"""Held-out figures: does the network find the place of a crop in patients it never saw?

The views and their augmentation come from a stream of their own, the same at every
evaluation, so that two figures differ only by the network. Ranks share the batches out; a
batch is normalised on its own (``train.eval_batch`` volumes), and every view's figures and
embeddings go to its own place in a table, so nothing depends on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from prect.train.batch import CropBatch, assemble
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine
from prect.train.dataset import ViewDataset
from prect.train.diagnostics import (
    effective_rank,
    embedding_distance,
    relative_spread,
    spearman,
)
from prect.train.heldout import Heldout, heldout_from
from prect.train.learner import Learner
from prect.train.loader import read_steps
from prect.train.objectives import ObjectiveOutput
from prect.train.objectives.floor import Floor, constant_floor
from prect.train.precision import autocast
from prect.train.prefetch import HERE

__all__ = ["Heldout", "evaluate", "floor_of", "heldout_from"]


@torch.no_grad()
def evaluate(
    learner: Learner,
    views: ViewDataset,
    config: TrainConfig,
    device: torch.device,
    *,
    rank: int = 0,
    world: int = 1,
    quarantine: Quarantine | None = None,
    step: int = 0,
    beat: Callable[[], None] | None = None,
) -> Heldout:
    """Average over the first ``train.eval_views`` views of the held-out stream.

    Args:
        learner: the network and its heads.
        views: the held-out stream.
        config: the run's settings.
        device: where to compute.
        rank: number of this process among ``world``; ranks share the batches out.
        world: processes of the run.
        quarantine: told what was replaced.
        step: step of the run, for its record.
        beat: called after each batch, for who watches over progress.
    """
    size = config.train.eval_batch
    wanted = range(config.train.eval_views)
    shared_out = [wanted[i : i + size] for i in wanted[::size]]
    batches, most = shared_out[rank::world], len(shared_out[::world])
    # Read here: workers of its own would hold as much ready again as those of training do.
    loader = read_steps(
        views,
        batches.__getitem__,
        range(len(batches)),
        HERE,
        quarantine=quarantine,
        recycle=True,
        record=("heldout", step),
    )
    table = _ViewTable(len(wanted), device)
    learner.eval()
    for numbers, raw in zip(batches, loader, strict=True):
        batch = assemble(raw.to(device), config.view, config.crops)
        with autocast(config, device):
            output = learner(batch)
        for name, rows in _of_views(output, batch.labels).items():
            table.put(name, numbers, rows)
        if beat is not None:
            beat()
    if config.train.parallel == "fsdp":
        # A pass gathers parameters from all ranks, so each of them has to make as many.
        for _ in range(most - len(batches)):
            with autocast(config, device):
                learner(_blank(config, device))
    learner.train()
    if world > 1:
        table.share()
    return _summary(table.columns, config)


def _blank(config: TrainConfig, device: torch.device) -> CropBatch:
    """A batch that shows nothing, of the size of an evaluation's."""
    volumes, crops = config.train.eval_batch, config.crops
    return CropBatch(
        torch.zeros(volumes * crops.per_volume, 1, *crops.shown, device=device),
        torch.zeros(volumes, crops.random, crops.bases, device=device),
    )


def _of_views(output: ObjectiveOutput, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of a batch of B views: (B,) figures, and (B, S + n, .) embeddings."""
    hits = output.cosine.argmax(dim=-1) == labels.argmax(dim=-1)
    found = {
        "pos": output.volume_terms["pos"],
        "neg": output.volume_terms["neg"],
        "top1": hits.double().mean(dim=-1),
        "spearman": spearman(output.cosine, labels).mean(dim=-1),
    }
    if output.teacher is not None:
        distance = embedding_distance(output.student, output.teacher)
        found["teacher_distance"] = distance.mean(dim=-1)
    figures = {name: values.double() for name, values in found.items()}
    return figures | {"embeddings": output.embeddings, "projections": output.student}


def _summary(columns: Mapping[str, torch.Tensor], config: TrainConfig) -> Heldout:
    mean = {name: float(values.mean()) for name, values in columns.items() if values.ndim == 1}
    embeddings, projections = (columns[n].flatten(0, -2) for n in ("embeddings", "projections"))
    return Heldout(
        pos=mean["pos"],
        neg=mean["neg"],
        total=mean["pos"] + mean["neg"],
        top1=mean["top1"],
        chance=1 / config.crops.bases,
        views=config.train.eval_views,
        spearman=mean["spearman"],
        rank=float(effective_rank(embeddings)),
        rank_projected=float(effective_rank(projections)),
        spread=float(relative_spread(embeddings)),
        spread_projected=float(relative_spread(projections)),
        teacher_distance=mean.get("teacher_distance"),
    )


class _ViewTable:
    """Rows of all views by name, each view in its place whichever rank computes it."""

    def __init__(self, views: int, device: torch.device) -> None:
        self.columns: dict[str, torch.Tensor] = {}
        self._views, self._device = views, device

    def put(self, name: str, views: range, rows: torch.Tensor) -> None:
        """Fill in the (B, ...) rows of consecutive views."""
        if name not in self.columns:
            self.columns[name] = self._empty(tuple(rows.shape[1:]), rows.dtype)
        self.columns[name][views.start : views.stop] = rows

    def share(self) -> None:
        """Complete the table on every rank; also on one that had no batch."""
        mine = {name: (tuple(c.shape[1:]), c.dtype) for name, c in self.columns.items()}
        seen: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, mine)
        shapes = next(each for each in seen if each)
        for name, (shape, dtype) in shapes.items():
            column = self.columns.setdefault(name, self._empty(shape, dtype))
            # All but one rank add zeros, so the sum is exact.
            dist.all_reduce(column)
        self.columns = {name: self.columns[name] for name in shapes}

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(self._views, *shape, dtype=dtype, device=self._device)


def floor_of(learner: Learner, config: TrainConfig) -> Floor:
    """The best constant similarity for the run's crops and loss."""
    return constant_floor(config.crops, config.view.grid, learner.objective.terms)
