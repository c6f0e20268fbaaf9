"""What is probed: frozen features of a network, and features that need no network.

Features give one vector a crop (``embed``) and one map a scale (``maps``). A network's are its
embedding and the feature maps that it averages for it. The histogram's are shares of intensities
in the crop, or around a voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from prect.errors import TrainingError
from prect.train.config import NetworkConfig
from prect.train.networks import Encoder, SegResNetEncoder, SwinUnetrEncoder, build_encoder

Embed = Callable[[torch.Tensor], torch.Tensor]
"""Crops (N, 1, x, y, z) float32 to features (N, D) float32 on the CPU."""

BINS = 32
_NEIGHBOURHOODS = (1, 3, 9)
"""Edges in voxels of the cubes around a voxel whose histograms are its features."""
_LOCAL_BINS = 16


class Features(Protocol):
    """Features of crops (N, 1, x, y, z) float32 in [0, 1]."""

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, D) float32 on the CPU."""

    def maps(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """Maps (N, c, ...) float32, each a scale over the whole crop, on the features' device."""


class NetworkFeatures:
    """Features of an encoder as it is: evaluation mode, no gradient, in float32.

    The encoder is left in the mode that it was in.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def _device(self) -> torch.device:
        return next(self._encoder.parameters()).device

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, D) the encoder's embedding."""
        with _frozen(self._encoder):
            embedded: torch.Tensor = self._encoder(crops.to(self._device))
            return embedded.float().cpu()

    def maps(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps whose averages make the embedding, finest first."""
        stages = _stages(self._encoder)
        # An encoder may take the crops in several passes.
        seen: list[list[torch.Tensor]] = [[] for _ in stages]
        handles = [
            stage.register_forward_hook(_keeper(kept))
            for stage, kept in zip(stages, seen, strict=True)
        ]
        try:
            with _frozen(self._encoder):
                self._encoder(crops.to(self._device))
        finally:
            for handle in handles:
                handle.remove()
        return [torch.cat(kept).float() for kept in seen]


class HistogramFeatures:
    """How often each intensity occurs; the control that knows tissue, but no shape.

    Shares are taken over the view's window, square roots of them compared: the cosine of two
    vectors is then the Bhattacharyya coefficient of the histograms (Bhattacharyya 1943).
    """

    def embed(self, crops: torch.Tensor) -> torch.Tensor:
        """(N, 32) square roots of the shares of 32 equal parts of the window."""
        bins = _bin_of(crops.flatten(1), BINS)
        counts = torch.zeros(len(crops), BINS).scatter_add_(1, bins, torch.ones(bins.shape))
        return (counts / bins.shape[1]).sqrt()

    def maps(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """Shares of 16 parts of the window at each voxel, and in 3 and 9 cubed around it.

        Cubes are no longer than the crop.
        """
        bins = _bin_of(crops[:, 0], _LOCAL_BINS)
        single = functional.one_hot(bins, _LOCAL_BINS).movedim(-1, 1).float()
        side = min(crops.shape[2:])
        edges = (min(edge, side - 1 + side % 2) for edge in _NEIGHBOURHOODS)
        return [torch.cat([_averaged(single, edge) for edge in edges], dim=1)]


def untrained_features(
    network: NetworkConfig, seed: int, device: torch.device | None = None
) -> NetworkFeatures:
    """Features of the network with fresh weights.

    With ``run.seed`` they are those that the run began with, unless ``network.weights`` gave it
    others, which are not loaded here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NetworkFeatures(build_encoder(network).to(device or torch.device("cpu")))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _stages(encoder: Encoder) -> list[nn.Module]:
    if isinstance(encoder, SwinUnetrEncoder):
        return [
            encoder.encoder1,
            encoder.encoder2,
            encoder.encoder3,
            encoder.encoder4,
            encoder.encoder10,
        ]
    if isinstance(encoder, SegResNetEncoder):
        return list(encoder.down_layers)
    raise TrainingError(f"the feature maps of a {type(encoder).__name__} are not known")


def _keeper(kept: list[torch.Tensor]) -> Callable[[nn.Module, object, torch.Tensor], None]:
    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        kept.append(output)

    return keep


def _averaged(images: torch.Tensor, edge: int) -> torch.Tensor:
    """Means over the cube of ``edge`` voxels around each voxel, without what lies outside.

    One axis after the other: the same means, with 3 ``edge`` voxels to add instead of its cube.
    """
    for axis in range(3):
        size, around = [1, 1, 1], [0, 0, 0]
        size[axis], around[axis] = edge, edge // 2
        images = functional.avg_pool3d(images, size, 1, around, count_include_pad=False)
    return images


def _bin_of(intensity: torch.Tensor, bins: int) -> torch.Tensor:
    return (intensity * bins).long().clamp_(0, bins - 1)
