"""Pixels become HU: every transfer syntax, padding and rescale; every file is read once."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from prect.errors import VolumeError
from prect.ingest.readers.dicom import DicomReader, read_slices
from prect.ingest.readers.dicom.pixels import FilePixels
from prect.manifests.limits import Limits
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.dicom_files import edited, failures, header_in

CASE = make_case(2, 0)
LIMITS = Limits()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound series of a phantom, slices in the order of their names."""
    return write_case(CASE, tmp_path_factory.mktemp("series") / "sound", "dicom")


def raw_file(data: Dataset, path: Path, implicit: bool) -> Path:
    """The data set alone, without preamble and file meta information."""
    little = data.file_meta.TransferSyntaxUID.is_little_endian
    del data.file_meta
    data.save_as(path, implicit_vr=implicit, little_endian=little)
    return path


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_a_file_without_preamble_is_dicom_all_the_same(
    series: Path, tmp_path: Path, syntax: pydicom.uid.UID
) -> None:
    plain = sorted(series.iterdir())[30]
    (truth,) = read_slices(plain)
    data = in_syntax(pydicom.dcmread(plain), syntax, 16)
    (part,) = read_slices(raw_file(data, tmp_path / "raw", syntax.is_implicit_VR))
    assert part.position == truth.position
    assert (part.rows, part.columns) == (truth.rows, truth.columns)
    pixels, _ = FilePixels((tmp_path / "raw").read_bytes()).stored(0, 1)
    np.testing.assert_array_equal(pixels.astype(int) - 1024, CASE.hu[30])


