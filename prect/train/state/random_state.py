"""The random states of a process, as tensors.

Samples do not depend on them (they are drawn from counters of their own), and no layer of prect
draws numbers while it trains; a network or objective of a user may.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch

_TAIL = 3
"""Numbers of numpy's state beside its words: position, whether a normal number is kept, and it."""


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Copies of the states of torch (CPU and the device), numpy's global one and Python's."""
    _, words, position, kept, normal = np.random.get_state(legacy=True)
    tail = np.array([position, kept, normal], dtype=np.float64)
    version, internal, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.concatenate([np.asarray(words, dtype=np.float64), tail])),
        "python": torch.tensor(
            [*internal, version, np.nan if gauss is None else gauss], dtype=torch.float64
        ),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states["torch"])
    numbers = states["numpy"].numpy()
    words, (position, kept, normal) = numbers[:-_TAIL].astype(np.uint32), numbers[-_TAIL:]
    np.random.set_state(("MT19937", words, int(position), int(kept), float(normal)))
    *internal, version, gauss = states["python"].tolist()
    kept_gauss = None if np.isnan(gauss) else gauss
    random.setstate((int(version), tuple(map(int, internal)), kept_gauss))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
