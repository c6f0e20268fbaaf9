"""What there must be of a data set: its stores, its cache manifest, and what both are made from.

Names and columns, no store is opened: 160,000 volumes take some tens of megabytes.
"""

from __future__ import annotations

import fcntl
import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from prect.cache.profile import Profile, read_profile
from prect.cache.rows import ORIGIN_COLUMNS, origin_of
from prect.errors import ConfigError, ManifestError, WorkspaceError
from prect.manifests.cases import known_datasets
from prect.manifests.parquet import stream_batches
from prect.manifests.sources import SOURCES_SCHEMA, usable
from prect.manifests.stores import (
    CACHE_SCHEMA,
    CacheRow,
    cache_rows,
    read_cache_table,
)
from prect.workspace import STORE_SUFFIX, Workspace, check_name

_BATCH = 1024
_EXPECTED_COLUMNS = ["case", "verdict", *ORIGIN_COLUMNS]


class Manifest(StrEnum):
    """State of a data set's cache manifest."""

    WHOLE = "whole"
    MISSING = "missing"
    """There are stores, and what they were made from, and no manifest of them."""
    NONE = "none"
    """There are stores alone, as they are passed on; or nothing was ever built."""
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Expected:
    """What the cache manifest of a data set must list, from what stores are made from."""

    origins: dict[str, str] | None
    """`made_from` of every usable volume by case; ``None`` without a source manifest."""
    profile: Profile | None
    """Profile of the last build; ``None`` when that is not known."""
    largest: tuple[int, ...] = ()
    """Shape of the largest of these volumes, axes as in its file."""

    def lists(self, row: CacheRow) -> bool:
        """Whether build-cache would keep the store, and so has it in the manifest."""
        if self.profile is not None and row.profile != self.profile.digest:
            return False
        return self.origins is None or self.origins.get(row.case) == row.made_from

    def is_orphan(self, case: str) -> bool:
        """Whether the volume is not usable, or not any more."""
        return self.origins is not None and case not in self.origins


@dataclass
class Listing:
    """The stores of one data set that there are, or must be."""

    dataset: str | None
    folder: Path
    cases: list[str]
    """Sorted; of the stores on disk and of the rows of the manifest."""
    on_disk: set[str]
    table: pa.Table | None
    """The cache manifest, sorted by case, when it is whole."""
    manifest: Manifest
    expected: Expected

    outside: Path | None = None
    """The one store, where it does not lie in a workspace."""
    building: bool = False
    """Whether a build was at work, so that stores may have no row yet."""

    def store(self, case: str) -> Path:
        """Folder of a store."""
        return self.outside or self.folder / f"{case}{STORE_SUFFIX}"

    def jobs(self, size: int) -> Iterator[tuple[list[Path], list[tuple[CacheRow, ...]] | None]]:
        """All stores, ``size`` at a time, with their rows; ``None`` when there is no manifest."""
        listed = [] if self.table is None else self.table["case"].to_pylist()
        for at in range(0, len(self.cases), size):
            cases = self.cases[at : at + size]
            rows = None
            if self.table is not None:
                first, end = bisect_left(listed, cases[0]), bisect_right(listed, cases[-1])
                known = cache_rows(self.table.slice(first, end - first))
                of = {case: tuple(group) for case, group in groupby(known, lambda row: row.case)}
                rows = [of.get(case, ()) for case in cases]
            yield [self.store(case) for case in cases], rows


def is_building(workspace: Workspace) -> bool:
    """Whether somebody writes stores in a workspace; nothing is written to find out."""
    try:
        with workspace.lock_file("build-cache").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (BlockingIOError, PermissionError):  # a file of another user is taken for locked
        return True
    return False


def list_stores(
    workspace: Workspace, datasets: Sequence[str] = (), *, building: bool = False
) -> list[Listing]:
    """What there is to verify.

    Args:
        workspace: where manifests and stores lie; either may be missing.
        datasets: names; all that have a manifest or a store when left out.
        building: whether somebody else is at work; see `is_building`.

    Raises:
        ManifestError: there is no data set of that name, or its source manifest is damaged.
    """
    known = known_datasets(workspace)
    for dataset in datasets:
        check_name(dataset, "dataset")
        if dataset not in known:
            names = ", ".join(known) or "none"
            raise ManifestError(f"no data set {dataset!r} in {workspace.root} (there are: {names})")
    wanted = dict.fromkeys(datasets or known)
    return [_list_dataset(workspace, name, building=building) for name in wanted]


def _list_dataset(workspace: Workspace, dataset: str, *, building: bool) -> Listing:
    on_disk = workspace.stored_cases(dataset)
    table, manifest = _cache_manifest(workspace, dataset, on_disk)
    cases = set(on_disk)
    if table is not None:
        cases.update(table["case"].to_pylist())
    return Listing(
        dataset=dataset,
        folder=workspace.dataset_cache(dataset),
        cases=sorted(cases),
        on_disk=on_disk,
        table=table,
        manifest=manifest,
        expected=_expected(workspace, dataset),
        building=building,
    )


def list_outside(store: Path) -> Listing:
    """A store that lies outside of a workspace, without any manifest."""
    path = store.resolve()
    return Listing(
        dataset=None,
        folder=path.parent,
        cases=[path.name.removesuffix(STORE_SUFFIX)],
        on_disk=set(),
        table=None,
        manifest=Manifest.NONE,
        expected=Expected(None, None),
        outside=path,
    )


def cases_by_root(
    workspace: Workspace, dataset: str, cases: Collection[str]
) -> dict[str, list[str]]:
    """Cases of the source manifest by the folder that their files lie in."""
    roots: dict[str, list[str]] = {}
    if cases:
        wanted = pa.array(sorted(cases), pa.string())
        path = workspace.sources(dataset)
        for batch in stream_batches(path, SOURCES_SCHEMA, ["case", "root"], _BATCH):
            for row in batch.filter(pc.is_in(batch["case"], wanted)).to_pylist():
                roots.setdefault(row["root"], []).append(row["case"])
    return roots


def known_profile(workspace: Workspace, dataset: str) -> Profile | None:
    """Profile of the last build; ``None`` when that is not known, or not of this release."""
    try:
        return read_profile(workspace.profile(dataset))
    except ConfigError:
        return None


def _cache_manifest(
    workspace: Workspace, dataset: str, on_disk: set[str]
) -> tuple[pa.Table | None, Manifest]:
    path = workspace.cache_manifest(dataset)
    if not path.exists():
        built_here = on_disk and workspace.sources(dataset).exists()
        return None, Manifest.MISSING if built_here else Manifest.NONE
    try:
        table = read_cache_table(path).cast(CACHE_SCHEMA)
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            return None, Manifest.DAMAGED
        table = table.sort_by("case")
        for case in table["case"].to_pylist():
            check_name(case, "case")
    except (ManifestError, WorkspaceError, pa.ArrowException, UnicodeDecodeError):
        return None, Manifest.DAMAGED
    return table, Manifest.WHOLE


def _expected(workspace: Workspace, dataset: str) -> Expected:
    profile = known_profile(workspace, dataset)
    path = workspace.sources(dataset)
    if not path.exists():
        return Expected(None, profile)
    origins: dict[str, str] = {}
    largest: tuple[int, ...] = ()
    for batch in stream_batches(path, SOURCES_SCHEMA, _EXPECTED_COLUMNS, _BATCH):
        for row in batch.filter(pa.array(usable(batch))).to_pylist():
            origins[row["case"]] = origin_of(row)
            largest = max(largest, tuple(row["shape"]), key=math.prod)
    return Expected(origins, profile, largest)
