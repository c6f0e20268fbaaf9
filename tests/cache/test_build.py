"""The build engine: complete, idempotent, and whole after any kill."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prect.cache.build import build, make_plan
from prect.cache.convert import Job, convert, quarantine
from prect.cache.format import group_bytes
from prect.cache.plan import State, store_state
from prect.cache.profile import Profile, load_profile, profile_digest
from prect.cache.reader import StoreReader
from prect.cache.rows import origin_of
from prect.cluster import cluster
from prect.errors import (
    ClusterError,
    ConfigError,
    ManifestError,
    StoreVersionError,
    WorkspaceError,
)
from prect.ingest.survey import survey
from prect.manifests.cards import Card, generic_card
from prect.manifests.commit import set_excluded_benchmarks
from prect.manifests.limits import Limits
from prect.manifests.sources import read_sources
from prect.manifests.status import dataset_status
from prect.manifests.stores import (
    CacheRow,
    QuarantineRow,
    load_cache_table,
    read_cache_rows,
    read_quarantine,
    write_cache_rows,
    write_quarantine,
)
from prect.phantom import ORGANS, make_case
from prect.phantom.write import write_case
from prect.workspace import Workspace
from tests.conftest import SALT, Built, ingest_and_build
from tests.ingest.volumes import body_volume, write_nifti

PROFILE = load_profile("iso1.5")


def state(job: Job) -> State:
    return store_state(job.store, job.profile, origin_of(vars(job.source)))


def store_files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder of stores, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_accepted_phantom_is_stored(phantom_built: Built) -> None:
    assert phantom_built.survey.summary()["verdicts"] == {
        "accepted": 8,
        "warned": 0,
        "rejected": 0,
        "duplicate": 0,
        "excluded": 0,
    }
    assert {row.format for row in phantom_built.survey.rows} == {
        "nifti",
        "dicom",
        "metaimage",
        "nrrd",
    }
    status = dataset_status(phantom_built.workspace, "phantoms")
    assert (status.stored, status.pending, status.quarantined, status.orphans) == (8, 0, 0, 0)
    table = load_cache_table(phantom_built.workspace, ["phantoms"])
    assert len(table) == 8
    for row in range(len(table)):
        with StoreReader(table.store(phantom_built.workspace, row)) as reader:
            assert reader.levels[0].shape == tuple(table.shape[row])
            assert reader.levels[0].spacing == tuple(table.spacing[row])
            assert len(reader.levels) == table.levels[row]


@pytest.mark.parametrize("index", [0, 3, 5])
def test_four_formats_of_one_phantom_give_identical_stores(tmp_path: Path, index: int) -> None:
    case = make_case(11, index, "small")
    stores = {}
    for format_name in ("nifti", "dicom", "mha", "nrrd"):
        folder = tmp_path / format_name
        (folder / "source").mkdir(parents=True)
        write_case(case, folder / "source" / "case", format_name)
        workspace = Workspace(folder / "workspace")
        (row,) = survey("one", folder / "source", workspace, salt=SALT).rows
        assert row.verdict == "accepted", row.reason
        job = Job(row, PROFILE, workspace.store("one", row.case), Limits())
        assert isinstance(convert(job), CacheRow)
        stores[format_name] = job.store
    shards = {
        name: [(path / str(level) / "c.0.0.0").read_bytes() for level in range(3)]
        for name, path in stores.items()
    }
    affines = {name: StoreReader(path).affine.tolist() for name, path in stores.items()}
    for name in ("dicom", "mha", "nrrd"):
        assert affines[name] == affines["nifti"], name
        assert shards[name] == shards["nifti"], name


def test_organs_keep_their_place_through_the_whole_road(phantom_built: Built) -> None:
    """The stored HU at the true position of an organ's centre are the organ's own."""
    rows = {row.source: row for row in phantom_built.survey.rows}
    compared = 0
    for index, suffix in enumerate((".nii.gz", "", ".mha", ".nrrd")):
        case = make_case(1, index, "small")
        row = rows[f"case_{index:04d}{suffix}"]
        with StoreReader(phantom_built.workspace.store("phantoms", row.case)) as reader:
            to_index = np.linalg.inv(reader.affine)
            for name in {"liver", "spleen", "bladder"} & case.landmarks.keys():
                centre = [*case.landmarks[name].centroid, 1.0]
                x, y, z = (round(float(v)) for v in (to_index @ centre)[:3])
                box = reader.read(0, (z - 1, y - 1, x - 1), (3, 3, 3))
                organ = case.hu[case.labels == ORGANS[name]]
                assert abs(float(box.mean()) - float(np.median(organ))) < 40, (index, name)
                compared += 1
    assert compared >= 4


def test_a_second_build_does_nothing(phantom_built: Built) -> None:
    plan = make_plan("phantoms", phantom_built.workspace, PROFILE)
    assert (len(plan.kept), len(plan.todo)) == (8, 0)
    before = store_files(phantom_built.workspace.cache)
    report = build(plan, client=None)
    assert report.summary()["built"] == 0
    assert report.summary()["stored"] == 8
    assert store_files(phantom_built.workspace.cache) == before


def test_another_profile_or_another_source_makes_a_store_stale(
    tmp_path: Path, phantom_built: Built
) -> None:
    other = Profile.model_validate({"name": "iso3", "harmonisation": {"spacing_mm": (3, 3, 3)}})
    plan = make_plan("phantoms", phantom_built.workspace, other)
    assert (len(plan.todo), plan.stale) == (8, {"another profile": 8})

    folder = tmp_path / "source"
    folder.mkdir()
    path = write_nifti(folder / "ct.nii.gz", body_volume())
    built = ingest_and_build(tmp_path / "workspace", folder, "one")
    assert built.report.summary()["stored"] == 1
    write_nifti(path, body_volume() + np.int16(3))
    (row,) = survey("one", folder, built.workspace).rows
    plan = make_plan("one", built.workspace, PROFILE)
    assert plan.stale == {"another source, or ingest has judged it otherwise since": 1}
    (job,) = plan.jobs()
    assert isinstance(convert(job), CacheRow)
    assert state(job) is State.CURRENT
    assert row.case == built.survey.rows[0].case


def test_a_corrected_card_makes_a_store_stale(tmp_path: Path) -> None:
    """The same bytes, but other HU and another patient."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_nifti(folder / "p1_a.nii.gz", (body_volume() + 100).astype(np.int16))
    workspace = Workspace(tmp_path / "workspace")
    rule = {"slope": 1.0, "intercept": -50.0, "reason": "-"}
    card = Card.model_validate(generic_card("one").model_dump() | {"rescale": rule})
    survey(card, folder, workspace, salt=SALT)
    assert isinstance(convert(*make_plan("one", workspace, PROFILE).jobs()), CacheRow)
    assert not make_plan("one", workspace, PROFILE).todo
    for change in (
        {"rescale": rule | {"intercept": -100.0}},
        {"patient": r"(?P<patient>p\d)_"},
    ):
        card = Card.model_validate(card.model_dump() | change)
        survey(card, folder, workspace)
        (job,) = make_plan("one", workspace, PROFILE).jobs()
        assert isinstance(convert(job), CacheRow)
    with StoreReader(job.store) as reader:
        assert reader.attributes.source.intercept == -100.0
        assert reader.attributes.patient == job.source.patient


