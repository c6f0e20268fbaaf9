"""The optimiser's state is there before its first step, and is what the first step would make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from prect.train.config import TrainConfig
from prect.train.learner import Learner, build_learner
from prect.train.optimizer import build_optimizer, optimizer_tensors
from prect.train.parallel import Place, distribute
from tests.train.ranks import CPU, segresnet, together

STEPS = 3
Tensors = dict[str, torch.Tensor]


def settings(parallel: str = "ddp", *, amsgrad: bool = True) -> TrainConfig:
    config = segresnet(parallel, objective={"name": "voco-v1"})
    return config.model_copy(update={"optim": config.optim.model_copy(update={"amsgrad": amsgrad})})


def fresh(config: TrainConfig, learner: Learner) -> torch.optim.AdamW:
    """As torch makes it, without a state."""
    optim = config.optim
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=optim.lr, weight_decay=optim.weight_decay, amsgrad=optim.amsgrad
    )


def give_gradients(learner: Learner, step: int) -> None:
    """The same numbers to each parameter, whether it is whole or in parts."""
    generator = torch.Generator().manual_seed(step)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = torch.zeros_like(parameter).copy_(gradient)


def assert_equal(ours: Tensors, theirs: Tensors) -> None:
    """Equal bit for bit, and alike in memory."""
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.dtype == theirs[name].dtype
        assert tensor.device == theirs[name].device
        assert tensor.stride() == theirs[name].stride()


@pytest.mark.parametrize("amsgrad", [True, False])
def test_steps_from_the_ready_made_state_are_those_of_adamw(amsgrad: bool) -> None:
    config = settings(amsgrad=amsgrad)
    ours, theirs = build_learner(config), build_learner(config)
    ready, lazy = build_optimizer(config, ours, CPU), fresh(config, theirs)
    assert not lazy.state
    assert not any(tensor.any() for tensor in optimizer_tensors(ours, ready).values())
    for step in range(STEPS):
        for learner, optimizer in ((ours, ready), (theirs, lazy)):
            give_gradients(learner, step)
            optimizer.step()
        assert_equal(ours.state_dict(), theirs.state_dict())
        assert_equal(optimizer_tensors(ours, ready), optimizer_tensors(theirs, lazy))
    assert ready.state_dict()["param_groups"] == lazy.state_dict()["param_groups"]


def test_names_are_those_of_trained_parameters() -> None:
    config = settings()
    learner = build_learner(config)
    tensors = optimizer_tensors(learner, build_optimizer(config, learner, CPU))
    trained = [name for name, weight in learner.named_parameters() if weight.requires_grad]
    keys = ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert list(tensors) == [f"{name}.{key}" for name in trained for key in keys]
    assert "backbone.convInit.conv.weight.exp_avg" in tensors
    assert not any(name.startswith("objective.teacher") for name in tensors)


def test_state_can_be_read_in_place() -> None:
    config = settings()
    first, second = build_learner(config), build_learner(config)
    optimizer, other = (build_optimizer(config, each, CPU) for each in (first, second))
    give_gradients(first, 0)
    optimizer.step()
    second.load_state_dict(first.state_dict())
    kept = optimizer_tensors(first, optimizer)
    for name, tensor in optimizer_tensors(second, other).items():
        tensor.copy_(kept[name])
    for learner, each in ((first, optimizer), (second, other)):
        give_gradients(learner, 1)
        each.step()
    assert_equal(second.state_dict(), first.state_dict())


def test_gpus_take_a_step_in_one_kernel() -> None:
    """The fused kernel exists for CPUs, too; only there nobody asks for it."""
    config = settings()
    fused, plain = build_learner(config), build_learner(config)
    optimizers = [
        build_optimizer(config, fused, torch.device("cuda")),
        build_optimizer(config, plain, CPU),
    ]
    assert [each.param_groups[0]["fused"] for each in optimizers] == [True, None]
    for learner, optimizer in zip((fused, plain), optimizers, strict=True):
        give_gradients(learner, 0)
        optimizer.step()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def one_rank(place: Place) -> tuple[Tensors, dict[str, bool]]:
    config = settings("fsdp")
    learner = build_learner(config)
    distribute(learner, config, place)
    optimizer = build_optimizer(config, learner, place.device)
    for step in range(STEPS):
        give_gradients(learner, step)
        optimizer.step()
    tensors = learner.state_dict() | optimizer_tensors(learner, optimizer)
    parts = {name: isinstance(tensor, DTensor) for name, tensor in tensors.items()}
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}, parts


def test_parts_are_stepped_as_the_whole_is(tmp_path: Path) -> None:
    config = settings()
    learner = build_learner(config)
    optimizer = build_optimizer(config, learner, CPU)
    for step in range(STEPS):
        give_gradients(learner, step)
        optimizer.step()
    whole = learner.state_dict() | optimizer_tensors(learner, optimizer)
    for tensors, parts in together(one_rank, tmp_path):
        assert list(tensors) == list(whole)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, whole[name]), name
        assert {name for name, part in parts.items() if not part} == {
            name for name in whole if name.endswith(".step")
        }
