"""Replay tells and draws what the run really saw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from prect.errors import TrainingError
from prect.train.callbacks import Silent
from prect.train.damage import Damage, Quarantine
from prect.train.data import open_data
from prect.train.parallel import Place
from prect.train.replay import boxes_in_mm, replay
from prect.train.run_folder import RunFolder
from prect.train.sampling import Sample
from prect.train.trainer import Trainer
from prect.train.views import View, plan_region
from prect.workspace import Workspace

MakeConfig = Any


def test_replay_tells_what_the_trainer_read(
    workspace: Workspace, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    seen: list[list[dict[str, Any]]] = []
    batches = Trainer._batches

    def recorded(self: Trainer) -> Any:
        for raw in batches(self):
            seen.append([sample.describe() for sample in raw.samples])
            yield raw

    monkeypatch.setattr(Trainer, "_batches", recorded)
    place = Place(torch.device("cpu"))
    Trainer(config, open_data(workspace, config), place, Silent()).run()

    out = workspace.root / "out"
    result = replay(workspace, workspace.run("toy"), 3, out)
    written: Mapping[str, Any] = json.loads(result.samples.read_text("utf-8"))
    for told, read in zip(written["samples"], seen[2], strict=True):
        assert {key: told[key] for key in read} == json.loads(json.dumps(read))
        assert [pytest.approx(1, abs=1e-5)] * 2 == [sum(row) for row in told["labels"]]
    picture = imread(result.picture)
    assert picture.shape[0] > 400
    assert np.ptp(picture[..., :3]) > 0.9
    with pytest.raises(TrainingError, match="step 5 is not one of the run's, 1 to 4"):
        replay(workspace, workspace.run("toy"), 5, out)


def test_what_stood_in_may_have_been_replaced_in_its_turn(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    config = make_config()
    data = open_data(workspace, config)
    run = RunFolder(workspace.run("toy"))
    run.begin(config, data.table.digest, config.data.batch_size, 0)
    log = Quarantine(9, run.path)
    log.record(1, [Damage(0, "toy", "a", None, None, "gone", 2)])
    log.record(1, [Damage(2, "toy", "b", None, None, "gone", 3)])
    shown = replay(workspace, run.path, 1, run.path, dry_run=True).document["samples"]
    assert [sample["index"] for sample in shown] == [3, 1]
    assert shown[0]["replaces"]["case"] == "a"


def test_folder_of_no_run_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not the folder of a run"):
        replay(workspace, tmp_path, 1, tmp_path)


def test_boxes_lie_where_the_crops_were_cut(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config()
    data = open_data(stores, config)
    sample: Sample = data.sampler(config).sample(0)
    volume = data.geometry.row(sample.row)
    boxes = boxes_in_mm(sample, plan_region(sample.view, volume), config)
    # Four bases of half the view each fill the whole volume, in x and y.
    view: View = sample.view
    bases = boxes[config.crops.random :]
    tolerance = max(volume.spacing) * 4
    np.testing.assert_allclose(bases[:, 0].min(axis=0), view.start, atol=tolerance)
    np.testing.assert_allclose(bases[:, 1].max(axis=0), view.size, atol=tolerance)
    np.testing.assert_allclose(
        np.prod(bases[:, 1] - bases[:, 0], axis=1).sum(), np.prod(view.size), rtol=0.2
    )
