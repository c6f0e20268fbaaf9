"""Small stores that keep every clause of the format, and ways to break one of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from prect.cache.checks.validate import Fault, check_store
from prect.cache.format import (
    MISSING,
    BodyBox,
    SourceAttributes,
    StoreAttributes,
    chunk_grid,
    document_bytes,
    document_digest,
    file_digest,
    index_bytes,
)
from prect.cache.intensity import Intensity
from prect.cache.profile import Profile
from prect.cache.reader import StoreReader
from prect.cache.writer import StoreWriter
from prect.units import Triple, Vector
from tests.cache.stores import random_hu

SHAPE = (37, 20, 33)
INTENSITIES = {
    "hu": Intensity(),
    "hu10": Intensity(step=10),
    "window": Intensity.window(-175, 250),
}
PLAIN = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
Attributes = dict[str, Any]

SPACING_MM = (0.75, 1.5, 3.0)
"""x, y, z."""


def profile_of(chunk: Triple, levels: int, intensity: Intensity) -> Profile:
    """A profile of which everything but the layout is the default."""
    settings = {
        "name": "test",
        "harmonisation": {"spacing_mm": SPACING_MM},
        "intensity": intensity,
        "storage": {"chunk": chunk, "levels": levels},
    }
    return Profile.model_validate(settings)


def write_whole(
    path: Path,
    volume: NDArray[np.int16],
    *,
    chunk: Triple = (16, 16, 16),
    levels: int = 3,
    intensity: Intensity | None = None,
) -> StoreAttributes:
    """Write ``volume`` (z, y, x) as the store that build-cache would make of it."""
    profile = profile_of(chunk, levels, intensity or Intensity())
    x, y, z = SPACING_MM
    spacing: Vector = (z, y, x)
    percentiles = {
        f"{p:g}": int(np.percentile(volume, p, method="inverted_cdf"))
        for p in (0.5, 5, 50, 95, 99.5)
    }
    with StoreWriter(path) as writer:
        written = writer.write_levels(
            volume,
            spacing,
            chunk,
            profile.codec,
            levels,
            profile.intensity,
            coarse_codec=profile.coarse_codec,
        )
        attributes = StoreAttributes(
            format_version=1,
            dataset="made-up",
            case=path.name.removesuffix(".ome.zarr"),
            patient="0123456789abcdef",
            series="0123456789abcdef",
            source_digest="0123456789abcdef" * 2,
            made_from="0123456789abcdef",
            profile=profile.model_dump(mode="json"),
            profile_digest=profile.digest,
            affine=((x, 0, 0, -10), (0, y, 0, 20), (0, 0, z, 30), (0, 0, 0, 1)),
            source=SourceAttributes(
                format="nifti", bytes=1, shape=(1, 1, 1), spacing=(1, 1, 1), orientation="LPS"
            ),
            body_box=BodyBox(offset=(0, 1, 2), full_shape=(999, 999, 999)),
            hu_percentiles=percentiles,
            intensity=profile.intensity,
            levels=written,
            software={"prect": "0", "SimpleITK": "0", "numcodecs": "0"},
        )
        writer.commit(attributes)
    with StoreReader(path) as reader:
        return reader.attributes


def scan(shape: Triple, seed: int = 0) -> NDArray[np.int16]:
    """(z, y, x) HU of all values, and air at the low end of x."""
    hu = random_hu(shape, seed)
    hu[:, :, : shape[2] // 3] = -1000 + seed
    return hu


def files_of(store: Path) -> dict[str, bytes]:
    """Every file of a folder, by relative path."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def restore(store: Path, files: dict[str, bytes]) -> None:
    """Make the files of a store what they were."""
    for name, data in files.items():
        (store / name).write_bytes(data)


def sign(document: dict[str, Any]) -> bytes:
    """A group's document as bytes, with the digest that it must have if it can have one."""
    attributes = document["attributes"]
    prect = attributes.get("prect") if isinstance(attributes, dict) else None
    if isinstance(prect, dict):
        prect["digest"] = "0" * 32
        prect["digest"] = document_digest(document_bytes(document))
    return document_bytes(document)


def edit_group(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the group's document as a faulty writer would: with the right digest."""
    document = json.loads((store / "zarr.json").read_bytes())
    change(document)
    (store / "zarr.json").write_bytes(sign(document))


def edit_attributes(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change prect's attributes as a faulty writer would."""
    edit_group(store, lambda document: change(document["attributes"]["prect"]))


def edit_level(store: Path, level: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a level's document as a faulty writer would: with the right digests."""
    path = store / str(level) / "zarr.json"
    document = json.loads(path.read_bytes())
    change(document)
    data = document_bytes(document)
    path.write_bytes(data)
    edit_attributes(
        store, lambda prect: prect["levels"][level].update(array_digest=file_digest(data))
    )


def edit_shard(store: Path, level: int, data: bytes) -> None:
    """Put another shard in place, as a faulty writer would: with the right size and digest."""
    (store / str(level) / "c.0.0.0").write_bytes(data)
    entry = {"shard_bytes": len(data), "shard_digest": file_digest(data)}
    edit_attributes(store, lambda prect: prect["levels"][level].update(entry))


class Shard:
    """A shard taken apart: encoded inner chunks without their checksums, in C order."""

    def __init__(self, store: Path, level: int) -> None:
        with StoreReader(store) as reader:
            geometry = reader.levels[level]
        data = (store / str(level) / "c.0.0.0").read_bytes()
        length = index_bytes(chunk_grid(geometry.shape, geometry.chunk))
        table = np.frombuffer(data[-length:-4], dtype="<u8").reshape(-1, 2)
        self.frames = [data[offset : offset + n - 4] for offset, n in table.tolist()]

    def entries(self) -> list[tuple[int, int]]:
        """Offset and length of each chunk when they lie one behind the other."""
        entries, at = [], 0
        for frame in self.frames:
            entries.append((at, len(frame) + 4))
            at += len(frame) + 4
        return entries

    def data(self, entries: list[tuple[int, int]] | None = None) -> bytes:
        """The shard's bytes, with right checksums; its index as given, or as it must be."""
        chunks = b"".join(f + struct.pack("<I", google_crc32c.value(f)) for f in self.frames)
        table = np.array(entries or self.entries(), dtype="<u8").tobytes()
        return chunks + table + struct.pack("<I", google_crc32c.value(table))


def drop_chunk(store: Path, level: int, chunk: int) -> None:
    """Take an inner chunk out of the index of a shard, the index's checksum right again."""
    shard = Shard(store, level)
    entries = shard.entries()
    entries[chunk] = (MISSING, MISSING)
    (store / str(level) / "c.0.0.0").write_bytes(shard.data(entries))


def codes(faults: list[Fault]) -> set[str]:
    return {fault.code for fault in faults}


def both(store: Path) -> list[Fault]:
    """Faults that the quick check finds; the deep one must find them too."""
    quick, deep = check_store(store, deep=False), check_store(store, deep=True)
    assert set(quick) <= set(deep)
    return quick


def only_deep(store: Path) -> list[Fault]:
    """Faults that only the deep check finds."""
    assert check_store(store, deep=False) == []
    return check_store(store, deep=True)
