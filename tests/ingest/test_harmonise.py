"""Harmonisation keeps every place where it is, whatever the file's axes were."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from prect.errors import VolumeError
from prect.ingest.body import body_box, search_steps
from prect.ingest.harmonise import Harmonised, harmonise
from prect.ingest.resample import resampler
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import Affine, Volume, canonical_affine, clean_affine, shear_of
from tests.ingest.volumes import blob_volume, centre_of_mass

WHOLE = Harmonisation(spacing_mm=(1.5, 1.5, 1.5), body_crop=False)
SHAPE = (30, 34, 26)


def volume_of(hu: NDArray[np.int16], affine: Affine) -> Volume:
    return Volume(hu, affine, "nifti", source_digest="")


def noise(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """(k, j, i) HU that differ from voxel to voxel as much as HU can."""
    return np.random.default_rng(1).integers(-1024, 3072, shape[::-1]).astype(np.int16)


def direct(volume: Volume, result: Harmonised) -> NDArray[np.float32]:
    """The volume resampled by SimpleITK onto the grid of a result, with its own geometry."""
    image = sitk.GetImageFromArray(volume.voxels)
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((lps @ volume.affine[:3, 3]).tolist())
    image.SetDirection((lps @ volume.affine[:3, :3] / spacing).ravel().tolist())
    resampled = sitk.Resample(
        image,
        result.voxels.shape[::-1],
        sitk.Transform(),
        sitk.sitkLinear,
        (lps @ result.affine[:3, 3]).tolist(),
        result.spacing[::-1],
        lps.ravel().tolist(),
        -1024.0,
        sitk.sitkFloat32,
    )
    values: NDArray[np.float32] = sitk.GetArrayFromImage(resampled)
    return values


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
    volume = volume_of(blob_volume(SHAPE, affine, landmark, sigma_mm=4.0), affine)
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
    volume = volume_of(blob_volume(SHAPE, sheared, middle, sigma_mm=4.0), sheared)
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
    straight = harmonise(volume_of(hu, affine), WHOLE)

    moved = hu.transpose(2, 1, 0).transpose(order)
    other = np.eye(4)
    other[:3, :3] = affine[:3, order]
    other[:3, 3] = affine[:3, 3]
    for axis, sign in enumerate(signs):
        if sign < 0:
            moved = np.flip(moved, axis)
            other[:3, 3] += other[:3, axis] * (moved.shape[axis] - 1)
            other[:3, axis] *= -1
    turned = harmonise(volume_of(np.ascontiguousarray(moved.transpose(2, 1, 0)), other), WHOLE)
    np.testing.assert_array_equal(turned.voxels, straight.voxels)
    np.testing.assert_array_equal(turned.affine, straight.affine)


def test_rounding_of_a_file_format_does_not_change_a_voxel() -> None:
    affine = np.diag([-0.976562, -0.976562, 2.5, 1.0])
    affine[:3, 3] = (249.123, 200.5, -301.377)
    hu = np.random.default_rng(1).integers(-1024, 2000, (20, 40, 40)).astype(np.int16)
    exact = harmonise(volume_of(hu, affine), WHOLE)
    rounded = harmonise(volume_of(hu, affine.astype(np.float32).astype(float)), WHOLE)
    np.testing.assert_array_equal(exact.voxels, rounded.voxels)
    np.testing.assert_array_equal(exact.affine, rounded.affine)


@settings(deadline=None, max_examples=40)
@given(
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.4, 5.0)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_axis_aligned_volumes_agree_with_simpleitk(
    order: list[int],
    signs: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
) -> None:
    affine = np.eye(4)
    # All of a thousandth: the rounding of `canonical_affine` then moves nothing.
    affine[:3, :3] = np.eye(3)[:, order] * signs * np.round(spacing, 3)
    affine[:3, 3] = np.round(origin, 3)
    # 4095 HU from one voxel to the next: a thousandth of a voxel astray would show.
    volume = volume_of(noise((24, 18, 21)), affine)
    result = harmonise(volume, WHOLE)
    assert np.abs(result.voxels - direct(volume, result)).max() <= 0.6


@settings(deadline=None, max_examples=20)
@given(affine=affines(), tilt=st.floats(0, 0.4))
def test_oblique_and_sheared_volumes_agree_with_simpleitk(affine: np.ndarray, tilt: float) -> None:
    affine[:3, 2] += tilt * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    agrees_with_simpleitk(affine)


def test_a_little_oblique_is_oblique() -> None:
    """A fifth of a voxel astray at the edge of the volume is seen."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("y", 0.4, degrees=True).as_matrix() * 2.5
    agrees_with_simpleitk(affine)


