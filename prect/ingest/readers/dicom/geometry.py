"""Where the slices of a volume lie, and the uniform grid that they are brought onto.

Geometry follows DICOM PS3.3 C.7.6.2.1.1: the position is the centre of the first voxel,
the orientation holds the directions of increasing column and row index, in LPS. Slices are
ordered and spaced by their positions along the normal, never by a name or a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.dicom.headers import Slice
from prect.ingest.readers.dicom.phases import check_interleaved, check_phases
from prect.ingest.volume import LPS_TO_RAS, SNAPPED_SHEAR, Affine, clean_affine
from prect.manifests.limits import Limits

SAME_POSITION_MM = 0.01
_POSITION_ERROR_MM = 0.01
"""Distance of a slice's own position from where the affine puts it that is rounding."""
_COSINE_ERROR = 1e-5
"""What `clean_affine` rounds off the cosines."""
_TILT_DEGREES = 0.1
"""Smaller angles between the slice axis and the normal are rounding of the positions."""
_GAP_ABOVE_THICKNESS = 1.5
"""Contiguous slices with every second one missing have a gap of twice their thickness."""
_CLEARLY_ABOVE = 1.1
"""A gap that is larger than the slices beside it by this factor is not covered by them."""
_WHOLE_MULTIPLE = 0.1
"""Deviation of a gap from a whole multiple of the usual one, as a share of the usual one."""
_MOST_SLICES = 4
"""Uneven slices are interpolated onto at most so many times as many even ones."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Placed:
    """A slice and where it lies in the volume."""

    part: Slice
    index: float
    """Index along k; whole numbers when the slices are evenly spaced as they are."""


@dataclass(frozen=True)
class Stack:
    """Slices in the order of their positions, on a uniform grid."""

    placed: tuple[Placed, ...]
    """Along the normal; slices at one position share an index."""
    count: int
    """Voxels of the volume along k."""
    affine: Affine
    """Index (i, j, k) to RAS millimetres."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Line:
    """Positions of slices, and the straight line from the first to the last."""

    slices: tuple[Slice, ...]
    positions: Vector
    """(n, 3) LPS millimetres."""
    depths: Vector
    """(n,) millimetres along the normal, ascending."""
    levels: Vector
    """(m,) the different depths; slices at one position share one."""
    level: NDArray[np.intp]
    """(n,) index of each slice's depth in ``levels``."""
    normal: Vector

    @property
    def span(self) -> float:
        return float(self.levels[-1] - self.levels[0])

    @property
    def vector(self) -> Vector:
        """(3,) from the first position to the last."""
        whole: Vector = self.positions[-1] - self.positions[0]
        return whole

    @property
    def leaders(self) -> tuple[Slice, ...]:
        """(m,) the first slice of each level: copies at one position count once."""
        _, first = np.unique(self.level, return_index=True)
        return tuple(self.slices[n] for n in first)

    @property
    def thicknesses(self) -> Vector:
        """(m,) millimetres, 0 where absent."""
        return np.array([part.thickness for part in self.leaders])


def stack_slices(slices: Sequence[Slice], limits: Limits) -> Stack:
    """Order slices along their normal and find the grid of their volume.

    Evenly spaced slices keep their places. Others get places between the slices of a
    uniform grid; the reader interpolates. A gantry tilt stays in the affine, as a shear.

    Args:
        slices: of one group, each with its geometry; several may lie at one position.
        limits: `Limits` in force.

    Raises:
        VolumeError: ``dicom.bolus_tracking``, all slices lie at one position;
            ``geometry.too_small``, too few of them. Other faults are among the findings.
    """
    line = _line(slices)
    findings = [_check_one_place(line), *_check_count(line, limits)]
    drift = _drift_tolerance(line, limits)
    findings.append(_check_straight(line, drift))
    findings += _check_tilt(line, limits)
    gaps = np.diff(line.levels)
    even = _even(line, gaps, drift, limits)
    steps = len(gaps) if even else _uneven_steps(gaps, line.span)
    findings += _check_gaps(line, gaps, even, line.span / steps, limits)
    findings.append(_check_numbers(line))
    findings.append(_check_thickness(line, gaps))
    affine = _affine(line, steps)
    if even:
        index = line.level.astype(np.float64)
    else:
        index = (line.depths - line.levels[0]) / line.span * steps
        index = index[np.unique(line.level, return_index=True)[1]][line.level]
    findings.append(_check_ends(line, affine, steps))
    placed = tuple(Placed(part, float(k)) for part, k in zip(line.slices, index, strict=True))
    return Stack(placed, steps + 1, affine, tuple(findings))


def _line(slices: Sequence[Slice]) -> _Line:
    # Orientations may differ by rounding; that of the first slice along the normal is taken.
    rough = _normal(slices[0])
    normal = _normal(min(slices, key=lambda s: float(np.dot(s.position, rough))))
    ordered = sorted(
        slices, key=lambda s: (float(np.dot(s.position, normal)), s.instance_uid, s.path, s.frame)
    )
    positions = np.array([s.position for s in ordered])
    depths = np.array([np.dot(s.position, normal) for s in ordered])
    starts = np.concatenate([[True], np.diff(depths) >= SAME_POSITION_MM])
    return _Line(tuple(ordered), positions, depths, depths[starts], np.cumsum(starts) - 1, normal)


