"""The bodies: consistent anatomy, plausible densities, honest truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from prect.phantom import ORGANS, PhantomCase, make_case, sample_parameters
from prect.phantom.render import render


def centroids_in_body(case: PhantomCase) -> dict[str, np.ndarray]:
    """Centroids of whole organs from the labels, mm along the patient's own axes.

    Recomputed from the voxels, independent of how the landmarks were counted.
    """
    to_body = np.linalg.inv(case.parameters.patient.affine)
    found = {}
    for name, mark in case.landmarks.items():
        if mark.whole:
            k, j, i = (float(v.mean()) for v in np.nonzero(case.labels == ORGANS[name]))
            found[name] = (to_body @ case.affine @ [i, j, k, 1.0])[:3]
    return found


def core(case: PhantomCase, name: str) -> np.ndarray:
    """HU of an organ without its rim, where voxels are mixed with their neighbours."""
    return case.hu[ndimage.binary_erosion(case.labels == ORGANS[name], iterations=2)]


def test_organs_lie_where_they_do_in_every_patient(patients: list[PhantomCase]) -> None:
    # (axis, lower, higher): x grows to the right, y to the front, z upwards.
    relations = [
        (0, "spleen", "liver"),
        (0, "kidney_left", "kidney_right"),
        (0, "stomach", "liver"),
        (0, "lung_left", "heart"),
        (0, "heart", "lung_right"),
        (1, "kidney_right", "liver"),
        (1, "kidney_left", "stomach"),
        (2, "kidney_right", "liver"),
        (2, "liver", "lung_right"),
        (2, "spleen", "lung_left"),
        (2, "liver", "heart"),
        (2, "bladder", "kidney_left"),
        (2, "kidney_right", "kidney_left"),
    ]
    seen = dict.fromkeys(relations, 0)
    for case in patients:
        place = centroids_in_body(case)
        for axis, low, high in relations:
            if low in place and high in place:
                assert place[low][axis] < place[high][axis], (case.name, low, high)
                seen[axis, low, high] += 1
        if "heart" in place:
            assert place["heart"][0] < 0, "the heart lies to the left of the midline"
        if "spine" in case.landmarks and "aorta" in place:
            assert place["aorta"][1] > -40
        if "bladder" in place:
            assert min(place, key=lambda name: place[name][2]) == "bladder"
    assert min(seen.values()) >= 3, seen


def test_right_is_where_the_world_x_is_larger(patients: list[PhantomCase]) -> None:
    checked = 0
    for case in patients:
        marks = case.landmarks
        if marks.get("liver") and marks["liver"].whole and marks["spleen"].whole:
            assert marks["liver"].centroid[0] > marks["spleen"].centroid[0] + 60
            checked += 1
    assert checked >= 5


def test_landmarks_are_the_centroids_of_the_labels(patients: list[PhantomCase]) -> None:
    for case in patients[:6]:
        present = set(np.unique(case.labels).tolist()) - {0}
        assert {ORGANS[name] for name in case.landmarks} == present
        for name, mark in case.landmarks.items():
            mask = case.labels == ORGANS[name]
            k, j, i = (float(v.mean()) for v in np.nonzero(mask))
            assert mark.voxels == mask.sum()
            expected = (case.affine @ [i, j, k, 1.0])[:3]
            assert np.abs(np.array(mark.centroid) - expected).max() < 1e-3


def test_whole_means_away_from_the_edges(patients: list[PhantomCase]) -> None:
    partial = 0
    for case in patients:
        edge = np.ones(case.labels.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        at_edge = set(np.unique(case.labels[edge]).tolist())
        for name, mark in case.landmarks.items():
            if ORGANS[name] in at_edge:
                assert not mark.whole
                partial += 1
            elif not case.parameters.scan.circular:
                assert mark.whole
    assert partial > len(patients)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("lung_right", -900, -780),
        ("lung_left", -900, -780),
        ("heart", 35, 260),
        ("liver", 48, 120),
        ("spleen", 40, 135),
        ("kidney_right", 20, 190),
        ("kidney_left", 20, 190),
        ("bladder", -10, 20),
        ("spine", 150, 500),
        ("pelvis", 250, 1100),
        ("femurs", 250, 1000),
        ("trachea", -1024, -800),
    ],
)
def test_mean_density_of_organs(
    patients: list[PhantomCase], name: str, low: float, high: float
) -> None:
    samples = [core(case, name) for case in patients if name in case.landmarks]
    means = [float(s.mean()) for s in samples if s.size >= 100]
    assert len(means) >= 3
    assert low < min(means)
    assert max(means) < high


def test_contrast_phase_shows_in_the_aorta(patients: list[PhantomCase]) -> None:
    ranges = {"native": (30, 60), "arterial": (240, 330), "venous": (120, 200)}
    seen = set()
    for case in patients:
        values = core(case, "aorta")
        if values.size >= 50:
            low, high = ranges[case.parameters.scan.phase]
            assert low < values.mean() < high
            seen.add(case.parameters.scan.phase)
    assert seen == set(ranges)


def test_noise_is_as_strong_as_stated(patients: list[PhantomCase]) -> None:
    measured = [
        (case.parameters.scan.noise, float(core(case, "liver").std()))
        for case in patients
        if case.landmarks.get("liver") and core(case, "liver").size > 5000
    ]
    assert len(measured) >= 5
    for stated, found in measured:
        assert found == pytest.approx(stated, rel=0.08)


def test_values_air_fat_and_bone_of_a_whole_scan(patients: list[PhantomCase]) -> None:
    for case in patients:
        assert case.hu.dtype == np.int16
        assert case.labels.dtype == np.uint8
        assert case.hu.shape == case.labels.shape == case.grid.shape[::-1]
        assert case.hu.min() >= -1024
        assert case.hu.max() <= 3071
        assert case.hu.max() > 600
        air = case.hu[case.labels == 0]
        assert np.percentile(air, 75) < -900
        body = case.hu[case.labels == ORGANS["body"]]
        assert np.mean((body > -140) & (body < -60)) > 0.1
        assert np.mean((body > 0) & (body < 100)) > 0.2


def test_outside_the_reconstruction_circle_is_plain(patients: list[PhantomCase]) -> None:
    circular = [c for c in patients if c.parameters.scan.circular]
    square = [c for c in patients if not c.parameters.scan.circular]
    assert circular
    assert square
    corners = [np.ix_((0, -1), (0, -1), (0, -1))]
    assert all((c.hu[where] == -1024).all() for c in circular for where in corners)
    assert any((c.hu[where] != -1024).any() for c in square for where in corners)
    for case in circular:
        # The circle touches the sides of the square, so about pi/4 of the voxels lie inside.
        assert np.mean(case.hu > -1024) < np.pi / 4 + 0.01


def test_the_result_does_not_depend_on_the_slabs() -> None:
    parameters = sample_parameters(3, 1)
    args = (3, 1, parameters.patient, parameters.scan)
    whole, thin = render(*args), render(*args, slab_voxels=1)
    assert np.array_equal(whole.hu, thin.hu)
    assert np.array_equal(whole.labels, thin.labels)
    assert whole.landmarks == thin.landmarks


def test_seed_and_index_decide_everything() -> None:
    first, again, other = make_case(3, 2), make_case(3, 2), make_case(4, 2)
    assert first.parameters == again.parameters
    assert np.array_equal(first.hu, again.hu)
    assert np.array_equal(first.labels, again.labels)
    assert first.hu.shape != other.hu.shape or not np.array_equal(first.hu, other.hu)
