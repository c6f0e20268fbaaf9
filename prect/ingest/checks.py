"""The checks that every format shares: of a volume's geometry, and of its values.

Each check is a function with a stable reason code and returns a `Finding`, also when it finds
nothing wrong. The values are judged by one histogram of the whole volume; no voxel is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.base import Header
from prect.ingest.resample import PADDING_HU
from prect.ingest.volume import SNAPPED_SHEAR, Affine, Volume, directions_of, shear_of, spacing_of
from prect.manifests.limits import Limits

AIR_HU = -1000
_DARK_HU = -200
"""Between air or lung and fat."""
_TISSUE_HU = (-200, 300)
_NO_LUNG_HU = -500
"""Lung lies below, whatever the breath."""
_DENSE_HU = (824, 1324)
"""Where soft tissue comes to lie when 1024 has not been subtracted; else dense bone only."""
_SCANNER_MAX_HU = 4095
"""What 12 bits can hold; only metal on an extended scale lies above."""
_MAX_BEYOND = 0.02
_BULK = 2.0
"""Soft tissue outweighs what lies just below it (partial lung) by a factor of 5 or more; dense
bone does not even outweigh the spongy bone just below it."""
_DARKEST = 0.2
_OFFSET = 1024
"""The rescale intercept of practically every CT; 1000 is near enough to be caught as well."""
_SLAB = 1 << 18


def geometry_findings(header: Header, limits: Limits) -> tuple[Finding, ...]:
    """Check what a header says of size and shape; every check is in the result.

    Args:
        header: as a reader returned it.
        limits: those in force.
    """
    return tuple(check(header, limits) for check in _GEOMETRY_CHECKS)


def _spacing(header: Header, limits: Limits) -> Finding:
    low, high = limits.min_spacing_mm, limits.max_spacing_mm
    spacing = spacing_of(header.affine)
    measured, limit = f"{_triple(spacing)} mm", f"{low:g} to {high:g} mm"
    if low <= spacing.min() and spacing.max() <= high:
        return passed("geometry.spacing", measured, limit)
    reason = f"spacing {measured}, every axis must lie within {limit}"
    return failed("geometry.spacing", reason, measured, limit)


def _unit_spacing(header: Header, limits: Limits) -> Finding:
    """Spacing of exactly 1 mm on all axes: true, resampled so, or overwritten."""
    spacing = spacing_of(header.affine)
    measured, limit = f"{_triple(spacing)} mm", f"{limits.unit_spacing} 1 x 1 x 1 mm"
    rejects = limits.unit_spacing == "reject"
    code = "geometry.unit_spacing_rejected" if rejects else "geometry.unit_spacing"
    if not (spacing == 1).all():
        return passed(code, measured, limit)
    reason = "the spacing is exactly 1 x 1 x 1 mm, as in files whose true spacing was overwritten"
    return failed(code, reason, measured, limit)


def _too_small(header: Header, limits: Limits) -> Finding:
    measured = f"{_by(header.shape)} voxels"
    limit = f"at least {limits.min_voxels} along each axis"
    if min(header.shape) >= limits.min_voxels:
        return passed("geometry.too_small", measured, limit)
    return failed("geometry.too_small", f"{measured}, {limit} are needed", measured, limit)


def _small_extent(header: Header, limits: Limits) -> Finding:
    extent = spacing_of(header.affine) * header.shape
    measured = f"{_triple(extent)} mm"
    limit = f"at least {limits.min_extent_mm:g} mm along each axis"
    if extent.min() >= limits.min_extent_mm:
        return passed("geometry.small_extent", measured, limit)
    reason = f"field of view {measured}, {limit} are needed"
    return failed("geometry.small_extent", reason, measured, limit)


def _shear(header: Header, limits: Limits) -> Finding:  # noqa: ARG001
    angle = shear_degrees(header.affine)
    measured = f"{angle:.3g} degrees"
    if any(finding.code == "dicom.gantry_tilt" for finding in header.findings):
        return passed("geometry.shear", measured, "held to dicom.gantry_tilt")
    limit = f"at most {math.degrees(SNAPPED_SHEAR):.2g} degrees"
    if shear_of(header.affine) <= SNAPPED_SHEAR:
        return passed("geometry.shear", measured, limit)
    reason = f"the index axes are {measured} off right angles; the volume is resampled upright"
    return failed("geometry.shear", reason, measured, limit)


def _shear_too_large(header: Header, limits: Limits) -> Finding:
    angle = shear_degrees(header.affine)
    measured = f"{angle:.3g} degrees"
    limit = f"at most {limits.max_tilt_degrees:g} degrees"
    if angle <= limits.max_tilt_degrees:
        return passed("geometry.shear_too_large", measured, limit)
    reason = f"the index axes are {measured} off right angles, {limit} can be resampled"
    return failed("geometry.shear_too_large", reason, measured, limit)


_GEOMETRY_CHECKS: tuple[Callable[[Header, Limits], Finding], ...] = (
    _spacing,
    _unit_spacing,
    _too_small,
    _small_extent,
    _shear,
    _shear_too_large,
)


def shear_degrees(affine: Affine) -> float:
    """Largest angle between an index axis and the normal of the plane of the other two.

    For a CT with gantry tilt this is the tilt; 0 for a rotation.
    """
    axes = directions_of(affine).T
    angles = []
    for a in range(3):
        normal = np.cross(axes[a - 1], axes[a - 2])
        across = np.linalg.norm(np.cross(axes[a], normal))
        angles.append(math.degrees(math.atan2(across, abs(float(axes[a] @ normal)))))
    return max(angles)


@dataclass(frozen=True)
class Histogram:
    """How often each HU occurs in a volume; all checks of values look at nothing else."""

    counts: NDArray[np.int64]
    """(65536,): of -32768 to 32767 HU."""
    fractional: bool = False
    """Whether the file's values had fractions, which the HU have lost."""

    @classmethod
    def of(cls, volume: Volume) -> Histogram:
        """Count the voxels of a volume, all of them; 78 million take 0.2 seconds."""
        values = volume.voxels.reshape(-1).view(np.uint16)
        counts = np.zeros(65536, dtype=np.int64)
        for first in range(0, values.size, _SLAB):  # bincount copies to int64
            counts += np.bincount(values[first : first + _SLAB], minlength=65536)
        return cls(np.roll(counts, 32768), volume.fractional)

    @cached_property
    def image(self) -> int:
        """Number of voxels that are no padding."""
        return int(self.between(PADDING_HU + 1, 32767).sum())

    @cached_property
    def present(self) -> NDArray[np.int64]:
        """HU that occur, ascending."""
        return np.flatnonzero(self.counts) - 32768

    @property
    def text(self) -> str:
        """The range of the values, for sentences."""
        rounded = " (rounded)" if self.fractional else ""
        return f"values run from {self.present[0]} to {self.present[-1]}{rounded}"

    def between(self, low: int, high: int) -> NDArray[np.int64]:
        """Counts of the values from ``low`` to ``high``, both included; a view."""
        return self.counts[max(low, -32768) + 32768 : min(high, 32767) + 32769]

    def share(self, low: int, high: int) -> float:
        """Share of the values from ``low`` to ``high`` among what is no padding."""
        return float(self.between(low, high).sum()) / max(self.image, 1)

    def shifted(self, offset: int) -> Histogram:
        """The histogram after ``offset`` is added to every voxel."""
        counts = np.zeros_like(self.counts)
        if offset > 0:
            counts[offset:] = self.counts[:-offset]
        else:
            counts[:offset] = self.counts[-offset:]
        return Histogram(counts, self.fractional)


