"""Made-up CT volumes with known landmarks, and files made from them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from prect.ingest.volume import Affine


def blob_volume(
    shape: tuple[int, int, int], affine: Affine, centre: NDArray[np.float64], sigma_mm: float = 8.0
) -> NDArray[np.int16]:
    """(k, j, i) HU: a Gaussian blob of soft tissue, 1064 HU above air, centred at a RAS point."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    world = nib.affines.apply_affine(affine, np.stack([i, j, k], axis=-1))
    square = ((world - centre) ** 2).sum(axis=-1)
    hu = -1024 + 1064 * np.exp(-square / (2 * sigma_mm**2))
    voxels: NDArray[np.int16] = np.rint(hu).astype(np.int16).transpose(2, 1, 0)
    return voxels


def centre_of_mass(hu: NDArray[np.int16], affine: Affine) -> NDArray[np.float64]:
    """RAS position of the centre of mass above air of a (z, y, x) volume."""
    weight = hu.astype(np.float64) + 1024
    grids = np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij")
    index = np.array([(weight * grid).sum() / weight.sum() for grid in grids[::-1]])
    position: NDArray[np.float64] = nib.affines.apply_affine(affine, index)
    return position


def body_volume(shape: tuple[int, int, int] = (40, 36, 32), seed: int = 3) -> NDArray[np.int16]:
    """(k, j, i) HU: noisy soft tissue in air; passes every check of the values.

    Organs of 80 HU more or less lie elsewhere for every seed, so that two seeds are two scans.
    """
    rng = np.random.default_rng(seed)
    hu = rng.normal(-1000, 15, shape[::-1])
    inner = tuple(slice(n // 5, -(n // 5)) for n in shape[::-1])
    organs = ndimage.gaussian_filter(rng.normal(0, 1, hu[inner].shape), 2.0)
    hu[inner] = 40 + 80 * organs / organs.std() + rng.normal(0, 20, organs.shape)
    return np.rint(hu).astype(np.int16)


def write_nifti(path: Path, voxels: NDArray[np.generic], affine: Affine | None = None) -> Path:
    """Write (k, j, i) voxels as NIfTI; 2 mm isotropic LPS when no affine is given."""
    affine = np.diag([-2.0, -2.0, 2.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    nib.save(image, path)
    return path