def _normal(part: Slice) -> Vector:
    cosines = np.array(part.orientation)
    normal: Vector = np.cross(cosines[:3], cosines[3:])
    return normal / np.linalg.norm(normal)


def _check_one_place(line: _Line) -> Finding:
    measured = f"{len(line.levels)} positions of {len(line.slices)} slices"
    instances = {(part.instance_uid, part.frame) for part in line.slices}
    if len(instances) > 1 and len(line.levels) == 1:
        raise VolumeError(
            "dicom.bolus_tracking",
            f"all {len(line.slices)} slices lie at one position: a series over time, no volume",
        )
    return passed("dicom.bolus_tracking", measured, "more than 1 position")


def _check_count(line: _Line, limits: Limits) -> list[Finding]:
    count, least = len(line.levels), max(limits.min_voxels, 2)
    if count < least:
        raise VolumeError("geometry.too_small", f"{count} slices, at least {least} are needed")
    phases = check_phases(line.slices, line.level, line.levels, limits)
    if phases is not None:
        return [phases]
    if len(line.slices) > count:
        return []  # what repeats a position is told apart by its pixels, when they are read
    return [passed("dicom.several_phases", "every position once")]


def _drift_tolerance(line: _Line, limits: Limits) -> float:
    """Millimetres that a slice may lie off its place without being misplaced."""
    return max(0.5 * min(line.slices[0].pixel_spacing), limits.gap_tolerance_mm)


def _check_straight(line: _Line, tolerance: float) -> Finding:
    share = (line.depths - line.depths[0]) / line.span
    strays = line.positions - line.positions[0] - np.outer(share, line.vector)
    worst = float(np.linalg.norm(strays, axis=1).max())
    measured, limit = f"{worst:.3g} mm", f"{tolerance:.3g} mm"
    if worst <= tolerance:
        return passed("dicom.crooked", measured, limit)
    reason = f"slices stray {measured} from a straight line, at most {limit}"
    return failed("dicom.crooked", reason, measured, limit)


def _check_tilt(line: _Line, limits: Limits) -> list[Finding]:
    cosine = abs(float(line.vector @ line.normal)) / float(np.linalg.norm(line.vector))
    tilt = math.degrees(math.acos(min(1.0, cosine)))
    measured = f"{tilt:.1f} degrees"
    limit = f"{limits.max_tilt_degrees:g} degrees"
    if tilt > limits.max_tilt_degrees:
        reason = f"tilt of {measured}, at most {limit}"
        return [failed("dicom.tilt_too_large", reason, measured, limit)]
    findings = [passed("dicom.tilt_too_large", measured, limit)]
    if tilt > _TILT_DEGREES:
        reason = f"tilt of {measured}; resampled from the true positions"
        findings.append(failed("dicom.gantry_tilt", reason, measured, f"{_TILT_DEGREES} degrees"))
    else:
        findings.append(passed("dicom.gantry_tilt", measured, f"{_TILT_DEGREES} degrees"))
    return findings


def _even(line: _Line, gaps: Vector, drift: float, limits: Limits) -> bool:
    """Whether all gaps are the median gap, and their deviations do not add up."""
    median = float(np.median(gaps))
    uniform = np.linspace(line.levels[0], line.levels[-1], len(line.levels))
    return bool(
        np.abs(gaps - median).max() <= _gap_tolerance(median, limits)
        and np.abs(line.levels - uniform).max() <= drift
    )


def _gap_tolerance(median: float, limits: Limits) -> float:
    return max(limits.gap_tolerance * median, limits.gap_tolerance_mm)


def _uneven_steps(gaps: Vector, span: float) -> int:
    """Number of even steps that take the place of uneven gaps, about as long as the smallest."""
    return min(round(span / float(gaps.min())), _MOST_SLICES * (len(gaps) + 1) - 1)


def _check_gaps(
    line: _Line, gaps: Vector, even: bool, step: float, limits: Limits
) -> list[Finding]:
    median = float(np.median(gaps))
    measured = f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm"
    limit = f"{median:.4g} mm within {_gap_tolerance(median, limits):.3g} mm"
    if even:
        return [
            passed("dicom.missing_slices", "0 slices"),
            passed("dicom.interleaved_stacks", "even gaps"),
            passed("dicom.gap_too_large", "even gaps"),
            passed("dicom.nonuniform_spacing", measured, limit),
        ]
    missing = missing_slices(gaps, line.thicknesses, limits)
    if missing:
        reason = f"about {missing} slices are missing: {measured}, the median is {median:.4g} mm"
        return [failed("dicom.missing_slices", reason, f"{missing} slices", "0 slices")]
    interleaved = check_interleaved(gaps)
    findings = [passed("dicom.missing_slices", "0 slices"), interleaved]
    if not interleaved.passed:
        return findings
    largest, bound = f"{gaps.max():.4g} mm", f"{limits.max_gap_mm:g} mm"
    if gaps.max() > limits.max_gap_mm:
        reason = f"uneven gaps of up to {largest}, at most {bound} are interpolated"
        return [*findings, failed("dicom.gap_too_large", reason, largest, bound)]
    reason = f"{measured} between slices; interpolated from the true positions every {step:.4g} mm"
    findings.append(passed("dicom.gap_too_large", largest, bound))
    findings.append(failed("dicom.nonuniform_spacing", reason, measured, limit))
    return findings


