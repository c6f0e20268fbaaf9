"""Memory of a process: what it holds from step to step, shared out or not."""

from __future__ import annotations

import pytest

from prect.train.config import TrainConfig, load_config
from prect.train.forecast.memory import state_bytes
from prect.train.networks import describe_encoder, parameter_count


def voco_h(*overrides: str) -> TrainConfig:
    return load_config("voco-h", overrides=overrides)


def test_weights_gradients_and_moments() -> None:
    config = voco_h()
    state = state_bytes(config, 8)
    heads = 4608 * 1024 + 1024 * 1024 + 1024 * 1024 + 1024
    assert state.trainable == parameter_count(describe_encoder(config.network)) + heads
    assert state.frozen == heads
    assert state.weights == state.gradients == 4 * state.trainable
    assert state.optimizer == 12 * state.trainable
    assert state.teacher == 4 * heads
    assert state.gathered == 0
    assert state_bytes(voco_h("optim.amsgrad=false"), 8).optimizer == 8 * state.trainable


def test_a_teacher_of_its_own_is_held_whole() -> None:
    state = state_bytes(voco_h("objective.teacher=network"), 8)
    assert state.teacher == 4 * state.frozen == state.weights


@pytest.mark.parametrize("world", [2, 8])
def test_fsdp_leaves_each_process_its_part(world: int) -> None:
    whole, part = (state_bytes(voco_h(f"train.parallel={way}"), world) for way in ("ddp", "fsdp"))
    for name in ("weights", "gradients", "optimizer", "teacher"):
        assert getattr(part, name) == getattr(whole, name) // world
    # The bottleneck's two convolutions of 3^3 with 3072 channels: three and one times.
    assert part.gathered == pytest.approx(4 * 4 * 27 * 3072**2, rel=0.01)


def test_one_process_has_nobody_to_share_with() -> None:
    assert state_bytes(voco_h("train.parallel=fsdp"), 1) == state_bytes(voco_h(), 1)
