"""NIfTI files made from stores: the same voxels at the same place, and whole or not at all."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from prect.cache.convert import Job, convert
from prect.cache.format import SHARD_KEY
from prect.cache.intensity import Intensity
from prect.cache.profile import load_profile
from prect.cache.reader import StoreReader
from prect.cache.upkeep.export import export_nifti, find_store, level_affine, plan_export
from prect.errors import ChunkError, ConfigError, ManifestError, StoreError, WorkspaceError
from prect.ingest.survey import survey
from prect.manifests.limits import Limits
from prect.manifests.stores import CacheRow, QuarantineRow, write_quarantine
from prect.phantom import ORGANS, make_case
from prect.workspace import Workspace
from tests.cache.small_workspaces import small_workspace, source_rows
from tests.cache.stores import ORIGIN, SPACING, random_hu, write_store
from tests.conftest import SALT, Built
from tests.ingest.volumes import blob_volume, centre_of_mass

SHAPE = (21, 34, 43)
"""Odd and even along the axes, so that pooling pads some of them."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "case.ome.zarr"
    write_store(path, random_hu(SHAPE))
    return path


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nibabel_reads_voxels_and_place(
    store: Path, tmp_path: Path, level: int, suffix: str
) -> None:
    out = tmp_path / f"volume{suffix}"
    export_nifti(store, out, level=level)
    image: Any = nib.load(out)
    with StoreReader(store) as reader:
        expected = reader.read(level, (0, 0, 0), reader.levels[level].shape)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), expected.transpose(2, 1, 0))
    assert image.header.get_xyzt_units()[0] == "mm"
    spacing = np.array(SPACING[::-1]) * 2**level
    np.testing.assert_allclose(image.header.get_zooms(), spacing, rtol=1e-6)
    centre = np.array(ORIGIN) + np.array(SPACING[::-1]) * (2**level - 1) / 2
    for affine, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(affine, np.diag([*spacing, 1]) + _shift(centre), atol=1e-5)


def _shift(centre: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = centre
    return matrix


@pytest.mark.parametrize("level", [0, 1, 2])
def test_simpleitk_reads_the_same(store: Path, tmp_path: Path, level: int) -> None:
    export_nifti(store, tmp_path / "volume.nii.gz", level=level)
    image = sitk.ReadImage(str(tmp_path / "volume.nii.gz"))
    with StoreReader(store) as reader:
        affine = level_affine(reader.affine, level)
        expected = reader.read(level, (0, 0, 0), reader.levels[level].shape)
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    for index in ((0, 0, 0), (3, 2, 1), (7, 0, 4)):
        point = (to_lps @ affine @ [*index, 1])[:3]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), point, atol=1e-4)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_landmark_lies_where_it_was(tmp_path: Path, level: int) -> None:
    z, y, x = SPACING
    affine = np.diag([x, y, z, 1]) + _shift(np.array(ORIGIN))
    centre = np.array([40.0, 62.0, 55.0])
    volume = blob_volume((120, 60, 28), affine, centre, sigma_mm=8.0)
    write_store(tmp_path / "case.ome.zarr", volume)
    export_nifti(tmp_path / "case.ome.zarr", tmp_path / "blob.nii.gz", level=level)
    image: Any = nib.load(tmp_path / "blob.nii.gz")
    found = centre_of_mass(np.asanyarray(image.dataobj).transpose(2, 1, 0), image.affine)
    # A voxel of level 2 is 12 mm along z; one shifted by half of level 0 would show.
    np.testing.assert_allclose(found, centre, atol=0.05)


