"""A copy is recognised however it was turned, cropped or re-saved; another scan never is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.fingerprint import sketch, voxel_digest
from prect.ingest.volume import Affine, Volume
from prect.manifests.sketches import SKETCH_DTYPE, SKETCH_SIZE, overlaps, unpack
from prect.phantom import make_case

Voxels = NDArray[np.int16]
AXIAL = np.diag([-0.8, -0.8, 2.5, 1.0])


def volume(voxels: Voxels, affine: Affine = AXIAL) -> Volume:
    return Volume(np.ascontiguousarray(voxels, dtype=np.int16), affine, "nifti", "")


@cache
def phantom(index: int) -> Volume:
    case = make_case(21, index, "small")
    return volume(case.hu, case.affine)


def changed(original: Volume, change: Callable[[Voxels], NDArray[np.generic]]) -> Volume:
    """The volume with its array changed and its affine left as it is."""
    return volume(change(original.voxels).astype(np.int16), original.affine)


def reoriented(original: Volume, axes: str) -> Volume:
    """The same volume with its index along other anatomical axes: array and affine agree."""
    image = nib.Nifti1Image(original.voxels.transpose(2, 1, 0), original.affine)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(original.affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(turn)
    return volume(np.asarray(turned.dataobj).transpose(2, 1, 0), turned.affine)


def shares(*volumes: Volume) -> dict[tuple[int, int], float]:
    """Estimated share of the smaller of all pairs of volumes that overlap."""
    column = pa.chunked_array([[sketch(one) for one in volumes]], pa.binary())
    found = overlaps(unpack(column))
    pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
    return dict(zip(pairs, found.share.tolist(), strict=True))


def share(one: Volume, other: Volume) -> float:
    return shares(one, other).get((0, 1), 0.0)


def read(path: Path) -> Volume:
    """A file, or the DICOM series of a folder, by SimpleITK."""
    if path.is_dir():
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    else:
        image = sitk.ReadImage(str(path))
    matrix = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ nib.affines.from_matvec(matrix, image.GetOrigin())
    return volume(np.clip(np.rint(sitk.GetArrayFromImage(image)), -32768, 32767), affine)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI", "PIR", "SAL", "ASR"])
def test_the_digest_and_the_sketch_do_not_depend_on_the_order_of_the_axes(axes: str) -> None:
    turned = reoriented(phantom(0), axes)
    assert voxel_digest(turned) == voxel_digest(phantom(0))
    assert sketch(turned) == sketch(phantom(0))


@pytest.mark.parametrize(
    "flipped", [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)]
)
def test_a_mirrored_array_under_the_old_affine_is_the_same(flipped: tuple[int, ...]) -> None:
    mirrored = changed(phantom(1), lambda hu: np.flip(hu, flipped))
    assert not np.array_equal(mirrored.voxels, phantom(1).voxels)
    assert voxel_digest(mirrored) == voxel_digest(phantom(1))
    assert sketch(mirrored) == sketch(phantom(1))


def test_a_transposed_slice_under_the_old_affine_is_the_same() -> None:
    turned = reoriented(phantom(2), "LPS")
    swapped = changed(turned, lambda hu: hu.transpose(0, 2, 1))
    assert voxel_digest(swapped) == voxel_digest(turned)
    assert sketch(swapped) == sketch(turned)


def test_overwritten_spacing_and_padding_change_nothing() -> None:
    original = phantom(3)
    unit = original.affine @ np.diag([*1 / np.linalg.norm(original.affine[:3, :3], axis=0), 1])
    assert voxel_digest(volume(original.voxels, unit)) == voxel_digest(original)
    assert sketch(volume(original.voxels, unit)) == sketch(original)
    air = changed(original, lambda hu: np.where(hu < -1024, -1024, hu))
    padded = changed(original, lambda hu: np.where(hu <= -1024, -3024, hu))
    assert voxel_digest(padded) == voxel_digest(air)
    assert sketch(padded) == sketch(air)


def test_one_voxel_or_another_shape_makes_another_digest() -> None:
    voxels = phantom(0).voxels.copy()
    voxels[40, 50, 60] += 1
    assert voxel_digest(volume(voxels)) != voxel_digest(phantom(0))
    flat = np.full((4, 6, 10), 40, dtype=np.int16)
    assert voxel_digest(volume(flat)) != voxel_digest(volume(flat.reshape(4, 10, 6)[:, :5]))
    assert voxel_digest(volume(flat)) != voxel_digest(volume(flat.reshape(8, 3, 10)))


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(0, 2**32),
    st.permutations(range(3)),
    st.sets(st.integers(0, 2)),
)
def test_any_turn_of_any_voxels_has_the_same_digest(
    shape: tuple[int, int, int], seed: int, order: list[int], flipped: set[int]
) -> None:
    voxels = np.random.default_rng(seed).integers(-1024, 3072, shape, dtype=np.int16)
    turned = np.flip(voxels, tuple(flipped)).transpose(order)
    assert voxel_digest(volume(turned)) == voxel_digest(volume(voxels))


def noisy(hu: Voxels) -> Voxels:
    return hu + np.random.default_rng(5).integers(-1, 2, hu.shape, dtype=np.int16)


CROPS: dict[str, Callable[[Voxels], Voxels]] = {
    "27 % of the slices": lambda hu: hu[len(hu) // 3 :][: round(0.27 * len(hu))],
    "60 % of each slice's sides": lambda hu: hu[
        :, hu.shape[1] // 5 : -(hu.shape[1] // 5), hu.shape[2] // 5 : -(hu.shape[2] // 5)
    ],
    "75 % of every side": lambda hu: hu[tuple(slice(n // 4, None) for n in hu.shape)],
    "half, mirrored, clipped, with noise": lambda hu: np.clip(
        noisy(hu[len(hu) // 2 :, ::-1]), -1000, 1000
    ),
}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS.keys())
@pytest.mark.parametrize("index", [0, 3])
def test_a_crop_overlaps_with_the_whole(index: int, crop: Callable[[Voxels], Voxels]) -> None:
    original = reoriented(phantom(index), "LPS")
    assert share(original, changed(original, crop)) > 0.75


RESAVED: dict[str, tuple[Callable[[Voxels], NDArray[np.generic]], float]] = {
    "noise of 1 HU": (noisy, 0.8),
    "clipped": (lambda hu: np.clip(hu, -175, 250), 0.99),
    "half of the values truncated": (
        lambda hu: hu - np.random.default_rng(6).integers(0, 2, hu.shape),
        0.5,
    ),
    "off by one": (lambda hu: hu + 1, 0.25),
    "through 8 bits of [-1000, 1000]": (
        lambda hu: np.rint(np.rint((np.clip(hu, -1000, 1000) + 1000) * 0.1275) / 0.1275 - 1000),
        0.6,
    ),
}


@pytest.mark.parametrize(("change", "least"), RESAVED.values(), ids=RESAVED.keys())
@pytest.mark.parametrize("index", [1, 2])
def test_a_resaved_copy_overlaps(
    index: int, change: Callable[[Voxels], NDArray[np.generic]], least: float
) -> None:
    copy = changed(phantom(index), change)
    assert voxel_digest(copy) != voxel_digest(phantom(index))
    assert share(phantom(index), copy) > least


def test_different_phantoms_and_different_parts_of_one_never_overlap() -> None:
    volumes = [phantom(index) for index in range(20)]
    volumes += [changed(phantom(0), lambda hu: hu[: len(hu) // 2])]
    volumes += [changed(phantom(0), lambda hu: hu[len(hu) // 2 :])]
    assert all(len(sketch(one)) == SKETCH_SIZE * SKETCH_DTYPE.itemsize for one in volumes[:20])
    assert shares(*volumes).keys() == {(0, 20), (0, 21)}
    assert len({voxel_digest(one) for one in volumes}) == 22


def test_a_sketch_is_sorted_distinct_and_short_where_there_is_little() -> None:
    hashes = np.frombuffer(sketch(phantom(4)), SKETCH_DTYPE)
    assert len(hashes) == SKETCH_SIZE
    assert (hashes[1:] > hashes[:-1]).all()
    assert sketch(changed(phantom(4), lambda hu: hu[:8])) == b""
    assert sketch(volume(phantom(4).voxels[:, :31])) == b""
    assert sketch(volume(np.full((40, 64, 64), 40, dtype=np.int16))) == b""


def test_the_slices_may_be_more_than_are_read_at_a_time() -> None:
    tall = np.concatenate([phantom(index).voxels[:70, :60, :60] for index in (5, 6)])
    assert len(tall) > 64
    sagittal = np.ascontiguousarray(tall.transpose(2, 1, 0))
    across = np.zeros((4, 4))
    across[2, 0], across[1, 1], across[0, 2], across[3, 3] = 2.5, -0.8, -0.8, 1
    assert sketch(volume(sagittal, across)) == sketch(volume(tall))


def test_an_affine_without_directions_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"geometry\.invalid"):
        sketch(volume(phantom(0).voxels, np.zeros((4, 4))))


def test_fingerprints_stay_what_they_are_in_every_release_and_on_every_platform() -> None:
    k, j, i = np.ogrid[:24, :72, :64]
    voxels = 240 - 19 * abs(i - 20) - 11 * abs(j - 25) + 23 * abs(k - 9) + i * j // 4
    assert voxel_digest(volume(voxels)) == "04bc69ae4fd772c5b77944c191657a78"
    hashes = np.frombuffer(sketch(volume(voxels)), SKETCH_DTYPE)
    assert len(hashes) == 128
    assert [f"{number:016x}" for number in hashes[:2]] == ["00152d9995c7e53e", "01e194f7be64ed94"]


def test_real_copies_are_found(shared_data: Path) -> None:
    chest = shared_data / "chest_imaging_platform"
    scan, series = read(chest / "ct-64.nrrd"), read(chest / "ct-64Dicom")
    rotated = read(chest / "ct-64-transformed.nrrd")  # another header over the same voxels
    assert voxel_digest(scan) == voxel_digest(series) == voxel_digest(rotated)
    assert sketch(scan) == sketch(series) == sketch(rotated)
    whole = read(shared_data / "totalsegmentator" / "example_ct.nii.gz")
    part = read(shared_data / "totalsegmentator" / "example_ct_sm.nii.gz")
    assert voxel_digest(whole) != voxel_digest(part)
    assert share(whole, part) == 1.0


def test_different_real_scans_never_overlap(shared_data: Path) -> None:
    names = [
        "totalsegmentator/example_ct.nii.gz",
        "totalsegmentator/example_ct_dicom",  # the same body on another grid
        "elastix/3DCT_lung.mha",
        "elastix/3DCT_lung_baseline_small.mha",  # the same patient, breathing otherwise
        "chest_imaging_platform/ct-64.nrrd",
        "chest_imaging_platform/TestInput.nrrd",
        "ibsi/sts_validation/STS_001/CT_image.nii.gz",
        "ibsi/sts_validation/STS_002/CT_image.nii.gz",
    ]
    volumes = [read(shared_data / name) for name in names]
    assert all(sketch(one) for one in volumes)
    assert shares(*volumes) == {}
