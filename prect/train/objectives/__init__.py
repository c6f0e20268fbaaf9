"""Pretext tasks."""

from __future__ import annotations

from prect.train.config import TrainConfig
from prect.train.networks import Encoder
from prect.train.objectives.base import Objective, ObjectiveOutput
from prect.train.objectives.voco import Voco
from prect.train.objectives.voco_paper import VocoPaper
from prect.train.objectives.voco_v1 import VocoV1
from prect.train.objectives.voco_v2 import VocoV2

__all__ = ["Objective", "ObjectiveOutput", "build_objective"]

_OBJECTIVES: dict[str, type[Voco]] = {
    "voco-v1": VocoV1,
    "voco-v2": VocoV2,
    "voco-paper": VocoPaper,
}


def build_objective(config: TrainConfig, backbone: Encoder) -> Objective:
    """The objective that a configuration names, with fresh heads from torch's random state.

    Args:
        config: the run's settings.
        backbone: the encoder that will be trained, with the weights that training starts from; a
            teacher may begin as its copy. On the meta device the objective has no storage either.
    """
    return _OBJECTIVES[config.objective.name](config, backbone)
