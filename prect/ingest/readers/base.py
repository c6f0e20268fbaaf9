"""What a reader of a foreign format offers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prect.errors import VolumeError
from prect.ingest.settings import Limits
from prect.ingest.volume import Affine, Volume


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its voxels are trusted."""

    shape: tuple[int, int, int]
    """Voxels along (i, j, k)."""
    affine: Affine
    paths: tuple[Path, ...]
    """Files to decode; for a DICOM series ordered along the slice normal."""
    patient_id: str | None = None
    """As in the file; hashed before it is written anywhere."""
    series_id: str | None = None
    instances: tuple[str, ...] = ()
    """DICOM: what identifies each file in ``paths``; starts with its instance UID."""
    warnings: tuple[tuple[str, str], ...] = field(default=())


class Reader(Protocol):
    """A foreign format. Every method raises `VolumeError` with a reason code."""

    def read_header(self, paths: Sequence[Path], limits: Limits) -> Header:
        """Geometry and ids, without trusting the voxels."""
        ...

    def read_sample(self, header: Header) -> NDArray[Any]:
        """HU of the volume, or of some of its slices where slices can be read singly."""
        ...

    def read(self, header: Header) -> Volume:
        """The whole volume."""
        ...

    def digest(self, header: Header) -> str:
        """Digest of the content, independent of names and times; 32 hexadecimal digits."""
        ...


def digest_files(paths: Sequence[Path]) -> str:
    """BLAKE2b-128 over the bytes of the files, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def finite(values: NDArray[Any]) -> tuple[NDArray[Any], tuple[tuple[str, str], ...]]:
    """Values with NaN and infinities turned into -1024 HU, and a warning that counts them."""
    if not np.issubdtype(values.dtype, np.floating):
        return values, ()
    sound = np.isfinite(values)
    lost = int(values.size - np.count_nonzero(sound))
    if not lost:
        return values, ()
    warning = ("hu.not_finite", f"{lost} voxels are not finite and became -1024 HU")
    return np.where(sound, values, values.dtype.type(-1024)), (warning,)


def to_hu(values: NDArray[Any]) -> tuple[NDArray[np.int16], tuple[tuple[str, str], ...]]:
    """Cast decoded values to int16 HU.

    Fractions are rounded; what int16 cannot hold is clipped (metal beyond 32767 HU is
    beyond every window); NaN and infinities become -1024 HU and are counted.

    Args:
        values: any shape, any real dtype.

    Returns:
        int16 array of the same shape, and a warning where something was not finite.
    """
    if values.dtype == np.int16:
        return values, ()
    values, warnings = finite(values)
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint(values)
    return np.clip(values, -32768, 32767).astype(np.int16), warnings


def require_volume(shape: Sequence[int]) -> tuple[int, int, int]:
    """Drop trailing axes of length 1 and insist on three.

    Raises:
        VolumeError: ``volume.not_3d``.
    """
    sizes = [int(n) for n in shape]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) != 3:
        raise VolumeError(
            "volume.not_3d", f"{' x '.join(map(str, sizes))} voxels, a volume has three axes"
        )
    return sizes[0], sizes[1], sizes[2]
