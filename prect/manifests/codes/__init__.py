"""Every reason code that a row of a manifest can have; docs/checks.md is made from it."""

from __future__ import annotations

from types import MappingProxyType

from prect.manifests.codes import content, dicom, files, itk, nifti, selection, stores
from prect.manifests.codes.model import Code, Effect

_FAMILIES = (files, nifti, itk, dicom, content, selection, stores)
CODES = MappingProxyType({code.name: code for family in _FAMILIES for code in family.CODES})
"""Codes by name, in the order in which the checks are made."""

__all__ = ["CODES", "Code", "Effect"]
