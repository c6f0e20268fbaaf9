"""Every row of the index of real files gets the verdict that is written there."""

from __future__ import annotations

import tarfile
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from prect.cache.reader import StoreReader
from prect.ingest.survey import survey
from prect.workspace import Workspace
from tests.conftest import SALT, Built, ingest_and_build

ACCEPTED = [
    "totalsegmentator/example_ct.nii.gz",
    "totalsegmentator/example_ct_sm.nii.gz",
    "totalsegmentator/example_ct_dicom",
    "elastix/3DCT_lung.mha",
    "elastix/3DCT_lung_baseline_small.mha",
    "chest_imaging_platform/ct-64.nrrd",
    "chest_imaging_platform/ct-64Dicom",
    "chest_imaging_platform/ct-64-transformed.nrrd",
    "ibsi/sts_validation/STS_001/CT_image.nii.gz",
    "ibsi/sts_validation/STS_002/CT_image.nii.gz",
]
REJECTED = {
    "totalsegmentator/example_mr_sm.nii.gz": "hu.not_calibrated",
    "totalsegmentator/rgb_spine_report.nii.gz": "content.color",
    "totalsegmentator/labelmap_totalseg.nii.gz": "content.label_map",
    "elastix/3DCT_lung_baseline_mask.mha": "content.label_map",
    "chest_imaging_platform/lm-64.nrrd": "content.label_map",
    "chest_imaging_platform/wholeLung-64.nrrd": "content.label_map",
    "chest_imaging_platform/ct-patch.nrrd": "geometry.too_small",
    "chest_imaging_platform/simple_ct.nrrd": "geometry.no_spacing",
    "chest_imaging_platform/simple_dicom": "geometry.too_small",
    "ibsi/sts_validation/STS_001/PET_image.nii.gz": "hu.not_calibrated",
    "dcm_qa_ct/Philips_localizer/I10": "dicom.localizer",
    "dcm_qa_ct/Philips_exam_summary_mixed": "dicom.secondary_capture",
    "dcm_qa_ct/Philips_exam_summary_mixed/I40": "dicom.secondary_capture",
    "dicom2nifti/gantrytilting/001": "geometry.too_small",
    "dicom2nifti/notavolume/001": "dicom.bolus_tracking",
    "dicom2nifti/sliceincrement/001": "geometry.too_small",
    "dicom2nifti/rgb_sc": "dicom.not_ct",
    "dicom2nifti/mr_siemens": "dicom.not_ct",
    "pydicom/CT_small.dcm": "geometry.too_small",
    "pydicom/eCT_Supplemental.dcm": "geometry.too_small",
    "pydicom/examples_rgb_color.dcm": "dicom.not_ct",
    "pydicom/rtstruct.dcm": "dicom.not_ct",
    "pydicom/dicomdir_98892001/CT2N/6293": "dicom.localizer",
    "pydicom/dicomdir_98892001/CT5N": "geometry.too_small",
    "rt_utils/oriented_data": "geometry.too_small",
    "rt_utils/one_slice_data/0.dcm": "geometry.too_small",
    "rt_utils/mock_data/rt.dcm": "dicom.not_ct",
    "not_hu/CT_AVM.nii.gz": "hu.not_calibrated",
    "not_hu/CT_pitch.nii.gz": "hu.not_calibrated",
    "not_hu/scct_cormack_units.nii": "hu.not_calibrated",
    "tcia_cmb_crc/CMB-CRC-MSB-01068_lung_100.tar.xz": "file.archive",
}


SAME_SCAN = {
    "chest_imaging_platform/ct-64.nrrd",
    "chest_imaging_platform/ct-64Dicom",
    "chest_imaging_platform/ct-64-transformed.nrrd",
}
"""One scan as NRRD, as DICOM, and with its header rotated; of copies one stays."""
PART = "totalsegmentator/example_ct_sm.nii.gz"
WHOLE = "totalsegmentator/example_ct.nii.gz"


