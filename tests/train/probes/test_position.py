"""Position retrieval of features whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prect.errors import ConfigError, TrainingError
from prect.train.config import CropConfig
from prect.train.probes.bootstrap import estimates
from prect.train.probes.measure import asked_of
from prect.train.probes.position import (
    PositionResult,
    PositionSettings,
    gallery_starts,
    position_retrieval,
)
from prect.train.probes.volumes import ProbeVolume

GRID = (40, 36, 24)
CROPS = CropConfig(base_grid=(2, 2, 1), size=(12, 12, 12))
STILL: Any = {"shift": 0.0, "standardise": False}


def coded_volume(patient: str, extent: tuple[float, float, float]) -> ProbeVolume:
    """A volume whose voxels tell their own index."""
    x, y, z = torch.meshgrid(*(torch.arange(n) for n in GRID), indexing="ij")
    return ProbeVolume(f"set/{patient}", patient, (x * 10000 + y * 100 + z).float(), extent)


VOLUMES = [coded_volume(f"patient-{i}", (300.0 + 20 * i, 200.0 + 10 * i, 400.0)) for i in range(5)]


def oracle(crops: torch.Tensor) -> torch.Tensor:
    """The place of a crop on three circles: cosine falls with distance along each axis."""
    code = crops[:, 0, 0, 0, 0].double()
    place = torch.stack([code // 10000, code // 100 % 100, code % 100], dim=1) / torch.tensor(GRID)
    return torch.cat([torch.cos(place), torch.sin(place)], dim=1)


def constant(crops: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(crops), 4)


def only(result: PositionResult, name: str) -> float:
    return float(result.figures(np.ones((1, len(result.cases))))[name][0])


def test_an_oracle_finds_the_best_place_of_the_gallery() -> None:
    result = position_retrieval(oracle, VOLUMES, CROPS, PositionSettings(**STILL))
    best = result.references()["best_mm"]
    assert only(result, "error_mm") == pytest.approx(best, rel=0.02)
    assert best < 15
    assert only(result, "r2") > 0.97
    assert result.pairs == 20
    assert result.extent.tolist() == [340, 220, 400]


def test_a_finer_gallery_leaves_less_error() -> None:
    fine = PositionSettings(stride=0.1, gallery=5000, **STILL)
    assert only(position_retrieval(oracle, VOLUMES, CROPS, fine), "error_mm") < 7


def test_constant_features_are_at_chance() -> None:
    result = position_retrieval(constant, VOLUMES, CROPS, PositionSettings(queries=200))
    assert only(result, "error_mm") == pytest.approx(result.references()["chance_mm"], rel=0.03)
    assert only(result, "r2") < -0.5


def test_features_of_the_volume_alone_are_at_chance() -> None:
    def brightness(crops: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(crops), 8, generator=torch.Generator().manual_seed(0))

    result = position_retrieval(brightness, VOLUMES, CROPS, PositionSettings(queries=200))
    chance = result.references()["chance_mm"]
    found = estimates(result)["error_mm"]
    assert found.value == pytest.approx(chance, rel=0.1)


def test_the_average_of_the_whole_gallery_is_its_middle() -> None:
    every = PositionSettings(neighbours=10**6, **STILL)
    result = position_retrieval(oracle, VOLUMES, CROPS, every)
    middle = np.stack([places.mean(axis=0) for places in result.galleries])
    assert result.predicted == pytest.approx(np.broadcast_to(middle[:, None], (5, 5, 32, 3)))
    assert only(result, "error_mm") == pytest.approx(result.references()["centre_mm"], rel=0.02)
    assert only(result, "r2") == pytest.approx(0, abs=0.05)


def test_scale_and_offset_of_features_do_not_matter_when_standardised() -> None:
    def stretched(crops: torch.Tensor) -> torch.Tensor:
        return oracle(crops) * torch.tensor([1, 10, 100, 1, 2, 3]) + 50

    plain = PositionSettings(shift=0.0)
    one, other = (position_retrieval(f, VOLUMES, CROPS, plain) for f in (oracle, stretched))
    assert (one.predicted == other.predicted).mean() > 0.99
    raw = position_retrieval(stretched, VOLUMES, CROPS, PositionSettings(**STILL))
    assert (raw.predicted == one.predicted).mean() < 0.9


def test_histograms_are_standardised_only_without_a_shift() -> None:
    def asked(arm: str, **changes: Any) -> bool:
        return asked_of(arm, PositionSettings(**changes)).standardise

    assert [asked("network"), asked("histogram"), asked("histogram", shift=0.0)] == [
        True,
        False,
        True,
    ]
    assert not asked("network", standardise=False)
    assert not asked("histogram", shift=0.0, standardise=False)


def test_volumes_of_one_patient_are_not_compared() -> None:
    volumes = [*VOLUMES[:2], coded_volume("patient-1", (100.0, 100.0, 100.0))]
    result = position_retrieval(oracle, volumes, CROPS, PositionSettings(**STILL))
    assert result.compared.tolist() == [
        [False, True, True],
        [True, False, False],
        [True, False, False],
    ]
    spoilt = result.predicted.copy()
    spoilt[~result.compared] = 1e9
    again = PositionResult(
        result.cases, result.patients, result.extent, result.truth, spoilt, result.galleries
    )
    assert only(again, "error_mm") == only(result, "error_mm")
    with pytest.raises(TrainingError, match="2 volumes of 1 patients"):
        position_retrieval(oracle, volumes[1:], CROPS)


def test_an_axis_that_crops_fill_has_no_r2() -> None:
    crops = CropConfig(base_grid=(2, 2, 1), size=(12, 12, 24))
    result = position_retrieval(oracle, VOLUMES, crops, PositionSettings(**STILL))
    found = estimates(result, resamples=50)
    assert found["r2_z"].value is None
    each = [found[f"r2_{axis}"].value or 0 for axis in "xy"]
    assert found["r2"].value == pytest.approx(np.mean(each))


def test_a_resample_without_spread_along_an_axis_has_no_r2_there() -> None:
    result = position_retrieval(oracle, VOLUMES, CROPS, PositionSettings(**STILL))
    truth = result.truth.copy()
    truth[:2, :, 2] = 0.3
    flat = replace(result, truth=truth)
    found = flat.figures(np.array([[1.0, 1, 0, 0, 0], [1.0, 1, 1, 1, 1]]))
    assert np.isfinite([found["r2_x"], found["r2_y"], found["r2"]]).all()
    assert np.isfinite(found["r2_z"]).tolist() == [False, True]
    assert found["r2"][0] == pytest.approx((found["r2_x"][0] + found["r2_y"][0]) / 2)


def test_queries_are_augmented_on_their_own() -> None:
    seen: list[torch.Tensor] = []

    def watch(crops: torch.Tensor) -> torch.Tensor:
        seen.append(crops)
        return constant(crops)

    def queries(**changes: Any) -> torch.Tensor:
        seen.clear()
        position_retrieval(watch, VOLUMES[:2], CROPS, PositionSettings(**{**STILL, **changes}))
        return seen[0]

    plain = queries()
    assert torch.equal(queries(), plain)
    assert torch.equal(queries(flip=1.0), plain.flip(2, 3, 4))
    shifts = (queries(shift=0.5) - plain).flatten(1).mean(dim=1)
    assert 0.2 < shifts.abs().max() <= 0.51
    assert len(shifts.round(decimals=2).unique()) > 16
    turned = queries(rotate=1.0)
    options = [torch.rot90(plain, turns, (2, 3)) for turns in (1, 2, 3)]
    same = torch.stack([(turned == option).flatten(1).all(dim=1) for option in options])
    assert same.any(dim=0).all()
    assert same.any(dim=1).all()
    lying = CropConfig(base_grid=(2, 2, 1), size=(12, 10, 12))
    with pytest.raises(ConfigError, match="cannot be turned"):
        position_retrieval(constant, VOLUMES, lying, PositionSettings(rotate=0.5))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.integers(16, 200)] * 3),
    st.floats(0.05, 1.5),
    st.integers(8, 600),
)
def test_galleries_reach_both_ends_and_keep_their_limit(
    grid: tuple[int, int, int], stride: float, most: int
) -> None:
    crops = CropConfig(base_grid=(2, 1, 1), size=(16, 16, 16))
    starts = gallery_starts(grid, crops, PositionSettings(stride=stride, gallery=most))
    assert len(starts) <= most
    assert len(np.unique(starts, axis=0)) == len(starts)
    assert starts.min(axis=0).tolist() == [0, 0, 0]
    assert (starts.max(axis=0) == np.array(grid) - 16).all()
