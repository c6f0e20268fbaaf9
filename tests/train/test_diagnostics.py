"""Diagnostics against scipy, known matrices, and properties that any such figure must have."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prect.train.diagnostics import (
    average_ranks,
    effective_rank,
    embedding_distance,
    relative_spread,
    spearman,
)

# Few different numbers, so that most rows hold ties.
rows = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 3), min_size=n, max_size=n) for _ in range(2)))
)


def tensor(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@settings(deadline=None)
@given(rows)
def test_ranks_and_correlation_are_those_of_scipy(pair: tuple[list[int], list[int]]) -> None:
    first, second = map(tensor, pair)
    np.testing.assert_array_equal(average_ranks(first), stats.rankdata(pair[0]))
    varied = all(len(set(side)) > 1 for side in pair)
    expected = stats.spearmanr(*pair).statistic if varied else 0.0
    assert float(spearman(first, second)) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(rows)
def test_correlation_depends_on_order_alone(pair: tuple[list[int], list[int]]) -> None:
    first, second = map(tensor, pair)
    found = float(spearman(first, second))
    assert float(spearman(torch.exp(first), 5 * second - 2)) == pytest.approx(found, abs=1e-12)
    assert float(spearman(-first, second)) == pytest.approx(-found, abs=1e-12)
    assert float(spearman(second, first)) == pytest.approx(found, abs=1e-12)
    order = torch.randperm(len(first))
    assert float(spearman(first[order], second[order])) == pytest.approx(found, abs=1e-12)


def test_correlation_of_a_batch_is_that_of_each_row() -> None:
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(3, 2, 9, generator=generator)
    labels = torch.rand(3, 2, 9, generator=generator) * (similarity > 0.4)
    found = spearman(similarity, labels)
    assert found.shape == (3, 2)
    for index in np.ndindex(3, 2):
        expected = stats.spearmanr(similarity[index], labels[index]).statistic
        assert float(found[index]) == pytest.approx(expected, abs=1e-12)


def test_rows_along_k_equal_directions_have_rank_k() -> None:
    directions = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1)))[0]
    for k in (1, 2, 5):
        both = torch.cat([directions[:k], -directions[:k]])
        assert float(effective_rank(both + 7)) == pytest.approx(k, rel=1e-6)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    uneven = torch.cat(
        [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([-3.0, -1.0]))]
    )
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert float(effective_rank(uneven)) == pytest.approx(np.exp(entropy), rel=1e-6)


def test_collapse_has_rank_one() -> None:
    generator = torch.Generator().manual_seed(2)
    point, line = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    assert float(effective_rank(point.expand(30, -1))) == 1
    along = torch.randn(30, 1, generator=generator) * line
    assert float(effective_rank(along)) == pytest.approx(1, abs=1e-4)
    assert float(effective_rank(torch.zeros(4, 8))) == 1
    # What float32 rounds away is no direction of its own.
    rounded = point * (1 + torch.randn(30, 64, generator=generator) * 1e-8)
    assert float(effective_rank(rounded)) == 1


def test_rank_of_noise_is_near_its_dimension_and_ignores_order_scale_and_place() -> None:
    noise = torch.randn(2000, 12, generator=torch.Generator().manual_seed(3))
    found = float(effective_rank(noise))
    assert 11.9 < found <= 12
    shuffled = noise[torch.randperm(2000, generator=torch.Generator().manual_seed(4))]
    assert float(effective_rank(shuffled * 40 + 3)) == pytest.approx(found, rel=1e-5)


def test_spread_tells_a_point_from_a_cloud_where_rank_does_not() -> None:
    generator = torch.Generator().manual_seed(5)
    noise, point = torch.randn(300, 64, generator=generator), torch.ones(64)
    for scale in (1e-4, 1e-2, 1.0):
        cloud = point + scale * noise
        assert float(effective_rank(cloud)) > 50
        expected = scale / (1 + scale**2) ** 0.5
        assert float(relative_spread(cloud)) == pytest.approx(expected, rel=0.05)
    assert float(relative_spread(point.expand(9, -1))) == 0
    assert float(relative_spread(torch.zeros(4, 8))) == 0


def test_distance_is_of_directions() -> None:
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    teacher = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 0.0]])
    expected = [0, 1, 2, 1 - 0.5**0.5]
    assert embedding_distance(student, teacher).tolist() == pytest.approx(expected, abs=1e-7)
