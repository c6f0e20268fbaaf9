"""Held-out figures: right on networks whose answers are known, the same however they are shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prect.train.data import open_data
from prect.train.evaluate import Heldout, evaluate, has_learned, verdict
from prect.train.learner import Learner, build_learner
from prect.train.objectives import ObjectiveOutput
from prect.train.objectives.floor import Floor
from prect.workspace import Workspace

MakeConfig = Any
CPU = torch.device("cpu")


class _Oracle(Learner):
    """Answers with a given function of the labels."""

    def __init__(self, answer: Any) -> None:
        torch.nn.Module.__init__(self)
        self.answer = answer
        self.volumes: list[int] = []

    def forward(self, batch: Any) -> ObjectiveOutput:
        self.volumes.append(batch.volumes)
        ones = torch.ones(batch.volumes)
        terms = {"pos": 0.25 * ones, "neg": 0.5 * ones}
        return ObjectiveOutput(torch.zeros(()), {}, terms, self.answer(batch.labels))


def test_figures_of_an_oracle(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config(train={"eval_views": 5, "eval_batch": 2})
    views = open_data(stores, config).views(config, "heldout")
    right = _Oracle(lambda labels: labels)
    figures = evaluate(right, views, config, CPU)
    assert figures == Heldout(0.25, 0.5, 0.75, 1.0, 0.25, 5)
    assert right.volumes == [2, 2, 1]
    assert right.training
    assert evaluate(_Oracle(lambda labels: -labels), views, config, CPU).top1 == 0


def test_heldout_patients_are_never_trained_on(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config()
    data = open_data(stores, config)
    patients = {
        domain: {data.table.patient[row] for row in rows} for domain, rows in data.rows.items()
    }
    assert not patients["train"] & patients["heldout"]
    assert len(patients["heldout"]) == 2
    views = data.views(config, "heldout")
    seen = {data.table.patient[views.sampler.sample(i).row] for i in range(20)}
    assert seen == patients["heldout"]


def test_evaluation_repeats_itself(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config()
    views = open_data(stores, config).views(config, "heldout")
    learner = build_learner(config)
    assert evaluate(learner, views, config, CPU) == evaluate(learner, views, config, CPU)


def figures(total: float, top1: float) -> Heldout:
    return Heldout(total / 2, total / 2, total, top1, 1 / 9, 48)


@pytest.mark.parametrize(
    ("trained", "learned", "words"),
    [
        (figures(0.2, 0.7), True, "has learned"),
        (figures(0.41, 0.5), False, "not clearly"),
        (figures(0.2, 0.3), False, "not clearly"),
        (figures(0.6, 0.7), False, "has not learned"),
    ],
)
def test_verdict_compares_with_untrained_and_constant(
    trained: Heldout, learned: bool, words: str
) -> None:
    untrained, floor = figures(0.5, 0.4), Floor(0.583, 0.19)
    assert has_learned(trained, untrained, floor) is learned
    sentence = verdict(trained, untrained, floor)
    assert words in sentence
    assert "untrained 0.500, best constant 0.583" in sentence
