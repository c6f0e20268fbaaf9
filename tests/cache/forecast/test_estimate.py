"""The estimate of a build: against whole builds, and against populations that are known."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.cache.build import build
from prect.cache.convert import Job
from prect.cache.forecast.amounts import Amounts, Part, amounts
from prect.cache.forecast.estimate import Estimate, Memory, estimate, sample_size
from prect.cache.forecast.ratio import Interval, Sample
from prect.cache.forecast.trial import Measured, Trial, clear_trials, trial_folder, try_out
from prect.cache.forecast.volumes import Volumes, grid_shapes, volumes_to_build
from prect.cache.memory import machine_memory, memory_needed
from prect.cache.plan import make_plan
from prect.cache.profile import Profile, load_profile
from prect.cli.planning import plan_build, show_estimate
from prect.cluster import cluster
from prect.errors import BuildError
from prect.ingest.harmonise import harmonise
from prect.ingest.settings import Harmonisation
from prect.ingest.survey import survey
from prect.ingest.volume import Volume, orientation_of, spacing_of
from prect.manifests.stores import CacheRow, QuarantineRow
from prect.workspace import Workspace
from tests.conftest import SALT, Built
from tests.ingest.volumes import body_volume, write_nifti

COARSE = Profile.model_validate({"name": "coarse", "harmonisation": {"spacing_mm": (4, 4, 4)}})


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with cluster(2) as ready:
        yield ready


def ingested(folder: Path, dataset: str, count: int, first: int = 0) -> tuple[Workspace, Path]:
    """A workspace with ``count`` sound volumes of many sizes, and the folder of their files."""
    source = folder / dataset
    source.mkdir(parents=True)
    chance = np.random.default_rng(first)
    for n in range(count):
        shape = tuple(int(size) for size in chance.integers(24, 56, 3))
        hu = body_volume((shape[0], shape[1], shape[2]), seed=first + n)
        write_nifti(source / f"{n}.nii.gz", hu)
    workspace = Workspace(folder / "workspace")
    survey(dataset, source, workspace, salt=SALT)
    return workspace, source


def listing(folder: Path) -> set[str]:
    """Everything below a folder, relative to it; what goes meanwhile may be missing."""
    return {
        Path(root, name).relative_to(folder).as_posix()
        for root, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


# --- against whole builds -------------------------------------------------------------------


def test_a_sample_of_phantoms_against_what_a_build_then_stores(
    tmp_path: Path, phantom_built: Built, client: Client
) -> None:
    workspace = Workspace(tmp_path)
    shutil.copytree(phantom_built.workspace.manifests, workspace.manifests)
    plan = make_plan("phantoms", workspace, COARSE)
    assert len(plan.todo) == 8
    result = estimate([plan], client, sample=6, seed=1)
    assert (result.total.sampled, result.total.volumes) == (6, 8)
    report = build(plan, client)
    stored = report.summary()["bytes"]
    guess = result.total.stored_bytes
    assert guess.low is not None
    assert guess.high is not None
    assert guess.low <= stored <= guess.high
    assert guess.low < guess.value < guess.high
    assert abs(guess.value / stored - 1) < 0.1
    assert result.total.source_bytes == report.summary()["source_bytes"]
    whole = [plan.workspace.store("phantoms", case) / "zarr.json" for case in plan.todo]
    boxes = [json.loads(p.read_text())["attributes"]["prect"]["body_box"] for p in whole]
    voxels = sum(int(np.prod(box["full_shape"])) for box in boxes)
    # Some of the phantoms are oblique, so that the manifest does not tell their field of view.
    assert result.total.float32_bytes == pytest.approx(4 * voxels, rel=0.05)


def test_a_sample_of_everything_is_exact(tmp_path: Path, client: Client) -> None:
    workspace, _ = ingested(tmp_path, "a", 5)
    ingested(tmp_path, "b", 3, first=50)
    plans = [make_plan(name, workspace, COARSE) for name in "ab"]
    result = estimate(plans, client, sample=100, workers=4)
    assert result.total.sampled == 8
    assert (result.workers, result.profile_digest) == (4, COARSE.digest)
    for plan in plans:
        stored = build(plan, client).summary()["bytes"]
        found = result.datasets[plan.dataset].stored_bytes
        assert [found.low, found.value, found.high] == pytest.approx([stored] * 3, abs=1e-3)
        assert result.datasets[plan.dataset].quarantined == Interval(0, 0, 0)
    whole = sum(amount.stored_bytes.value for amount in result.datasets.values())
    assert result.total.stored_bytes.value == pytest.approx(whole)
    seconds = result.total.worker_seconds.value
    assert result.hours.value == pytest.approx(seconds / 3600 / 4)
    assert 0 < seconds < 60


def test_volumes_that_fail_are_counted_and_take_no_disk(tmp_path: Path, client: Client) -> None:
    workspace, source = ingested(tmp_path, "a", 6)
    for name in ("1", "4"):
        write_nifti(source / f"{name}.nii.gz", body_volume(seed=90))
    plan = make_plan("a", workspace, COARSE)
    total = estimate([plan], client).total
    assert total.failures == {"file.changed": 2}
    assert total.quarantined == Interval(2, 2, 2)
    volumes = volumes_to_build(plan)
    sources = {job.source.case: job.source.source for job in plan.jobs()}
    sound = [sources[case] not in ("1.nii.gz", "4.nii.gz") for case in volumes.cases]
    assert total.float32_bytes == pytest.approx(4 * volumes.grid_voxels[sound].sum())
    assert total.stored_bytes.value == pytest.approx(build(plan, client).summary()["bytes"])


def _die(trial: Trial) -> Measured:
    if trial.job.source.source == "2.nii.gz":
        os.kill(os.getpid(), signal.SIGKILL)
    return try_out(trial)


def test_a_volume_that_kills_its_worker_is_counted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = ingested(tmp_path, "a", 4)
    monkeypatch.setattr("prect.cache.forecast.estimate.try_out", _die)
    plan = make_plan("a", workspace, COARSE)
    before = listing(tmp_path)
    with cluster(1) as own:
        total = estimate([plan], own).total
    assert total.failures == {"build.worker_died": 1}
    assert total.quarantined.value == 1
    assert total.worker_seconds.value > 0
    assert listing(tmp_path) == before


# --- what stays on disk: nothing ------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_stays_on_disk(
    tmp_path: Path, client: Client, error: type[BaseException] | None
) -> None:
    workspace, _ = ingested(tmp_path, "a", 5)
    plan = make_plan("a", workspace, COARSE)
    before = listing(tmp_path)
    seen: list[set[str]] = []

    def on_trial() -> None:
        seen.append(listing(tmp_path) - before)
        if error is not None and len(seen) == 2:
            raise error

    if error is None:
        estimate([plan], client, on_trial=on_trial)
        assert len(seen) == 5
    else:
        with pytest.raises(error):
            estimate([plan], client, on_trial=on_trial)
        assert len(seen) == 2
    assert any(path.startswith("workspace/cache/.plan-") for path in seen[0])
    assert listing(tmp_path) == before
    client.run(lambda: None)  # the workers are alive, and late ones have nowhere to write
    assert listing(tmp_path) == before


def _full_disk(trial: Trial) -> Measured:
    if trial.job.source.source == "2.nii.gz":
        raise OSError(errno.ENOSPC, "No space left on device")
    return try_out(trial)


def test_a_full_disk_ends_the_trials(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = ingested(tmp_path, "a", 4)
    before = listing(tmp_path)
    monkeypatch.setattr("prect.cache.forecast.estimate.try_out", _full_disk)
    with pytest.raises(OSError, match="No space left"):
        estimate([make_plan("a", workspace, COARSE)], client)
    assert listing(tmp_path) == before


def test_a_stop_ends_the_trials(tmp_path: Path, client: Client) -> None:
    workspace, _ = ingested(tmp_path, "a", 12)
    plan = make_plan("a", workspace, COARSE)
    before = listing(tmp_path)
    tried: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        estimate([plan], client, on_trial=lambda: tried.append(1), stop=lambda: len(tried) > 1)
    assert 2 <= len(tried) < 12
    assert listing(tmp_path) == before


def test_trials_in_flight_are_waited_for_and_late_ones_turned_away(
    tmp_path: Path, client: Client
) -> None:
    workspace, _ = ingested(tmp_path, "a", 4)
    jobs = list(make_plan("a", workspace, COARSE).jobs())
    with trial_folder(workspace.cache) as folder:
        futures = [client.submit(try_out, Trial(job, folder), pure=False) for job in jobs]
        while not list(folder.glob("*/*")) and not any(f.done() for f in futures):
            pass
    assert not workspace.cache.exists()
    outcomes = [future.exception() for future in futures]
    assert any(outcome is None for outcome in outcomes)
    assert {type(o) for o in outcomes} <= {type(None), BuildError, FileNotFoundError}
    assert not workspace.cache.exists()


def test_what_a_killed_plan_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    dead = tmp_path / ".plan-0123456789ab"
    (dead / "a").mkdir(parents=True)
    (dead / "in-use").write_bytes(b"open")
    with trial_folder(tmp_path) as folder:
        assert not dead.exists()
        assert clear_trials(tmp_path) == []  # this one lives
        assert folder.is_dir()
    assert tmp_path.is_dir()  # it was there before
    assert not list(tmp_path.iterdir())


def test_nothing_to_do(tmp_path: Path, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, _ = ingested(tmp_path, "a", 1)
    build(make_plan("a", workspace, COARSE), client)
    before = listing(tmp_path)
    result = estimate([make_plan("a", workspace, COARSE)], None)
    assert (result.total.volumes, result.total.stored_bytes) == (0, Interval(0, 0, 0))
    assert result.memory is None
    assert result.fits == "yes"
    assert listing(tmp_path) == before
    show_estimate(result, as_json=False)
    assert capsys.readouterr().err.startswith("nothing to do")
    show_estimate(result, as_json=True)
    assert json.loads(capsys.readouterr().out)["total"]["volumes"] == 0
    with pytest.raises(BuildError, match="no Dask client"):
        estimate([make_plan("a", workspace, load_profile("iso1.5"))], None)


# --- the grid -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    shape=st.tuples(*3 * [st.integers(1, 24)]),
    spacing=st.tuples(*3 * [st.integers(300, 6000)]),
    axes=st.permutations(range(3)),
    signs=st.tuples(*3 * [st.sampled_from([-1.0, 1.0])]),
    origin=st.tuples(*3 * [st.integers(-300_000, 300_000)]),
    target=st.sampled_from([(1.5, 1.5, 1.5), (1.25, 1.25, 5.0), (2.0, 3.0, 4.0)]),
)
def test_the_grid_is_that_of_the_harmonised_volume(
    shape: tuple[int, int, int],
    spacing: tuple[int, int, int],
    axes: list[int],
    signs: tuple[float, float, float],
    origin: tuple[int, int, int],
    target: tuple[float, float, float],
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, axes] * signs * (np.array(spacing) / 1000)
    affine[:3, 3] = np.array(origin) / 1000
    grid = Harmonisation(spacing_mm=target, body_crop=False)
    volume = Volume(np.zeros(shape[::-1], np.int16), affine, "nifti", "")
    full = harmonise(volume, grid).full_shape
    lengths, letters = spacing_of(affine), orientation_of(affine)
    (found,) = grid_shapes(np.array([shape]), lengths[None], [letters], grid)
    # Halfway between two numbers of voxels, the rounding of the file's position decides.
    exact = np.empty(3)
    exact[list(axes)] = np.array(shape) * lengths
    tie = np.abs((exact / target) % 1 - 0.5)[::-1] < 1e-6
    assert (np.abs(found - full) <= tie).all(), (found, full)


def test_what_is_known_of_volumes_without_opening_them(tmp_path: Path) -> None:
    workspace, _ = ingested(tmp_path, "a", 3)
    plan = make_plan("a", workspace, COARSE)
    volumes = volumes_to_build(plan)
    jobs = {job.source.case: job.source for job in plan.jobs()}
    assert set(volumes.cases) == set(jobs)
    for n, case in enumerate(volumes.cases):
        assert tuple(volumes.shapes[n]) == jobs[case].shape
        assert volumes.source_bytes[n] == jobs[case].bytes
        assert volumes.source_voxels[n] == np.prod(jobs[case].shape)
        # 2 mm in, 4 mm out; numpy rounds halves to even.
        assert volumes.grid_voxels[n] == np.prod([np.round(s / 2) for s in jobs[case].shape])


# --- from a sample to the whole -------------------------------------------------------------


def test_the_size_of_a_sample() -> None:
    assert [sample_size(*case) for case in [(5, 1), (500, 1), (160_000, 27), (900, 27)]] == [
        5,
        20,
        1600,
        54,
    ]


def part(name: str, count: int, drawn: list[int], failing: tuple[int, ...] = ()) -> Part:
    """A made-up data set: volume n has n + 1 million voxels, a store of half a byte a voxel."""
    voxels = (np.arange(count) + 1) * 1_000_000
    cases = tuple(f"{n:02d}" for n in range(count))
    volumes = Volumes(name, cases, voxels, voxels, voxels, np.ones((count, 3), np.int64))
    results: dict[tuple[str, str], Measured | None] = {}
    for n in drawn:
        store = CacheRow(name, cases[n], "", "", "", "", (1, 1, 1), (1, 1, 1), 1, 0, 0)
        outcome: CacheRow | QuarantineRow = replace(store, bytes=int(voxels[n] // 2))
        if n in failing:
            outcome = QuarantineRow(name, cases[n], "", "", "content.no_body", "")
        grid = 0 if n in failing else int(voxels[n])
        results[name, cases[n]] = Measured(outcome, 1.0, 100, 200, grid)
    weights = np.full(len(drawn), count // max(1, len(drawn)))
    return Part(volumes, Sample(np.array(drawn, dtype=np.int64), weights), results)


def test_a_data_set_without_a_sample_takes_the_ratio_of_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = [part("a", 10, [1, 3, 5, 8, 9]), part("b", 6, []), part("c", 4, [2])]
    silent = amounts(parts[1:2], parts)
    assert (silent.sampled, silent.borrowed, silent.volumes) == (0, 6, 6)
    assert silent.stored_bytes.value == pytest.approx(21e6 / 2)
    total = amounts(parts, parts)
    assert (total.sampled, total.borrowed) == (6, 10)
    assert total.stored_bytes.value == pytest.approx((55 + 21 + 10) * 1e6 / 2)
    result = made_up({"a": amounts(parts[:1], parts), "b": silent}, total)
    show_estimate(result, as_json=False)
    text = capsys.readouterr().err
    assert "b: only 0 of it tried, its ratios are those of the others" in text
    assert "a: only" not in text


def test_the_share_that_fails_has_a_bound_even_when_none_failed() -> None:
    sound = part("a", 100, [5 * n for n in range(20)])
    none = amounts([sound], [sound]).quarantined
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(100 * (1 - 0.025 ** (1 / 20)))  # Clopper-Pearson, k = 0
    some = part("a", 100, [5 * n for n in range(20)], failing=(5, 50))
    found = amounts([some], [some])
    assert found.quarantined.value == pytest.approx(10)
    assert found.failures == {"content.no_body": 2}
    ends = found.quarantined
    assert ends.low is not None
    assert ends.high is not None
    assert 2 <= ends.low < 10 < ends.high <= 82
    assert found.stored_bytes.value < amounts([sound], [sound]).stored_bytes.value


def test_a_sample_of_one_has_no_interval(capsys: pytest.CaptureFixture[str]) -> None:
    one = part("a", 5, [2])
    total = amounts([one], [one])
    assert (total.stored_bytes.low, total.stored_bytes.high) == (None, None)
    result = made_up({"a": total}, total)
    show_estimate(result, as_json=True)
    assert json.loads(capsys.readouterr().out)["total"]["stored_bytes"]["low"] is None
    show_estimate(result, as_json=False)
    assert "try more with --sample" in capsys.readouterr().err


def test_a_sample_that_only_kills_workers_says_so() -> None:
    dead = part("a", 5, [1, 2])
    dead = replace(dead, results=dict.fromkeys(dead.results))
    with pytest.raises(BuildError, match="memory may be short"):
        amounts([dead], [dead])


# --- what is shown --------------------------------------------------------------------------


def made_up(datasets: dict[str, Amounts], total: Amounts, free: int = 10**12) -> Estimate:
    shape = (512, 512, 600)
    held = Memory(
        shape, stated=memory_needed(shape), per_decoded_byte=2.0, measured=10**9, machine=10**10
    )
    return Estimate("iso1.5", "d", "hu", datasets, total, held, workers=8, seed=0, free_bytes=free)


def test_the_estimate_as_text_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    parts = [part("a", 100, [5 * n for n in range(20)], failing=(5,)), part("b", 10, [1, 6])]
    total = amounts(parts, parts)
    result = made_up({p.volumes.dataset: amounts([p], parts) for p in parts}, total)
    show_estimate(result, as_json=False)
    shown = capsys.readouterr()
    assert not shown.out
    for text in (
        "22 of 110 volumes were built on trial",
        "total",
        "times as much",
        "with 8 workers",
        "512 x 512 x 600",
        "holds 6 such workers",
        "failed in the sample: 1 with content.no_body",
        "to be quarantined: about 5",
    ):
        assert text in shown.err, text
    show_estimate(result, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["estimate"] is True
    assert document["sample"] == {"volumes": 22, "of": 110, "seed": 0, "confidence": 0.95}
    assert document["disk"] == {"free_bytes": 10**12, "fits": "yes"}
    assert document["memory"]["worker_bytes"] == memory_needed((512, 512, 600))
    assert document["memory"]["workers_that_fit"] == 6
    assert [entry["dataset"] for entry in document["datasets"]] == ["a", "b"]
    stored = document["total"]["stored_bytes"]
    assert stored["low"] < stored["estimate"] < stored["high"]
    assert document["total"]["source_bytes"] == (5050 + 55) * 1_000_000
    assert document["total"]["float32_over_stored"] == pytest.approx(8, rel=0.01)
    assert document["core_hours"]["estimate"] == pytest.approx(
        8 * document["hours"]["estimate"], rel=1e-2
    )


def test_the_command_shows_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = ingested(tmp_path, "a", 4)
    ingested(tmp_path, "b", 2, first=9)
    plans = [make_plan(name, workspace, COARSE) for name in "ab"]
    plan_build(plans, workers=1, scheduler=None, sample=3, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["sample"] == {"volumes": 3, "of": 6, "seed": 0, "confidence": 0.95}
    assert document["workers"] == 1
    assert sum(entry["sampled"] for entry in document["datasets"]) == 3
    sizes = sum(path.stat().st_size for path in tmp_path.glob("[ab]/*.nii.gz"))
    assert document["total"]["source_bytes"] == sizes
    assert document["memory"]["machine_bytes"] == machine_memory()
    assert not workspace.cache.exists()


@pytest.mark.parametrize(
    ("low", "high", "free", "fits"),
    [(90, 110, 200, "yes"), (90, 110, 105, "unsure"), (90, 110, 95, "unsure"), (90, 110, 80, "no")],
)
def test_whether_it_fits(low: float, high: float, free: int, fits: str) -> None:
    one = part("a", 5, [1, 3])
    total = replace(amounts([one], [one]), stored_bytes=Interval(100, low, high))
    assert made_up({"a": total}, total, free).fits == fits


def test_measured_memory_beats_the_bound_when_it_is_more() -> None:
    held = Memory((10, 10, 10), stated=100, per_decoded_byte=9.0, measured=150, machine=301)
    assert (held.needed, held.workers) == (150, 2)
    assert replace(held, measured=None).needed == 100
    assert replace(held, machine=99).workers == 0


def test_the_job_itself_is_not_touched(tmp_path: Path) -> None:
    """A trial writes into its folder even where the volume's own store exists."""
    workspace, _ = ingested(tmp_path, "a", 1)
    (job,) = make_plan("a", workspace, COARSE).jobs()
    assert isinstance(job, Job)
    job.store.mkdir(parents=True)
    (job.store / "mark").write_text("x")
    with trial_folder(workspace.cache) as folder:
        measured = try_out(Trial(job, folder))
        assert isinstance(measured.outcome, CacheRow)
        assert measured.outcome.bytes > 0
        assert list(folder.rglob("*.ome.zarr*")) == []
    assert (job.store / "mark").read_text() == "x"
