"""Organ kNN with features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prect.errors import TrainingError
from prect.train.config import CropConfig
from prect.train.probes.labels import Labels
from prect.train.probes.organs import (
    OrganSettings,
    organ_knn,
    organ_starts,
    shared_organs,
    vote,
)
from prect.train.probes.volumes import ProbeVolume

CROPS = CropConfig(base_grid=(2, 2, 1), size=(8, 8, 8))


def labelled(patient: str, seed: int) -> tuple[ProbeVolume, Labels]:
    """Three boxes of organs 2, 5 and 7, whose voxels tell the organ."""
    labels = np.zeros((24, 20, 16), dtype=np.int32)
    shift = seed % 3
    labels[2 + shift : 6 + shift, 2:6, 2:6] = 2
    labels[14:18, 10 + shift : 14 + shift, 4:8] = 5
    labels[4:9, 13:17, 9:14] = 7
    image = torch.from_numpy(labels).float() / 10
    return ProbeVolume(f"set/{patient}", patient, image, (24.0, 20.0, 16.0)), labels


def brightest(crops: torch.Tensor) -> torch.Tensor:
    """One-hot of the largest value in a crop's middle."""
    middle = crops[:, 0, 2:6, 2:6, 2:6].flatten(1).max(dim=1).values
    return torch.nn.functional.one_hot((middle * 10).round().long(), 8).float()


def test_perfect_features_tell_every_organ() -> None:
    volumes = [labelled(f"patient-{i}", i) for i in range(4)]
    result = organ_knn(brightest, volumes, CROPS, OrganSettings(crops=5))
    figures = result.figures(np.ones((1, 4)))
    assert figures["accuracy"].tolist() == [1.0]
    assert figures["macro_accuracy"].tolist() == [1.0]
    assert result.by_organ() == {2: 1.0, 5: 1.0, 7: 1.0}
    assert result.asked.tolist() == [[5, 5, 5]] * 4
    assert result.chance == pytest.approx(1 / 3)


def test_random_features_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    volumes = [labelled(f"patient-{i}", i) for i in range(6)]
    result = organ_knn(
        lambda crops: torch.rand(len(crops), 6, generator=generator),
        volumes,
        CROPS,
        OrganSettings(crops=60),
    )
    assert result.figures(np.ones((1, 6)))["accuracy"][0] == pytest.approx(1 / 3, abs=0.06)


def test_a_patient_never_votes_on_its_own_crops() -> None:
    # What is alike within a patient is another organ in every other one.
    features = torch.eye(2).repeat(3, 1)
    organs = np.array([1, 2, 2, 1, 2, 1])
    patients = np.array(["a", "a", "b", "b", "b", "b"])
    told = vote(features, organs, patients, neighbours=1)
    assert told[:2].tolist() == [2, 1]


def test_among_equal_votes_the_more_similar_ones_win() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [1.0, 0.5], [1.0, 0.15]])
    organs = np.array([9, 1, 2, 2, 1])
    patients = np.array(["a", "b", "b", "b", "b"])
    assert vote(features, organs, patients, neighbours=4)[0] == 1
    assert vote(features, organs, patients, neighbours=3)[0] == 1


def test_crops_lie_around_their_organ_inside_the_volume() -> None:
    _, labels = labelled("a", 0)
    starts, organs = organ_starts(labels, CROPS, OrganSettings(crops=20), 0)
    assert np.bincount(organs).tolist() == [0, 0, 20, 0, 0, 20, 0, 20]
    assert (starts >= 0).all()
    assert (starts + 8 <= np.array(labels.shape)).all()
    inner = organs == 5
    middles = starts[inner] + 4
    assert (labels[tuple(middles.T)] == 5).all()
    assert len(np.unique(middles, axis=0)) > 10


def test_a_case_without_organs_does_not_count() -> None:
    volume, _ = labelled("c", 0)
    empty = np.zeros((24, 20, 16), dtype=np.int32)
    volumes = [labelled("a", 0), (volume, empty), labelled("b", 1)]
    result = organ_knn(brightest, volumes, CROPS)
    assert result.patients == ("a", "b")
    assert result.cases == ("set/a", "set/b")
    assert result.figures(np.ones((1, 2)))["accuracy"] == 1


def test_an_organ_that_one_patient_alone_has_is_left_out() -> None:
    volumes = [labelled(f"patient-{i}", i) for i in range(3)]
    for number, (_, labels) in enumerate(volumes):
        labels[labels == (7 if number else 5)] = 0
    result = organ_knn(brightest, volumes, CROPS)
    # Patient 0 has 2 and 7, the others 2 and 5.
    assert (result.organs, result.alone) == ((2, 5), (7,))
    assert (result.asked > 0).tolist() == [[True, False], [True, True], [True, True]]
    assert result.chance == 0.5
    assert shared_organs(["a", "a", "b"], [{0, 1, 2}, {1, 3}, {0, 2}]) == ((2,), (1, 3))


def test_features_are_standardised_by_those_that_vote() -> None:
    features = torch.tensor([[0.0, 9.0], [-0.2, 0.1], [0.2, 0.1], [-2.0, -0.1], [2.0, -0.1]])
    organs, patients = np.array([1, 1, 1, 2, 2]), np.array(["a", "b", "c", "b", "c"])
    assert vote(features, organs, patients, 1, standardise=True)[0] == 1
    # The asked crop's own value would move the mean beyond all that vote.
    mean, scale = features.mean(dim=0), features.std(dim=0, unbiased=False)
    assert vote((features - mean) / scale, organs, patients, 1)[0] == 2


def test_too_little_to_compare_is_refused() -> None:
    empty = (labelled("b", 0)[0], np.zeros((24, 20, 16), dtype=np.int32))
    with pytest.raises(TrainingError, match="of 1 patients with 0 organs that two patients have"):
        organ_knn(brightest, [labelled("a", 0), labelled("a", 1)], CROPS)
    with pytest.raises(TrainingError, match="of 2 patients with 0 organs that two patients have"):
        organ_knn(brightest, [labelled("a", 0), empty], CROPS)
    with pytest.raises(TrainingError, match="2 labelled cases of 2 patients with 0 organs"):
        organ_knn(brightest, [empty, (labelled("a", 1)[0], empty[1])], CROPS)