def test_training_leaves_out_what_ingest_has_since_decided_against(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        write_nifti(folder / f"{name}.nii.gz", body_volume(seed=seed))
    built = ingest_and_build(tmp_path / "workspace", folder, "one")
    assert len(load_cache_table(built.workspace, ["one"])) == 2
    set_excluded_benchmarks(built.workspace, ["one"])
    with pytest.raises(ManifestError):
        load_cache_table(built.workspace, ["one"])
    set_excluded_benchmarks(built.workspace, [])
    assert len(load_cache_table(built.workspace, ["one"])) == 2


def ingested(tmp_path: Path, *names: str) -> tuple[Workspace, Path]:
    """A workspace whose data set ``d`` holds sound files of these names."""
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, name in enumerate(names):
        write_nifti(folder / f"{name}.nii.gz", body_volume(seed=seed))
    workspace = Workspace(tmp_path / "workspace")
    survey("d", folder, workspace, salt=SALT)
    return workspace, folder


def test_a_volume_that_fails_is_quarantined_and_stays_so(tmp_path: Path) -> None:
    workspace, _ = ingested(tmp_path, "a")
    empty = {"spacing_mm": (3, 3, 3), "body_threshold_hu": 5000}
    profile = Profile.model_validate({"name": "x", "harmonisation": empty})
    plan = make_plan("d", workspace, profile)
    with cluster(1) as client:
        summary = build(plan, client).summary()
    assert summary["usable"] == summary["stored"] + summary["quarantined"] == 1
    assert [row.code for row in read_quarantine(workspace.quarantine("d"))] == ["content.no_body"]
    again = make_plan("d", workspace, profile)
    assert (len(again.kept), len(again.quarantined), len(again.todo)) == (0, 1, 0)
    assert len(make_plan("d", workspace, profile, retry=True).todo) == 1
    assert len(make_plan("d", workspace, PROFILE).todo) == 1  # another profile, another try


def test_faults_of_the_place_are_quarantined_and_tried_again(tmp_path: Path) -> None:
    workspace, folder = ingested(tmp_path, "sound", "gone", "changed")
    (folder / "gone.nii.gz").rename(tmp_path / "aside")
    write_nifti(folder / "changed.nii.gz", body_volume() + np.int16(1))
    with cluster(1) as client:
        build(make_plan("d", workspace, PROFILE), client)
        codes = sorted(row.code for row in read_quarantine(workspace.quarantine("d")))
        assert codes == ["file.changed", "file.missing"]
        status = dataset_status(workspace, "d")
        assert (status.stored, status.quarantined, status.pending) == (1, 2, 0)
        (tmp_path / "aside").rename(folder / "gone.nii.gz")
        plan = make_plan("d", workspace, PROFILE)
        assert (len(plan.kept), len(plan.todo)) == (1, 2)
        assert build(plan, client).summary()["stored"] == 2


def test_a_source_that_is_not_mounted_quarantines_nothing(tmp_path: Path) -> None:
    workspace, folder = ingested(tmp_path, "a")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(WorkspaceError, match="is not there; mount it"):
        make_plan("d", workspace, PROFILE)


def test_a_store_that_lost_a_shard_is_built_again(tmp_path: Path) -> None:
    workspace, _ = ingested(tmp_path, "a")
    (job,) = make_plan("d", workspace, PROFILE).jobs()
    convert(job)
    assert state(job) is State.CURRENT
    (job.store / "1" / "c.0.0.0").unlink()
    assert state(job) is State.DAMAGED
    plan = make_plan("d", workspace, PROFILE)
    assert plan.stale == {"incomplete or not readable": 1}
    assert isinstance(convert(*plan.jobs()), CacheRow)
    assert state(job) is State.CURRENT


def test_stores_without_a_usable_source_are_counted_as_orphans(tmp_path: Path) -> None:
    workspace, folder = ingested(tmp_path, "a", "b")
    for job in make_plan("d", workspace, PROFILE).jobs():
        convert(job)
    (folder / "b.nii.gz").unlink()
    survey("d", folder, workspace)
    for _ in range(2):  # building does not make an orphan forgotten
        build(make_plan("d", workspace, PROFILE), client=None)
        status = dataset_status(workspace, "d")
        assert (status.usable, status.stored, status.orphans) == (1, 1, 1)


@pytest.mark.slow
def test_an_external_scheduler_builds_the_same_stores(tmp_path: Path) -> None:
    workspace, _ = ingested(tmp_path, "a", "b", "c")
    with cluster(2) as local:
        address = str(local.scheduler_info()["address"])
        with cluster(1, address) as client:
            report = build(make_plan("d", workspace, PROFILE), client)
    assert len(report.stored) == 3
    for address in ("foo", "tcp://127.0.0.1:1"):
        with pytest.raises(ClusterError, match="no Dask scheduler answers"), cluster(1, address):
            pass


def _die(job: Job) -> CacheRow | QuarantineRow:
    if "deadly" in job.source.source:
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(job)


def test_a_volume_that_kills_its_worker_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = ingested(tmp_path, "a", "deadly", "z")
    monkeypatch.setattr("prect.cache.build.convert", _die)
    with cluster(2) as client:
        report = build(make_plan("d", workspace, PROFILE), client)
    assert [row.code for row in report.quarantine] == ["build.worker_died"]
    assert len(report.stored) == 2


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has not been ingested"):
        make_plan("nothing", Workspace(tmp_path), PROFILE)
    with pytest.raises(ConfigError, match=r"no profile 'iso9'.*iso1\.5"):
        load_profile("iso9")
    (tmp_path / "bad.toml").write_text('name = "x"\nspacing = 3\n')
    with pytest.raises(ConfigError, match="not valid"):
        load_profile(str(tmp_path / "bad.toml"))


def test_the_cache_manifest_holds_no_file_name(phantom_built: Built) -> None:
    path = phantom_built.workspace.cache_manifest("phantoms")
    text = str([row for row in read_cache_rows(path)])
    assert "case_000" not in text
    assert "PHANTOM" not in text
    for store in phantom_built.workspace.cache.glob("phantoms/*"):
        attributes = (store / "zarr.json").read_text()
        assert "case_000" not in attributes
        assert "PHANTOM" not in attributes
    sources = read_sources(phantom_built.workspace.sources("phantoms"))
    assert any("case_000" in row.source for row in sources)


def test_a_read_error_is_a_fault_of_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = ingested(tmp_path, "a")
    (job,) = make_plan("d", workspace, PROFILE).jobs()

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("prect.cache.convert._decode", fail)
    outcome = convert(job)
    assert isinstance(outcome, QuarantineRow)
    assert (outcome.code, outcome.reason) == (
        "file.unreadable",
        "cannot be read: Input/output error",
    )
    assert not job.store.exists()


def unlisted(tmp_path: Path) -> tuple[Workspace, Job]:
    """A store that no manifest tells of, as a killed build leaves it."""
    workspace, _ = ingested(tmp_path, "a")
    (job,) = make_plan("d", workspace, PROFILE).jobs()
    convert(job)
    return workspace, job


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [
        ('"patient": "', '"patient": "0'),
        ('"made_from"', '"nade_from"'),
        ('_version": 1', '_version": 7'),
    ],
)
def test_an_unlisted_store_with_damaged_attributes_is_built_again(
    tmp_path: Path, sound: str, damaged: str
) -> None:
    workspace, job = unlisted(tmp_path)
    assert make_plan("d", workspace, PROFILE).adopted == 1
    group = job.store / "zarr.json"
    text = group.read_text()
    assert sound in text
    group.write_text(text.replace(sound, damaged, 1))
    plan = make_plan("d", workspace, PROFILE)
    assert (plan.adopted, plan.stale) == (0, {"incomplete or not readable": 1})


