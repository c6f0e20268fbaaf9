"""What a check found: its code, the value measured and the limit it was held to."""

from __future__ import annotations

from dataclasses import dataclass

from prect.errors import VolumeError
from prect.manifests.codes import CODES, Effect


@dataclass(frozen=True)
class Finding:
    """The result of one named check on one volume."""

    code: str
    """A name in `prect.manifests.codes.CODES`."""
    passed: bool
    measured: str = ""
    """The value, with its unit."""
    limit: str = ""
    """What it was held to, with its unit."""
    reason: str = ""
    """One sentence with value and limit; needed when the check did not pass."""

    @property
    def effect(self) -> Effect:
        """What follows when the check did not pass."""
        effect: Effect = CODES[self.code].effect
        return effect


def passed(code: str, measured: str = "", limit: str = "") -> Finding:
    """A check that found nothing wrong."""
    return Finding(code, True, measured, limit)


def failed(code: str, reason: str, measured: str = "", limit: str = "") -> Finding:
    """A check that did not pass; its effect is that of its code."""
    return Finding(code, False, measured, limit, reason)


def first_rejection(findings: tuple[Finding, ...]) -> Finding | None:
    """The first finding that rejects the volume."""
    for finding in findings:
        if not finding.passed and finding.effect is Effect.REJECT:
            return finding
    return None


def warnings_of(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Findings that are written down beside a usable volume."""
    return tuple(f for f in findings if not f.passed and f.effect is Effect.WARN)


def of_error(error: VolumeError) -> Finding:
    """The finding that an error of a reader stands for."""
    return failed(error.code, error.reason)
