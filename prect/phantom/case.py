"""One synthetic case: its parameters, its voxels and the truth about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prect.phantom.grid import FloatMatrix, Grid
from prect.phantom.landmarks import Landmark
from prect.phantom.patient import Patient, Scan, Size, sample_patient, sample_scan
from prect.phantom.render import render


@dataclass(frozen=True)
class CaseParameters:
    """All that decides a case; drawn from seed, index and size alone."""

    seed: int
    index: int
    size: Size
    patient: Patient
    scan: Scan

    @property
    def name(self) -> str:
        """Name of the case and stem of its files, for example ``case_0003``."""
        return f"case_{self.index:04d}"

    def to_json(self) -> dict[str, Any]:
        """The parameters as nested dictionaries that json can write."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """A rendered case."""

    parameters: CaseParameters
    hu: npt.NDArray[np.int16]
    """Hounsfield units, C order (k, j, i): the last axis is index axis i."""
    labels: npt.NDArray[np.uint8]
    """Organ of each voxel, same shape; values as in `prect.phantom.ORGANS`."""
    landmarks: Mapping[str, Landmark]
    """Organs that are in the scan, by name."""

    @property
    def name(self) -> str:
        """Name of the case and stem of its files."""
        return self.parameters.name

    @property
    def grid(self) -> Grid:
        """Shape, spacing and place of the voxels."""
        return self.parameters.scan.grid

    @property
    def affine(self) -> FloatMatrix:
        """4x4 matrix from voxel index (i, j, k) to RAS mm."""
        return self.grid.affine


def sample_parameters(seed: int, index: int, size: Size = "small") -> CaseParameters:
    """Draw the parameters of a case without rendering it.

    Raises:
        ConfigError: the size is unknown, or seed or index is out of range.
    """
    patient = sample_patient(seed, index)
    return CaseParameters(seed, index, size, patient, sample_scan(seed, index, size, patient))


def make_case(seed: int, index: int, size: Size = "small") -> PhantomCase:
    """Render a case: a pure function of seed, index and size.

    Args:
        seed: seed of the collection, 0 to 2**64 - 1.
        index: number of the case, 0 to 2**64 - 1.
        size: ``small`` (seconds matter) or ``clinical`` (512 x 512 slices).

    Raises:
        ConfigError: the size is unknown, or seed or index is out of range.
    """
    parameters = sample_parameters(seed, index, size)
    rendering = render(seed, index, parameters.patient, parameters.scan)
    return PhantomCase(parameters, rendering.hu, rendering.labels, rendering.landmarks)
