"""MetaImage (``.mha``, ``.mhd``) and NRRD (``.nrrd``, ``.nhdr``) through SimpleITK.

SimpleITK fills an absent spacing with 1.0 and follows a data file wherever it points, so
the text of the header is read first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.readers.base import Header, digest_files, require_volume, to_hu
from prect.ingest.settings import Limits
from prect.ingest.volume import LPS_TO_RAS, Volume, clean_affine

_HEADER_BYTES = 65536
_DATA_FILE = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(.+?)\s*$", re.M | re.I)
_IMAGE_IO = {"metaimage": "MetaImageIO", "nrrd": "NrrdImageIO"}
_SPACE = re.compile(r"^space\s*:", re.M)
_SPACING = {
    "metaimage": re.compile(r"^\s*(?:ElementSpacing|ElementSize)\s*=", re.M),
    "nrrd": re.compile(r"^(?:spacings|space directions)\s*:", re.M),
}


class ItkReader:
    """Reads one of the two formats; ``format`` is ``metaimage`` or ``nrrd``."""

    def __init__(self, name: str) -> None:
        self.format = name

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:  # noqa: ARG002
        path = paths[0]
        files = (path, *self._data_files(path))
        reader = self._reader(path)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise VolumeError(f"{self.format}.unreadable", _last_line(error)) from error
        if reader.GetNumberOfComponents() != 1:
            raise VolumeError(
                "content.color", f"{reader.GetNumberOfComponents()} numbers a voxel, CT has one"
            )
        shape = require_volume(reader.GetSize())
        n = reader.GetDimension()
        direction = np.array(reader.GetDirection()).reshape(n, n)[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = LPS_TO_RAS @ direction * np.array(reader.GetSpacing())[:3]
        affine[:3, 3] = LPS_TO_RAS @ np.array(reader.GetOrigin())[:3]
        return Header(shape, clean_affine(affine), files)

    def _reader(self, path: Path) -> sitk.ImageFileReader:
        # Named, since SimpleITK would go by the suffix and does not know .MHA.
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_IMAGE_IO[self.format])
        reader.SetFileName(str(path))
        return reader

    def _data_files(self, path: Path) -> tuple[Path, ...]:
        """Files that the header refers to; they must lie beside it."""
        with path.open("rb") as file:
            text = file.read(_HEADER_BYTES).decode("utf-8", "surrogateescape")
        if self.format == "nrrd":
            text = text.split("\n\n", 1)[0].replace("\r", "")
        found = _DATA_FILE.search(text)
        text = text if found is None else text[: found.end()]
        if not _SPACING[self.format].search(text):
            raise VolumeError("geometry.no_spacing", "the header states no spacing")
        if self.format == "nrrd" and not _SPACE.search(text):
            raise VolumeError(
                "nrrd.no_orientation", "the header names no space, the orientation is unknown"
            )
        if found is None or found[1].upper() == "LOCAL":
            return ()
        target = path.parent / found[1]
        if found[1].startswith("LIST") or "%" in found[1]:
            raise VolumeError(f"{self.format}.file_list", "voxels are spread over a list of files")
        if target.resolve().parent != path.parent.resolve():
            raise VolumeError(
                f"{self.format}.outside_folder", "the data file lies outside the header's folder"
            )
        if not target.is_file():
            raise VolumeError(f"{self.format}.missing_data", "the data file is missing")
        return (target,)

    def read_sample(self, header: Header) -> NDArray[Any]:
        try:
            image = self._reader(header.paths[0]).Execute()
        except RuntimeError as error:
            raise VolumeError(f"{self.format}.truncated", _last_line(error)) from error
        i, j, k = header.shape
        voxels: NDArray[Any] = sitk.GetArrayFromImage(image).reshape(k, j, i)
        return voxels

    def read(self, header: Header) -> Volume:
        voxels, warnings = to_hu(self.read_sample(header))
        return Volume(voxels, header.affine, self.format, header.warnings + warnings)

    def digest(self, header: Header) -> str:
        return digest_files(header.paths)


def _last_line(error: RuntimeError) -> str:
    # ITK's message is a page of C++; its last line says what happened. Paths stay out of it.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sentence = re.sub(r"[^\s'\"]*/[^\s'\"]*", "<path>", lines[-1]) if lines else "unknown error"
    return f"SimpleITK cannot read it: {sentence}"