def voxel_findings(volume: Volume, limits: Limits) -> tuple[Finding, ...]:
    """Check whether the values can be Hounsfield units of a body; every check is in the result.

    Args:
        volume: in HU, whole.
        limits: those in force.
    """
    histogram = Histogram.of(volume)
    return tuple(check(histogram, limits) for check in _VALUE_CHECKS)


def _constant(histogram: Histogram, limits: Limits) -> Finding:  # noqa: ARG001
    values = len(histogram.present)
    measured, limit = f"{values} values", "more than one"
    if values > 1 or histogram.fractional:  # fractions from 0 to 1 are named by another check
        return passed("content.constant", measured, limit)
    return failed("content.constant", "all voxels have the same value", measured, limit)


def _label_map(histogram: Histogram, limits: Limits) -> Finding:
    values = len(histogram.present)
    measured, limit = f"{values} values", f"more than {limits.max_labels}"
    if histogram.fractional:
        return passed("content.label_map", "values with fractions", limit)
    if histogram.present[0] < 0:
        return passed("content.label_map", f"values from {histogram.present[0]} up", limit)
    if values > limits.max_labels:
        return passed("content.label_map", measured, limit)
    reason = (
        f"{values} different whole numbers from {histogram.present[0]} to "
        f"{histogram.present[-1]} and nothing below 0: a label map or a mask, not an image"
    )
    return failed("content.label_map", reason, measured, limit)


