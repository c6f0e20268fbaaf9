"""The VoCo losses against a slow and literal reading of their formulas, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prect.train.batch import CropBatch
from prect.train.config import ObjectiveConfig
from prect.train.objectives.heads import BatchStatisticsNorm, Projector
from prect.train.objectives.voco import VocoIntra, base_similarity, cross_entropy_terms

EPS = 1e-6
VOLUMES, RANDOM, BASES, WIDTH = 3, 2, 5, 7


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def literal_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, weight: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """pos, neg and reg, each the mean over volumes; crops (B, S + n, D), random crops first."""
    pos, neg, reg = [], [], []
    for volume in range(VOLUMES):
        near, share, far, empty = [torch.zeros((), dtype=torch.float64) for _ in range(4)]
        for i in range(RANDOM):
            for j in range(BASES):
                y = labels[volume, i, j]
                s = cosine(student[volume, i], teacher[volume, RANDOM + j]).clamp(min=0)
                near = near - y * torch.log(1 - (y - s).abs() + EPS)
                share = share + y
                if y == 0:
                    far = far - torch.log(1 - s + EPS)
                    empty = empty + 1
        pairs = torch.zeros((), dtype=torch.float64)
        for a in range(BASES):
            for b in range(a + 1, BASES):
                q_a, q_b = student[volume, RANDOM + a], student[volume, RANDOM + b].detach()
                pairs = pairs + cosine(q_a, q_b).clamp(min=0) ** 2
        pos.append(near / (share + EPS))
        neg.append(far / (empty + EPS))
        reg.append(weight * 2 / (BASES * (BASES - 1)) * pairs)
    return sum_mean(pos), sum_mean(neg), sum_mean(reg)


def sum_mean(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(values).mean()


def some_labels(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(VOLUMES, RANDOM, BASES, generator=generator, dtype=torch.float64)
    raw[raw < 0.5] = 0
    raw[..., 0] += 0.1
    return raw / raw.sum(-1, keepdim=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_losses_and_gradients_match_the_formulas(seed: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    shape = (VOLUMES, RANDOM + BASES, WIDTH)
    student = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64)
    labels = some_labels(seed)
    objective = VocoIntra(ObjectiveConfig(reg_weight=weight), RANDOM, WIDTH)
    batch = CropBatch(torch.zeros(()), labels)

    output = objective._losses(student.flatten(0, 1), teacher.flatten(0, 1), batch)
    (ours,) = torch.autograd.grad(output.loss, student)
    pos, neg, reg = literal_loss(student, teacher, labels, weight)
    (theirs,) = torch.autograd.grad(pos + neg + reg, student)

    torch.testing.assert_close(output.terms["pos"], pos.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.terms["neg"], neg.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weight * output.terms["reg"], reg.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.loss, pos + neg + reg, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_perfect_prediction_costs_nothing() -> None:
    labels = some_labels(0)
    pos, neg = cross_entropy_terms(labels, labels)
    torch.testing.assert_close(pos, torch.zeros_like(pos), atol=1e-5, rtol=0)
    torch.testing.assert_close(neg, torch.zeros_like(neg), atol=1e-5, rtol=0)


def test_alike_bases_cost_one() -> None:
    same = torch.nn.functional.normalize(torch.ones(2, 4, 3), dim=-1)
    torch.testing.assert_close(base_similarity(same), torch.ones(2))


def test_volume_without_empty_pair_has_no_negative_term() -> None:
    labels = torch.full((1, 2, 4), 0.25)
    _, neg = cross_entropy_terms(labels, torch.rand(1, 2, 4))
    assert neg.item() == 0


class _Flat(nn.Module):
    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return crops.flatten(1)


def make_objective(momentum: float = 0.9) -> VocoIntra:
    torch.manual_seed(0)
    config = ObjectiveConfig(projector_width=WIDTH, ema_momentum=momentum)
    return VocoIntra(config, RANDOM, 8)


def make_batch() -> CropBatch:
    crops = torch.rand(VOLUMES * (RANDOM + BASES), 1, 2, 2, 2)
    return CropBatch(crops, some_labels(1).float())


def test_teacher_starts_as_the_student_and_follows_it() -> None:
    objective = make_objective(momentum=0.75)
    before = [p.clone() for p in objective.student.parameters()]
    for ours, theirs in zip(objective.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1)
    objective.after_step()
    for ours, old in zip(objective.teacher.parameters(), before, strict=True):
        torch.testing.assert_close(ours, old + 0.25)


def test_gradient_reaches_the_student_and_never_the_teacher() -> None:
    objective = make_objective()
    loss = objective(_Flat(), make_batch()).loss
    loss.backward()
    assert all(p.grad is not None for p in objective.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


def test_losses_stay_in_float32_under_autocast() -> None:
    objective = make_objective()
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(_Flat(), make_batch())
    assert output.loss.dtype == torch.float32
    assert output.cosine.dtype == torch.float32
    assert math.isfinite(output.loss.item())


def test_norm_equals_batch_norm_without_affine() -> None:
    x = torch.randn(32, 6, requires_grad=True) * 3 + 5
    theirs = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
    torch.testing.assert_close(BatchStatisticsNorm()(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_projector_has_the_published_shape() -> None:
    linear = [m for m in Projector(1152, 1024) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (1152, 1024),
        (1024, 1024),
        (1024, 1024),
    ]