@pytest.mark.parametrize("source", ACCEPTED)
def test_ct_is_accepted(real_built: Built, source: str) -> None:
    row = real_built.rows()[source]
    assert (row.judged, row.judged_code) == ("accepted", "")
    assert row.verdict == "accepted" or source in SAME_SCAN | {PART}


def test_of_one_scan_in_three_files_one_stays(real_built: Built) -> None:
    rows = real_built.rows()
    (kept,) = (rows[source] for source in SAME_SCAN if rows[source].verdict == "accepted")
    others = [rows[source] for source in SAME_SCAN if rows[source] != kept]
    assert {(row.verdict, row.code) for row in others} == {("duplicate", "duplicate.voxels")}
    assert {row.duplicate_of for row in others} == {f"real/{kept.case}"}


def test_a_part_of_a_volume_is_a_duplicate(real_built: Built) -> None:
    rows = real_built.rows()
    part, whole = rows[PART], rows[WHOLE]
    assert (part.verdict, part.code) == ("duplicate", "duplicate.overlap")
    assert part.duplicate_of == f"real/{whole.case}"


def test_what_is_accepted_is_stored(real_built: Built) -> None:
    rows = [row for row in real_built.rows().values() if row.verdict in ("accepted", "warned")]
    assert len(rows) >= len(ACCEPTED) - 3
    for row in rows:
        stored = StoreReader(real_built.workspace.store("real", row.case)).attributes
        assert stored.source_digest == row.source_digest


def test_the_tilted_head_is_resampled_and_says_so(real_built: Built) -> None:
    row = real_built.rows()["dcm_qa_ct/GE_tilt_variable_spacing"]
    assert (row.verdict, row.code) == ("warned", "dicom.gantry_tilt")
    assert {"dicom.gantry_tilt", "dicom.nonuniform_spacing"} <= set(row.warnings)
    assert real_built.workspace.store("real", row.case).exists()


@pytest.mark.parametrize(("source", "code"), REJECTED.items())
def test_what_is_not_usable_is_rejected_by_name(real_built: Built, source: str, code: str) -> None:
    row = real_built.rows()[source]
    assert (row.verdict, row.code) == ("rejected", code)
    assert row.reason
    assert not real_built.workspace.store("real", row.case).exists()


def test_no_label_map_under_not_hu_gets_through(real_built: Built) -> None:
    rows = [row for name, row in real_built.rows().items() if name.startswith("not_hu/")]
    assert len(rows) == 4
    assert {row.verdict for row in rows} == {"rejected"}


def test_every_candidate_has_one_row_and_counts_add_up(real_built: Built) -> None:
    summary = real_built.survey.summary()
    verdicts = summary["verdicts"]
    assert isinstance(verdicts, dict)
    assert sum(verdicts.values()) == summary["candidates"] == len(real_built.survey.rows)
    cases = [row.case for row in real_built.survey.rows]
    assert len(set(cases)) == len(cases)
    report = real_built.report.summary()
    assert report["usable"] == report["stored"] + report["quarantined"]
    assert report["quarantined"] == 0


def reference(path: Path, reader: StoreReader) -> np.ndarray:
    """The file resampled straight by SimpleITK onto the stored grid, float32 HU."""
    z, y, x = reader.levels[0].shape
    origin = np.diag([-1.0, -1.0, 1.0]) @ reader.affine[:3, 3]  # RAS to ITK's LPS
    return np.asarray(
        sitk.GetArrayFromImage(
            sitk.Resample(
                sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32),
                (x, y, z),
                sitk.Transform(),
                sitk.sitkLinear,
                origin.tolist(),
                reader.levels[0].spacing[::-1],
                (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
                -1024.0,
            )
        )
    )


@pytest.mark.parametrize(
    "source",
    [
        "totalsegmentator/example_ct.nii.gz",
        "elastix/3DCT_lung.mha",
        "ibsi/sts_validation/STS_001/CT_image.nii.gz",
    ],
)
def test_stored_voxels_agree_with_a_direct_resample(
    real_built: Built, shared_data: Path, source: str
) -> None:
    case = real_built.rows()[source].case
    reader = StoreReader(real_built.workspace.store("real", case))
    assert_as_direct(reader, shared_data / source)


