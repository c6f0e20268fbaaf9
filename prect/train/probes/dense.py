"""Features of every voxel: maps of crops that cover a volume, interpolated to its grid.

A voxel's features are those of all maps at its place. Interpolation is linear, from centres of
voxels to centres of voxels, and constant beyond the outermost centres.

Shapes: N crops, c channels of a map, D channels of all maps, n voxels; axes (x, y, z).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from prect.train.config import CropConfig
from prect.train.probes.features import Features
from prect.train.probes.volumes import ProbeVolume, crops_a_pass, cut, plain_places

_MAP_SHARE = 4
"""Maps that are kept take a multiple of the memory of a pass that only averages them."""


def maps_over(
    features: Features, volume: ProbeVolume, crops: CropConfig
) -> Iterator[tuple[NDArray[np.int64], list[torch.Tensor]]]:
    """Crops that cover a volume, a few at a time: (N, 3) first voxels, and their maps."""
    starts = tiles(volume.image.shape, crops.size)
    most = max(1, crops_a_pass(crops) // _MAP_SHARE)
    for i in range(0, len(starts), most):
        part = starts[i : i + most]
        yield part, features.maps(cut(volume.image, plain_places(part), crops))


def tiles(grid: Sequence[int], size: Sequence[int]) -> NDArray[np.int64]:
    """(T, 3) first voxels of crops that cover a grid; the last one of an axis ends with it."""
    lines = [
        np.minimum(np.arange(0, n, edge), n - edge) for n, edge in zip(grid, size, strict=True)
    ]
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.int64)


def on_grid(maps: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Maps (N, c, ...) on the grid of the crop, (N, c, *size)."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return functional.interpolate(maps, size=list(size), mode="trilinear", align_corners=False)


def at_voxels(
    maps: Sequence[torch.Tensor], voxels: NDArray[np.int64], size: tuple[int, int, int]
) -> torch.Tensor:
    """(n, D) features of some voxels of one crop; as `on_grid` gives them, without the others.

    Args:
        maps: (1, c, ...) each.
        voxels: (n, 3) index in the crop.
        size: voxels of the crop.
    """
    # grid_sample counts from -1 to 1 over the extent, and names the last axis first.
    places = torch.from_numpy(2 * (voxels + 0.5) / np.array(size) - 1).float().flip(1)
    found = [
        functional.grid_sample(
            one,
            places.view(1, 1, 1, -1, 3).to(one.device),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )[0, :, 0, 0].T
        for one in maps
    ]
    return torch.cat(found, dim=1).cpu()


def voxel_features(
    features: Features, volume: ProbeVolume, voxels: NDArray[np.int64], crops: CropConfig
) -> torch.Tensor:
    """(n, D) features of voxels (n, 3) of a volume, each from the first crop that holds it."""
    rows: list[NDArray[np.int64]] = []
    found: list[torch.Tensor] = []
    seen = np.zeros(len(voxels), dtype=np.bool_)
    for starts, maps in maps_over(features, volume, crops):
        for n, start in enumerate(starts):
            offset = voxels - start
            inside = ((offset >= 0) & (offset < np.array(crops.size))).all(axis=1) & ~seen
            if inside.any():
                seen |= inside
                rows.append(np.flatnonzero(inside))
                found.append(
                    at_voxels([one[n : n + 1] for one in maps], offset[inside], crops.size)
                )
    order = np.argsort(np.concatenate(rows))
    return torch.cat(found)[torch.from_numpy(order)]
