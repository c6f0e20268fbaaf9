"""The low-pass of a shrinking axis takes out what the grid cannot hold, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.nn import functional

from prect.ingest.harmonise import harmonise
from prect.ingest.lines import gaussian
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import Affine
from prect.phantom import ORGANS, make_case
from prect.units import Triple
from tests.ingest.grids import (
    LOW_PASS,
    geometry,
    inside,
    noise,
    sample,
    shrinking,
    turned,
    volume_of,
)
from tests.ingest.volumes import blob_volume, centre_of_mass

FRACTIONS = (1.05, 1.21, 4 / 3, 1.5, 1.67, 2.3, 3.5)


# What is kept


@settings(deadline=None, max_examples=50)
@given(
    value=st.integers(-1024, 3071),
    factors=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    degrees=st.sampled_from([0.0, 8.0]),
)
def test_a_constant_stays_constant(
    value: int, factors: tuple[float, float, float], degrees: float
) -> None:
    hu = np.full((16, 18, 20), value, dtype=np.int16)
    transform = shrinking(factors)
    transform[:3, :3] = (
        Rotation.from_euler("z", degrees, degrees=True).as_matrix() @ transform[:3, :3]
    )
    within = inside(transform, hu.shape, (9, 8, 7), margin=-0.49)
    assert set(np.unique(sample(hu, transform, (9, 8, 7))[within])) <= {value}


@pytest.mark.parametrize("factor", [2, 3, 4, 5, *FRACTIONS])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_stays_a_ramp(factor: float, axis: int) -> None:
    """Exact for whole factors; as the kernel is the usual one, 0.09 voxels astray for others."""
    slope = 40
    source = [8, 8, 8]
    source[2 - axis] = 90
    ramp = slope * np.arange(90, dtype=np.int16) - 1000
    hu = np.broadcast_to(np.expand_dims(ramp, [n for n in range(3) if n != 2 - axis]), source)
    factors = [1.0, 1.0, 1.0]
    factors[axis] = factor
    transform = shrinking((factors[0], factors[1], factors[2]))
    shape = [8, 8, 8]
    shape[2 - axis] = int(90 / factor)
    voxels = np.moveaxis(sample(hu, transform, (shape[0], shape[1], shape[2])), 2 - axis, 0)
    position = factor * np.arange(shape[2 - axis]) + (factor - 1) / 2
    far = (position > factor) & (position < 89 - factor)
    astray = 0.5 if factor == int(factor) else 0.5 + 0.09 * slope
    expected = slope * position - 1000
    assert np.abs(voxels - expected[:, None, None])[far].max() <= astray
    assert far.sum() > 10


def test_a_ramp_stays_a_ramp_in_an_oblique_volume() -> None:
    k, j, i = np.meshgrid(*[np.arange(48)] * 3, indexing="ij")
    hu = (10 * i - 15 * j + 20 * k).astype(np.int16)
    transform, shape = turned(2.0), (30, 30, 30)
    transform[:3, 3] = (0, 3, -8)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    position = np.stack([x, y, z], axis=-1) @ transform[:3, :3].T + transform[:3, 3]
    far = inside(transform, hu.shape, shape, margin=5.0)
    assert far.sum() > 1000
    difference = sample(hu, transform, shape) - position @ [10, -15, 20]
    assert np.abs(difference[far]).max() <= 0.6


@settings(deadline=None, max_examples=40)
@given(
    source=st.tuples(*[st.integers(40, 60)] * 3),
    shares=st.tuples(*[st.floats(0.25, 1.0)] * 3),
    waves=st.tuples(*[st.integers(0, 2)] * 3),
    base=st.integers(-200, 200),
)
def test_the_mean_of_a_smooth_volume_is_kept(
    source: Triple, shares: tuple[float, float, float], waves: Triple, base: int
) -> None:
    """Up to two half waves along each axis, on a grid with the same edges."""
    grid = [round(n * share) for n, share in zip(source, shares, strict=True)]
    wave = np.ones(())
    for n, count in zip(source, waves, strict=True):
        wave = np.multiply.outer(wave, np.cos(np.pi * count * (np.arange(n) + 0.5) / n))
    hu = np.rint(base + 200 * wave).astype(np.int16)
    z, y, x = (n / m for n, m in zip(source, grid, strict=True))
    voxels = sample(hu, shrinking((x, y, z)), (grid[0], grid[1], grid[2]))
    assert abs(voxels.mean() - hu.mean()) < 0.5


@pytest.mark.parametrize(
    "affine",
    [
        geometry((0.7, 0.9, 0.6)),
        geometry((-0.7, 0.9, -1.3)),
        geometry((0.8, 0.8, 0.8), degrees=15.0),
        geometry((0.7, 0.7, 1.1), tilt=0.4),
    ],
    ids=["straight", "flipped", "turned", "tilted"],
)
def test_a_landmark_stays_within_a_quarter_of_a_voxel(affine: Affine) -> None:
    for offset in ((0.0, 0.0, 0.0), (2.3, -1.9, 0.8), (-0.4, 3.1, -2.2)):
        landmark = affine[:3, :3] @ np.array((29.5, 30.5, 28.5)) + offset
        hu = blob_volume((60, 62, 58), affine, landmark, sigma_mm=3.0)
        result = harmonise(volume_of(hu, affine), LOW_PASS)
        found = centre_of_mass(result.voxels, result.affine)
        assert np.abs(found - landmark).max() < 1.5 / 4


@pytest.mark.parametrize("index", [0, 1])
def test_organs_of_a_phantom_stay_where_they_are(index: int) -> None:
    """Each organ alone in air, as the labels of a case say: turned, and straight."""
    case = make_case(1, index)
    whole = {name: mark for name, mark in case.landmarks.items() if mark.whole}
    assert len(whole) >= 2
    coarse = Harmonisation(spacing_mm=(5.0, 5.0, 7.0), body_crop=False, low_pass=True)
    for name, mark in whole.items():
        hu = np.where(case.labels == ORGANS[name], 40, -1024).astype(np.int16)
        result = harmonise(volume_of(hu, case.affine), coarse)
        off = np.abs(centre_of_mass(result.voxels, result.affine) - mark.centroid)
        assert (off < np.array(coarse.spacing_mm) / 4).all(), name


# What is taken out


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("period", [2.5, 3.0, 4.0, 12.0, 40.0])
def test_a_wave_is_weakened_as_the_kernel_says(period: float, axis: int) -> None:
    """A triangle of three times the width, at whole positions, is a running mean of 3 twice."""
    omega = 2 * np.pi / period
    response = (np.sin(1.5 * omega) / (3 * np.sin(omega / 2))) ** 2
    assert (response < 0.12) if period < 6 else (response > 0.8)  # six voxels: the grid's Nyquist
    wave = np.rint(1000 * np.cos(omega * np.arange(90) + 0.3))
    source, shape, factors = [6, 6, 6], [6, 6, 6], [1.0, 1.0, 1.0]
    source[2 - axis], shape[2 - axis], factors[axis] = 90, 30, 3.0
    hu = np.empty(source, dtype=np.int16)
    np.moveaxis(hu, 2 - axis, 2)[...] = wave
    transform = shrinking((factors[0], factors[1], factors[2]))
    filtered, plain = (
        np.moveaxis(
            sample(hu, transform, (shape[0], shape[1], shape[2]), low_pass=low_pass), 2 - axis, 2
        )
        for low_pass in (True, False)
    )
    expected = 1000 * np.cos(omega * (3 * np.arange(30) + 1) + 0.3)
    assert np.abs(plain - expected).max() <= 0.6
    assert np.abs(filtered - response * expected)[:, :, 1:-1].max() <= 1.0


@pytest.mark.parametrize("factors", [(2, 2, 2), (3, 1, 2), (1, 4, 1), (5, 5, 1)])
def test_agrees_with_antialiased_resizing_of_torch(factors: Triple) -> None:
    same_as_torch(factors, (30 * factors[2], 20 * factors[1], 16 * factors[0]), (30, 20, 16))


@pytest.mark.parametrize("factor", FRACTIONS)
def test_agrees_with_torch_for_fractions_too(factor: float) -> None:
    z, y, x = 20, 24, 28
    source = (round(z * factor), round(y * factor), x)
    same_as_torch((1, source[1] / y, source[0] / z), source, (z, y, x))


def same_as_torch(factors: tuple[float, float, float], source: Triple, shape: Triple) -> None:
    """Within 1 HU where no border is near; torch leaves out what lies beyond it."""
    hu = noise(source)
    # Its antialiased resizing is of planes: first those of y and x, then those of z and y.
    planes = torch.from_numpy(hu.astype(np.float64))[None]
    planes = functional.interpolate(planes, shape[1:], mode="bilinear", antialias=True)
    planes = planes.transpose(1, 3)
    planes = functional.interpolate(planes, (shape[1], shape[0]), mode="bilinear", antialias=True)
    theirs = planes.transpose(1, 3)[0].numpy()
    transform = shrinking(factors)
    far = inside(transform, source, shape, margin=-0.5)
    for axis, factor in enumerate(factors):
        if factor > 1:
            position = factor * np.arange(shape[2 - axis]) + (factor - 1) / 2
            near = (position < factor) | (position > source[2 - axis] - 1 - factor)
            np.moveaxis(far, 2 - axis, 0)[near] = False
    assert far.mean() > 0.4
    assert np.abs(sample(hu, transform, shape) - theirs)[far].max() <= 1.0


@pytest.mark.parametrize("factor", [1.3, 2.0, 2.6])
def test_noise_falls_as_the_weights_say(factor: float) -> None:
    """Standard deviation of white noise: the root of the sum of squared weights, per axis."""
    rng = np.random.default_rng(4)
    hu = np.rint(rng.normal(0, 200, (64, 66, 68))).astype(np.int16)
    shape = tuple(int(n / factor) for n in hu.shape)
    voxels = sample(hu, shrinking((factor,) * 3), (shape[0], shape[1], shape[2]))
    expected = 200.0
    for size in shape:
        distance = np.subtract.outer(
            factor * np.arange(size) + (factor - 1) / 2, np.arange(-20, 100)
        )
        weights = np.maximum(0, 1 - np.abs(distance) / factor)
        weights /= weights.sum(axis=1, keepdims=True)
        expected *= np.sqrt((weights**2).sum(axis=1).mean())
    assert voxels[2:-2, 2:-2, 2:-2].std() == pytest.approx(expected, rel=0.05)


def test_noise_of_an_oblique_volume_falls_alike() -> None:
    """By the same variance: the Gaussian and linear interpolation, over all positions."""
    rng = np.random.default_rng(4)
    hu = np.rint(rng.normal(0, 200, (64, 64, 64))).astype(np.int16)
    transform, shape = turned(2.0), (30, 30, 30)
    transform[:3, 3] = (0, 3, -8)
    within = inside(transform, hu.shape, shape, margin=4.0)
    assert within.sum() > 3000
    kernel = gaussian((2.0**2 - 1) / 6)
    share = np.linspace(0, 1, 101)[:, None]
    mixed = (1 - share) * np.append(kernel, 0) + share * np.append(0, kernel)
    expected = 200 * np.sqrt((mixed**2).sum(axis=1).mean()) ** 3
    assert sample(hu, transform, shape)[within].std() == pytest.approx(expected, rel=0.05)
    plain = sample(hu, transform, shape, low_pass=False)[within].std()
    assert plain > 2 * expected


@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_only_the_axes_that_shrink_are_smoothed(degrees: float) -> None:
    """A volume that changes along y and z alone, of which only x shrinks."""
    hu = np.repeat(noise((20, 22, 1)), 40, axis=2)
    transform = shrinking((2.0, 1.0, 0.75))
    # Turned about x; the spacing along z then mixes with that along y, and both are below 1.
    if degrees:
        transform[1, 1] = 0.9
        turn = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
        transform[:3, :3] = turn @ transform[:3, :3]
    smooth = sample(hu, transform, (20, 20, 20))
    plain = sample(hu, transform, (20, 20, 20), low_pass=False)
    assert (plain > -1024).mean() > 0.5
    assert np.abs(smooth - plain).max() <= (1 if degrees else 0)
