"""Volumes as the network was shown them, and crops of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prect.train.batch import assemble, show
from prect.train.data import open_data
from prect.train.probes.volumes import Places, cut, plain_places, probe_view, probe_volumes
from prect.train.sections import CropConfig, ViewConfig
from prect.train.views import Geometry
from prect.workspace import Workspace

MakeConfig = Any


def test_images_and_crops_are_those_of_training(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    config = make_config(augment={"shift": 0.5, "flip": 0.5, "rotate": 0.5})
    data = open_data(workspace, config)
    stream = data.views(config, "heldout")
    batch = stream.read_batch([0, 1])
    shown = show(batch, config.view.grid)
    trained = assemble(batch, config.view, config.crops).crops
    each = config.crops.per_volume
    for i, sample in enumerate(batch.samples):
        (volume,) = probe_volumes(data, config, [sample.row])
        torch.testing.assert_close(volume.image, shown[i])
        assert volume.name == f"toy/{data.table.case[sample.row]}"
        assert volume.extent == pytest.approx(sample.view.size)
        places = Places(
            torch.from_numpy(sample.starts),
            torch.from_numpy(sample.flips),
            torch.from_numpy(sample.turns),
            torch.from_numpy(sample.shifts),
        )
        crops = cut(volume.image, places, config.crops)
        torch.testing.assert_close(crops, trained[i * each : (i + 1) * each])


def test_the_affine_leads_to_the_stored_volume(
    workspace: Workspace, make_config: MakeConfig
) -> None:
    # The toy stores' own affine is the identity: RAS is the index on level 0.
    config = make_config()
    data = open_data(workspace, config)
    volume = probe_volumes(data, config)[0]
    row = probe_volumes(data, config).rows[0]
    stored = np.array(data.table.shape[row][::-1])
    corners = [(volume.affine @ [*(np.array(volume.image.shape) * k - 0.5), 1])[:3] for k in (0, 1)]
    assert corners[0] == pytest.approx([-0.5] * 3)
    assert corners[1] == pytest.approx(stored - 0.5, abs=2)


def test_boxes_are_probed_on_the_whole_volume_at_their_spacing() -> None:
    settings = ViewConfig(kind="box", grid=(32, 32, 16), spacing=(1.5, 1.5, 2.0))
    crops = CropConfig(base_grid=(2, 2, 1), size=(16, 16, 16))
    view = probe_view(settings, Geometry((100, 80, 60), (2.0, 1.5, 1.5), 3), crops)
    assert view.grid == (60, 80, 100)
    assert view.spacing == pytest.approx((1.5, 1.5, 2.0))
    assert view.start == pytest.approx((0, 0, 0))
    small = probe_view(settings, Geometry((10, 80, 60), (2.0, 1.5, 1.5), 3), crops)
    assert small.grid == (60, 80, 16)
    assert small.start == pytest.approx((0, 0, -6))


def test_boxes_of_stores_are_read(workspace: Workspace, make_config: MakeConfig) -> None:
    config = make_config(
        view={"kind": "box", "grid": [32, 32, 16], "spacing": [2.0, 2.0, 3.0]},
    )
    data = open_data(workspace, config)
    volumes = probe_volumes(data, config)
    assert sum(volume.image.numel() for volume in volumes) == volumes.voxels
    image = volumes[0].image
    assert min(image.shape) >= 16
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert cut(image, plain_places(np.zeros((1, 3), dtype=np.int64)), config.crops).shape[2:] == (
        config.crops.shown
    )


def test_some_of_many_cases_are_drawn(workspace: Workspace, make_config: MakeConfig) -> None:
    config = make_config()
    data = open_data(workspace, config)
    some = probe_volumes(data, config, range(9), cases=4, seed=1).rows
    assert len(set(some)) == 4
    assert some == probe_volumes(data, config, range(9), cases=4, seed=1).rows
    assert some != probe_volumes(data, config, range(9), cases=4, seed=2).rows
    assert probe_volumes(data, config, range(9), cases=9).rows == tuple(range(9))
    assert probe_volumes(data, config).rows == tuple(data.rows["heldout"])
    assert len(probe_volumes(data, config, range(9))[2:5]) == 3
