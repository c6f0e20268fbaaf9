"""Frozen features: of networks, and of histograms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prect.errors import TrainingError
from prect.train.learner import build_learner
from prect.train.networks import Encoder, build_encoder, pooled
from prect.train.probes.features import HistogramFeatures, NetworkFeatures, untrained_features
from prect.train.sections import NetworkConfig

MakeConfig = Any
SMALL = NetworkConfig(name="segresnet", feature_size=8, blocks=(1, 1))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (SMALL, (16, 16, 8)),
        (SMALL.model_copy(update={"crops_at_once": 2}), (16, 16, 8)),
        (NetworkConfig(feature_size=12), (64, 32, 32)),
    ],
)
def test_averages_of_the_maps_are_the_embedding(
    network: NetworkConfig, shape: tuple[int, int, int]
) -> None:
    encoder = build_encoder(network)
    features = NetworkFeatures(encoder)
    count = 3 if network.name == "segresnet" else 1
    crops = torch.rand(count, 1, *shape)
    embedding = features.embed(crops)
    torch.testing.assert_close(pooled(features.maps(crops)), embedding)
    assert embedding.shape == (count, encoder.embedding)
    assert not embedding.requires_grad
    assert encoder.training


def test_features_are_those_of_evaluation_mode() -> None:
    class Noisy(Encoder):
        embedding = 4

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 4)
            self.dropout = torch.nn.Dropout(0.5)

        def embed(self, crops: torch.Tensor) -> torch.Tensor:
            embedded: torch.Tensor = self.dropout(self.layer(crops.flatten(1)))
            return embedded

    features = NetworkFeatures(Noisy())
    crops = torch.rand(2, 1, 2, 2, 2)
    assert torch.equal(features.embed(crops), features.embed(crops))
    with pytest.raises(TrainingError, match="maps of a Noisy"):
        features.maps(crops)


def test_the_first_control_is_the_network_before_its_first_step(make_config: MakeConfig) -> None:
    config = make_config()
    crops = torch.rand(2, 1, 16, 16, 16)
    began = NetworkFeatures(build_learner(config).backbone).embed(crops)
    control = untrained_features(config.network, config.run.seed)
    assert torch.equal(control.embed(crops), began)
    other = untrained_features(config.network, config.run.seed + 1)
    assert not torch.equal(other.embed(crops), began)


def test_histograms_count_voxels() -> None:
    crops = torch.zeros(2, 1, 4, 4, 4)
    crops[0, 0, :2] = 0.5
    crops[1] = 1.2
    embedded = HistogramFeatures().embed(crops)
    assert embedded.square().sum(dim=1).tolist() == pytest.approx([1, 1])
    assert embedded[0, [0, 16]].square().tolist() == pytest.approx([0.5, 0.5])
    assert embedded[1, 31].item() == 1
    (maps,) = HistogramFeatures().maps(crops)
    assert maps.shape == (2, 48, 4, 4, 4)
    assert maps[0, 8, :, 0, 0].tolist() == [1, 1, 0, 0]
    assert maps[0, 16 + 8, :, 0, 0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert maps.sum(dim=1) == pytest.approx(3)

    noise = torch.rand(1, 1, 12, 10, 9, generator=torch.Generator().manual_seed(0))
    (maps,) = HistogramFeatures().maps(noise)
    cube = noise[0, 0, 1:10, 4:10, 0:6]  # around (5, 8, 1), cut at two ends
    bins = (cube * 16).long().flatten().bincount(minlength=16)
    torch.testing.assert_close(maps[0, 32:, 5, 8, 1], bins / cube.numel())
