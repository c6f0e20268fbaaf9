"""Headers of DICOM files without their pixels: one `Slice` an image, or a frame of one.

Only the tags of an allow-list are taken from a file, as raw bytes, and converted here:
that costs a third of what pydicom's own conversion does, and nothing else gets any further.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from prect.errors import VolumeError
from prect.ingest.readers.dicom.enhanced import (
    FUNCTIONAL_GROUPS,
    frames_of,
    thickness_of,
    whole_of,
)

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_ENHANCED_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2.2"
ENHANCED_STORAGE = (ENHANCED_CT_STORAGE, LEGACY_ENHANCED_CT_STORAGE)
DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"
LOSSY_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.53",
        "1.2.840.10008.1.2.4.55",
        "1.2.840.10008.1.2.4.81",
    }
)

_HEADER_BYTES = 1 << 15
"""Most headers end before; the rest of the file is read only where one does not."""
_AFTER_IMAGE_MODULES = 0x00290000
"""All that a single-frame image says of itself lies in groups up to 0028."""
_PIXEL_DATA = 0x7FE00000
_AIR_HU = -900
"""Padding above is no air, so that its value may be that of tissue as well."""
_PREAMBLE = 128
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
"""How a file without preamble begins: group 0002 or 0008, the latter in either byte order."""

TAGS = {
    "image_type": 0x00080008,
    "sop_class": 0x00080016,
    "instance_uid": 0x00080018,
    "modality": 0x00080060,
    "patient_id": 0x00100020,
    "thickness": 0x00180050,
    "study_uid": 0x0020000D,
    "series_uid": 0x0020000E,
    "acquisition": 0x00200012,
    "instance_number": 0x00200013,
    "position": 0x00200032,
    "orientation": 0x00200037,
    "frame_of_reference": 0x00200052,
    "temporal_position": 0x00200100,
    "samples": 0x00280002,
    "photometric": 0x00280004,
    "frames": 0x00280008,
    "rows": 0x00280010,
    "columns": 0x00280011,
    "pixel_spacing": 0x00280030,
    "bits": 0x00280100,
    "padding": 0x00280120,
    "padding_limit": 0x00280121,
    "intercept": 0x00281052,
    "slope": 0x00281053,
    "rescale_type": 0x00281054,
    "lossy": 0x00282110,
}
"""All that is read of a header; an allow-list, so that no name or date gets any further."""
_HINTS = frozenset(
    {
        "thickness",
        "acquisition",
        "instance_number",
        "frame_of_reference",
        "temporal_position",
        "padding",
        "padding_limit",
        "rescale_type",
        "lossy",
    }
)
"""A volume is made without these as well, so that damaged ones count as absent."""
_INTEGER_BYTES = (1, 2, 4)
_TAG_LIST: list[BaseTag | int] = [BaseTag(tag) for tag in TAGS.values()]
_NAMES = {tag: name for name, tag in TAGS.items()}


@dataclass(frozen=True, slots=True)
class Slice:
    """What judging a series needs of one image: of a file, or of a frame of a file."""

    path: Path
    bytes: int
    """Size of the file."""
    instance_uid: str
    series_uid: str
    study_uid: str
    patient_id: str
    frame_of_reference: str
    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    """ImageType; of a frame its FrameType. Upper case."""
    rows: int
    columns: int
    frames: int
    """Number of frames in the file."""
    frame: int
    """Index of this frame in the file."""
    samples: int
    photometric: str
    bits: int
    """BitsAllocated."""
    lossy: bool
    position: tuple[float, ...]
    """ImagePositionPatient, LPS millimetres; empty when absent or not three numbers."""
    orientation: tuple[float, ...]
    """ImageOrientationPatient, six cosines; empty when absent or not six numbers."""
    pixel_spacing: tuple[float, ...]
    """Millimetres between rows (j), then between columns (i)."""
    thickness: float
    """Millimetres; 0 when absent or no positive number."""
    acquisition: int | None
    """AcquisitionNumber; like the two below a hint, ``None`` when absent or no number."""
    temporal_position: int | None
    instance_number: int | None
    rescale: tuple[float, float] | None
    """Slope and intercept; ``None`` when either is absent."""
    rescale_type: str
    """Upper case; empty when absent."""
    padding: tuple[int, ...]
    """Stored value of padding modulo 2^16, or both ends of a range of them; empty without."""

    @property
    def group(self) -> tuple[object, ...]:
        """What all slices of one volume share, their orientation apart; first of all ids."""
        return (
            (self.patient_id, self.study_uid, self.series_uid, self.frame_of_reference),
            self.modality,
            self.sop_class,
            self.image_type[:3],
            self.rows,
            self.columns,
            self.samples,
        )

    @property
    def padding_is_air(self) -> bool:
        """Whether all that the padding value or range covers is darker than -900 HU.

        As 16-bit signed numbers: scanners write 63536 for -2000.
        """
        slope, intercept = self.rescale or (1.0, 0.0)
        stored = ((value ^ 0x8000) - 0x8000 for value in self.padding)
        return all(slope * value + intercept <= _AIR_HU for value in stored)

    def parallel_to(self, other: Slice) -> bool:
        """Whether two slices have the same orientation, up to rounding in the files."""
        mine, theirs = self.orientation, other.orientation
        return len(mine) == len(theirs) and all(
            abs(a - b) <= 1e-3 for a, b in zip(mine, theirs, strict=True)
        )


def read_slices(path: Path) -> tuple[Slice, ...]:
    """Read the header of one file, without its pixels.

    Returns:
        One slice, or one for each frame of an enhanced multi-frame CT; none when the file
        is not DICOM or describes no object of a series (a DICOMDIR).

    Raises:
        VolumeError: ``dicom.damaged_header``, it is DICOM and its header cannot be read.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
        part10 = start[_PREAMBLE : _PREAMBLE + 4] == b"DICM"
        if not part10 and start[:2] not in _FIRST_GROUPS:
            return ()
        try:
            with warnings.catch_warnings():
                # pydicom warns of every oddity of every file; what matters is judged later.
                warnings.simplefilter("ignore")
                return _slices(path, file, start, part10)
        except VolumeError:
            raise
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(error) from error
        except Exception as error:  # a flipped byte surfaces as whatever the parser trips over
            if not part10:
                return ()
            raise _damaged(error) from error


