"""Whether the attributes of a store can all be true at once: what no digest would find.

A digest says that a document is as it was written; this says that it was written right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from prect.cache.format import (
    StoreAttributes,
    affine_of,
    chunk_grid,
    index_bytes,
    unpack_occupancy,
)
from prect.cache.histogram import PERCENTILE_KEYS
from prect.cache.intensity import Intensity
from prect.cache.profile import profile_digest
from prect.errors import StoreError, WorkspaceError
from prect.units import HU_MAX, HU_MIN
from prect.workspace import check_name

_SOFTWARE = frozenset({"prect", "SimpleITK", "numcodecs"})
_LARGEST_CHUNK = 2**31 - 1 - 16
"""Bytes that one blosc frame holds at most."""
_LONGEST_AXIS = 2**31 - 1
"""Voxels."""
_HEX = re.compile(r"[0-9a-f]+")
_OPPOSITES = ("LR", "PA", "IS")


def contradictions(attributes: StoreAttributes) -> list[str]:
    """What cannot be true of the attributes: one sentence each, empty when all is well."""
    found = [*_geometry(attributes)]
    if found:  # the rest reckons with sizes
        return found
    return [
        *_identity(attributes),
        *_affine(attributes),
        *_body_box(attributes),
        *_source(attributes),
        *_contents(attributes),
        *_profile(attributes),
    ]


def _geometry(attributes: StoreAttributes) -> Iterator[str]:
    levels = attributes.levels
    if not levels:
        yield "there are no levels"
    itemsize = attributes.intensity.dtype.itemsize
    for number, level in enumerate(levels):
        where = f"level {number}"
        if level.path != str(number):
            yield f"{where} has the path {level.path!r}"
        if not all(1 <= n <= _LONGEST_AXIS for n in level.shape):
            yield f"{where} has the shape {level.shape}"
        if min(level.chunk) < 1 or math.prod(level.chunk) * itemsize > _LARGEST_CHUNK:
            yield f"{where} has inner chunks of {level.chunk} voxels"
        if not all(math.isfinite(mm) and mm > 0 for mm in level.spacing):
            yield f"{where} has the spacing {level.spacing} mm"
    for number, (finer, level) in enumerate(pairwise(levels), 1):
        shape = tuple(-(-n // 2) for n in finer.shape)
        if level.shape != shape:
            yield f"level {number} has the shape {level.shape}, {shape} is due"
        spacing = tuple(2 * mm for mm in finer.spacing)
        if level.spacing != spacing:
            yield f"level {number} has the spacing {level.spacing} mm, {spacing} mm is due"


def _identity(attributes: StoreAttributes) -> Iterator[str]:
    for name, what in ((attributes.dataset, "data set"), (attributes.case, "case")):
        try:
            check_name(name, what)
        except WorkspaceError as error:
            yield str(error)
    digests = {
        "source_digest": (attributes.source_digest, 32),
        "made_from": (attributes.made_from, 16),
        "profile_digest": (attributes.profile_digest, 16),
    }
    for level in attributes.levels:
        digests[f"shard_digest of level {level.path}"] = (level.shard_digest, 32)
        digests[f"array_digest of level {level.path}"] = (level.array_digest, 32)
    for name, (digest, length) in digests.items():
        if len(digest) != length or not _HEX.fullmatch(digest):
            yield f"{name} is {digest!r}, {length} hexadecimal digits are due"
    missing = sorted(_SOFTWARE - attributes.software.keys())
    if missing:
        yield f"software does not name {', '.join(missing)}"


def _affine(attributes: StoreAttributes) -> Iterator[str]:
    affine = affine_of(attributes)
    diagonal = (*attributes.levels[0].spacing[::-1], 1.0)
    if not np.isfinite(affine).all():
        yield "the affine holds a number that is not finite"
    elif not np.allclose(affine[:, :3], np.diag(diagonal)[:, :3], rtol=0, atol=1e-6):
        yield (
            f"the affine {affine[:3, :3].tolist()} is not the diagonal of the spacing "
            f"{diagonal[:3]} mm (x, y, z)"
        )
    elif affine[3, 3] != 1:
        yield f"the last row of the affine ends with {affine[3, 3]}, not 1"


def _body_box(attributes: StoreAttributes) -> Iterator[str]:
    box, shape = attributes.body_box, attributes.levels[0].shape
    for offset, size, full in zip(box.offset, shape, box.full_shape, strict=True):
        if offset < 0 or offset + size > full:
            yield (
                f"the body box at {box.offset} with the shape {shape} is not inside "
                f"the field of view of {box.full_shape} voxels"
            )
            return


def _source(attributes: StoreAttributes) -> Iterator[str]:
    source = attributes.source
    if min(source.shape) < 1 or not all(math.isfinite(mm) and mm > 0 for mm in source.spacing):
        yield f"the source has the shape {source.shape} and the spacing {source.spacing} mm"
    if not (math.isfinite(source.slope) and source.slope and math.isfinite(source.intercept)):
        yield f"the source has the slope {source.slope} and the intercept {source.intercept}"
    if source.bytes < 1:
        yield f"the source has {source.bytes} bytes"
    axes = [sum(letter in pair for letter in source.orientation) for pair in _OPPOSITES]
    if axes != [1, 1, 1] or len(source.orientation) != 3:
        yield f"the source has the orientation {source.orientation!r}"


def _contents(attributes: StoreAttributes) -> Iterator[str]:
    percentiles = attributes.hu_percentiles
    values = [percentiles.get(key, HU_MIN - 1) for key in PERCENTILE_KEYS]
    ordered = values == sorted(values) and values[0] >= HU_MIN and values[-1] <= HU_MAX
    if len(percentiles) != len(PERCENTILE_KEYS) or not ordered:
        yield f"the HU percentiles are {percentiles}"
    for number, level in enumerate(attributes.levels):
        least = index_bytes(chunk_grid(level.shape, level.chunk))
        if level.shard_bytes <= least:
            yield f"level {number} has a shard of {level.shard_bytes} bytes, its index has {least}"
        try:
            unpack_occupancy(level)
        except StoreError as error:
            yield str(error)


def _profile(attributes: StoreAttributes) -> Iterator[str]:
    """The profile is what the store was made with; an entry that it lacks is not compared."""
    profile = attributes.profile
    digest = profile_digest(profile)
    if digest != attributes.profile_digest:
        yield f"profile_digest is {attributes.profile_digest}, that of the profile is {digest}"
    intensity, finest = attributes.intensity, attributes.levels[0]
    codec = "codec" if intensity == Intensity() else "dense_codec"
    expected: dict[tuple[str, ...], object] = {
        ("intensity",): intensity.model_dump(mode="json"),
        ("storage", codec): finest.codec.model_dump(mode="json"),
        ("storage", "levels"): len(attributes.levels),
        ("harmonisation", "spacing_mm"): list(finest.spacing[::-1]),
    }
    for path, value in expected.items():
        asked = entry(profile, *path)
        if asked not in (None, value):
            yield f"the profile asks for {'.'.join(path)} {asked}, the attributes say {value}"
    asked = entry(profile, "storage", "chunk")
    dense = entry(profile, "storage", "dense_codec")
    for level in attributes.levels[1:]:
        found = level.codec.model_dump(mode="json")
        if dense not in (None, found):
            yield f"the profile asks for storage.dense_codec {dense}, a coarser level has {found}"
    chunks = [list(level.chunk) for level in attributes.levels]
    if asked is not None and any(chunk != asked for chunk in chunks):
        yield f"the profile asks for inner chunks of {asked} voxels, the levels have {chunks}"


def entry(profile: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of nested mappings; ``None`` where there is none."""
    value: Any = profile
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
