"""Who is scanned and how: the parameters of a case, drawn from its own random stream.

Every draw comes from a Philox generator keyed by (seed, case index), so case 7 is the same
patient whether ten or ten thousand cases are asked for, in any order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prect.errors import ConfigError
from prect.phantom.grid import (
    EXACT_ANGLES,
    RIGHT_HANDED_CODES,
    FloatMatrix,
    Grid,
    build_grid,
    rotation_about,
)

Size = Literal["small", "clinical"]
Phase = Literal["native", "arterial", "venous"]
Region = Literal["chest", "abdomen", "trunk"]
Vector = tuple[float, float, float]

SIZES: tuple[Size, ...] = ("small", "clinical")
PHASES: tuple[Phase, ...] = ("native", "arterial", "venous")
REGIONS: tuple[Region, ...] = ("chest", "abdomen", "trunk")

# Organs whose place and size vary a little on their own, on top of the size of the body.
VARIABLE_ORGANS = (
    "heart",
    "liver",
    "spleen",
    "kidney_right",
    "kidney_left",
    "stomach",
    "bladder",
)

# Height of the point of the reference trunk that the pose turns about, mm above the pelvic floor.
PIVOT_HEIGHT = 320.0
# Half width of the reference trunk at its widest, without fat, mm.
REFERENCE_HALF_WIDTH = 160.0


class Stream(enum.IntEnum):
    """Independent random streams of one case."""

    PATIENT = 0
    SCAN = 1
    ANATOMY = 2
    NOISE = 3


def case_generator(seed: int, index: int, stream: Stream, plane: int = 0) -> np.random.Generator:
    """Random generator of one case, a pure function of its arguments.

    Args:
        seed: seed of the collection, 0 to 2**64 - 1.
        index: number of the case, 0 to 2**64 - 1.
        stream: what the numbers are for.
        plane: k index, for noise; each plane has its own numbers, so slabs may be of any size.

    Raises:
        ConfigError: seed or index is negative or too large.
    """
    for name, value in (("seed", seed), ("case index", index)):
        if not 0 <= value < 2**64:
            raise ConfigError(f"{name} is {value}, expected 0 to 2**64 - 1")
    key = np.array([seed, index], dtype=np.uint64)
    counter = np.array([0, 0, plane, int(stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class OrganVariation:
    """How one organ differs from the reference."""

    shift: Vector
    """Displacement in mm along x, y, z of the reference trunk."""
    scale: float
    """Factor on its three half axes."""


@dataclass(frozen=True)
class Patient:
    """A body, placed in the scanner's world (RAS mm)."""

    scale: Vector
    """Size relative to the reference trunk along x, y, z."""
    fat: float
    """Thickness of the fat under the skin at the belly, mm of the reference trunk."""
    breasts: bool
    """Whether the chest carries breasts."""
    translation: Vector
    """RAS mm of the pivot, a point in the middle of the trunk."""
    rotation_degrees: Vector
    """Rotation about x, then y, then z."""
    organs: dict[str, OrganVariation]
    """Variation by name, see `VARIABLE_ORGANS`."""

    @property
    def rotation(self) -> FloatMatrix:
        """(3, 3) rotation from the axes of the body to RAS."""
        matrix = np.eye(3)
        for axis, degrees in enumerate(self.rotation_degrees):
            angle = np.deg2rad(degrees)
            matrix = rotation_about(axis, float(np.cos(angle)), float(np.sin(angle))) @ matrix
        return matrix

    @property
    def affine(self) -> FloatMatrix:
        """4x4 matrix from reference trunk coordinates (mm, RAS axes) to world RAS mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.rotation * np.array(self.scale)
        affine[:3, 3] = np.array(self.translation) - affine[:3, :3] @ [0.0, 0.0, PIVOT_HEIGHT]
        return affine


@dataclass(frozen=True)
class Scan:
    """How the patient is scanned."""

    region: Region
    """Part of the body in the field of view; ``trunk`` is chest, abdomen and pelvis."""
    phase: Phase
    """Contrast phase."""
    noise: float
    """Standard deviation of the noise after the reconstruction kernel, HU."""
    kernel: float
    """Weight of each neighbour in the in-plane kernel (w, 1 - 2w, w); larger is smoother."""
    kvp: int
    """Tube voltage, kV; written to DICOM only."""
    circular: bool
    """Whether voxels outside the reconstruction circle hold plain -1024."""
    table_gap: float
    """Distance from the back of the body to the table, mm."""
    rotation_axis: int
    """World axis about which the grid is turned."""
    rotation_cos_sin: tuple[float, float]
    """Cosine and sine of that turn, exact in five decimals; (1, 0) when not oblique."""
    corner: Vector
    """RAS mm of the most left, posterior, inferior voxel, multiples of 0.001."""
    grid: Grid
    """The voxels."""


def sample_patient(seed: int, index: int) -> Patient:
    """Draw the patient of a case. The same for every size and format."""
    rng = case_generator(seed, index, Stream.PATIENT)
    girth = rng.uniform(-1.0, 1.0)
    width = 1.0 + 0.10 * girth + rng.uniform(-0.03, 0.03)
    depth = 1.0 + 0.10 * girth + rng.uniform(-0.03, 0.03)
    height = 1.0 + rng.uniform(-0.08, 0.08)
    fat = 8.0 + 14.0 * (girth + 1.0) * rng.uniform(0.4, 1.0)
    breasts = bool(rng.random() < 0.5)
    translation = (rng.uniform(-15, 15), rng.uniform(-15, 15), rng.uniform(-600, 200))
    rotation = (rng.uniform(-2.5, 2.5), rng.uniform(-2.0, 2.0), rng.uniform(-4.0, 4.0))
    organs = {}
    for name in VARIABLE_ORGANS:
        shift = rng.uniform(-5.0, 5.0, 3)
        scale = rng.uniform(0.80, 1.20) if name == "bladder" else rng.uniform(0.93, 1.07)
        organs[name] = OrganVariation(_rounded(shift, 3), round(scale, 4))
    return Patient(
        scale=_rounded(np.array([width, depth, height]), 4),
        fat=round(fat, 2),
        breasts=breasts,
        translation=_rounded(np.array(translation), 3),
        rotation_degrees=_rounded(np.array(rotation), 3),
        organs=organs,
    )


def sample_scan(seed: int, index: int, size: Size, patient: Patient) -> Scan:
    """Draw how ``patient`` is scanned at the given size."""
    if size not in SIZES:
        raise ConfigError(f"size is {size!r}, expected one of {', '.join(SIZES)}")
    rng = case_generator(seed, index, Stream.SCAN)
    region = REGIONS[int(rng.choice(3, p=[0.3, 0.35, 0.35]))]
    phase = PHASES[int(rng.choice(3, p=[0.35, 0.25, 0.4]))]
    codes = RIGHT_HANDED_CODES[int(rng.choice(5, p=[0.5, 0.2, 0.12, 0.1, 0.08]))]
    angle = EXACT_ANGLES[int(rng.choice(3, p=[0.78, 0.16, 0.06]))]
    cos_sin = (angle[0], float(angle[1] * rng.choice([-1.0, 1.0])) + 0.0)
    axis = int(rng.integers(3))
    bottom, top = _heights(region, rng)
    shape, spacing = _matrix(size, patient, (top - bottom) * patient.scale[2], rng)
    middle = patient.affine @ [0.0, 0.0, (bottom + top) / 2, 1.0]
    # The bed lies behind the patient, so the centre of the field lies a little behind the body's.
    middle[:3] += [rng.uniform(-8, 8), rng.uniform(-14, 0), 0.0]
    rotation = rotation_about(axis, *cos_sin)
    corner = _rounded(
        middle[:3] - rotation @ (np.array(spacing) * (np.array(shape) - 1) / 2), decimals=3
    )
    return Scan(
        region=region,
        phase=phase,
        noise=round(rng.uniform(8.0, 30.0), 2),
        kernel=round(rng.uniform(0.12, 0.25), 3),
        kvp=int(rng.choice([80, 100, 120, 140])),
        circular=bool(rng.random() < 0.3),
        table_gap=round(rng.uniform(0.0, 12.0), 1),
        rotation_axis=axis,
        rotation_cos_sin=cos_sin,
        corner=corner,
        grid=build_grid(codes, shape, spacing, rotation, corner),
    )


def _heights(region: Region, rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest scanned height of the reference trunk, mm above the pelvic floor."""
    apex, above_dome = rng.uniform(595, 625), rng.uniform(425, 455)
    below_lungs, crest, floor = rng.uniform(265, 310), rng.uniform(120, 190), rng.uniform(-8, 12)
    whole_abdomen = rng.random() < 0.5
    if region == "chest":
        return below_lungs, apex
    if region == "abdomen":
        return (floor if whole_abdomen else crest), above_dome
    return floor, apex


