"""Tables survive a crash and refuse what they are not; splits are stable."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prect.errors import ManifestError, WorkspaceError
from prect.manifests.parquet import write_table
from prect.manifests.sources import (
    SOURCES_SCHEMA,
    SourceRow,
    read_sources,
    to_table,
    write_sources,
)
from prect.manifests.splits import heldout_mask, patient_rank
from prect.manifests.stores import CacheRow, load_cache_table, write_cache_rows
from prect.workspace import Workspace


def cache_row(number: int, dataset: str = "d") -> CacheRow:
    return CacheRow(
        dataset=dataset,
        case=f"{number:016x}",
        patient=f"p{number // 2}",
        series="",
        source_digest=f"s{number}",
        profile="iso",
        shape=(100 + number % 50, 200, 201),
        spacing=(1.5, 1.5, 1.5),
        levels=3,
        bytes=10,
        source_bytes=20,
    )


def test_source_rows_round_trip_sorted(tmp_path: Path) -> None:
    rows = [
        SourceRow(
            "d", "2", "accepted", "", "", "dicom", "b", "/r", ("1.dcm", "2.dcm"), shape=(1, 2, 3)
        ),
        SourceRow(
            "d", "1", "rejected", "a.b", "why", "nifti", "a.nii", "/r", spacing=(1.0, 2.0, 3.0)
        ),
    ]
    write_sources(tmp_path / "sources.parquet", to_table(rows))
    assert read_sources(tmp_path / "sources.parquet") == rows[::-1]
    names = pq.read_schema(tmp_path / "sources.parquet").names
    assert {"dataset", "case", "verdict", "code", "reason", "format", "source"} <= set(names)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sources.parquet"
    with pytest.raises(ManifestError, match="does not exist"):
        read_sources(path)
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        read_sources(path)
    pq.write_table(pa.table({"case": ["x"]}), path)
    with pytest.raises(ManifestError, match="lacks the columns"):
        read_sources(path)


def test_a_failed_write_keeps_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "sources.parquet"
    write_sources(path, to_table([SourceRow("d", "1", "accepted", "", "", "nifti", "a", "/r")]))
    before = path.read_bytes()
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_table(path, SOURCES_SCHEMA, [{"bytes": "no number"}])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["sources.parquet"]


def test_160000_rows_load_in_under_two_seconds(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    rows = [cache_row(number) for number in range(160_000)]
    write_cache_rows(workspace.cache_manifest("d"), rows)
    begin = time.perf_counter()
    table = load_cache_table(workspace, ["d"])
    assert time.perf_counter() - begin < 2.0
    assert len(table) == 160_000
    assert tuple(table.shape[7]) == (107, 200, 201)


def test_the_manifest_digest_follows_the_content_not_the_order_of_names(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for dataset in ("a", "b"):
        write_cache_rows(workspace.cache_manifest(dataset), [cache_row(1, dataset)])
    one = load_cache_table(workspace, ["a", "b"])
    assert load_cache_table(workspace, ["b", "a", "a"]).digest == one.digest
    assert load_cache_table(workspace, ["a"]).digest != one.digest
    write_cache_rows(workspace.cache_manifest("b"), [cache_row(2, "b")])
    assert load_cache_table(workspace, ["a", "b"]).digest != one.digest
    with pytest.raises(ManifestError, match="run: prect build-cache nothing"):
        load_cache_table(workspace, ["nothing"])
    with pytest.raises(ManifestError, match="no data set is named"):
        load_cache_table(workspace, [])


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=40), st.floats(0, 1))
def test_a_split_is_by_patient_and_stable_when_data_is_added(
    patients: list[str], share: float
) -> None:
    mask = heldout_mask(patients, share)
    chosen = {patient for patient, held in zip(patients, mask, strict=True) if held}
    kept = {patient for patient, held in zip(patients, mask, strict=True) if not held}
    assert not chosen & kept
    grown = heldout_mask([*patients, "someone new", "another one"], share)
    assert grown[: len(patients)].tolist() == mask.tolist()


def test_the_share_is_met_and_small_collections_have_their_minimum() -> None:
    patients = [str(number) for number in range(20_000)]
    assert abs(heldout_mask(patients, 0.01).mean() - 0.01) < 0.003
    few = ["a", "b", "c", "d", "e", "f"]
    assert heldout_mask(few, 0.0, minimum=2).sum() == 2
    assert heldout_mask(["a"], 0.0, minimum=2).sum() == 0
    lowest = min(few, key=patient_rank)
    assert heldout_mask(few, 0.0, minimum=1).tolist() == [name == lowest for name in few]


def test_names_that_cannot_be_folders_are_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for name in ("", "../x", "a/b", ".hidden", "x" * 65, "ä"):
        with pytest.raises(WorkspaceError, match="cannot be used"):
            workspace.store("d", name)
    assert workspace.store("d", "case-1.a").name == "case-1.a.ome.zarr"


def test_the_salt_is_secret_and_stays(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    salt = workspace.salt()
    assert workspace.salt() == salt
    assert len(salt) == 32
    assert (tmp_path / "w" / "salt").stat().st_mode & 0o077 == 0
