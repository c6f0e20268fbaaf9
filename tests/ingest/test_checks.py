"""What the checks say of volumes whose truth is known: phantoms, real files, and both spoiled."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from prect.ingest.checks import (
    Histogram,
    geometry_findings,
    shear_degrees,
    voxel_findings,
)
from prect.ingest.findings import Finding, first_rejection, passed, warnings_of
from prect.ingest.readers import READERS
from prect.ingest.readers.base import Header
from prect.ingest.volume import Volume
from prect.manifests.codes import CODES, Effect
from prect.manifests.limits import Limits
from prect.phantom import make_case
from tests.ingest.volumes import body_volume

LIMITS = Limits()
Voxels = NDArray[np.int16]


def volume_of(voxels: NDArray[np.generic], *, fractional: bool = False) -> Volume:
    hu = np.ascontiguousarray(voxels, dtype=np.int16)
    return Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]), "nifti", "0" * 32, fractional)


def codes(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.code for finding in findings if not finding.passed}


def code_of(voxels: NDArray[np.generic], limits: Limits = LIMITS) -> str:
    """The code that rejects the values; empty when they are Hounsfield units."""
    rejection = first_rejection(voxel_findings(volume_of(voxels), limits))
    return "" if rejection is None else rejection.code


# What is done to sound volumes, each in files of some public set or scanner.


def cylinder(hu: Voxels, value: int) -> Voxels:
    """Padding outside the circle that the scanner reconstructs."""
    j, i = np.ogrid[-1 : 1 : hu.shape[1] * 1j, -1 : 1 : hu.shape[2] * 1j]
    return np.where(j**2 + i**2 > 1, np.int16(value), hu)


HARMLESS: dict[str, Callable[[Voxels], Voxels]] = {
    "as it is": lambda hu: hu,
    "padding -1024": lambda hu: cylinder(hu, -1024),
    "padding -1200": lambda hu: cylinder(hu, -1200),
    "padding -1400": lambda hu: cylinder(hu, -1400),
    "padding -1500": lambda hu: cylinder(hu, -1500),
    "padding -2000": lambda hu: cylinder(hu, -2000),
    "padding -2048": lambda hu: cylinder(hu, -2048),
    "padding -3024": lambda hu: cylinder(hu, -3024),
    "padding -32768": lambda hu: cylinder(hu, -32768),
    "padding 0": lambda hu: cylinder(hu, 0),
    "clipped at -1000": lambda hu: np.maximum(hu, -1000),
    "clipped at -1024": lambda hu: np.maximum(hu, -1024),
    "clipped to [-1000, 1000]": lambda hu: np.clip(hu, -1000, 1000),
    "metal": lambda hu: np.where(np.arange(hu.shape[2]) % 97 == 5, np.int16(12000), hu),
}
HARMFUL: dict[str, tuple[Callable[[Voxels], Voxels], str]] = {
    "never rescaled": (lambda hu: hu + 1024, "hu.not_rescaled"),
    "never, less 1000": (lambda hu: hu + 1000, "hu.not_rescaled"),
    "never, padding -1024": (lambda hu: cylinder(hu + 1024, -1024), "hu.not_rescaled"),
    "never, padding -2000": (lambda hu: cylinder(hu + 1024, -2000), "hu.not_rescaled"),
    "never, from 0 up": (lambda hu: np.maximum(hu + 1024, 0), "hu.not_rescaled"),
    "twice": (lambda hu: hu - 1024, "hu.rescaled_twice"),
    "twice, padding -3024": (lambda hu: cylinder(hu, -2000) - 1024, "hu.rescaled_twice"),
    "bytes swapped": (lambda hu: hu.byteswap(), "hu.out_of_range"),
    "clipped, bytes swapped": (lambda hu: np.maximum(hu, -1024).byteswap(), "hu.out_of_range"),
    "soft tissue window": (lambda hu: np.clip(hu, -160, 240), "hu.not_calibrated"),
    "window clipped at -600": (lambda hu: np.clip(hu, -600, 1500), "hu.air_offset"),
    "air at -600": (lambda hu: hu + 400, "hu.air_offset"),
    "ten times too small": (lambda hu: hu // 10, "hu.not_calibrated"),
}

REAL = [
    "totalsegmentator/example_ct.nii.gz",
    "totalsegmentator/example_ct_sm.nii.gz",
    "totalsegmentator/example_ct_dicom",
    "elastix/3DCT_lung.mha",
    "elastix/3DCT_lung_baseline_small.mha",
    "chest_imaging_platform/ct-64.nrrd",
    "chest_imaging_platform/ct-64Dicom",
    "chest_imaging_platform/TestInput.nrrd",
    "ibsi/sts_validation/STS_001/CT_image.nii.gz",
    "ibsi/sts_validation/STS_002/CT_image.nii.gz",
    "dcm_qa_ct/GE_tilt_variable_spacing",
]


@cache
def real(path: Path) -> Voxels:
    names = {".gz": "nifti", ".mha": "metaimage", ".nrrd": "nrrd"}
    reader = READERS[names.get(path.suffix, "dicom")]
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    paths = [file for file in paths if file.suffix not in (".json", ".txt", ".md")]
    return reader.read(reader.read_header(paths, LIMITS)).voxels


@cache
def phantom(index: int) -> Voxels:
    return make_case(5, index).hu


class TestValues:
    @pytest.mark.parametrize("name", HARMLESS)
    @pytest.mark.parametrize("source", REAL)
    def test_real_ct_passes(self, shared_data: Path, source: str, name: str) -> None:
        findings = voxel_findings(volume_of(HARMLESS[name](real(shared_data / source))), LIMITS)
        assert codes(findings) == set(), [f.reason for f in findings if not f.passed]

    @pytest.mark.parametrize("name", HARMFUL)
    @pytest.mark.parametrize("source", REAL)
    def test_spoiled_real_ct_is_rejected(self, shared_data: Path, source: str, name: str) -> None:
        spoil, code = HARMFUL[name]
        assert code_of(spoil(real(shared_data / source))) == code

    @pytest.mark.parametrize("index", range(4))
    def test_phantoms_are_judged_like_real_ct(self, index: int) -> None:
        for change in HARMLESS.values():
            assert code_of(change(phantom(index))) == ""
        for spoil, code in HARMFUL.values():
            assert code_of(spoil(phantom(index))) == code

    def test_the_full_size_series_passes(self, shared_data: Path, tmp_path: Path) -> None:
        archive = shared_data / "tcia_cmb_crc" / "CMB-CRC-MSB-01068_lung_100.tar.xz"
        with tarfile.open(archive) as file:
            file.extractall(tmp_path, filter="data")
        paths = sorted(p for p in tmp_path.rglob("*") if p.is_file())
        reader = READERS["dicom"]
        volume = reader.read(reader.read_header(paths, LIMITS))
        assert codes(voxel_findings(volume, LIMITS)) == set()

    def test_lungs_without_air_around_them_pass(self) -> None:
        rng = np.random.default_rng(0)
        lung = np.concatenate([rng.normal(-760, 90, 60_000), rng.normal(40, 30, 40_000)])
        assert code_of(lung.reshape(40, 50, 50)) == ""

    def test_every_check_is_named_whether_or_not_it_passes(self) -> None:
        sound = voxel_findings(volume_of(body_volume()), LIMITS)
        spoiled = voxel_findings(volume_of(body_volume() + 1024), LIMITS)
        assert [f.code for f in sound] == [f.code for f in spoiled]
        assert len({f.code for f in sound}) == len(sound) == 8
        for finding in (*sound, *spoiled):
            assert CODES[finding.code].effect is Effect.REJECT
            assert finding.measured
            assert finding.limit
            assert finding.passed != bool(finding.reason)

    def test_a_constant_volume_is_named(self) -> None:
        assert code_of(np.zeros((4, 4, 4))) == "content.constant"
        assert code_of(np.full((4, 4, 4), -3024)) == "content.constant"

    @pytest.mark.parametrize("values", [1, 127])
    def test_a_label_map_is_named(self, values: int) -> None:
        labels = np.arange(64**3).reshape(64, 64, 64) % (values + 1)
        assert code_of(labels) == "content.label_map"
        assert code_of(labels, Limits(max_labels=values)) == "hu.not_calibrated"

    def test_fractions_are_no_label_map(self) -> None:
        noise = np.random.default_rng(0).integers(0, 2, (8, 8, 8))
        findings = voxel_findings(volume_of(noise, fractional=True), LIMITS)
        assert first_rejection(findings) is not None
        assert "content.label_map" not in codes(findings)
        assert "content.constant" not in codes(
            voxel_findings(volume_of(noise * 0, fractional=True), LIMITS)
        )

    def test_dense_bone_does_not_feign_a_missing_rescale(self) -> None:
        """A head clipped at its air, with as much bone at 824 to 1324 HU as CT ever has."""
        rng = np.random.default_rng(0)
        head = np.full(100_000, -1000)
        head[40_000:85_000] = rng.normal(40, 15, 45_000)
        head[85_000:93_000] = rng.uniform(300, 824, 8_000)
        head[93_000:] = rng.uniform(824, 1324, 7_000)
        assert code_of(head.reshape(40, 50, 50)) == ""

    @pytest.mark.parametrize(
        ("limits", "code"),
        [
            (Limits(min_dark_share=0.9), "hu.not_calibrated"),
            (Limits(min_tissue_share=0.5), "hu.no_soft_tissue"),
            (Limits(max_air_offset_hu=10.0), "hu.air_offset"),
        ],
    )
    def test_the_limits_decide(self, limits: Limits, code: str) -> None:
        assert code_of(body_volume()) == ""
        assert code_of(body_volume(), limits) == code

    @settings(max_examples=50, deadline=None)
    @given(
        values=st.lists(st.integers(-32768, 32767), min_size=1, max_size=40),
        offset=st.sampled_from([-1024, 1024, 5]),
    )
    def test_the_histogram_counts(self, values: list[int], offset: int) -> None:
        histogram = Histogram.of(volume_of(np.array(values)[None, None]))
        shifted = histogram.shifted(offset)
        for value in (*values, -32768, 32767, 0):
            assert histogram.between(value, value).tolist() == [values.count(value)]
            if -32768 <= value + offset <= 32767:
                assert shifted.counts[value + offset + 32768] == values.count(value)
        kept = [value for value in values if value > -1500]
        dark = sum(value < -200 for value in kept)
        assert histogram.share(-1499, -201) == pytest.approx(dark / max(len(kept), 1))

    def test_a_clinical_volume_takes_less_than_half_a_second(self) -> None:
        rng = np.random.default_rng(0)
        slices = rng.integers(-1024, 1500, (10, 512, 512)).astype(np.int16)
        volume = volume_of(np.tile(slices, (30, 1, 1)))
        assert volume.voxels.size > 78e6
        start = time.process_time()
        voxel_findings(volume, LIMITS)
        assert time.process_time() - start < 0.5


def header(shape: tuple[int, int, int] = (40, 40, 40), spacing: object = (2.0, 2.0, 2.0)) -> Header:
    affine = np.eye(4)
    affine[:3, :3] *= np.array(spacing)
    return Header(shape, affine, ())


def tilted(degrees: float) -> Header:
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 2] = [0, 4 * np.sin(np.deg2rad(degrees)), 4 * np.cos(np.deg2rad(degrees))]
    return Header((100, 100, 40), affine, ())


class TestGeometry:
    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (header(), set()),
            (header(spacing=(0.1, 20.0, 2.0), shape=(300, 40, 40)), set()),
            (header(spacing=(0.09, 1.0, 1.0), shape=(400, 40, 40)), {"geometry.spacing"}),
            (header(spacing=(1.0, 1.0, 20.1)), {"geometry.spacing"}),
            (header(spacing=(1.0, 1.0, 1.0)), {"geometry.unit_spacing"}),
            (header(spacing=(1.0, 1.0, 1.001)), set()),
            (header(shape=(40, 15, 40)), {"geometry.too_small"}),
            (header(shape=(40, 16, 40)), set()),
            (header(shape=(40, 16, 40), spacing=(2, 1.8, 2)), {"geometry.small_extent"}),
            (tilted(0.05), set()),
            (tilted(0.1), {"geometry.shear"}),
            (tilted(29.9), {"geometry.shear"}),
            (tilted(30.1), {"geometry.shear", "geometry.shear_too_large"}),
        ],
    )
    def test_each_limit_is_kept(self, found: Header, expected: set[str]) -> None:
        findings = geometry_findings(found, LIMITS)
        assert codes(findings) == expected
        assert all(f.measured and f.limit for f in findings)

    def test_the_card_may_reject_unit_spacing(self) -> None:
        found = header(spacing=(1.0, 1.0, 1.0))
        warned = geometry_findings(found, LIMITS)
        assert first_rejection(warned) is None
        assert [f.code for f in warnings_of(warned)] == ["geometry.unit_spacing"]
        rejected = first_rejection(geometry_findings(found, Limits(unit_spacing="reject")))
        assert rejected is not None
        assert rejected.code == "geometry.unit_spacing_rejected"

    def test_a_tilt_that_the_reader_named_is_not_named_twice(self) -> None:
        tilt = tilted(18.5)
        known = Header(tilt.shape, tilt.affine, (), findings=(passed("dicom.gantry_tilt"),))
        assert codes(geometry_findings(known, LIMITS)) == set()

    @settings(deadline=None)
    @given(
        degrees=st.floats(0, 60),
        angles=st.tuples(*[st.floats(-180, 180)] * 3),
        spacing=st.tuples(*[st.floats(0.3, 5)] * 3),
    )
    def test_a_shear_is_measured_whatever_the_orientation(
        self, degrees: float, angles: tuple[float, ...], spacing: tuple[float, ...]
    ) -> None:
        affine = np.eye(4)
        affine[:3, 2] = [0, np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))]
        rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        affine[:3, :3] = rotation @ affine[:3, :3] * spacing
        assert shear_degrees(affine) == pytest.approx(degrees, abs=1e-6)
