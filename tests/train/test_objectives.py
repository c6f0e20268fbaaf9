"""Each objective against a slow and literal reading of its formulas, in float64."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prect.errors import TrainingError
from prect.train.batch import CropBatch
from prect.train.config import TrainConfig, load_config, parse_config
from prect.train.networks import Encoder, build_encoder
from prect.train.objectives import build_objective
from prect.train.objectives.heads import BatchStatisticsNorm, Projector
from prect.train.objectives.pairs import (
    base_cosines,
    base_squares,
    cosines,
    log_terms,
    paper_terms,
    similarities,
    square_terms,
)
from prect.train.objectives.voco import Voco
from tests.train.literal import LITERAL, Side

OBJECTIVES = ["voco-v1", "voco-v2", "voco-paper"]
TEACHERS = ["network", "projector", "none"]
RANDOM, BASES, WIDTH = 2, 4, 7
INTER = {"voco-v1": set(), "voco-v2": {"inter_pos", "inter_neg"}, "voco-paper": {"inter"}}


class Flat(Encoder):
    """Voxels times one weight each; small, but it can be trained and averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = 8
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 8))
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.sizes: list[int] = []

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(crops))
        return crops.flatten(1) * self.weight


def make_config(name: str = "voco-v2", crops_at_once: int = 0, **objective: Any) -> TrainConfig:
    return parse_config(
        {
            "run": {"name": "x"},
            "view": {"grid": [32, 32, 16]},
            "crops": {"base_grid": [2, 2, 1], "size": [16, 16, 16], "random": RANDOM},
            "network": {
                "name": "segresnet",
                "feature_size": 8,
                "blocks": [1, 1],
                "crops_at_once": crops_at_once,
            },
            "objective": {"name": name, "projector_width": WIDTH, **objective},
        }
    )


def make(name: str = "voco-v2", crops_at_once: int = 0, **objective: Any) -> tuple[Flat, Voco]:
    torch.manual_seed(0)
    backbone = Flat()
    built = build_objective(make_config(name, crops_at_once, **objective), backbone)
    assert isinstance(built, Voco)
    return backbone, built


