"""Pretrained weights into a network, with an account of every tensor.

The encoder is looked for in the file under any prefix: released VoCo files hold it bare, files
written while training as ``module.``, ``backbone.``, ``student.`` or ``teacher.``, in a table
``state_dict`` or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prect.errors import CheckpointError
from prect.train.architectures import network_title
from prect.train.networks import build_encoder, describe_encoder
from prect.train.sections import NetworkConfig
from prect.train.weight_files import WeightFile, read_weights

_SWIN_ANCHOR = "swinViT.patch_embed.proj.weight"
_SEGRESNET_ANCHOR = "convInit.conv.weight"


@dataclass(frozen=True)
class Match:
    """Which tensors of a file belong to a network."""

    prefix: str
    """What stands before the network's names in the file."""
    others: tuple[str, ...]
    """Other prefixes under which the file holds as many of the network's tensors."""
    taken: tuple[str, ...]
    """Tensors of the network that the file holds, without the prefix."""
    left: tuple[str, ...]
    """Tensors of the network that the file does not hold."""
    unexpected: tuple[str, ...]
    """Tensors of the file that have no place in the network."""


@dataclass(frozen=True)
class Loaded:
    """A network with weights of a file, and what became of each tensor."""

    network: nn.Module
    title: str
    """What the network is called."""
    file: Path
    match: Match
    metadata: dict[str, str]
    """What the file says of itself: run, step, view, window."""

    @property
    def taken(self) -> tuple[str, ...]:
        """Tensors of the network that are the file's now."""
        return self.match.taken

    @property
    def left(self) -> tuple[str, ...]:
        """Tensors of the network that stay as they were."""
        return self.match.left

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Tensors of the file without a place in the network."""
        return self.match.unexpected

    def describe(self) -> str:
        """One sentence with all counts."""
        return f"{self.file}: {describe_match(self.match, self.title)}"


@dataclass(frozen=True)
class Contents:
    """What a weight file holds."""

    file: WeightFile
    network: NetworkConfig
    match: Match

    def describe(self) -> str:
        """One sentence with all counts."""
        return f"{self.file.path}: {describe_match(self.match, network_title(self.network))}"


def load_pretrained(path: str | Path, network: nn.Module | None = None) -> Loaded:
    """Put the weights of a file into a network.

    Read are exports and checkpoints of prect, the released ``VoCo_*_SSL_head.pt``, and any
    safetensors or torch file that holds tensors under the network's names, whatever prefix they
    share. Where several prefixes fit equally well, the one without ``teacher`` is taken. Nothing
    in the file is executed. Values are converted to the type of the network's own.

    Args:
        path: the file.
        network: the module whose names the file's are compared with, such as MONAI's
            ``SwinUNETR(..., use_v2=True)`` or an encoder of prect; changed in place. When left
            out, the encoder that the file holds is built.

    Returns:
        The network, and which tensors were taken, left and unexpected.

    Raises:
        CheckpointError: the file is missing, damaged, would run code, holds none of the
            network's tensors, or holds some in another shape, not finite, or as other constants.
    """
    file = read_weights(Path(path))
    if network is None:
        config = find_encoder(file)
        title, network = network_title(config), build_encoder(config)
    else:
        title = type(network).__name__
    own = network.state_dict()
    match = _fit(file, own)
    found = {name: file.tensors[match.prefix + name] for name in match.taken}
    _check_values(file.path, found, own)
    network.load_state_dict(found, strict=False)
    return Loaded(network, title, file.path, match, file.metadata)


def inspect_weights(path: Path) -> Contents:
    """What a file holds, without building the network.

    Raises:
        CheckpointError: as `load_pretrained` without a network.
    """
    file = read_weights(path)
    network = find_encoder(file)
    expected = describe_encoder(network).state_dict()
    match = _fit(file, expected)
    found = {name: file.tensors[match.prefix + name] for name in match.taken}
    _check_values(path, found, expected)
    return Contents(file, network, match)


def check_start(network: NetworkConfig) -> Contents | None:
    """Check that ``network.weights`` can be what a run begins with; None where it is not set.

    Raises:
        CheckpointError: the file cannot be used, is of another network, or lacks tensors of it.
    """
    if network.weights is None:
        return None
    file = read_weights(Path(network.weights))
    expected = describe_encoder(network).state_dict()
    match = _fit(file, expected)
    missing = [name for name in match.left if expected[name].is_floating_point()]
    if missing:
        raise CheckpointError(
            f"{file.path} lacks {len(missing)} of the {len(expected)} tensors of "
            f"{network_title(network)}, first {missing[0]}; network.weights begins a run with a "
            "whole encoder"
        )
    return Contents(file, network, match)


def describe_match(match: Match, title: str) -> str:
    """One sentence with all counts, and which prefix was chosen where there was a choice."""
    total = len(match.taken) + len(match.left)
    where = f" under {match.prefix!r}" if match.prefix else ""
    rival = f" (also there: {', '.join(map(repr, match.others))})" if match.others else ""
    return (
        f"{len(match.taken)} of {total} tensors of {title} taken{where}{rival}, "
        f"{len(match.left)} left as they were, {len(match.unexpected)} of the file unexpected"
    )


def find_encoder(file: WeightFile) -> NetworkConfig:
    """The network whose encoder a file holds, from names and shapes.

    Raises:
        CheckpointError: the file holds no encoder that prect knows.
    """
    # Where several encoders lie in a file, the one that will be taken decides.
    whole = [name for name, tensor in file.tensors.items() if tensor.numel()]
    for name in sorted(whole, key=lambda name: ("teacher" in name, len(name), name)):
        shape = file.tensors[name].shape
        if f".{name}".endswith(f".{_SWIN_ANCHOR}") and tuple(shape[1:]) == (1, 2, 2, 2):
            return _checked(file, name, NetworkConfig(feature_size=shape[0]), 12)
        if f".{name}".endswith(f".{_SEGRESNET_ANCHOR}") and tuple(shape[1:]) == (1, 3, 3, 3):
            blocks = _segresnet_blocks(file, name.removesuffix(_SEGRESNET_ANCHOR))
            config = NetworkConfig(name="segresnet", feature_size=shape[0], blocks=blocks)
            return _checked(file, name, config, 8)
    raise CheckpointError(_nothing_fits(file, "no encoder that prect knows"))


def match_tensors(present: Mapping[str, object], expected: Mapping[str, object]) -> Match:
    """Find the prefix under which most of the expected names are present.

    The order of preference among equals: without ``teacher``, the shortest, the alphabet.
    """
    counts: Counter[str] = Counter()
    for name in present:
        cut = 0
        while True:
            if name[cut:] in expected:
                counts[name[:cut]] += 1
            cut = name.find(".", cut) + 1
            if not cut:
                break
    if not counts:
        return Match("", (), (), tuple(expected), tuple(present))
    ranked = sorted(counts, key=lambda p: (-counts[p], "teacher" in p, len(p), p))
    prefix = ranked[0]
    others = tuple(other for other in ranked[1:] if counts[other] == counts[prefix])
    taken = tuple(name for name in expected if prefix + name in present)
    left = tuple(name for name in expected if prefix + name not in present)
    placed = {prefix + name for name in taken}
    return Match(prefix, others, taken, left, tuple(n for n in present if n not in placed))


def _fit(file: WeightFile, expected: Mapping[str, torch.Tensor]) -> Match:
    match = match_tensors(file.tensors, expected)
    if not match.taken:
        raise CheckpointError(
            _nothing_fits(file, "none of the network's tensors, under any prefix")
            + "; give the part of your network that holds the encoder, or another file"
        )
    shapes = {
        name: (tuple(file.tensors[match.prefix + name].shape), tuple(expected[name].shape))
        for name in match.taken
    }
    differing = [name for name, (theirs, ours) in shapes.items() if theirs != ours]
    if differing:
        theirs, ours = shapes[differing[0]]
        raise CheckpointError(
            f"{file.path} is of another network: {len(differing)} of {len(match.taken)} tensors "
            f"differ in shape, first {differing[0]} with {theirs}, where the network has {ours}; "
            "prect weights FILE says which network a file is of"
        )
    return match


def _check_values(
    path: Path, found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    """Refuse weights that are not finite, and whole numbers that are not the network's own.

    Whole numbers in these networks are fixed indices, not weights; other ones would make the
    network look up wrong or missing entries.
    """
    for name, tensor in found.items():
        if own[name].is_floating_point():
            if not tensor.is_floating_point():
                raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, weights are floating")
            if not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{path}: {name} holds infinite values or NaN")
        elif not own[name].is_meta and not torch.equal(tensor.to(own[name]), own[name]):
            raise CheckpointError(f"{path}: the index {name} is not that of the network")


def _nothing_fits(file: WeightFile, what: str) -> str:
    name, tensor = next(iter(file.tensors.items()))
    return (
        f"{file.path} holds {what}: {len(file.tensors)} tensors, first {name} {tuple(tensor.shape)}"
    )


def _segresnet_blocks(file: WeightFile, prefix: str) -> tuple[int, ...]:
    """Residual blocks of each stage, from ``down_layers.<stage>.<1, 2, ...>.conv1``."""
    blocks: list[int] = []
    while True:
        stage = f"{prefix}down_layers.{len(blocks)}."
        count = 0
        while f"{stage}{count + 1}.conv1.conv.weight" in file.tensors:
            count += 1
        if not count:
            return tuple(blocks)
        blocks.append(count)


def _checked(file: WeightFile, name: str, config: NetworkConfig, multiple: int) -> NetworkConfig:
    if config.feature_size % multiple or not config.blocks:
        raise CheckpointError(
            f"{file.path}: {name} has {config.feature_size} channels, {config.name} of prect needs "
            f"a multiple of {multiple}, and residual blocks behind it"
        )
    return config
