"""Checks that decide a volume's verdict; each has a stable reason code.

A check returns ``None`` when the volume passes and a `Finding` when it does not. Findings
that reject come from what cannot be CT, or cannot be trusted; findings that warn are
written down beside an accepted volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prect.ingest.settings import Limits
from prect.ingest.volume import Affine, spacing_of


@dataclass(frozen=True)
class Finding:
    """Why a volume is rejected."""

    code: str
    """Stable reason code, ``family.detail``."""
    reason: str
    """One sentence with the measured value and the limit."""


def check_geometry(shape: tuple[int, int, int], affine: Affine, limits: Limits) -> Finding | None:
    """Plausible spacing and size.

    Args:
        shape: voxels along (i, j, k).
        affine: index to RAS millimetres.
        limits: `Limits` in force.
    """
    spacing = spacing_of(affine)
    low, high = limits.min_spacing_mm, limits.max_spacing_mm
    if spacing.min() < low or spacing.max() > high:
        return Finding(
            "geometry.spacing",
            f"spacing {_triple(spacing)} mm, every axis must lie within {low:g} to {high:g} mm",
        )
    if min(shape) < limits.min_voxels:
        return Finding(
            "geometry.too_small",
            f"{shape[0]} x {shape[1]} x {shape[2]} voxels, at least {limits.min_voxels} "
            "are needed along each axis",
        )
    extent = spacing * shape
    if extent.min() < limits.min_extent_mm:
        return Finding(
            "geometry.too_small",
            f"field of view {_triple(extent)} mm, at least {limits.min_extent_mm:g} mm "
            "are needed along each axis",
        )
    return None


def _constant(hu: NDArray[Any], _: Limits) -> Finding | None:
    if hu.size == 0 or hu.min() == hu.max():
        return Finding("content.constant", "all voxels have the same value")
    return None


def _label_map(hu: NDArray[Any], limits: Limits) -> Finding | None:
    if hu.min() < 0 or hu.max() > 65535:
        return None
    if not np.issubdtype(hu.dtype, np.integer) and not np.array_equal(hu, np.rint(hu)):
        return None
    values = int(np.count_nonzero(np.bincount(hu.astype(np.int64).ravel())))
    if values > limits.max_labels:
        return None
    return Finding(
        "content.label_map",
        f"{values} different whole numbers from 0 to {int(hu.max())} and nothing below 0: "
        "this is a label map or a mask, not an image",
    )


def _calibrated(hu: NDArray[Any], limits: Limits) -> Finding | None:
    share = float(np.mean(hu < -200))
    if share >= limits.min_dark_share:
        return None
    return Finding(
        "hu.not_calibrated",
        f"{share:.2%} of the voxels lie below -200 HU, CT has at least "
        f"{limits.min_dark_share:.2%} (air, lung); values run from {hu.min():g} to {hu.max():g}",
    )


def _soft_tissue(hu: NDArray[Any], limits: Limits) -> Finding | None:
    share = float(np.mean((hu >= -200) & (hu <= 300)))
    if share >= limits.min_tissue_share:
        return None
    return Finding(
        "hu.no_soft_tissue",
        f"{share:.2%} of the voxels lie between -200 and 300 HU (fat, soft tissue), at least "
        f"{limits.min_tissue_share:.2%} are needed; the rescale may have been applied twice",
    )


VOXEL_CHECKS: tuple[Callable[[NDArray[Any], Limits], Finding | None], ...] = (
    _constant,
    _label_map,
    _calibrated,
    _soft_tissue,
)


def check_voxels(hu: NDArray[Any], limits: Limits) -> Finding | None:
    """Whether the values can be Hounsfield units of a body.

    Args:
        hu: values of the volume, or of a sample of its slices; any shape, finite numbers.
        limits: `Limits` in force.

    Returns:
        The first finding that rejects, or ``None``.
    """
    for check in VOXEL_CHECKS:
        finding = check(hu, limits)
        if finding is not None:
            return finding
    return None


def _triple(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
