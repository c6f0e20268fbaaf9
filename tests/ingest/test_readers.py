"""NIfTI, MetaImage and NRRD: every volume that comes out is whole, in HU, and in its place."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from prect.errors import VolumeError
from prect.ingest.checks import geometry_findings, voxel_findings
from prect.ingest.findings import Finding, first_rejection, of_error, warnings_of
from prect.ingest.readers.base import Header, Reader, to_hu
from prect.ingest.readers.itk import ItkReader
from prect.ingest.readers.nifti import NiftiReader
from prect.ingest.volume import SNAPPED_SHEAR, Volume, shear_of, spacing_of
from prect.manifests.codes import CODES
from prect.manifests.limits import Limits
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.faulty_files import (
    LPS_2MM,
    METAIMAGE,
    NRRD,
    all_files,
    nifti_bytes,
    pixdim,
    replaced,
    sheared,
    without,
    write_pair,
    write_sform,
)
from tests.ingest.volumes import body_volume

LIMITS = Limits()
FILES = all_files()


def reader_of(path: Path) -> Reader:
    suffixes = "".join(path.suffixes).lower()
    if ".nii" in suffixes:
        return NiftiReader()
    return ItkReader("nrrd" if "n" in suffixes else "metaimage")


def load(path: Path, limits: Limits = LIMITS) -> tuple[Header, Volume]:
    reader = reader_of(path)
    header = reader.read_header([path], limits)
    volume = reader.read(header)
    assert volume.source_digest == reader.digest([path]) == reader.digest(header.paths)
    assert volume.findings[: len(header.findings)] == header.findings
    assert volume.shape == header.shape
    return header, volume


def examined(path: Path, limits: Limits = LIMITS) -> list[Finding]:
    """Every check of one file, ended by the first that rejects before its voxels are read."""
    try:
        reader = reader_of(path)
        header = reader.read_header([path], limits)
        findings = [*header.findings, *geometry_findings(header, limits)]
        if first_rejection(tuple(findings)) is None:
            volume = reader.read(header)
            findings += volume.findings[len(header.findings) :]
            findings += voxel_findings(volume, limits)
    except VolumeError as error:
        return [of_error(error)]
    return findings


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def finding(findings: tuple[Finding, ...], code: str) -> Finding:
    (found,) = (f for f in findings if f.code == code)
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_fault_is_named_and_an_oddity_remarked(tmp_path: Path, name: str) -> None:
    fault = FILES[name]
    findings = tuple(examined(written(tmp_path, name, fault.content)))
    rejection, remarks = first_rejection(findings), warnings_of(findings)
    if fault.verdict == "rejected":
        assert rejection is not None
        assert rejection.code == fault.code, rejection.reason
        assert rejection.reason
    else:
        assert rejection is None
        assert [remark.code for remark in remarks] == [fault.code] * (fault.verdict == "warned")
    assert {f.code for f in findings} <= set(CODES)
    assert all(f.reason for f in findings if not f.passed)


SOUND = [name for name in FILES if name.split(".")[0] in ("sound", "packed")]


@pytest.mark.parametrize(
    "name", [*SOUND, "upper.MHA", "big_endian.nii", "big_endian.mha", "big_endian.nrrd"]
)
def test_the_voxels_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    header, volume = load(written(tmp_path, name, FILES[name].content))
    np.testing.assert_array_equal(volume.voxels, body_volume())
    assert volume.voxels.dtype == np.dtype(np.int16)
    assert volume.voxels.dtype.isnative
    assert header.shape == (40, 36, 32)
    assert not volume.fractional
    np.testing.assert_allclose(np.abs(header.affine[:3, :3]), np.diag([2.0] * 3), atol=1e-12)


@pytest.mark.parametrize("format", ["nifti", "mha", "nrrd"])
def test_a_phantom_reads_the_same_in_every_format(tmp_path: Path, format: Any) -> None:
    case = make_case(3, 1)
    header, volume = load(write_case(case, tmp_path / "case", format))
    np.testing.assert_array_equal(volume.voxels, case.hu)
    np.testing.assert_allclose(header.affine, case.affine, atol=2e-3)


class TestNifti:
    def test_the_header_is_read_without_the_rest(self, tmp_path: Path) -> None:
        content = gzip.compress(nifti_bytes(body_volume()), 1)
        path = written(tmp_path, "ct.nii.gz", content[:4096])
        assert NiftiReader().read_header([path], LIMITS).shape == (40, 36, 32)

    def test_nibabel_agrees_on_nifti_2(self, tmp_path: Path) -> None:
        affine = sheared(0.0)
        affine[:3, 3] = [3, -7, 11]
        nib.save(nib.Nifti2Image(body_volume().T, affine), tmp_path / "ct.nii.gz")
        header, volume = load(tmp_path / "ct.nii.gz")
        np.testing.assert_allclose(header.affine, affine, atol=1e-6)
        np.testing.assert_array_equal(volume.voxels, body_volume())

    @pytest.mark.parametrize(
        ("slope", "intercept"), [(1.0, -1024.0), (0.5, -1024.0), (2.0, 0.25), (-1.0, 7.0)]
    )
    def test_slope_and_intercept_are_applied(
        self, tmp_path: Path, slope: float, intercept: float
    ) -> None:
        stored = body_volume() + 1024
        content = nifti_bytes(stored, scl_slope=slope, scl_inter=intercept)
        _, volume = load(written(tmp_path, "ct.nii", content))
        exact = stored.astype(np.float64) * slope + intercept
        np.testing.assert_array_equal(volume.voxels, np.rint(exact))
        assert volume.fractional == bool((exact != np.rint(exact)).any())

    def test_a_slope_of_nan_means_none(self, tmp_path: Path) -> None:
        content = nifti_bytes(body_volume(), scl_slope=np.nan, scl_inter=np.nan)
        _, volume = load(written(tmp_path, "ct.nii", content))
        np.testing.assert_array_equal(volume.voxels, body_volume())

    def test_an_intercept_without_a_slope_is_not_applied(self, tmp_path: Path) -> None:
        _, volume = load(written(tmp_path, "ct.nii", FILES["slope_zero.nii"].content))
        np.testing.assert_array_equal(volume.voxels, body_volume())

    def test_voxels_at_an_odd_place_are_read(self, tmp_path: Path) -> None:
        content = nifti_bytes(body_volume(), vox_offset=353)
        content = content[:352] + b"\0" + content[352:]
        _, volume = load(written(tmp_path, "ct.nii", content))
        np.testing.assert_array_equal(volume.voxels, body_volume())
        assert volume.voxels.flags.aligned

    def test_the_sform_goes_before_the_qform(self, tmp_path: Path) -> None:
        content = nifti_bytes(body_volume(), qoffset_x=50.0)
        header, _ = load(written(tmp_path, "ct.nii", content))
        np.testing.assert_allclose(header.affine, LPS_2MM)
        said = finding(header.findings, "nifti.qform_sform")
        assert (said.passed, said.measured, said.limit) == (False, "50 mm", "at most 1 mm")

    def test_a_turned_qform_is_noticed(self, tmp_path: Path) -> None:
        """By where it puts the corners: its numbers differ by less than half a voxel."""
        content = nifti_bytes(body_volume(), quatern_b=0.0, quatern_c=0.05)
        header, _ = load(written(tmp_path, "ct.nii", content))
        assert not finding(header.findings, "nifti.qform_sform").passed

    def test_a_qform_alone_is_used(self, tmp_path: Path) -> None:
        image = nib.Nifti1Image(body_volume().T, None)
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix() * [1.5, 1.5, 3]
        image.set_qform(affine, code=1)
        image.set_sform(None, code=0)
        nib.save(image, tmp_path / "ct.nii")
        header, _ = load(tmp_path / "ct.nii")
        np.testing.assert_allclose(header.affine, affine, atol=1e-4)

    def test_pixdim_0_without_a_sign_counts_as_one(self, tmp_path: Path) -> None:
        kept = written(tmp_path, "a.nii", nifti_bytes(body_volume(), sform_code=0))
        zero = [0.0, *pixdim(2.0)[1:]]
        other = written(tmp_path, "b.nii", nifti_bytes(body_volume(), sform_code=0, pixdim=zero))
        expected = LPS_2MM.copy()
        np.testing.assert_allclose(load(kept)[0].affine, expected, atol=1e-6)
        np.testing.assert_allclose(load(other)[0].affine, expected, atol=1e-6)

    @pytest.mark.parametrize("directions", ["RAS", "LPS", "LAS", "RPS"])
    def test_the_card_may_know_the_orientation(self, tmp_path: Path, directions: Any) -> None:
        content = nifti_bytes(
            body_volume(), sform_code=0, qform_code=0, pixdim=pixdim(1.0, 2.0, 3.0)
        )
        path = written(tmp_path, "ct.nii", content)
        header, _ = load(path, Limits(unknown_orientation=directions))
        assert "".join(nib.aff2axcodes(header.affine)) == directions
        assert spacing_of(header.affine).tolist() == [1.0, 2.0, 3.0]
        centre = header.affine @ [19.5, 17.5, 15.5, 1.0]
        np.testing.assert_allclose(centre[:3], 0, atol=1e-9)
        assert not finding(header.findings, "nifti.assumed_orientation").passed

    def test_a_stated_orientation_is_not_overruled(self, tmp_path: Path) -> None:
        path = written(tmp_path, "ct.nii", nifti_bytes(body_volume()))
        header, _ = load(path, Limits(unknown_orientation="RAS"))
        np.testing.assert_allclose(header.affine, LPS_2MM)

    def test_a_tiny_shear_snaps_and_a_large_one_stays(self, tmp_path: Path) -> None:
        tiny, _ = load(written(tmp_path, "a.nii", write_sform(sheared(0.05))))
        large, _ = load(written(tmp_path, "b.nii", write_sform(sheared(12.0))))
        assert shear_of(tiny.affine) < 1e-9
        assert shear_of(large.affine) == pytest.approx(np.sin(np.deg2rad(12)), abs=1e-4)
        assert shear_of(large.affine) > SNAPPED_SHEAR
        (said,) = (f for f in geometry_findings(large, LIMITS) if f.code == "geometry.shear")
        assert said.measured == "12 degrees"

    def test_nan_voxels_become_background_and_are_counted(self, tmp_path: Path) -> None:
        voxels = body_volume().astype(np.float32)
        voxels[0, 0, :7] = [np.nan, np.inf, -np.inf, np.nan, np.nan, np.nan, np.nan]
        _, volume = load(written(tmp_path, "nan.nii", nifti_bytes(voxels)))
        assert (volume.voxels[0, 0, :7] == -1024).all()
        np.testing.assert_array_equal(volume.voxels[1:], body_volume()[1:])
        said = finding(volume.findings, "hu.not_finite")
        assert said.reason == "7 voxels are not finite and became -1024 HU"
        assert finding(volume.findings, "hu.mostly_not_finite").passed

    def test_the_share_of_nan_is_a_limit(self, tmp_path: Path) -> None:
        path = written(tmp_path, "nan.nii", FILES["few_nan.nii"].content)
        _, volume = load(path, Limits(max_not_finite_share=1e-4))
        assert not finding(volume.findings, "hu.mostly_not_finite").passed

    def test_a_changed_byte_anywhere_changes_the_digest(self, tmp_path: Path) -> None:
        content = nifti_bytes(body_volume())
        one = NiftiReader().digest([written(tmp_path, "a.nii", content)])
        other = NiftiReader().digest([written(tmp_path, "b.nii", content[:-1] + b"\1")])
        assert one != other
        assert one == hashlib.blake2b(content, digest_size=16).hexdigest()

    @pytest.mark.parametrize("damage", ["header", "data"])
    def test_no_flipped_byte_ends_in_anything_else(self, tmp_path: Path, damage: str) -> None:
        sound = nifti_bytes(body_volume((16, 16, 16)))
        chance = np.random.default_rng(5)
        for _ in range(150):
            content = bytearray(sound)
            for place in chance.integers(0, 352 if damage == "header" else len(content), 3):
                content[place] = chance.integers(0, 256)
            assert examined(written(tmp_path, "ct.nii", bytes(content)))


class TestMetaImageAndNrrd:
    @settings(max_examples=25, deadline=None)
    @given(
        angles=st.tuples(*[st.floats(-60, 60)] * 3),
        spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
        origin=st.tuples(*[st.floats(-500, 500)] * 3),
        suffix=st.sampled_from([".mha", ".mhd", ".nrrd", ".nhdr"]),
    )
    def test_the_geometry_is_simpleitks(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        angles: tuple[float, float, float],
        spacing: tuple[float, float, float],
        origin: tuple[float, float, float],
        suffix: str,
    ) -> None:
        image = sitk.GetImageFromArray(body_volume())
        image.SetDirection(Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel())
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        path = tmp_path_factory.mktemp("itk") / f"ct{suffix}"
        sitk.WriteImage(image, str(path), useCompression=suffix in (".mha", ".nhdr"))
        header, volume = load(path)
        np.testing.assert_array_equal(volume.voxels, body_volume())
        for index in ((0, 0, 0), (39, 0, 31), (5, 35, 20)):
            place = header.affine @ [*index, 1.0]
            truth = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose(place[:3], truth, atol=5e-3)

    @pytest.mark.parametrize(
        "type", ["UCHAR", "USHORT", "INT", "UINT", "LONG_LONG", "FLOAT", "DOUBLE"]
    )
    def test_every_type_of_voxel_reads_the_same(self, tmp_path: Path, type: str) -> None:
        dtypes = {"UCHAR": "u1", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG_LONG": "i8"}
        dtype = np.dtype(dtypes.get(type, "f4" if type == "FLOAT" else "f8"))
        stored = np.abs(body_volume()) % 200
        content = replaced(METAIMAGE, ("MET_SHORT", f"MET_{type}")) + stored.astype(dtype).tobytes()
        _, volume = load(written(tmp_path, "ct.mha", content))
        np.testing.assert_array_equal(volume.voxels, stored)

    def test_a_pair_is_digested_as_a_whole(self, tmp_path: Path) -> None:
        path = write_pair(tmp_path)
        header, volume = load(path)
        assert [file.name for file in header.paths] == ["ct.mhd", "ct.raw"]
        raw = tmp_path / "ct.raw"
        raw.write_bytes(raw.read_bytes()[:-1] + b"\7")
        assert load(path)[1].source_digest != volume.source_digest

    @pytest.mark.parametrize("name", ["../ct.raw", "sub/ct.raw", "sub/../../ct.raw", "/etc/passwd"])
    def test_a_header_may_not_lead_out_of_its_folder(self, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "inside"
        (folder / "sub").mkdir(parents=True)
        header = write_pair(folder)
        for target in (tmp_path, folder / "sub"):
            (target / "ct.raw").write_bytes((folder / "ct.raw").read_bytes())
        header.write_text(header.read_text().replace("ct.raw", name))
        (found,) = examined(header)
        assert found.code == "metaimage.outside_folder"

    def test_the_owner_may_link_both_files_from_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        (tmp_path / "tree").mkdir()
        write_pair(tmp_path / "store")
        for name in ("ct.mhd", "ct.raw"):
            (tmp_path / "tree" / name).symlink_to(tmp_path / "store" / name)
        _, volume = load(tmp_path / "tree" / "ct.mhd")
        np.testing.assert_array_equal(volume.voxels, body_volume())

    @pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
    def test_a_short_data_file_is_found(self, tmp_path: Path, suffix: str) -> None:
        image = sitk.GetImageFromArray(body_volume())
        sitk.WriteImage(image, str(tmp_path / f"ct{suffix}"))
        raw = tmp_path / "ct.raw"
        raw.write_bytes(raw.read_bytes()[:-1000])
        (found,) = examined(tmp_path / f"ct{suffix}")
        assert found.code.endswith(".truncated")
        assert "91160 bytes are there, 92160 are needed" in found.reason

    def test_an_nhdr_may_have_windows_line_ends(self, tmp_path: Path) -> None:
        content = NRRD.replace("\n", "\r\n").encode() + body_volume().tobytes()
        _, volume = load(written(tmp_path, "ct.nrrd", content))
        np.testing.assert_array_equal(volume.voxels, body_volume())

    @pytest.mark.parametrize("name", ["ct.mha", "ct.nrrd"])
    def test_the_card_may_know_the_orientation(self, tmp_path: Path, name: str) -> None:
        header = without(METAIMAGE, "TransformMatrix")
        if name == "ct.nrrd":
            header = replaced(NRRD, ("left-posterior-superior", "scanner-xyz"))
        path = written(tmp_path, name, header + body_volume().tobytes())
        found, _ = load(path, Limits(unknown_orientation="RAS"))
        np.testing.assert_allclose(found.affine[:3, :3], np.diag([2.0] * 3))
        remarks = [remark.code for remark in warnings_of(found.findings)]
        assert remarks == [f"{reader_of(path).format}.assumed_orientation"]  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("ct.nrrd", replaced(NRRD, ("encoding: raw", "encoding: Jane Doe"))),
            ("ct.nrrd", replaced(NRRD, ("sizes: 40 36 32", "sizes: Jane Doe"))),
            ("ct.nrrd", replaced(NRRD, ("type: short", "type: Jane Doe"))),
            ("ct.nrrd", replaced(NRRD, ("left-posterior-superior", "Jane Doe"))),
            ("ct.nrrd", replaced(NRRD, ("endian", 'space units: "Jane" "Doe" ""\nendian'))),
            ("ct.mhd", replaced(METAIMAGE, ("LOCAL", "Jane Doe.raw"))),
            ("ct.mhd", replaced(METAIMAGE, ("LOCAL", "/Jane/Doe.raw"))),
            ("ct.mha", replaced(METAIMAGE, ("MET_SHORT", "Jane Doe"))),
            ("ct.mha", replaced(METAIMAGE, ("MET_SHORT", "MET_Jane Doe"))),
            ("ct.mha", replaced(METAIMAGE, ("Offset = 0 0 0", "Offset = Jane Doe"))),
            ("ct.mha", replaced(METAIMAGE, ("Offset", "DistanceUnits = Jane Doe\nOffset"))),
        ],
    )
    def test_no_word_of_a_header_gets_into_a_sentence(
        self, tmp_path: Path, name: str, content: bytes
    ) -> None:
        findings = examined(written(tmp_path, name, content + body_volume().tobytes()))
        assert any(not f.passed for f in findings)
        said = " ".join(f"{f.reason} {f.measured} {f.limit}" for f in findings)
        assert "jane" not in said.lower()
        assert "doe" not in said.lower()

    def test_simpleitk_would_have_kept_silent(self, tmp_path: Path) -> None:
        """The reason why compressed voxels are decoded here; goes when SimpleITK raises."""
        packed = bytearray(zlib.compress(body_volume().tobytes(), 1))
        packed[len(packed) // 2] ^= 0xFF
        header = replaced(METAIMAGE, ("CompressedData = False", "CompressedData = True"))
        path = written(tmp_path, "ct.mha", header + bytes(packed))
        silent = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert (silent != body_volume()).any()
        (found,) = examined(path)
        assert found.code == "metaimage.checksum"


class TestToHu:
    @given(
        values=st.lists(
            st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=50
        )
    )
    @settings(deadline=None)
    def test_every_float_becomes_a_value(self, values: list[float]) -> None:
        stored = np.array(values, dtype=np.float32)
        found = to_hu(stored, LIMITS)
        sound = np.isfinite(stored)
        expected = np.clip(np.rint(stored[sound].astype(np.float64)), -32768, 32767)
        np.testing.assert_array_equal(found.voxels[sound], expected)
        assert (found.voxels[~sound] == -1024).all()
        lost = int((~sound).sum())
        assert finding(found.findings, "hu.not_finite").measured == f"{lost} voxels"

    def test_int16_is_not_copied(self) -> None:
        stored = body_volume()
        assert np.shares_memory(to_hu(stored, LIMITS).voxels, stored)

    def test_many_chunks_are_one_volume(self) -> None:
        stored = np.arange(300_000, dtype=np.int64).reshape(3, 100, 1000) % 4000 - 1000
        found = to_hu(stored, LIMITS, slope=1.0, intercept=-24.0)
        np.testing.assert_array_equal(found.voxels, stored - 24)
        assert not found.fractional

    def test_float32_rounding_is_no_fraction(self) -> None:
        stored = np.array([100.0001, -1000.0002, 40.0], dtype=np.float32)
        assert not to_hu(stored, LIMITS).fractional
        assert to_hu(stored + np.float32(0.25), LIMITS).fractional