def test_a_file_that_is_gone_is_unreadable(series: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(series, tmp_path / "gone")
    header = header_in(folder)
    header.paths[5].unlink()
    with pytest.raises(VolumeError, match=r"file.unreadable: cannot be read: No such file"):
        DicomReader().read(header)
    with pytest.raises(VolumeError, match=r"file.unreadable"):
        DicomReader().read_header(header.paths, LIMITS)
    header.paths[5].write_text("something else")
    with pytest.raises(VolumeError, match=r"dicom.unreadable"):
        DicomReader().read_header(header.paths, LIMITS)


def test_each_file_is_read_once(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = header_in(series)
    opened: list[str] = []
    sound = io.open

    def counting(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return sound(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", counting)
    volume = DicomReader().read(header)
    assert opened == [str(path) for path in header.paths]
    monkeypatch.undo()
    assert volume.source_digest == DicomReader().digest(header.paths)


def in_syntax(data: pydicom.Dataset, syntax: pydicom.uid.UID, bits: int) -> Dataset:
    """The uncompressed image in another transfer syntax; ``bits`` are stored of 16."""
    copy = Dataset()  # one that pydicom may encode anew
    copy.update({element.tag: element for element in data})
    copy.file_meta = data.file_meta
    copy.BitsStored, copy.HighBit = bits, bits - 1
    if syntax == ExplicitVRBigEndian:
        copy.PixelData = np.frombuffer(copy.PixelData, "<u2").astype(">u2").tobytes()
    if syntax == RLELossless:
        copy.compress(RLELossless)
    copy.file_meta.TransferSyntaxUID = syntax
    return copy


def decoded(path: Path) -> NDArray[Any]:
    return FilePixels(path.read_bytes()).stored(0, 1)[0]


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
    ],
)
def test_pixels_are_those_that_pydicom_decodes(
    series: Path, tmp_path: Path, syntax: pydicom.uid.UID, signed: int, bits: int
) -> None:
    """Random bits in all 16: what lies above the stored bits must not count."""
    data = pydicom.dcmread(sorted(series.iterdir())[0])
    count = data.Rows * data.Columns
    data.PixelData = np.random.default_rng(0).integers(0, 1 << 16, count, "<u2").tobytes()
    data.PixelRepresentation = signed
    path = tmp_path / "p.dcm"
    in_syntax(data, syntax, bits).save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(decoded(path), pydicom.dcmread(path).pixel_array)


@pytest.mark.parametrize("stated", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_file_may_name_the_other_uncompressed_syntax(
    series: Path, tmp_path: Path, stated: pydicom.uid.UID
) -> None:
    path = sorted(series.iterdir())[30]
    data = in_syntax(pydicom.dcmread(path), stated, 16)
    implicit = stated == ExplicitVRLittleEndian  # what is written is not what is stated
    meta = data.file_meta
    raw = raw_file(data, tmp_path / "raw", implicit)
    head = DicomBytesIO()
    write_file_meta_info(head, meta)
    (tmp_path / "p.dcm").write_bytes(bytes(128) + b"DICM" + head.getvalue() + raw.read_bytes())
    (part,) = read_slices(tmp_path / "p.dcm")
    (truth,) = read_slices(path)
    assert (part.position, part.rescale) == (truth.position, truth.rescale)
    np.testing.assert_array_equal(decoded(tmp_path / "p.dcm").astype(int) - 1024, CASE.hu[30])


PADDINGS = {
    "as it is stored": (63536, None, 63536, 0, 16),
    "signed tag, unsigned pixels": (-2000, None, 63536, 0, 16),
    "signed pixels": (-2000, None, 63536, 1, 16),
    "unsigned tag, signed pixels": (63536, None, 63536, 1, 16),
    "above the stored bits": (63536, None, 63536, 0, 12),
    "a range": (63000, 63600, 63536, 0, 16),
    "a range in reverse, signed": (-1900, -2100, 63536, 1, 16),
}


@pytest.mark.parametrize("name", PADDINGS)
def test_padding_becomes_air_and_nothing_else_does(series: Path, tmp_path: Path, name: str) -> None:
    value, limit, stored, signed, bits = PADDINGS[name]

    def edit(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
        pixels = np.frombuffer(data.PixelData, "<u2").reshape(data.Rows, data.Columns).copy()
        pixels[:3] = stored
        data.PixelData = pixels.tobytes()
        data.PixelRepresentation, data.BitsStored, data.HighBit = signed, bits, bits - 1
        kind = "SS" if value < 0 else "US"
        data.add_new("PixelPaddingValue", kind, value)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", kind, limit)
        return True

    voxels = DicomReader().read(header_in(edited(series, tmp_path / "padded", edit))).voxels
    assert (voxels[:, :3] == -1024).all()
    np.testing.assert_array_equal(voxels[:, 3:], CASE.hu[:, 3:])


TISSUE_PADDINGS = {
    "water": (0, None, 0),
    "water in a range": (-2000, 0, 0),
    "just above air": (125, None, -1024),
    "the highest stored value": (4095, None, -1024),
}


@pytest.mark.parametrize("name", TISSUE_PADDINGS)
def test_padding_that_may_be_tissue_is_not_made_air(
    series: Path, tmp_path: Path, name: str
) -> None:
    value, limit, intercept = TISSUE_PADDINGS[name]

    def edit(number: int, data: pydicom.Dataset) -> bool:  # noqa: ARG001
        pixels = np.frombuffer(data.PixelData, "<u2").astype(int) - 1024 - intercept
        pixels = pixels.reshape(data.Rows, data.Columns)
        pixels[:3] = value
        data.PixelData = pixels.astype("<i2").tobytes()
        data.PixelRepresentation, data.BitsStored, data.HighBit = 1, 16, 15
        data.RescaleIntercept = str(intercept)
        data.add_new("PixelPaddingValue", "SS", value)
        if limit is not None:
            data.add_new("PixelPaddingRangeLimit", "SS", limit)
        return True

    volume = DicomReader().read(header_in(edited(series, tmp_path / "padded", edit)))
    assert list(failures(volume.findings)) == ["dicom.padding_ignored"]
    assert (volume.voxels[:, :3] == value + intercept).all()
    np.testing.assert_array_equal(volume.voxels[:, 3:], CASE.hu[:, 3:])


def test_each_slice_has_its_own_rescale(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        if number % 2:
            pixels = np.frombuffer(data.PixelData, "<u2")
            data.PixelData = (pixels * 2).astype("<u2").tobytes()
            data.RescaleSlope, data.RescaleIntercept = "0.5", "-1024"
            data.BitsStored, data.HighBit = 16, 15
        return True

    volume = DicomReader().read(header_in(edited(series, tmp_path / "lines", edit)))
    np.testing.assert_array_equal(volume.voxels, CASE.hu)
    assert not volume.fractional


def test_lost_fractions_and_clipped_values_are_told(series: Path, tmp_path: Path) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        data.RescaleSlope = "0.3" if number else "100"
        return True

    volume = DicomReader().read(header_in(edited(series, tmp_path / "odd", edit)))
    assert volume.fractional
    truth = np.rint((CASE.hu[1].astype(float) + 1024) * 0.3 - 1024)
    np.testing.assert_array_equal(volume.voxels[1], truth)
    assert volume.voxels[0].max() == 32767
