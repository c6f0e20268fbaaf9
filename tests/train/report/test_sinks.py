"""Figures reach TensorBoard, W&B and MLflow under one run id, and a sink's failure is only its own.

W&B and MLflow are played by small modules that write down what they are asked for; where the real
ones are installed, they are tried as well, on disk.
"""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prect.errors import ConfigError, SinkError
from prect.train.config import TrainConfig
from prect.train.report import sinks as sinks_module
from prect.train.report.sinks import Sink, check_sinks, close_all, open_sinks, write_all
from prect.train.report.trackers import grouped
from tests.train.conftest import MakeConfig

FIGURES = {"loss": 0.5, "lr": 1e-4, "step_s": 2.0, "wait_share": 0.01}
EVALUATION = {"heldout_total": 0.4, "heldout_top1": 0.7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "toy"


def run(config: TrainConfig, folder: Path, step: int, last: int) -> list[SinkError]:
    """Log as a trainer does that goes on after ``step``."""
    sinks = open_sinks(config, folder, step)
    failures = []
    for number in range(step + 1, last + 1):
        failures += write_all(sinks, number, FIGURES | {"loss": number + step / 100})
    failures += write_all(sinks, last, EVALUATION)
    return failures + close_all(sinks)


def test_figures_have_names_by_group() -> None:
    assert grouped(FIGURES | EVALUATION | {"mfu": 0.4}) == {
        "train/loss": 0.5,
        "train/lr": 1e-4,
        "speed/step_s": 2.0,
        "speed/wait_share": 0.01,
        "heldout/total": 0.4,
        "heldout/top1": 0.7,
        "speed/mfu": 0.4,
    }


def test_tensorboard_shows_one_past_after_a_resume(make_config: MakeConfig, folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(train={"log_to": ["tensorboard"]})
    assert run(config, folder, 0, 5) == []
    (before,) = (folder / "tensorboard").iterdir()
    # TensorBoard orders its files by the second in which they were begun.
    before.rename(before.with_name("events.out.tfevents.1000000000.node"))
    assert run(config, folder, 3, 4) == []  # from the checkpoint of step 3
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    loss = [(event.step, round(event.value, 2)) for event in events.Scalars("train/loss")]
    assert loss == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.03)]
    assert [event.step for event in events.Scalars("heldout/top1")] == [4]
    assert events.Tags()["tensors"] == ["config/text_summary"]


class FakeWandb(ModuleType):
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.finished = 0
        self.fails: Exception | None = None
        self.project: str | None = None

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(project=self.project))

    def Settings(self, **values: Any) -> dict[str, Any]:  # noqa: N802
        return values

    def init(self, **values: Any) -> FakeWandb:
        self.inits.append(values)
        if self.fails is not None:
            raise self.fails
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, figures: dict[str, Any]) -> None:
        if self.fails is not None:
            raise self.fails
        self.logged.append(figures)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_goes_on_with_the_run_that_it_has(
    wandb: FakeWandb, make_config: MakeConfig, folder: Path
) -> None:
    config = make_config(train={"log_to": ["wandb"]})
    assert run(config, folder, 0, 2) == []
    wandb.project = "mine"
    assert run(config, folder, 2, 3) == []
    first, second = wandb.inits
    assert first["id"] == second["id"] == json.loads((folder / "wandb.json").read_text())["id"]
    assert (first["resume"], first["name"], first["dir"]) == ("allow", "toy", str(folder))
    assert (first["project"], second["project"]) == ("prect", "mine")
    assert first["config"] == config.model_dump(mode="json")
    # It must not wait for ever for a server at the end, nor take the terminal.
    assert first["settings"]["finish_timeout"] < sinks_module.CLOSE_SECONDS
    assert first["settings"]["console"] == "off"
    assert wandb.metrics[:2] == [("step", None), ("*", "step")]
    assert [line["step"] for line in wandb.logged] == [1, 2, 2, 3, 3]
    assert wandb.logged[0] == {"step": 1, **grouped(FIGURES | {"loss": 1.0})}
    assert wandb.finished == 2


