"""What a reason code is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """What a check that does not pass does to the volume."""

    REJECT = "reject"
    WARN = "warn"
    DUPLICATE = "duplicate"
    EXCLUDE = "exclude"
    QUARANTINE = "quarantine"
    """Found by build-cache or verify, in a volume that ingest accepted."""
    REPORT = "report"
    """Found by verify; the store stays."""


@dataclass(frozen=True)
class Code:
    """A named check and what follows from it."""

    name: str
    """Stable, ``family.detail``."""
    effect: Effect
    sentence: str
    """What is wrong with a volume that has this code."""
    remedy: str = ""
    """What its owner can do; empty when nothing can be done."""
    limits: tuple[str, ...] = ()
    """Fields of `prect.manifests.limits.Limits` that decide."""
