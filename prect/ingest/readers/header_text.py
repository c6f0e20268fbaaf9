"""What the headers of MetaImage and NRRD say in words, before any library interprets them.

Field names are those of the MetaIO documentation and of the NRRD format specification. They
are matched exactly, as the libraries match them: a field that they overlook is absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANATOMICAL = {
    "right-anterior-superior",
    "left-anterior-superior",
    "left-posterior-superior",
    "RAS",
    "LAS",
    "LPS",
}
_COMPRESSED_NRRD = ("gzip", "gz")
_SPACING_FIELDS = ("ElementSpacing", "ElementSize")
_ORIGIN_FIELDS = ("Offset", "Position", "Origin")
_MATRIX_FIELDS = ("TransformMatrix", "Rotation", "Orientation")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_UNITS = ("m", "cm", "mm", "um")
_SKIPPED = ("line", "byte")


@dataclass(frozen=True)
class HeaderText:
    """The same for both formats."""

    malformed: str
    """The field that is absent or no list of numbers; empty when all is well."""
    data_file: str
    """As written; empty when the voxels follow the header."""
    end: int
    """Length of the header in bytes."""
    compressed: bool
    big_endian: bool
    unsupported: str
    """Why prect does not decode the voxels; empty when it does."""
    has_spacing: bool
    orientation: str
    """As written; empty when the header states none that is anatomical."""
    unit: str
    """Of all axes; ``unknown`` when it is none of length, empty when not stated."""


def metaimage_text(head: bytes) -> HeaderText | None:
    """The header of a MetaImage, which ends with ``ElementDataFile``; ``None`` without that."""
    found = re.search(rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*([^\n]*)(?:\n|\Z)", head, re.M)
    if found is None:
        return None
    fields = _fields(head[: found.start()], "=")
    name = found[1].decode("utf-8", "surrogateescape").strip()
    order = fields.get("ElementByteOrderMSB") or fields.get("BinaryDataByteOrderMSB", "")
    unsupported = ""
    if not _true(fields.get("BinaryData", "True")):
        unsupported = "voxels are written as text"
    elif fields.get("HeaderSize", "0") != "0":
        unsupported = "the data file has a header of its own"
    return HeaderText(
        malformed=_malformed_field(fields),
        data_file="" if name.upper() == "LOCAL" else name,
        end=found.end(),
        compressed=_true(fields.get("CompressedData", "")),
        big_endian=_true(order),
        unsupported=unsupported,
        has_spacing=any(name in fields for name in _SPACING_FIELDS),
        orientation=_first(fields, *_MATRIX_FIELDS),
        unit=_unit({fields.get("DistanceUnits", "")}),
    )


def nrrd_text(head: bytes) -> HeaderText | None:
    """The header of an NRRD, which ends with an empty line; ``None`` without its first line."""
    if not head.startswith(b"NRRD000"):
        return None
    found = re.search(rb"\r?\n\r?\n", head)
    end = len(head) if found is None else found.end()
    fields = _fields(head[:end], ":")
    encoding = fields.get("encoding", "raw").lower()
    unsupported = ""
    if encoding not in ("raw", *_COMPRESSED_NRRD):
        unsupported = "voxels are encoded neither raw nor by gzip"
    elif any(_first(fields, f"{unit} skip", f"{unit}skip") not in ("", "0") for unit in _SKIPPED):
        unsupported = "the data file has a header of its own"
    space = fields.get("space", "")
    directions = fields.get("space directions", "")
    units = re.findall(r'"([^"]*)"', _first(fields, "space units", "units"))
    return HeaderText(
        malformed="",  # teem refuses what it cannot read
        data_file=_first(fields, "data file", "datafile"),
        end=end,
        compressed=encoding in _COMPRESSED_NRRD,
        big_endian=fields.get("endian", "little").lower() == "big",
        unsupported=unsupported,
        has_spacing="spacings" in fields or bool(directions),
        orientation=space if directions and space in _ANATOMICAL else "",
        unit=_unit(set(units)),
    )


def _malformed_field(fields: dict[str, str]) -> str:
    """The first field of a MetaImage that MetaIO would misread.

    It takes missing numbers from the lines that follow, or leaves 1 mm for a spacing.
    """
    dimensions = fields.get("NDims", "")
    if re.fullmatch(r"[1-9]", dimensions) is None:
        return "NDims"
    n = int(dimensions)
    counts = {name: n for name in ("DimSize", *_SPACING_FIELDS, *_ORIGIN_FIELDS)}
    counts |= dict.fromkeys(_MATRIX_FIELDS, n * n)
    for name, count in counts.items():
        values = fields.get(name, "").split()
        number = r"[1-9]\d*" if name == "DimSize" else _NUMBER
        needed = name in fields or name == "DimSize"
        if needed and (len(values) != count or not all(re.fullmatch(number, v) for v in values)):
            return name
    return "" if fields.get("ElementType", "").startswith("MET_") else "ElementType"


def _unit(written: set[str]) -> str:
    """The unit in a word of ours: free text of a header must not reach a manifest."""
    units = {unit.lower() for unit in written} - {"", "?"}
    if len(units) > 1:
        return "mixed"
    return next((unit if unit in _UNITS else "unknown" for unit in units), "")


def _fields(head: bytes, mark: str) -> dict[str, str]:
    lines = head.decode("utf-8", "surrogateescape").splitlines()
    pairs = (line.partition(mark) for line in lines if mark in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _first(fields: dict[str, str], *names: str) -> str:
    return next((fields[name] for name in names if name in fields), "")


def _true(value: str) -> bool:
    return value[:1] in ("T", "t", "1")
