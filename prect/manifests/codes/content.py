"""Codes of geometry and voxel values, whatever the format."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

_CONVERT_AGAIN = "Convert the volume again from its DICOM series."
_SHAPE = (
    Code(
        "volume.not_3d",
        Effect.REJECT,
        "The file holds fewer or more than three axes, those of length 1 at the end apart.",
        "Save each time point as a file of its own.",
    ),
    Code(
        "content.color",
        Effect.REJECT,
        "Several numbers a voxel: a colour picture or a vector field.",
    ),
    Code("content.complex", Effect.REJECT, "Voxels are complex numbers."),
)
_GEOMETRY = (
    Code(
        "geometry.invalid",
        Effect.REJECT,
        "The index-to-world matrix is not finite or cannot be inverted.",
        _CONVERT_AGAIN,
    ),
    Code(
        "geometry.no_spacing",
        Effect.REJECT,
        "The header states no spacing; readers would take 1 mm in silence.",
        _CONVERT_AGAIN,
    ),
    Code(
        "geometry.spacing",
        Effect.REJECT,
        "A spacing that no CT has: another unit than millimetres, or a damaged header.",
        _CONVERT_AGAIN,
        ("min_spacing_mm", "max_spacing_mm"),
    ),
    Code(
        "geometry.unit_spacing",
        Effect.WARN,
        "The spacing is exactly 1 x 1 x 1 mm, as in files whose true spacing was overwritten.",
        limits=("unit_spacing",),
    ),
    Code(
        "geometry.unit_spacing_rejected",
        Effect.REJECT,
        "The spacing is exactly 1 x 1 x 1 mm, which the card takes for an overwritten one.",
        _CONVERT_AGAIN,
        ("unit_spacing",),
    ),
    Code(
        "geometry.too_small",
        Effect.REJECT,
        "Too few voxels along an axis.",
        limits=("min_voxels",),
    ),
    Code(
        "geometry.small_extent",
        Effect.REJECT,
        "The field of view is too small along an axis.",
        limits=("min_extent_mm",),
    ),
    Code(
        "geometry.shear",
        Effect.WARN,
        "The index axes are not at right angles; the volume is resampled upright. Angles "
        "below 0.06 degrees are rounding and snap to the nearest rotation.",
    ),
    Code(
        "geometry.shear_too_large",
        Effect.REJECT,
        "The index axes are too far from right angles to be a gantry tilt.",
        limits=("max_tilt_degrees",),
    ),
)
_VALUES = (
    Code(
        "hu.not_finite",
        Effect.WARN,
        "Some voxels are NaN or infinite; they became -1024 HU.",
    ),
    Code(
        "hu.mostly_not_finite",
        Effect.REJECT,
        "Too many voxels are NaN or infinite.",
        _CONVERT_AGAIN,
        ("max_not_finite_share",),
    ),
    Code("content.constant", Effect.REJECT, "All voxels have the same value."),
    Code(
        "content.label_map",
        Effect.REJECT,
        "Few different values, all of them whole numbers from 0 up: a label map or a mask.",
        "Name such files under `labels` in the card, and they are not looked at.",
        ("max_labels",),
    ),
    Code(
        "hu.out_of_range",
        Effect.REJECT,
        "More than 2 % of the voxels above 4095 HU: bytes in the wrong order, unsigned numbers "
        "taken for signed ones, or another scale.",
        _CONVERT_AGAIN,
    ),
    Code(
        "hu.not_rescaled",
        Effect.REJECT,
        "Values that become plausible when 1024 is subtracted: the rescale intercept was never "
        "applied.",
        "When this holds for the whole data set, name the `rescale` in the card.",
        ("min_dark_share", "min_tissue_share", "max_air_offset_hu"),
    ),
    Code(
        "hu.not_calibrated",
        Effect.REJECT,
        "Hardly any voxel below -200 HU: MR, PET, a window of grey values, values from 0 to 1.",
        "When a slope and an intercept lead to HU, name the `rescale` in the card.",
        ("min_dark_share",),
    ),
    Code(
        "hu.rescaled_twice",
        Effect.REJECT,
        "Values that become plausible when 1024 is added: the rescale intercept was applied twice.",
        "When this holds for the whole data set, name the `rescale` in the card.",
        ("min_dark_share", "min_tissue_share", "max_air_offset_hu"),
    ),
    Code(
        "hu.no_soft_tissue",
        Effect.REJECT,
        "Hardly any voxel between -200 and 300 HU: no body, or a wrong rescale.",
        limits=("min_tissue_share",),
    ),
    Code(
        "hu.air_offset",
        Effect.REJECT,
        "Air is not near -1000 HU. What counts is the darkest fifth of all between -1500 and "
        "-500 HU, since lungs may be all the air that a crop holds; padding does not count.",
        "When a slope and an intercept lead to HU, name the `rescale` in the card.",
        ("max_air_offset_hu",),
    ),
)
_BODY = (
    Code(
        "content.no_body",
        Effect.QUARANTINE,
        "No voxel above the threshold of the body crop was found.",
        "Build with a profile that does not crop, when the volume is sound.",
    ),
)
CODES = _SHAPE + _GEOMETRY + _VALUES + _BODY
