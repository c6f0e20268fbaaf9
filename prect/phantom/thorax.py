"""Lungs, the diaphragm below them, and the tubes inside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prect.phantom.shapes import (
    Box,
    Capsule,
    FloatArray,
    Material,
    Part,
    View,
    as_point,
    tube,
)
from prect.phantom.tissue import ORGANS

_LUNG_LABELS = (ORGANS["lung_right"], ORGANS["lung_left"])
_TEXTURE_STEP = 1 / 2.4
_THORAX: Box = ((-142.0, -102.0, 258.0), (142.0, 102.0, 612.0))


@dataclass(frozen=True)
class Lungs:
    """Both lungs: the chest cavity above the diaphragm, beside the mediastinum."""

    hu: Mapping[str, float]
    noise: FloatArray
    """(64, 64, 64) normal numbers, the grain of the tissue; repeats every 154 mm."""

    @property
    def box(self) -> Box:
        return _THORAX

    def paint(self, view: View) -> None:
        side = np.abs(view.x)
        apex = 600 - np.float32(0.012) * ((side - 50) ** 2 + (view.y + 15) ** 2)
        medial = np.clip(24 - np.float32(0.16) * view.y, 7, 24)
        tissue = (
            (view.cavity < np.float32(0.98))
            & (side > medial)
            & (view.z > Diaphragm.height(view))
            & (view.z < apex)
        )
        for label, chosen in zip(_LUNG_LABELS, (view.x > 0, view.x < 0), strict=True):
            np.copyto(view.labels, np.uint8(label), where=tissue & chosen)
        x, y, z = view.x[tissue], view.y[tissue], view.z[tissue]
        cell = [(axis * np.float32(_TEXTURE_STEP)).astype(np.int32) & 63 for axis in (x, y, z)]
        grain = self.noise[cell[0], cell[1], cell[2]]
        # Blood sinks: the parts next to the table are denser.
        view.hu[tissue] = np.float32(self.hu["lung"]) - np.float32(0.22) * y + 28 * grain


@dataclass(frozen=True)
class Diaphragm:
    """A thin muscle with a higher right and a lower left dome."""

    hu: Mapping[str, float]

    @property
    def box(self) -> Box:
        return _THORAX

    @staticmethod
    def height(view: View) -> FloatArray:
        """Height of the lung's base, mm: highest over the domes, lowest along the chest wall."""
        right = 418 - np.float32(0.006) * (view.x - 66) ** 2
        left = 404 - np.float32(0.006) * (view.x + 70) ** 2
        recess = np.minimum(view.cavity, np.float32(1.1)) ** 2
        height: FloatArray = np.maximum(right, left) - 84 * recess
        return height

    def paint(self, view: View) -> None:
        depth = Diaphragm.height(view) - view.z
        sheet = (depth > 0) & (depth < 3) & (view.cavity < 1)
        view.paint(sheet, self.hu["muscle"], ORGANS["body"])


def airway_parts(hu: Mapping[str, float]) -> list[Part]:
    """Trachea and main bronchi: a wall and air inside."""
    air = Material(hu["muscle"], ORGANS["trachea"], -995.0, 0.84)
    fork = (3.0, -20.0, 512.0)
    return [
        *tube([(0.0, -6.0, 660.0), (0.0, -8.0, 610.0), fork], [9.5, 9.5, 9.5], air),
        *tube([fork, (20.0, -22.0, 492.0), (38.0, -22.0, 478.0)], [8.5, 7.5, 6.5], air),
        *tube([fork, (-20.0, -22.0, 492.0), (-42.0, -24.0, 476.0)], [8, 7, 6], air),
    ]


def lung_vessel_parts(hu: Mapping[str, float], rng: np.random.Generator) -> list[Part]:
    """Vessels that branch from each hilum and get thinner towards the chest wall."""
    vessel = Material(hu["lung_vessel"], within="lung", lung_labels=_LUNG_LABELS)
    parts: list[Part] = []
    for side in (1.0, -1.0):
        hilum = np.array([side * 32.0, -8.0, 480.0])
        for _ in range(9):
            towards = np.array(
                [side * rng.uniform(50, 115), rng.uniform(-75, 60), rng.uniform(350, 575)]
            )
            middle = hilum + (towards - hilum) * 0.5 + rng.uniform(-9, 9, 3)
            parts.append(Capsule(as_point(hilum), as_point(middle), 5.5, 3.2, vessel))
            parts.append(Capsule(as_point(middle), as_point(towards), 3.2, 1.8, vessel))
            for _ in range(3):
                tip = towards + rng.uniform(-34, 34, 3)
                root = middle + (towards - middle) * rng.uniform(0.2, 1.0)
                parts.append(Capsule(as_point(root), as_point(tip), 2.0, 1.1, vessel))
    return parts