def test_a_store_of_another_release_is_not_overwritten(tmp_path: Path) -> None:
    workspace, job = unlisted(tmp_path)
    document = json.loads((job.store / "zarr.json").read_text())
    document["attributes"]["prect"] |= {"format_version": 7, "more": "unknown"}
    (job.store / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreVersionError, match="format version 7"):
        make_plan("d", workspace, PROFILE)


def test_a_profile_of_an_earlier_release_is_the_same(tmp_path: Path) -> None:
    """A setting that came later, at its default, and another name change no byte."""
    workspace, _ = ingested(tmp_path, "a")
    with cluster(1) as client:
        build(make_plan("d", workspace, PROFILE), client)
    path = workspace.cache_manifest("d")
    (row,) = read_cache_rows(path)
    store = workspace.store("d", row.case)
    with StoreReader(store) as reader:
        attributes = reader.attributes
    earlier = attributes.profile | {"name": "of-old"}
    earlier["harmonisation"] = dict(earlier["harmonisation"])
    del earlier["harmonisation"]["low_pass"]
    changed = attributes.model_copy(
        update={"profile": earlier, "profile_digest": profile_digest(earlier)}
    )
    (store / "zarr.json").write_bytes(group_bytes(changed))
    write_cache_rows(path, [replace(row, profile=changed.profile_digest)])
    assert changed.profile_digest != PROFILE.digest
    assert len(make_plan("d", workspace, PROFILE).kept) == 1
    assert make_plan("d", workspace, PROFILE.stored_as(step=2)).stale == {"another profile": 1}


