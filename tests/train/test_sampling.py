"""Samples depend on nothing but their index."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.loader import train_loader
from prect.train.sampling import Sample, Sampler, step_indices
from prect.train.views import GeometryTable
from prect.workspace import Workspace

MakeConfig = Any
ROWS = 7


def sampler(config: TrainConfig, digest: str = "d", domain: Any = "train") -> Sampler:
    rng = np.random.default_rng(0)
    volumes = GeometryTable(
        rng.integers(20, 60, (2 * ROWS, 3)).astype(np.int32),
        rng.uniform(0.5, 5, (2 * ROWS, 3)),
        np.full(2 * ROWS, 3, dtype=np.int32),
    )
    return Sampler(config, digest, np.arange(ROWS) * 2, volumes, domain)


def same(a: Sample, b: Sample) -> bool:
    return a.describe() == b.describe()


def test_order_of_asking_does_not_matter(make_config: MakeConfig) -> None:
    forwards = [sampler(make_config()).sample(i) for i in range(20)]
    backwards = sampler(make_config())
    assert all(same(forwards[i], backwards.sample(i)) for i in reversed(range(20)))


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_visits_each_row_once(make_config: MakeConfig, epoch: int) -> None:
    stream = sampler(make_config())
    samples = [stream.sample(epoch * ROWS + i) for i in range(ROWS)]
    assert sorted(s.row for s in samples) == list(range(0, 2 * ROWS, 2))
    assert {s.epoch for s in samples} == {epoch}


def test_epochs_have_different_orders(make_config: MakeConfig) -> None:
    stream = sampler(make_config())
    orders = {tuple(stream.sample(e * ROWS + i).row for i in range(ROWS)) for e in range(8)}
    assert len(orders) > 1


def test_stream_depends_on_what_it_should(make_config: MakeConfig) -> None:
    reference = sampler(make_config()).sample(4)
    assert not same(reference, sampler(make_config(run={"seed": 4})).sample(4))
    assert not same(reference, sampler(make_config(), digest="other").sample(4))
    assert not same(reference, sampler(make_config(), domain="heldout").sample(4))
    assert not same(reference, sampler(make_config(augment={"flip": 0.3})).sample(4))
    other = make_config(run={"name": "other"}, data={"batch_size": 7}, optim={"lr": 0.1})
    assert same(reference, sampler(other).sample(4))


def test_values_of_a_sample_are_frozen_for_ever(make_config: MakeConfig) -> None:
    """A change here changes what every existing run sees after a resume."""
    sample = sampler(make_config()).sample(12345)
    assert (sample.row, sample.epoch, sample.starts[:2].tolist()) == FROZEN


FROZEN: tuple[int, int, list[list[int]]] = (12, 1763, [[3, 13, 0], [2, 5, 0]])


@given(st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_random_crops_stay_inside_the_base_grid(index: int) -> None:
    config = _box_config()
    sample = sampler(config).sample(index)
    starts = sample.starts[: config.crops.random]
    assert (starts >= 0).all()
    assert (starts + config.crops.size <= np.array(config.view.grid)).all()
    assert (np.abs(sample.shifts) <= config.augment.shift_range).all()
    assert set(sample.turns.tolist()) <= {0, 1, 2, 3}


def _box_config() -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "run": {"name": "x"},
            "view": {"kind": "box", "grid": (32, 32, 16), "spacing": (1, 1, 2)},
            "crops": {"base_grid": (2, 2, 1), "size": (16, 16, 16)},
            "network": {"name": "segresnet", "feature_size": 8, "blocks": (1, 1)},
        }
    )


def test_draws_have_the_probabilities_that_were_asked_for(make_config: MakeConfig) -> None:
    stream = sampler(make_config())
    samples = [stream.sample(i) for i in range(600)]
    flips = np.stack([s.flips for s in samples])
    np.testing.assert_allclose(flips.mean(axis=(0, 1)), 0.2, atol=0.03)
    turns = np.stack([s.turns for s in samples])
    np.testing.assert_allclose((turns > 0).mean(), 0.2, atol=0.03)
    counts = np.bincount(turns.ravel(), minlength=4)[1:]
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.05)
    shifts = np.stack([s.shifts for s in samples])
    np.testing.assert_allclose((shifts != 0).mean(), 0.5, atol=0.03)
    starts = np.stack([s.starts[:2] for s in samples])[..., :2].ravel()
    np.testing.assert_allclose(np.bincount(starts, minlength=17) / len(starts), 1 / 17, atol=0.02)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_each_step_out(world: int) -> None:
    read = [
        i for step in range(3) for rank in range(world) for i in step_indices(step, 2, rank, world)
    ]
    assert read == list(range(3 * 2 * world))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_loader_gives_the_same_stream_for_any_world_and_workers(
    workspace: Workspace, make_config: MakeConfig, world: int, workers: int
) -> None:
    volumes, total = 12, 24
    config = make_config(data={"batch_size": volumes // world, "workers": workers})
    views = open_data(workspace, config).views(config)
    first = 1  # as after a resume at step 1
    seen: dict[int, dict[str, Any]] = {}
    for rank in range(world):
        loader = train_loader(views, config, range(first, total // volumes), rank=rank, world=world)
        seen |= {s.index: s.describe() for batch in loader for s in batch.samples}
    stream = open_data(workspace, config).sampler(config)
    assert list(sorted(seen)) == list(range(volumes, total))
    assert all(seen[i] == stream.sample(i).describe() for i in seen)


def test_sample_cannot_be_changed(make_config: MakeConfig) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sampler(make_config()).sample(0).row = 3  # type: ignore[misc]
