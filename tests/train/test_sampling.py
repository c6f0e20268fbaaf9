"""Samples depend on nothing but their index."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prect.errors import ConfigError, TrainingError
from prect.train.config import TrainConfig, load_config, parse_config
from prect.train.data import open_data
from prect.train.loader import train_loader
from prect.train.recipes import recipe
from prect.train.sampling import Sample, Sampler, Sources, step_indices
from prect.train.views import GeometryTable, plan_region
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


# Several data sets.

NAMES = ("far", "near", "rare")
SIZES = (5, 11, 3)


def code_of() -> NDArray[np.int32]:
    """Data set of each row."""
    return np.random.default_rng(3).permutation(np.repeat(np.arange(3), SIZES)).astype(np.int32)


def mixed(
    weights: dict[str, float], *, domain: Any = "train", **sections: dict[str, Any]
) -> Sampler:
    """A stream over three data sets, whose rows are shuffled among each other."""
    code = code_of()
    count = len(code)
    rng = np.random.default_rng(0)
    volumes = GeometryTable(
        rng.integers(100, 300, (count, 3)).astype(np.int32),
        np.full((count, 3), 1.5),
        np.full(count, 3, dtype=np.int32),
    )
    view = recipe("v2-abdomen").view.model_dump(mode="json")
    view |= sections.pop("view", {})
    data = {"datasets": NAMES, "weights": weights} | sections.pop("data", {})
    config = parse_config({"run": {"name": "m"}, "view": view, "data": data, **sections})
    return Sampler(config, "d", np.arange(count), volumes, domain, Sources(NAMES, code))


def rows_of(stream: Sampler, epoch: int) -> list[int]:
    return [stream.sample(epoch * len(stream) + i).row for i in range(len(stream))]


@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_whole_weights_make_whole_passes(weights: tuple[int, int, int], epoch: int) -> None:
    stream = mixed(dict(zip(NAMES, map(float, weights), strict=True)))
    code = code_of()
    passes = Counter(rows_of(stream, epoch))
    assert passes == {row: weights[code[row]] for row in range(sum(SIZES))}


@given(st.tuples(*[st.floats(0.01, 3)] * 3))
@settings(max_examples=20, deadline=None)
def test_fractions_reach_every_volume_in_turn(weights: tuple[float, float, float]) -> None:
    stream = mixed(dict(zip(NAMES, weights, strict=True)))
    code = code_of()
    per_epoch = [max(1, round(w * n)) for w, n in zip(weights, SIZES, strict=True)]
    assert len(stream) == sum(per_epoch)
    seen: Counter[int] = Counter()
    for epoch in range(12):
        rows = rows_of(stream, epoch)
        seen += Counter(rows)
        assert [sum(code[r] == d for r in rows) for d in range(3)] == per_epoch
        for d in range(3):
            # Never twice again before all others were there as often.
            times = [seen[row] for row in np.flatnonzero(code == d).tolist()]
            assert max(times) - min(times) <= 1
            assert sum(times) == (epoch + 1) * per_epoch[d]


def test_epoch_mixes_the_data_sets() -> None:
    stream = mixed({"far": 8.0, "near": 8.0})
    order = code_of()[rows_of(stream, 0)]
    halves = [Counter(half.tolist()) for half in np.array_split(order, 2)]
    assert all(abs(halves[0][d] - halves[1][d]) < 0.5 * (order == d).sum() for d in (0, 1))


def test_weights_and_recipes_change_the_stream_and_others_do_not() -> None:
    said = {"recipes": {"near": "v2-abdomen"}}
    assert same(mixed({}).sample(8), mixed({"near": 1.0}, data=said).sample(8))
    reference = mixed({"far": 2.0})
    assert rows_of(reference, 0) == rows_of(mixed({"far": 2.0}), 0)
    assert rows_of(reference, 0) != rows_of(mixed({"far": 2.0}, run={"name": "m", "seed": 1}), 0)
    chest = {"recipes": {"far": "v2-chest"}}
    assert not same(reference.sample(0), mixed({"far": 2.0}, data=chest).sample(0))


def test_each_data_set_is_shown_by_its_recipe() -> None:
    stream = mixed({}, data={"recipes": {"far": "v2-chest", "rare": "v2-global"}})
    code = code_of()
    for index in range(len(stream)):
        sample = stream.sample(index)
        name = {0: "v2-chest", 1: "v2-abdomen", 2: "v2-global"}[int(code[sample.row])]
        wanted = recipe(name).view
        assert sample.window == wanted.window
        assert sample.view.grid == wanted.grid
        if wanted.spacing is None:
            assert sample.view.start == (0, 0, 0)
        else:
            assert sample.view.spacing == pytest.approx(wanted.spacing)
        assert sample.region == plan_region(sample.view, stream.volumes.row(sample.row))


def test_names_are_needed_where_settings_name_data_sets() -> None:
    stream = mixed({"far": 2.0})
    config = load_config("voco-b", overrides=["data.weights.far=2"])
    with pytest.raises(ConfigError, match="data set of each row"):
        Sampler(config, "d", np.arange(3), stream.volumes)


def test_epoch_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="lower them"):
        mixed({"near": 1e9})


def test_index_below_zero_is_refused() -> None:
    with pytest.raises(IndexError, match="counted from 0"):
        mixed({}).sample(-1)


# Views that look at the store.


def even_layout(stream: Sampler, asked: list[int] | None = None) -> Any:
    """Stores whose left half, along x, is body."""

    def layout(row: int) -> Any:
        def occupancy(level: int) -> NDArray[np.uint8]:
            shape = stream.volumes.row(row).level_shape(level)
            grid = [-(-n // c) for n, c in zip(shape, (24, 32, 32), strict=True)]
            result = np.zeros(grid, dtype=np.uint8)
            result[:, :, : grid[2] // 2] = 255
            return result

        if asked is not None:
            asked.append(row)
        levels = [SimpleNamespace(chunk=(24, 32, 32))] * 3
        return SimpleNamespace(levels=levels, occupancy=occupancy)

    return layout


PLACED = {"foreground": 0.6, "align": True, "grid": (64, 64, 64)}
SMALL = {"base_grid": (2, 2, 1), "size": (32, 32, 64), "resize": (64, 64, 64)}


def test_layout_is_asked_for_when_it_is_needed() -> None:
    blind = mixed({})
    asked: list[int] = []
    assert same(blind.sample(3, even_layout(blind, asked)), blind.sample(3))
    assert not asked
    aware = mixed({}, view=PLACED, crops=SMALL)
    with pytest.raises(TrainingError, match="give sample"):
        aware.sample(3)
    sample = aware.sample(3, even_layout(aware, asked))
    assert asked == [sample.row]


def test_foreground_draws_the_box_to_the_body() -> None:
    aware = mixed({}, view={**PLACED, "align": False}, crops=SMALL)
    layout = even_layout(aware)
    left = [
        sample.region.start[2] < aware.volumes.row(sample.row).shape[2] / 2 - 32
        for sample in (aware.sample(i, layout) for i in range(60))
    ]
    assert np.mean(left) > 0.9


def test_patches_share_a_volume_at_different_places() -> None:
    count = 4
    stream = mixed({}, view={**PLACED, "patches": count}, crops=SMALL)
    plain = mixed({}, view={"grid": (64, 64, 64), "patches": count}, crops=SMALL)
    assert len(stream) == count * sum(SIZES)
    layout = even_layout(stream)
    for slot in range(12):
        samples = [stream.sample(slot * count + i, layout) for i in range(count)]
        assert len({sample.row for sample in samples}) == 1
        places = {plain.sample(slot * count + i).view.start for i in range(count)}
        assert len(places) == count
    rows = [stream.sample(i, layout).row for i in range(0, len(stream), count)]
    assert sorted(rows) == list(range(sum(SIZES)))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("first", [0, 5])
def test_any_world_reads_one_stream(world: int, first: int) -> None:
    """Ordered equality, through copies of the sampler as workers have them."""
    stream = mixed({"far": 1.5}, view={**PLACED, "patches": 2}, crops=SMALL)
    layout = even_layout(stream)
    ranks = [pickle.loads(pickle.dumps(stream)) for _ in range(world)]
    local = 24 // world
    seen = [
        ranks[rank].sample(index, layout).describe()
        for step in range(first, first + 3)
        for rank in range(world)
        for index in step_indices(step, local, rank, world)
    ]
    wanted = range(24 * first, 24 * (first + 3))
    assert seen == [stream.sample(index, layout).describe() for index in wanted]


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12))
@settings(max_examples=20, deadline=None)
def test_sample_is_pure(indices: list[int]) -> None:
    """Whatever was asked for before, and in whichever epoch."""
    stream = mixed({"far": 2.5})
    assert [stream.sample(i).describe() for i in indices] == [
        mixed({"far": 2.5}).sample(i).describe() for i in indices
    ]


# Size and speed.


def test_large_manifest_starts_at_once_and_stays_small() -> None:
    """160,000 volumes eight times an epoch; the limit is far above what it takes."""
    count = 160_000
    volumes = GeometryTable(
        np.full((count, 3), 200, dtype=np.int32),
        np.full((count, 3), 1.5),
        np.full(count, 3, dtype=np.int32),
    )
    config = load_config("voco-b", overrides=["data.datasets=a", "data.weights.a=8"])
    sources = Sources(("a",), np.zeros(count, dtype=np.int32))
    begun = time.perf_counter()
    stream = Sampler(config, "d", np.arange(count), volumes, "train", sources)
    stream.sample(0)
    stream.sample(10**12)
    assert time.perf_counter() - begun < 1
    assert len(stream) == 8 * count
    assert len(pickle.dumps(stream)) < 10 * count * 8
    for epoch in range(5):
        stream.sample(epoch * len(stream))
    assert sum(rows.nbytes for rows in stream._epochs.values()) <= 2 * 4 * 8 * count


# What a release must not change.


def golden(sample: Sample) -> tuple[int, int, tuple[int, int, int], list[int], str]:
    arrays = (sample.starts, sample.flips, sample.turns, sample.shifts)
    boxes = (sample.view.start, sample.view.size, sample.view.grid, sample.region.level)
    text = repr([boxes, sample.region.shape, sample.window, [a.tolist() for a in arrays]])
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return sample.row, sample.epoch, sample.region.start, sample.starts[0].tolist(), digest


def test_values_of_samples_are_frozen_for_ever(make_config: MakeConfig) -> None:
    """A change here changes what every existing run sees after a resume."""
    aware = mixed({"far": 2.5}, view={**PLACED, "patches": 2}, crops=SMALL)
    mix = mixed({"far": 8.0}, data={"recipes": {"rare": "v2-global"}})
    found = [
        golden(sampler(make_config()).sample(12345)),
        golden(sampler(make_config(), domain="heldout").sample(3)),
        golden(mix.sample(0)),
        golden(mix.sample(10**9)),
        golden(aware.sample(77, even_layout(aware))),
    ]
    assert found == FROZEN


FROZEN: list[Any] = [
    (10, 1763, (0, 0, 0), [7, 7, 0], "828cc09bff2c13d0"),
    (10, 0, (0, 0, 0), [9, 13, 0], "76c55a1a052c309e"),
    (11, 0, (25, -44, 4), [105, 26, 0], "5b7deda03279c859"),
    (10, 18518518, (46, -28, -38), [65, 112, 0], "baef337263b60002"),
    (16, 1, (0, 128, 64), [2, 1, 0], "ebed1debbfcca175"),
]
