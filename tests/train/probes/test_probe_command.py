"""``prect probe`` as people and scripts use it, on a network trained for two steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from typer.testing import CliRunner

from prect.cli import app
from prect.errors import CheckpointError, ConfigError, TrainingError
from prect.phantom import ORGANS
from prect.train.callbacks import Silent
from prect.train.data import open_data
from prect.train.parallel import Place
from prect.train.probes import picture, subject
from prect.train.probes.volumes import ProbeVolumes
from prect.train.trainer import Trainer
from prect.workspace import Workspace
from tests.conftest import Built
from tests.train.conftest import MakeConfig

ARMS = ["network", "untrained", "histogram"]


def call(workspace: Workspace, *arguments: object) -> Any:
    words = [*map(str, arguments), "--workspace", str(workspace.root)]
    result = CliRunner().invoke(app, ["probe", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def said(result: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.fixture
def trained(phantom_built: Built, tmp_path: Path, make_config: MakeConfig) -> Workspace:
    """A workspace of stored phantoms with a run of two steps."""
    own = Workspace(tmp_path / "workspace")
    own.root.mkdir()
    for name in ("cache", "manifests"):
        (own.root / name).symlink_to(getattr(phantom_built.workspace, name))
    config = make_config(
        data={"datasets": ["phantoms"], "workers": 0, "heldout_minimum": 2},
        view={"grid": [32, 32, 16], "window": [-175.0, 250.0]},
        optim={"lr": 1e-3, "warmup_steps": 1, "max_steps": 2},
    )
    Trainer(config, open_data(own, config), Place(torch.device("cpu")), Silent()).run()
    return own


def test_all_probes_of_a_run(trained: Workspace, masks: Path) -> None:
    options = (
        "--split", "all", "--queries", 4, "--random-seeds", 1, "--labels", masks,
        "--organs", "phantom", "--device", "cpu",
    )  # fmt: skip
    planned = call(trained, "toy", *options, "--dry-run", "--json")
    assert not (trained.run("toy") / "probe").exists()
    result = call(trained, "toy", *options, "--json")
    document = said(result)
    assert document["dry_run"] is False
    assert {key: document[key] for key in said(planned)} == said(planned) | {"dry_run": False}
    assert (document["step"], document["patients"], len(document["cases"])) == (2, 8, 8)
    assert document["labels"]["cases"] == 5
    assert len(document["labels"]["unmapped"]) == 3
    assert all(name in result.stderr for name in document["labels"]["unmapped"])

    for probe, figure in (
        ("position", "error_mm"),
        ("organs", "accuracy"),
        ("segmentation", "dice"),
    ):
        figures = document[probe]["figures"]
        assert list(figures) == ARMS
        for arm in ARMS:
            found = figures[arm][figure]
            assert found["low"] <= found["value"] <= found["high"]
        assert set(document[probe]["against"]) == {"untrained", "histogram"}
    assert document["position"]["pairs"] == 56
    assert document["position"]["best_mm"] < document["position"]["chance_mm"]
    assert set(document["organs"]["by_organ"]["network"]) <= set(ORGANS) - {"body", "background"}
    # Bone and air stand out in HU: a linear classifier of histograms must find some organs.
    assert document["segmentation"]["figures"]["histogram"]["dice"]["value"] > 0.15

    folder = trained.run("toy") / "probe"
    written = json.loads((folder / "step-00000002.json").read_text("utf-8"))
    assert written | {"dry_run": False} == document
    for name in ("step-00000002.png", "step-00000002-places.png"):
        picture = imread(folder / name)
        assert np.ptp(picture[..., :3]) > 0.9
    assert "intervals" in result.stderr


def test_organs_are_named_by_a_file(trained: Workspace, masks: Path, tmp_path: Path) -> None:
    organs = tmp_path / "organs.json"
    organs.write_text('{"liver": 6, "lung": 2}')
    options = ("--split", "all", "--labels", masks, "--organs", organs, "--dry-run", "--json")
    assert said(call(trained, "toy", *options))["labels"]["organs"] == {"liver": 6, "lung": 2}


def test_a_weight_file_is_probed_like_its_run(trained: Workspace, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    exported = CliRunner().invoke(
        app, ["export", "toy", str(weights), "--workspace", str(trained.root)]
    )
    assert exported.exit_code == 0
    options = ("--queries", 4, "--random-seeds", 1, "--device", "cpu", "--json")
    result = call(trained, "toy", *options)
    assert "two patients have no width" in result.stderr.replace("\n", " ")
    run = said(result)
    assert all(
        figure["overlap"]
        for each in run["position"]["against"].values()
        for figure in each.values()
    )
    config = trained.run("toy") / "config.json"
    file = said(call(trained, weights, "--config", config, *options))
    assert file["position"]["figures"] == run["position"]["figures"]
    assert file["files"]["report"] == str(tmp_path / "probe" / "weights.json")
    assert (run["labels"], run["split"], run["manifest_changed"]) == (None, "heldout", False)
    assert "organs" not in run

    with pytest.raises(CheckpointError, match="was trained on the view"):
        call(trained, weights, "--config", config, "--set", "view.window=[-1000, 500]", *options)

    without = tmp_path / "without.json"
    without.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"data": {}}), "utf-8")
    unknown = (weights, "--config", without, "--dataset", "phantoms", "--force", "--dry-run")
    with pytest.raises(ConfigError, match=r"--split heldout: .* give --split all"):
        call(trained, *unknown)
    assert len(said(call(trained, *unknown, "--split", "all", "--json"))["cases"]) == 8

    checkpoint = trained.run("toy") / "checkpoints" / "step-00000002"
    report = Path(run["files"]["report"])
    for refused in (options, (*options, "--dry-run")):
        with pytest.raises(ConfigError, match=r"step-00000002\.json exists; give --force .* --out"):
            call(trained, checkpoint, *refused)
    assert json.loads(report.read_text("utf-8"))["position"] == run["position"]
    again = said(call(trained, checkpoint, *options, "--seed", 5, "--force"))
    assert again["files"] == run["files"]
    assert again["position"]["figures"] != run["position"]["figures"]


def test_volumes_with_labels_are_drawn_first(trained: Workspace, masks: Path) -> None:
    options = ("--split", "all", "--labels", masks, "--dry-run", "--json")
    for cases, labelled in ((3, 3), (5, 5), (7, 5)):
        planned = said(call(trained, "toy", *options, "--cases", cases, "--seed", 2))
        assert len(set(planned["cases"])) == cases
        assert planned["labels"]["cases"] == labelled
        assert len(planned["labels"]["unmapped"]) == cases - labelled


def test_what_cannot_end_well_is_refused_before_a_voxel_is_read(
    trained: Workspace, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: object, position: int) -> None:
        raise AssertionError(f"volume {position} was read")

    monkeypatch.setattr(ProbeVolumes, "__getitem__", read)
    file = tmp_path / "file"
    file.touch()
    one = tmp_path / "one"
    one.mkdir()
    mask = next(masks.glob("*.nii.gz"))
    (one / mask.name).symlink_to(mask)
    refusals: dict[str, tuple[object, ...]] = {
        "file is no folder; give --out": ("--out", file / "probe"),
        "label maps of one patient only": ("--split", "all", "--labels", one),
        "give their folder by --labels": ("--organs", "phantom"),
    }
    for dry in ((), ("--dry-run",)):
        for message, options in refusals.items():
            with pytest.raises(ConfigError, match=message):
                call(trained, "toy", *options, *dry)
    whole = subject.open_volumes

    def first_alone(*arguments: Any) -> subject.Chosen:
        chosen = whole(*arguments)
        return replace(chosen, rows=chosen.rows[:1])

    monkeypatch.setattr(subject, "open_volumes", first_alone)
    for dry in ((), ("--dry-run",)):
        with pytest.raises(TrainingError, match="1 volumes of 1 patients"):
            call(trained, "toy", *dry)


def test_figures_are_kept_when_pictures_fail(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(picture, "draw_figures", fail)
    options = ("--queries", 2, "--gallery", 2, "--random-seeds", 1, "--device", "cpu")
    with pytest.raises(OSError, match="no room"):
        call(trained, "toy", *options, "--out", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "step-00000002.json").read_text("utf-8"))
    assert written["position"]["pairs"] == 2


def test_errors_are_typed(trained: Workspace, masks: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        call(trained, "nothing")
    with pytest.raises(CheckpointError, match="settings of its own"):
        call(trained, trained.run("toy"), "--preset", "demo", "--dataset", "phantoms")
    with pytest.raises(ConfigError, match="--preset or --config"):
        call(trained, "toy", "--set", "view.grid=[8, 8, 8]")
    with pytest.raises(ConfigError, match="holds no label map of the 2 cases"):
        call(trained, "toy", "--labels", tmp_path)
    with pytest.raises(ConfigError, match=r"organs\.json cannot be read"):
        call(trained, "toy", "--labels", masks, "--organs", tmp_path / "organs.json")
    foreign = tmp_path / "weights.pt"
    foreign.write_bytes(b"nothing")
    with pytest.raises(CheckpointError) as refused:
        call(trained, foreign)
    assert any("--preset" in note for note in refused.value.__notes__)