@pytest.mark.slow
def test_organs_of_a_phantom_are_found_at_their_true_position(
    phantom_built: Built, tmp_path: Path
) -> None:
    rows = phantom_built.rows()
    compared = 0
    for index, suffix in enumerate((".nii.gz", "", ".mha", ".nrrd")):
        case = make_case(1, index, "small")
        source = f"case_{index:04d}{suffix}"
        for level in (0, 1, 2):
            out = tmp_path / f"{index}-{level}.nii"
            export_nifti(find_store(phantom_built.workspace, source), out, level=level)
            image: Any = nib.load(out)
            voxels = np.asanyarray(image.dataobj)
            assert image.header["descrip"].item().decode() == (
                f"prect phantoms/{rows[source].case} level {level}"
            )
            for name in {"liver", "spleen", "bladder"} & case.landmarks.keys():
                world = [*case.landmarks[name].centroid, 1.0]
                at = tuple(np.rint((np.linalg.inv(image.affine) @ world)[:3]).astype(int))
                organ = np.median(case.hu[case.labels == ORGANS[name]])
                assert abs(float(voxels[at]) - float(organ)) < 60, (source, level, name)
                compared += 1
    assert compared >= 12


def _real_store(folder: Path, file: Path) -> Path:
    (folder / "source").mkdir()
    shutil.copy(file, folder / "source")
    workspace = Workspace(folder / "workspace")
    (row,) = survey("real", folder / "source", workspace, salt=SALT).rows
    store = workspace.store("real", row.case)
    assert isinstance(convert(Job(row, load_profile("iso1.5"), store, Limits())), CacheRow)
    return store


@pytest.mark.parametrize(
    "name",
    [
        "totalsegmentator/example_ct.nii.gz",
        "elastix/3DCT_lung.mha",
        "ibsi/sts_validation/STS_001/CT_image.nii.gz",
    ],
)
def test_a_real_scan_overlays_its_source(shared_data: Path, tmp_path: Path, name: str) -> None:
    store = _real_store(tmp_path, shared_data / name)
    export_nifti(store, tmp_path / "out.nii.gz")
    exported = sitk.ReadImage(str(tmp_path / "out.nii.gz"), sitk.sitkFloat32)
    source = sitk.ReadImage(str(shared_data / name), sitk.sitkFloat32)
    outside = -30000.0
    resampled = sitk.Resample(source, exported, sitk.Transform(), sitk.sitkLinear, outside)
    theirs, ours = (sitk.GetArrayFromImage(image) for image in (resampled, exported))
    # Where the source knows the neighbours on all sides and nothing was clipped.
    compared = (theirs > -1020) & (theirs < 3060)
    assert compared.mean() > 0.5
    assert np.abs(ours - theirs)[compared].max() <= 1


@pytest.mark.parametrize("kind", ["one byte", "whole shard"])
def test_nothing_is_written_of_a_damaged_store(store: Path, tmp_path: Path, kind: str) -> None:
    damaged = tmp_path / "case.ome.zarr"
    shutil.copytree(store, damaged)
    shard = damaged / "0" / SHARD_KEY
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16
    shard.write_bytes(data if kind == "one byte" else b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(ChunkError):
        export_nifti(damaged, tmp_path / "out" / "volume.nii.gz")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "volume.nii.gz").write_text("of before")
    with pytest.raises(ChunkError):
        export_nifti(damaged, tmp_path / "out" / "volume.nii.gz", force=True)
    assert (tmp_path / "out" / "volume.nii.gz").read_text() == "of before"
    export_nifti(damaged, tmp_path / "out" / "coarse.nii.gz", level=1)  # another shard, sound


