"""What organs are called and how dense they look in each contrast phase."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from prect.phantom.patient import Phase

ORGANS: Mapping[str, int] = MappingProxyType(
    {
        "background": 0,
        "body": 1,
        "lung_right": 2,
        "lung_left": 3,
        "heart": 4,
        "aorta": 5,
        "liver": 6,
        "spleen": 7,
        "kidney_right": 8,
        "kidney_left": 9,
        "stomach": 10,
        "bladder": 11,
        "spine": 12,
        "ribs": 13,
        "pelvis": 14,
        "femurs": 15,
        "trachea": 16,
    }
)
"""Value of each organ in the label volume. ``body`` is all tissue that has no name of its own;
``background`` is air and the table."""

# Typical HU by phase: native, arterial, venous (portal venous).
_BY_PHASE: Mapping[str, tuple[float, float, float]] = {
    "blood": (42, 290, 160),
    "venous_blood": (42, 100, 155),
    "myocardium": (45, 100, 110),
    "liver": (58, 72, 110),
    "spleen": (50, 115, 125),
    "renal_cortex": (34, 165, 180),
    "renal_medulla": (30, 70, 165),
    "muscle": (50, 54, 60),
    "gut_wall": (40, 70, 85),
    "gut_content": (22, 22, 22),
    "urine": (5, 5, 8),
    "fat": (-100, -100, -98),
    "soft": (38, 45, 55),
    "disc": (85, 85, 88),
    "cord": (32, 34, 36),
    "marrow": (230, 235, 240),
    "cortex": (900, 900, 900),
    "cartilage": (110, 110, 112),
    "lung": (-855, -850, -848),
    "lung_vessel": (35, 130, 90),
}

# How far single patients are from the typical value, HU (half range).
_SPREAD: Mapping[str, float] = {
    "blood": 25,
    "cortex": 120,
    "marrow": 30,
    "lung": 15,
    "gut_content": 15,
    "fat": 6,
}
_DEFAULT_SPREAD = 4.0


def tissue_hu(phase: Phase, rng: np.random.Generator) -> dict[str, float]:
    """HU of each tissue of one patient in one phase."""
    column = ("native", "arterial", "venous").index(phase)
    values = {}
    for name, typical in _BY_PHASE.items():
        spread = _SPREAD.get(name, _DEFAULT_SPREAD)
        if name == "blood" and phase == "native":
            spread = _DEFAULT_SPREAD
        values[name] = typical[column] + spread * float(rng.uniform(-1.0, 1.0))
    return values
