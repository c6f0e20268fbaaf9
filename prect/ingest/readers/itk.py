"""MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``).

Geometry is what SimpleITK makes of the header. It fills an absent spacing with 1.0, takes an
absent orientation for LPS and follows a data file wherever it points, so the text of the
header is read first. It also returns what it has when a compressed MetaImage is damaged, so
the voxels are decoded here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from prect.errors import VolumeError
from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.base import (
    Header,
    digest_files,
    placed_at_centre,
    require_volume,
    to_hu,
)
from prect.ingest.readers.header_text import HeaderText, metaimage_text, nrrd_text
from prect.ingest.readers.stream import Damage, read_content
from prect.ingest.volume import LPS_TO_RAS, Affine, Volume, clean_affine
from prect.manifests.limits import Limits

_HEADER_BYTES = 65536
_LIST = re.compile(r"^LIST\b|%", re.I)
"""A list of files, or a pattern for sprintf with its range of numbers."""
_DTYPES = {
    sitk.sitkInt8: "i1",
    sitk.sitkUInt8: "u1",
    sitk.sitkInt16: "i2",
    sitk.sitkUInt16: "u2",
    sitk.sitkInt32: "i4",
    sitk.sitkUInt32: "u4",
    sitk.sitkInt64: "i8",
    sitk.sitkUInt64: "u8",
    sitk.sitkFloat32: "f4",
    sitk.sitkFloat64: "f8",
}


@dataclass(frozen=True)
class _Codes:
    """The reason codes of one format."""

    unreadable: str
    file_list: str
    outside_folder: str
    missing_data: str
    encoding: str
    data_size: str
    no_orientation: str
    assumed_orientation: str
    units: str
    damage: Damage


_CODES = {
    "metaimage": _Codes(
        unreadable="metaimage.unreadable",
        file_list="metaimage.file_list",
        outside_folder="metaimage.outside_folder",
        missing_data="metaimage.missing_data",
        encoding="metaimage.encoding",
        data_size="metaimage.data_size",
        no_orientation="metaimage.no_orientation",
        assumed_orientation="metaimage.assumed_orientation",
        units="metaimage.units",
        damage=Damage(truncated="metaimage.truncated", checksum="metaimage.checksum"),
    ),
    "nrrd": _Codes(
        unreadable="nrrd.unreadable",
        file_list="nrrd.file_list",
        outside_folder="nrrd.outside_folder",
        missing_data="nrrd.missing_data",
        encoding="nrrd.encoding",
        data_size="nrrd.data_size",
        no_orientation="nrrd.no_orientation",
        assumed_orientation="nrrd.assumed_orientation",
        units="nrrd.units",
        damage=Damage(truncated="nrrd.truncated", checksum="nrrd.checksum"),
    ),
}


@dataclass(frozen=True)
class _Decoding:
    """Where the voxels lie, and how."""

    path: Path
    start: int
    compressed: bool
    dtype: np.dtype[Any]
    limits: Limits


class ItkReader:
    """Reads one of the two formats; ``name`` is ``metaimage`` or ``nrrd``."""

    def __init__(self, name: str) -> None:
        self.format = name
        self._codes = _CODES[name]

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:
        path = paths[0]
        text = self._text(path)
        data = self._data_file(path, text)
        if text.unsupported:
            raise VolumeError(self._codes.encoding, text.unsupported)
        if not text.has_spacing:
            raise VolumeError("geometry.no_spacing", "the header states no spacing")
        image = self._information(path)
        if image.GetNumberOfComponents() != 1:
            raise VolumeError(
                "content.color", f"{image.GetNumberOfComponents()} numbers a voxel, CT has one"
            )
        shape = require_volume(image.GetSize())
        dtype = _dtype(image, text.big_endian)
        start = text.end if data is None else 0
        decoding = _Decoding(data or path, start, text.compressed, dtype, limits)
        affine, remarks = self._geometry(image, text, shape, limits)
        findings = (self._data_size(decoding, shape), *remarks)
        files = (path,) if data is None else (path, data)
        return Header(shape, clean_affine(affine), files, findings=findings, slices=(decoding,))

    def read(self, header: Header) -> Volume:
        (decoding,) = header.slices
        i, j, k = header.shape
        digest = hashlib.blake2b(digest_size=16)
        if decoding.path != header.paths[0]:
            digest.update(header.paths[0].read_bytes())
        content = read_content(
            decoding.path,
            i * j * k * decoding.dtype.itemsize,
            self._codes.damage,
            digest,
            start=decoding.start,
            compressed=decoding.compressed,
        )
        hu = to_hu(content.data.view(decoding.dtype).reshape(k, j, i), decoding.limits)
        return Volume(
            hu.voxels,
            header.affine,
            self.format,
            digest.hexdigest(),
            hu.fractional,
            (*header.findings, *hu.findings),
        )

    def digest(self, paths: Sequence[Path]) -> str:
        """Of the header and the data file it names, whether or not ``paths`` holds the latter."""
        data = self._data_file(paths[0], self._text(paths[0]))
        return digest_files((paths[0],) if data is None else (paths[0], data))

    def _text(self, path: Path) -> HeaderText:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        text = metaimage_text(head) if self.format == "metaimage" else nrrd_text(head)
        if text is None:
            raise VolumeError(
                self._codes.unreadable, f"no header in the first {len(head)} bytes of the file"
            )
        if text.malformed:
            raise VolumeError(
                self._codes.unreadable, f"field {text.malformed} is absent or damaged"
            )
        return text

    def _data_file(self, path: Path, text: HeaderText) -> Path | None:
        """The file that holds the voxels, when it is another; it must lie beside the header."""
        if not text.data_file:
            return None
        if _LIST.search(text.data_file):
            raise VolumeError(self._codes.file_list, "voxels are spread over several files")
        # By name, not through links: a header must not lead away, a link of the owner's may.
        folder = Path(os.path.normpath(path.parent))
        target = Path(os.path.normpath(folder / text.data_file))
        if target.parent != folder:
            raise VolumeError(
                self._codes.outside_folder, "the data file lies outside the header's folder"
            )
        if not target.is_file():
            raise VolumeError(self._codes.missing_data, "the data file is missing")
        return target

    def _information(self, path: Path) -> sitk.ImageFileReader:
        reader = sitk.ImageFileReader()
        # Named, since SimpleITK would go by the suffix and does not know .MHA.
        reader.SetImageIO("MetaImageIO" if self.format == "metaimage" else "NrrdImageIO")
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise VolumeError(self._codes.unreadable, _last_line(error)) from error
        return reader

    def _geometry(
        self,
        image: sitk.ImageFileReader,
        text: HeaderText,
        shape: tuple[int, int, int],
        limits: Limits,
    ) -> tuple[Affine, tuple[Finding, ...]]:
        spacing = [float(s) for s in image.GetSpacing()[:3]]
        if min(spacing) <= 0:  # a negative one would mirror the volume
            raise VolumeError("geometry.invalid", f"spacing {spacing}, it must be positive")
        codes, directions = self._codes, limits.unknown_orientation
        units = passed(codes.units, text.unit or "not stated", "millimetre")
        if text.unit not in ("", "mm"):
            reason = f"the header states {text.unit!r}; its spacing is taken as millimetres"
            units = failed(codes.units, reason, text.unit, "millimetre")
        if not text.orientation and directions != "reject":
            reason = f"the file states no orientation; {directions} is taken, as the card says"
            assumed = failed(codes.assumed_orientation, reason, "not stated", directions)
            return placed_at_centre(spacing, shape, directions), (units, assumed)
        stated = passed(codes.no_orientation, text.orientation, "stated")
        if not text.orientation:
            if self.format == "nrrd":
                raise VolumeError(
                    codes.no_orientation, "the header names no anatomical space of its axes"
                )
            reason = "the header states no orientation; LPS is taken, as every program does"
            stated = failed(codes.no_orientation, reason, "not stated", "stated")
        n = image.GetDimension()
        direction = np.array(image.GetDirection()).reshape(n, n)[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = LPS_TO_RAS @ direction * np.array(spacing)
        affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin())[:3]
        return affine, (units, stated)

    def _data_size(self, decoding: _Decoding, shape: tuple[int, int, int]) -> Finding:
        """Whether an uncompressed file has as many bytes as the header's sizes ask for.

        Raises:
            VolumeError: ``metaimage.truncated`` or ``nrrd.truncated``.
        """
        i, j, k = shape
        needed = i * j * k * decoding.dtype.itemsize
        there = decoding.path.stat().st_size - decoding.start
        limit = f"{needed} bytes"
        if decoding.compressed:
            return passed(self._codes.data_size, "compressed", limit)
        if there < needed:
            raise VolumeError(
                self._codes.damage.truncated, f"{there} bytes are there, {needed} are needed"
            )
        if there == needed:
            return passed(self._codes.data_size, f"{there} bytes", limit)
        reason = f"{there} bytes of voxels are there, the sizes in the header ask for {needed}"
        return failed(self._codes.data_size, reason, f"{there} bytes", limit)


def _dtype(image: sitk.ImageFileReader, big_endian: bool) -> np.dtype[Any]:
    name = _DTYPES.get(image.GetPixelID())
    if name is None:
        raise VolumeError(
            "content.complex", f"voxels are of type {image.GetPixelIDValue()}, no real numbers"
        )
    return np.dtype(name).newbyteorder(">" if big_endian else "<")


def _last_line(error: RuntimeError) -> str:
    """What ITK says in the last line of a page of C++, without paths and words of the header."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sentence = lines[-1] if lines else "unknown error"
    sentence = re.sub(r"\"[^\"]*\"|'[^']*'", "<text>", sentence)
    sentence = re.sub(r"\S*/\S*", "<path>", sentence)
    return f"SimpleITK cannot read it: {sentence}"