def _out_of_range(histogram: Histogram, limits: Limits) -> Finding:  # noqa: ARG001
    share = histogram.share(_SCANNER_MAX_HU + 1, 32767)
    measured = f"{share:.2%} above {_SCANNER_MAX_HU} HU"
    limit = f"at most {_MAX_BEYOND:.2%}"
    if share <= _MAX_BEYOND:
        return passed("hu.out_of_range", measured, limit)
    reason = (
        f"{share:.2%} of the voxels lie above {_SCANNER_MAX_HU} HU, {limit} in CT; bytes in the "
        "wrong order, unsigned numbers taken for signed ones, or another scale"
    )
    return failed("hu.out_of_range", reason, measured, limit)


def _not_rescaled(histogram: Histogram, limits: Limits) -> Finding:
    """Stored values taken for HU: air at 0 to 24, soft tissue around 1064.

    Padding that a reader has turned into -1024 HU does not hide it, so the lowest value
    does not count as air.
    """
    dark = _share_of_air(histogram)
    dense = histogram.share(*_DENSE_HU)
    below = histogram.share(_TISSUE_HU[1] + 1, _DENSE_HU[0] - 1)
    shifted = histogram.shifted(-_OFFSET)
    measured = f"{dense:.2%} from {_DENSE_HU[0]} to {_DENSE_HU[1]} HU, {dark:.2%} dark"
    limit = f"at most {_BULK * below:.2%}, or at least {limits.min_dark_share:.2%} dark"
    plausible = _plausible(shifted, shifted.share(PADDING_HU + 1, _DARK_HU - 1), limits)
    if dark >= limits.min_dark_share or dense <= _BULK * below or not plausible:
        return passed("hu.not_rescaled", measured, limit)
    reason = (
        f"{dense:.2%} of the voxels lie between {_DENSE_HU[0]} and {_DENSE_HU[1]} HU and next to "
        f"none is air; less {_OFFSET} these are Hounsfield units: the rescale was never applied"
    )
    return failed("hu.not_rescaled", reason, measured, limit)


def _not_calibrated(histogram: Histogram, limits: Limits) -> Finding:
    share = histogram.share(PADDING_HU + 1, _DARK_HU - 1)
    measured, limit = f"{share:.2%} below {_DARK_HU} HU", f"at least {limits.min_dark_share:.2%}"
    if share >= limits.min_dark_share:
        return passed("hu.not_calibrated", measured, limit)
    reason = f"{share:.2%} of the voxels lie below {_DARK_HU} HU (air, lung), {limit} in CT"
    return failed("hu.not_calibrated", f"{reason}; {histogram.text}", measured, limit)


