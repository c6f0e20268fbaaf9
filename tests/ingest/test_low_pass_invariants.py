"""What a low-pass must leave alone: boxes, index orders, edges, padding, clipping, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from prect.ingest.harmonise import harmonise
from prect.ingest.lines import gaussian
from prect.ingest.resample import resampler
from prect.ingest.volume import Affine
from prect.units import Triple
from tests.ingest.grids import (
    LOW_PASS,
    PLAIN,
    geometry,
    inside,
    noise,
    sample,
    shrinking,
    turned,
    volume_of,
)
from tests.ingest.volumes import body_volume


@settings(deadline=None, max_examples=25)
@given(
    factors=st.tuples(*[st.floats(0.2, 1.0)] * 3),
    degrees=st.sampled_from([0.0, 7.0]),
    offset=st.floats(-3, 3),
)
def test_nothing_changes_where_nothing_shrinks(
    factors: tuple[float, float, float], degrees: float, offset: float
) -> None:
    transform = np.diag([*factors, 1.0])
    turn = Rotation.from_euler("xy", [degrees, degrees], degrees=True).as_matrix()
    transform[:3, :3] = turn @ transform[:3, :3]
    transform[:3, 3] = offset
    hu = noise((12, 13, 14))
    smooth, plain = (
        sample(hu, transform, (11, 12, 13), low_pass=low_pass) for low_pass in (True, False)
    )
    np.testing.assert_array_equal(smooth, plain)


@pytest.mark.parametrize("degrees", [0.0, 9.0])
def test_a_voxel_is_the_same_in_every_box(degrees: float) -> None:
    hu = noise((60, 66, 50))
    transform = shrinking((1.7, -2.4, 3.1))
    transform[1, 3] = 65
    turn = Rotation.from_euler("xz", [degrees, degrees], degrees=True).as_matrix()
    transform[:3, :3] = turn @ transform[:3, :3]
    shape = (18, 26, 28)
    sampler = resampler(hu, transform, shape, low_pass=True)
    whole = sampler.sample((slice(0, 18, 1), slice(0, 26, 1), slice(0, 28, 1)))
    for box in (
        (slice(3, 17, 1), slice(2, 9, 1), slice(11, 12, 1)),
        (slice(1, 18, 3), slice(0, 26, 5), slice(5, 28, 2)),
    ):
        assert (whole[box] > -1024).mean() > 0.5
        np.testing.assert_array_equal(sampler.sample(box), whole[box])


@settings(deadline=None, max_examples=20)
@given(
    # By 6 along one axis alone, a sum in a few dozen lies halfway between two integers.
    spacing=st.sampled_from([(0.61, 0.83, 0.47), (0.25, 1.5, 1.5), (1.5, 1.5, 0.25)]),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
)
def test_the_files_index_order_does_not_change_a_voxel(
    spacing: tuple[float, float, float], order: list[int], signs: Triple
) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20.5, 3.25, 100.125)
    hu = noise((40, 36, 42))
    straight = harmonise(volume_of(hu, affine), LOW_PASS)
    moved, other = turned_round(hu, affine, order, signs)
    result = harmonise(volume_of(moved, other), LOW_PASS)
    np.testing.assert_array_equal(result.voxels, straight.voxels)


def test_the_index_order_of_an_oblique_file_hardly_changes_a_voxel() -> None:
    """float32 sums in another order: now and then a value is rounded the other way."""
    affine = geometry((0.61, 0.83, 0.47), degrees=9.0)
    hu = noise((40, 36, 42))
    straight = harmonise(volume_of(hu, affine), LOW_PASS)
    for order, signs in (([2, 0, 1], (1, -1, 1)), ([0, 2, 1], (-1, -1, -1))):
        moved, other = turned_round(hu, affine, order, signs)
        result = harmonise(volume_of(moved, other), LOW_PASS)
        difference = np.abs(result.voxels - straight.voxels)
        # At the very edge, rounding decides whether a voxel lies outside.
        assert (difference > 1).mean() < 1e-3
        assert (difference > 0).mean() < 0.02


def turned_round(
    hu: NDArray[np.int16], affine: Affine, order: list[int], signs: Triple
) -> tuple[NDArray[np.int16], Affine]:
    """The same scan with its axes (i, j, k) in another order, some of them reversed."""
    moved = hu.transpose(2, 1, 0).transpose(order)
    other = affine.copy()
    other[:3, :3] = affine[:3, order]
    for axis, sign in enumerate(signs):
        if sign < 0:
            moved = np.flip(moved, axis)
            other[:3, 3] += other[:3, axis] * (moved.shape[axis] - 1)
            other[:3, axis] *= -1
    return np.ascontiguousarray(moved.transpose(2, 1, 0)), other


@pytest.mark.parametrize("degrees", [0.0, 6.0])
def test_the_box_of_the_body_is_the_same_with_and_without(degrees: float) -> None:
    hu = body_volume((90, 84, 78))
    # Beside the body, single voxels above its threshold that no filter would leave there.
    hu[:, :, 60:] = np.random.default_rng(1).normal(-750, 300, hu[:, :, 60:].shape)
    affine = geometry((0.7, 0.8, 0.9), degrees=degrees)
    crop = {"body_crop": True, "body_margin_mm": 3.0}
    without = harmonise(volume_of(hu, affine), PLAIN.model_copy(update=crop))
    with_ = harmonise(volume_of(hu, affine), LOW_PASS.model_copy(update=crop))
    assert with_.voxels.shape != with_.full_shape
    assert with_.box_offset == without.box_offset
    assert with_.full_shape == without.full_shape
    np.testing.assert_array_equal(with_.affine, without.affine)
    assert with_.voxels.shape == without.voxels.shape
    assert with_.voxels.std() < without.voxels.std()
    whole = harmonise(volume_of(hu, affine), LOW_PASS)
    box = tuple(
        slice(start, start + size)
        for start, size in zip(with_.box_offset, with_.voxels.shape, strict=True)
    )
    np.testing.assert_array_equal(with_.voxels, whole.voxels[box])


# Edges, padding and what is stored


@pytest.mark.parametrize("degrees", [0.0, 5.0])
def test_the_edge_is_repeated_beyond_the_border(degrees: float) -> None:
    """The same as a volume that goes on; and air where a sample itself lies outside."""
    hu, margin = noise((24, 26, 28)), 12
    transform = shrinking((2.3, 3.0, 1.6))
    turn = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    transform[:3, :3] = turn @ transform[:3, :3]
    transform[:3, 3] -= 3.0
    onward = transform.copy()
    onward[:3, 3] += margin
    shape = (20, 12, 16)
    voxels = sample(hu, transform, shape)
    padded = sample(np.pad(hu, margin, mode="edge"), onward, shape)
    within = inside(transform, hu.shape, shape, margin=-0.499)
    assert 0.3 < within.mean() < 0.9
    # ITK repeats no edge that it interpolates over, so that only its whole cells compare.
    compared = inside(transform, hu.shape, shape, margin=0.0) if degrees else within
    np.testing.assert_array_equal(voxels[compared], padded[compared])
    assert (voxels[~inside(transform, hu.shape, shape, margin=-0.501)] == -1024).all()


@pytest.mark.parametrize("degrees", [0.0, 5.0])
def test_padding_is_air_before_the_filter(degrees: float) -> None:
    hu = np.full((30, 30, 30), 40, dtype=np.int16)
    hu[:, :, 17:] = -1024
    padded = hu.copy()
    padded[:, :, 17:] = -3024
    affine = geometry((0.7, 0.7, 0.7), degrees=degrees)
    expected = harmonise(volume_of(hu, affine), LOW_PASS).voxels
    result = harmonise(volume_of(padded, affine), LOW_PASS).voxels
    np.testing.assert_array_equal(result, expected)
    assert ((expected > -1000) & (expected < 20)).any()
    assert padded.min() == -3024


@pytest.mark.parametrize("peak", [3500, 20_000, 32_767])
def test_values_are_clipped_once_at_the_end(peak: int) -> None:
    hu = np.full((27, 27, 27), -1024, dtype=np.int16)
    hu[13, 13, 13] = peak
    voxels = sample(hu, shrinking((3.0, 3.0, 3.0)), (9, 9, 9))
    # A voxel at the centre of the kernel weighs a third along each axis.
    assert voxels[4, 4, 4] == round(-1024 + (peak + 1024) / 27)
    hu[:] = peak
    assert sample(hu, shrinking((3.0, 3.0, 3.0)), (9, 9, 9)).max() == 3071
    assert sample(hu, turned(3.0), (9, 9, 9)).max() == 3071


@pytest.mark.parametrize("peak", [2000, 20_000, 32_767])
def test_an_oblique_volume_is_clipped_once_too(peak: int) -> None:
    """A thin bright plate, wide enough for a value of its profile to be known."""
    hu = np.full((40, 40, 41), -1024, dtype=np.int16)
    hu[:, :, 20] = peak
    transform = np.diag([1.0, 1.0, 1.0, 1.0])
    transform[:3, :3] = Rotation.from_euler("x", 30, degrees=True).as_matrix() @ np.diag(
        [3.0, 1, 1]
    )
    transform[:3, 3] = (2, 0, 0)
    kernel = gaussian((3.0**2 - 1) / 6)
    weight = kernel[len(kernel) // 2]
    voxels = sample(hu, transform, (20, 20, 13))
    assert voxels[0, 10, 6] == min(3071, round(-1024 + (peak + 1024) * weight))


@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_memory_is_that_of_linear_interpolation_and_some_planes(degrees: float) -> None:
    """Beyond the volume and the result; ITK's image, another volume, is not counted."""
    hu = noise((150, 160, 170))
    hu[:3] = -2000
    hu.flags.writeable = False
    affine = geometry((0.8, 0.8, 0.4), degrees=degrees)
    tracemalloc.start()
    result = harmonise(volume_of(hu, affine), LOW_PASS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < result.voxels.nbytes + 0.5 * hu.nbytes
