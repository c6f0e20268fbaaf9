"""Every slice lies in the volume where its own file says, or the series is rejected by name."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from prect.errors import VolumeError
from prect.ingest.readers.base import Header
from prect.ingest.readers.dicom import DicomReader, Slice
from prect.ingest.readers.dicom.geometry import Stack, stack_slices
from prect.manifests.limits import Limits
from prect.phantom import make_case
from prect.phantom.write import write_case
from tests.ingest.dicom_files import (
    ct_slice,
    edited,
    failures,
    header_in,
    slices_in,
    stack_of,
    write_stack,
)

LIMITS = Limits()
CASE = make_case(2, 0)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(CASE, tmp_path_factory.mktemp("geometry") / "sound", "dicom")


@pytest.fixture(scope="module")
def template(series: Path) -> Path:
    return sorted(series.iterdir())[0]


def world_of_corners(part: Slice) -> NDArray[np.float64]:
    """(4, 3) RAS millimetres of the four corner voxels, from the slice's own tags alone."""
    row, column = np.array(part.orientation[:3]), np.array(part.orientation[3:])
    down, right = part.pixel_spacing
    corners = [(0, 0), (part.columns - 1, 0), (0, part.rows - 1), (part.columns - 1, part.rows - 1)]
    origin = np.array(part.position)
    lps = np.array([origin + i * right * row + j * down * column for i, j in corners])
    ras: NDArray[np.float64] = lps * (-1.0, -1.0, 1.0)
    return ras


def farthest_corner(stack: Stack) -> float:
    """Largest distance of a corner voxel from where the volume's affine puts it, millimetres."""
    worst = 0.0
    for placed in stack.placed:
        i, j = placed.part.columns - 1, placed.part.rows - 1
        index = [(0, 0, placed.index), (i, 0, placed.index), (0, j, placed.index)]
        index.append((i, j, placed.index))
        world = nib.affines.apply_affine(stack.affine, np.array(index))
        worst = max(
            worst, float(np.linalg.norm(world - world_of_corners(placed.part), axis=1).max())
        )
    return worst


def volume_of(header: Header) -> NDArray[np.int16]:
    return DicomReader().read(header).voxels


def test_a_series_has_the_affine_and_the_voxels_that_were_written(series: Path) -> None:
    header = header_in(series)
    assert not failures(header.findings)
    np.testing.assert_allclose(header.affine, CASE.grid.affine, atol=0.003)
    np.testing.assert_array_equal(volume_of(header), CASE.hu)
    (direction,) = (f for f in header.findings if f.code == "dicom.z_direction")
    assert direction.passed
    assert float(direction.measured.split()[0]) < 0.01


def test_order_is_that_of_the_positions_whatever_names_and_numbers_say(
    series: Path, tmp_path: Path
) -> None:
    def edit(number: int, data: pydicom.Dataset) -> bool:
        data.InstanceNumber = (number * 7) % 83 + 1
        return True

    folder = edited(series, tmp_path / "order", edit)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"x{(number * 5) % 83:03d}.dcm")
    np.testing.assert_array_equal(volume_of(header_in(folder)), CASE.hu)


gap_lists = st.lists(st.floats(0.4, 6.0), min_size=15, max_size=30)


@given(gaps=gap_lists, tilt=st.floats(0, 25), seed=st.integers(0, 1000), upwards=st.booleans())
@settings(max_examples=60, deadline=None)
def test_slices_of_any_spacing_tilt_and_direction_keep_their_place(
    gaps: list[float], tilt: float, seed: int, upwards: bool
) -> None:
    rotation = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    along = rotation[:, 2] * np.cos(np.radians(tilt)) + rotation[:, 1] * np.sin(np.radians(tilt))
    depths = np.concatenate([[0.0], np.cumsum(gaps)]) / np.cos(np.radians(tilt))
    orientation = tuple(np.concatenate([rotation[:, 0], rotation[:, 1]]).tolist())
    slices = [
        ct_slice(n, position=tuple((depth * along).tolist()), orientation=orientation)
        for n, depth in enumerate(depths)
    ]
    stack = stack_slices(slices if upwards else slices[::-1], LIMITS)
    assert farthest_corner(stack) < 0.6  # a shear below 1e-3 is snapped: 0.5e-3 of the extent
    assert [placed.part for placed in stack.placed] == slices
    assert stack.count <= 4 * len(slices)


