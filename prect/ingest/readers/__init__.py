"""Readers of foreign formats. A new format is one module and one line in `READERS`."""

from __future__ import annotations

from prect.ingest.readers.base import Header, Reader
from prect.ingest.readers.dicom import DicomReader
from prect.ingest.readers.itk import ItkReader
from prect.ingest.readers.nifti import NiftiReader

READERS: dict[str, Reader] = {
    "nifti": NiftiReader(),
    "metaimage": ItkReader("metaimage"),
    "nrrd": ItkReader("nrrd"),
    "dicom": DicomReader(),
}

__all__ = ["READERS", "Header", "Reader"]
