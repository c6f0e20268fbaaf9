"""What is dropped or shuffled while training: from the sample alone, and never held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prect.train.batch import CropBatch, assemble
from prect.train.config import TrainConfig
from prect.train.crops import base_starts, overlap_shares
from prect.train.data import open_data
from prect.train.learner import build_learner
from prect.train.loader import train_loader
from prect.train.sampling import Sample
from prect.workspace import Workspace

MakeConfig = Any
VOLUMES = 12
BOTH = {"drop_instances": 0.3, "shuffle_labels": True}
EXTRAS = {"dropped", "label_order"}


def samples(
    stores: Workspace, config: TrainConfig, count: int, domain: Any = "train"
) -> list[Sample]:
    stream = open_data(stores, config).sampler(config, domain)
    return [stream.sample(i) for i in range(count)]


def batches(
    stores: Workspace, config: TrainConfig, world: int, steps: int
) -> list[list[CropBatch]]:
    """The batches of each rank."""
    views = open_data(stores, config).views(config)
    return [
        [
            assemble(raw.to(torch.device("cpu")), config.view, config.crops)
            for raw in train_loader(views, config, range(steps), rank=rank, world=world)
        ]
        for rank in range(world)
    ]


def true_labels(config: TrainConfig, sample: Sample) -> torch.Tensor:
    crops = config.crops
    bases = base_starts(crops, config.view.grid)
    return torch.from_numpy(overlap_shares(sample.starts[: crops.random], bases, crops.size))


def test_runs_without_them_keep_their_samples(stores: Workspace, make_config: MakeConfig) -> None:
    plain = samples(stores, make_config(), 8)
    extra = samples(stores, make_config(augment=BOTH), 8)
    for a, b in zip(plain, extra, strict=True):
        assert EXTRAS.isdisjoint(a.describe())
        described = b.describe()
        assert set(described) >= EXTRAS
        assert {k: v for k, v in described.items() if k not in EXTRAS} == a.describe()


def test_each_setting_draws_alone(stores: Workspace, make_config: MakeConfig) -> None:
    both, dropped, shuffled = (
        samples(stores, make_config(augment=augment), 4)
        for augment in (BOTH, {"drop_instances": 0.3}, {"shuffle_labels": True})
    )
    for i in range(4):
        assert dropped[i].label_order is None
        assert shuffled[i].dropped is None
        np.testing.assert_array_equal(dropped[i].dropped, both[i].dropped)
        np.testing.assert_array_equal(shuffled[i].label_order, both[i].label_order)


def test_heldout_samples_know_neither(stores: Workspace, make_config: MakeConfig) -> None:
    plain = samples(stores, make_config(), 6, "heldout")
    extra = samples(stores, make_config(augment=BOTH), 6, "heldout")
    assert [s.describe() for s in extra] == [s.describe() for s in plain]


def test_share_of_crops_is_dropped(stores: Workspace, make_config: MakeConfig) -> None:
    drawn = samples(stores, make_config(augment={"drop_instances": 0.2}), 600)
    dropped = np.stack([s.dropped for s in drawn if s.dropped is not None])
    assert dropped.shape == (600, 6)
    np.testing.assert_allclose(dropped.mean(axis=0), 0.2, atol=0.06)


def test_shuffled_labels_are_dealt_out_to_the_bases(
    stores: Workspace, make_config: MakeConfig
) -> None:
    config = make_config(augment=BOTH, data={"batch_size": VOLUMES, "workers": 0})
    (batch,) = batches(stores, config, 1, 1)[0]
    truth = torch.stack([true_labels(config, s) for s in samples(stores, config, VOLUMES)])
    torch.testing.assert_close(batch.labels.sort(-1).values, truth.sort(-1).values)
    torch.testing.assert_close(batch.labels.sum(-1), torch.ones(VOLUMES, 2))
    assert (batch.labels != truth).any(-1).float().mean() > 0.5
    # Every base gets the largest share equally often: nothing about the place is left.
    orders = np.stack([s.label_order for s in samples(stores, config, 800)])  # type: ignore[misc]
    first = np.bincount(orders[..., 0].ravel(), minlength=4) / orders[..., 0].size
    np.testing.assert_allclose(first, 0.25, atol=0.05)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_neither_depends_on_the_processes(
    stores: Workspace, make_config: MakeConfig, world: int, workers: int
) -> None:
    data = {"batch_size": VOLUMES // world, "workers": workers}
    config = make_config(augment=BOTH, data=data)
    ranks = batches(stores, config, world, 2)
    drawn = samples(stores, config, 2 * VOLUMES)
    for step in range(2):
        labels = torch.cat([rank[step].labels for rank in ranks])
        dropped = torch.cat([torch.as_tensor(rank[step].dropped) for rank in ranks])
        own = drawn[step * VOLUMES : (step + 1) * VOLUMES]
        assert dropped.tolist() == np.concatenate([s.dropped for s in own]).tolist()
        for row, sample in zip(labels, own, strict=True):
            order = torch.from_numpy(sample.label_order)
            torch.testing.assert_close(row, true_labels(config, sample).gather(-1, order))


def test_without_them_labels_are_true(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config(augment={"flip": 0.5, "rotate": 0.5})
    (batch,) = batches(stores, config, 1, 1)[0]
    assert batch.dropped is None
    drawn = samples(stores, config, len(batch.labels))
    # Crops are flipped, turned and shifted on their own; where they come from stays the same.
    assert any(s.flips.any() or s.turns.any() for s in drawn)
    truth = torch.stack([true_labels(config, s) for s in drawn])
    torch.testing.assert_close(batch.labels, truth, rtol=0, atol=0)


def test_dropping_changes_the_loss(stores: Workspace, make_config: MakeConfig) -> None:
    losses = []
    for share in (0.0, 0.5):
        config = make_config(augment={"drop_instances": share})
        (batch,) = batches(stores, config, 1, 1)[0]
        losses.append(build_learner(config)(batch).loss.item())
    assert losses[0] != losses[1]
