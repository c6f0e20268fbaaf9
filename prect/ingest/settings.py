"""Settings of this station: limits of the checks, and the grid that volumes are brought onto."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class Limits(BaseModel):
    """What a volume must satisfy to be accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_voxels: int = Field(default=16, ge=1)
    """Voxels along each axis, at least."""
    min_extent_mm: float = Field(default=30.0, gt=0)
    """Field of view along each axis, at least."""
    min_spacing_mm: float = Field(default=0.1, gt=0)
    max_spacing_mm: float = Field(default=20.0, gt=0)
    gap_tolerance: float = Field(default=0.01, ge=0)
    """DICOM: allowed deviation of a slice gap from the median gap, as a share of it."""
    gap_tolerance_mm: float = Field(default=0.05, ge=0)
    """DICOM: allowed deviation of a slice gap in any case (positions are rounded in files)."""
    max_tilt_degrees: float = Field(default=30.0, ge=0)
    """DICOM: gantry tilt up to which the slices are resampled from their true positions."""
    min_dark_share: float = Field(default=0.005, ge=0, le=1)
    """Share of voxels below -200 HU (air, lung); calibrated CT has some, other images have none."""
    min_tissue_share: float = Field(default=0.02, ge=0, le=1)
    """Share of voxels between -200 and 300 HU (fat, soft tissue)."""
    max_labels: int = Field(default=128, ge=1)
    """A non-negative volume of whole numbers with at most so many values is a label map."""


class Harmonisation(BaseModel):
    """The grid of the harmonised volume, and what is kept of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Spacing, (x, y, z)."""
    body_crop: bool = True
    """Keep the box of the body only."""
    body_threshold_hu: int = -500
    """Voxels above belong to the body or to what touches it."""
    body_margin_mm: float = Field(default=10.0, ge=0)
