"""Where the body lies in the field of view."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from prect.errors import VolumeError
from prect.ingest.resample import Box
from prect.ingest.settings import Harmonisation
from prect.units import Triple

_STRIDE_MM = 6.0
"""The body is searched on a grid about so coarse; the margin covers what this blurs."""
_LARGE_SHARE = 0.25


def search_steps(settings: Harmonisation) -> Triple:
    """Voxels of the grid from one searched voxel to the next, (z, y, x)."""
    x, y, z = (max(1, int(_STRIDE_MM // mm)) for mm in settings.spacing_mm)
    return z, y, x


def body_box(coarse: NDArray[np.int16], shape: Triple, settings: Harmonisation) -> Box:
    """The box of the body, plus a margin: the large connected parts above the threshold.

    A table that does not touch the patient is a part too, but a small one. Two legs are two
    large ones, so every part at least `_LARGE_SHARE` of the largest counts.

    Args:
        coarse: (z, y, x) HU, every `search_steps`-th voxel of the grid of ``settings``.
        shape: of that grid, (z, y, x).
        settings: threshold, margin and spacing.

    Returns:
        Slices of z, y and x of the grid.

    Raises:
        VolumeError: ``content.no_body``.
    """
    labels, count = ndimage.label(coarse > settings.body_threshold_hu)
    if count == 0:
        raise VolumeError(
            "content.no_body", f"no voxel above {settings.body_threshold_hu} HU was found"
        )
    sizes = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    parts = [boxes[n] for n in np.flatnonzero(sizes >= _LARGE_SHARE * sizes.max())]
    box = []
    steps, spacing = search_steps(settings), settings.spacing_mm[::-1]
    for axis, (step, mm, size) in enumerate(zip(steps, spacing, shape, strict=True)):
        margin = math.ceil(settings.body_margin_mm / mm)
        first = min(part[axis].start for part in parts)
        last = max(part[axis].stop for part in parts)
        # The body may reach up to one step beyond the coarse voxels that it was found in.
        low = max(0, (first - 1) * step + 1 - margin)
        high = min(size, last * step + margin)
        box.append(slice(low, high, 1))
    return box[0], box[1], box[2]
