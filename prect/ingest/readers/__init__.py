"""Readers of foreign formats. A new format is one module and one line in `_FORMATS`."""

from __future__ import annotations

from prect.ingest.readers.base import Header, Reader
from prect.ingest.readers.dicom import DicomReader
from prect.ingest.readers.itk import ItkReader
from prect.ingest.readers.nifti import NiftiReader

# Name, reader, suffixes, and those of the suffixes whose voxels lie in another file beside.
_FORMATS: tuple[tuple[str, Reader, tuple[str, ...], tuple[str, ...]], ...] = (
    ("nifti", NiftiReader(), (".nii", ".nii.gz"), ()),
    ("metaimage", ItkReader("metaimage"), (".mha", ".mhd"), (".mhd",)),
    ("nrrd", ItkReader("nrrd"), (".nrrd", ".nhdr"), (".nhdr",)),
    ("dicom", DicomReader(), (), ()),  # told by content, whatever the name
)
READERS = {name: reader for name, reader, _, _ in _FORMATS}
FORMAT_OF = {suffix: name for name, _, suffixes, _ in _FORMATS for suffix in suffixes}
"""Name of the format by suffix."""
DETACHED = frozenset(suffix for *_, detached in _FORMATS for suffix in detached)
"""Suffixes of headers whose voxels lie in another file of the same folder."""

__all__ = ["DETACHED", "FORMAT_OF", "READERS", "Header", "Reader"]
