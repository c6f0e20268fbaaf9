"""A run told before it begins: on stores that are here, and on GPUs that are not."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prect.errors import ConfigError
from prect.manifests.stores import load_cache_table
from prect.train.config import TrainConfig, load_config
from prect.train.data import TrainingData, open_data, split_data
from prect.train.forecast import Forecast, forecast
from prect.train.forecast.pace import evaluations_from
from prect.train.forecast.trial import measure_reading, measure_step
from prect.train.prefetch import region_bytes
from prect.workspace import Workspace
from tests.train.simulated import SimulatedPool, SimulatedStore, write_simulated_manifest

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
COUNTS = {"abdomen": 40_000, "chest": 90_000, "headneck": 30_000}
PAUSE_S = 0.02


class SlowPool(SimulatedPool):
    """Opening a store takes a while, which no processor is busy with."""

    def get(self, path: Any) -> SimulatedStore:
        time.sleep(PAUSE_S)
        return super().get(path)


def simulated(workspace: Workspace, share: float) -> TrainingData:
    """Volumes that exist in name only."""
    write_simulated_manifest(workspace, {name: int(share * n) for name, n in COUNTS.items()})
    return split_data(workspace, load_cache_table(workspace, list(COUNTS)), published("voco-b"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """1,600 volumes."""
    return simulated(Workspace(tmp_path_factory.mktemp("few")), 0.01)


def published(preset: str, *overrides: str) -> TrainConfig:
    return load_config(preset, overrides=[f"data.datasets={list(COUNTS)}", *overrides])


def planned(data: TrainingData, config: TrainConfig, model: str | None, **more: Any) -> Forecast:
    """For eight GPUs that are not here, without a look at any store."""
    return forecast(config, data, world=8, device=None, gpu_model=model, measure=False, **more)


def files_of(workspace: Workspace) -> set[str]:
    return {str(path) for path in workspace.root.rglob("*")}


def test_a_small_run_is_timed_where_it_will_be_and_leaves_no_trace(
    workspace: Workspace, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prect.train.forecast.trial.READING_S", 0.2)
    config = make_config()
    data = open_data(workspace, config)
    before = files_of(workspace)
    threads = torch.get_num_threads()
    told = forecast(config, data, world=1, device=CPU, free_memory=10**9)
    assert files_of(workspace) == before
    assert torch.get_num_threads() == threads
    course, reading = told.course, told.reading
    assert (told.device, told.precision, told.unknown) == ("CPU", "float32", ())
    assert course.computing is not None
    assert course.computing.how == "measured"
    assert "whole step" in course.computing.note
    assert reading.given is not None
    assert reading.given.how == "measured"
    assert reading.needed is not None
    assert reading.needed.value == pytest.approx(2 / course.computing.value)
    assert course.step is not None
    assert course.step.value == pytest.approx(course.computing.value + 2 / reading.given.value)
    assert course.to_go is not None
    assert course.to_go.value > 4 * course.step.value / 3600
    assert (told.memory.available, told.memory.fits) == (None, None)
    document = json.loads(json.dumps(told.as_json(), allow_nan=False))
    assert document["course"]["steps_to_go"] == {
        "value": 4, "unit": "steps", "how": "counted", "note": ""
    }  # fmt: skip


def test_reading_is_timed_by_what_the_loader_gives(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    config = make_config()
    data = open_data(workspace, config)
    views = data.views(config, "train", SlowPool)
    # Of the simulated stores, which ignore what the manifest says of these.
    trial = measure_reading(views, config, 0, 1, seconds=1.0)
    # Two volumes a batch are opened one after the other.
    assert 0.3 / PAUSE_S < trial.volumes_per_s < 1 / PAUSE_S
    sizes = region_bytes(config, data.geometry, data.names.sources)[data.rows["train"]]
    mean = trial.mb_per_s / trial.volumes_per_s
    assert sizes.min() / 1e6 <= mean <= sizes.max() / 1e6
    assert trial.volumes == pytest.approx(trial.volumes_per_s * trial.seconds)


def test_a_worker_is_timed_without_its_start(workspace: Workspace, make_config: MakeConfig) -> None:
    """It takes seconds, several times as long as what is timed."""
    config = make_config(data={"workers": 1})
    data = open_data(workspace, config)
    trial = measure_reading(data.views(config, "train", SlowPool), config, 0, 1, seconds=0.6)
    assert 0.3 / PAUSE_S < trial.volumes_per_s < 1.05 / PAUSE_S


def test_what_takes_too_long_is_scaled_from_a_part(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prect.train.forecast.trial.STEP_S", 0.5)
    config = make_config(data={"batch_size": 200})
    trial = measure_step(config, 1, CPU)
    assert trial.volume_s is not None
    assert "scaled by operations" in trial.note
    monkeypatch.setattr("prect.train.forecast.trial.STEP_S", 1e-9)
    trial = measure_step(config, 1, CPU)
    assert trial.volume_s is None
    assert "at the very least" in trial.note
    assert "memory" in measure_step(config, 1, CPU, free=1000).note


def test_a_run_on_160_thousand_volumes_and_eight_gpus_that_are_not_here(
    tmp_path: Path,
) -> None:
    collection = simulated(Workspace(tmp_path), 1)
    config = published("voco-b", "data.weights={abdomen=8, headneck=8}")
    told = planned(collection, config, "H100")
    course, reading = told.course, told.reading
    samples = len(collection.sampler(config))
    assert samples > 600_000
    assert course.steps_per_epoch.value == math.ceil(samples / 16)
    assert course.epochs.value == pytest.approx(250_000 * 16 / samples)
    assert course.operations.value == pytest.approx(16 * 2.723e12, rel=1e-3)
    assert course.computing is not None
    assert course.computing.how == "assumed"
    assert "50% assumed" in course.computing.note
    assert 0.05 < course.computing.value < 2
    assert reading.needed is not None
    assert reading.needed.value == pytest.approx(16 / course.computing.value)
    assert reading.decoded is not None
    assert reading.stored is not None
    assert (reading.given, reading.ratio) == (None, None)
    assert any("loader" in text for text in told.unknown)
    assert course.to_go is not None
    assert course.whole is not None
    hours = 250_000 * course.computing.value / 3600
    assert hours < course.to_go.value < 1.05 * hours
    half = planned(collection, config, "H100", from_step=125_000).course
    assert half.to_go is not None
    assert half.to_go.value == pytest.approx(course.whole.value / 2, rel=0.02)
    assert half.steps_to_go.value == 125_000


def test_readers_of_gpus_that_are_not_here_are_taken_to_be_like_these(
    few: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prect.train.forecast.trial.READING_S", 0.2)
    config = published("demo", "data.workers=0")
    told = forecast(config, few, world=8, device=None, gpu_model="H100", pool=SimulatedPool)
    given, ratio = told.reading.given, told.reading.ratio
    assert given is not None
    assert given.how == "assumed"
    assert "8 times" in given.note
    assert ratio is not None
    assert told.reading.workers is not None
    assert told.reading.workers.value == math.ceil(1 / ratio.value)


def test_a_model_that_is_not_known_has_no_time(few: TrainingData) -> None:
    for model in (None, "Radeon"):
        told = planned(few, published("demo"), model)
        assert told.course.computing is None
        assert told.course.to_go is None
        assert told.reading.needed is None
        assert told.memory.fits is None
        assert told.precision == "bfloat16"
        assert any("speed" in text for text in told.unknown)


def test_older_gpus_compute_in_float16(few: TrainingData) -> None:
    told = planned(few, published("demo"), "V100 32GB")
    assert told.precision == "float16"
    assert told.course.computing is not None


@pytest.mark.slow
def test_voco_h_fits_or_does_not_and_fsdp_shrinks_it(few: TrainingData) -> None:
    two = planned(few, published("voco-h"), "H100").memory
    assert two.fits
    assert two.available is not None
    assert two.available.value == 80e9
    assert 40e9 < two.total.value < 50e9
    six = planned(few, published("voco-h", "data.batch_size=6", "data.global_batch=48"), "H100")
    assert six.memory.fits is False
    alone = planned(few, published("voco-h"), "A100").memory
    shared = planned(few, published("voco-h", "train.parallel=fsdp"), "A100").memory
    assert alone.fits is False
    assert shared.total.value < alone.total.value - 5e9
    assert shared.parts["optimiser"].value == alone.parts["optimiser"].value // 8
    assert shared.parts["gathered"].how == "assumed"
    assert sum(part.value for part in shared.parts.values()) == shared.total.value


def test_more_volumes_a_step_in_parts_take_time_and_no_memory(few: TrainingData) -> None:
    small = planned(few, published("demo"), "H100")
    large = planned(few, published("demo", "data.global_batch=64"), "H100")
    assert small.course.computing is not None
    assert large.course.computing is not None
    # Four times the volumes, and a forward pass more for each.
    ratio = large.course.computing.value / small.course.computing.value
    assert 4.8 < ratio < 5.8
    assert large.memory.total.value < 1.05 * small.memory.total.value


def test_a_batch_that_cannot_be_shared_out_is_refused(few: TrainingData) -> None:
    with pytest.raises(ConfigError, match=r"8 processes cannot share"):
        planned(few, published("demo", "data.global_batch=12"), "H100")


@pytest.mark.parametrize(
    ("last", "every", "step", "expected"),
    [(10, 0, 0, 2), (10, 0, 3, 1), (10, 5, 0, 3), (10, 4, 0, 4), (10, 4, 4, 2), (10, 5, 10, 0)],
)
def test_evaluations_that_are_left(
    make_config: MakeConfig, last: int, every: int, step: int, expected: int
) -> None:
    config = make_config(optim={"max_steps": last}, train={"eval_every": every})
    assert evaluations_from(config, step) == expected