def agrees_with_simpleitk(affine: np.ndarray) -> None:
    affine = canonical_affine(affine, SHAPE)[0]  # rounded as harmonisation would
    middle = affine[:3, :3] @ (np.array(SHAPE) - 1) / 2 + affine[:3, 3]
    hu = blob_volume(SHAPE, affine, middle, sigma_mm=15.0)
    assert (hu > -900).mean() > 0.05
    volume = volume_of(hu, affine)
    result = harmonise(volume, WHOLE)
    different = np.abs(result.voxels - direct(volume, result)) > 0.6
    # At the very edge of the volume, rounding decides whether a voxel lies outside.
    assert different.mean() < 1e-4


def test_a_voxel_is_the_same_in_every_box() -> None:
    hu = noise((40, 36, 50))
    shape = (70, 50, 54)
    aligned = np.diag([0.7, -0.7, 0.7, 1.0])
    aligned[:3, 3] = (0.21, 34.8, 0.1)
    turned = np.diag([0.7, 0.7, 0.7, 1.0])
    turned[:3, :3] @= Rotation.from_euler("xyz", [3, 5, 2], degrees=True).as_matrix()
    for transform in (aligned, turned):
        sampler = resampler(hu, transform, shape)
        whole = sampler.sample((slice(0, 70, 1), slice(0, 50, 1), slice(0, 54, 1)))
        box = (slice(9, 50, 2), slice(3, 40, 4), slice(17, 18, 1))
        assert (whole[box] > -1000).mean() > 0.8
        np.testing.assert_array_equal(sampler.sample(box), whole[box])


def test_beyond_the_edges_of_the_source_there_is_air() -> None:
    hu = np.full((10, 10, 10), 40, dtype=np.int16)
    beyond = np.eye(4)
    beyond[:3, 3] = (-1.25, -0.75, -0.25)
    turned = beyond.copy()
    turned[:3, :3] = Rotation.from_euler("z", 0.1, degrees=True).as_matrix()
    for transform in (beyond, turned):
        box = (slice(0, 13, 1), slice(0, 13, 1), slice(0, 13, 1))
        voxels = resampler(hu, transform, (13, 13, 13)).sample(box)
        # x: -1.25 and 9.75 lie outside; y: -0.75; z: none below, edges reach 9.5 in all.
        assert (voxels[:10, 1:11, 1:11] == 40).all()
        outside = np.ones_like(voxels, dtype=bool)
        outside[:10, 1:11, 1:11] = False
        assert (voxels[outside] == -1024).all()


def test_memory_is_the_result_and_some_planes() -> None:
    """Whatever the order of the axes in memory; the volume is neither copied nor changed."""
    for order in permutations(range(3)):
        affine = np.eye(4)
        affine[:3, :3] = np.diag([0.8, 0.8, 0.8])[:, order]
        hu = noise((160, 160, 160))
        hu[:3] = -2000
        hu.flags.writeable = False
        tracemalloc.start()
        result = harmonise(volume_of(hu, affine), WHOLE)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < result.voxels.nbytes + 0.3 * hu.nbytes


def test_a_volume_already_on_the_grid_is_only_reordered() -> None:
    affine = np.diag([-1.5, -1.5, 1.5, 1.0])
    hu = np.random.default_rng(1).integers(-1000, 2000, (20, 22, 24)).astype(np.int16)
    result = harmonise(volume_of(hu, affine), WHOLE)
    np.testing.assert_array_equal(result.voxels, hu[:, ::-1, ::-1])


def test_padding_does_not_bleed_into_its_neighbours_and_hu_are_clipped() -> None:
    hu = np.full((20, 20, 20), 40, dtype=np.int16)
    hu[:, :, 10:] = -3024
    hu[:, :3] = 20_000
    result = harmonise(volume_of(hu, np.diag([2.0, 2.0, 2.0, 1.0])), WHOLE)
    assert result.voxels.min() == -1024
    assert result.voxels.max() == 3071
    assert (result.voxels >= -1024).all()
    row = result.voxels[10, 20]
    assert set(np.unique(row[:12])) == {40}