def _damaged(error: Exception) -> VolumeError:
    # The parser's message may quote the header, names included, so only its kind is told.
    return VolumeError("dicom.damaged_header", f"reading the header fails ({type(error).__name__})")


def _slices(path: Path, file: BinaryIO, start: bytes, part10: bool) -> tuple[Slice, ...]:
    size = os.fstat(file.fileno()).st_size
    data = _parse(file, start, size, part10)
    values = {_NAMES[tag]: e for e in data.elements() if (tag := int(e.tag)) in _NAMES}
    if not {"sop_class", "modality", "rows"} & values.keys():
        if part10 and not _is_directory(data):
            raise VolumeError("dicom.damaged_header", "the header ends before the image")
        return ()
    part = _slice(path, size, values, data.file_meta)
    if part.sop_class == CT_IMAGE_STORAGE and "rows" not in values:
        raise VolumeError("dicom.damaged_header", "the header ends before the image")
    if part.sop_class not in ENHANCED_STORAGE:
        return (part,)
    file.seek(0)
    groups = read_partial(
        file,
        lambda tag, vr, length: int(tag) >= _PIXEL_DATA,  # noqa: ARG005
        force=not part10,
        specific_tags=[BaseTag(tag) for tag in FUNCTIONAL_GROUPS],
    )
    return tuple(
        replace(
            part,
            frame=number,
            instance_number=number + 1,
            image_type=frame.image_type or part.image_type,
            position=frame.position,
            orientation=frame.orientation,
            pixel_spacing=frame.pixel_spacing,
            thickness=frame.thickness,
            acquisition=part.acquisition if frame.acquisition is None else frame.acquisition,
            temporal_position=(
                part.temporal_position
                if frame.temporal_position is None
                else frame.temporal_position
            ),
            rescale=frame.rescale,
            rescale_type=frame.rescale_type or part.rescale_type,
        )
        for number, frame in enumerate(frames_of(groups, part.frames))
    )


def _parse(file: BinaryIO, start: bytes, size: int, part10: bool) -> pydicom.FileDataset:
    """The tags of the allow-list, from the start of the file where that holds the header."""
    reached = False

    def after_image_modules(tag: BaseTag, vr: str | None, length: int) -> bool:  # noqa: ARG001
        nonlocal reached
        reached = int(tag) >= _AFTER_IMAGE_MODULES
        return reached

    if size > len(start):
        try:
            data = read_partial(
                io.BytesIO(start),
                after_image_modules,
                force=not part10,
                specific_tags=_TAG_LIST,
            )
        except Exception:  # cut off within an element; the whole file decides
            reached = False
        if reached:
            return data
    file.seek(0)
    return read_partial(file, after_image_modules, force=not part10, specific_tags=_TAG_LIST)


