"""How Hounsfield units are stored: as they are, in steps, or through one window for ever."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from prect.units import HU_MAX, HU_MIN

_MAX_CODES = 255
"""Values of a uint8 but for 0, which is the fill value."""


def _codes(low: int, high: int, step: int) -> int:
    return (high - low + step // 2) // step + 1


def _least_step(low: int, high: int) -> int:
    return next(step for step in range(1, 65) if _codes(low, high, step) <= _MAX_CODES)


class Intensity(BaseModel):
    """What a stored value means.

    ``hu``: int16 Hounsfield units, rounded to multiples of ``step`` counted from ``low``.
    ``window``: uint8 codes 1, 2, ... for ``low``, ``low + step``, ...; what lies outside of
    the window is lost. Neither form uses its fill value for a voxel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["hu", "window"] = "hu"
    low: int = Field(default=HU_MIN, ge=HU_MIN)
    """HU; what is lower is stored as this."""
    high: int = Field(default=HU_MAX, le=HU_MAX)
    """HU; what is higher is stored as this."""
    step: int = Field(default=1, ge=1, le=64)
    """HU from one stored value to the next."""

    @model_validator(mode="after")
    def _fits(self) -> Intensity:
        if self.low >= self.high:
            raise ValueError(f"the window {self.low}..{self.high} HU is empty")
        if self.kind == "hu" and (self.low, self.high) != (HU_MIN, HU_MAX):
            raise ValueError(f"hu holds {HU_MIN}..{HU_MAX} HU; a narrower range is a window")
        if self.kind == "window" and self.codes > _MAX_CODES:
            raise ValueError(
                f"a window of {self.high - self.low} HU in steps of {self.step} does not fit one "
                f"byte; the step must be {_least_step(self.low, self.high)} or more"
            )
        return self

    @classmethod
    def window(cls, low: int, high: int, step: int | None = None) -> Intensity:
        """A window; without a step, 4 HU, or more where one byte asks for it."""
        return cls(kind="window", low=low, high=high, step=step or max(4, _least_step(low, high)))

    @property
    def codes(self) -> int:
        """Number of different values of a window; the highest is also the largest code."""
        return _codes(self.low, self.high, self.step)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored array, little-endian."""
        return np.dtype("<i2" if self.kind == "hu" else "|u1")

    @property
    def fill(self) -> int:
        """Stored value of a voxel that was never written; no stored HU has it."""
        return -32768 if self.kind == "hu" else 0

    @property
    def max_error(self) -> int:
        """HU by which a decoded value differs at most from the HU, clipped to low and high."""
        return self.step // 2

    def encode(self, hu: NDArray[np.int16]) -> NDArray[Any]:
        """Stored values of HU within [-1024, 3071]; any shape. The array itself where it can be."""
        if self.kind == "hu" and self.step == 1:
            return hu
        # From the start of the range on, so that no number is negative. 4095 + 32 fits.
        number = np.clip(hu, self.low, self.high)
        number -= np.int16(self.low)
        number += np.int16(self.step // 2)
        number //= np.int16(self.step)
        if self.kind == "window":
            number += np.int16(1)
            return np.minimum(number, self.codes).astype(np.uint8)
        number *= np.int16(self.step)
        number += np.int16(self.low)
        return np.minimum(number, np.int16(self.high))

    def table(self) -> NDArray[np.int16]:
        """(256,) int16 HU of every code of a window; the fill value is not HU and maps to -32768.

        Codes above `codes` are never written, and map to it too.
        """
        hu = np.full(256, -32768, dtype=np.int16)
        steps = np.arange(self.codes) * self.step
        hu[1 : self.codes + 1] = np.minimum(self.low + steps, self.high)
        return hu

    def decode(self, stored: NDArray[Any]) -> NDArray[np.int16]:
        """HU of stored values; any shape. The array itself where it can be."""
        return stored if self.kind == "hu" else self.table()[stored]

    def decode_into(self, stored: NDArray[Any], out: NDArray[np.int16]) -> None:
        """Write the HU of stored values, none of them the fill value, into ``out``.

        Ten times faster than looking them up.

        Args:
            stored: values of voxels inside a volume; any shape.
            out: int16 of the same shape.
        """
        if self.kind == "hu":
            out[...] = stored
            return
        np.multiply(stored, np.int16(self.step), out=out, dtype=np.int16)
        out += np.int16(self.low - self.step)
        if self.low + (self.codes - 1) * self.step > self.high:
            np.minimum(out, np.int16(self.high), out=out)

    def __str__(self) -> str:
        steps = "" if self.step == 1 else f", steps of {self.step}"
        return f"hu{steps}" if self.kind == "hu" else f"window {self.low}..{self.high}{steps}"
