"""Codes of DICOM series."""

from __future__ import annotations

from prect.manifests.codes.model import Code, Effect

_COPY_AGAIN = "Copy or download the series again."
_READING = (
    Code(
        "dicom.damaged_header",
        Effect.REJECT,
        "A DICOM file whose header is damaged or ends before the image.",
        _COPY_AGAIN,
    ),
    Code(
        "dicom.unreadable",
        Effect.REJECT,
        "A file of a series that was DICOM when ingest saw it no longer is.",
        "Restore it and ingest again.",
    ),
    Code(
        "dicom.mixed_series",
        Effect.REJECT,
        "Files that were one volume when ingest saw them now belong to several.",
        "Ingest again.",
    ),
    Code(
        "dicom.incomplete_folder",
        Effect.WARN,
        "Another DICOM file of the folder cannot be read; slices at the ends may be missing.",
        _COPY_AGAIN,
    ),
)
_IMAGES = (
    Code("dicom.not_ct", Effect.REJECT, "Modality or SOP class are not those of a CT image."),
    Code(
        "dicom.secondary_capture",
        Effect.REJECT,
        "A secondary capture: a picture of an image, without its Hounsfield units.",
    ),
    Code(
        "dicom.multi_frame",
        Effect.REJECT,
        "A multi-frame object that is no enhanced CT; nothing says where its frames lie.",
        "Export the series as enhanced CT or as single images.",
    ),
    Code("dicom.localizer", Effect.REJECT, "A localizer (scout, topogram): a projection."),
    Code(
        "dicom.photometric",
        Effect.REJECT,
        "The photometric interpretation is not MONOCHROME2; CT images have no other.",
    ),
    Code(
        "dicom.lossy_8bit",
        Effect.REJECT,
        "8 bits with lossy compression: a windowed picture, not Hounsfield units.",
        "Export the series without lossy compression.",
    ),
    Code(
        "dicom.no_geometry",
        Effect.REJECT,
        "Position, orientation or pixel spacing are absent or not possible.",
        "Export the series again, with its geometry.",
    ),
    Code("dicom.mixed_spacing", Effect.REJECT, "The slices differ in pixel spacing."),
    Code(
        "dicom.mixed_rescale",
        Effect.REJECT,
        "Some slices have a rescale slope and intercept and others have none.",
    ),
    Code(
        "dicom.mixed_frames",
        Effect.REJECT,
        "One multi-frame file holds the frames of several volumes.",
        "Export each volume as a file of its own, or as single images.",
    ),
    Code("dicom.bad_rescale", Effect.REJECT, "A rescale slope is 0, or is not a number."),
    Code(
        "dicom.no_rescale",
        Effect.WARN,
        "No rescale slope and intercept; stored values are taken for Hounsfield units.",
    ),
    Code(
        "dicom.projection",
        Effect.REJECT,
        "An intensity projection (MIP, MinIP): a slice shows many at once.",
    ),
    Code(
        "dicom.not_hu",
        Effect.REJECT,
        "A material map or a rescale type other than HU: iodine, effective atomic number.",
    ),
    Code(
        "dicom.padding_ignored",
        Effect.WARN,
        "The padding value lies above -900 HU and may be that of tissue; it is not made air.",
    ),
    Code("dicom.lossy", Effect.WARN, "Slices were compressed with loss."),
    Code(
        "dicom.reformat",
        Effect.WARN,
        "A reformatted image: the original axial one of the same study is better.",
    ),
    Code(
        "dicom.derived",
        Effect.WARN,
        "The image type says that the images were computed from others.",
    ),
)
_GEOMETRY = (
    Code(
        "dicom.repeated_file",
        Effect.WARN,
        "An instance UID repeats; where position and pixels do too, one copy is used.",
    ),
    Code(
        "dicom.bolus_tracking",
        Effect.REJECT,
        "All slices lie at one position: a series over time (bolus tracking), no volume.",
    ),
    Code(
        "dicom.crooked",
        Effect.REJECT,
        "The slices do not lie on a straight line, as with a tilt that changes on the way.",
        limits=("gap_tolerance_mm",),
    ),
    Code(
        "dicom.tilt_too_large",
        Effect.REJECT,
        "The gantry is tilted by more than what is resampled upright.",
        "Raise max_tilt_degrees in the card.",
        limits=("max_tilt_degrees",),
    ),
    Code(
        "dicom.gantry_tilt",
        Effect.WARN,
        "The gantry is tilted; the volume is resampled upright from the slices' positions.",
        limits=("max_tilt_degrees",),
    ),
    Code(
        "dicom.missing_slices",
        Effect.REJECT,
        "Gaps of a whole multiple of the usual one that no slice thickness accounts for.",
        "Download the series again.",
        limits=("gap_tolerance", "gap_tolerance_mm"),
    ),
    Code(
        "dicom.interleaved_stacks",
        Effect.REJECT,
        "Small and large gaps alternate: the slices of two stacks lie between each other.",
        "Separate the stacks into series of their own.",
    ),
    Code(
        "dicom.gap_too_large",
        Effect.REJECT,
        "Uneven gaps between slices, one of them too large to interpolate across.",
        "Raise max_gap_mm in the card.",
        limits=("max_gap_mm",),
    ),
    Code(
        "dicom.nonuniform_spacing",
        Effect.WARN,
        "Uneven gaps between slices; the volume is interpolated from their true positions.",
        limits=("gap_tolerance", "gap_tolerance_mm", "max_gap_mm"),
    ),
    Code(
        "dicom.instance_stride",
        Effect.WARN,
        "Instance numbers leave some out throughout: slices may be missing.",
    ),
    Code(
        "dicom.gap_above_thickness",
        Effect.WARN,
        "Slices lie further apart than they are thick: every second one may be missing.",
    ),
    Code(
        "dicom.z_direction",
        Effect.REJECT,
        "The volume's affine does not lead to the positions of the first and last slice.",
        "Report it, with the sentence of the row.",
    ),
)
_PIXELS = (
    Code(
        "dicom.undecodable",
        Effect.REJECT,
        "The pixels of a slice are damaged, cut off, or compressed in a way nothing here reads.",
        _COPY_AGAIN,
    ),
    Code(
        "dicom.several_phases",
        Effect.REJECT,
        "Different images of one place: several phases, acquisitions, or bolus tracking.",
        "Separate the phases into series of their own.",
    ),
    Code(
        "dicom.duplicate_positions",
        Effect.WARN,
        "Slices repeat the position and the pixels of others; one of each is used.",
    ),
)

CODES = (*_READING, *_IMAGES, *_GEOMETRY, *_PIXELS)
