"""Linear segmentation: how much of the organs a linear classifier reads out of feature maps.

Multinomial logistic regression is fitted to voxels drawn equally from each class of the training
cases, corrected to the classes' true shares, and applied to every voxel of the cases that it did
not see; patients are split into folds. Dice is taken by case and organ over the whole view. An
organ that one patient alone has cannot be learned from others, and has no Dice.

Shapes: V cases, K organs, K + 1 classes (0 is all else), D features of a voxel, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prect.train.config import CropConfig
from prect.train.probes.bootstrap import Floats, mean_of_known, ratio
from prect.train.probes.dense import maps_over, voxel_features
from prect.train.probes.features import Features
from prect.train.probes.labels import Labels
from prect.train.probes.linear import LinearClassifier, fit_classifier
from prect.train.probes.organs import LabelledVolumes, check_organs, shared_organs
from prect.train.probes.volumes import ProbeVolume


@dataclass(frozen=True)
class SegmentationSettings:
    """How the classifier is fitted."""

    voxels: int = 64
    """Voxels of each class that a case gives."""
    folds: int = 5
    """Parts of the patients; each is segmented by a classifier of the others."""
    rows: int = 100_000
    """Voxels that a classifier is fitted to at most; cases give fewer each where they are many."""
    penalty: float = 1e-3
    """Weight of the squared coefficients, see `fit_classifier`."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """Dice of each organ of each case; V cases that have one of the organs."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    organs: tuple[int, ...]
    """Labels, (K,)."""
    dice: Floats
    """(V, K), not a number where a case has not the organ."""
    alone: tuple[int, ...] = ()
    """Labels that were left out, since one patient alone has them."""

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """``dice``, the mean over organs of the mean over cases, for (R, V) counts of cases."""
        return {"dice": mean_of_known(self._each(weights))}

    def by_organ(self) -> dict[int, float]:
        """Mean Dice of each organ over the cases that have it."""
        each = self._each(np.ones((1, len(self.cases))))[0]
        return {organ: float(value) for organ, value in zip(self.organs, each, strict=True)}

    def _each(self, weights: Floats) -> Floats:
        """(R, K)."""
        present = np.isfinite(self.dice)
        return ratio(weights @ np.where(present, self.dice, 0), weights @ present)


@dataclass(frozen=True)
class _Drawn:
    """Voxels that a case gives."""

    features: torch.Tensor
    """(n, D)."""
    labels: NDArray[np.int64]
    """(n,)."""
    shares: Mapping[int, float]
    """Share of each label among all voxels of the case."""


def linear_segmentation(
    features: Features,
    volumes: LabelledVolumes,
    crops: CropConfig,
    settings: SegmentationSettings = SegmentationSettings(),
    *,
    on_volume: Callable[[], None] | None = None,
) -> SegmentationResult:
    """Segment each case with a classifier that was fitted to other patients.

    Args:
        features: gives the maps.
        volumes: two patients at least; each is asked for twice.
        crops: the size of crops that the volume is covered with.
        settings: how the classifier is fitted.
        on_volume: called twice for each volume, when it gave voxels and when it was segmented.

    Raises:
        TrainingError: there is no organ that two patients have.
    """
    tell = on_volume or (lambda: None)
    names, patients, drawn = [], [], []
    most = settings.rows // max(1, len(volumes))
    for number, (volume, labels) in enumerate(volumes):
        generator = np.random.default_rng([settings.seed, number])
        drawn.append(_draw(features, volume, labels, crops, settings, most, generator))
        names.append(volume.name)
        patients.append(volume.patient)
        tell()
    classes = sorted({0}.union(*(one.shares for one in drawn)))
    known, alone = shared_organs(patients, [one.shares for one in drawn])
    check_organs(patients, known, least=1)
    fold = folds_of(patients, settings.folds, settings.seed)
    models = {
        part: _fit(
            [one for one, f in zip(drawn, fold, strict=True) if f != part], classes, settings
        )
        for part in sorted(set(fold.tolist()))
    }
    dice = np.full((len(names), len(classes) - 1), np.nan)
    for number, (volume, labels) in enumerate(volumes):
        told = segment(features, volume, crops, models[int(fold[number])])
        dice[number] = dice_scores(np.searchsorted(classes, labels), told, len(classes))
        tell()
    dice = dice[:, np.isin(classes[1:], known)]
    own = np.flatnonzero(np.isfinite(dice).any(axis=1))
    return SegmentationResult(
        tuple(names[v] for v in own), tuple(patients[v] for v in own), known, dice[own], alone
    )


def folds_of(patients: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """(V,) fold of each case; cases of a patient lie in one fold, and there are two at least."""
    names, code = np.unique(np.asarray(patients), return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[code] % max(2, min(folds, len(names))), dtype=np.int64)


def segment(
    features: Features, volume: ProbeVolume, crops: CropConfig, model: LinearClassifier
) -> NDArray[np.int64]:
    """(X, Y, Z) class of each voxel, from crops that cover the volume."""
    result = np.zeros(tuple(volume.image.shape), dtype=np.int64)
    for starts, maps in maps_over(features, volume, crops):
        for start, told in zip(starts, model.classify(maps, crops.size).numpy(), strict=True):
            x, y, z = (slice(s, s + n) for s, n in zip(start, crops.size, strict=True))
            result[x, y, z] = told
    return result


def dice_scores(
    truth: NDArray[np.int64], told: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """2 |truth and told| / (|truth| + |told|) of classes 1 to ``count`` - 1.

    Not a number where the truth has none of a class.
    """
    both = np.bincount(truth[truth == told], minlength=count)
    own = np.bincount(truth.ravel(), minlength=count)
    other = np.bincount(told.ravel(), minlength=count)
    result = np.full(count, np.nan)
    np.divide(2.0 * both, own + other, out=result, where=own > 0)
    return result[1:]


def _draw(
    features: Features,
    volume: ProbeVolume,
    labels: Labels,
    crops: CropConfig,
    settings: SegmentationSettings,
    most: int,
    generator: np.random.Generator,
) -> _Drawn:
    """Voxels of each label at random places of a case, about ``most``, with their features."""
    flat = labels.ravel()
    values, counts = np.unique(flat, return_counts=True)
    voxels = max(1, min(settings.voxels, most // len(values)))
    picked = []
    for value, count in zip(values, counts, strict=True):
        where = np.flatnonzero(flat == value)
        picked.append(where[generator.integers(0, count, voxels)])
    index = np.concatenate(picked)
    places = np.stack(np.unravel_index(index, labels.shape), axis=1)
    return _Drawn(
        voxel_features(features, volume, places, crops),
        flat[index].astype(np.int64),
        {int(v): count / flat.size for v, count in zip(values, counts, strict=True)},
    )


def _fit(
    drawn: Sequence[_Drawn], classes: Sequence[int], settings: SegmentationSettings
) -> LinearClassifier:
    """The classifier of some cases; a class that none of them has is never told."""
    labels = np.searchsorted(classes, np.concatenate([one.labels for one in drawn]))
    count = len(classes)
    fitted = fit_classifier(
        torch.cat([one.features for one in drawn]),
        torch.from_numpy(labels),
        count,
        settings.penalty,
    )
    share = np.bincount(labels, minlength=count) / len(labels)
    true = np.array([np.mean([one.shares.get(value, 0.0) for one in drawn]) for value in classes])
    absent = share == 0
    share[absent], true[absent] = 1.0, 1e-30
    return fitted.with_shares(share, true)
