"""Spine, sacrum, ribs, sternum, hip bones and femurs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prect.phantom.shapes import (
    PROFILE_HEIGHTS,
    BoolArray,
    Box,
    Ellipsoid,
    FloatArray,
    Material,
    Part,
    Profile,
    View,
    profile,
    tube,
)
from prect.phantom.tissue import ORGANS

# Depth y of the centres of the vertebral bodies by height: lordosis below, kyphosis above.
SPINE_CURVE = profile(
    *[(50, -48), (80, -62), (110, -66), (140, -56), (160, -46), (200, -35), (240, -31)],
    *[(290, -33), (340, -40), (400, -48), (460, -53), (520, -53), (570, -46), (610, -38)],
    *[(640, -32), (740, -25)],
)
VERTEBRA_RADIUS = profile((150, 25), (250, 23), (340, 20), (460, 16), (600, 13), (740, 12))

SACRUM_TOP = 160.0
# Heights of L5 to L1, then T12 to T1, then cervical vertebrae; each includes the disc above it.
_VERTEBRAE = (37.0, 37.0, 36.0, 35.0, 34.0, *np.linspace(29, 19, 12), *([17.0] * 8))
_SACRUM_HALF_WIDTH = profile((50, 8), (75, 18), (110, 36), (160, 52))
_SACRUM_HALF_DEPTH = profile((50, 5), (80, 8), (130, 15), (160, 21))

RIB_LOWEST = 352.0
_RIB_SPACING = 24.0
_RIB_DROP = 75.0
_RIB_COUNT = 12
# Angle from the back (0) to the front (1) at which bone, then cartilage, of rib 12 to 1 ends.
_BONE_END = np.array([0.42, 0.52, 0.66, 0.68, 0.70] + [0.72] * 7, dtype=np.float32)
_CARTILAGE_END = np.array([0.42, 0.52, 0.78, 0.82, 0.86] + [0.95] * 7, dtype=np.float32)


def _vertebra_phase() -> Profile:
    """Relative height within a vertebra: 0 at its lower end plate, 1 at that of the next."""
    ends = SACRUM_TOP + np.concatenate([[0.0], np.cumsum(_VERTEBRAE)])
    level = np.clip(np.searchsorted(ends, PROFILE_HEIGHTS, side="right") - 1, 0, len(ends) - 2)
    phase = (PROFILE_HEIGHTS - ends[level]) / (ends[level + 1] - ends[level])
    return Profile(float(PROFILE_HEIGHTS[0]), np.clip(phase, 0, 1).astype(np.float32))


VERTEBRA_PHASE = _vertebra_phase()
_DISC_FROM = 0.78
_END_PLATE = 0.06


@dataclass(frozen=True)
class Spine:
    """Vertebrae with bodies, arches and processes, the discs between, and the canal."""

    hu: Mapping[str, float]

    @property
    def box(self) -> Box:
        return (-56.0, -112.0, SACRUM_TOP), (56.0, 0.0, 740.0)

    def paint(self, view: View) -> None:
        rows = SPINE_CURVE.index(view.z)
        depth = view.y - SPINE_CURVE.take(rows)
        radius = VERTEBRA_RADIUS.take(rows)
        phase = VERTEBRA_PHASE.take(rows)
        above = view.z >= np.float32(SACRUM_TOP)
        side = np.abs(view.x)
        label, hu = ORGANS["spine"], self.hu
        transverse = (
            (np.abs(depth + radius + 7) < 4)
            & (side < radius + 17)
            & (np.abs(phase - np.float32(0.45)) < 0.16)
        )
        spinous = (
            (side < 3.5)
            & (depth < -radius - 15)
            & (depth > -radius - 34 + 8 * phase)
            & (phase > 0.12)
            & (phase < 0.7)
        )
        view.paint((transverse | spinous) & above, hu["marrow"] + 230, label)
        canal = np.sqrt(side**2 + (depth + radius + 9) ** 2)
        view.paint((canal < 13) & (phase > 0.1) & (phase < 0.8) & above, hu["cortex"] - 250, label)
        view.paint((canal < 9) & above, hu["cord"], ORGANS["body"])
        body = (side / (np.float32(1.25) * radius)) ** 2 + (depth / radius) ** 2
        inside = (body < 1) & above
        view.paint(inside, hu["disc"], label)
        bone = inside & (phase < _DISC_FROM)
        view.paint(bone, hu["cortex"] - 150)
        spongy = bone & (body < 0.8) & (phase > _END_PLATE) & (phase < _DISC_FROM - _END_PLATE)
        view.paint(spongy, hu["marrow"])


@dataclass(frozen=True)
class Sacrum:
    """The wedge below the last lumbar vertebra."""

    hu: Mapping[str, float]

    @property
    def box(self) -> Box:
        return (-54.0, -95.0, 52.0), (54.0, -20.0, SACRUM_TOP)

    def paint(self, view: View) -> None:
        rows = SPINE_CURVE.index(view.z)
        depth = view.y - SPINE_CURVE.take(rows)
        across = np.abs(view.x) / _SACRUM_HALF_WIDTH.take(rows)
        # Concave to the front: the wings lie further back than the middle.
        along = (depth + 6 * across**2) / _SACRUM_HALF_DEPTH.take(rows)
        radius2 = across**2 + along**2
        inside = (radius2 < 1) & (view.z > 52) & (view.z < np.float32(SACRUM_TOP))
        view.paint(inside, self.hu["cortex"] - 250, ORGANS["spine"])
        view.paint(inside & (radius2 < 0.72), self.hu["marrow"] - 20)


@dataclass(frozen=True)
class Ribs:
    """Twelve pairs of arcs within the chest wall, bone first and cartilage towards the front."""

    hu: Mapping[str, float]
    box: Box

    def paint(self, view: View) -> None:
        shell = (view.cavity > 1) & (view.wall < 1)
        if not shell.any():
            return
        x, y, z = view.x[shell], view.y[shell], view.z[shell]
        inner = np.sqrt(view.cavity[shell]) - 1
        outer = 1 - np.sqrt(view.wall[shell])
        across = inner / (inner + outer)
        angle = np.arctan2(np.abs(x), -y) * np.float32(1 / np.pi)
        level = (z + np.float32(_RIB_DROP) * angle - np.float32(RIB_LOWEST)) / np.float32(
            _RIB_SPACING
        )
        number = np.clip(np.rint(level), 0, _RIB_COUNT - 1).astype(np.int32)
        radius2 = ((level - number) * np.float32(_RIB_SPACING / 6.5)) ** 2
        radius2 += ((across - np.float32(0.4)) * np.float32(1 / 0.34)) ** 2
        rib = (radius2 < 1) & (angle > 0.1)
        bone = rib & (angle < _BONE_END[number])
        gristle = rib & ~bone & (angle < _CARTILAGE_END[number])
        values = np.where(radius2 < 0.35, self.hu["marrow"], self.hu["cortex"] - 150)
        values = np.where(gristle, self.hu["cartilage"], values).astype(np.float32)
        _paint_subset(view, shell, bone, values, ORGANS["ribs"])
        _paint_subset(view, shell, gristle, values, None)


def _paint_subset(
    view: View,
    voxels: BoolArray,
    chosen: BoolArray,
    values: FloatArray,
    label: int | None,
) -> None:
    """Paint those ``voxels`` (a mask of the view) that ``chosen`` (one flag each) picks."""
    mask = np.zeros_like(voxels)
    mask[voxels] = chosen
    view.paint(mask, values[chosen], label)


@dataclass(frozen=True)
class IliacWings:
    """The flaring upper halves of both hip bones: parts of a conical shell."""

    hu: Mapping[str, float]

    @property
    def box(self) -> Box:
        return (-132.0, -90.0, 75.0), (132.0, 60.0, 210.0)

    def paint(self, view: View) -> None:
        across = view.x / (62 + np.float32(0.30) * view.z)
        along = view.y / (58 + np.float32(0.12) * view.z)
        offset = np.abs(np.sqrt(across**2 + along**2) - 1) * 95
        crest = 205 - np.float32(0.009) * (view.y + 5) ** 2
        lower_edge = 78 + np.float32(0.025) * (view.y - 5) ** 2
        wing = (
            (offset < 5)
            & (np.abs(view.x) > 42)
            & (view.y < 45)
            & (view.z < crest)
            & (view.z > lower_edge)
        )
        view.paint(wing, self.hu["cortex"] - 250, ORGANS["pelvis"])
        view.paint(wing & (offset < 2), self.hu["marrow"])


def skeleton_parts(hu: Mapping[str, float], thorax: Box) -> list[Part]:
    """All bones, in painting order.

    Args:
        hu: HU of each tissue.
        thorax: box that holds the chest wall, mm of the reference trunk.
    """
    tilt = np.deg2rad(5.5)
    tilted = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    marrow = hu["marrow"]
    sternum = Material(hu["cortex"] - 350, ORGANS["ribs"], marrow - 60, 0.75, within="wall")
    parts: list[Part] = [
        Ribs(hu, thorax),
        Ellipsoid((0.0, 86.0, 492.0), (18.0, 7.0, 80.0), sternum, tilted),
        IliacWings(hu),
        Sacrum(hu),
        Spine(hu),
    ]
    for side in (-1.0, 1.0):
        parts += _hip(hu, side)
    return parts


def _hip(hu: Mapping[str, float], side: float) -> list[Part]:
    """Lower hip bone and upper femur of one side; ``side`` is +1 on the patient's right."""
    marrow = hu["marrow"]
    pelvis = Material(hu["cortex"] - 200, ORGANS["pelvis"], marrow, 0.72, within="wall")
    femur = Material(hu["cortex"], ORGANS["femurs"], marrow + 40, 0.8, within="wall")
    gap = Material(40.0, ORGANS["body"], within="wall")
    return [
        *tube([(88 * side, 8, 82), (58 * side, 48, 72), (7 * side, 62, 48)], [14, 9, 9], pelvis),
        *tube(
            [(84 * side, 0, 60), (72 * side, -25, 30), (62 * side, -26, 6)], [14, 14, 15], pelvis
        ),
        *tube([(62 * side, -20, 6), (30 * side, 30, 20), (10 * side, 58, 36)], [9, 7, 8], pelvis),
        Ellipsoid((88 * side, 8, 72), (32.0, 32.0, 32.0), pelvis),
        Ellipsoid((94 * side, 9, 68), (26.0, 26.0, 26.0), gap),
        *tube([(94 * side, 9, 68), (128 * side, 0, 42)], [15, 15], femur),
        *tube([(128 * side, 0, 48), (131 * side, 2, -60)], [17, 14], femur),
        Ellipsoid((94 * side, 9, 68), (23.5, 23.5, 23.5), femur),
    ]
