"""All probes of one encoder beside its controls, as one document.

Controls are measured on the same crops: ``untrained``, the mean over several networks with fresh
weights (never those of ``network.weights``), the first drawn with the run's seed; and
``histogram``, shares of intensities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, overload

import numpy as np
import torch

from prect.train.config import TrainConfig
from prect.train.networks import Encoder
from prect.train.probes.bootstrap import (
    LEAST_FOR_INTERVALS,
    RESAMPLES,
    Mean,
    Measured,
    differences,
    estimates,
)
from prect.train.probes.features import (
    Features,
    HistogramFeatures,
    NetworkFeatures,
    untrained_features,
)
from prect.train.probes.labels import LabelFiles, Labels, labels_on, only
from prect.train.probes.organs import (
    LabelledVolumes,
    OrganSettings,
    check_organs,
    organ_knn,
    shared_organs,
)
from prect.train.probes.position import PositionResult, PositionSettings, position_retrieval
from prect.train.probes.segmentation import SegmentationSettings, linear_segmentation
from prect.train.probes.volumes import ProbeVolume, ProbeVolumes

NETWORK, UNTRAINED, HISTOGRAM = "network", "untrained", "histogram"
CONTROLS = (UNTRAINED, HISTOGRAM)
_KEPT_VOXELS = 2**27
"""Voxels of images that are kept in memory between passes, with labels 1 GiB."""

Arms = Mapping[str, Sequence[Callable[[], Features]]]
"""Features of each arm, made when they are asked for: of untrained networks one is held at once."""


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured, and how often the controls are."""

    position: PositionSettings = field(default_factory=PositionSettings)
    organs: OrganSettings = field(default_factory=OrganSettings)
    segmentation: SegmentationSettings = field(default_factory=SegmentationSettings)
    random_seeds: int = 3
    """Networks with fresh weights that are averaged."""
    resamples: int = RESAMPLES
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""


@dataclass(frozen=True)
class Labelled(Sequence[tuple[ProbeVolume, Labels]]):
    """Volumes with their labels, read each time that they are asked for."""

    volumes: Sequence[ProbeVolume]
    files: LabelFiles
    positions: tuple[int, ...]
    """Of the volumes that have a file."""
    organs: frozenset[int] = field(default_factory=frozenset)
    """Labels that count; all but 0 when empty."""

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, position: int) -> tuple[ProbeVolume, Labels]: ...

    @overload
    def __getitem__(self, position: slice) -> Labelled: ...

    def __getitem__(self, position: int | slice) -> tuple[ProbeVolume, Labels] | Labelled:
        if isinstance(position, slice):
            return replace(self, positions=self.positions[position])
        volume = self.volumes[self.positions[position]]
        labels = labels_on(volume, self.files.files[volume.name])
        return volume, only(labels, self.organs) if self.organs else labels


@dataclass(frozen=True)
class Probed:
    """What was measured."""

    document: dict[str, Any]
    """Figures with intervals, plain types."""
    positions: Mapping[str, PositionResult]
    """Of each arm; of the untrained networks the first."""


def measure(
    encoder: Encoder,
    config: TrainConfig,
    volumes: ProbeVolumes,
    labels: LabelFiles | None = None,
    organs: Mapping[int, str] | None = None,
    settings: ProbeSettings = ProbeSettings(),
    *,
    device: torch.device | None = None,
    on_volume: Callable[[], None] | None = None,
) -> Probed:
    """Probe an encoder and its controls.

    Args:
        encoder: the trained one; moved to the device.
        config: its settings.
        volumes: two patients at least.
        labels: label maps of some of the volumes; without them places alone are probed.
        organs: names of the labels that count; all count, by number, when left out.
        settings: of each probe.
        device: where to compute; the CPU when left out.
        on_volume: called `passes` times.

    Raises:
        TrainingError: too few patients or organs; before any crop goes through a network.
        ConfigError: a label map cannot be read.
    """
    place = device or torch.device("cpu")
    trained = NetworkFeatures(encoder.to(place))
    arms: Arms = {
        NETWORK: [lambda: trained],
        UNTRAINED: [
            partial(untrained_features, config.network, config.run.seed + i, place)
            for i in range(settings.random_seeds)
        ],
        HISTOGRAM: [HistogramFeatures],
    }
    seen: Sequence[ProbeVolume] = volumes
    if volumes.voxels <= _KEPT_VOXELS:
        seen = list(volumes)
    maps = None if labels is None else _with_labels(seen, labels, organs or {})
    positions = _positions(arms, seen, config, settings.position, on_volume)
    first = positions[NETWORK][0]
    document: dict[str, Any] = {
        "position": {
            "cases": len(first.cases),
            "pairs": first.pairs,
            "queries": settings.position.queries,
            "gallery": max(map(len, first.galleries)),
            "extent_mm": [round(float(mm), 3) for mm in first.extent],
            **first.references(),
            **_compared(positions, settings),
        }
    }
    if maps is not None:
        document |= _labelled(arms, maps, organs or {}, config, settings, on_volume)
    return Probed(document, {name: results[0] for name, results in positions.items()})


