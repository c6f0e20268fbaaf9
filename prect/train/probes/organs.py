"""Organ kNN: which organ lies in the middle of a crop, told by the crops of other patients.

Each case gives equally many crops of each of its organs, centred on voxels of the organ as far as
the view allows: at its edge a crop is moved inside. A crop is told to be of the organ that most of
its k most similar crops of all *other* patients are of (cosine, after each feature is brought to
mean 0 and variance 1 over those crops); its own patient never votes. An organ that one patient
alone has cannot be told by others, and is left out.

Shapes: V cases, C crops of all cases, K organs, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from prect.errors import TrainingError
from prect.train.config import CropConfig
from prect.train.probes.bootstrap import Floats, mean_of_known, ratio
from prect.train.probes.features import Embed
from prect.train.probes.labels import Labels
from prect.train.probes.position import embedded, standardised
from prect.train.probes.volumes import ProbeVolume, plain_places

LabelledVolumes = Sequence[tuple[ProbeVolume, Labels]]
"""Volumes with their labels on the same grid, 0 where there is no organ."""


@dataclass(frozen=True)
class OrganSettings:
    """How crops are chosen and judged."""

    crops: int = 6
    """Crops of each organ of a case."""
    neighbours: int = 5
    """Crops that vote."""
    standardise: bool = True
    """Bring each feature to mean 0 and variance 1 over the crops that vote; see
    `PositionSettings`."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class OrganResult:
    """How often each organ of each case was told right; V cases that have one of the organs."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    organs: tuple[int, ...]
    """Labels, (K,)."""
    right: Floats
    """(V, K) crops whose organ was told right."""
    asked: Floats
    """(V, K) crops."""
    alone: tuple[int, ...] = ()
    """Labels that were left out, since one patient alone has them."""

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """``accuracy`` over all crops and ``macro_accuracy``, the mean over organs; (R,) each."""
        right, asked = weights @ self.right, weights @ self.asked
        return {
            "accuracy": ratio(right.sum(axis=1), asked.sum(axis=1)),
            "macro_accuracy": mean_of_known(ratio(right, asked)),
        }

    def by_organ(self) -> dict[int, float]:
        """Accuracy of each organ over all cases."""
        right, asked = self.right.sum(axis=0), self.asked.sum(axis=0)
        return {organ: float(r / a) for organ, r, a in zip(self.organs, right, asked, strict=True)}

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / len(self.organs)


def organ_knn(
    embed: Embed,
    volumes: LabelledVolumes,
    crops: CropConfig,
    settings: OrganSettings = OrganSettings(),
    *,
    on_volume: Callable[[], None] | None = None,
) -> OrganResult:
    """Tell the organs of each case's crops by those of all other patients.

    Args:
        embed: (N, 1, x, y, z) crops to (N, D) features.
        volumes: two patients at least; each is asked for once.
        crops: the size of crops.
        settings: how many crops, and how many vote.
        on_volume: called after each volume.

    Raises:
        TrainingError: there are fewer than two organs that two patients have.
    """
    none = np.empty(0, dtype=np.int64)
    features, truth, owner = [], [none], [none]
    names, patients = [], []
    for number, (volume, labels) in enumerate(volumes):
        starts, organs = organ_starts(labels, crops, settings, number)
        if len(organs):
            features.append(embedded(embed, volume, plain_places(starts), crops))
        truth.append(organs)
        owner.append(np.full(len(organs), number))
        names.append(volume.name)
        patients.append(volume.patient)
        if on_volume is not None:
            on_volume()
    organs, case = np.concatenate(truth), np.concatenate(owner)
    known, alone = shared_organs(
        patients, [set(organs[case == number].tolist()) for number in range(len(names))]
    )
    check_organs(patients, known, least=2)
    taken = np.isin(organs, known)
    organs, case = organs[taken], case[taken]
    voted = vote(
        torch.cat(features)[torch.from_numpy(taken)].double(),
        organs,
        np.asarray(patients)[case],
        settings.neighbours,
        standardise=settings.standardise,
    )
    code = np.searchsorted(known, organs)
    right, asked = (np.zeros((len(names), len(known))) for _ in range(2))
    np.add.at(asked, (case, code), 1)
    np.add.at(right, (case, code), voted == organs)
    own = np.flatnonzero(asked.any(axis=1))
    return OrganResult(
        tuple(names[v] for v in own),
        tuple(patients[v] for v in own),
        known,
        right[own],
        asked[own],
        alone,
    )


def shared_organs(
    patients: Sequence[str], organs: Sequence[Iterable[int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Labels that two patients have at least, and those that one alone has.

    Args:
        patients: patient of each case.
        organs: labels of each case; 0 is none.
    """
    owners: dict[int, set[str]] = {}
    for patient, present in zip(patients, organs, strict=True):
        for organ in present:
            owners.setdefault(organ, set()).add(patient)
    owners.pop(0, None)
    shared = tuple(sorted(organ for organ, who in owners.items() if len(who) > 1))
    return shared, tuple(sorted(owners.keys() - set(shared)))