def test_an_oblique_volume_agrees_with_a_direct_resample(shared_data: Path, tmp_path: Path) -> None:
    """Ingested alone, since among the others it is a copy."""
    file = shared_data / "chest_imaging_platform" / "ct-64-transformed.nrrd"
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / file.name).symlink_to(file)
    built = ingest_and_build(tmp_path / "workspace", tmp_path / "source", "one")
    (row,) = built.survey.rows
    assert row.verdict == "accepted"
    assert_as_direct(StoreReader(built.workspace.store("one", row.case)), file)


def assert_as_direct(reader: StoreReader, file: Path) -> None:
    stored = reader.read(0, (0, 0, 0), reader.levels[0].shape).astype(np.float32)
    direct = np.clip(reference(file, reader), -1024, 3071)
    body = direct > -500
    assert body.mean() > 0.1
    agreeing = np.abs(stored - direct)[body] <= 1.0
    assert agreeing.mean() >= 0.999


@pytest.mark.parametrize("source", ["totalsegmentator/example_ct.nii.gz", "elastix/3DCT_lung.mha"])
def test_a_landmark_keeps_its_world_position(
    real_built: Built, shared_data: Path, source: str
) -> None:
    """Of all shifts of the store against the file, no shift at all fits best.

    20,000 voxels of the file are looked up in the store at their world position, which
    SimpleITK computes from the file, with shifts in steps of a quarter of a voxel.
    """
    image = sitk.ReadImage(str(shared_data / source))
    values = sitk.GetArrayFromImage(image).astype(np.float64)
    reader = StoreReader(real_built.workspace.store("real", real_built.rows()[source].case))
    stored = reader.read(0, (0, 0, 0), reader.levels[0].shape).astype(np.float64)
    rng = np.random.default_rng(0)
    inside = np.argwhere((values > -500) & (values < 1500))
    index = inside[rng.choice(len(inside), 20_000, replace=False)]
    world = np.array(
        [image.TransformIndexToPhysicalPoint(point[::-1].tolist()) for point in index]
    ) * [-1, -1, 1]
    voxel = nib.affines.apply_affine(np.linalg.inv(reader.affine), world)
    truth = values[tuple(index.T)]
    errors = {}
    for shift in product(np.array([-2, -1, 0, 1, 2]) * 0.375, repeat=3):
        moved = (voxel + np.array(shift) / 1.5).T[::-1]
        errors[shift] = np.abs(
            map_coordinates(stored, moved, order=1, mode="nearest") - truth
        ).mean()
    assert min(errors, key=lambda shift: errors[shift]) == (0.0, 0.0, 0.0)


def test_a_full_size_series_with_unsigned_padding(tmp_path: Path, shared_data: Path) -> None:
    """Feet first, padding 63536 stored as unsigned: accepted, and no padding is left."""
    archive = shared_data / "tcia_cmb_crc" / "CMB-CRC-MSB-01068_lung_100.tar.xz"
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "series", filter="data")
    found = survey("cmb", tmp_path / "series", Workspace(tmp_path / "workspace"), salt=SALT)
    (row,) = found.rows
    assert row.verdict == "accepted"
    assert row.shape == (512, 512, 100)
    assert row.spacing == pytest.approx((0.898438, 0.898438, 2.5), abs=1e-5)


def test_the_transfer_syntaxes_decode_to_the_same_pixels(shared_data: Path) -> None:
    from prect.ingest.readers.dicom import read_slices
    from prect.ingest.readers.dicom.pixels import FilePixels, decode_frame

    def decoded(path: Path) -> np.ndarray:
        (part,) = read_slices(path)
        return decode_frame(FilePixels(path.read_bytes()), part)[0]

    folder = shared_data / "transfer_syntaxes" / "cornerstone"
    plain = decoded(folder / "CTImage.dcm")
    lossless = [
        path
        for path in sorted(folder.glob("CTImage.dcm_*"))
        if not any(part.lossy for part in read_slices(path))
    ]
    same = {path.name: np.array_equal(decoded(path), plain) for path in lossless}
    assert len(same) >= 9
    assert all(same.values()), same
