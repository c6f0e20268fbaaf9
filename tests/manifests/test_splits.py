"""The held-out share is chosen by patient, and stays when data is added."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from prect.manifests.splits import HELDOUT_SHARE, heldout_mask

PATIENTS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=6), max_size=60)


@settings(deadline=None)
@given(PATIENTS, PATIENTS, st.floats(0, 1), st.integers(0, 3))
def test_adding_patients_moves_no_other(
    before: list[str], added: list[str], share: float, minimum: int
) -> None:
    plain = heldout_mask(before, share)
    held = {patient for patient, mask in zip(before, plain, strict=True) if mask}
    grown = heldout_mask([*added, *before], share, minimum if len(held) >= minimum else 0)
    assert grown[len(added) :].tolist() == plain.tolist()


def test_the_default_share_holds_out_one_patient_in_a_hundred() -> None:
    patients = [f"{number:032x}" for number in range(50_000)]
    assert abs(heldout_mask(patients, HELDOUT_SHARE).mean() - 0.01) < 0.002
