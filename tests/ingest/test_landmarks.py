"""Landmarks at known places in the patient are there again after a reader and harmonisation."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from prect.ingest.findings import first_rejection
from prect.ingest.harmonise import Harmonised, harmonise
from prect.ingest.readers import READERS
from prect.ingest.settings import Harmonisation
from prect.ingest.volume import LPS_TO_RAS, Affine, Volume
from prect.manifests.limits import Limits
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.dicom_files import write_stack

SPACING = 1.5
TOLERANCE = SPACING / 4
"""Half a voxel is promised and 0.05 mm measured; half a voxel of the finest source is 0.5 mm."""
TO_GRID = Harmonisation(spacing_mm=(SPACING, SPACING, SPACING), body_crop=False)
EXTENT = 72.0
"""Field of view along each axis, about, in millimetres."""
QUARTERS = ((-1, -1, -1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
"""Quarters of the volume with a landmark each; every flip and every swap of axes shows."""
FORMATS = (".nii", ".nii.gz", ".mha", ".nrrd", "dicom")
SHEARABLE = (".nii", ".nii.gz", "dicom")


@dataclass(frozen=True)
class Scan:
    """A made-up scan: its geometry, and where its landmarks are."""

    shape: tuple[int, int, int]
    """Voxels along (i, j, k)."""
    affine: Affine
    landmarks: NDArray[np.float64]
    """(4, 3) RAS millimetres."""
    sigma: float
    """Of the Gaussian at each landmark, millimetres."""

    @property
    def hu(self) -> NDArray[np.int16]:
        """(k, j, i) HU: 1064 HU above air at each landmark."""
        k, j, i = np.meshgrid(*(np.arange(n) for n in self.shape[::-1]), indexing="ij")
        world = nib.affines.apply_affine(self.affine, np.stack([i, j, k], axis=-1))
        hu = np.full(world.shape[:3], -1024.0)
        for landmark in self.landmarks:
            square = ((world - landmark) ** 2).sum(axis=-1)
            hu += 1064 * np.exp(-square / (2 * self.sigma**2))
        return np.rint(hu).astype(np.int16)


@st.composite
def scans(draw: st.DrawFn, shearable: bool) -> Scan:
    """Any of the 48 orientations, any spacing, straight or turned about all axes, tilted or not."""
    order = draw(st.sampled_from(list(permutations(range(3)))))
    signs = draw(st.sampled_from(list(product((-1, 1), repeat=3))))
    degrees = draw(st.just((0.0, 0.0, 0.0)) | st.tuples(*[st.floats(-45, 45)] * 3))
    tilt = draw(st.just(0.0) | st.floats(-25, 25)) if shearable else 0.0
    spacing = np.array([draw(st.floats(1.0, 3.5)) for _ in range(3)])
    directions = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    directions = directions @ (np.eye(3)[:, order] * signs)
    # A gantry tilt: slices stay parallel, each is displaced along its columns.
    directions[:, 2] += np.tan(np.deg2rad(tilt)) * directions[:, 1]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    sizes = np.rint(EXTENT / spacing)
    jitter = [[draw(st.floats(-3, 3)) for _ in range(3)] for _ in QUARTERS]
    quarters = np.array(QUARTERS) * EXTENT / 4 + jitter
    landmarks = nib.affines.apply_affine(affine, (sizes - 1) / 2 + quarters / spacing)
    i, j, k = (int(n) for n in sizes)
    return Scan((i, j, k), affine, landmarks, sigma=1.2 * float(spacing.max()))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM slice whose tags other series can take."""
    stem = tmp_path_factory.mktemp("series") / "case"
    series = write_case(make_case(1, 0, size="small"), stem, "dicom")
    return min(series.iterdir())


def write(scan: Scan, format: str, folder: Path, template: Path) -> list[Path]:
    """The scan in a file, or as a series of files."""
    path = folder / f"scan{format}"
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    directions = LPS_TO_RAS @ scan.affine[:3, :3] / spacing
    if format in (".nii", ".nii.gz"):
        image = nib.Nifti1Image(scan.hu.transpose(2, 1, 0), scan.affine)
        image.set_sform(scan.affine, code=1)
        nib.save(image, path)
    elif format == "dicom":
        positions = LPS_TO_RAS @ scan.affine[:3] @ [0, 0, 0, 1] + np.outer(
            np.arange(scan.shape[2]), LPS_TO_RAS @ scan.affine[:3, 2]
        )
        write_stack(
            template,
            path,
            positions,
            scan.hu,
            PixelSpacing=[f"{spacing[1]:.8f}", f"{spacing[0]:.8f}"],
            ImageOrientationPatient=[f"{v:.8f}" for v in directions[:, :2].T.ravel()],
            SliceThickness=f"{spacing[2]:.4f}",
        )
        return sorted(path.iterdir())
    else:
        itk = sitk.GetImageFromArray(scan.hu)
        itk.SetSpacing(spacing.tolist())
        itk.SetOrigin((LPS_TO_RAS @ scan.affine[:3, 3]).tolist())
        itk.SetDirection(directions.ravel().tolist())
        sitk.WriteImage(itk, str(path))
    return [path]


def read(paths: list[Path], format: str) -> Volume:
    names = {".nii": "nifti", ".nii.gz": "nifti", ".mha": "metaimage", ".nrrd": "nrrd"}
    reader = READERS[names.get(format, format)]
    return reader.read(reader.read_header(paths, Limits()))


def found(result: Harmonised) -> NDArray[np.float64]:
    """(n, 3) RAS centres of mass of the bright spots of a harmonised volume."""
    weight = result.voxels.astype(np.float64) + 1024
    labels, count = ndimage.label(weight > 50)
    centres = ndimage.center_of_mass(weight, labels, range(1, count + 1))
    positions: NDArray[np.float64] = nib.affines.apply_affine(
        result.affine, np.array(centres).reshape(-1, 3)[:, ::-1]
    )
    return positions


@pytest.mark.parametrize("format", FORMATS)
def test_landmarks_survive_reading_and_harmonisation(format: str, template: Path) -> None:
    @settings(deadline=None, max_examples=25)
    @given(scan=scans(shearable=format in SHEARABLE))
    def check(scan: Scan) -> None:
        with tempfile.TemporaryDirectory() as folder:
            volume = read(write(scan, format, Path(folder), template), format)
        assert first_rejection(volume.findings) is None
        positions = found(harmonise(volume, TO_GRID))
        assert len(positions) == len(scan.landmarks)
        for landmark in scan.landmarks:
            assert np.abs(positions - landmark).max(axis=1).min() < TOLERANCE

    check()
