"""Encoders carry MONAI's names and shapes, so that their weights serve elsewhere."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR

from prect.train.config import NetworkConfig
from prect.train.networks import (
    SegResNetEncoder,
    SwinUnetrEncoder,
    build_encoder,
    describe_encoder,
    parameter_count,
)

ENCODER_PARTS = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    ("feature_size", "parameters"), [(48, 53.16e6), (96, 212.0e6), (192, 847.3e6)]
)
def test_swin_unetr_has_the_published_size(feature_size: int, parameters: float) -> None:
    encoder = describe_encoder(NetworkConfig(feature_size=feature_size))
    assert parameter_count(encoder) == pytest.approx(parameters, rel=1e-3)
    assert len(shapes(encoder)) == 145
    assert encoder.embedding == 24 * feature_size


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
