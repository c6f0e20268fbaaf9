"""Encoders, built from MONAI's parts so that their weights load into MONAI's networks.

An encoder maps crops (N, 1, x, y, z) to embeddings (N, D): the global averages of its feature
maps at all scales, concatenated. Decoders are not built. No layer looks from one crop at
another (all norms are of one crop), so crops may pass in chunks of any size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformer, SwinTransformerBlock
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from prect.train.config import NetworkConfig


class Encoder(nn.Module, ABC):
    """Crops in, embeddings out."""

    embedding: int
    """Numbers an embedding has."""
    crops_at_once: int = 0
    """Crops in one pass, 0 for all."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 1, x, y, z) to (N, embedding) float32.

        With ``crops_at_once``, memory holds the activations of so many crops: each chunk is
        computed again in the backward pass, which costs one more forward pass.
        """
        if not 0 < self.crops_at_once < len(crops):
            return self.embed(crops)
        return torch.cat([self._pass(chunk) for chunk in crops.split(self.crops_at_once)])

    @abstractmethod
    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 1, x, y, z) to (N, embedding) float32, all crops at once."""

    def blocks(self) -> list[nn.Module]:
        """Parts without a parameter in common that hold most parameters; none lies in another.

        Each is only ever called as a module, so that its parameters may be gathered as it begins
        and given back as it ends.
        """
        return []

    def _pass(self, chunk: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return self.embed(chunk)
        # Encoders draw no random numbers, so there is no state to put back.
        embedding: torch.Tensor = checkpoint(
            self.embed, chunk, use_reentrant=False, preserve_rng_state=False
        )
        return embedding


class SwinUnetrEncoder(Encoder):
    """The encoder of MONAI's ``SwinUNETR(use_v2=True)``, tensor names and shapes included.

    Embedding of 24 * C numbers: encoder1, 2 (C each), 3 (2C), 4 (4C) and 10 (16C). Sides of the
    input must be multiples of 32.
    """

    def __init__(self, feature_size: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        c = feature_size
        self.embedding = 24 * c
        self.swinViT = SwinTransformer(
            in_chans=1,
            embed_dim=c,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            use_checkpoint=checkpointing,
            use_v2=True,
        )
        self.encoder1 = _residual_block(1, c)
        self.encoder2 = _residual_block(c, c)
        self.encoder3 = _residual_block(2 * c, 2 * c)
        self.encoder4 = _residual_block(4 * c, 4 * c)
        self.encoder10 = _residual_block(16 * c, 16 * c)

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 1, x, y, z) to (N, 24 * C) float32."""
        stages = self.swinViT(crops, True)
        maps = [
            self.encoder1(crops),
            self.encoder2(stages[0]),
            self.encoder3(stages[1]),
            self.encoder4(stages[2]),
            self.encoder10(stages[4]),
        ]
        return pooled(maps)

    def blocks(self) -> list[nn.Module]:
        """Transformer blocks, mergings, and the convolutions of the residual blocks."""
        kinds = (SwinTransformerBlock, PatchMergingV2, Convolution)
        return [module for module in self.modules() if isinstance(module, kinds)]


class SegResNetEncoder(Encoder):
    """The encoding path of MONAI's ``SegResNet``, tensor names and shapes included."""

    def __init__(self, feature_size: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.embedding = feature_size * (2 ** len(blocks) - 1)
        network = SegResNet(
            in_channels=1,
            init_filters=feature_size,
            blocks_down=tuple(blocks),
            blocks_up=(1,) * (len(blocks) - 1),
        )
        self.convInit = network.convInit
        self.down_layers = network.down_layers
        # Channels last in memory: convolutions are twice as fast on a CPU.
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 1, x, y, z) to (N, embedding) float32."""
        features = self.convInit(crops.contiguous(memory_format=torch.channels_last_3d))
        maps = []
        for stage in self.down_layers:
            features = stage(features)
            maps.append(features)
        return pooled(maps)

    def blocks(self) -> list[nn.Module]:
        """The stages."""
        return list(self.down_layers)


def build_encoder(network: NetworkConfig) -> Encoder:
    """The encoder that a configuration names, with fresh weights from torch's random state."""
    encoder: Encoder
    if network.name == "swin_unetr":
        encoder = SwinUnetrEncoder(network.feature_size, checkpointing=network.checkpointing)
    else:
        encoder = SegResNetEncoder(network.feature_size, network.blocks)
    encoder.crops_at_once = network.crops_at_once
    return encoder


def describe_encoder(network: NetworkConfig) -> Encoder:
    """The encoder without storage: names, shapes and counts at no cost."""
    with without_storage():
        return build_encoder(network)


@contextmanager
def without_storage() -> Iterator[None]:
    """Modules made within lie on the meta device; MONAI's Swin networks can be, too."""
    with torch.device("meta"), _RealLinspace():
        yield


def parameter_count(module: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def pooled(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Global averages of feature maps (N, c, x, y, z), concatenated, in float32 at least."""
    averages = []
    for features in maps:
        dtype = torch.promote_types(features.dtype, torch.float32)
        averages.append(features.mean(dim=(2, 3, 4), dtype=dtype))
    return torch.cat(averages, dim=1)


def _residual_block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
    return UnetrBasicBlock(
        spatial_dims=3,
        in_channels=channels_in,
        out_channels=channels_out,
        kernel_size=3,
        stride=1,
        norm_name="instance",
        res_block=True,
    )


class _RealLinspace(TorchFunctionMode):
    """Keeps linspace off the meta device: SwinTransformer reads its drop-path rates from one."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
