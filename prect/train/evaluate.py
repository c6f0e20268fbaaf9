"""Held-out figures: does the network find the place of a crop in patients it never saw?

The views and their augmentation come from a stream of their own, the same at every
evaluation, so that two figures differ only by the network. Ranks share the batches out; a
batch is normalised on its own (``train.eval_batch`` volumes), so the figures do not depend on
the number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from prect.train.batch import assemble
from prect.train.config import TrainConfig
from prect.train.damage import Quarantine
from prect.train.dataset import ViewDataset
from prect.train.learner import Learner
from prect.train.loader import read_steps
from prect.train.objectives.floor import Floor, constant_floor
from prect.train.precision import autocast
from prect.train.prefetch import HERE

LEARNED_RATIO = 0.8
"""Largest share of the untrained network's pos + neg that counts as having learned."""

_BETTER_RATIO = 0.98


@dataclass(frozen=True)
class Heldout:
    """Means over held-out views."""

    pos: float
    """Loss on pairs that overlap."""
    neg: float
    """Loss on pairs that do not."""
    total: float
    """pos + neg."""
    top1: float
    """Share of random crops whose most similar base is the one that holds most of them."""
    chance: float
    """The same for a guess: 1 / number of bases."""
    views: int

    def metrics(self) -> dict[str, float | int]:
        """The figures under the names that they have in ``metrics.jsonl``."""
        return {f"heldout_{name}": value for name, value in asdict(self).items()}


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
    """
    size = config.train.eval_batch
    wanted = range(config.train.eval_views)
    batches = [wanted[i : i + size] for i in wanted[::size]][rank::world]
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
    sums = torch.zeros(4, dtype=torch.float64)
    learner.eval()
    for raw in loader:
        batch = assemble(raw.to(device), config.view, config.crops)
        with autocast(config, device):
            output = learner(batch)
        hits = output.cosine.argmax(dim=-1) == batch.labels.argmax(dim=-1)
        figures = [output.volume_terms["pos"], output.volume_terms["neg"]]
        count = torch.tensor(float(len(raw)))
        summed = [f.sum() for f in figures] + [hits.double().mean(dim=-1).sum(), count]
        sums += torch.stack([value.double().cpu() for value in summed])
    learner.train()
    if world > 1:
        shared = sums.to(device)
        dist.all_reduce(shared)
        sums = shared.cpu()
    pos, neg, top1 = (sums[:3] / sums[3]).tolist()
    return Heldout(pos, neg, pos + neg, top1, 1 / config.crops.bases, int(sums[3]))


def floor_of(learner: Learner, config: TrainConfig) -> Floor:
    """The best constant similarity for the run's crops and loss."""
    return constant_floor(config.crops, config.view.grid, learner.objective.negative)


def has_learned(trained: Heldout, untrained: Heldout, floor: Floor) -> bool:
    """Whether the figures are clearly better than those of the same network untrained."""
    return (
        trained.total < LEARNED_RATIO * untrained.total
        and trained.total < floor.value
        and trained.top1 > untrained.top1
    )


def verdict(trained: Heldout, untrained: Heldout, floor: Floor) -> str:
    """One plain sentence on whether the network learned."""
    figures = (
        f"held-out pos+neg {trained.total:.3f} (untrained {untrained.total:.3f}, best constant "
        f"{floor.value:.3f}), top-1 {trained.top1:.2f} (untrained {untrained.top1:.2f}, chance "
        f"{trained.chance:.2f}), {trained.views} views"
    )
    if has_learned(trained, untrained, floor):
        return f"The network has learned where crops belong: {figures}."
    if trained.total < _BETTER_RATIO * untrained.total and trained.total < floor.value:
        return f"The network is better than untrained, but not clearly: {figures}."
    return f"The network has not learned: {figures}."


def heldout_from(figures: Mapping[str, Any]) -> Heldout:
    """Figures as a checkpoint keeps them."""
    return Heldout(**figures)