def check_organs(patients: Sequence[str], shared: Sequence[int], least: int) -> None:
    """Refuse what leaves nothing to compare.

    Args:
        patients: patient of each case.
        shared: organs that two patients have at least.
        least: how many of them are needed.

    Raises:
        TrainingError: there are fewer.
    """
    if len(shared) < least:
        raise TrainingError(
            f"{len(patients)} labelled cases of {len(set(patients))} patients with {len(shared)} "
            f"organs that two patients have: {least} such organs at least are needed; label more "
            "cases, or look whether the organs named are in the label maps"
        )


def organ_starts(
    labels: Labels, crops: CropConfig, settings: OrganSettings, number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxels of crops around random voxels of each organ, and their organs.

    Args:
        labels: (X, Y, Z).
        crops: the size of crops.
        settings: crops an organ, seed.
        number: of the case, which has random numbers of its own.

    Returns:
        (C, 3) int64 and (C,) int64.
    """
    generator = np.random.default_rng([settings.seed, number])
    size, last = np.array(crops.size), np.array(labels.shape) - np.array(crops.size)
    starts, organs = [], []
    flat = labels.ravel()
    order = np.argsort(flat, kind="stable")
    values, first, counts = np.unique(flat[order], return_index=True, return_counts=True)
    for value, begin, count in zip(values, first, counts, strict=True):
        if value <= 0:
            continue
        picked = order[begin + generator.integers(0, count, settings.crops)]
        voxels = np.stack(np.unravel_index(picked, labels.shape), axis=1)
        starts.append(np.clip(voxels - size // 2, 0, last))
        organs.append(np.full(settings.crops, value))
    if not organs:
        return np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=np.int64)
    return np.concatenate(starts).astype(np.int64), np.concatenate(organs).astype(np.int64)


def vote(
    features: torch.Tensor,
    organs: NDArray[np.int64],
    patients: NDArray[np.str_],
    neighbours: int,
    *,
    standardise: bool = False,
) -> NDArray[np.int64]:
    """What the most similar crops of other patients say.

    Of organs with as many votes, the one whose votes are more similar in sum wins.

    Args:
        features: (C, D).
        organs: (C,) organ of each crop.
        patients: (C,) patient of each crop.
        neighbours: crops that vote.
        standardise: bring each feature to mean 0 and variance 1 over the crops that may vote,
            which are those of the other patients.

    Returns:
        (C,) the organ that was voted for.
    """
    exact = features.double()
    known, code = np.unique(organs, return_inverse=True)
    classes = torch.from_numpy(np.eye(len(known))[code])
    names, of = np.unique(patients, return_inverse=True)
    owner = torch.from_numpy(of)
    result = np.empty(len(organs), dtype=np.int64)
    for patient in range(len(names)):
        own = owner == patient
        asked, voters = exact[own], exact[~own]
        if standardise:
            mean, scale = voters.mean(dim=0), voters.std(dim=0, unbiased=False)
            asked, voters = (standardised(one, mean, scale) for one in (asked, voters))
        asked, voters = (torch.nn.functional.normalize(one, dim=1) for one in (asked, voters))
        cosine = asked @ voters.T
        best = cosine.topk(min(neighbours, cosine.shape[1]), dim=1)
        votes = classes[~own][best.indices]
        # A cosine is at most 1, so all of them together weigh less than a vote.
        weight = 1 + best.values / (2 * neighbours + 1)
        result[own.numpy()] = known[(votes * weight[..., None]).sum(dim=1).argmax(dim=1).numpy()]
    return result
