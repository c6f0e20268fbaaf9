"""Teachers follow the student as they should, and nothing else moves them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from prect.train.networks import Encoder, build_encoder
from prect.train.objectives import build_objective
from prect.train.objectives.heads import Projector
from prect.train.objectives.teacher import Teacher, momentum_at
from prect.train.objectives.voco import Voco
from tests.train.test_objectives import Flat, make, make_batch, make_config


def tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in (*module.parameters(), *module.buffers())]


def teacher_of(objective: Voco) -> Teacher:
    assert objective.teacher is not None
    return objective.teacher


def encoder_of(objective: Voco) -> Encoder:
    encoder = teacher_of(objective).backbone
    assert encoder is not None
    return encoder


def weight_of(encoder: nn.Module) -> torch.Tensor:
    assert isinstance(encoder, Flat)
    return encoder.weight


def first_weight(projector: Projector) -> torch.Tensor:
    assert isinstance(projector[0], nn.Linear)
    return projector[0].weight


def nudge(module: nn.Module) -> None:
    """Move all that the module has by one."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(1)


@pytest.mark.parametrize("kind", ["network", "projector"])
def test_teacher_starts_as_the_student_and_follows_it(kind: str) -> None:
    backbone, objective = make(teacher=kind, ema_momentum=0.75)
    teacher = teacher_of(objective)
    pairs: list[tuple[nn.Module, nn.Module]] = [(teacher.projector, objective.student)]
    if kind == "network":
        pairs.append((encoder_of(objective), backbone))
    else:
        assert teacher.backbone is None
    for ours, theirs in pairs:
        before = tensors(theirs)
        torch.testing.assert_close(tensors(ours), before, rtol=0, atol=0)
        nudge(theirs)
        torch.testing.assert_close(tensors(ours), before, rtol=0, atol=0)
    before = tensors(teacher)
    objective.after_step(0.5)
    for new, old in zip(tensors(teacher), before, strict=True):
        # A whole number, such as a count, has no average: it is taken over.
        torch.testing.assert_close(new, old + (0.25 if new.is_floating_point() else 1))


@pytest.mark.parametrize("kind", ["network", "projector"])
def test_teacher_may_start_with_weights_of_its_own(kind: str) -> None:
    torch.manual_seed(0)
    config = make_config(teacher=kind, teacher_init="random")
    backbone = build_encoder(config.network)
    objective = build_objective(config, backbone)
    assert isinstance(objective, Voco)
    teacher = teacher_of(objective)
    weights = [(first_weight(teacher.projector), first_weight(objective.student))]
    if kind == "network":
        ours, theirs = encoder_of(objective), backbone
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        weights += [(a, b) for a, b in pairs if a.ndim > 1]  # norms start with ones in both
    for mine, other in weights:
        assert mine.shape == other.shape
        assert not torch.equal(mine, other)
    torch.manual_seed(0)
    again = build_objective(config, build_encoder(config.network))
    torch.testing.assert_close(again.state_dict(), objective.state_dict(), rtol=0, atol=0)


def test_momentum_follows_half_a_cosine() -> None:
    assert [momentum_at(p, 0.9, None) for p in (0.0, 0.3, 1.0)] == [0.9] * 3
    assert momentum_at(0, 0.9, 1.0) == pytest.approx(0.9)
    assert momentum_at(0.5, 0.9, 1.0) == pytest.approx(0.95)
    assert momentum_at(1, 0.9, 1.0) == 1.0
    # Grill et al. 2020: 1 - (1 - m) (cos(pi k / K) + 1) / 2.
    for p in (0.1, 0.4, 0.8):
        literal = 1 - (1 - 0.996) * (math.cos(math.pi * p) + 1) / 2
        assert momentum_at(p, 0.996, 1.0) == pytest.approx(literal)


def test_schedule_moves_the_teacher() -> None:
    moved = []
    for progress in (0.001, 0.5, 1.0):
        _, objective = make(ema_momentum=0.5, ema_momentum_end=1.0)
        weight = first_weight(teacher_of(objective).projector)
        before = weight.clone()
        nudge(objective.student)
        objective.after_step(progress)
        moved.append(float((weight - before).mean()))
    assert moved == pytest.approx([0.5, 0.25, 0.0], abs=1e-3)


def test_network_teacher_embeds_the_crops_itself() -> None:
    backbone, objective = make("voco-v1", teacher="network")
    batch, encoder = make_batch(), encoder_of(objective)
    with torch.no_grad():
        weight_of(encoder).mul_(-2)
    output = objective(backbone, batch)
    assert output.teacher is not None
    seen = teacher_of(objective).projector(encoder(batch.crops)).reshape(output.teacher.shape)
    torch.testing.assert_close(output.teacher, seen)
    assert not torch.allclose(output.teacher, output.student)


def test_network_teacher_takes_crops_in_chunks_too() -> None:
    outputs = []
    for crops_at_once in (0, 4):
        torch.manual_seed(0)
        config = make_config("voco-v1", crops_at_once)
        backbone = build_encoder(config.network)
        objective = build_objective(config, backbone)
        assert isinstance(objective, Voco)
        assert encoder_of(objective).crops_at_once == crops_at_once
        batch = make_batch()
        batch.crops = batch.crops.repeat(1, 1, 8, 8, 8)
        output = objective(backbone, batch)
        torch.autograd.backward(output.loss)
        outputs.append((output.teacher, [p.grad for p in backbone.parameters()]))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-5)


def test_encoder_belongs_to_the_caller_and_the_teacher_to_the_objective() -> None:
    _, objective = make("voco-v1")
    names = set(objective.state_dict())
    assert {"student.0.weight", "teacher.projector.0.weight", "teacher.backbone.weight"} <= names
    assert all(name.split(".")[0] in {"student", "teacher"} for name in names)
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert all(name.startswith("student.") for name in trained)


def test_copy_of_a_learner_follows_its_own_encoder() -> None:
    backbone, objective = make("voco-v1", ema_momentum=0.0)
    other_backbone, other = copy.deepcopy((backbone, objective))
    nudge(other_backbone)
    objective.after_step(1.0)
    torch.testing.assert_close(weight_of(encoder_of(objective)), backbone.weight)
    other.after_step(1.0)
    torch.testing.assert_close(weight_of(encoder_of(other)), backbone.weight + 1)


def test_encoder_that_moves_is_still_followed() -> None:
    backbone, objective = make("voco-v1", ema_momentum=0.0)
    nn.ModuleList([backbone, objective]).double()
    nudge(backbone)
    objective.after_step(1.0)
    torch.testing.assert_close(tensors(encoder_of(objective)), tensors(backbone))


def test_no_teacher_is_no_trouble() -> None:
    backbone, objective = make("voco-v1", teacher="none")
    before = objective.state_dict()
    assert isinstance(backbone, Flat)
    objective.after_step(1.0)
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)
    assert all(name.startswith("student.") for name in before)
