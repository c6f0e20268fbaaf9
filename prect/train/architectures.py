"""Networks by name, so that a configuration may say ``network = "voco-l"``.

A name stands for a table of settings; settings beside it refine the table.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args

from prect.errors import ConfigError
from prect.train.sections import NetworkConfig

NETWORKS = {
    "voco-b": NetworkConfig(feature_size=48, checkpointing=True),
    "voco-l": NetworkConfig(feature_size=96, checkpointing=True),
    "voco-h": NetworkConfig(feature_size=192, checkpointing=True),
    "tiny": NetworkConfig(feature_size=12),
    "demo": NetworkConfig(name="segresnet", feature_size=8, blocks=(1, 1, 1, 1)),
}
"""VoCo-B, -L and -H as published (arXiv 2410.09890), and two small ones to try things out."""


def settings_of(name: str) -> dict[str, Any]:
    """The table ``[network]`` that a name stands for.

    Raises:
        ConfigError: there is no network of this name; names the nearest.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"network {name!r} does not exist; there are {', '.join(NETWORKS)}{hint}")
    return NETWORKS[name].model_dump(mode="json")


def is_architecture(name: object) -> bool:
    """Whether a name is one that ``network.name`` takes in a resolved configuration."""
    return name in get_args(NetworkConfig.model_fields["name"].annotation)


def network_title(network: NetworkConfig) -> str:
    """``voco-b (swin_unetr, feature size 48)``; without a name where it has none."""
    shape = f"{network.name}, feature size {network.feature_size}"
    if network.name == "segresnet":
        shape += f", blocks {' '.join(map(str, network.blocks))}"
    names = [name for name, known in NETWORKS.items() if _shape(known) == _shape(network)]
    return f"{names[0]} ({shape})" if names else shape


def _shape(network: NetworkConfig) -> tuple[object, ...]:
    blocks = network.blocks if network.name == "segresnet" else ()
    return network.name, network.feature_size, blocks
