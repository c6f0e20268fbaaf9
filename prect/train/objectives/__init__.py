"""Pretext tasks."""

from __future__ import annotations

from prect.train.config import CropConfig, ObjectiveConfig
from prect.train.objectives.base import Objective, ObjectiveOutput
from prect.train.objectives.voco import VocoIntra

__all__ = ["Objective", "ObjectiveOutput", "build_objective"]


def build_objective(objective: ObjectiveConfig, crops: CropConfig, embedding: int) -> Objective:
    """The objective that a configuration names.

    Args:
        objective: its settings.
        crops: how a volume is cut; fixes the shapes of the labels.
        embedding: length of the encoder's embedding.
    """
    return VocoIntra(objective, crops.random, embedding)
