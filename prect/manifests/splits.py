"""Held-out patients, chosen by a hash so that the choice survives when data is added."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from heapq import nsmallest

import numpy as np
from numpy.typing import NDArray

HELDOUT_SHARE = 0.01
"""Share of patients held out of training unless a run's settings say otherwise."""


def patient_rank(patient: str) -> float:
    """A number in [0, 1) that depends on the patient's hashed id alone."""
    digest = hashlib.blake2b(b"prect-split\x1f" + patient.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def heldout_mask(patients: Sequence[str], share: float, minimum: int = 0) -> NDArray[np.bool_]:
    """Which rows are held out of training.

    A patient is held out when its rank lies below ``share``; all rows of a patient go
    the same way. When fewer than ``minimum`` patients fall below, those of lowest rank are
    held out, though never more than half of all patients.

    Args:
        patients: hashed patient id of each row, (N,).
        share: wanted share of patients, 0 to 1.
        minimum: number of patients to hold out at least, for small collections.

    Returns:
        (N,) bool, True for a held-out row.
    """
    ranks = {patient: patient_rank(patient) for patient in set(patients)}
    below = sum(rank < share for rank in ranks.values())
    count = max(below, min(minimum, len(ranks) // 2))
    heldout = set(nsmallest(count, ranks, key=lambda patient: (ranks[patient], patient)))
    return np.array([patient in heldout for patient in patients], dtype=np.bool_)
