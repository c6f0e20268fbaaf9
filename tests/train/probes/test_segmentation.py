"""Linear segmentation: interpolation, the classifier, and features whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from prect.errors import TrainingError
from prect.train.config import CropConfig
from prect.train.probes import linear, segmentation
from prect.train.probes.dense import at_voxels, on_grid, tiles, voxel_features
from prect.train.probes.features import Features
from prect.train.probes.labels import Labels
from prect.train.probes.linear import LinearClassifier, fit_classifier
from prect.train.probes.segmentation import (
    SegmentationSettings,
    dice_scores,
    folds_of,
    linear_segmentation,
)
from prect.train.probes.volumes import ProbeVolume

CROPS = CropConfig(base_grid=(2, 2, 1), size=(8, 8, 8))


class Colours:
    """One-hot maps of an image whose values are tenths."""

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        return crops.flatten(1)

    def maps(self, crops: torch.Tensor) -> list[torch.Tensor]:
        one_hot = functional.one_hot((crops[:, 0] * 10).round().long(), 8)
        return [one_hot.movedim(-1, 1).float(), functional.avg_pool3d(crops, 2)]


def labelled(patient: str, colours: dict[int, int]) -> tuple[ProbeVolume, Labels]:
    """Boxes of organs, each in its colour."""
    labels = np.zeros((20, 18, 13), dtype=np.int32)
    labels[2:9, 3:9, 2:6] = 3
    labels[12:18, 8:14, 5:12] = 5
    image = np.vectorize({0: 0, **colours}.__getitem__)(labels) / 10
    volume = ProbeVolume(
        f"set/{patient}", patient, torch.from_numpy(image).float(), (20.0, 18.0, 13.0)
    )
    return volume, labels


def test_perfect_features_have_dice_1() -> None:
    volumes = [labelled(f"patient-{i}", {3: 2, 5: 4}) for i in range(4)]
    result = linear_segmentation(Colours(), volumes, CROPS)
    assert result.organs == (3, 5)
    assert result.dice == pytest.approx(np.ones((4, 2)))
    assert result.by_organ() == pytest.approx({3: 1.0, 5: 1.0})
    assert result.figures(np.ones((3, 4)))["dice"] == pytest.approx(np.ones(3))


def test_a_case_is_never_segmented_by_what_it_taught() -> None:
    # In each of the two patients the colours mean the other's organs.
    volumes = [labelled("a", {3: 2, 5: 4}), labelled("b", {3: 4, 5: 2})]
    result = linear_segmentation(Colours(), volumes, CROPS, SegmentationSettings(folds=2))
    assert result.dice == pytest.approx(np.zeros((2, 2)))
    together = [*volumes, *(labelled("a", {3: 2, 5: 4}) for _ in range(2))]
    again = linear_segmentation(Colours(), together, CROPS, SegmentationSettings(folds=5))
    assert again.dice == pytest.approx(np.zeros((4, 2)))


def test_an_organ_that_is_missing_does_not_count() -> None:
    volume, labels = labelled("b", {3: 2, 5: 4})
    without = np.where(labels == 5, 0, labels).astype(np.int32)
    hidden = ProbeVolume(
        volume.name, "b", torch.where(volume.image > 0.3, 0, volume.image), (1, 1, 1)
    )
    volumes = [labelled("a", {3: 2, 5: 4}), (hidden, without), labelled("c", {3: 2, 5: 4})]
    result = linear_segmentation(Colours(), volumes, CROPS, SegmentationSettings(folds=3))
    assert np.isnan(result.dice).tolist() == [[False, False], [False, True], [False, False]]
    assert result.by_organ() == pytest.approx({3: 1.0, 5: 1.0})


def test_an_organ_that_one_patient_alone_has_is_left_out() -> None:
    volumes = [labelled(patient, {3: 2, 5: 4}) for patient in "abc"]
    (_, first), _, (_, last) = volumes
    first[first == 5] = 0
    last[last == 3] = 0
    last[last == 5] = 7
    with pytest.raises(TrainingError, match="2 labelled cases of 2 patients with 0 organs"):
        linear_segmentation(Colours(), volumes[1:], CROPS)
    result = linear_segmentation(Colours(), volumes, CROPS, SegmentationSettings(folds=3))
    assert (result.organs, result.alone, result.patients) == ((3,), (5, 7), ("a", "b"))
    assert result.dice.shape == (2, 1)


def test_rows_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def watched(features: torch.Tensor, *rest: Any) -> LinearClassifier:
        rows.append(len(features))
        return fit_classifier(features, *rest)

    monkeypatch.setattr(segmentation, "fit_classifier", watched)
    volumes = [labelled(f"patient-{i}", {3: 2, 5: 4}) for i in range(4)]
    for most, expected in ((100_000, 3 * 3 * 64), (60, 3 * 3 * 5), (1, 3 * 3)):
        rows.clear()
        result = linear_segmentation(
            Colours(), volumes, CROPS, SegmentationSettings(folds=4, rows=most)
        )
        assert set(rows) == {expected}
        assert result.dice == pytest.approx(np.ones((4, 2)))


def test_features_with_large_means_and_small_spread_are_scaled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "_CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(1000) % 2
    telling = classes + 0.1 * torch.randn(1000, generator=generator)
    features = torch.stack([1000 + telling, torch.full((1000,), 3.7)], dim=1)
    kept = features.clone()
    fitted = fit_classifier(features, classes, 2, penalty=1e-5)
    assert torch.equal(features, kept)
    mean, scale = linear._moments(features)
    assert mean == pytest.approx(features.double().mean(dim=0).numpy())
    assert scale.tolist() == pytest.approx([float(telling.std(unbiased=False)), 1], rel=1e-3)
    slope, offset = (t[1] - t[0] for t in (fitted.weight, fitted.bias))
    assert -(offset + slope[1] * 3.7) / slope[0] == pytest.approx(1000.5, abs=0.05)


def test_dice_of_counted_voxels() -> None:
    truth = np.array([[0, 1, 1, 1], [2, 2, 0, 0]])
    told = np.array([[0, 1, 1, 0], [1, 2, 3, 0]])
    assert dice_scores(truth, told, 5) == pytest.approx([4 / 6, 2 / 3, np.nan, np.nan], nan_ok=True)


def test_patients_lie_in_one_fold_each() -> None:
    patients = [f"p{i % 7}" for i in range(21)]
    fold = folds_of(patients, 5, seed=3)
    assert set(fold.tolist()) == set(range(5))
    assert all(
        len({f for f, p in zip(fold, patients, strict=True) if p == q}) == 1 for q in patients
    )
    assert set(folds_of(["a", "b", "b"], 5, seed=0).tolist()) == {0, 1}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 9)] * 3))
def test_single_voxels_are_interpolated_like_the_whole_grid(
    seed: int, coarse: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(1, 3, *coarse, generator=generator), torch.rand(1, 2, 8, 6, 7)]
    voxels = np.random.default_rng(seed).integers(0, (8, 6, 7), (20, 3))
    dense = torch.cat([on_grid(one, (8, 6, 7)) for one in maps], dim=1)[0]
    expected = dense[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T
    torch.testing.assert_close(at_voxels(maps, voxels, (8, 6, 7)), expected)


def test_scoring_before_interpolation_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, c, n, n, n, generator=generator) for c, n in ((3, 8), (4, 4), (5, 2))]
    model = LinearClassifier(
        torch.randn(6, 12, generator=generator), torch.randn(6, generator=generator)
    )
    dense = torch.cat([on_grid(one, (8, 8, 8)) for one in maps], dim=1)
    scores = torch.einsum("kd,ndxyz->nkxyz", model.weight, dense) + model.bias.view(1, -1, 1, 1, 1)
    told = model.classify(maps, (8, 8, 8))
    assert (told == scores.argmax(dim=1)).float().mean() > 0.999


def test_every_voxel_is_covered_and_found() -> None:
    covered = np.zeros((20, 18, 13), dtype=np.int64)
    for x, y, z in tiles(covered.shape, (8, 8, 8)):
        covered[x : x + 8, y : y + 8, z : z + 8] += 1
    assert covered.min() == 1

    class Itself:
        def embed(self, crops: torch.Tensor) -> torch.Tensor:
            return crops.flatten(1)

        def maps(self, crops: torch.Tensor) -> list[torch.Tensor]:
            return [crops]

    features: Features = Itself()
    image = torch.rand(20, 18, 13, generator=torch.Generator().manual_seed(1))
    voxels = np.random.default_rng(1).integers(0, (20, 18, 13), (300, 3))
    found = voxel_features(features, ProbeVolume("a", "a", image, (1, 1, 1)), voxels, CROPS)
    torch.testing.assert_close(found[:, 0], image[tuple(torch.from_numpy(voxels).T)])


def test_the_classifier_finds_the_bayes_boundary() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(4000, 1, generator=generator)
    high = 2 + torch.randn(4000, 1, generator=generator)
    x = torch.cat([low, high])
    classes = torch.arange(2).repeat_interleave(4000)
    fitted = fit_classifier(10 * x + 7, classes, 2, penalty=1e-5)

    def boundary(model: LinearClassifier) -> float:
        slope, offset = (t[1] - t[0] for t in (model.weight, model.bias))
        return (float(-offset / slope) - 7) / 10

    # Two normal densities of unit variance, 2 apart: equal shares meet in the middle, and
    # shares p and 1 - p at 1 + log(p / (1 - p)) / 2.
    assert boundary(fitted) == pytest.approx(1, abs=0.05)
    moved = fitted.with_shares(np.array([0.5, 0.5]), np.array([0.9, 0.1]))
    assert boundary(moved) == pytest.approx(1 + np.log(9) / 2, abs=0.1)
