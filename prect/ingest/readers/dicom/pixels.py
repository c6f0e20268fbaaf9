"""Pixels of DICOM files: decoded, rescaled to HU, padding turned into air.

Each file is read once; the digest of the volume is taken of the same bytes. Uncompressed
little-endian pixels are used where they lie in those bytes; all others go through
pydicom's decoders (GDCM, OpenJPEG, CharLS, and its own for RLE and big-endian).
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.filereader import read_partial
from pydicom.pixels.utils import pixel_array
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from prect.errors import VolumeError
from prect.ingest.readers.dicom.geometry import Placed
from prect.ingest.readers.dicom.headers import Slice
from prect.ingest.resample import PADDING_HU
from prect.units import HU_MIN

_PIXEL_MODULE: list[BaseTag | int] = [
    BaseTag(0x00280000 + element) for element in (0x2, 0x10, 0x11, 0x100, 0x101, 0x103)
]
"""SamplesPerPixel, Rows, Columns, BitsAllocated, BitsStored, PixelRepresentation."""
_PIXEL_DATA = BaseTag(0x7FE00010)
_UNDEFINED = 0xFFFFFFFF

Stored = NDArray[Any]
"""(j, i) stored values, any integer dtype."""


class Hasher(Protocol):
    """What takes in bytes, as the objects of `hashlib` do."""

    def update(self, data: bytes, /) -> None: ...


class FilePixels:
    """The frames of one file.

    Args:
        data: the whole file.

    Raises:
        Exception: whatever pydicom raises at damaged bytes.
    """

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pydicom, at every oddity of every file
            self._header = read_partial(
                file,
                lambda tag, vr, length: int(tag) == _PIXEL_DATA,  # noqa: ARG005
                force=True,
                specific_tags=_PIXEL_MODULE,
            )
            self._data = data
            self._uid = _transfer_syntax(self._header)
            self._native = self._locate(file.tell())
        self._whole: pydicom.FileDataset | None = None

    @property
    def syntax(self) -> str:
        """Name of the transfer syntax in the standard; never text of the file."""
        name = self._uid.name
        return "an unknown transfer syntax" if name == self._uid else name

    def _locate(self, offset: int) -> tuple[int, int] | None:
        """Where uncompressed little-endian 16-bit pixels lie: offset and bytes."""
        if self._uid not in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
            return None
        if self._header.get("BitsAllocated") != 16 or self._header.get("SamplesPerPixel") != 1:
            return None
        if int.from_bytes(self._data[offset : offset + 2], "little") != _PIXEL_DATA.group:
            return None
        # The bytes tell whether a type is written; some files name the other syntax. Read as a
        # length, either type would be odd.
        explicit = self._data[offset + 4 : offset + 6] in (b"OW", b"OB")
        if not explicit and self._uid == ExplicitVRLittleEndian:
            return None
        start = offset + (12 if explicit else 8)
        length = int.from_bytes(self._data[start - 4 : start], "little")
        return None if length == _UNDEFINED else (start, length)

    def stored(self, frame: int, frames: int) -> tuple[Stored, Stored]:
        """One frame: its values, and its containers with the unused high bits as they lie there.

        Raises:
            ValueError: fewer bytes than the header announces, or more by a whole frame.
            Exception: whatever a decoder raises.
        """
        if self._native is not None:
            return self._native_frame(frame, frames, *self._native)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._whole is None:
                self._whole = pydicom.dcmread(io.BytesIO(self._data), force=True)
                self._whole.file_meta.TransferSyntaxUID = self._uid
            values = pixel_array(
                self._whole,
                index=frame if frames > 1 else None,
                raw=True,
                # A plugin in Rust may be installed, whose panic at damaged RLE is no Exception.
                decoding_plugin="pydicom" if self._uid == RLELossless else "",
            )
        return values, values

    def _native_frame(
        self, frame: int, frames: int, start: int, length: int
    ) -> tuple[Stored, Stored]:
        rows, columns = int(self._header.Rows), int(self._header.Columns)
        size = 2 * rows * columns
        available = min(length, len(self._data) - start)
        if not frames * size <= available < (frames + 1) * size:
            raise ValueError(f"{available} bytes of pixels, {frames * size} are announced")
        dtype = "<i2" if self._header.get("PixelRepresentation") == 1 else "<u2"
        containers = np.frombuffer(self._data, dtype, rows * columns, start + frame * size)
        containers = containers.reshape(rows, columns)
        unused = 16 - int(self._header.get("BitsStored") or 16)
        if not 0 < unused < 16:
            return containers, containers
        return (containers << unused) >> unused, containers


def _transfer_syntax(data: pydicom.FileDataset) -> UID:
    """That of the file; where it states none, the encoding that the header turned out to have."""
    stated = data.file_meta.get("TransferSyntaxUID")
    if stated is not None:
        return UID(stated, IGNORE)
    implicit, little_endian = data.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def decode_slices(
    placed: Sequence[Placed], digest: Hasher
) -> Iterator[tuple[float, NDArray[np.int16], bool]]:
    """HU of each slice in order; each file is read when its first slice is due.

    Args:
        placed: slices of a volume.
        digest: takes in the bytes of every file, in the order of their first slices.

    Yields:
        Index along k, (j, i) HU, and whether fractions of HU were rounded away.

    Raises:
        VolumeError: ``file.unreadable``, ``dicom.undecodable``.
    """
    open_files: dict[Path, FilePixels] = {}
    left = Counter(p.part.path for p in placed)
    for number, p in enumerate(placed):
        path = p.part.path
        try:
            if path not in open_files:
                data = path.read_bytes()
                digest.update(data)
                open_files[path] = FilePixels(data)
            hu, fractional = decode_frame(open_files[path], p.part)
        except VolumeError:
            raise
        except OSError as error:
            raise VolumeError("file.unreadable", f"cannot be read: {error.strerror}") from error
        except Exception as error:  # decoders of ten syntaxes raise what they like
            syntax = open_files[path].syntax if path in open_files else "damaged file"
            raise VolumeError(
                "dicom.undecodable",
                f"slice {number + 1} of {len(placed)} cannot be decoded "
                f"({syntax}, {type(error).__name__})",
            ) from error
        left[path] -= 1
        if not left[path]:
            del open_files[path]
        yield p.index, hu, fractional


def decode_frame(pixels: FilePixels, part: Slice) -> tuple[NDArray[np.int16], bool]:
    """(j, i) HU of one slice, and whether fractions were rounded away.

    Padding that is air by its value becomes -1024 HU before anything interpolates over it.
    What int16 cannot hold is clipped.

    Raises:
        VolumeError: ``dicom.undecodable``, the pixels are not of the size the header tells.
        Exception: whatever a decoder raises.
    """
    stored, containers = pixels.stored(part.frame, part.frames)
    if stored.shape != (part.rows, part.columns):
        raise VolumeError(
            "dicom.undecodable", f"{stored.shape} pixels, {part.rows} x {part.columns} are expected"
        )
    slope, intercept = part.rescale or (1.0, 0.0)
    fractional = False
    if slope == 1 and float(intercept).is_integer():
        values: NDArray[Any] = stored.astype(np.int32) + int(intercept)
    else:
        exact = stored.astype(np.float64) * slope + intercept
        values = np.rint(exact)
        fractional = bool((values != exact).any())
    hu: NDArray[np.int16] = np.clip(values, -32768, 32767).astype(np.int16)
    if part.padding and part.padding_is_air:
        hu[_padding(part.padding, stored, containers)] = HU_MIN
    return hu, fractional


def _padding(padding: tuple[int, ...], stored: Stored, containers: Stored) -> NDArray[np.bool_]:
    """Where the stored value is padding (PS3.3 C.7.5.1.1.2), compared modulo 2^16.

    Scanners write 63536 for -2000: the tag's sign is not always that of the pixels, and the
    value may reach into bits that are not used for the others.
    """
    if len(padding) == 1:
        same: NDArray[np.bool_] = (stored.astype(np.int32) & 0xFFFF) == padding[0]
        if containers is not stored:
            same |= (containers.astype(np.int32) & 0xFFFF) == padding[0]
        return same
    low, high = np.sort(np.array(padding, dtype=np.uint16).astype(np.int16))
    values = stored.astype(np.int16)
    between: NDArray[np.bool_] = (values >= low) & (values <= high)
    return between


def assemble(
    slices: Iterator[tuple[float, NDArray[np.int16], bool]], count: int, interpolate: bool
) -> tuple[NDArray[np.int16], int, bool]:
    """The volume, made slice by slice so that no second copy is held.

    Args:
        slices: index along k, ascending from 0 to ``count - 1``; (j, i) HU; fractions.
        count: voxels along k.
        interpolate: whether indices lie between those of the volume. Each of its slices is
            then the linear mean of the two around it, rounded; padding is air before.

    Returns:
        (k, j, i) HU; the number of slices left out because they repeat their neighbour;
        whether fractions of HU were rounded away.

    Raises:
        VolumeError: ``dicom.several_phases``, different images at one position.
    """
    voxels: NDArray[np.int16] | None = None
    before: tuple[float, NDArray[np.int16]] | None = None
    repeats, fractional = 0, False
    for index, hu, has_fractions in slices:
        fractional |= has_fractions
        if interpolate:
            hu[hu <= PADDING_HU] = HU_MIN
        if voxels is None:
            voxels = np.empty((count, *hu.shape), dtype=np.int16)
        if before is not None and index == before[0]:
            _require_same(hu, before[1])
            repeats += 1
            continue
        if not interpolate:
            voxels[round(index)] = hu
        else:
            _fill(voxels, before or (index, hu), (index, hu))
        before = index, hu
    if voxels is None:
        raise VolumeError("geometry.too_small", "0 slices")
    return voxels, repeats, fractional


def _require_same(hu: NDArray[np.int16], other: NDArray[np.int16]) -> None:
    if np.array_equal(hu, other):
        return
    share = float(np.mean(hu != other))
    raise VolumeError(
        "dicom.several_phases",
        f"two slices at one position differ in {share:.1%} of their pixels: "
        "several phases or a bolus tracking series",
    )


def _fill(
    voxels: NDArray[np.int16],
    before: tuple[float, NDArray[np.int16]],
    after: tuple[float, NDArray[np.int16]],
) -> None:
    """Interpolate the slices of the volume that lie above one slice and up to the next."""
    low, high = before[0], after[0]
    if low == high:  # the first slice
        voxels[0] = after[1]
        return
    lower = before[1].astype(np.float32)
    rise = after[1] - lower
    for k in range(math.floor(low) + 1, math.floor(high) + 1):
        voxels[k] = np.rint(lower + np.float32((k - low) / (high - low)) * rise)