def test_a_wrong_profile_that_is_stopped_at_once_changes_no_manifest(tmp_path: Path) -> None:
    workspace, _ = ingested(tmp_path, "a", "b")
    with cluster(1) as client:
        build(make_plan("d", workspace, PROFILE), client)
        before = store_files(workspace.manifests)
        other = make_plan("d", workspace, load_profile("voco2"))
        report = build(other, client, stop=lambda: True)
    assert report.interrupted
    assert report.summary()["pending"] == 2
    assert store_files(workspace.manifests) == before


def test_too_little_memory_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = ingested(tmp_path, "a")
    (job,) = make_plan("d", workspace, PROFILE).jobs()

    def fail(*_: object) -> None:
        raise MemoryError

    for name in ("prect.cache.writer.pool", "prect.cache.convert.harmonise"):
        monkeypatch.setattr(name, fail)
        outcome = convert(job)
        assert isinstance(outcome, QuarantineRow)
        assert outcome.code == "build.out_of_memory"
        write_quarantine(workspace.quarantine("d"), [outcome])
        assert len(make_plan("d", workspace, PROFILE).todo) == 1
        monkeypatch.undo()


def test_a_corrected_card_releases_the_quarantine(tmp_path: Path) -> None:
    workspace, folder = ingested(tmp_path, "a")
    (job,) = make_plan("d", workspace, PROFILE).jobs()
    write_quarantine(workspace.quarantine("d"), [quarantine(job, "content.no_body", "-")])
    assert len(make_plan("d", workspace, PROFILE).quarantined) == 1
    rule = {"slope": 1.0, "intercept": -50.0, "reason": "-"}
    survey(
        Card.model_validate(generic_card("d").model_dump() | {"rescale": rule}), folder, workspace
    )
    assert len(make_plan("d", workspace, PROFILE).todo) == 1


def test_the_grid_counts_where_it_is_larger_than_the_file(tmp_path: Path) -> None:
    workspace, _ = ingested(tmp_path, "a")
    (job,) = make_plan("d", workspace, PROFILE).jobs()
    fine = Profile.model_validate({"name": "f", "harmonisation": {"spacing_mm": (0.5, 0.5, 0.5)}})
    coarse = Profile.model_validate({"name": "c", "harmonisation": {"spacing_mm": (9, 9, 9)}})
    source = math.prod(job.source.shape)
    field = source * math.prod(job.source.spacing)
    assert make_plan("d", workspace, coarse).largest == source
    assert make_plan("d", workspace, fine).largest == pytest.approx(field / 0.125, rel=1e-6)
