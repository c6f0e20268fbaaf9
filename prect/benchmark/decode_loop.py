"""The loop of the compiled decode limit: chunks decompressed one after the other, in machine code.

It calls the C function that prect's own compiled reader calls, under the name that
`prect.cache.native` gives it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from prect.benchmark.measuring import UnavailableError
from prect.cache.native import CompiledDecoder, CompiledLoopError

_decompress = types.ExternalFunction(
    "prect_decompress", types.int32(types.voidptr, types.voidptr, types.uintp, types.int32)
)


def prepare() -> None:
    """Tell the compiler where the C function is; once in a process, before the first call.

    Raises:
        UnavailableError: it is not to be had.
    """
    try:
        CompiledDecoder.prepare()
    except CompiledLoopError as error:
        raise UnavailableError(str(error)) from error


@njit(nogil=True)  # type: ignore[untyped-decorator]
def decode(frames: Any, offsets: Any, scratch: Any) -> int:
    """Decompress blosc frames one after the other into the same place.

    Args:
        frames: uint8, all frames end to end.
        offsets: int64, where each begins.
        scratch: one chunk of int16.

    Returns:
        How many of them gave a whole chunk.
    """
    whole = 0
    source, target = np.uintp(frames.ctypes.data), np.uintp(scratch.ctypes.data)
    for k in range(offsets.size):
        place = source + np.uintp(offsets[k])
        whole += _decompress(place, target, np.uintp(scratch.nbytes), 1) == scratch.nbytes
    return whole
