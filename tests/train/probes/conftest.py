"""Label maps of the phantoms that the session's workspace holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from prect.phantom import PhantomCase, make_case
from prect.phantom.write import write_labels

MASKED = 5


@pytest.fixture(scope="session")
def phantom_cases() -> dict[str, PhantomCase]:
    """The first five of the eight phantoms of ``phantom_built``, by name."""
    cases = (make_case(1, i) for i in range(MASKED))
    return {case.name: case for case in cases}


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory, phantom_cases: dict[str, PhantomCase]) -> Path:
    """Folder of their label maps."""
    folder = tmp_path_factory.mktemp("masks")
    for name, case in phantom_cases.items():
        write_labels(case, folder / f"{name}_labels.nii.gz")
    return folder
