"""Value ranges and small types that every station shares."""

from __future__ import annotations

HU_MIN = -1024
"""Lowest HU that is stored; also the value of what lies outside a volume: air."""
HU_MAX = 3071
"""Highest HU that is stored."""

Triple = tuple[int, int, int]
"""Voxels along three axes; the order is said where it is used."""
Vector = tuple[float, float, float]
"""Millimetres along three axes; the order is said where it is used."""
