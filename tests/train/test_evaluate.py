"""Held-out figures: right on networks whose answers are known, the same however they are shared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from prect.train.config import TrainConfig
from prect.train.data import open_data
from prect.train.evaluate import evaluate, heldout_from
from prect.train.learner import Learner, build_learner
from prect.train.objectives import ObjectiveOutput
from prect.train.parallel import Place, distribute
from prect.workspace import Workspace
from tests.train.ranks import together

MakeConfig = Any
CPU = torch.device("cpu")


class _Oracle(Learner):
    """Answers with a given function of the labels; its embeddings lie on one line."""

    def __init__(self, answer: Any, teacher: bool = False) -> None:
        torch.nn.Module.__init__(self)
        self.answer, self.teacher = answer, teacher
        self.volumes: list[int] = []

    def forward(self, batch: Any) -> ObjectiveOutput:
        self.volumes.append(batch.volumes)
        ones = torch.ones(batch.volumes)
        crops = torch.arange(6.0).repeat(batch.volumes, 1)[..., None]
        return ObjectiveOutput(
            loss=torch.zeros(()),
            terms={},
            volume_terms={"pos": 0.25 * ones, "neg": 0.5 * ones},
            cosine=self.answer(batch.labels),
            embeddings=crops * torch.tensor([1.0, 2.0, 3.0]),
            student=torch.eye(6).repeat(batch.volumes, 1, 1),
            teacher=-torch.eye(6).repeat(batch.volumes, 1, 1) if self.teacher else None,
        )


def test_figures_of_an_oracle(stores: Workspace, make_config: MakeConfig) -> None:
    config = make_config(train={"eval_views": 5, "eval_batch": 2})
    views = open_data(stores, config).views(config, "heldout")
    right = _Oracle(lambda labels: labels)
    found = evaluate(right, views, config, CPU)
    assert (found.pos, found.neg, found.total, found.top1) == (0.25, 0.5, 0.75, 1.0)
    assert (found.chance, found.views, found.teacher_distance) == (0.25, 5, None)
    assert found.spearman == pytest.approx(1)
    # Centred, the unit vectors along six axes span five directions alike.
    assert found.rank == pytest.approx(1, abs=1e-4)
    assert found.rank_projected == pytest.approx(5)
    assert right.volumes == [2, 2, 1]
    assert right.training
    wrong = evaluate(_Oracle(lambda labels: -labels, teacher=True), views, config, CPU)
    assert wrong.top1 == 0
    assert wrong.spearman == pytest.approx(-1)
    assert wrong.teacher_distance == pytest.approx(2)


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


def one_rank(
    place: Place, workspace: Workspace, configs: dict[str, TrainConfig]
) -> dict[str, dict[str, Any]]:
    found = {}
    for name, config in configs.items():
        views = open_data(workspace, config).views(config, "heldout")
        learner = build_learner(config)
        distribute(learner, config, place)
        figures = evaluate(learner, views, config, CPU, rank=place.rank, world=place.world)
        found[name] = asdict(figures)
    return found


def test_figures_do_not_depend_on_the_number_of_processes(
    workspace: Workspace, make_config: MakeConfig, tmp_path: Path
) -> None:
    # Three batches for two ranks, the last one smaller. One batch leaves a rank without any.
    configs = {
        f"{parallel} {views}": make_config(
            train={"eval_views": views, "eval_batch": 2, "threads": 1, "parallel": parallel}
        )
        for parallel in ("ddp", "fsdp")
        for views in (5, 2)
    }
    ranks = together(one_rank, tmp_path, workspace, configs)
    for name, config in configs.items():
        views = open_data(workspace, config).views(config, "heldout")
        alone = asdict(evaluate(build_learner(config), views, config, CPU))
        # The order in which parts of weights lie in memory changes the last digits.
        near = pytest.approx(alone, rel=1e-4 if config.train.parallel == "fsdp" else 1e-6)
        for rank in ranks:
            assert rank[name] == near


def test_figures_of_an_older_checkpoint_lack_what_was_not_measured_then() -> None:
    older = {"pos": 0.2, "neg": 0.1, "total": 0.3, "top1": 0.5, "chance": 0.25, "views": 4}
    found = heldout_from(older)
    assert (found.total, found.spearman, found.rank) == (0.3, None, None)
    assert found.metrics() == {f"heldout_{name}": value for name, value in older.items()}