def passes(volumes: int, labelled: int, settings: ProbeSettings) -> int:
    """How often `measure` looks at a volume."""
    return (2 + settings.random_seeds) * (volumes + 3 * labelled)


def asked_of(arm: str, settings: PositionSettings) -> PositionSettings:
    """The settings of an arm: each at its best, which for shifted histograms is as they are."""
    raw = arm == HISTOGRAM and settings.shift > 0
    return replace(settings, standardise=settings.standardise and not raw)


def _positions(
    arms: Arms,
    volumes: Sequence[ProbeVolume],
    config: TrainConfig,
    settings: PositionSettings,
    on_volume: Callable[[], None] | None,
) -> dict[str, list[PositionResult]]:
    return {
        name: [
            position_retrieval(
                one().embed,
                volumes,
                config.crops,
                asked_of(name, settings),
                on_volume=on_volume,
            )
            for one in features
        ]
        for name, features in arms.items()
    }


def _with_labels(
    volumes: Sequence[ProbeVolume], labels: LabelFiles, organs: Mapping[int, str]
) -> LabelledVolumes:
    """The volumes that have a file, with their labels; refused when they hold too few organs."""
    known = tuple(n for n, volume in enumerate(volumes) if volume.name in labels.files)
    seen: LabelledVolumes = Labelled(volumes, labels, known, frozenset(organs))
    if isinstance(volumes, list):
        seen = list(seen)
    patients, present = [], []
    for volume, one in seen:
        patients.append(volume.patient)
        present.append(set(np.unique(one).tolist()))
    check_organs(patients, shared_organs(patients, present)[0], least=2)
    return seen


def _labelled(
    arms: Arms,
    seen: LabelledVolumes,
    organs: Mapping[int, str],
    config: TrainConfig,
    settings: ProbeSettings,
    on_volume: Callable[[], None] | None,
) -> dict[str, Any]:
    knn = {
        name: [
            organ_knn(
                one().embed,
                seen,
                config.crops,
                replace(settings.organs, standardise=name != HISTOGRAM),
                on_volume=on_volume,
            )
            for one in features
        ]
        for name, features in arms.items()
    }
    linear = {
        name: [
            linear_segmentation(
                one(), seen, config.crops, settings.segmentation, on_volume=on_volume
            )
            for one in features
        ]
        for name, features in arms.items()
    }

    def name_of(label: int) -> str:
        return organs.get(label, f"label {label}")

    def named(values: Mapping[int, float]) -> dict[str, float]:
        return {name_of(label): value for label, value in values.items()}

    first, other = knn[NETWORK][0], linear[NETWORK][0]
    return {
        "organs": {
            "cases": len(first.cases),
            "left_out": [name_of(label) for label in first.alone],
            "crops": int(first.asked.sum()),
            "chance": first.chance,
            **_compared(knn, settings),
            "by_organ": {name: named(results[0].by_organ()) for name, results in knn.items()},
        },
        "segmentation": {
            "cases": len(other.cases),
            "left_out": [name_of(label) for label in other.alone],
            **_compared(linear, settings),
            "by_organ": {name: named(results[0].by_organ()) for name, results in linear.items()},
        },
    }


def _compared(results: Mapping[str, Sequence[Measured]], settings: ProbeSettings) -> dict[str, Any]:
    """Figures of each arm, and the network's against those of each control.

    Intervals of two patients have no width, and count as overlapping.
    """
    drawn = {"resamples": settings.resamples, "seed": settings.seed}
    measured = {name: Mean(parts) for name, parts in results.items()}
    figures = {name: estimates(one, **drawn) for name, one in measured.items()}
    few = len(set(measured[NETWORK].patients)) < LEAST_FOR_INTERVALS
    against = {
        control: {
            name: {
                "difference": asdict(difference),
                "overlap": few or figures[NETWORK][name].overlaps(figures[control][name]),
            }
            for name, difference in differences(
                measured[NETWORK], measured[control], **drawn
            ).items()
        }
        for control in CONTROLS
    }
    return {
        "figures": {arm: {n: asdict(e) for n, e in each.items()} for arm, each in figures.items()},
        "against": against,
    }
