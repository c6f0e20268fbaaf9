"""What manifests say of stores: the row of one that is there, and what one must be made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prect.cache.reader import StoreReader
from prect.manifests.stores import CacheRow, made_from

ORIGIN_COLUMNS = (
    *("source_digest", "patient", "series", "slope", "intercept"),
    *("shape", "spacing", "orientation"),
)
"""Columns of the source manifest that `origin_of` needs."""


def origin_of(source: Mapping[str, Any]) -> str:
    """What `made_from` is of the store of a volume.

    Args:
        source: a row of the source manifest; `ORIGIN_COLUMNS` at least.
    """
    return made_from(
        source["source_digest"],
        source["patient"],
        source["series"],
        (source["slope"], source["intercept"]),
        source["shape"],
        source["spacing"],
        source["orientation"],
    )


def stored_row(store: Path) -> CacheRow:
    """The manifest row of a committed store, from its own attributes.

    Raises:
        StoreError: there is no readable store.
        OSError: its files cannot be counted.
    """
    attributes = StoreReader(store).attributes
    finest, intensity = attributes.levels[0], attributes.intensity
    return CacheRow(
        dataset=attributes.dataset,
        case=attributes.case,
        patient=attributes.patient,
        series=attributes.series,
        source_digest=attributes.source_digest,
        profile=attributes.profile_digest,
        shape=finest.shape,
        spacing=finest.spacing,
        levels=len(attributes.levels),
        bytes=store_bytes(store),
        source_bytes=attributes.source.bytes,
        made_from=attributes.made_from,
        intensity=str(intensity),
        hu_low=intensity.low,
        hu_high=intensity.high,
        hu_step=intensity.step,
        digest=attributes.digest,
    )


def store_bytes(path: Path) -> int:
    """Bytes of all files of a store."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
