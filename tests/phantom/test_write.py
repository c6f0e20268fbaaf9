"""One case in four formats: the same voxels and geometry, read by independent libraries."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from prect.errors import ConfigError
from prect.phantom import PhantomCase, make_case, sample_parameters
from prect.phantom.write import FORMATS, write_case, write_labels

SEED = 9


def _first(condition: str) -> int:
    """Index of the first scan that is as wanted and not long."""
    for index in range(500):
        scan = sample_parameters(SEED, index).scan
        oblique = scan.rotation_cos_sin[1] != 0
        wanted = {
            "aligned": scan.grid.codes == "LPS" and not oblique,
            "oblique": scan.grid.codes == "RPI" and oblique,
            "coronal": scan.grid.codes == "LIP",
        }[condition]
        if wanted and scan.region != "trunk":
            return index
    raise AssertionError(condition)


@pytest.fixture(scope="module", params=["aligned", "oblique", "coronal"])
def case(request: pytest.FixtureRequest) -> PhantomCase:
    return make_case(SEED, _first(request.param))


@pytest.fixture(scope="module")
def folder(case: PhantomCase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The case in every format, and its labels."""
    folder = tmp_path_factory.mktemp("formats")
    for format in FORMATS:
        write_case(case, folder / "x", format)
    write_labels(case, folder / "labels.nii.gz")
    return folder


def load(path: Path) -> Any:
    """NIfTI image; nibabel declares a base class without geometry."""
    return nib.load(path)


def ras_affine(image: sitk.Image) -> np.ndarray:
    """4x4 affine in RAS of a SimpleITK image, whose world is LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def test_nifti_reads_back(case: PhantomCase, folder: Path) -> None:
    image = load(folder / "x.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(np.asanyarray(image.dataobj), case.hu.transpose(2, 1, 0))
    assert np.abs(image.affine - case.affine).max() < 1e-4
    qform, qcode = image.get_qform(coded=True)
    sform, scode = image.get_sform(coded=True)
    assert (qcode, scode) == (1, 1)
    assert np.abs(qform - sform).max() < 1e-3
    assert np.array_equal(image.header["pixdim"][1:4], np.array(case.grid.spacing, np.float32))
    assert image.header.get_xyzt_units()[0] == "mm"
    with gzip.open(folder / "x.nii.gz") as stream:
        header = stream.read(348)
    assert struct.unpack("<2f", header[112:120]) == (1.0, 0.0)


def test_labels_share_the_grid_of_the_voxels(case: PhantomCase, folder: Path) -> None:
    labels, image = load(folder / "labels.nii.gz"), load(folder / "x.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert np.array_equal(labels.affine, image.affine)
    assert np.array_equal(np.asanyarray(labels.dataobj), case.labels.transpose(2, 1, 0))


@pytest.mark.parametrize("name", ["x.mha", "x.nrrd", "x.nii.gz"])
def test_simpleitk_reads_the_same(case: PhantomCase, folder: Path, name: str) -> None:
    image = sitk.ReadImage(str(folder / name))
    assert image.GetPixelID() == sitk.sitkInt16
    assert np.array_equal(sitk.GetArrayFromImage(image), case.hu)
    assert np.abs(ras_affine(image) - case.affine).max() < 1e-4


def test_gdcm_reads_the_same_series(case: PhantomCase, folder: Path) -> None:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder / "x"))
    assert len(series) == 1
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "x"), series[0])
    assert [Path(name).name for name in names] == [
        f"{k + 1:04d}.dcm" for k in range(case.grid.shape[2])
    ]
    image = sitk.ReadImage(names)
    assert np.array_equal(sitk.GetArrayFromImage(image), case.hu)
    assert np.abs(ras_affine(image) - case.affine).max() < 1e-4


def test_dicom_headers_are_those_of_a_ct_series(case: PhantomCase, folder: Path) -> None:
    slices = [pydicom.dcmread(path) for path in sorted((folder / "x").iterdir())]
    first = slices[0]
    columns, rows, planes = case.grid.shape
    assert (first.Columns, first.Rows, len(slices)) == (columns, rows, planes)
    assert first.Modality == "CT"
    assert first.SOPClassUID.name == "CT Image Storage"
    assert list(first.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert first.PatientID == f"PHANTOM-{case.parameters.index:04d}"
    # Row spacing, that is the step along the columns, comes first.
    assert [float(v) for v in first.PixelSpacing] == [case.grid.spacing[1], case.grid.spacing[0]]
    uids = {s.SOPInstanceUID for s in slices}
    assert len(uids) == planes
    assert all(uid.is_valid for uid in uids)
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({s[name].value for s in slices}) == 1
    assert [s.InstanceNumber for s in slices] == list(range(1, planes + 1))
    row, column = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    positions = np.array([s.ImagePositionPatient for s in slices], float)
    along = positions @ np.cross(row, column)
    assert np.diff(along) == pytest.approx(case.grid.spacing[2], abs=1e-6)
    hu = np.stack(
        [s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices]
    )
    assert np.array_equal(hu, case.hu)


def test_all_formats_give_one_geometry_to_a_thousandth(case: PhantomCase, folder: Path) -> None:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "x"))
    affines = [
        load(folder / "x.nii.gz").affine,
        ras_affine(sitk.ReadImage(names)),
        ras_affine(sitk.ReadImage(str(folder / "x.mha"))),
        ras_affine(sitk.ReadImage(str(folder / "x.nrrd"))),
    ]
    for affine in affines:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        assert np.array_equal(np.round(spacing, 3), case.grid.spacing)
        turn = nib.orientations.inv_ornt_aff(
            nib.orientations.io_orientation(affine), case.grid.shape
        )
        assert np.array_equal(np.round((affine @ turn)[:3, 3], 3), case.parameters.scan.corner)


def test_unknown_format_is_refused(case: PhantomCase, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nifti, dicom, mha, nrrd"):
        write_case(case, tmp_path / "x", "png")  # type: ignore[arg-type]