def _is_directory(data: pydicom.FileDataset) -> bool:
    return str(getattr(data.file_meta, "MediaStorageSOPClassUID", "")) == DIRECTORY_STORAGE


def _slice(path: Path, size: int, values: Mapping[str, Any], file_meta: Any) -> Slice:
    raw = {name: _bytes(name, element.value) for name, element in values.items()}

    def get(name: str) -> bytes:
        return raw.get(name, b"")

    def number(name: str, default: int = 0) -> int:
        return _unsigned(raw[name], values[name].is_little_endian) if get(name) else default

    sop_class = _text(get("sop_class")) or str(getattr(file_meta, "MediaStorageSOPClassUID", ""))
    modality = _text(get("modality"))
    if not modality and sop_class in (CT_IMAGE_STORAGE, *ENHANCED_STORAGE):
        modality = "CT"
    syntax = str(getattr(file_meta, "TransferSyntaxUID", ""))
    return Slice(
        path=path,
        bytes=size,
        instance_uid=_decode(get("instance_uid")),
        series_uid=_text(get("series_uid")),
        study_uid=_text(get("study_uid")),
        patient_id=_text(get("patient_id")),
        frame_of_reference=_text(get("frame_of_reference")),
        sop_class=sop_class,
        modality=modality,
        image_type=_texts(get("image_type")),
        rows=number("rows"),
        columns=number("columns"),
        frames=int(_text(get("frames")) or 1),
        frame=0,
        samples=number("samples", 1),
        photometric=_text(get("photometric")),
        bits=number("bits"),
        lossy=_text(get("lossy")) == "01" or syntax in LOSSY_SYNTAXES,
        position=_numbers(get("position"), 3),
        orientation=_numbers(get("orientation"), 6),
        pixel_spacing=_numbers(get("pixel_spacing"), 2),
        thickness=thickness_of(_text(get("thickness"))),
        acquisition=whole_of(_text(get("acquisition"))),
        temporal_position=whole_of(_text(get("temporal_position"))),
        instance_number=whole_of(_decode(get("instance_number"))),
        rescale=_rescale(_text(get("slope")), _text(get("intercept"))),
        rescale_type=_text(get("rescale_type")).upper(),
        padding=tuple(
            number(name) & 0xFFFF
            for name in ("padding", "padding_limit")
            if len(get(name)) in _INTEGER_BYTES
        ),
    )


def _bytes(name: str, value: Any) -> bytes:
    if not value:  # pydicom has empty values of several types
        return b""
    if not isinstance(value, bytes):
        if name in _HINTS:
            return b""
        raise ValueError("a sequence where a value is expected")
    return value


def _decode(value: bytes) -> str:
    try:
        return value.decode().strip(" \0")
    except UnicodeDecodeError:
        return value.decode("latin-1").strip(" \0")


@lru_cache(maxsize=1024)
def _text(value: bytes) -> str:
    """The value as text; slices of a series share one object, which keeps pickles small."""
    return _decode(value)


@lru_cache(maxsize=1024)
def _texts(value: bytes) -> tuple[str, ...]:
    text = _decode(value)
    return tuple(part.strip().upper() for part in text.split("\\")) if text else ()


@lru_cache(maxsize=1024)
def _numbers(value: bytes, count: int) -> tuple[float, ...]:
    parts = [part for part in _decode(value).split("\\") if part.strip()]
    if len(parts) != count:
        return ()
    numbers = tuple(map(float, parts))
    return numbers if all(map(math.isfinite, numbers)) else ()


def _unsigned(value: bytes, little_endian: bool) -> int:
    """A binary integer of any sign as it lies in the file."""
    if len(value) not in _INTEGER_BYTES:
        raise ValueError(f"{len(value)} bytes where an integer is expected")
    return int.from_bytes(value, "little" if little_endian else "big")


def _rescale(slope: str, intercept: str) -> tuple[float, float] | None:
    return (float(slope), float(intercept)) if slope and intercept else None
