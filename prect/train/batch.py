"""From raw regions to crops, on the device.

Axis order changes here, once: stores are (z, y, x), the network is (batch, channel, x, y, z)
in RAS+, as MONAI's readers give it, so that the weights serve elsewhere.

Shapes: B volumes, S random crops and n bases a volume, (X, Y, Z) the view's grid,
(cx, cy, cz) a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from prect.train.collate import RawBatch
from prect.train.config import CropConfig, ViewConfig


@dataclass
class CropBatch:
    """What an objective works on."""

    crops: torch.Tensor
    """(B * (S + n), 1, cx, cy, cz) float32; a volume's random crops, then its bases."""
    labels: torch.Tensor
    """(B, S, n) float32 share of each random crop in each base."""
    dropped: torch.Tensor | None = None
    """(B * (S + n),) bool, the crops whose embedding is dropped, where any may be."""

    @property
    def volumes(self) -> int:
        return self.labels.shape[0]

    @property
    def random(self) -> int:
        """Random crops a volume."""
        return self.labels.shape[1]


def assemble(batch: RawBatch, view: ViewConfig, crops: CropConfig) -> CropBatch:
    """Window, resize, crop and augment a batch on the device that it lies on."""
    grids = show(batch, view.grid)
    gathered = gather_crops(grids, batch.starts, batch.flips, batch.turns, crops.size)
    flat = gathered.flatten(0, 1).unsqueeze(1)
    if crops.shown != crops.size:
        flat = resize(flat, crops.shown)
    flat += batch.shifts.view(-1, 1, 1, 1, 1)
    return CropBatch(flat, batch.labels, batch.dropped)


def join(batches: Sequence[CropBatch]) -> CropBatch:
    """The batches one after the other as one."""
    if len(batches) == 1:
        return batches[0]
    dropped = [batch.dropped for batch in batches if batch.dropped is not None]
    return CropBatch(
        torch.cat([batch.crops for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat(dropped) if dropped else None,
    )


def show(batch: RawBatch, grid: tuple[int, int, int]) -> torch.Tensor:
    """The raw regions of a batch in their windows on the view's grid.

    Args:
        batch: B regions and their windows.
        grid: (X, Y, Z).

    Returns:
        (B, X, Y, Z) float32 in [0, 1].
    """
    low, high = batch.windows[:, :, None, None, None].unbind(1)
    span = high - low
    shape = grid[::-1]
    groups = _equal_shapes(batch.shapes)
    if len(groups) == 1:
        images = batch.voxels.view(len(batch), *batch.shapes[0]).float()
        return _shown(images, low, span, shape).permute(0, 3, 2, 1)
    alone = batch.regions
    shown = torch.empty(len(batch), *shape, device=batch.voxels.device)
    for members in groups:
        # An index of several numbers would have to be sent to the device, which then waits.
        lows, spans = (torch.stack([t[i] for i in members]) for t in (low, span))
        images = torch.empty(len(members), *batch.shapes[members[0]], device=shown.device)
        for image, i in zip(images, members, strict=True):
            image.copy_(alone[i])
        for image, i in zip(_shown(images, lows, spans, shape), members, strict=True):
            shown[i] = image
    return shown.permute(0, 3, 2, 1)


def _shown(
    images: torch.Tensor, low: torch.Tensor, span: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """(n, *shape) in the window, from (n, z, y, x) float32 HU, which is overwritten."""
    images.sub_(low).div_(span).clamp_(0, 1)
    return resize(images[:, None], shape)[:, 0]


def _equal_shapes(shapes: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Positions of equal shapes."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for position, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(position)
    return list(groups.values())


def resize(images: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Images on another grid over the same extent.

    Along an axis where the new grid is at least twice as coarse, voxels are averaged down to it;
    along the others they are interpolated linearly. The level that was read bounds the ratio by
    two only along the axis with the finest output voxels: a whole body on 192x192x64 is three to
    five times coarser in z, and there bare interpolation would look at every fourth slice and
    drop the rest.

    Args:
        images: (n, 1, a, b, c) float.
        shape: the new (a, b, c).

    Returns:
        (n, 1, *shape); ``images`` itself where nothing changes.
    """
    sizes = list(zip(images.shape[2:], shape, strict=True))
    first, second, third = (out if have >= 2 * out else have for have, out in sizes)
    if (first, second, third) != tuple(images.shape[2:]):
        images = functional.adaptive_avg_pool3d(images, (first, second, third))
    if tuple(images.shape[2:]) != tuple(shape):
        images = functional.interpolate(
            images, size=list(shape), mode="trilinear", align_corners=False
        )
    return images


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
