"""The sentence that says whether a network learns, from made-up figures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from prect.train.advice import Evidence, advise, collapsed
from prect.train.config import TrainConfig
from prect.train.evaluate import Heldout
from prect.train.objectives.floor import Floor
from prect.train.verdict import has_learned, interim, verdict

MakeConfig = Any
FLOOR = Floor(0.583, 0.19)


def figures(total: float, top1: float, **others: float | None) -> Heldout:
    known = {"spearman": 0.4, "rank": 20.0, "rank_projected": 30.0, "teacher_distance": 0.01}
    return Heldout(total / 2, total / 2, total, top1, 1 / 9, 48, **known | others)


UNTRAINED = figures(0.5, 0.4)


@pytest.mark.parametrize(
    ("trained", "learned", "words", "short"),
    [
        (figures(0.2, 0.7), True, "has learned", "learning: pos + neg 0.40 times untrained, below"),
        (
            figures(0.41, 0.5),
            False,
            "not clearly",
            "better than untrained: pos + neg 0.82",
        ),
        (figures(0.2, 0.3), False, "not clearly", "a little better"),
        (figures(0.6, 0.7), False, "has not learned", "not below the best constant's 0.583"),
        (figures(0.495, 0.7), False, "has not learned", "not learning yet: pos + neg 0.99 times"),
        (figures(0.2, 0.7, rank=1.1), False, "has not learned", "not learning yet"),
    ],
)
def test_verdict_compares_with_untrained_and_constant(
    trained: Heldout, learned: bool, words: str, short: str
) -> None:
    assert has_learned(trained, UNTRAINED, FLOOR) is learned
    sentence = verdict(trained, UNTRAINED, FLOOR)
    assert words in sentence
    assert f"pos {trained.pos:.3f} + neg {trained.neg:.3f} = {trained.total:.3f}" in sentence
    assert "(untrained 0.500, best constant 0.583)" in sentence
    assert "(untrained 0.40, chance 0.11)" in sentence
    assert ("What usually helps" in sentence) is not learned
    assert short in interim(trained, UNTRAINED, FLOOR)
    assert f"top-1 {trained.top1:.2f} (untrained 0.40, chance 0.11)" in interim(
        trained, UNTRAINED, FLOOR
    )


def test_a_start_that_is_nearly_perfect_can_be_improved_on() -> None:
    start = figures(0.2, 0.86)
    assert has_learned(figures(0.04, 1.0), start, FLOOR)
    assert not has_learned(figures(0.04, 0.9), start, FLOOR)


def test_verdict_does_without_figures_that_an_older_run_lacks() -> None:
    old = Heldout(0.1, 0.1, 0.2, 0.7, 1 / 9, 48)
    assert "rank" not in verdict(old, replace(old, total=0.5, top1=0.4), FLOOR)
    assert not collapsed(old)


def test_collapse_is_an_alarm() -> None:
    for name, value in (
        ("rank", 1.2),
        ("rank_projected", 1.2),
        ("spread", 5e-4),
        ("spread_projected", 5e-4),
    ):
        spreads = {"spread": 0.3, "spread_projected": 0.8}
        trained = figures(0.5, 0.11, **spreads | {name: value})
        assert "collapse below" in verdict(trained, UNTRAINED, FLOOR)
        assert "one embedding" in interim(trained, UNTRAINED, FLOOR)
    assert "collapse" not in verdict(figures(0.2, 0.7), UNTRAINED, FLOOR)


def test_advice_does_not_contradict_itself(make_config: MakeConfig) -> None:
    config = make_config(augment={"flip": 0.5})
    small = {"grad_norm": 1e-6, "pos": 0.1, "neg": 0.1}
    for total, top1, rank, metrics in itertools.product(
        (0.2, 0.49, 0.7), (0.1, 0.4), (1.0, 20.0), ({}, small)
    ):
        trained = figures(total, top1, rank=rank, spearman=0.0)
        advice = advise(Evidence(trained, UNTRAINED, config, 100, 1, metrics))
        text = " ".join(each.text for each in advice)
        assert not ("lower optim.lr" in text and "raise optim.lr" in text)


def test_a_grid_without_empty_pairs_has_no_neg_to_fall() -> None:
    untrained, trained = split(0.17, 0.0), split(0.16, 0.0)
    assert "neg stuck" not in [each.cause for each in advise(Evidence(trained, untrained))]


STUCK = figures(0.49, 0.4)
"""A little lower than untrained and otherwise without a sign."""


def split(pos: float, neg: float, top1: float = 0.4, **others: float | None) -> Heldout:
    return replace(figures(pos + neg, top1, **others), pos=pos, neg=neg)


@pytest.mark.parametrize(
    ("cause", "trained", "changes"),
    [
        ("shuffled labels", STUCK, {"augment": {"shuffle_labels": True}}),
        ("diverged", figures(0.7, 0.2), {}),
        ("collapse", figures(0.49, 0.4, rank=1.05), {}),
        ("warm-up", STUCK, {"optim": {"warmup_steps": 200}}),
        ("pos stuck", split(0.32, 0.05), {}),
        ("neg stuck", split(0.2, 0.26), {}),
        ("far teacher", figures(0.45, 0.4, teacher_distance=0.6), {}),
        ("flips", STUCK, {"augment": {"flip": 0.2}}),
        ("guessing", figures(0.49, 0.12), {}),
        ("guessing", figures(0.49, 0.4, spearman=0.02), {}),
        ("too short", figures(0.42, 0.5), {}),
    ],
)
def test_causes_are_found_in_figures_and_settings(
    make_config: MakeConfig, cause: str, trained: Heldout, changes: dict[str, Any]
) -> None:
    calm = {"augment": {"flip": 0.0, "rotate": 0.0}}
    sections = {n: calm.get(n, {}) | changes.get(n, {}) for n in {*calm, *changes}}
    config = make_config(**sections)
    evidence = Evidence(trained, UNTRAINED, config, step=100, global_batch=4)
    found = [each.cause for each in advise(evidence)]
    assert cause in found
    text = next(each.text for each in advise(evidence) if each.cause == cause)
    assert text in verdict(trained, UNTRAINED, FLOOR, evidence)


@pytest.mark.parametrize(
    ("cause", "batch", "norm", "metrics"),
    [
        ("single volume", 1, "batch", {}),
        ("flat gradient", 4, "batch", {"grad_norm": 1e-6}),
        ("overfitting", 4, "batch", {"pos": 0.1, "neg": 0.05, "grad_norm": 3.0}),
    ],
)
def test_causes_are_found_in_the_training(
    make_config: MakeConfig, cause: str, batch: int, norm: str, metrics: dict[str, float]
) -> None:
    config: TrainConfig = make_config(objective={"norm": norm}, augment={"flip": 0, "rotate": 0})
    calm = Evidence(STUCK, UNTRAINED, config, 100, 4, {"pos": 0.25, "neg": 0.2, "grad_norm": 3.0})
    assert cause not in [each.cause for each in advise(calm)]
    seen = replace(calm, global_batch=batch, metrics={**calm.metrics, **metrics})
    assert cause in [each.cause for each in advise(seen)]


def test_layer_norm_needs_no_second_volume(make_config: MakeConfig) -> None:
    config = make_config(objective={"norm": "layer"})
    evidence = Evidence(STUCK, UNTRAINED, config, 100, 1)
    assert "single volume" not in [each.cause for each in advise(evidence)]


def test_advice_is_short_and_the_gravest_comes_first(make_config: MakeConfig) -> None:
    config = make_config(augment={"flip": 0.5}, optim={"warmup_steps": 500})
    worst = split(0.4, 0.5, top1=0.1, rank=1.0, spearman=0.0, teacher_distance=0.9)
    found = [each.cause for each in advise(Evidence(worst, UNTRAINED, config, 100, 1))]
    assert found == ["diverged", "collapse", "warm-up"]
    later = [each.cause for each in advise(Evidence(worst, UNTRAINED, config, 500, 1))]
    assert later == ["diverged", "collapse", "single volume"]
    early = advise(Evidence(figures(0.49, 0.11), UNTRAINED, config, 100, 1))
    assert [each.cause for each in early] == ["warm-up"]
