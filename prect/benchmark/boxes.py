"""Volumes, and the random boxes that every arm reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prect.units import Triple

SEED = 7
"""Of the phantoms and of the boxes."""
WINDOW = (-175, 250)
"""HU that the float32 arms map to 0 and 1, as VoCo does for the abdomen."""
REGION: Triple = (64, 192, 192)
"""Of VoCo v2, (z, y, x)."""
VIEWS: dict[str, Triple] = {"64^3": (64, 64, 64), "96^3": (96, 96, 96), "v2 region": REGION}
ALIGNED = "v2 aligned"
"""The v2 region at a place of its own, moved down to the store's grid of inner chunks."""


@dataclass(frozen=True)
class Volume:
    """One volume, as a store of HU and as a store of the window."""

    name: str
    hu: Path
    window: Path
    raw: Path
    """Level 0 as bare int16 HU in C order: what every arm is compared with."""
    level: str
    """Name of level 0's array in the stores."""
    shape: Triple
    """Voxels of level 0, (z, y, x)."""
    chunk: Triple
    """Inner chunk of level 0 of the HU store, (z, y, x)."""
    offset: Triple
    """Of the stored body box in the harmonised field of view, (z, y, x)."""
    full_shape: Triple
    """Of that field of view, (z, y, x)."""


@dataclass(frozen=True)
class Box:
    """A box of level 0, inside the volume, (z, y, x)."""

    start: Triple
    shape: Triple

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing an array of the whole level."""
        z, y, x = (slice(s, s + n) for s, n in zip(self.start, self.shape, strict=True))
        return z, y, x


@dataclass(frozen=True)
class Turn:
    """One read that every arm does in turn."""

    volume: str
    view: str
    box: Box


def draw_turns(volumes: Sequence[Volume], rounds: int) -> list[Turn]:
    """Every view of every volume, once a round, at a random place.

    Where a volume is smaller than a view, the box is cut to it, for all arms alike.
    """
    random = np.random.default_rng(SEED)
    turns = []
    for _ in range(rounds):
        for volume in volumes:
            for view, size in VIEWS.items():
                turns.append(Turn(volume.name, view, _random_box(volume.shape, size, random)))
            # Not the region before it: what that read would still lie in the processor's caches.
            box = _random_box(volume.shape, REGION, random)
            turns.append(Turn(volume.name, ALIGNED, align(box, volume)))
    return turns


def bursts(turns: Sequence[Turn]) -> list[Sequence[Turn]]:
    """Turns in groups of one volume and one box of every view."""
    size = len(VIEWS) + 1
    return [turns[first : first + size] for first in range(0, len(turns), size)]


def _random_box(full: Triple, size: Triple, random: np.random.Generator) -> Box:
    shape = [min(n, m) for n, m in zip(size, full, strict=True)]
    z, y, x = (int(random.integers(0, m - n + 1)) for n, m in zip(shape, full, strict=True))
    return Box((z, y, x), (shape[0], shape[1], shape[2]))


def align(box: Box, volume: Volume) -> Box:
    """A box of the same shape that begins on the grid of inner chunks."""
    z, y, x = (s // c * c for s, c in zip(box.start, volume.chunk, strict=True))
    return replace(box, start=(z, y, x))