def missing_slices(gaps: Vector, thicknesses: Vector, limits: Limits) -> int:
    """Number of slices that uneven gaps show to be missing.

    A protocol may change thickness and gap along the patient together. So the usual gap is
    the lower quartile of gap over thickness, times the thickness at hand (the larger of the
    two slices beside the gap); without thicknesses it is the lower quartile of the gaps.
    Slices are missing in a gap of about twice the usual one or a higher whole multiple of
    it, unless the slices beside it are nearly as thick as the gap and so cover it.

    Args:
        gaps: (m - 1,) millimetres between neighbours.
        thicknesses: (m,) millimetres, 0 where the file does not say.
        limits: gap_tolerance_mm is the least deviation that counts as rounding.
    """
    known = bool((thicknesses > 0).all())
    beside = np.maximum(thicknesses[:-1], thicknesses[1:]) if known else np.ones_like(gaps)
    usual = np.quantile(gaps / beside, 0.25, method="lower") * beside
    multiple = np.rint(gaps / usual)
    rounding = np.maximum(_WHOLE_MULTIPLE * usual, limits.gap_tolerance_mm)
    missing = (multiple >= 2) & (np.abs(gaps - multiple * usual) <= rounding)
    if known:
        missing &= gaps > _CLEARLY_ABOVE * beside
    return int((multiple[missing] - 1).sum())


def _check_numbers(line: _Line) -> Finding:
    numbers = [s.instance_number for s in line.leaders if s.instance_number is not None]
    if len(numbers) < len(line.levels) or len(set(numbers)) < len(numbers):
        return passed("dicom.instance_stride", "instance numbers are absent or repeat")
    stride = int(np.abs(np.diff(numbers)).min())
    if stride <= 1:
        return passed("dicom.instance_stride", f"stride {stride}", "stride 1")
    reason = f"instance numbers go up by {stride} at least: slices may be missing"
    return failed("dicom.instance_stride", reason, f"stride {stride}", "stride 1")


def _check_thickness(line: _Line, gaps: Vector) -> Finding:
    thicknesses = line.thicknesses
    if not (thicknesses > 0).all():
        return passed("dicom.gap_above_thickness", "the slice thickness is absent")
    beside = np.maximum(thicknesses[:-1], thicknesses[1:])
    middle = int(np.argsort(gaps / beside)[len(gaps) // 2])
    gap, thickness = gaps[middle], beside[middle]
    measured = f"{gap / thickness:.3g} times"
    limit = f"{_GAP_ABOVE_THICKNESS:g} times"
    if gap <= _GAP_ABOVE_THICKNESS * thickness:
        return passed("dicom.gap_above_thickness", measured, limit)
    reason = (
        f"slices {gap:.3g} mm apart are {thickness:.3g} mm thick, at most {limit} their "
        "thickness is usual: every second one may be missing"
    )
    return failed("dicom.gap_above_thickness", reason, measured, limit)


def _affine(line: _Line, steps: int) -> Affine:
    first = line.slices[0]
    cosines = np.array(first.orientation)
    matrix = np.empty((3, 3))
    matrix[:, 0] = cosines[:3] * first.pixel_spacing[1]
    matrix[:, 1] = cosines[3:] * first.pixel_spacing[0]
    matrix[:, 2] = line.vector / steps
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ matrix
    affine[:3, 3] = LPS_TO_RAS @ line.positions[0]
    return clean_affine(affine)


def _check_ends(line: _Line, affine: Affine, steps: int) -> Finding:
    """Whether the affine puts the first and the last slice where their files say.

    Beyond rounding, only the snapping of a tiny shear (`clean_affine`) may move the last one.
    """
    ends = affine[:3, 3] + np.outer([0, steps], affine[:3, 2])
    truth = line.positions[[0, -1]] @ LPS_TO_RAS
    error = float(np.linalg.norm(ends - truth, axis=1).max())
    length = float(np.linalg.norm(line.vector))
    shear = float(np.linalg.norm(line.vector / length - line.normal))
    snapped = shear if shear <= 2 * SNAPPED_SHEAR else 0.0
    tolerance = _POSITION_ERROR_MM + (_COSINE_ERROR + snapped) * length
    measured, limit = f"{error:.2g} mm", f"{tolerance:.2g} mm"
    if error <= tolerance:
        return passed("dicom.z_direction", measured, limit)
    reason = f"the first or last slice is {measured} from its position, at most {limit}"
    return failed("dicom.z_direction", reason, measured, limit)
