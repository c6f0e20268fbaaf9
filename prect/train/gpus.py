"""What makers say of their GPUs: operations and bytes a second, and memory.

Source: NVIDIA's data sheets, each model's own; that of the HGX boards for B200, the white papers
of their architectures for RTX 3090, 4090 and 5090, with sums in float32. Where a sheet gives
operations with sparsity only, half of them stand here: training has no sparse weights.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from prect.errors import ConfigError

Factors = Literal["bfloat16", "float16", "tf32", "float32"]
"""In what the factors of a product are given; sums are float32."""


@dataclass(frozen=True)
class Gpu:
    """One model; all figures are those of its maker."""

    name: str
    half: float
    """TFLOPS of bfloat16 and float16, dense."""
    tf32: float | None
    """TFLOPS of TF32, dense; None where there is no such thing."""
    single: float
    """TFLOPS of float32."""
    bandwidth: float
    """GB/s of its memory."""
    memory: float
    """GB, 10^9 bytes."""
    bfloat16: bool = True
    """Whether it computes in bfloat16."""

    def tflops(self, factors: Factors) -> float | None:
        """Peak; None for a type that it does not compute in."""
        if factors == "bfloat16":
            return self.half if self.bfloat16 else None
        if factors == "float16":
            return self.half
        return self.tf32 or self.single if factors == "tf32" else self.single


_TABLE = (
    Gpu("B200", 2250, 1125, 75, 8000, 180),
    Gpu("H200 NVL", 835.5, 417.5, 60, 4800, 141),
    Gpu("H200", 989, 494.5, 67, 4800, 141),
    Gpu("H100 NVL", 835.5, 417.5, 60, 3900, 94),
    Gpu("H100 PCIe", 756, 378, 51, 2000, 80),
    Gpu("H100", 989, 494.5, 67, 3350, 80),
    Gpu("H800", 989, 494.5, 67, 3350, 80),
    Gpu("H20", 148, 74, 44, 4000, 96),
    Gpu("A100 PCIe 80GB", 312, 156, 19.5, 1935, 80),
    Gpu("A100 80GB", 312, 156, 19.5, 2039, 80),
    Gpu("A100", 312, 156, 19.5, 1555, 40),
    Gpu("A800", 312, 156, 19.5, 2039, 80),
    Gpu("A40", 149.7, 74.8, 37.4, 696, 48),
    Gpu("A30", 165, 82, 10.3, 933, 24),
    Gpu("A10", 125, 62.5, 31.2, 600, 24),
    Gpu("L40S", 362, 183, 91.6, 864, 48),
    Gpu("L40", 181, 90.5, 90.5, 864, 48),
    Gpu("L4", 121, 60, 30.3, 300, 24),
    Gpu("V100 PCIe 32GB", 112, None, 14, 900, 32, bfloat16=False),
    Gpu("V100 PCIe", 112, None, 14, 900, 16, bfloat16=False),
    Gpu("V100 32GB", 125, None, 15.7, 900, 32, bfloat16=False),
    Gpu("V100", 125, None, 15.7, 900, 16, bfloat16=False),
    Gpu("T4", 65, None, 8.1, 320, 16, bfloat16=False),
    Gpu("RTX 6000 Ada", 364, 182, 91.1, 960, 48),
    Gpu("A6000", 154.8, 77.4, 38.7, 768, 48),
    Gpu("5090", 209.5, 104.8, 104.8, 1792, 32),
    Gpu("4090", 165.2, 82.6, 82.6, 1008, 24),
    Gpu("3090", 71, 35.6, 35.6, 936, 24),
)
"""The narrower name of a family comes first. A sheet's smallest memory stands for a bare name."""

_OTHERS = {"LAPTOP", "MIG", "TI", "SUPER", "D"}
"""Words that make another, slower or faster, GPU of a name, or a part of one."""


def find_gpu(name: str) -> Gpu | None:
    """The model that a name means, be it torch's or a person's; None for one that is not listed.

    ``NVIDIA A100-SXM4-80GB``, ``a100 80 GB`` and ``A100`` are names; the last is taken to have 40.
    """
    words = _words(name)
    if words & _OTHERS:
        return None
    return next((gpu for gpu in _TABLE if _words(gpu.name) <= words), None)


def named_gpu(name: str) -> Gpu:
    """The model that a person names.

    Raises:
        ConfigError: it is not listed; names the nearest ones, or all.
    """
    found = find_gpu(name)
    if found is not None:
        return found
    known = [gpu.name for gpu in _TABLE]
    near = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.5)
    raise ConfigError(
        f"GPU {name!r} is not known; "
        + (f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}")
        + " For another, set train.peak_tflops to what its maker says."
    )


def _words(name: str) -> set[str]:
    text = re.sub(r"(\d+)\s*GB", r"\1GB", name.upper().replace("RTX", "RTX "))
    return set(re.split(r"[^A-Z0-9]+", text)) - {""}