def test_what_counts_as_padding() -> None:
    for value, becomes in ((-32768, -1024), (-1500, -1024), (-1499, -1024), (-900, -900)):
        hu = np.full((20, 20, 20), 40, dtype=np.int16)
        hu[:, :, :10] = value
        step = harmonise(volume_of(hu, np.diag([3.0, 3.0, 3.0, 1.0])), WHOLE).voxels[10, 10]
        assert set(step[:19]) == {becomes}
        # A quarter of the way; padding is air before the interpolation, noise of air is not.
        before = value if value > -1500 else -1024
        assert step[19] == max(-1024, round(before + 0.25 * (40 - before)))


def test_padding_of_an_oblique_volume_is_air() -> None:
    hu = np.full((20, 20, 40), 40, dtype=np.int16)
    hu[:, :, :10] = -3024
    transform = np.diag([0.25, 0.5, 0.5, 1.0])
    transform[:3, :3] = Rotation.from_euler("z", 1, degrees=True).as_matrix() @ transform[:3, :3]
    transform[:3, 3] = (0, 3, 3)
    box = (slice(0, 20, 1), slice(0, 20, 1), slice(0, 120, 1))
    voxels = resampler(hu, transform, (20, 20, 120)).sample(box)
    between = (voxels > -1024) & (voxels < 40)
    # Four samples a voxel: a slope from -3024 would be above air for a third of its way only.
    assert set(np.unique(between.sum(axis=2))) <= {3, 4}


@pytest.mark.parametrize("first", range(30, 36))
def test_the_margin_is_whole_wherever_the_body_begins(first: int) -> None:
    hu = np.full((80, 80, 80), -1000, dtype=np.int16)
    hu[first : first + 20, first : first + 20, first : first + 20] = 40
    settings_ = Harmonisation(spacing_mm=(1.0, 1.0, 1.0), body_margin_mm=4.0)
    for part in body_box(hu[::6, ::6, ::6], (80, 80, 80), settings_):
        assert first - 4 - 6 < part.start <= first - 4
        assert first + 20 + 4 <= part.stop < first + 20 + 4 + 6


def test_the_body_box_leaves_out_the_table() -> None:
    hu = np.full((60, 80, 80), -1000, dtype=np.int16)
    hu[10:50, 20:60, 25:65] = 40
    hu[5:55, 72:75, 10:75] = 0  # a table that does not touch
    settings_ = Harmonisation(spacing_mm=(2.0, 2.0, 2.0), body_margin_mm=6.0)
    every = tuple(slice(None, None, step) for step in search_steps(settings_))
    assert search_steps(settings_) == (3, 3, 3)
    z, y, x = body_box(hu[every], (60, 80, 80), settings_)
    for found, (low, high) in zip((z, y, x), ((10, 50), (20, 60), (25, 65)), strict=True):
        assert low - 6 <= found.start <= low - 1
        assert high + 1 <= found.stop <= high + 6
    assert y.stop < 72


def test_two_legs_are_one_body() -> None:
    hu = np.full((40, 60, 100), -1000, dtype=np.int16)
    hu[:, 20:40, 10:40] = 40
    hu[:, 20:40, 60:88] = 40
    settings_ = Harmonisation(spacing_mm=(6.0, 6.0, 6.0), body_margin_mm=6.0)
    box = body_box(hu, (40, 60, 100), settings_)
    assert [(part.start, part.stop) for part in box] == [(0, 40), (19, 41), (9, 89)]


def test_a_crop_is_a_part_of_the_whole() -> None:
    """The body is interpolated alone, and is the same to the bit."""
    hu = noise((60, 50, 40))
    hu[:, :, 32:] = hu[:, 35:] = hu[:10] = -1000
    affine = np.diag([-1.3, -1.4, 2.9, 1.0])
    whole = harmonise(volume_of(hu, affine), WHOLE)
    part = harmonise(volume_of(hu, affine), WHOLE.model_copy(update={"body_crop": True}))
    assert part.full_shape == whole.voxels.shape
    assert len({0, *part.box_offset}) == 4
    assert part.voxels.shape != whole.voxels.shape
    box = tuple(
        slice(start, start + size)
        for start, size in zip(part.box_offset, part.voxels.shape, strict=True)
    )
    np.testing.assert_array_equal(part.voxels, whole.voxels[box])
    offset = np.array(part.box_offset[::-1])
    np.testing.assert_allclose(part.affine[:3, 3], whole.affine[:3, 3] + 1.5 * offset, atol=1e-6)


def test_a_volume_of_air_is_refused() -> None:
    air = volume_of(np.full((30, 30, 30), -1000, dtype=np.int16), np.eye(4))
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
