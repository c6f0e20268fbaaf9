"""Probes: what frozen features know, beside what they would know by chance.

- position retrieval: the same place in another patient (mm, R^2);
- organ kNN: which organ lies in the middle of a crop (accuracy);
- linear segmentation: organs from feature maps by a linear classifier (Dice).

Each is measured for the trained network and for two controls, the same network with fresh weights
and histograms of HU, with bootstrap intervals by patient.
"""

from __future__ import annotations

from prect.train.probes.bootstrap import Estimate, Mean, differences, estimates
from prect.train.probes.features import (
    Features,
    HistogramFeatures,
    NetworkFeatures,
    untrained_features,
)
from prect.train.probes.position import PositionResult, PositionSettings, position_retrieval
from prect.train.probes.volumes import ProbeVolume, ProbeVolumes, probe_volumes

__all__ = [
    "Estimate",
    "Features",
    "HistogramFeatures",
    "Mean",
    "NetworkFeatures",
    "PositionResult",
    "PositionSettings",
    "ProbeVolume",
    "ProbeVolumes",
    "differences",
    "estimates",
    "position_retrieval",
    "probe_volumes",
    "untrained_features",
]
