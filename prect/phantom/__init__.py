"""Synthetic CT patients with known truth, for trying everything without data.

A parametric trunk (lungs, heart, liver, spleen, kidneys, bones, vessels, bowel) whose body, pose,
field of view, noise, contrast phase and index order vary while the anatomy stays consistent.
`make_case` gives one in memory; `generate` fills a folder. Coordinates are RAS mm.
"""

from __future__ import annotations

from prect.phantom.case import CaseParameters, PhantomCase, make_case, sample_parameters
from prect.phantom.generate import COLLECTION_FORMATS, CaseRecord, CollectionFormat, generate
from prect.phantom.grid import Grid
from prect.phantom.landmarks import Landmark
from prect.phantom.patient import SIZES, Patient, Scan, Size
from prect.phantom.tissue import ORGANS

__all__ = [
    "COLLECTION_FORMATS",
    "ORGANS",
    "SIZES",
    "CaseParameters",
    "CaseRecord",
    "CollectionFormat",
    "Grid",
    "Landmark",
    "Patient",
    "PhantomCase",
    "Scan",
    "Size",
    "generate",
    "make_case",
    "sample_parameters",
]
