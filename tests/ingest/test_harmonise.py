"""Harmonisation keeps every place where it is, whatever the file's axes were."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from prect.errors import VolumeError
from prect.ingest.harmonise import body_box, harmonise
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import Volume, canonical_affine, clean_affine, shear_of
from tests.ingest.volumes import blob_volume, centre_of_mass

WHOLE = Harmonisation(spacing_mm=(1.5, 1.5, 1.5), body_crop=False)
SHAPE = (30, 34, 26)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any axis order, any flips, a rotation up to 30 degrees, spacing 1.2 to 4 mm, any origin."""
    order = draw(st.sampled_from(list(permutations(range(3)))))
    signs = [draw(st.sampled_from([-1, 1])) for _ in range(3)]
    axes = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        axes[row, column] = sign
    degrees = [draw(st.floats(-30, 30)) for _ in range(3)]
    rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    spacing = [draw(st.floats(1.2, 4.0)) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes * spacing
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


@settings(deadline=None, max_examples=60)
@given(affine=affines(), offset=st.tuples(*[st.floats(-4, 4)] * 3))
def test_a_landmark_stays_within_half_a_voxel(
    affine: np.ndarray, offset: tuple[float, float, float]
) -> None:
    middle = affine[:3, :3] @ (np.array(SHAPE) - 1) / 2 + affine[:3, 3]
    landmark = middle + offset
    volume = Volume(blob_volume(SHAPE, affine, landmark, sigma_mm=4.0), affine, "nifti")
    result = harmonise(volume, WHOLE)
    found = centre_of_mass(result.voxels, result.affine)
    assert np.abs(found - landmark).max() < 0.75
    assert result.spacing == (1.5, 1.5, 1.5)
    np.testing.assert_allclose(result.affine[:3, :3], np.diag([1.5] * 3))


@settings(deadline=None, max_examples=30)
@given(affine=affines(), tilt=st.floats(0.05, 0.4))
def test_a_sheared_volume_is_straightened(affine: np.ndarray, tilt: float) -> None:
    """A gantry tilt: slices are displaced along a row, as their positions say."""
    sheared = affine.copy()
    sheared[:3, 2] += tilt * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    assert shear_of(sheared) > 0.01
    middle = sheared[:3, :3] @ (np.array(SHAPE) - 1) / 2 + sheared[:3, 3]
    volume = Volume(blob_volume(SHAPE, sheared, middle, sigma_mm=4.0), sheared, "dicom")
    result = harmonise(volume, WHOLE)
    assert np.abs(centre_of_mass(result.voxels, result.affine) - middle).max() < 0.75


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(3)), signs=st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_the_files_index_order_does_not_change_a_voxel(
    order: list[int], signs: tuple[int, int, int]
) -> None:
    """The same scan with its axes permuted and flipped gives the same store, bit for bit."""
    affine = np.diag([1.1, 1.3, 2.7, 1.0])
    affine[:3, 3] = (-20.5, 3.25, 100.125)
    hu = np.random.default_rng(1).integers(-1024, 2000, (20, 22, 24)).astype(np.int16)
    straight = harmonise(Volume(hu, affine, "nifti"), WHOLE)

    moved = hu.transpose(2, 1, 0).transpose(order)
    other = np.eye(4)
    other[:3, :3] = affine[:3, order]
    other[:3, 3] = affine[:3, 3]
    for axis, sign in enumerate(signs):
        if sign < 0:
            moved = np.flip(moved, axis)
            other[:3, 3] += other[:3, axis] * (moved.shape[axis] - 1)
            other[:3, axis] *= -1
    turned = harmonise(Volume(np.ascontiguousarray(moved.transpose(2, 1, 0)), other, "nrrd"), WHOLE)
    np.testing.assert_array_equal(turned.voxels, straight.voxels)
    np.testing.assert_array_equal(turned.affine, straight.affine)


def test_rounding_of_a_file_format_does_not_change_a_voxel() -> None:
    affine = np.diag([-0.976562, -0.976562, 2.5, 1.0])
    affine[:3, 3] = (249.123, 200.5, -301.377)
    hu = np.random.default_rng(1).integers(-1024, 2000, (20, 40, 40)).astype(np.int16)
    exact = harmonise(Volume(hu, affine, "dicom"), WHOLE)
    rounded = harmonise(Volume(hu, affine.astype(np.float32).astype(float), "nifti"), WHOLE)
    np.testing.assert_array_equal(exact.voxels, rounded.voxels)
    np.testing.assert_array_equal(exact.affine, rounded.affine)


def test_a_volume_already_on_the_grid_is_only_reordered() -> None:
    affine = np.diag([-1.5, -1.5, 1.5, 1.0])
    hu = np.random.default_rng(1).integers(-1000, 2000, (20, 22, 24)).astype(np.int16)
    result = harmonise(Volume(hu, affine, "nifti"), WHOLE)
    np.testing.assert_array_equal(result.voxels, hu[:, ::-1, ::-1])


def test_padding_does_not_bleed_into_its_neighbours_and_hu_are_clipped() -> None:
    hu = np.full((20, 20, 20), 40, dtype=np.int16)
    hu[:, :, 10:] = -3024
    hu[:, :3] = 20_000
    result = harmonise(Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]), "nifti"), WHOLE)
    assert result.voxels.min() == -1024
    assert result.voxels.max() == 3071
    assert (result.voxels >= -1024).all()
    row = result.voxels[10, 20]
    assert set(np.unique(row[:12])) == {40}


def test_the_body_box_leaves_out_the_table() -> None:
    hu = np.full((60, 80, 80), -1000, dtype=np.int16)
    hu[10:50, 20:60, 25:65] = 40
    hu[5:55, 72:75, 10:75] = 0  # a table that does not touch
    settings_ = Harmonisation(spacing_mm=(2.0, 2.0, 2.0), body_margin_mm=6.0)
    z, y, x = body_box(hu, settings_)
    for found, (low, high) in zip((z, y, x), ((10, 50), (20, 60), (25, 65)), strict=True):
        assert low - 6 <= found.start <= low - 1
        assert high + 1 <= found.stop <= high + 6
    assert y.stop < 72


def test_a_volume_of_air_is_refused() -> None:
    air = Volume(np.full((30, 30, 30), -1000, dtype=np.int16), np.eye(4), "nifti")
    with pytest.raises(VolumeError, match=r"content\.no_body"):
        harmonise(air, Harmonisation(spacing_mm=(1.5, 1.5, 1.5)))


def test_a_tiny_shear_is_snapped_and_a_large_one_kept() -> None:
    rotation = Rotation.from_euler("z", 10, degrees=True).as_matrix()
    tiny, large = np.eye(4), np.eye(4)
    tiny[:3, :3] = rotation
    tiny[0, 1] += 4e-4
    large[:3, :3] = rotation
    large[0, 1] += 0.1
    assert shear_of(clean_affine(tiny)) < 1e-9
    assert shear_of(clean_affine(large)) > 0.05
    with pytest.raises(VolumeError, match=r"geometry\.invalid"):
        clean_affine(np.diag([1.0, 0.0, 1.0, 1.0]))


def test_canonical_order_is_ras() -> None:
    affine = np.array([[0, 0, -3.0, 10], [2.0, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1]])
    canonical, _ = canonical_affine(affine, (5, 6, 7))
    np.testing.assert_allclose(canonical[:3, :3], np.diag([3.0, 2.0, 1.5]))
    np.testing.assert_allclose(canonical[:3, 3], [10 - 3 * 6, 0, -1.5 * 5])
