"""One plain sentence on whether a network learns, from figures that can be compared.

A falling loss says little: the best constant similarity lowers it, and so does an untrained
network, because overlapping crops share voxels. So held-out pos + neg is held against both.
"""

from __future__ import annotations

from typing import Literal

from prect.train.advice import COLLAPSED_RANK, COLLAPSED_SPREAD, Evidence, advise, collapsed
from prect.train.heldout import Floor, Heldout

LEARNED_RATIO = 0.7
"""Largest share of the untrained network's pos + neg that counts as having learned; short runs on
shuffled labels, which drive all crops apart, have reached 0.77."""
LEARNED_TOP1_RATIO = 1.2
"""Least top-1 over the untrained network's that counts as having learned; where that is hardly
above what is there already, half of what is missing to 1."""

_BETTER_RATIO = 0.98

State = Literal["learned", "better", "not learned"]
_OPENINGS: dict[State, str] = {
    "learned": "The network has learned where crops belong",
    "better": "The network is better than untrained, but not clearly",
    "not learned": "The network has not learned",
}
_INTERIM_OPENINGS: dict[State, str] = {
    "learned": "learning",
    "better": "a little better than untrained",
    "not learned": "not learning yet",
}


def state_of(trained: Heldout, untrained: Heldout, floor: Floor) -> State:
    """Whether the figures are clearly, or at all, better than both references."""
    below = trained.total < floor.value
    if collapsed(trained) or not below or trained.total >= _BETTER_RATIO * untrained.total:
        return "not learned"
    falls = trained.total <= LEARNED_RATIO * untrained.total
    finds = trained.top1 >= min(LEARNED_TOP1_RATIO * untrained.top1, (1 + untrained.top1) / 2)
    return "learned" if falls and finds else "better"


def has_learned(trained: Heldout, untrained: Heldout, floor: Floor) -> bool:
    """Whether the figures are clearly better than those of the same network untrained."""
    return state_of(trained, untrained, floor) == "learned"


def verdict(
    trained: Heldout, untrained: Heldout, floor: Floor, evidence: Evidence | None = None
) -> str:
    """One plain sentence on whether the network learned, and if not, what usually helps.

    Args:
        trained: figures now.
        untrained: figures of the same network before its first step.
        floor: the best constant similarity.
        evidence: what else is known; without it, advice follows from the figures alone.
    """
    state = state_of(trained, untrained, floor)
    said = f"{_OPENINGS[state]}: {_figures(trained, untrained, floor)}."
    if evidence is not None and evidence.config is not None and evidence.config.network.weights:
        said += f" Untrained is what the run began with, {evidence.config.network.weights}."
    if state == "learned":
        return said
    advice = advise(evidence or Evidence(trained, untrained))
    helps = "; ".join(each.text for each in advice)
    return said + (f" What usually helps: {helps}." if helps else "")


def interim(
    trained: Heldout, untrained: Heldout, floor: Floor, evidence: Evidence | None = None
) -> str:
    """The same in a few words, for a run that goes on; arguments as for :func:`verdict`."""
    side = "below" if trained.total < floor.value else "not below"
    share = (
        f"pos + neg {trained.total / untrained.total:.2f} times untrained, {side} the best "
        f"constant's {floor.value:.3f}; top-1 {trained.top1:.2f} (untrained {untrained.top1:.2f}, "
        f"chance {trained.chance:.2f})"
    )
    state = state_of(trained, untrained, floor)
    said = f"{_INTERIM_OPENINGS[state]}: {share}"
    if state == "learned":
        return said
    advice = advise(evidence or Evidence(trained, untrained))
    return said + (f"; {advice[0].text}" if advice else "")


def _figures(trained: Heldout, untrained: Heldout, floor: Floor) -> str:
    parts = [
        f"held-out pos {trained.pos:.3f} + neg {trained.neg:.3f} = {trained.total:.3f} "
        f"(untrained {untrained.total:.3f}, best constant {floor.value:.3f})",
        f"top-1 {trained.top1:.2f} (untrained {untrained.top1:.2f}, chance {trained.chance:.2f})",
    ]
    if trained.rank is not None and trained.rank_projected is not None:
        alarm = f", a collapse below {COLLAPSED_RANK:g}" if _low_rank(trained) else ""
        parts.append(
            f"effective rank {trained.rank:.1f}, projected {trained.rank_projected:.1f}{alarm}"
        )
    if trained.spread is not None and trained.spread_projected is not None:
        least = min(trained.spread, trained.spread_projected)
        if least < COLLAPSED_SPREAD:
            parts.append(f"spread {least:.1g}, a collapse below {COLLAPSED_SPREAD:g}")
    return ", ".join([*parts, f"{trained.views} views"])


def _low_rank(figures: Heldout) -> bool:
    return any(r is not None and r < COLLAPSED_RANK for r in (figures.rank, figures.rank_projected))
