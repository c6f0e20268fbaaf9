"""Types of a forward pass on each device, and float16 with a scaled loss, also across processes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from prect.train.config import TrainConfig
from prect.train.learner import build_learner
from prect.train.optimizer import build_optimizer
from prect.train.parallel import Place, clip_gradients, distribute
from prect.train.precision import autocast, resolved_precision, scaler_of, set_tf32
from tests.train.ranks import CPU, global_batch, segresnet, share_of, together

CUDA = torch.device("cuda")
ALONE = Place(CPU)
PARALLEL = ["ddp", "fsdp"]
SCALE = 64.0
Figures = dict[str, Any]


def half(parallel: str = "ddp", precision: str = "float16") -> TrainConfig:
    train = {"precision": precision}
    # Few voxels: not every CPU can multiply in float16, and torch does it one by one then.
    return segresnet(parallel, train=train, objective={"name": "voco-v1"}, size=8)


@pytest.mark.parametrize(
    ("precision", "device", "capable", "expected"),
    [
        ("auto", CPU, True, "float32"),
        ("auto", CUDA, True, "bfloat16"),
        ("auto", CUDA, False, "float16"),
        ("float32", CUDA, True, "float32"),
        ("bfloat16", CPU, False, "bfloat16"),
        ("float16", CUDA, True, "float16"),
    ],
)
def test_type_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    device: torch.device,
    capable: bool,
    expected: str,
) -> None:
    def supported(including_emulation: bool) -> bool:
        return capable or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolved_precision(half(precision=precision), device) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_products_have_the_type(precision: str, expected: torch.dtype) -> None:
    factors = torch.ones(2, 2)
    with autocast(half(precision=precision), CPU):
        assert (factors @ factors).dtype == expected


@pytest.fixture
def tf32_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("tf32_as_before")
def test_tf32_is_for_products_and_convolutions_of_gpus() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for on in (True, False, True):
            set_tf32(on)
            assert torch.backends.cuda.matmul.allow_tf32 is on
            assert torch.backends.cudnn.allow_tf32 is on
            # What torch.compile asks, and refuses to answer when two kinds of switches were used.
            assert torch.get_float32_matmul_precision() == ("high" if on else "highest")


class Run:
    """Steps in the order of the trainer's, from a scale that small gradients do without."""

    def __init__(self, config: TrainConfig, place: Place = ALONE) -> None:
        self.config, self.place = config, place
        self.learner = build_learner(config)
        self.model = distribute(self.learner, config, place)
        self.optimizer = build_optimizer(config, self.learner, place.device)
        self.scaler = scaler_of(config, place.device)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": SCALE})

    def step(self, number: int, *, blown_up: bool = False) -> tuple[float, bool]:
        """Loss, and whether the optimiser took the step."""
        batch = share_of(global_batch(self.config, number, 2), self.place)
        with autocast(self.config, self.place.device):
            loss = self.model(batch).loss
        self.optimizer.zero_grad()
        factor = 1e30 if blown_up else 1.0
        torch.autograd.backward(self.scaler.scale(loss) * factor)
        self.scaler.unscale_(self.optimizer)
        trained = [p for p in self.learner.parameters() if p.requires_grad]
        good = bool(clip_gradients(trained, 1.0).isfinite())
        if good:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item(), good


def test_float16_learns_what_float32_does() -> None:
    losses: dict[str, list[float]] = {}
    for precision in ("float16", "float32"):
        run = Run(half(precision=precision))
        steps = [run.step(0) for _ in range(4)]
        assert all(good for _, good in steps)
        losses[precision] = [loss for loss, _ in steps]
    assert losses["float16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["float16"] != losses["float32"]
    assert losses["float16"][-1] < 0.9 * losses["float16"][0]


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    runs = [Run(half(precision=precision)) for precision in ("float16", "float32")]
    norms = []
    for run in runs:
        with autocast(run.config, CPU):
            loss = run.model(global_batch(run.config, 0, 2)).loss
        torch.autograd.backward(run.scaler.scale(loss))
        run.scaler.unscale_(run.optimizer)
        norms.append(clip_gradients(run.learner.parameters(), 1.0))
    torch.testing.assert_close(norms[0], norms[1], rtol=0.05, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_types_need_no_scaler(precision: str) -> None:
    run = Run(half(precision=precision))
    loss = torch.ones(())
    assert run.scaler.scale(loss) is loss
    assert run.step(0)[1]
    assert run.scaler.state_dict() == {}
    run.scaler.load_state_dict({})


def test_scale_is_kept_and_put_back() -> None:
    run = Run(half())
    assert run.step(0)[1]
    assert run.scaler.state_dict()["_growth_tracker"] == 1
    assert not run.step(1, blown_up=True)[1]
    assert run.step(2)[1]
    state = run.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (SCALE / 2, 1)
    other = Run(half())
    other.scaler.load_state_dict(state)
    other.step(0)
    assert other.scaler.state_dict() == state | {"_growth_tracker": 2}


def one_rank(place: Place) -> Figures:
    """Two steps, of which the first overflows on the last rank alone."""
    found = {}
    for parallel in PARALLEL:
        run = Run(half(parallel), place)
        before = [p.detach().clone() for p in run.learner.parameters()]
        last = place.rank == place.world - 1
        skipped = run.step(0, blown_up=last)
        kept = all(map(torch.equal, before, run.learner.parameters()))
        scale = run.scaler.get_scale()
        found[parallel] = [skipped[1], kept, scale, run.step(1)[1], run.scaler.get_scale()]
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Figures]:
    return together(one_rank, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("parallel", PARALLEL)
def test_overflow_of_one_rank_skips_the_step_of_all(ranks: list[Figures], parallel: str) -> None:
    for rank in ranks:
        assert rank[parallel] == [False, True, SCALE / 2, True, SCALE / 2]
