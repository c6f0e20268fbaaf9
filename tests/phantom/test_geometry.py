"""The grid: exact in every format, right-handed, and varied as promised."""

from __future__ import annotations

from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prect.errors import ConfigError
from prect.phantom import SIZES, Grid, Size, sample_parameters
from prect.phantom.dicom import decimal_string
from prect.phantom.grid import EXACT_ANGLES, RIGHT_HANDED_CODES, build_grid, rotation_about

seeds = st.integers(0, 2**64 - 1)
indices = st.integers(0, 10_000)
sizes = st.sampled_from(SIZES)


def is_milli(value: float) -> bool:
    """Whether a number is the double closest to a multiple of 0.001."""
    return value == round(value, 3)


def corner_in_closest_ras(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """RAS mm of the most left, posterior, inferior voxel."""
    turn = nib.orientations.inv_ornt_aff(nib.orientations.io_orientation(affine), shape)
    corner: np.ndarray = (affine @ turn)[:3, 3]
    return corner


@given(seeds, indices, sizes)
def test_geometry_survives_float32_and_decimal_strings(seed: int, index: int, size: Size) -> None:
    scan = sample_parameters(seed, index, size).scan
    grid = scan.grid
    assert all(is_milli(s) for s in grid.spacing)
    assert all(is_milli(c) for c in scan.corner)
    assert np.array_equal(
        np.round(np.array(grid.spacing, np.float32).astype(float), 3), grid.spacing
    )
    for affine in (grid.affine, grid.affine.astype(np.float32).astype(float)):
        corner = np.round(corner_in_closest_ras(affine, grid.shape), 3)
        assert np.array_equal(corner, scan.corner)
    step = np.array(grid.direction)[:, 2] * grid.spacing[2]
    numbers = [*grid.origin, *(np.array(grid.origin) + (grid.shape[2] - 1) * step)]
    for number in [*numbers, *np.ravel(grid.direction), *grid.spacing]:
        text = decimal_string(float(number))
        assert len(text) <= 16
        assert float(text) == pytest.approx(number, abs=1e-9)


@given(seeds, indices, sizes)
def test_directions_are_exact_rotations_about_one_axis(seed: int, index: int, size: Size) -> None:
    scan = sample_parameters(seed, index, size).scan
    direction = np.array(scan.grid.direction)
    assert np.linalg.det(direction) == pytest.approx(1, abs=1e-9)
    assert np.abs(direction.T @ direction - np.eye(3)).max() < 1e-9
    assert np.array_equal(direction, np.round(direction, 5))
    assert {abs(v) for v in direction.ravel()} <= {v for pair in EXACT_ANGLES for v in pair}
    assert "".join(nib.aff2axcodes(scan.grid.affine)) == scan.grid.codes


@given(
    st.sampled_from(RIGHT_HANDED_CODES),
    st.tuples(*[st.integers(2, 600)] * 3),
    st.tuples(*[st.integers(500, 5000)] * 3),
    st.integers(0, 2),
    st.sampled_from(EXACT_ANGLES),
)
def test_index_order_does_not_move_voxels(
    codes: str,
    shape: tuple[int, int, int],
    spacing_um: tuple[int, int, int],
    axis: int,
    angle: tuple[float, float],
) -> None:
    spacing = (spacing_um[0] / 1000, spacing_um[1] / 1000, spacing_um[2] / 1000)
    rotation = rotation_about(axis, *angle)

    def corners(grid: Grid) -> set[tuple[float, ...]]:
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape])).reshape(3, -1)
        points = grid.affine[:3, :3] @ ends + grid.affine[:3, 3:]
        return {tuple(np.round(p, 4) + 0.0) for p in points.T}

    reference = build_grid("RAS", shape, spacing, rotation, (1.5, -20.25, 300.125))
    turned = build_grid(codes, shape, spacing, rotation, (1.5, -20.25, 300.125))
    assert corners(turned) == corners(reference)
    assert turned.shape[turned.axis_of(2)] == shape[2]


def test_cases_vary_and_most_are_axis_aligned() -> None:
    scans = [sample_parameters(5, index).scan for index in range(400)]
    assert {s.region for s in scans} == {"chest", "abdomen", "trunk"}
    assert {s.phase for s in scans} == {"native", "arterial", "venous"}
    assert {s.grid.codes for s in scans} == set(RIGHT_HANDED_CODES)
    assert {s.circular for s in scans} == {True, False}
    aligned = Counter(s.rotation_cos_sin[0] for s in scans)
    assert aligned[1.0] >= 0.7 * len(scans)
    assert 0 < aligned[0.96] < 0.1 * len(scans)
    assert all(8 <= s.noise <= 30 for s in scans)


@pytest.mark.parametrize(
    ("size", "pixels", "in_plane", "slices", "thickness"),
    [
        ("small", (128, 176), (2.2, 3.0), (60, 140), (2.5, 5.0)),
        ("clinical", (512, 512), (0.6, 0.9), (80, 600), (0.8, 5.0)),
    ],
)
def test_sizes_stay_in_range(
    size: Size,
    pixels: tuple[int, int],
    in_plane: tuple[float, float],
    slices: tuple[int, int],
    thickness: tuple[float, float],
) -> None:
    for index in range(200):
        grid = sample_parameters(5, index, size).scan.grid
        axes = [grid.axis_of(axis) for axis in range(3)]
        shape = [grid.shape[axis] for axis in axes]
        spacing = [grid.spacing[axis] for axis in axes]
        assert all(pixels[0] <= n <= pixels[1] for n in shape[:2])
        assert all(in_plane[0] <= s <= in_plane[1] for s in spacing[:2])
        assert slices[0] <= shape[2] <= slices[1]
        assert thickness[0] <= spacing[2] <= thickness[1]


def test_the_same_patient_at_every_size() -> None:
    small, clinical = (sample_parameters(1, 4, size) for size in SIZES)
    assert small.patient == clinical.patient
    assert small.scan != clinical.scan
    assert sample_parameters(1, 5).patient != small.patient
    assert sample_parameters(2, 4).patient != small.patient


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (2**64, 0), (0, -1)])
def test_numbers_out_of_range_are_refused(seed: int, index: int) -> None:
    with pytest.raises(ConfigError, match="expected 0 to"):
        sample_parameters(seed, index)


def test_unknown_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="small, clinical"):
        sample_parameters(0, 0, "huge")  # type: ignore[arg-type]
