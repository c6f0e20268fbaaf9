"""The limits of every check, in one place; a card may set any of them for its data set."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


class Limits(BaseModel):
    """What a volume must satisfy to be accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_voxels: int = Field(default=16, ge=1)
    """Voxels along each axis, at least; for a DICOM series also the number of slices."""
    min_extent_mm: float = Field(default=30.0, gt=0)
    """Field of view along each axis, at least, in millimetres."""
    min_spacing_mm: float = Field(default=0.1, gt=0)
    """Spacing along each axis, at least, in millimetres."""
    max_spacing_mm: float = Field(default=20.0, gt=0)
    """Spacing along each axis, at most, in millimetres."""
    unit_spacing: Literal["warn", "reject"] = "warn"
    """What becomes of a volume whose spacing is exactly 1 x 1 x 1 mm, as an overwritten one is."""
    max_tilt_degrees: float = Field(default=30.0, ge=0, lt=90)
    """Angle of a shear (a gantry tilt) up to which a volume is resampled upright."""
    gap_tolerance: float = Field(default=0.01, ge=0)
    """Deviation of a slice gap from the median gap, as a share of it, that is rounding."""
    gap_tolerance_mm: float = Field(default=0.05, ge=0)
    """Deviation of a slice gap in millimetres that is rounding in any case."""
    max_gap_mm: float = Field(default=8.0, gt=0)
    """Gap between two slices up to which a series of uneven gaps is interpolated."""
    unknown_orientation: Literal["reject", "RAS", "LPS", "LAS", "RPS"] = "reject"
    """Directions of (i, j, k) to take when a file states none; only a card may know them."""
    max_not_finite_share: Share = 0.05
    """Share of NaN and infinite voxels, at most."""
    min_dark_share: Share = 0.005
    """Share of voxels below -200 HU (air, lung); calibrated CT has some, other images have none."""
    min_tissue_share: Share = 0.02
    """Share of voxels between -200 and 300 HU (fat, soft tissue)."""
    max_air_offset_hu: float = Field(default=200.0, gt=0)
    """Distance of the volume's air from -1000 HU; its air is the darkest fifth of what lies
    between -1500 and -500 HU."""
    max_labels: int = Field(default=128, ge=1)
    """A non-negative volume of whole numbers with at most so many values is a label map."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_spacing_mm >= self.max_spacing_mm:
            raise ValueError("min_spacing_mm must lie below max_spacing_mm")
        return self
