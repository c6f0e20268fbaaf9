"""What is measured on held-out views, and held against: plain numbers, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Heldout:
    """Means over held-out views; ``None`` where a run or an older checkpoint has no such figure."""

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
    spearman: float | None = None
    """Rank correlation of a random crop's similarities with its labels over the bases, ties
    averaged. The bases that it does not touch are tied in the labels, so 1 is out of reach."""
    rank: float | None = None
    """Effective rank of the encoder's embeddings of all crops; near 1: collapse."""
    rank_projected: float | None = None
    """The same of the student's projections."""
    spread: float | None = None
    """Distance of the encoder's embeddings from their mean, as a share of their length; near 0:
    collapse."""
    spread_projected: float | None = None
    """The same of the student's projections."""
    teacher_distance: float | None = None
    """1 - cosine of student's and teacher's projection of the same crop; without a teacher none."""

    def metrics(self) -> dict[str, float | int]:
        """The figures that there are, under the names that they have in ``metrics.jsonl``."""
        there = {name: value for name, value in asdict(self).items() if value is not None}
        return {f"heldout_{name}": value for name, value in there.items()}


@dataclass(frozen=True)
class Floor:
    """Smallest expected pos + neg of a constant similarity."""

    value: float
    similarity: float


def heldout_from(figures: Mapping[str, Any]) -> Heldout:
    """Figures as a checkpoint keeps them; what an older one lacks is ``None``."""
    return Heldout(**figures)
