"""prect: public CT collections into compact Zarr stores, and VoCo pre-training from them.

``prect.open_dataset`` gives stored volumes to any torch training loop; see
`prect.train.open_dataset.open_dataset`. ``prect.load_pretrained`` puts pretrained weights into a
network; see `prect.train.weights.load_pretrained`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prect.train.open_dataset import open_dataset
    from prect.train.weights import load_pretrained

__all__ = ["__version__", "load_pretrained", "open_dataset"]
__version__ = "0.1.0"

# Loaded when first asked for: the command line and the readers do without torch.
_LAZY = {
    "load_pretrained": "prect.train.weights",
    "open_dataset": "prect.train.open_dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'prect' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
