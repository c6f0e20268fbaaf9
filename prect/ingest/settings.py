"""Settings of this station: the grid that volumes are brought onto."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class Harmonisation(BaseModel):
    """The grid of the harmonised volume, and what is kept of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Spacing, (x, y, z)."""
    low_pass: bool = False
    """Smooth along each axis on which the grid is coarser than the file, before what is too fine
    for the grid is folded into it. Less noise, and less sharp."""
    body_crop: bool = True
    """Keep the box of the body only."""
    body_threshold_hu: int = -500
    """Voxels above belong to the body or to what touches it."""
    body_margin_mm: float = Field(default=10.0, ge=0)
