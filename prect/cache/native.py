"""The decoder that runs the compiled loop of `prect.cache.compiled`."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from prect.cache.compiled import fill, hint
from prect.cache.decode import RUN_BYTES, BoxRead, ChunkFault, Fault, PythonDecoder
from prect.errors import PrectError
from prect.units import Triple


class CompiledLoopError(PrectError):
    """This machine lacks something that the compiled loop needs; the Python loop does without."""


def _register(name: str, library: ctypes.CDLL, symbol: str) -> None:
    try:
        address = ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value
    except AttributeError as error:
        raise CompiledLoopError(f"{library._name or 'libc'} exports no {symbol}") from error
    llvm.add_symbol(name, address)


def _register_all() -> None:
    try:
        checksums = importlib.import_module("google_crc32c._crc32c").__file__
    except ImportError as error:
        raise CompiledLoopError("google-crc32c came without its compiled part") from error
    # A lookup through a module also searches the libraries that it was linked with.
    _register("prect_crc32c", ctypes.CDLL(checksums), "crc32c_value")
    codecs = ctypes.CDLL(blosc.__file__)
    _register("prect_decompress", codecs, "blosc_decompress_ctx")
    _register("prect_lz4", codecs, "LZ4_decompress_safe_partial")
    libc = ctypes.CDLL(None)
    _register("prect_pread", libc, "pread64")
    _register("prect_advise", libc, "posix_fadvise64")
    _register("prect_copy", libc, "memcpy")


def _called(function: Any, *arguments: Any) -> Any:
    """Call a compiled function, and compile it first where that has not been done.

    A full disk, or a quota, can keep the code from being written down. It is there all the same.
    """
    try:
        return function(*arguments)
    except OSError:
        return function(*arguments)


class CompiledDecoder:
    """One call a box; see `prect.cache.decode.Decoder`."""

    @staticmethod
    def prepare() -> None:
        """Find the C functions and load the machine code; once in a process.

        Where it was never compiled on this machine, that takes two or three seconds.

        Raises:
            CompiledLoopError: one of the functions is not to be had.
        """
        _register_all()
        voxel, corner = np.empty((1, 1, 1), dtype=np.int16), (0, 0, 0)
        nothing = np.full((1, 1, 1, 2), -1, dtype=np.int64)
        box, window = (corner,) * 5, (np.int16(1),) * 3
        planes, data = np.empty((2, 1), dtype=np.uint8), np.empty(1, dtype=np.uint8)
        _called(hint, np.int32(-1), nothing)
        _called(fill, np.int32(-1), nothing, (0, 0), box, window, voxel, planes, data, voxel)

    def __init__(self) -> None:
        self._scratch: NDArray[Any] = np.empty((0, 0, 0), dtype=np.int16)
        self._planes: NDArray[np.uint8] = np.empty((2, 0), dtype=np.uint8)
        self._data: NDArray[np.uint8] = np.empty(RUN_BYTES, dtype=np.uint8)

    def hint(self, read: BoxRead) -> None:
        """See `prect.cache.decode.Decoder.hint`."""
        _called(hint, np.int32(read.descriptor), read.index)

    def fill(self, read: BoxRead, rows: range) -> ChunkFault | None:
        """See `prect.cache.decode.Decoder.fill`."""
        fault = self._fill(read, rows)
        if fault is not None and fault.fault is Fault.UNREADABLE:
            # Machine code cannot tell an interrupted call from a broken disk; Python can.
            return PythonDecoder().fill(read, rows)
        return fault

    def _fill(self, read: BoxRead, rows: range) -> ChunkFault | None:
        intensity = read.intensity
        if self._scratch.shape != read.chunk or self._scratch.dtype != intensity.dtype:
            self._scratch = np.empty(read.chunk, dtype=intensity.dtype)
            self._planes = np.empty((2, self._scratch.size), dtype=np.uint8)
        longest = int(read.index[..., 1].max())
        if longest > self._data.size:
            self._data = np.empty(longest, dtype=np.uint8)
        window = (intensity.step, intensity.low - intensity.step, intensity.high)
        code = int(
            _called(
                fill,
                np.int32(read.descriptor),
                read.index,
                (rows.start, rows.stop),
                (read.first, read.low, read.high, read.start, read.chunk),
                tuple(map(np.int16, window)),
                self._scratch,
                self._planes,
                self._data,
                read.out,
            )
        )
        if code < 0:
            return None
        place = np.unravel_index(code // 8, read.index.shape[:3])
        z, y, x = (f + int(p) for f, p in zip(read.first, place, strict=True))
        position: Triple = (z, y, x)
        return ChunkFault(position, Fault(code % 8))
