"""Encoders carry MONAI's names and shapes, so that their weights serve elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from prect.train.architectures import NETWORKS
from prect.train.config import NetworkConfig
from prect.train.networks import (
    SegResNetEncoder,
    SwinUnetrEncoder,
    build_encoder,
    describe_encoder,
    parameter_count,
    without_storage,
)

ENCODER_PARTS = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "backbone", "whole"),
    [
        ("voco-b", 53.16e6, 72.76e6),
        ("voco-l", 212.0e6, 290.4e6),
        ("voco-h", 847.3e6, 1160.8e6),
    ],
)
def test_named_networks_have_the_published_sizes(name: str, backbone: float, whole: float) -> None:
    network = NETWORKS[name]
    encoder = describe_encoder(network)
    assert parameter_count(encoder) == pytest.approx(backbone, rel=1e-4)
    assert encoder.embedding == 24 * network.feature_size
    assert len(shapes(encoder)) == 145
    with without_storage():
        theirs = SwinUNETR(1, 21, feature_size=network.feature_size, use_v2=True)
    assert parameter_count(theirs) == pytest.approx(whole, rel=1e-4)
    assert len(shapes(theirs)) == 167
    assert all(t.is_meta for t in theirs.state_dict().values())


@pytest.mark.parametrize(("name", "embedding"), [("tiny", 288), ("demo", 120)])
def test_small_networks_embed_as_long_as_they_say(name: str, embedding: int) -> None:
    encoder = build_encoder(NETWORKS[name]).eval()
    assert encoder.embedding == embedding
    crops = torch.rand(1, 1, 64, 32, 32)
    assert encoder(crops).shape == (1, embedding)


def test_swin_unetr_has_the_names_and_shapes_of_monai() -> None:
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, use_v2=True)
    wanted = {n: s for n, s in shapes(theirs).items() if n.split(".")[0] in ENCODER_PARTS}
    assert shapes(describe_encoder(NetworkConfig(feature_size=12))) == wanted


def test_swin_unetr_computes_what_monai_computes() -> None:
    torch.manual_seed(0)
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12, use_v2=True).eval()
    encoder = SwinUnetrEncoder(12).eval()
    own = encoder.state_dict().keys()
    encoder.load_state_dict({n: t for n, t in theirs.state_dict().items() if n in own})
    maps: dict[str, torch.Tensor] = {}
    for name in ENCODER_PARTS[1:]:
        part = theirs.get_submodule(name)
        part.register_forward_hook(lambda _m, _i, out, name=name: maps.update({name: out}))
    crop = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        theirs(crop)
        embedding = encoder(crop)
    wanted = torch.cat([maps[name].mean((2, 3, 4)) for name in ENCODER_PARTS[1:]], dim=1)
    assert embedding.shape == (1, 24 * 12)
    torch.testing.assert_close(embedding, wanted)


def test_segresnet_has_the_names_and_shapes_of_monai() -> None:
    theirs = shapes(SegResNet(in_channels=1, init_filters=8, blocks_down=(1, 2, 2, 4)))
    encoder = build_encoder(NetworkConfig(name="segresnet", feature_size=8))
    ours = shapes(encoder)
    assert ours == {n: theirs[n] for n in ours}
    assert encoder(torch.rand(2, 1, 16, 16, 16)).shape == (2, encoder.embedding)


def test_every_weight_of_an_encoder_takes_part() -> None:
    encoder = SegResNetEncoder(8, (1, 1))
    encoder(torch.rand(1, 1, 8, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


PLAIN = {
    "swin_unetr": NetworkConfig(feature_size=12),
    "segresnet": NetworkConfig(name="segresnet", feature_size=8, blocks=(1, 1)),
}
SAVING = [
    pytest.param("swin_unetr", {"checkpointing": True}, marks=pytest.mark.slow),
    pytest.param("swin_unetr", {"crops_at_once": 1}, marks=pytest.mark.slow),
    ("segresnet", {"crops_at_once": 1}),
]
Found = tuple[torch.Tensor, dict[str, torch.Tensor], int]


@contextmanager
def saved_bytes(counted: list[int]) -> Iterator[None]:
    """Count the bytes that autograd keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield
    counted.append(sum(storages.values()))


def small_crops() -> torch.Tensor:
    return torch.rand(2, 1, 32, 32, 64, generator=torch.Generator().manual_seed(1)).double()


def gradients(network: NetworkConfig) -> Found:
    """Embeddings and gradients of one network in float64, and the bytes kept in between."""
    torch.manual_seed(0)
    encoder = build_encoder(network).double()
    counted: list[int] = []
    with saved_bytes(counted):
        embeddings = encoder(small_crops())
    torch.autograd.backward(embeddings.square().mean())
    found = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    assert len(found) == len(list(encoder.parameters()))
    return embeddings.detach(), found, counted[0]


@cache
def plain(name: str) -> Found:
    """What a network computes when it saves no memory."""
    return gradients(PLAIN[name])


def assert_equal_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    # Weights before a norm have gradients that cancel; what is left of them is rounding.
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-11 * scale)


@pytest.mark.parametrize(("name", "settings"), SAVING, ids=str)
def test_saving_memory_changes_no_gradient(name: str, settings: dict[str, object]) -> None:
    embeddings, wanted, most = plain(name)
    network = PLAIN[name].model_copy(update=settings)
    again, found, kept = gradients(network)
    torch.testing.assert_close(again, embeddings, rtol=1e-12, atol=1e-12)
    assert_equal_gradients(found, wanted)
    # Chunks keep nothing but their crops; MONAI's own option keeps the maps of convolutions.
    assert kept < (0.1 if network.crops_at_once else 0.8) * most


def test_chunks_without_gradient_are_the_same_too() -> None:
    crops = torch.rand(5, 1, 16, 16, 16)
    encoder = SegResNetEncoder(8, (1, 1)).eval()
    with torch.no_grad():
        whole = encoder(crops)
        encoder.crops_at_once = 3
        passes: list[int] = []
        encoder.convInit.register_forward_pre_hook(lambda _m, args: passes.append(len(args[0])))
        torch.testing.assert_close(encoder(crops), whole)
    assert passes == [3, 2]


def on_one_rank(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    address = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    saving = PLAIN[name].model_copy(update={"checkpointing": True, "crops_at_once": 1})
    model = DistributedDataParallel(build_encoder(saving).double())
    # Each rank has both crops and takes one twice, so that there are chunks.
    crop = small_crops()[rank : rank + 1]
    torch.autograd.backward(model(torch.cat([crop, crop])).square().mean())
    torch.save({n: p.grad for n, p in model.module.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_saving_memory_works_across_processes(name: str, tmp_path: Path) -> None:
    spawn(on_one_rank, args=(str(tmp_path), name), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert_equal_gradients(found, plain(name)[1])
