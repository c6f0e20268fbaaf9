"""Frames of an enhanced multi-frame CT: what each says of itself in functional groups.

A functional group macro (DICOM PS3.3 C.7.6.16) stands either in the item of its frame or,
when all frames share it, in the shared item. A legacy converted object may keep attributes
in the unassigned groups instead (PS3.3 C.7.6.16.2.25).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset

from prect.errors import VolumeError

FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)
"""Shared and per-frame functional groups: all that is parsed besides the header's allow-list."""
_UNASSIGNED = (
    "UnassignedPerFrameConvertedAttributesSequence",
    "UnassignedSharedConvertedAttributesSequence",
)


@dataclass(frozen=True)
class Frame:
    """Geometry, kind and rescale of one frame; units and emptiness as in `Slice`."""

    image_type: tuple[str, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    thickness: float
    acquisition: int | None
    temporal_position: int | None
    rescale: tuple[float, float] | None
    rescale_type: str


def frames_of(data: Dataset, count: int) -> Iterator[Frame]:
    """The frames of an object in the order of its pixel data.

    Args:
        data: holds the functional group sequences.
        count: NumberOfFrames.

    Raises:
        VolumeError: ``dicom.damaged_header``, the groups do not describe every frame.
    """
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    items = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    if len(items) != count:
        raise VolumeError(
            "dicom.damaged_header", f"{len(items)} of {count} frames have functional groups"
        )
    for item in items:
        yield _frame([item, *shared])


def _frame(groups: Sequence[Dataset]) -> Frame:
    slope = _value(groups, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _value(groups, "PixelValueTransformationSequence", "RescaleIntercept")
    unit = _value(groups, "PixelValueTransformationSequence", "RescaleType")
    kind = _value(groups, "CTImageFrameTypeSequence", "FrameType")
    return Frame(
        image_type=tuple(str(v).strip().upper() for v in _many(kind)),
        position=_numbers(_value(groups, "PlanePositionSequence", "ImagePositionPatient"), 3),
        orientation=_numbers(
            _value(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6
        ),
        pixel_spacing=_numbers(_value(groups, "PixelMeasuresSequence", "PixelSpacing"), 2),
        thickness=thickness_of(_value(groups, "PixelMeasuresSequence", "SliceThickness")),
        acquisition=whole_of(_value(groups, "FrameContentSequence", "FrameAcquisitionNumber")),
        temporal_position=whole_of(_value(groups, "FrameContentSequence", "TemporalPositionIndex")),
        rescale=None if slope is None or intercept is None else (float(slope), float(intercept)),
        rescale_type=str(unit or "").strip().upper(),
    )


def thickness_of(value: Any) -> float:
    """Millimetres; a hint only, so that what is no positive number counts as absent: 0."""
    try:
        thickness = float(value or 0)
    except (TypeError, ValueError):
        return 0.0
    return thickness if 0 < thickness < math.inf else 0.0


def whole_of(value: Any) -> int | None:
    """A number such as InstanceNumber; a hint only: ``None`` when it is no whole number."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _value(groups: Sequence[Dataset], macro: str, keyword: str) -> Any:
    """An attribute of a macro, of the frame before the shared one; ``None`` when absent."""
    for group in groups:
        for sequence in (macro, *_UNASSIGNED):
            for item in group.get(sequence) or []:
                value = item.get(keyword)
                if value is not None and value != "":
                    return value
    return None


def _many(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return [value] if isinstance(value, str) else list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(v) for v in _many(value))
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()
