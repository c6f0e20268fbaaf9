"""The chunk loop in machine code: read, check, decompress and copy without a Python turn a chunk.

numba compiles it at first use (a second or two, then kept on disk); no toolchain is needed. It
calls the C functions that the wheels of numcodecs (c-blosc) and google-crc32c bring along, and
libc's pread and posix_fadvise, under the names that `prect.cache.native` gives them. It holds no
lock, starts no thread and runs without the GIL.

All of it lies in one file: numba looks at the age of a function's own file alone to tell whether
what it has kept on disk still holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_WILLNEED = 3
"""POSIX_FADV_WILLNEED on Linux."""
_CRC_BYTES = 4
_FRAME_HEADER = 20
"""Bytes of a blosc frame before its first stream, when it has one block."""


def _part(function: Callable[..., Any]) -> Any:
    """A part of the machine code of what calls it."""
    return njit(nogil=True)(function)


def _kept(function: Callable[..., Any]) -> Any:
    """Machine code that Python calls, without the GIL; kept on disk where there is a place."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        # Neither beside this file nor in the user's home may be written: each process compiles.
        return njit(nogil=True)(function)


# Names, not addresses, so that the compiled code can be kept on disk.
_decompress = types.ExternalFunction(
    "prect_decompress", types.int32(types.voidptr, types.voidptr, types.uintp, types.int32)
)
_lz4 = types.ExternalFunction(
    "prect_lz4", types.int32(types.voidptr, types.voidptr, types.int32, types.int32, types.int32)
)
_crc32c = types.ExternalFunction("prect_crc32c", types.uint32(types.voidptr, types.uintp))
_pread = types.ExternalFunction(
    "prect_pread", types.int64(types.int32, types.voidptr, types.uintp, types.int64)
)
_advise = types.ExternalFunction(
    "prect_advise", types.int32(types.int32, types.int64, types.int64, types.int32)
)
_copy = types.ExternalFunction(
    "prect_copy", types.voidptr(types.voidptr, types.voidptr, types.uintp)
)


def _bytes_at(builder: Any, address: Any, count: int) -> Any:
    """``count`` bytes at any address as one vector."""
    vector = ir.VectorType(ir.IntType(8), count)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _store_at(builder: Any, address: Any, vector: Any) -> None:
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=1)