def test_a_full_disk_leaves_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object, path: Path) -> None:
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prect.cache.upkeep.export.nib.save", fail)
    (tmp_path / "volume.nii").write_text("of before")
    with pytest.raises(OSError, match="No space"):
        export_nifti(store, tmp_path / "volume.nii", force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["volume.nii"]
    assert (tmp_path / "volume.nii").read_text() == "of before"


def test_a_file_is_replaced_only_when_asked(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "volume.nii.gz"
    plan = plan_export(store, out, level=1)
    assert not out.parent.exists()
    assert (plan.shape, plan.spacing) == ((22, 17, 11), (1.5, 3.0, 6.0))
    export_nifti(store, out, level=1)
    first = out.read_bytes()
    for act in (plan_export, export_nifti):
        with pytest.raises(WorkspaceError, match="--force"):
            act(store, out)
    export_nifti(store, out, force=True)
    assert gzip.decompress(out.read_bytes()) != gzip.decompress(first)
    export_nifti(store, out, level=1, force=True)
    assert out.read_bytes() == first  # the same store gives the same bytes


@pytest.mark.parametrize("name", ["volume", "volume.nii.zst", "volume.gz", ".nii.gz", "a.mha"])
def test_another_suffix_is_refused(store: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.nii\.gz or \.nii"):
        export_nifti(store, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_level_that_is_not_there_is_named(store: Path, tmp_path: Path) -> None:
    for act in (plan_export, export_nifti):
        with pytest.raises(StoreError, match="has the levels 0 to 2, not 3"):
            act(store, tmp_path / "volume.nii", level=3)


def test_a_window_is_given_back_as_hu(tmp_path: Path) -> None:
    volume = random_hu((8, 9, 10))
    window = Intensity.window(-175, 250)
    write_store(tmp_path / "case.ome.zarr", volume, intensity=window, levels=1)
    export_nifti(tmp_path / "case.ome.zarr", tmp_path / "v.nii")
    image: Any = nib.load(tmp_path / "v.nii")
    kept = np.clip(volume, -175, 250).transpose(2, 1, 0)
    assert np.abs(np.asanyarray(image.dataobj) - kept).max() <= window.max_error


def test_a_volume_is_found_by_any_of_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `copy` and `same` are one scan, of which the first by name is kept.
    workspace = small_workspace(tmp_path, {"a": {"ct": 1, "copy": 2, "same": 2}, "b": {"ct": 3}})
    rows = source_rows(workspace, "a")
    case = rows["ct"].case
    store = workspace.store("a", case)
    foreign = tmp_path / "a" / "ct.nii.gz"
    for name in (case, f"a/{case}", "a:ct.nii.gz", f"a:{case}", str(foreign), str(store)):
        assert find_store(workspace, name) == store, name
    monkeypatch.chdir(tmp_path)
    for name in ("a/ct.nii.gz", f"workspace/cache/a/{case}.ome.zarr", "./a/ct.nii.gz"):
        assert find_store(workspace, name).resolve() == store, name
    with pytest.raises(ManifestError, match=r"'ct\.nii\.gz' may be any of 2 volumes; give one: a/"):
        find_store(workspace, "ct.nii.gz")
    with pytest.raises(ManifestError, match=rf"no volume '{case[:8]}' .*near: a/{case}"):
        find_store(workspace, case[:8])
    with pytest.raises(ManifestError, match=r"near: a:same\.nii\.gz"):
        find_store(workspace, "sane.nii.gz")
    kept, twin = sorted((rows["copy"], rows["same"]), key=lambda row: row.verdict)
    assert find_store(workspace, kept.source)
    with pytest.raises(StoreError, match=r"is duplicate \(duplicate\.voxels: the same voxels"):
        find_store(workspace, twin.source)
    shutil.rmtree(store)
    with pytest.raises(StoreError, match="run: prect build-cache a"):
        find_store(workspace, case)
    failed = QuarantineRow("a", case, "d", "p", "content.no_body", "no body is in it")
    write_quarantine(workspace.quarantine("a"), [failed])
    with pytest.raises(StoreError, match=r"quarantined \(content\.no_body: no body is in it\)"):
        find_store(workspace, case)


def test_stores_that_came_without_their_source_manifest_are_found(tmp_path: Path) -> None:
    workspace = small_workspace(tmp_path, {"a": {"ct": 1}})
    (row,) = source_rows(workspace, "a").values()
    workspace.sources("a").unlink()
    assert find_store(workspace, row.case) == workspace.store("a", row.case)
    shutil.rmtree(workspace.store("a", row.case))
    with pytest.raises(StoreError, match="--rebuild-manifest"):
        find_store(workspace, row.case)
