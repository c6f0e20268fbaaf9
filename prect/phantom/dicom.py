"""A case as a DICOM CT series: one folder, one file a slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from prect.phantom.case import PhantomCase

RESCALE_INTERCEPT = -1024
_DATE, _TIME = "20200101", "120000"


def write_dicom(case: PhantomCase, folder: Path) -> None:
    """Write a CT series into a new folder.

    Slices are files ``0001.dcm`` and up, in the order of index axis k, along which their
    positions ascend in the direction of the slice normal. World is LPS mm (DICOM PS3.3
    C.7.6.2.1.1). Stored values are HU + 1024, unsigned, 12 of 16 bits.

    Args:
        case: the case; its index axes are right-handed.
        folder: must not exist yet.

    Raises:
        OSError: the folder exists or cannot be written.
    """
    folder.mkdir()
    common = _common(case)
    for k, plane in enumerate(case.hu):
        path = folder / f"{k + 1:04d}.dcm"
        uid = _uid(case, f"instance {k}")
        dataset = FileDataset(str(path), common, file_meta=_file_meta(uid), preamble=b"\0" * 128)
        position = _lps(np.array(case.grid.origin) + k * _step(case))
        dataset.SOPInstanceUID = uid
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [decimal_string(v) for v in position]
        dataset.SliceLocation = decimal_string(k * case.grid.spacing[2])
        stored = (plane.astype(np.int32) - RESCALE_INTERCEPT).astype("<u2")
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.save_as(path, enforce_file_format=True)


def decimal_string(value: float) -> str:
    """A number as DICOM's DS: at most 16 characters, here at most eight decimals."""
    text = f"{value:.8f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _step(case: PhantomCase) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """RAS mm from one slice to the next."""
    return np.array(case.grid.direction)[:, 2] * case.grid.spacing[2]


def _lps(ras: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    return [-float(ras[0]), -float(ras[1]), float(ras[2])]


def _uid(case: PhantomCase, role: str) -> UID:
    parameters = case.parameters
    sources = ["prect phantom", str(parameters.seed), str(parameters.index), parameters.size, role]
    return generate_uid(entropy_srcs=sources)


def _file_meta(uid: UID) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _common(case: PhantomCase) -> Dataset:
    """What all slices share."""
    dataset = Dataset()
    _describe_patient_and_study(dataset, case)
    _describe_acquisition(dataset, case)
    _describe_pixels(dataset, case)
    return dataset


def _describe_patient_and_study(dataset: Dataset, case: PhantomCase) -> None:
    index = case.parameters.index
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = f"PHANTOM^{index:04d}"
    dataset.PatientID = f"PHANTOM-{index:04d}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.StudyInstanceUID = _uid(case, "study")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = _DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = _TIME
    dataset.StudyID = str(index)
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Synthetic patient"


def _describe_acquisition(dataset: Dataset, case: PhantomCase) -> None:
    scan = case.parameters.scan
    dataset.SOPClassUID = CTImageStorage
    dataset.Modality = "CT"
    dataset.Manufacturer = "prect"
    dataset.ManufacturerModelName = "phantom"
    dataset.SeriesInstanceUID = _uid(case, "series")
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = f"{scan.region} {scan.phase}"
    dataset.BodyPartExamined = scan.region.upper()
    dataset.PatientPosition = "HFS"
    dataset.FrameOfReferenceUID = _uid(case, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.AcquisitionNumber = 1
    dataset.KVP = str(scan.kvp)
    dataset.ConvolutionKernel = "STANDARD"
    if scan.phase != "native":
        dataset.ContrastBolusAgent = "IODINE"


def _describe_pixels(dataset: Dataset, case: PhantomCase) -> None:
    grid = case.grid
    direction = np.array(grid.direction)
    along_row, along_column = _lps(direction[:, 0]), _lps(direction[:, 1])
    dataset.ImageOrientationPatient = [decimal_string(v) for v in along_row + along_column]
    # Row spacing first: the distance between rows, which is the step along index axis j.
    dataset.PixelSpacing = [decimal_string(grid.spacing[1]), decimal_string(grid.spacing[0])]
    dataset.SliceThickness = decimal_string(grid.spacing[2])
    dataset.Rows, dataset.Columns = grid.shape[1], grid.shape[0]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept = str(RESCALE_INTERCEPT)
    dataset.RescaleSlope = "1"
    dataset.RescaleType = "HU"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