def _rescaled_twice(histogram: Histogram, limits: Limits) -> Finding:
    """HU to which the intercept was added again: air near -2024, soft tissue near -984.

    Dense bone then lies where soft tissue should, so its presence alone proves nothing.
    """
    low, high = _TISSUE_HU
    tissue = histogram.share(low, high)
    below = histogram.share(high + 1 - _OFFSET, low - 1)
    shifted = histogram.shifted(_OFFSET)
    measured = f"{tissue:.2%} from {low} to {high} HU"
    limit = f"at least {_BULK * below:.2%}"
    if tissue >= _BULK * below or not _plausible(shifted, _share_of_air(shifted), limits):
        return passed("hu.rescaled_twice", measured, limit)
    reason = (
        f"{tissue:.2%} of the voxels are soft tissue, and {shifted.share(low, high):.2%} would be "
        f"if {_OFFSET} were added: the rescale was applied twice"
    )
    return failed("hu.rescaled_twice", reason, measured, limit)


def _no_soft_tissue(histogram: Histogram, limits: Limits) -> Finding:
    low, high = _TISSUE_HU
    share = histogram.share(low, high)
    measured = f"{share:.2%} from {low} to {high} HU"
    limit = f"at least {limits.min_tissue_share:.2%}"
    if share >= limits.min_tissue_share:
        return passed("hu.no_soft_tissue", measured, limit)
    reason = (
        f"{share:.2%} of the voxels lie between {low} and {high} HU (fat, soft tissue), {limit} "
        f"in CT of a body; {histogram.text}"
    )
    return failed("hu.no_soft_tissue", reason, measured, limit)


def _air_offset(histogram: Histogram, limits: Limits) -> Finding:
    tolerance = limits.max_air_offset_hu
    limit = f"{AIR_HU} HU, give or take {tolerance:g}"
    air = _air(histogram, tolerance)
    if air is None:
        return passed("hu.air_offset", "no air", limit)
    measured = f"{air} HU"
    if abs(air - AIR_HU) <= tolerance:
        return passed("hu.air_offset", measured, limit)
    reason = f"air has {measured}, it must have {limit}"
    return failed("hu.air_offset", reason, measured, limit)


_VALUE_CHECKS: tuple[Callable[[Histogram, Limits], Finding], ...] = (
    _constant,
    _label_map,
    _out_of_range,
    _not_rescaled,
    _not_calibrated,
    _rescaled_twice,
    _no_soft_tissue,
    _air_offset,
)


def _air(histogram: Histogram, tolerance: float) -> int | None:
    """HU of the darkest fifth of what is dark enough for air or lung; ``None`` without any.

    The one most frequent value far below air is left out: were it padding, it would be taken
    for the air, and were it noise, one value of many makes no difference.
    """
    dark = histogram.between(PADDING_HU + 1, _NO_LUNG_HU).copy()
    below_air = dark[: max(0, math.ceil(AIR_HU - tolerance) - PADDING_HU - 1)]
    if below_air.size:
        below_air[below_air.argmax()] = 0
    if not dark.any():
        return None
    rank = math.ceil(_DARKEST * int(dark.sum()))
    return PADDING_HU + 1 + int(np.searchsorted(np.cumsum(dark), rank))


def _share_of_air(histogram: Histogram) -> float:
    """Share of dark voxels, the lowest value left out: it may be padding."""
    dark = histogram.between(PADDING_HU + 1, _DARK_HU - 1)
    found = np.flatnonzero(dark)
    padding = int(dark[found[0]]) if found.size else 0
    return (int(dark.sum()) - padding) / max(histogram.image, 1)


def _plausible(histogram: Histogram, dark: float, limits: Limits) -> bool:
    """Whether these values would have enough dark, enough soft tissue, and air near -1000 HU."""
    air = _air(histogram, limits.max_air_offset_hu)
    return (
        dark >= limits.min_dark_share
        and histogram.share(*_TISSUE_HU) >= limits.min_tissue_share
        and air is not None
        and abs(air - AIR_HU) <= limits.max_air_offset_hu
    )


def _by(values: tuple[int, ...]) -> str:
    return " x ".join(map(str, values))


def _triple(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
