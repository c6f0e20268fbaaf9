"""Operations of a step, and the peaks that they are held against."""

from __future__ import annotations

import pytest

from prect.errors import ConfigError
from prect.train.config import NetworkConfig, load_config
from prect.train.flops import encoder_flops, peak_flops, step_flops
from prect.train.gpus import find_gpu, named_gpu

VOXELS = 4 * 4 * 6
FIRST, OTHER = 2 * 27 * 1 * 8 * VOXELS, 2 * 27 * 8 * 8 * VOXELS
"""Of convolutions of 3^3 from one and from eight channels to eight."""


def test_operations_are_those_that_a_convolution_has_by_hand() -> None:
    """One stage of SegResNet: a first convolution, and a block of two.

    The backward pass takes each twice, for weights and for what comes in; crops need no gradient.
    """
    network = NetworkConfig(name="segresnet", feature_size=8, blocks=(1,))
    forward, both = encoder_flops(network, (4, 4, 6))
    assert forward == FIRST + 2 * OTHER
    assert both == 3 * forward - FIRST


def test_what_is_computed_again_does_not_count() -> None:
    network = load_config("voco-b").network
    assert network.checkpointing
    plain = network.model_copy(update={"checkpointing": False})
    chunked = network.model_copy(update={"crops_at_once": 1})
    size = (64, 64, 64)
    assert encoder_flops(network, size) == encoder_flops(plain, size)
    assert encoder_flops(chunked, size) == encoder_flops(plain, size)


def test_a_teacher_with_an_encoder_adds_its_forward_pass() -> None:
    shared = load_config("demo")
    own = load_config("demo", overrides=["objective.teacher=network"])
    forward, both = encoder_flops(shared.network, shared.crops.shown)
    assert step_flops(shared) == 11 * both
    assert step_flops(own) == 11 * (both + forward)


def test_the_published_network_has_the_operations_of_the_docs() -> None:
    """2.72 TFLOP a volume; crops of 96 that are shown at 64 cost what crops of 64 do."""
    assert step_flops(load_config("voco-b")) == pytest.approx(2.72e12, rel=2e-3)
    crops = load_config("voco-v1").crops
    assert (crops.size, crops.shown) == ((96, 96, 96), (64, 64, 64))
    forward, both = encoder_flops(load_config("voco-b").network, (64, 64, 64))
    assert step_flops(load_config("voco-v1")) == 18 * (both + forward)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("h200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("a100 80 gb", "A100 80GB"),
        ("A100", "A100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("RTX4090", "4090"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA A10G", None),
        ("Radeon", None),
    ],
)
def test_gpus_are_known_by_the_names_that_torch_and_people_give(
    name: str, model: str | None
) -> None:
    gpu = find_gpu(name)
    assert (gpu.name if gpu else None) == model


def test_a_peak_is_that_of_the_precision() -> None:
    config = load_config("demo")
    exact = load_config("demo", overrides=["train.tf32=false"])
    assert peak_flops("A100", "bfloat16", config) == 312e12
    assert peak_flops("A100", "float32", config) == 156e12
    assert peak_flops("A100", "float32", exact) == peak_flops("A100", "float32") == 19.5e12
    assert peak_flops("Tesla T4", "float16") == 65e12
    assert peak_flops("Tesla T4", "bfloat16") is None
    assert peak_flops("Tesla T4", "float32", config) == 8.1e12
    assert peak_flops("Radeon", "float32") is None
    assert peak_flops(None, "float32", config) is None


def test_a_peak_that_is_set_is_taken() -> None:
    config = load_config("demo", overrides=["train.peak_tflops=50"])
    assert peak_flops("A100", "bfloat16", config) == 50e12
    assert peak_flops(None, "float32", config) == 50e12


def test_a_gpu_that_nobody_knows_is_refused_with_the_nearest() -> None:
    assert named_gpu("NVIDIA H100 80GB HBM3").name == "H100"
    with pytest.raises(ConfigError, match=r"'H1000' is not known; did you mean H100"):
        named_gpu("H1000")
    with pytest.raises(ConfigError, match=r"there are B200, .* set train\.peak_tflops"):
        named_gpu("abacus")