@given(gaps=gap_lists, tilt=st.sampled_from([0.0, 12.0]))
@settings(max_examples=25, deadline=None)
def test_uneven_slices_are_interpolated_from_their_true_positions(
    gaps: list[float], tilt: float
) -> None:
    """HU that is linear in depth is what linear interpolation must give back exactly."""
    from prect.ingest.readers.dicom.pixels import assemble

    depths = np.concatenate([[0.0], np.cumsum(gaps)])
    shift = np.tan(np.radians(tilt))
    slices = [ct_slice(n, position=(0.0, float(d * shift), float(d))) for n, d in enumerate(depths)]
    stack = stack_slices(slices, LIMITS)
    images = [np.full((2, 3), round(10 * depth), dtype=np.int16) for depth in depths]
    decoded = ((p.index, images[n].copy(), False) for n, p in enumerate(stack.placed))
    voxels, repeats, _ = assemble(decoded, stack.count, interpolate=True)
    truth = 10 * np.linspace(0, depths[-1], stack.count)
    assert repeats == 0
    assert np.abs(voxels[:, 0, 0] - truth).max() <= 1.0  # both are rounded to whole HU
    np.testing.assert_array_equal(voxels[0], images[0])
    np.testing.assert_array_equal(voxels[-1], images[-1])


def test_an_uneven_series_is_warned_of_and_straight(template: Path, tmp_path: Path) -> None:
    """Zones of 2 mm and of 3 mm slices: the phantom's planes come back where both grids meet."""
    depths = np.concatenate([np.arange(0, 30, 2.0), np.arange(30, 75, 3.0)])
    images = np.stack([CASE.hu[n] for n in range(len(depths))])
    positions = np.stack([0 * depths, 0 * depths, depths], axis=1)
    tags = {
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceThickness": [f"{t}" for t in np.where(depths < 30, 2, 3)],
    }
    header = header_in(write_stack(template, tmp_path / "zones", positions, images, **tags))
    assert list(failures(header.findings)) == ["dicom.nonuniform_spacing"]
    finding = failures(header.findings)["dicom.nonuniform_spacing"]
    assert finding.measured == "gaps of 2 to 3 mm"
    assert header.shape[2] == 37  # 72 mm in steps of 2 mm, both ends included
    voxels = volume_of(header)
    for n, depth in enumerate(depths):
        if depth % 2 == 0:
            np.testing.assert_array_equal(voxels[round(depth / 2)], images[n])
    between = (images[15].astype(float) + 2 * images[16]) / 3  # 32 mm lies between 30 and 33
    assert np.abs(voxels[16] - between).max() <= 0.5 + 1e-3


def test_padding_does_not_bleed_into_the_interpolated_slices(
    template: Path, tmp_path: Path
) -> None:
    """No padding tag, HU -2000 around a disc, as scanners write it."""
    depths = np.cumsum([0.0] + [2.0, 3.0] * 12)
    images = np.full((len(depths), 32, 32), -2000, dtype=np.int16)
    images[:, 8:24, 8:24] = 40
    images[3, 8:24, 8:24] = 100
    positions = np.stack([0 * depths, 0 * depths, depths], axis=1)
    folder = write_stack(
        template,
        tmp_path / "padded",
        positions,
        images,
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelRepresentation=1,
    )
    voxels = volume_of(header_in(folder))
    assert voxels.min() == -1024
    assert (voxels[:, 0, 0] == -1024).all()
    assert voxels[:, 8:24, 8:24].min() == 40


def depths_without(*gone: int, count: int = 30, step: float = 2.0) -> list[float]:
    return [n * step for n in range(count) if n not in gone]


