"""Reading volumes that prect did not write, through zarr-python.

Any valid Zarr store (version 3; 2 as OME-Zarr 0.4 has it) whose values are HU can be read, with
whatever codecs zarr-python knows; `open_store` chooses the reader. It is the slow way: prect's
own stores are read by `prect.cache.reader`. Nothing says which way the axes of a foreign volume
point: they are taken as they are stored, as (z, y, x).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prect.cache.format import CRC_BYTES, MISSING
from prect.cache.multiscales import Image, ImageLevel, read_multiscales, spatial_order
from prect.cache.reader import Level, StoreReader
from prect.errors import ChunkError, StoreError
from prect.units import HU_MIN, Triple, Vector

if TYPE_CHECKING:
    import zarr

Missing = Literal["raise", "fill"]
_INT16 = np.iinfo(np.int16)


def open_store(
    path: str | os.PathLike[str],
    *,
    spacing: Vector | None = None,
    missing: Missing = "raise",
) -> StoreReader | ForeignReader:
    """Open a volume, whoever wrote it.

    Args:
        path: folder of a store of prect, of an OME-Zarr image, or of a single 3-D array.
        spacing: see `ForeignReader`; a store of prect knows its own.
        missing: see `ForeignReader`; in a store of prect a missing chunk is always an error.

    Raises:
        StoreError: there is no volume at ``path`` that can be read.
    """
    try:
        document = json.loads((Path(path) / "zarr.json").read_bytes())
        is_ours = "prect" in document["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    return StoreReader(path) if is_ours else ForeignReader(path, spacing=spacing, missing=missing)


class ForeignReader:
    """One foreign volume, open for reading; not to be shared between threads.

    Args:
        path: folder of an OME-Zarr image or of a single array.
        spacing: millimetres (z, y, x) of a single array, which does not say its own; 1 mm when
            left out. The scales of an OME-Zarr image are its own.
        missing: what a chunk is that the store does not hold. Writers leave out chunks that hold
            nothing but the fill value, and so does a broken copy: ``raise`` takes it as damage,
            ``fill`` as the fill value.

    Raises:
        StoreError: there is no array or image of one volume, or its values are no numbers.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        spacing: Vector | None = None,
        missing: Missing = "raise",
    ) -> None:
        self.path = Path(path)
        self.case = self.path.name.removesuffix(".zarr").removesuffix(".ome")
        self._spacing = spacing
        self._missing = missing
        self._process = 0
        self._arrays: list[zarr.Array[Any]] = []
        self._order: Triple = (0, 1, 2)
        self.affine: NDArray[np.float64] = np.eye(4)
        """(4, 4) level-0 index (x, y, z) to millimetres along the volume's own axes."""
        self.levels = self._open()

    def read(
        self,
        level: int,
        start: Triple,
        shape: Triple,
        *,
        out: NDArray[np.int16] | None = None,
        pad: int = HU_MIN,
    ) -> NDArray[np.int16]:
        """Read a box of one level.

        Args:
            level: resolution level, 0 is the finest.
            start: first voxel, (z, y, x); may lie outside the volume.
            shape: voxels to read, (z, y, x).
            out: int16 array of ``shape`` to fill; a new one when left out.
            pad: HU given to voxels outside the volume.

        Returns:
            ``out``, (z, y, x) int16 HU; fractions are rounded to the nearest, halves to even.

        Raises:
            ChunkError: a chunk that the box touches is missing or damaged.
            StoreError: there is no such level, ``out`` does not fit, or a value fits no int16.
        """
        if not 0 <= level < len(self.levels):
            raise StoreError(f"{self.path} has no level {level}, it has {len(self.levels)} levels")
        if out is None:
            out = np.empty(shape, dtype=np.int16)
        elif out.shape != tuple(shape) or out.dtype != np.int16:
            raise StoreError(
                f"out must be int16 of shape {shape}, it is {out.dtype} of shape {out.shape}"
            )
        full = self.levels[level].shape
        low = [max(s, 0) for s in start]
        high = [min(s + n, m) for s, n, m in zip(start, shape, full, strict=True)]
        inside = all(a < b for a, b in zip(low, high, strict=True))
        if not inside or any(b - a < n for a, b, n in zip(low, high, shape, strict=True)):
            out.fill(pad)
        if inside:
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            out[target] = self._as_hu(level, self._values(level, box))
        return out

    def occupancy(self, level: int) -> NDArray[np.uint8]:
        """Not known of foreign stores.

        Raises:
            StoreError: always.
        """
        raise StoreError(
            f"{self.path} was not written by prect and does not say where the body is (level "
            f"{level}); set view.foreground=0, or build the volume with prect build-cache"
        )

    def close(self) -> None:
        """Forget the arrays; a later read opens them again."""
        self._process = 0
        self._arrays = []

    def _open(self) -> tuple[Level, ...]:
        """Open the arrays in this process."""
        image, arrays = self._find()
        levels = []
        for part, array in zip(image.levels, arrays, strict=True):
            where = f"{self.path}/{part.path}".rstrip("/")
            if np.dtype(array.dtype).kind not in "iuf":
                raise StoreError(f"{where} holds {array.dtype}, not numbers that could be HU")
            if array.ndim != image.axes or any(
                n != 1 for axis, n in enumerate(array.shape) if axis not in image.order
            ):
                raise StoreError(
                    f"{where} has the shape {array.shape}; axes other than z, y and x must have "
                    "one entry, as one volume has"
                )
            levels.append(
                Level(
                    _pick(array.shape, image.order), part.spacing, _pick(array.chunks, image.order)
                )
            )
        finest = image.levels[0]
        self.affine = np.diag([*finest.spacing[::-1], 1.0])
        self.affine[:3, 3] = finest.origin[::-1]
        self._arrays, self._order, self._process = arrays, image.order, os.getpid()
        return tuple(levels)

    def _find(self) -> tuple[Image, list[zarr.Array[Any]]]:
        # Only here: zarr is heavy, and who reads stores of prect alone does without.
        import zarr  # noqa: PLC0415

        if not self.path.is_dir():
            raise StoreError(f"no store at {self.path}")
        where = str(self.path)
        try:
            node = zarr.open(self.path, mode="r")
            if isinstance(node, zarr.Array):
                names = getattr(node.metadata, "dimension_names", None) or (None,) * node.ndim
                level = ImageLevel("", self._spacing or (1.0, 1.0, 1.0))
                return Image((level,), spatial_order(names, where), node.ndim), [node]
            image = read_multiscales(node.attrs.asdict(), where)
            return image, [self._array(node, level.path) for level in image.levels]
        except StoreError:
            raise
        except Exception as error:  # zarr and its codecs raise errors of many kinds
            raise StoreError(
                f"{where} is not a Zarr array or image that can be opened: {error}"
            ) from error

    def _array(self, group: zarr.Group, path: str) -> zarr.Array[Any]:
        import zarr  # noqa: PLC0415

        array = group.get(path)
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path} names a level {path!r}, which is not an array of it")
        return array

    def _values(self, level: int, box: tuple[slice, ...]) -> NDArray[Any]:
        """The stored values of a box inside the volume, (z, y, x)."""
        if self._process != os.getpid():
            # zarr-python reads by a thread, which a forked process does not have.
            self._open()
        array = self._arrays[level]
        selection = [slice(0, 1)] * array.ndim
        for axis, part in zip(self._order, box, strict=True):
            selection[axis] = part
        if self._missing == "raise":
            for chunk in missing_chunks(self.path / array.path, array, selection):
                raise ChunkError(
                    self.case, level, _pick(chunk, self._order),
                    "is missing",
                    "If the writer leaves out chunks that hold nothing but the fill value "
                    f"{array.fill_value}, open the store with missing='fill'",
                )  # fmt: skip
        try:
            values = np.asarray(array[tuple(selection)])
        except Exception as error:  # zarr and its codecs raise errors of many kinds
            detail = f"cannot be decoded ({error})"
            raise ChunkError(self.case, level, None, detail, remedy="") from error
        others = [axis for axis in range(array.ndim) if axis not in self._order]
        values = values.transpose(*others, *self._order)
        return values.reshape(values.shape[len(others) :])

    def _as_hu(self, level: int, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype in {np.dtype(np.int16), np.dtype(np.int8), np.dtype(np.uint8)}:
            return values
        if values.dtype.kind == "f":
            values = np.rint(values)
        low, high = values.min(), values.max()
        # Not a number compares as false.
        if not (low >= _INT16.min and high <= _INT16.max):
            raise StoreError(
                f"{self.path}, level {level}, holds values from {low} to {high}, which are no HU "
                f"({_INT16.min} to {_INT16.max})"
            )
        return values

    def __getstate__(self) -> dict[str, Any]:
        """Without the open arrays: another process opens its own."""
        return self.__dict__ | {"_process": 0, "_arrays": []}

    def __enter__(self) -> ForeignReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def missing_chunks(
    folder: Path, array: zarr.Array[Any], selection: list[slice]
) -> Iterator[tuple[int, ...]]:
    """Chunks of an array in a local folder that a box touches and no file holds.

    zarr-python gives the fill value in their place without a word. Inner chunks of shards are
    looked up where the shard's index is plain, as every writer makes it by default.

    Yields:
        Positions in the grid of (inner) chunks.
    """
    outer = array.shards or array.chunks
    for position in product(*(_touched(part, n) for part, n in zip(selection, outer, strict=True))):
        inner = tuple(o // c for o, c in zip(outer, array.chunks, strict=True))
        first = tuple(p * n for p, n in zip(position, inner, strict=True))
        file = folder / array.metadata.encode_chunk_key(position)
        if not file.is_file():
            yield tuple(
                max(f, part.start // c)
                for f, part, c in zip(first, selection, array.chunks, strict=True)
            )
        elif array.shards is not None and (index := _shard_index(file, array, inner)) is not None:
            for chunk in product(
                *(_touched(part, n) for part, n in zip(selection, array.chunks, strict=True))
            ):
                here = tuple(c - f for c, f in zip(chunk, first, strict=True))
                if (
                    all(0 <= h < n for h, n in zip(here, inner, strict=True))
                    and (index[here] == MISSING).all()
                ):
                    yield chunk


def _shard_index(
    file: Path, array: zarr.Array[Any], inner: tuple[int, ...]
) -> NDArray[np.uint64] | None:
    """Offset and length of each inner chunk of a shard; None where it cannot be told.

    A shard that is too short, or an index that fails its checksum, is found when it is read.
    """
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec  # noqa: PLC0415

    sharding = array.metadata.codecs[0] if array.metadata.zarr_format == 3 else None
    if not isinstance(sharding, ShardingCodec):
        return None
    first, *checks = sharding.index_codecs
    if not isinstance(first, BytesCodec) or not all(isinstance(c, Crc32cCodec) for c in checks):
        return None
    order = ">" if first.endian is not None and first.endian.value == "big" else "<"
    count = 2 * int(np.prod(inner))
    length = 8 * count + CRC_BYTES * len(checks)
    if file.stat().st_size < length:
        return None
    with file.open("rb") as shard:
        if sharding.index_location.value == "end":
            shard.seek(-length, os.SEEK_END)
        table = shard.read(length)
    return np.frombuffer(table, f"{order}u8", count).reshape(*inner, 2).astype(np.uint64)


def _touched(part: slice, size: int) -> range:
    return range(part.start // size, -(-part.stop // size))


def _pick(values: tuple[int, ...], order: Triple) -> Triple:
    z, y, x = (int(values[axis]) for axis in order)
    return z, y, x
