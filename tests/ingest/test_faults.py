"""What is wrong with a file is named; the rest of the data set is not affected."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from prect.errors import WorkspaceError
from prect.ingest.survey import survey
from prect.manifests.sources import SourceRow, read_sources
from prect.workspace import Workspace
from tests.conftest import SALT
from tests.ingest.volumes import body_volume, write_nifti


def truncated(path: Path) -> None:
    write_nifti(path, body_volume())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def broken_checksum(path: Path) -> None:
    write_nifti(path, body_volume())
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(bytes(data))


def short_inside(path: Path) -> None:
    """A sound gzip stream around a volume whose last slices are missing."""
    write_nifti(path, body_volume())
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-5000]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_codes(path: Path) -> None:
    image = nib.Nifti1Image(body_volume().transpose(2, 1, 0), None)
    image.header.set_zooms((2, 2, 2))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, path)


def patch(path: Path, offset: int, data: bytes) -> None:
    write_nifti(path, body_volume())
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(content)))


def zero_pixdim(path: Path) -> None:
    patch(path, 80, struct.pack("<f", 0.0))


def nan_pixdim(path: Path) -> None:
    patch(path, 84, struct.pack("<f", float("nan")))


def spacing_conflict(path: Path) -> None:
    patch(path, 88, struct.pack("<f", 5.0))


def metres(path: Path) -> None:
    write_nifti(path, body_volume(), np.diag([0.002, 0.002, 0.002, 1.0]))


def four_dimensions(path: Path) -> None:
    voxels = np.stack([body_volume().transpose(2, 1, 0)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def eight_bits(path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (32, 36, 40)).astype(np.uint8)
    write_nifti(path, voxels)


def label_map(path: Path) -> None:
    write_nifti(path, (body_volume() > -500).astype(np.uint8))


def rescaled_twice(path: Path) -> None:
    write_nifti(path, body_volume() - 1024)


def constant(path: Path) -> None:
    write_nifti(path, np.full((32, 36, 40), -1000, dtype=np.int16))


def thin(path: Path) -> None:
    write_nifti(path, body_volume((40, 36, 8)))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated.nii.gz": (truncated, "nifti.truncated"),
    "crc.nii.gz": (broken_checksum, "nifti.truncated"),
    "short.nii.gz": (short_inside, "nifti.truncated"),
    "empty.nii.gz": (empty, "nifti.not_nifti"),
    "codes.nii.gz": (no_codes, "nifti.no_orientation"),
    "zero.nii.gz": (zero_pixdim, "nifti.pixdim"),
    "nan.nii.gz": (nan_pixdim, "nifti.pixdim"),
    "conflict.nii.gz": (spacing_conflict, "nifti.spacing_conflict"),
    "metres.nii.gz": (metres, "geometry.spacing"),
    "time.nii.gz": (four_dimensions, "volume.not_3d"),
    "bytes.nii.gz": (eight_bits, "hu.not_calibrated"),
    "labels.nii.gz": (label_map, "content.label_map"),
    "twice.nii.gz": (rescaled_twice, "hu.no_soft_tissue"),
    "constant.nii.gz": (constant, "content.constant"),
    "thin.nii.gz": (thin, "geometry.too_small"),
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SourceRow]:
    folder = tmp_path_factory.mktemp("faults")
    for name, (make, _) in FAULTS.items():
        make(folder / name)
    write_nifti(folder / "sound.nii.gz", body_volume())
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    survey("faults", folder, workspace, salt=SALT)
    return {row.source: row for row in read_sources(workspace.sources("faults"))}


@pytest.mark.parametrize(("name", "code"), [(name, code) for name, (_, code) in FAULTS.items()])
def test_a_fault_is_rejected_by_name(judged: dict[str, SourceRow], name: str, code: str) -> None:
    assert (judged[name].verdict, judged[name].code) == ("rejected", code), judged[name].reason


def test_the_sound_file_beside_them_is_accepted(judged: dict[str, SourceRow]) -> None:
    assert judged["sound.nii.gz"].verdict == "accepted"
    assert len(judged) == len(FAULTS) + 1


def judge_one(folder: Path) -> SourceRow:
    (row,) = survey("one", folder, Workspace(folder.parent / "workspace"), salt=SALT).rows
    return row


def test_nan_voxels_become_background_and_are_counted(tmp_path: Path) -> None:
    from prect.ingest.readers import READERS
    from prect.ingest.settings import Limits

    voxels = body_volume().astype(np.float32)
    voxels[0, 0, :7] = np.nan
    path = write_nifti(tmp_path / "nan.nii.gz", voxels)
    reader = READERS["nifti"]
    volume = reader.read(reader.read_header([path], Limits()))
    assert (volume.voxels[0, 0, :7] == -1024).all()
    assert volume.warnings == (("hu.not_finite", "7 voxels are not finite and became -1024 HU"),)


def test_a_big_endian_file_reads_the_same(tmp_path: Path) -> None:
    from prect.ingest.readers import READERS
    from prect.ingest.settings import Limits

    image = nib.Nifti1Image(
        body_volume().transpose(2, 1, 0),
        np.diag([2.0, 2.0, 2.0, 1.0]),
        nib.Nifti1Header(endianness=">"),
    )
    nib.save(image, tmp_path / "big.nii")
    reader = READERS["nifti"]
    volume = reader.read(reader.read_header([tmp_path / "big.nii"], Limits()))
    np.testing.assert_array_equal(volume.voxels, body_volume())


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    from prect.ingest.readers import READERS
    from prect.ingest.settings import Limits

    image = nib.Nifti1Image(
        (body_volume().transpose(2, 1, 0).astype(np.float64)), np.diag([2.0, 2.0, 2.0, 1.0])
    )
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "scaled.nii.gz")
    reader = READERS["nifti"]
    volume = reader.read(reader.read_header([tmp_path / "scaled.nii.gz"], Limits()))
    stored = nib.Nifti1Image.from_filename(tmp_path / "scaled.nii.gz")
    expected = np.rint(stored.get_fdata()).transpose(2, 1, 0)
    assert np.ptp(expected) > 100
    np.testing.assert_array_equal(volume.voxels, expected)


def test_a_metaimage_may_not_point_outside_its_folder(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(body_volume())
    image.SetSpacing((2, 2, 2))
    (tmp_path / "inside").mkdir()
    sitk.WriteImage(image, str(tmp_path / "inside" / "ct.mhd"))
    (tmp_path / "inside" / "ct.raw").rename(tmp_path / "ct.raw")
    header = tmp_path / "inside" / "ct.mhd"
    header.write_text(header.read_text().replace("ct.raw", "../ct.raw"))
    row = judge_one(tmp_path / "inside")
    assert (row.verdict, row.code) == ("rejected", "metaimage.outside_folder")


def test_a_short_raw_file_is_rejected(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(body_volume())
    image.SetSpacing((2, 2, 2))
    folder = tmp_path / "mhd"
    folder.mkdir()
    sitk.WriteImage(image, str(folder / "ct.mhd"))
    raw = folder / "ct.raw"
    raw.write_bytes(raw.read_bytes()[:-1000])
    assert judge_one(folder).code == "metaimage.truncated"


def test_an_absent_source_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="is not a folder"):
        survey("x", tmp_path / "nowhere", Workspace(tmp_path / "workspace"))
    with pytest.raises(WorkspaceError, match="cannot be used"):
        survey("../x", tmp_path, Workspace(tmp_path / "workspace"))


def test_ids_depend_on_the_salt_and_hide_the_name(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    write_nifti(folder / "jane-doe.nii.gz", body_volume())
    rows = [
        survey("d", folder, Workspace(tmp_path / name), salt=salt).rows[0]
        for name, salt in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    assert rows[0].case == rows[1].case != rows[2].case
    assert rows[0].patient == rows[1].patient != rows[2].patient
    assert "jane" not in rows[0].case + rows[0].patient
    with pytest.raises(WorkspaceError, match="another salt"):
        survey("d", folder, Workspace(tmp_path / "a"), salt="other")