MISSING: dict[str, tuple[list[float], float | list[float], str]] = {
    "one": (depths_without(9), 2.0, "1 slices"),
    "two at once": (depths_without(9, 10), 2.0, "2 slices"),
    "two apart": (depths_without(9, 20), 2.0, "2 slices"),
    "one, thickness unknown": (depths_without(9), 0.0, "1 slices"),
    "every second of the larger part": (depths_without(*range(7, 30, 2)), 2.0, "11 slices"),
    "one of thin slices far apart": (depths_without(9), 0.5, "1 slices"),
    "one of the thicker zone": (
        [*depths_without(count=12), *(24 + 3.5 * n for n in range(12) if n != 5)],
        [2.0] * 12 + [3.5] * 11,
        "1 slices",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_slices_are_counted_and_rejected(name: str) -> None:
    depths, thickness, measured = MISSING[name]
    found = failures(stack_slices(stack_of(depths, thickness), LIMITS).findings)
    assert "dicom.nonuniform_spacing" not in found
    assert found["dicom.missing_slices"].measured == measured
    assert measured in found["dicom.missing_slices"].reason


UNEVEN: dict[str, tuple[list[float], float | list[float]]] = {
    "thickness and gap double together": (
        [*depths_without(count=12), *(26 + 4.0 * n for n in range(12))],
        [2.0] * 12 + [4.0] * 12,
    ),
    "overlapping slices that cover the gap": (depths_without(9), 4.0),
    "two stations that overlap": (
        [*depths_without(count=12), *(23.1 + 2 * n for n in range(12))],
        2.0,
    ),
    "gaps of no whole multiple": (list(np.cumsum([0.0] + [2.0, 3.1] * 12)), 2.0),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_gaps_that_miss_nothing_are_interpolated(name: str) -> None:
    depths, thickness = UNEVEN[name]
    stack = stack_slices(stack_of(depths, thickness), LIMITS)
    assert "dicom.nonuniform_spacing" in failures(stack.findings)
    assert "dicom.missing_slices" not in failures(stack.findings)
    assert farthest_corner(stack) < 0.01


def interleaved(offset: float, second: range = range(30), **changes: Any) -> list[Slice]:
    """Slices of 3 mm, and those of a second stack between them, numbered on."""
    ours = [3.0 * n for n in range(30)]
    theirs = [3.0 * n + offset for n in second]
    slices: list[Slice] = stack_of([*ours, *theirs], 3.0)
    return slices[:30] + [replace(part, **changes) for part in slices[30:]]


@pytest.mark.parametrize("offset", [0.05, 0.3, 0.75, 1.0, 2.0, 2.5])
def test_stacks_between_each_other_are_rejected_by_their_gaps(offset: float) -> None:
    found = failures(stack_slices(interleaved(offset), LIMITS).findings)
    assert next(iter(found)) == "dicom.interleaved_stacks"
    found = failures(stack_slices(interleaved(offset, range(8, 20)), LIMITS).findings)
    assert next(iter(found)) == "dicom.interleaved_stacks"


@pytest.mark.parametrize("offset", [0.75, 1.3, 1.5])
@pytest.mark.parametrize("hint", ["acquisition", "temporal_position"])
def test_acquisitions_of_one_place_are_several_phases(offset: float, hint: str) -> None:
    found = failures(stack_slices(interleaved(offset, range(30), **{hint: 2}), LIMITS).findings)
    assert next(iter(found)) == "dicom.several_phases"
    assert found["dicom.several_phases"].measured == "parts of 30 and 30 slices"


def test_instance_numbers_that_repeat_tell_stacks_apart() -> None:
    slices = interleaved(1.5)
    pairs = [replace(part, instance_number=n % 30) for n, part in enumerate(slices)]
    assert "dicom.several_phases" in failures(stack_slices(pairs, LIMITS).findings)


FOLLOWING: dict[str, list[dict[str, Any]]] = {
    "acquisitions one after the other": [{"acquisition": n // 20} for n in range(60)],
    "numbers start anew": [{"instance_number": n % 20} for n in range(60)],
    "an acquisition for each few slices": [{"acquisition": n % 5} for n in range(60)],
    "no numbers": [{"acquisition": None, "instance_number": None} for _ in range(60)],
    "one number for all": [{"instance_number": 1} for _ in range(60)],
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_parts_that_follow_each_other_are_one_volume(name: str) -> None:
    slices = [replace(ct_slice(n), **changes) for n, changes in enumerate(FOLLOWING[name])]
    assert not failures(stack_slices(slices, LIMITS).findings)


def test_one_small_gap_does_not_multiply_the_slices() -> None:
    depths = [*depths_without(count=15), 28.1, *(30.0 + 2 * n for n in range(15))]
    stack = stack_slices(stack_of(depths, 2.0), LIMITS)
    assert stack.count == 4 * len(depths)


def test_gaps_too_large_to_interpolate_are_rejected_by_a_limit() -> None:
    depths = [*depths_without(count=12), *(22 + 9.0 * n for n in range(1, 12))]
    slices = stack_of(depths, [2.0] * 12 + [9.0] * 11)
    found = failures(stack_slices(slices, LIMITS).findings)
    assert list(found) == ["dicom.gap_too_large"]
    assert found["dicom.gap_too_large"].limit == "8 mm"
    found = failures(stack_slices(slices, Limits(max_gap_mm=10)).findings)
    assert list(found) == ["dicom.nonuniform_spacing"]


def test_a_uniform_gap_may_be_larger_than_that_limit() -> None:
    assert not failures(stack_slices(stack_of(depths_without(step=10.0), 10.0), LIMITS).findings)


def test_rounded_positions_are_one_spacing() -> None:
    depths = [round(n * 1.2345, 2) for n in range(200)]
    stack = stack_slices(stack_of(depths, 1.25), LIMITS)
    assert not failures(stack.findings)
    assert stack.count == 200
    assert stack.affine[2, 2] == pytest.approx(1.2345, abs=1e-4)


def test_small_deviations_that_add_up_are_not_averaged() -> None:
    """Gaps of 1.00 and then 1.04 mm: each within the tolerance, the middle 2 mm off its place."""
    depths = list(np.cumsum([0.0] + [1.0] * 100 + [1.04] * 100))
    stack = stack_slices(stack_of(depths, 1.0), LIMITS)
    assert list(failures(stack.findings)) == ["dicom.nonuniform_spacing"]
    assert farthest_corner(stack) < 0.01


def test_thin_slices_far_apart_are_warned_of() -> None:
    found = failures(stack_slices(stack_of(depths_without(step=4.0), 1.0), LIMITS).findings)
    assert list(found) == ["dicom.gap_above_thickness"]
    assert found["dicom.gap_above_thickness"].measured == "4 times"


def tilted(degrees: Sequence[float], step: float = 3.0) -> list[Slice]:
    """Slices whose planes stay upright and whose positions shift along y."""
    shift = np.cumsum([step * np.tan(np.radians(d)) for d in degrees])
    return [
        ct_slice(n, position=(0.0, float(shift[n]), n * step), thickness=step)
        for n in range(len(degrees))
    ]


def test_a_tilt_is_kept_in_the_affine_and_warned_of() -> None:
    stack = stack_slices(tilted([18.5] * 30), LIMITS)
    found = failures(stack.findings)
    assert list(found) == ["dicom.gantry_tilt"]
    assert found["dicom.gantry_tilt"].measured == "18.5 degrees"
    assert farthest_corner(stack) < 0.01


def test_a_tilt_beyond_the_limit_is_rejected_by_another_code() -> None:
    slices = tilted([31.0] * 30)
    found = failures(stack_slices(slices, LIMITS).findings)
    assert list(found) == ["dicom.tilt_too_large"]
    found = failures(stack_slices(slices, Limits(max_tilt_degrees=35)).findings)
    assert list(found) == ["dicom.gantry_tilt"]


def test_a_tilt_that_changes_on_the_way_is_crooked() -> None:
    found = failures(stack_slices(tilted([0.0] * 15 + [10.0] * 15), LIMITS).findings)
    assert next(iter(found)) == "dicom.crooked"


def test_slices_beside_each_other_are_crooked() -> None:
    slices = [ct_slice(n, position=(100.0 * (n % 2), 0.0, 2.0 * (n // 2))) for n in range(60)]
    assert "dicom.crooked" in failures(stack_slices(slices, LIMITS).findings)


def test_slices_at_one_position_are_no_volume() -> None:
    with pytest.raises(VolumeError, match=r"dicom.bolus_tracking: all 20 slices"):
        stack_slices([ct_slice(n, position=(0.0, 0.0, 61.5)) for n in range(20)], LIMITS)


@pytest.mark.parametrize("count", [1, 2, 15])
def test_too_few_slices_are_too_small(count: int) -> None:
    with pytest.raises(VolumeError, match=rf"geometry.too_small: {count} slices, at least 16"):
        stack_slices([ct_slice(n) for n in range(count)], LIMITS)


def test_one_slice_is_never_a_volume() -> None:
    with pytest.raises(VolumeError, match=r"geometry.too_small"):
        stack_slices([ct_slice()], Limits(min_voxels=1))


@pytest.mark.parametrize("uneven", [False, True])
def test_reading_holds_one_volume_and_little_more(
    template: Path, tmp_path: Path, uneven: bool
) -> None:
    gaps = np.where(np.arange(60) % 2, 2.0, 3.0 if uneven else 2.0)
    depths = np.cumsum(gaps)
    images = np.tile(np.resize(CASE.hu[0], (256, 256)), (60, 1, 1))
    positions = np.stack([0 * depths, 0 * depths, depths], axis=1)
    folder = write_stack(
        template, tmp_path / "s", positions, images, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]
    )
    header = header_in(folder)
    DicomReader().read(header)  # decoders are looked up on the first call
    tracemalloc.start()
    volume = DicomReader().read(header)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * volume.voxels.nbytes


# A real head: tilt of 18.5 degrees, 14 slices of 4 mm, a gap of 1.08 mm, 14 slices of 7 mm.


@pytest.fixture(scope="module")
def head_folder(shared_data: Path) -> Path:
    return shared_data / "dcm_qa_ct" / "GE_tilt_variable_spacing"


@pytest.fixture(scope="module")
def head(head_folder: Path) -> Header:
    return header_in(head_folder)


@pytest.fixture(scope="module")
def head_voxels(head: Header) -> NDArray[np.int16]:
    return volume_of(head)


def test_the_tilted_head_is_accepted_with_two_warnings(head: Header) -> None:
    found = failures(head.findings)
    assert list(found) == ["dicom.gantry_tilt", "dicom.nonuniform_spacing"]
    assert found["dicom.gantry_tilt"].measured == "18.5 degrees"
    assert found["dicom.nonuniform_spacing"].measured == "gaps of 1.081 to 6.999 mm"
    assert head.shape == (512, 512, 112)


def test_the_tilted_head_is_straight_against_the_positions_of_its_slices(head_folder: Path) -> None:
    stack = stack_slices(slices_in(head_folder), LIMITS)
    assert len(stack.placed) == 28
    assert farthest_corner(stack) < 0.01


def content_and_places(
    folder: Path, header: Header
) -> tuple[list[NDArray[np.int16]], NDArray[np.float64]]:
    """Images of the head, padding as air, and where the affine looks for them along k.

    Both from the tags alone, in the order of the file names, which is that of the positions.
    """
    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    images = [np.where(d.pixel_array <= -1500, -1024, d.pixel_array) for d in files]
    first_voxels = np.array([d.ImagePositionPatient for d in files], float) * (-1, -1, 1)
    index = nib.affines.apply_affine(np.linalg.inv(header.affine), first_voxels)
    np.testing.assert_allclose(index[:, :2], 0, atol=0.02)
    return images, index[:, 2]


def test_the_content_of_each_slice_of_the_head_lies_at_its_place(
    head: Header, head_folder: Path, head_voxels: NDArray[np.int16]
) -> None:
    """The volume at the height of a slice looks like that slice, and unlike the next one."""
    images, places = content_and_places(head_folder, head)
    np.testing.assert_array_equal(head_voxels[0], images[0])
    np.testing.assert_array_equal(head_voxels[-1], images[-1])
    for n, place in enumerate(places):
        voxels = head_voxels[round(place)].astype(float)  # at most 0.65 mm from the slice
        differences = [np.abs(voxels - image).mean() for image in images]
        assert int(np.argmin(differences)) == n


def test_slices_of_the_head_between_are_the_linear_mean_of_their_neighbours(
    head: Header, head_folder: Path, head_voxels: NDArray[np.int16]
) -> None:
    images, places = content_and_places(head_folder, head)
    for k in (1, 40, 41, 42, 55, 56, 80, 110):
        n = int(np.searchsorted(places, k)) - 1
        weight = (k - places[n]) / (places[n + 1] - places[n])
        mean = (1 - weight) * images[n] + weight * images[n + 1]
        assert np.abs(head_voxels[k] - mean).max() <= 0.6


def test_the_head_is_not_given_padding(head_voxels: NDArray[np.int16]) -> None:
    assert head_voxels.min() == -1024
