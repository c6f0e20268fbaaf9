"""Which slices make one volume, and what is no CT volume whatever its geometry."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from pydicom.config import IGNORE
from pydicom.uid import UID

from prect.errors import VolumeError
from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.dicom.headers import CT_IMAGE_STORAGE, ENHANCED_STORAGE, Slice

SECONDARY_CAPTURE_PREFIX = "1.2.840.10008.5.1.4.1.1.7"
_COSINE_TOLERANCE = 0.01
"""Deviation of the orientation from two perpendicular unit vectors that is rounding."""
_REFORMATTED = frozenset({"MPR", "REFORMATTED"})
_PROJECTIONS = frozenset({"MIP", "MINIP", "MAXIP", "MIN_IP", "MAX_IP"})
_MATERIALS = frozenset({"IODINE", "Z_EFF", "ZEFF"})
_HU_TYPES = ("HU", "US", "")
"""Rescale types of HU; US is unspecified, and the HU checks decide there as without a type."""
_OTHER_TYPES = ("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT")
_MODALITIES = ("CR", "DX", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "SC", "SEG", "SR", "US", "XA")
_MODALITY_PREFIXES = ("RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT")


def group_slices(slices: Sequence[Slice]) -> list[tuple[Slice, ...]]:
    """Slices by the volume they belong to, in the order of their first slice.

    One volume has one patient, study, series and frame of reference, and in there one modality,
    SOP class, image type (its first three values), number of rows, columns and samples, and
    one orientation within 1e-3. Where every slice of a series has a patient or study of its
    own, as after an anonymisation file by file, these ids name nobody and do not count.
    """
    groups: dict[tuple[object, ...], list[list[Slice]]] = {}
    volumes: list[list[Slice]] = []
    patients: dict[tuple[object, ...], list[tuple[str, str]]] = {}
    for part in slices:
        patients.setdefault(_without_patient(part), []).append((part.patient_id, part.study_uid))
    scattered = {key for key, ids in patients.items() if len(set(ids)) == len(ids)}
    for part in slices:
        anyone = _without_patient(part)
        nobody = bool(part.series_uid) and anyone in scattered
        stacks = groups.setdefault(anyone if nobody else part.group, [])
        for stack in stacks:
            if part.parallel_to(stack[0]):
                stack.append(part)
                break
        else:
            stacks.append([part])
            volumes.append(stacks[-1])
    return [tuple(volume) for volume in volumes]


def _without_patient(part: Slice) -> tuple[object, ...]:
    return (part.series_uid, part.frame_of_reference), *part.group[1:]


def stack_id(part: Slice) -> str:
    """What tells the volumes of one series apart, 16 hexadecimal digits.

    Made of what all slices of a volume share, their series apart, and of the orientation
    rounded to 1e-3, so that it is the same in every copy of the volume.

    Args:
        part: the first slice along the normal.
    """
    orientation = [round(cosine, 3) + 0.0 for cosine in part.orientation]
    text = repr((part.group[1:], orientation))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def kind_of(part: Slice) -> str:
    """``original``, ``reformat`` or ``derived``, by image type and plane.

    Original images are ORIGINAL\\PRIMARY. A reformat says so, or lies in a plane nearer to
    the coronal or sagittal one and does not claim to be original. All else is derived.
    """
    if _words(part) & _REFORMATTED:
        return "reformat"
    if part.image_type[:2] == ("ORIGINAL", "PRIMARY"):
        return "original"
    cosines = np.array(part.orientation)
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    return "derived" if normal.argmax() == 2 else "reformat"


def _words(part: Slice) -> set[str]:
    """Words of the image type, those joined by an underscore both whole and apart."""
    text = " ".join(part.image_type)
    return {word for pattern in (r"[A-Z0-9]+", r"[A-Z0-9_]+") for word in re.findall(pattern, text)}


def check_images(slices: Sequence[Slice]) -> tuple[Finding, ...]:
    """Whether every slice is a CT image with geometry, and all are of one kind.

    Returns:
        The checks, all passed or warnings.

    Raises:
        VolumeError: the first check that rejects.
    """
    for part in slices:
        _reject_foreign(part)
        _reject_values(part)
        _reject_derived(part)
        _reject_geometry(part)
    _reject_mixed(slices)
    first = slices[0]
    findings = [
        passed("dicom.not_ct", "modality CT", "modality CT and a CT SOP class"),
        passed("dicom.secondary_capture", _sop_class(first)),
        passed("dicom.multi_frame", f"{first.frames} frames a file"),
        passed("dicom.localizer", "no localizer"),
        passed("content.color", "1 number a pixel"),
        passed("dicom.photometric", "MONOCHROME2"),
        passed("dicom.lossy_8bit", f"{first.bits} bits"),
        passed("dicom.projection", "no projection"),
        passed("dicom.not_hu", "rescale type HU or none"),
        passed("dicom.no_geometry", "position, orientation and pixel spacing are there"),
        passed("dicom.mixed_spacing", "one pixel spacing"),
        passed("dicom.mixed_rescale", "all slices have a rescale or none has"),
    ]
    findings += _check_rescale(slices)
    findings.append(_check_padding(slices))
    lossy = sum(part.lossy for part in slices)
    measured = f"{lossy} of {len(slices)} slices"
    if lossy:
        findings.append(failed("dicom.lossy", f"lossy compression in {measured}", measured))
    else:
        findings.append(passed("dicom.lossy", measured))
    return (*findings, *_check_kind(first))


def _check_kind(part: Slice) -> Iterable[Finding]:
    kind = kind_of(part)
    if kind == "reformat":
        reason = "a reformatted image, or a coronal or sagittal one that is not original"
        yield failed("dicom.reformat", reason, kind)
    else:
        yield passed("dicom.reformat", kind)
    if kind == "derived" and part.image_type:
        reason = "the image type is not ORIGINAL PRIMARY: computed from other images"
        yield failed("dicom.derived", reason, kind)
    else:
        yield passed("dicom.derived", kind if part.image_type else "no image type")


def _reject_foreign(part: Slice) -> None:
    """What is no axial CT image at all. Reasons quote known words only, never the header."""
    if part.modality != "CT":
        raise VolumeError("dicom.not_ct", f"modality {_modality(part)}, CT is wanted")
    if part.sop_class.startswith(SECONDARY_CAPTURE_PREFIX):
        frames = f" of {part.frames} frames" if part.frames > 1 else ""
        raise VolumeError("dicom.secondary_capture", f"a secondary capture{frames}, not a CT image")
    enhanced = part.sop_class in ENHANCED_STORAGE
    if not enhanced and part.sop_class not in (CT_IMAGE_STORAGE, ""):
        raise VolumeError(
            "dicom.not_ct", f"the SOP class is {_sop_class(part)}, not CT Image Storage"
        )
    if part.frames > 1 and not enhanced:
        raise VolumeError(
            "dicom.multi_frame", f"{part.frames} frames in an object that is no enhanced CT"
        )
    if "LOCALIZER" in part.image_type or "SCOUT" in part.image_type:
        raise VolumeError("dicom.localizer", "the image type says that it is a localizer")


def _sop_class(part: Slice) -> str:
    name = UID(part.sop_class, IGNORE).name if part.sop_class else "absent"
    return "an unknown one" if name == part.sop_class else name


def _modality(part: Slice) -> str:
    if part.modality in _MODALITIES + _MODALITY_PREFIXES:
        return part.modality
    return "of another kind" if part.modality else "absent"


def _reject_values(part: Slice) -> None:
    if part.samples != 1:
        raise VolumeError("content.color", f"{part.samples} numbers a pixel, CT has one")
    if part.photometric != "MONOCHROME2":
        known = part.photometric == "MONOCHROME1"
        name = part.photometric if known else "absent or of another kind"
        raise VolumeError("dicom.photometric", f"photometric interpretation {name}")
    if part.lossy and part.bits <= 8:
        raise VolumeError("dicom.lossy_8bit", f"{part.bits} bits with lossy compression")


def _reject_derived(part: Slice) -> None:
    """Images computed from CT that hold no HU of a place."""
    words = _words(part)
    if words & _PROJECTIONS:
        raise VolumeError(
            "dicom.projection", "the image type says that it is an intensity projection"
        )
    if words & _MATERIALS:
        raise VolumeError("dicom.not_hu", "the image type says that it is a material map, not HU")
    if part.rescale_type not in _HU_TYPES:
        known = part.rescale_type in _OTHER_TYPES
        name = part.rescale_type if known else "of another kind"
        raise VolumeError("dicom.not_hu", f"rescale type {name}, HU is wanted")


def _reject_geometry(part: Slice) -> None:
    if not (part.position and part.orientation and part.pixel_spacing):
        raise VolumeError(
            "dicom.no_geometry", "position, orientation or pixel spacing is absent or damaged"
        )
    row, column = part.orientation[:3], part.orientation[3:]
    products = (
        math.hypot(*row) - 1,
        math.hypot(*column) - 1,
        sum(a * b for a, b in zip(row, column, strict=True)),
    )
    if max(map(abs, products)) > _COSINE_TOLERANCE or min(part.pixel_spacing) <= 0:
        raise VolumeError(
            "dicom.no_geometry",
            "the orientation is not made of two perpendicular unit vectors, "
            "or the pixel spacing is not positive",
        )


def _reject_mixed(slices: Sequence[Slice]) -> None:
    """What differs between slices and must not."""
    first = slices[0]
    spacings = {part.pixel_spacing for part in slices}
    if any(not np.allclose(s, first.pixel_spacing, rtol=1e-3) for s in spacings):
        raise VolumeError("dicom.mixed_spacing", "slices differ in pixel spacing")
    if len({part.rescale is None for part in slices}) > 1:
        raise VolumeError("dicom.mixed_rescale", "some slices have no rescale slope and intercept")
    frames = Counter(part.path for part in slices if part.frames > 1)
    sizes = {part.path: part.frames for part in slices}
    if any(count != sizes[path] for path, count in frames.items()):
        raise VolumeError(
            "dicom.mixed_frames", "the frames of one file belong to more than one volume"
        )


def _check_rescale(slices: Sequence[Slice]) -> Iterable[Finding]:
    lines = {part.rescale for part in slices if part.rescale is not None}
    if any(not all(map(math.isfinite, line)) or line[0] == 0 for line in lines):
        raise VolumeError("dicom.bad_rescale", "a rescale slope is 0, or not a number")
    yield passed("dicom.bad_rescale", f"{len(lines)} different slopes and intercepts")
    if lines:
        yield passed("dicom.no_rescale", "slope and intercept are there")
    else:
        reason = "no rescale slope and intercept; 1 and 0 are taken, the HU checks decide"
        yield failed("dicom.no_rescale", reason, "absent")


def _check_padding(slices: Sequence[Slice]) -> Finding:
    ignored = sum(not part.padding_is_air for part in slices)
    measured = f"{ignored} of {len(slices)} slices"
    if not ignored:
        return passed("dicom.padding_ignored", measured)
    reason = f"the padding value of {measured} lies above -900 HU; it is not taken for air"
    return failed("dicom.padding_ignored", reason, measured, "-900 HU")


def check_repeats(slices: Sequence[Slice]) -> Finding:
    """Whether instance UIDs repeat, as in a file that lies in the folder twice.

    Nothing is left out for its UID: slices at one position are compared by their pixels when
    they are read.
    """
    instances = [(part.instance_uid, part.frame) for part in slices if part.instance_uid]
    repeats = len(instances) - len(set(instances))
    measured = f"{repeats} of {len(slices)} slices"
    if not repeats:
        return passed("dicom.repeated_file", measured)
    reason = f"{measured} repeat the instance UID of another; their pixels decide"
    return failed("dicom.repeated_file", reason, measured)