class FakeMlflow:
    """Client, entities and module in one."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self.uri: str | None = None
        self.experiments: list[str] = []
        self.created: list[str] = []
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[str, str, float, int]] = []
        self.states: list[tuple[str, str]] = []

    def client(self, uri: str) -> FakeMlflow:
        self.uris.append(uri)
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return name

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        assert experiment in self.experiments
        self.created.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id=f"id-{len(self.created)}"))

    def update_run(self, run: str, status: str) -> None:
        self.states.append((run, status))

    set_terminated = update_run

    def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        for key, value in params:
            assert self.params.setdefault(key, value) == value
        self.metrics += [(run, name, value, step) for name, value, _, step in metrics]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    fake = FakeMlflow()
    module = ModuleType("mlflow")
    module.__spec__ = ModuleSpec("mlflow", None)
    named: dict[str, dict[str, Any]] = {
        "mlflow": {
            "is_tracking_uri_set": lambda: fake.uri is not None,
            "get_tracking_uri": lambda: fake.uri,
            "MlflowClient": fake.client,
        },
        "mlflow.entities": {"Metric": lambda *each: each, "Param": lambda *each: each},
        "mlflow.environment_variables": {
            "MLFLOW_EXPERIMENT_NAME": SimpleNamespace(get=lambda: None)
        },
    }
    for name, members in named.items():
        part = module if name == "mlflow" else ModuleType(name)
        vars(part).update(members)
        monkeypatch.setitem(sys.modules, name, part)
    return fake


def test_mlflow_goes_on_with_the_run_that_it_has(
    mlflow: FakeMlflow, make_config: MakeConfig, folder: Path
) -> None:
    config = make_config(train={"log_to": ["mlflow"]})
    assert run(config, folder, 0, 2) == []
    changed = make_config(train={"log_to": ["mlflow"]}, data={"workers": 1})
    assert run(changed, folder, 2, config.optim.max_steps) == []
    assert mlflow.uris == [f"sqlite:///{folder.parent / 'mlflow.db'}"] * 2
    assert (mlflow.experiments, mlflow.created) == (["prect"], ["toy"])
    assert mlflow.params["data.workers"] == "0"
    assert mlflow.params["data.datasets"] == '["toy"]'
    assert mlflow.params["run.name"] == "toy"
    losses = [(run, step) for run, name, _, step in mlflow.metrics if name == "train/loss"]
    assert losses == [("id-1", step) for step in (1, 2, 3, 4)]
    assert [state for _, state in mlflow.states] == ["KILLED", "RUNNING", "FINISHED"]


def test_another_mlflow_server_has_a_run_of_its_own(
    mlflow: FakeMlflow, make_config: MakeConfig, folder: Path
) -> None:
    config = make_config(train={"log_to": ["mlflow"]})
    run(config, folder, 0, 1)
    mlflow.uri = "http://server"
    run(config, folder, 1, 2)
    run(config, folder, 2, 3)
    assert mlflow.uris[1:] == ["http://server"] * 2
    assert mlflow.created == ["toy", "toy"]
    assert {run for run, *_ in mlflow.metrics} == {"id-1", "id-2"}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_told_before_anything_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig, folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = make_config(train={"log_to": [name]})
    extra = name if name == "tensorboard" else f"'prect[{name}]'"
    with pytest.raises(ConfigError) as caught:
        open_sinks(config, folder, 0)
    assert f"asks for {name}, which is not installed; pip install {extra}" in str(caught.value)
    assert not folder.exists()
    with pytest.raises(ConfigError):
        check_sinks(config)


def test_no_sink_is_no_work(make_config: MakeConfig, folder: Path) -> None:
    config = make_config(train={"log_to": []})
    before = threading.active_count()
    assert run(config, folder, 0, 2) == []
    assert threading.active_count() == before


def test_a_new_run_is_told_that_a_sink_cannot_be_opened(
    wandb: FakeWandb, make_config: MakeConfig, folder: Path
) -> None:
    wandb.fails = OSError("no such\nserver")
    config = make_config(train={"log_to": ["tensorboard", "wandb"]})
    with pytest.raises(SinkError, match=r"cannot be opened \(OSError: no such server\)") as caught:
        open_sinks(config, folder, 0)
    assert caught.value.__cause__ is wandb.fails
    assert not [thread for thread in threading.enumerate() if "figures" in thread.name]


def written(sinks: list[Sink], step: int) -> list[SinkError]:
    """Write until a failure is told, as the thread needs a moment."""
    for number in range(step, step + 500):
        if failures := write_all(sinks, number, FIGURES):
            return failures
        time.sleep(0.01)
    raise AssertionError("no failure was told")


@pytest.mark.parametrize("when", ["open", "write"])
def test_a_run_that_goes_on_drops_a_sink_that_fails_and_says_so_once(
    when: str,
    wandb: FakeWandb,
    mlflow: FakeMlflow,
    make_config: MakeConfig,
    folder: Path,
) -> None:
    config = make_config(train={"log_to": ["wandb", "mlflow"]})
    wandb.fails = OSError("the network is down") if when == "open" else None
    sinks = open_sinks(config, folder, 3)
    wandb.fails = OSError("the network is down")
    (failure,) = written(sinks, 4)
    assert failure.sink == "wandb"
    assert str(failure).startswith(
        "wandb takes no more figures (OSError: the network is down); metrics.jsonl has them all"
    )
    assert len(sinks) == 1
    before = len(mlflow.metrics)
    assert write_all(sinks, 900, FIGURES) == []
    assert close_all(sinks) == []
    assert sinks == []
    assert len(mlflow.metrics) > before
    assert mlflow.metrics[-1][3] == 900


class Stuck:
    """A tracker whose server does not answer."""

    def __init__(self) -> None:
        self.answer = threading.Event()

    def write(self, _step: int, _figures: Mapping[str, float]) -> None:
        self.answer.wait(60)

    def close(self) -> None:
        """Never reached in time."""


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    tracker = Stuck()
    monkeypatch.setitem(sinks_module._TRACKERS, "tensorboard", lambda *_: tracker)
    yield tracker
    tracker.answer.set()


def test_a_server_that_does_not_answer_holds_up_nothing(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig, folder: Path
) -> None:
    monkeypatch.setattr(sinks_module, "CLOSE_SECONDS", 0.2)
    config = make_config(train={"log_to": ["tensorboard"]})
    sinks = open_sinks(config, folder, 0)
    began = time.monotonic()
    assert [write_all(sinks, step, FIGURES) for step in range(1, 50)] == [[]] * 49
    (failure,) = close_all(sinks)
    assert time.monotonic() - began < 5
    assert "did not end in 0 s" in str(failure)
    assert not stuck.answer.is_set()


def test_a_sink_that_falls_too_far_behind_is_dropped(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig, folder: Path
) -> None:
    monkeypatch.setattr(sinks_module, "_PENDING", 5)
    sinks = open_sinks(make_config(train={"log_to": ["tensorboard"]}), folder, 0)
    (failure,) = written(sinks, 1)
    assert "it is 5 lines behind" in str(failure)
    assert sinks == []
    assert not stuck.answer.is_set()


def test_a_failure_survives_the_way_between_processes() -> None:
    failure = pickle.loads(pickle.dumps(SinkError("wandb", "takes no more figures")))
    assert (str(failure), failure.sink) == ("wandb takes no more figures", "wandb")


def test_the_real_wandb_takes_a_run_on_disk(
    monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig, folder: Path
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = make_config(train={"log_to": ["wandb"]})
    assert run(config, folder, 0, 2) == []
    time.sleep(1.1)  # its folders are named by the second
    assert run(config, folder, 2, 3) == []
    known = json.loads((folder / "wandb.json").read_text())["id"]
    files = list((folder / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(files) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_the_real_mlflow_takes_a_run_on_disk(make_config: MakeConfig, folder: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    config = make_config(train={"log_to": ["mlflow"]})
    assert run(config, folder, 0, 2) == []
    changed = make_config(train={"log_to": ["mlflow"]}, data={"workers": 1})
    assert run(changed, folder, 2, config.optim.max_steps) == []
    known = json.loads((folder / "mlflow.json").read_text())
    client = mlflow.MlflowClient(known["uri"])
    history = client.get_metric_history(known["run"], "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    found = client.get_run(known["run"])
    assert found.info.status == "FINISHED"
    assert found.data.params["data.workers"] == "0"
    assert found.data.metrics["heldout/top1"] == pytest.approx(0.7)