def _joiner(count: int) -> Any:
    """Code that stores ``count`` int16 from their low and their high bytes."""

    @intrinsic  # type: ignore[untyped-decorator]
    def join(_typing: Any, _target: Any, _low: Any, _high: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            target, *halves = arguments
            order = [i // 2 + (i % 2) * count for i in range(2 * count)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), 2 * count), order)
            low, high = (_bytes_at(builder, half, count) for half in halves)
            _store_at(builder, target, builder.shuffle_vector(low, high, mask))
            return context.get_dummy_value()

        return types.void(types.uintp, types.uintp, types.uintp), build

    return join


def _scaler(count: int) -> Any:
    """Code that stores ``count`` int16 min(offset + step * code, high) from their codes."""
    numbers = ir.VectorType(ir.IntType(16), count)

    def everywhere(builder: Any, value: Any) -> Any:
        one = builder.insert_element(
            ir.Constant(numbers, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
        )
        first = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        return builder.shuffle_vector(one, one, first)

    @intrinsic  # type: ignore[untyped-decorator]
    def scale(_typing: Any, _target: Any, _codes: Any, _step: Any, _offset: Any, _high: Any) -> Any:
        def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            target, codes, *scalars = arguments
            step, offset, high = (everywhere(builder, value) for value in scalars)
            wide = builder.zext(_bytes_at(builder, codes, count), numbers)
            hu = builder.add(builder.mul(wide, step), offset)
            clipped = builder.select(builder.icmp_signed("<", hu, high), hu, high)
            _store_at(builder, target, clipped)
            return context.get_dummy_value()

        number = types.int16
        return types.void(types.uintp, types.uintp, number, number, number), build

    return scale


_join32, _join16, _join8, _join1 = (_joiner(count) for count in (32, 16, 8, 1))
_scale32, _scale16, _scale8, _scale1 = (_scaler(count) for count in (32, 16, 8, 1))


@_kept
def hint(descriptor: Any, index: Any) -> None:
    """Ask the kernel for all ranges at once, neighbours merged."""
    chunks = index.reshape(-1, 2)
    begin = end = np.int64(-1)
    for k in range(chunks.shape[0]):
        offset = chunks[k, 0]
        if offset < 0:
            continue
        if offset != end:
            if end > begin:
                _advise(descriptor, begin, end - begin, _WILLNEED)
            begin = offset
        end = offset + chunks[k, 1]
    if end > begin:
        _advise(descriptor, begin, end - begin, _WILLNEED)


@_part
def _word(data: Any, at: Any) -> Any:
    """The little-endian uint32 at a place."""
    value = np.uint32(0)
    for k in range(4):
        value |= np.uint32(data[at + k]) << np.uint32(8 * k)
    return value


@_part
def _run_length(chunks: Any, first: Any, limit: Any) -> Any:
    """How many bytes from chunk ``first`` on lie in one piece, as far as whole chunks fit."""
    begin = chunks[first, 0]
    end = begin + chunks[first, 1]
    for k in range(first + 1, chunks.shape[0]):
        if chunks[k, 0] != end or end + chunks[k, 1] - begin > limit:
            break
        end += chunks[k, 1]
    return end - begin


@_part
def _read_all(descriptor: Any, data: Any, count: Any, offset: Any) -> Any:
    """Whether ``count`` bytes could be read; some file systems give them in several pieces."""
    done = np.int64(0)
    while done < count:
        place = np.uintp(data.ctypes.data) + np.uintp(done)
        got = _pread(descriptor, place, np.uintp(count - done), offset + done)
        if got <= 0:
            return False
        done += got
    return True


@_part
def _check(data: Any, at: Any, length: Any, chunk_bytes: Any) -> Any:
    """The number of a compressed chunk's fault, 0 for none."""
    body = length - _CRC_BYTES
    if _crc32c(np.uintp(data.ctypes.data) + np.uintp(at), np.uintp(body)) != _word(data, at + body):
        return 3
    # A blosc frame says how many bytes it holds (4 to 8) and how long it is (12 to 16).
    if body < _FRAME_HEADER or _word(data, at + 4) != chunk_bytes or _word(data, at + 12) != body:
        return 4
    return 0


@_part
def _is_split_lz4(data: Any, at: Any, chunk_bytes: Any) -> Any:
    """Whether a frame is one block of two LZ4 streams: the low bytes, then the high bytes.

    Byte 2 of a frame holds flags: bit 0 byte shuffle, 1 stored plain, 2 bit shuffle, 4 not split
    into streams, 5 to 7 the format (1 is LZ4). Byte 3 is the size of an element, bytes 8 to 12
    that of a block.
    """
    return data[at + 2] == 0b00100001 and data[at + 3] == 2 and _word(data, at + 8) == chunk_bytes


@_part
def _split_lz4(data: Any, at: Any, end: Any, planes: Any, needed: Any) -> Any:
    """Decompress the first ``needed`` bytes of both streams into ``planes`` (2, n); 0 or a fault.

    The frame lies from ``at`` to ``end``. A stream is its length, then its bytes; they are plain
    where they would not shrink. LZ4 itself never reads or writes out of bounds.
    """
    size = planes.shape[1]
    place = at + np.int64(_word(data, at + 16))
    for k in range(2):
        if place + 4 > end:
            return 4
        length = np.int64(_word(data, place))
        if place + 4 + length > end:
            return 4
        source = np.uintp(data.ctypes.data) + np.uintp(place + 4)
        target = np.uintp(planes.ctypes.data) + np.uintp(k * size)
        if length == size:
            _copy(target, source, np.uintp(needed))
        elif _lz4(source, target, np.int32(length), np.int32(needed), np.int32(size)) < needed:
            return 4
        place += 4 + length
    return 0


@_part
def _decompress_whole(data: Any, at: Any, scratch: Any) -> Any:
    """Decompress any blosc frame; 0 or a fault."""
    source = np.uintp(data.ctypes.data) + np.uintp(at)
    target = np.uintp(scratch.ctypes.data)
    done = _decompress(source, target, np.uintp(scratch.nbytes), 1)
    return 0 if done == scratch.nbytes else 4


@_part
def _join_row(source: Any, size: Any, target: Any, width: Any) -> None:
    """Join ``width`` voxels; the last piece may overlap the one before, which is faster than ones.

    Args:
        source: address of the first low byte; its high byte lies ``size`` bytes further.
        size: voxels of a chunk.
        target: address of the first int16.
        width: voxels.
    """
    piece = 32 if width >= 32 else 16 if width >= 16 else 8 if width >= 8 else 1
    k = 0
    while k < width:
        k = min(k, width - piece)
        low, t = source + np.uintp(k), target + np.uintp(2 * k)
        if piece == 32:
            _join32(t, low, low + np.uintp(size))
        elif piece == 16:
            _join16(t, low, low + np.uintp(size))
        elif piece == 8:
            _join8(t, low, low + np.uintp(size))
        else:
            _join1(t, low, low + np.uintp(size))
        k += piece


@_part
def _place_split(
    planes: Any, chunk: Any, begin: Any, end: Any, corner: Any, start: Any, out: Any
) -> None:
    """Join low and high bytes while copying: only voxels that are asked for are joined."""
    size = planes.shape[1]
    target = np.uintp(out.ctypes.data)
    low = np.uintp(planes.ctypes.data)
    width = end[2] - begin[2]
    for z in range(begin[0], end[0]):
        for y in range(begin[1], end[1]):
            s = ((z - corner[0]) * chunk[1] + y - corner[1]) * chunk[2] + begin[2] - corner[2]
            t = ((z - start[0]) * out.shape[1] + y - start[1]) * out.shape[2] + begin[2] - start[2]
            _join_row(low + np.uintp(s), size, target + np.uintp(2 * t), width)


@_part
def _place_hu(scratch: Any, begin: Any, end: Any, corner: Any, start: Any, out: Any) -> None:
    """Copy the voxels ``begin`` to ``end`` of the level out of the chunk at ``corner``."""
    _, rows, columns = scratch.shape
    size = np.uintp(2)
    source = np.uintp(scratch.ctypes.data)
    target = np.uintp(out.ctypes.data)
    width = np.uintp(end[2] - begin[2]) * size
    for z in range(begin[0], end[0]):
        s = ((z - corner[0]) * rows + begin[1] - corner[1]) * columns + begin[2] - corner[2]
        t = ((z - start[0]) * out.shape[1] + begin[1] - start[1]) * out.shape[2]
        s_byte = source + np.uintp(s) * size
        t_byte = target + np.uintp(t + begin[2] - start[2]) * size
        for _ in range(begin[1], end[1]):
            _copy(t_byte, s_byte, width)
            s_byte += np.uintp(columns) * size
            t_byte += np.uintp(out.shape[2]) * size


@_part
def _scale_row(source: Any, target: Any, width: Any, window: Any) -> None:
    """HU of ``width`` codes, pieces as in `_join_row`."""
    step, offset, high = window
    piece = 32 if width >= 32 else 16 if width >= 16 else 8 if width >= 8 else 1
    k = 0
    while k < width:
        k = min(k, width - piece)
        s, t = source + np.uintp(k), target + np.uintp(2 * k)
        if piece == 32:
            _scale32(t, s, step, offset, high)
        elif piece == 16:
            _scale16(t, s, step, offset, high)
        elif piece == 8:
            _scale8(t, s, step, offset, high)
        else:
            _scale1(t, s, step, offset, high)
        k += piece


@_part
def _place_codes(
    scratch: Any, begin: Any, end: Any, corner: Any, start: Any, window: Any, out: Any
) -> None:
    """The same for the codes of a window: HU = min(offset + step * code, high)."""
    _, rows, columns = scratch.shape
    source = np.uintp(scratch.ctypes.data)
    target = np.uintp(out.ctypes.data)
    for z in range(begin[0], end[0]):
        for y in range(begin[1], end[1]):
            s = ((z - corner[0]) * rows + y - corner[1]) * columns + begin[2] - corner[2]
            t = ((z - start[0]) * out.shape[1] + y - start[1]) * out.shape[2] + begin[2] - start[2]
            _scale_row(source + np.uintp(s), target + np.uintp(2 * t), end[2] - begin[2], window)


@_kept
def fill(
    descriptor: Any,
    index: Any,
    rows: Any,
    box: Any,
    window: Any,
    scratch: Any,
    planes: Any,
    data: Any,
    out: Any,
) -> Any:
    """Decode rows of chunks; 8 * number of the chunk + its fault, or -1 when all is well.

    Args:
        descriptor: of the shard file.
        index: (pz, py, px, 2) int64.
        rows: first row of chunks and one past the last.
        box: the triples first, low, high, start of a `BoxRead`, and the chunk's shape.
        window: step, offset and high of a window's codes.
        scratch: one chunk, int16 or uint8.
        planes: (2, n) uint8, the low and the high bytes of a chunk of n voxels.
        data: room for a run of compressed chunks, uint8.
        out: int16.
    """
    first, low, high, start, chunk = box
    _, py, px, _ = index.shape
    chunks = index.reshape(-1, 2)[: rows[1] * px]
    loaded = np.int64(0)
    held = np.int64(-1)
    for k in range(rows[0] * px, rows[1] * px):
        offset, length = chunks[k]
        if offset < 0:
            return 8 * k + 1
        if held < 0 or offset < held or offset + length > held + loaded:
            loaded = _run_length(chunks, k, data.size)
            held = offset
            if not _read_all(descriptor, data, loaded, offset):
                return 8 * k + 2
        at = offset - held
        fault = _check(data, at, length, scratch.nbytes)
        if fault != 0:
            return 8 * k + fault
        z, y, x = first[0] + k // (py * px), first[1] + k // px % py, first[2] + k % px
        corner = (z * chunk[0], y * chunk[1], x * chunk[2])
        begin = (max(corner[0], low[0]), max(corner[1], low[1]), max(corner[2], low[2]))
        end = (
            min(corner[0] + chunk[0], high[0]),
            min(corner[1] + chunk[1], high[1]),
            min(corner[2] + chunk[2], high[2]),
        )
        if scratch.itemsize == 2 and _is_split_lz4(data, at, scratch.nbytes):
            needed = (end[0] - corner[0]) * chunk[1] * chunk[2]
            fault = _split_lz4(data, at, at + length - _CRC_BYTES, planes, needed)
            if fault == 0:
                _place_split(planes, chunk, begin, end, corner, start, out)
        else:
            fault = _decompress_whole(data, at, scratch)
            if fault == 0 and scratch.itemsize == 2:
                _place_hu(scratch, begin, end, corner, start, out)
            elif fault == 0:
                _place_codes(scratch, begin, end, corner, start, window, out)
        if fault != 0:
            return 8 * k + fault
    return -1
