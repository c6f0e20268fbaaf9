"""Stored volumes as the network was shown them, whole, and crops of them.

A run with whole views is probed on its own grid. A run with boxes is probed on the whole volume
at the box's spacing, so that crops look as they did while training and every place of the body
can be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from prect.cache.reader import StoreReader
from prect.errors import TrainingError
from prect.train.batch import gather_crops, resize
from prect.train.config import CropConfig, TrainConfig
from prect.train.data import TrainingData
from prect.train.sections import ViewConfig
from prect.train.views import Geometry, Region, View, box_view, plan_region, whole_view

_VOXELS_A_PASS = 2**20
"""Voxels of crops that go through a network at once: four crops of 64 cubed."""


@dataclass(frozen=True)
class ProbeVolume:
    """One volume on the grid of its view, axes (x, y, z) in RAS+."""

    name: str
    """Data set and case."""
    patient: str
    """Hashed id."""
    image: torch.Tensor
    """(X, Y, Z) float32, the view's window mapped to [0, 1]."""
    extent: tuple[float, float, float]
    """Edges of the image in mm, (x, y, z)."""
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4), repr=False)
    """(4, 4) index (x, y, z) of the image to RAS mm."""


@dataclass(frozen=True)
class ProbeVolumes(Sequence[ProbeVolume]):
    """Volumes of a run's workspace, read each time that they are asked for."""

    data: TrainingData
    config: TrainConfig
    rows: tuple[int, ...]
    """Rows of the cache manifest."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, position: int) -> ProbeVolume: ...

    @overload
    def __getitem__(self, position: slice) -> ProbeVolumes: ...

    def __getitem__(self, position: int | slice) -> ProbeVolume | ProbeVolumes:
        """The volume at a position; a slice gives volumes that are not read yet.

        Raises:
            StoreError: the store is missing or damaged.
        """
        if isinstance(position, slice):
            return ProbeVolumes(self.data, self.config, self.rows[position])
        return self._read(self.rows[position])

    @property
    def voxels(self) -> int:
        """Voxels of all images together."""
        views = (
            probe_view(
                self.config.view_of(self.data.table.dataset[row]),
                self.data.geometry.row(row),
                self.config.crops,
            )
            for row in self.rows
        )
        return sum(math.prod(view.grid) for view in views)

    def _read(self, row: int) -> ProbeVolume:
        table = self.data.table
        settings = self.config.view_of(table.dataset[row])
        geometry = self.data.geometry.row(row)
        view = probe_view(settings, geometry, self.config.crops)
        region = plan_region(view, geometry)
        with StoreReader(table.store(self.data.workspace, row)) as reader:
            voxels = torch.from_numpy(reader.read(region.level, region.start, region.shape))
            affine = reader.affine @ _to_level0(region, view, geometry)
        low, high = settings.window
        image = voxels.float().sub_(low).div_(high - low).clamp_(0, 1)
        image = resize(image[None, None], view.grid[::-1])[0, 0].permute(2, 1, 0).contiguous()
        x, y, z = (n * mm for n, mm in zip(region.shape[::-1], region.spacing[::-1], strict=True))
        return ProbeVolume(
            f"{table.dataset[row]}/{table.case[row]}", table.patient[row], image, (x, y, z), affine
        )


def probe_volumes(
    data: TrainingData,
    config: TrainConfig,
    rows: Sequence[int] | None = None,
    *,
    cases: int | None = None,
    first: Sequence[int] = (),
    seed: int = 0,
) -> ProbeVolumes:
    """The volumes to probe on: the held-out ones, or those of ``rows``.

    Args:
        data: the volumes of a run.
        config: its settings; the views and the size of crops matter.
        rows: rows of the manifest; the held-out ones when left out.
        cases: draw as many of them when there are more.
        first: those of the rows that are drawn before the others.
        seed: of that draw.
    """
    chosen = np.asarray(data.rows["heldout"] if rows is None else rows, dtype=np.int64)
    if cases is not None and len(chosen) > cases:
        generator = np.random.default_rng(seed)
        before = np.isin(chosen, first)
        drawn: list[int] = []
        for part in (chosen[before], chosen[~before]):
            count = min(cases - len(drawn), len(part))
            drawn.extend(generator.choice(part, count, replace=False) if count else ())
        chosen = np.sort(np.array(drawn))
    return ProbeVolumes(data, config, tuple(int(row) for row in chosen))


def check_patients(patients: Sequence[str]) -> None:
    """Refuse volumes of one patient alone.

    Args:
        patients: patient of each volume.

    Raises:
        TrainingError: there are fewer than two.
    """
    if len(set(patients)) < 2:
        raise TrainingError(
            f"{len(patients)} volumes of {len(set(patients))} patients: places are looked for in "
            "other patients, so two at least are needed; take more with --split all, another "
            "--dataset or more --cases"
        )


def probe_view(settings: ViewConfig, geometry: Geometry, crops: CropConfig) -> View:
    """The whole volume on the view's grid, or at the spacing of its boxes.

    A volume that is smaller than a crop lies in the middle of a box of the crop's size.
    """
    if settings.spacing is None:
        return whole_view(geometry, settings.grid)
    extent = whole_view(geometry, settings.grid).size
    axes = zip(extent, settings.spacing, crops.size, strict=True)
    # Lengths in mm carry rounding errors, which must not add a voxel.
    x, y, z = (max(math.ceil(mm / edge - 1e-6), least) for mm, edge, least in axes)
    return box_view(geometry, (x, y, z), settings.spacing, (0.0, 0.0, 0.0))


def _to_level0(region: Region, view: View, geometry: Geometry) -> NDArray[np.float64]:
    """(4, 4) index on the view's grid to the index on level 0, both (x, y, z)."""
    edges = np.array(geometry.spacing[::-1])
    first = np.array([centres[0] for centres in region.centres(view.grid)])
    length = np.multiply(region.shape, region.spacing)[::-1]
    matrix = np.diag([*(length / np.array(view.grid) / edges), 1.0])
    matrix[:3, 3] = first / edges - 0.5
    return matrix


@dataclass(frozen=True)
class Places:
    """C crops of one volume, and how each is augmented."""

    starts: torch.Tensor
    """(C, 3) int64 first voxel, (x, y, z)."""
    flips: torch.Tensor
    """(C, 3) bool."""
    turns: torch.Tensor
    """(C,) int64 quarter turns in the x-y plane."""
    shifts: torch.Tensor
    """(C,) float32, added to the windowed intensity."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: slice) -> Places:
        return Places(self.starts[part], self.flips[part], self.turns[part], self.shifts[part])


def plain_places(starts: NDArray[np.int64]) -> Places:
    """Crops at (C, 3) first voxels as they are."""
    count = len(starts)
    return Places(
        torch.from_numpy(starts),
        torch.zeros(count, 3, dtype=torch.bool),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count),
    )


def cut(image: torch.Tensor, places: Places, crops: CropConfig) -> torch.Tensor:
    """Crops as the network sees them.

    Args:
        image: (X, Y, Z) float32 in [0, 1].
        places: C places in it.
        crops: the size that is cut, and the one that is shown.

    Returns:
        (C, 1, *crops.shown) float32.
    """
    gathered = gather_crops(
        image[None], places.starts[None], places.flips[None], places.turns[None], crops.size
    )
    cubes = resize(gathered[0, :, None], crops.shown)
    return cubes + places.shifts.view(-1, 1, 1, 1, 1)


def crops_a_pass(crops: CropConfig) -> int:
    """How many crops go through a network at once, so that memory stays bounded."""
    return max(1, _VOXELS_A_PASS // math.prod(crops.shown))