def _matrix(
    size: Size, patient: Patient, length: float, rng: np.random.Generator
) -> tuple[tuple[int, int, int], Vector]:
    """Shape and spacing (mm) along x, y, z for a scan of ``length`` mm."""
    width = 2 * (REFERENCE_HALF_WIDTH + patient.fat) * patient.scale[0]
    field = width * rng.uniform(0.95, 1.2)
    if size == "small":
        pixels = int(rng.choice([128, 144, 160, 176]))
        in_plane = float(np.clip(field / pixels, 2.2, 3.0))
        thickness = float(np.clip(rng.uniform(2.5, 5.0), length / 140, length / 60))
        thickness = float(np.clip(thickness, 2.5, 5.0))
        slices = int(np.clip(round(length / thickness), 60, 140))
    else:
        pixels = 512
        in_plane = float(np.clip(field / pixels, 0.6, 0.9))
        usual = [t for t in (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0) if 90 <= length / t <= 600]
        thickness = float(rng.choice(usual))
        slices = round(length / thickness)
    in_plane, thickness = round(in_plane, 3), round(thickness, 3)
    return (pixels, pixels, slices), (in_plane, in_plane, thickness)


def _rounded(values: FloatMatrix, decimals: int) -> Vector:
    x, y, z = (round(float(v), decimals) + 0.0 for v in values)
    return x, y, z