def some_labels(seed: int, volumes: int) -> torch.Tensor:
    """(volumes, S, n) float64: rows sum to one, half of the pairs empty."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(volumes, RANDOM, BASES, generator=generator, dtype=torch.float64)
    raw[raw < 0.5] = 0
    raw[..., 0] += 0.1
    return raw / raw.sum(-1, keepdim=True)


def make_batch(volumes: int = 3, seed: int = 1) -> CropBatch:
    generator = torch.Generator().manual_seed(seed)
    crops = torch.rand(volumes * (RANDOM + BASES), 1, 2, 2, 2, generator=generator)
    return CropBatch(crops, some_labels(seed, volumes).float())


@pytest.mark.parametrize("teacher", ["projector", "none"])
@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    seed=st.integers(0, 2**31),
    volumes=st.integers(1, 3),
    weights=st.tuples(st.sampled_from([0.0, 1.0, 0.3]), st.sampled_from([1.0, 0.7])),
)
@settings(max_examples=6, deadline=None)
def test_values_and_gradients_are_those_of_the_formulas(
    name: str, teacher: str, seed: int, volumes: int, weights: tuple[float, float]
) -> None:
    _, objective = make(name, teacher=teacher, reg_weight=weights[0], inter_weight=weights[1])
    generator = torch.Generator().manual_seed(seed)
    shape = (volumes, RANDOM + BASES, WIDTH)
    student = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    taught = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = some_labels(seed, volumes)
    follows = teacher != "none"

    rows = [side.flatten(0, 1) for side in (student, taught)]
    batch = CropBatch(torch.zeros(()), labels)
    output = objective.compare(rows[0], rows[0], rows[1].detach() if follows else None, batch)
    (ours,) = torch.autograd.grad(output.loss, student)

    sides = [Side(side[:, :RANDOM], side[:, RANDOM:]) for side in (student, taught)]
    parts = LITERAL[name](sides[0], sides[1] if follows else None, labels)
    across = INTER[name] if follows and volumes > 1 else set()
    assert set(parts) == {"pos", "neg", "reg"} | across
    weight = {"reg": weights[0]} | dict.fromkeys(across, weights[1])
    loss = torch.stack([weight.get(name, 1.0) * part for name, part in parts.items()]).sum()
    # Nothing of the teacher's has a gradient in the formulas; then autograd says None.
    theirs, of_teacher = torch.autograd.grad(loss, [student, taught], allow_unused=True)

    assert set(output.terms) == set(parts)
    for part, value in parts.items():
        torch.testing.assert_close(output.terms[part], value.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.loss, loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
    assert of_teacher is None or not of_teacher.any()
    for part in ("pos", "neg"):
        torch.testing.assert_close(output.volume_terms[part].mean(), output.terms[part])


def test_volume_terms_are_of_each_volume() -> None:
    _, objective = make("voco-v2")
    rows = torch.randn(3 * (RANDOM + BASES), WIDTH, dtype=torch.float64)
    labels = some_labels(5, 3)
    together = objective.compare(rows, rows, rows, CropBatch(torch.zeros(()), labels))
    for v, own in enumerate(rows.split(RANDOM + BASES)):
        alone = objective.compare(own, own, own, CropBatch(torch.zeros(()), labels[v : v + 1]))
        for part in ("pos", "neg"):
            torch.testing.assert_close(alone.volume_terms[part][0], together.volume_terms[part][v])


@pytest.mark.parametrize("terms", [log_terms, square_terms, paper_terms])
def test_perfect_prediction_costs_nothing(terms: Any) -> None:
    labels = some_labels(0, 3)
    for part in terms(labels, labels):
        torch.testing.assert_close(part, torch.zeros_like(part), atol=1e-5, rtol=0)


def test_paper_terms_split_one_sum() -> None:
    labels = some_labels(2, 3)
    similarity = torch.rand(labels.shape, dtype=torch.float64)
    whole = -torch.log(1 - (labels - similarity).abs() + 1e-6).sum((1, 2)) / BASES
    torch.testing.assert_close(sum(paper_terms(labels, similarity)), whole)


def test_bases_that_are_alike_cost_one_and_unlike_ones_nothing() -> None:
    same, apart = torch.ones(2, 4, 3), torch.eye(3).expand(2, 3, 3)
    for reg in (base_squares, base_cosines):
        torch.testing.assert_close(reg(same), torch.ones(2))
        torch.testing.assert_close(reg(apart), torch.zeros(2))
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert base_squares(opposite).item() == 0
    assert base_cosines(opposite).item() == pytest.approx(1)


@pytest.mark.parametrize("terms", [log_terms, square_terms, paper_terms])
def test_volume_without_empty_pair_has_no_negative_term(terms: Any) -> None:
    _, negative = terms(torch.full((1, 2, 4), 0.25), torch.rand(1, 2, 4))
    assert negative.item() == 0


def test_cosine_beyond_one_stays_finite() -> None:
    # Products in TF32 or bfloat16 may give 1.01 for two equal vectors.
    similarity = similarities(torch.tensor([[[1.01, -0.5, 0.5]]]))
    assert all(part.isfinite().all() for part in log_terms(torch.eye(3)[1:2, None], similarity))


def test_cosines_of_nothing_are_zero() -> None:
    assert not cosines(torch.zeros(1, 2, 3), torch.rand(1, 4, 3)).any()


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_output_has_what_diagnostics_need(name: str, teacher: str) -> None:
    backbone, objective = make(name, teacher=teacher)
    batch = make_batch()
    output = objective(backbone, batch)
    crops = RANDOM + BASES
    torch.testing.assert_close(output.embeddings.flatten(0, 1), backbone(batch.crops).detach())
    torch.testing.assert_close(
        output.student.flatten(0, 1), objective.student(backbone(batch.crops)).detach()
    )
    assert output.student.shape == (3, crops, WIDTH)
    assert output.cosine.shape == (3, RANDOM, BASES)
    if objective.teacher is None:
        assert teacher == "none"
        assert output.teacher is None
    else:  # it begins as the student
        torch.testing.assert_close(output.teacher, output.student)
    assert output.loss.requires_grad
    assert output.loss.dtype == torch.float32
    kept = [output.cosine, output.embeddings, output.student, *output.terms.values()]
    assert not any(value.requires_grad for value in kept)
    if name != "voco-v1":
        q = output.student if output.teacher is None else output.teacher
        expected = cosines(output.student[:, :RANDOM], q[:, RANDOM:])
        torch.testing.assert_close(output.cosine, expected)


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_reaches_the_student_and_never_the_teacher(name: str, teacher: str) -> None:
    backbone, objective = make(name, teacher=teacher)
    with torch.no_grad():  # a teacher that is the student leaves nothing to do between volumes
        for weight in objective.teacher.parameters() if objective.teacher else ():
            weight.add_(0.1 * torch.rand(weight.shape))
    torch.autograd.backward(objective(backbone, make_batch()).loss)
    for weight in (backbone.weight, *objective.student.parameters()):
        assert weight.grad is not None
        assert weight.grad.any()
    if objective.teacher is not None:
        assert all(p.grad is None and not p.requires_grad for p in objective.teacher.parameters())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_stay_in_float32_under_autocast(name: str) -> None:
    backbone, objective = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(backbone, make_batch())
    assert output.loss.dtype == output.cosine.dtype == output.student.dtype == torch.float32
    assert math.isfinite(output.loss.item())


@pytest.mark.parametrize(("init", "norm"), [("student", "batch"), ("random", "layer")])
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_never_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, teacher: str, init: str, norm: str
) -> None:
    """Meta tensors have no values: whatever asks for one, as ``.item()`` does, fails.

    They take no memory either, so a run can be described without any.
    """
    # Autocast does not know the meta device; here it is off in any case.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    config = make_config(name, teacher=teacher, teacher_init=init, norm=norm)
    with torch.device("meta"):
        backbone = build_encoder(config.network)
        objective = build_objective(config, backbone)
        labels = torch.rand(3, RANDOM, BASES)
        crops = torch.rand(3 * (RANDOM + BASES), 1, 16, 16, 16)
        dropped = torch.zeros(len(crops), dtype=torch.bool)
    assert all(p.is_meta for p in objective.parameters())
    output = objective(backbone, CropBatch(crops, labels, dropped))
    torch.autograd.backward(output.loss)
    objective.after_step(0.5)
    assert all(p.grad is not None for p in backbone.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        output.loss.item()


def test_dropped_crops_show_nothing_but_keep_their_place() -> None:
    backbone, objective = make("voco-v2", teacher="network")
    batch = make_batch()
    whole = objective(backbone, batch)
    batch.dropped = torch.zeros(len(batch.crops), dtype=torch.bool)
    torch.testing.assert_close(objective(backbone, batch).loss, whole.loss)
    batch.dropped[[0, 5]] = True
    output = objective(backbone, batch)
    torch.testing.assert_close(output.embeddings, whole.embeddings)
    blank = backbone(batch.crops).detach()
    blank[[0, 5]] = 0
    torch.testing.assert_close(output.student.flatten(0, 1), objective.student(blank).detach())
    assert output.teacher is not None
    torch.testing.assert_close(output.teacher, output.student)
    (gradient,) = torch.autograd.grad(output.loss, backbone.weight)
    batch.crops[[0, 5]] = 7.0
    (other,) = torch.autograd.grad(objective(backbone, batch).loss, backbone.weight)
    torch.testing.assert_close(gradient, other)


def test_norm_equals_batch_norm_without_affine() -> None:
    x = torch.randn(32, 6, requires_grad=True) * 3 + 5
    theirs = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
    torch.testing.assert_close(BatchStatisticsNorm()(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_single_crop_needs_the_layer_norm() -> None:
    with pytest.raises(TrainingError, match=r"single crop.*objective\.norm='layer'"):
        Projector(8, WIDTH)(torch.rand(1, 8))
    torch.manual_seed(0)
    projector = Projector(8, WIDTH, "layer")
    rows = torch.rand(5, 8)
    together = projector(rows)
    alone = torch.cat([projector(row) for row in rows.split(1)])
    torch.testing.assert_close(alone, together)
    assert together.std(dim=0).min() > 0


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_one_volume_gives_a_finite_loss(norm: Literal["batch", "layer"]) -> None:
    backbone, objective = make("voco-v2", norm=norm)
    output = objective(backbone, make_batch(volumes=1))
    assert set(output.terms) == {"pos", "neg", "reg"}
    assert math.isfinite(output.loss.item())


def test_projector_has_the_published_shape() -> None:
    linear = [m for m in Projector(1152, 1024) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [
        (1152, 1024),
        (1024, 1024),
        (1024, 1024),
    ]


@pytest.mark.parametrize(
    ("name", "width", "kind"),
    [
        ("voco-v1", 2048, "network"),
        ("voco-v2", 1024, "projector"),
        ("voco-paper", 1024, "none"),
    ],
)
def test_settings_left_out_are_the_published_ones(name: str, width: int, kind: str) -> None:
    chosen = make_config(name, projector_width=None).objective
    assert (chosen.width, chosen.teacher_kind) == (width, kind)
    given_ = make_config(name, projector_width=5, teacher="projector").objective
    assert (given_.width, given_.teacher_kind) == (5, "projector")


def test_presets_are_the_published_forms() -> None:
    first, second = load_config("voco-v1"), load_config("voco-b")
    assert (first.objective.name, second.objective.name) == ("voco-v1", "voco-v2")
    assert (first.objective.width, second.objective.width) == (2048, 1024)
    assert (first.objective.teacher_kind, second.objective.teacher_kind) == ("network", "projector")
    assert (first.crops.base_grid, first.crops.size) == ((4, 4, 1), (96, 96, 96))
    assert (first.crops.shown, first.view.grid) == ((64, 64, 64), (384, 384, 96))
    assert (first.augment.shift, second.augment.shift) == (0.1, 0.5)
    assert first.network == second.network
    assert first.optim == second.optim
    for config in (first, second):
        chosen = config.objective
        weights = (chosen.reg_weight, chosen.inter_weight, chosen.ema_momentum)
        assert weights == (1.0, 1.0, 0.9)
        assert config.augment.drop_instances == 0
