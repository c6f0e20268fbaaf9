"""From raw regions to crops, on the device.

Axis order changes here, once: stores are (z, y, x), the network is (batch, channel, x, y, z)
in RAS+, as MONAI's readers give it, so that the weights serve elsewhere.

Shapes: B volumes, S random crops and n bases a volume, (X, Y, Z) the view's grid,
(cx, cy, cz) a crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from prect.train.config import CropConfig, ViewConfig
from prect.train.loader import RawBatch


@dataclass
class CropBatch:
    """What an objective works on."""

    crops: torch.Tensor
    """(B * (S + n), 1, cx, cy, cz) float32; a volume's random crops, then its bases."""
    labels: torch.Tensor
    """(B, S, n) float32 share of each random crop in each base."""

    @property
    def volumes(self) -> int:
        return self.labels.shape[0]

    @property
    def random(self) -> int:
        """Random crops a volume."""
        return self.labels.shape[1]


def assemble(batch: RawBatch, view: ViewConfig, crops: CropConfig) -> CropBatch:
    """Window, resize, crop and augment a batch on the device that it lies on."""
    grids = torch.stack([show(region, view) for region in batch.regions])
    gathered = gather_crops(grids, batch.starts, batch.flips, batch.turns, crops.size)
    gathered += batch.shifts[..., None, None, None]
    return CropBatch(gathered.flatten(0, 1).unsqueeze(1), batch.labels)


def show(region: torch.Tensor, view: ViewConfig) -> torch.Tensor:
    """A raw region in its window on the view's grid.

    Along an axis where the grid is at least twice as coarse as the region, voxels are averaged
    down to the grid; along the others they are interpolated linearly. The level that was read
    bounds the ratio by two only along the axis with the finest output voxels: a whole body on
    192x192x64 is three to five times coarser in z, and there bare interpolation would look at
    every fourth slice and drop the rest.

    Args:
        region: int16 HU, (z, y, x).
        view: window and grid.

    Returns:
        (X, Y, Z) float32 in [0, 1].
    """
    low, high = view.window
    image = region.float().sub_(low).div_(high - low).clamp_(0, 1)[None, None]
    target = view.grid[::-1]
    sizes = list(zip(image.shape[2:], target, strict=True))
    depth, height, width = (out if have >= 2 * out else have for have, out in sizes)
    if (depth, height, width) != tuple(image.shape[2:]):
        image = functional.adaptive_avg_pool3d(image, (depth, height, width))
    if tuple(image.shape[2:]) != tuple(target):
        image = functional.interpolate(
            image, size=list(target), mode="trilinear", align_corners=False
        )
    return image[0, 0].permute(2, 1, 0)


def gather_crops(
    grids: torch.Tensor,
    starts: torch.Tensor,
    flips: torch.Tensor,
    turns: torch.Tensor,
    size: tuple[int, int, int],
) -> torch.Tensor:
    """Cut, flip and rotate all crops of a batch with one gather.

    Flips and quarter turns only permute voxels, so they are folded into the index: source index
    = start + offset, where an offset runs backwards when mirrored, and x and y change places
    when the number of turns is odd. Equal to ``torch.rot90(torch.flip(crop), turns, (0, 1))``.

    Args:
        grids: (B, X, Y, Z) images.
        starts: (B, C, 3) int64 first voxel of each crop, (x, y, z).
        flips: (B, C, 3) bool.
        turns: (B, C) int64 quarter turns in the x-y plane; odd ones need cx = cy.
        size: (cx, cy, cz).

    Returns:
        (B, C, cx, cy, cz) crops.
    """
    cx, cy, cz = size
    device = grids.device
    along_x = torch.arange(cx, device=device).view(cx, 1)
    along_y = torch.arange(cy, device=device).view(1, cy)
    along_z = torch.arange(cz, device=device)
    turn = turns[..., None, None]
    swap = turn % 2 == 1
    back_x = (turn >= 2) ^ flips[..., 0, None, None]
    back_y = (turn == 1) ^ (turn == 2) ^ flips[..., 1, None, None]
    x = torch.where(swap, along_y, along_x)
    y = torch.where(swap, along_x, along_y)
    x = torch.where(back_x, cx - 1 - x, x) + starts[..., 0, None, None]
    y = torch.where(back_y, cy - 1 - y, y) + starts[..., 1, None, None]
    z = torch.where(flips[..., 2, None], cz - 1 - along_z, along_z) + starts[..., 2, None]
    volume = torch.arange(grids.shape[0], device=device).view(-1, 1, 1, 1)
    plane = (volume * grids.shape[1] + x) * grids.shape[2] + y
    index = plane[..., None] * grids.shape[3] + z[:, :, None, None, :]
    return torch.take(grids, index)
