"""What usually helps when a run does not learn, chosen from what is seen of it.

Each cause is a test on the figures and settings, and the advice that follows; causes are ordered
from those that explain everything to those that are worth a try.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prect.train.config import TrainConfig
from prect.train.heldout import Heldout

COLLAPSED_RANK = 1.5
"""Largest effective rank that counts as a collapse; all embeddings on one line have 1."""
COLLAPSED_SPREAD = 1e-3
"""Largest distance from the mean, as a share of the length, that counts as a collapse. bfloat16
rounds to 4e-3, and embeddings are averages over thousands of such values."""

_SEARCHING_SHARE = 0.95
_FEW_EMPTY_PAIRS = 0.05
_FAR_TEACHER = 0.3
_OVERFITTED_RATIO = 1.5
_SMALL_GRADIENT = 1e-4
_LITTLE_ORDER = 0.1
_MOST_ADVICE = 3
_EXPLAIN_THE_REST = {"shuffled labels", "warm-up"}


@dataclass(frozen=True)
class Evidence:
    """What is known of a run when it is judged."""

    trained: Heldout
    untrained: Heldout
    config: TrainConfig | None = None
    """Settings; without them the causes that lie in settings are not looked for."""
    step: int = 0
    """Optimiser steps done."""
    global_batch: int = 0
    """Volumes a step on all processes; 0: unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The newest line of the training metrics: loss, pos, neg, grad_norm."""


@dataclass(frozen=True)
class Advice:
    """One cause that fits, and what usually helps."""

    cause: str
    text: str


def collapsed(figures: Heldout) -> bool:
    """Whether all crops have about the same embedding or projection."""
    ranks = [r for r in (figures.rank, figures.rank_projected) if r is not None]
    spreads = [s for s in (figures.spread, figures.spread_projected) if s is not None]
    return any(r < COLLAPSED_RANK for r in ranks) or any(s < COLLAPSED_SPREAD for s in spreads)


def advise(evidence: Evidence) -> tuple[Advice, ...]:
    """The first causes that fit, at most three; none after one that explains the rest."""
    found: list[Advice] = []
    for name, test, text in _CAUSES:
        if test(evidence):
            found.append(Advice(name, text))
            if name in _EXPLAIN_THE_REST or len(found) == _MOST_ADVICE:
                break
    return tuple(found)


def _shuffled(e: Evidence) -> bool:
    return e.config is not None and e.config.augment.shuffle_labels


def _diverged(e: Evidence) -> bool:
    return e.trained.total > 1.2 * e.untrained.total


def _collapse(e: Evidence) -> bool:
    return collapsed(e.trained)


def _too_fast(e: Evidence) -> bool:
    """The learning rate is to be lowered, so nothing may ask to raise it."""
    return _diverged(e) or _collapse(e)


def _warming_up(e: Evidence) -> bool:
    return e.config is not None and e.step < e.config.optim.warmup_steps


def _single_volume(e: Evidence) -> bool:
    return e.global_batch == 1 and e.config is not None and e.config.objective.norm == "batch"


def _flat_gradient(e: Evidence) -> bool:
    small = 0 <= e.metrics.get("grad_norm", 1.0) < _SMALL_GRADIENT
    return small and not _too_fast(e)


def _overfitted(e: Evidence) -> bool:
    seen = e.metrics.get("pos", float("inf")) + e.metrics.get("neg", float("inf"))
    return e.trained.total > _OVERFITTED_RATIO * seen


def _all_apart(e: Evidence) -> bool:
    """Similarities go to zero for pairs that overlap as well."""
    fell = e.trained.neg < 0.5 * e.untrained.neg
    return fell and e.trained.pos >= _SEARCHING_SHARE * e.untrained.pos


def _all_alike(e: Evidence) -> bool:
    """Pairs without overlap stay similar."""
    if e.untrained.neg < _FEW_EMPTY_PAIRS * e.untrained.total:
        return False  # in grids such as 2x2x2 nearly every crop touches every base
    return e.trained.neg >= _SEARCHING_SHARE * e.untrained.neg


def _far_teacher(e: Evidence) -> bool:
    return (e.trained.teacher_distance or 0.0) > _FAR_TEACHER


def _guessing(e: Evidence) -> bool:
    no_order = e.trained.spearman is not None and e.trained.spearman < _LITTLE_ORDER
    guesses = e.trained.top1 <= 1.25 * e.trained.chance or no_order
    return guesses and not _too_fast(e)


def _mirrored(e: Evidence) -> bool:
    return e.config is not None and max(e.config.augment.flip, e.config.augment.rotate) > 0


def _still_falling(e: Evidence) -> bool:
    return e.trained.total < _SEARCHING_SHARE * e.untrained.total and not _too_fast(e)


_CAUSES: tuple[tuple[str, Callable[[Evidence], bool], str], ...] = (
    (
        "shuffled labels",
        _shuffled,
        "augment.shuffle_labels is on: this is the negative control, and must not learn",
    ),
    (
        "diverged",
        _diverged,
        "the loss is worse than untrained: lower optim.lr by three to ten times, or lengthen "
        "optim.warmup_steps",
    ),
    (
        "collapse",
        _collapse,
        "all crops have nearly one embedding: lower optim.lr, keep objective.reg_weight at 1, use "
        "objective.norm='batch' with more volumes a step, start the teacher from the student",
    ),
    (
        "warm-up",
        _warming_up,
        "the learning rate is still rising: look again after optim.warmup_steps, or shorten it",
    ),
    (
        "flat gradient",
        _flat_gradient,
        "the gradient is nearly zero: look at what is shown with prect replay (are crops empty in "
        "view.window?), and raise optim.lr",
    ),
    (
        "overfitting",
        _overfitted,
        "the loss on training volumes is far lower than on held-out ones: use more patients, "
        "a stronger augment.shift, or fewer steps",
    ),
    (
        "single volume",
        _single_volume,
        "batch statistics of one volume's crops are poor: raise data.global_batch or use "
        "objective.norm='layer'",
    ),
    (
        "pos stuck",
        _all_apart,
        "only neg falls, so overlapping crops are driven apart too: lower objective.reg_weight, "
        "use a teacher that starts from the student, and train longer",
    ),
    (
        "neg stuck",
        _all_alike,
        "neg does not fall, so far crops look alike: check view.window and with prect replay that "
        "crops show anatomy, and keep objective.reg_weight at 1",
    ),
    (
        "far teacher",
        _far_teacher,
        "teacher and student differ: use objective.teacher_init='student' and a lower "
        "objective.ema_momentum",
    ),
    (
        "flips",
        _mirrored,
        "a mirrored crop of a nearly symmetric body looks like its other side: set augment.flip "
        "and augment.rotate to 0 in short runs",
    ),
    (
        "guessing",
        _guessing,
        "places cannot be told apart: check with prect replay that volumes have one orientation "
        "and that crops differ, and raise optim.lr",
    ),
    ("too short", _still_falling, "it does get better: raise optim.max_steps, or optim.lr"),
)
