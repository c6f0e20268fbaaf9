"""Rendered cases that several tests look at."""

from __future__ import annotations

import pytest

from prect.phantom import PhantomCase, make_case

SEED = 20
CASES = 20


@pytest.fixture(scope="session")
def patients() -> list[PhantomCase]:
    """The first cases of one seed, all regions and index orders among them."""
    return [make_case(SEED, index) for index in range(CASES)]
