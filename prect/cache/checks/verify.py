"""Verifying data sets: every store against the format, the cache manifest against the stores.

Workers are given some stores at a time and return what is wrong alone, so that 160,000 sound
stores cost the driver their names and the columns of their manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from prect.cache.checks.inventory import Listing, Manifest
from prect.cache.checks.validate import Fault, check_store
from prect.cache.hidden import Mark, parse_hidden
from prect.cache.rows import stored_row
from prect.errors import StoreError
from prect.manifests.stores import CacheRow, cache_table
from prect.retries import run_retrying
from prect.workspace import STORE_SUFFIX

if TYPE_CHECKING:
    from distributed import Client

_STORES_A_JOB = 64
_JOBS_A_WORKER = 4
"""At least, as far as there are stores."""
_FAULTS_TOLD = 8
"""Faults that are kept of one store; the others are counted."""
_TRIES = 3
"""Times that a store is looked at which is replaced meanwhile."""


class Kind(StrEnum):
    """What is wrong with a store, as far as a remedy goes."""

    DAMAGED = "damaged"
    MISSING = "missing"
    """The manifest has a row, and there is no store."""
    DRIFTED = "drifted"
    """The store is whole; its row is missing or says something else."""
    OTHER_VERSION = "other version"
    UNCHECKED = "unchecked"
    """Its worker died."""


@dataclass(frozen=True)
class Broken:
    """A store with faults."""

    store: Path
    faults: tuple[Fault, ...]
    """The first few."""
    count: int
    """Of all faults."""
    codes: frozenset[str]
    """Of all faults."""
    row: CacheRow | None = None
    """What the row must be, of a store that is whole itself."""

    @classmethod
    def by(cls, store: Path, faults: Sequence[Fault], row: CacheRow | None = None) -> Broken:
        """A store with all of its faults."""
        codes = frozenset(fault.code for fault in faults)
        return cls(store, tuple(faults[:_FAULTS_TOLD]), len(faults), codes, row)

    @property
    def case(self) -> str:
        return self.store.name.removesuffix(STORE_SUFFIX)

    @property
    def kind(self) -> Kind:
        if self.row is not None:
            return Kind.DRIFTED
        kinds = {
            "store.missing": Kind.MISSING,
            "store.version": Kind.OTHER_VERSION,
            "store.worker_died": Kind.UNCHECKED,
        }
        return kinds.get(self.faults[0].code, Kind.DAMAGED)


@dataclass(frozen=True)
class Batch:
    """Some stores of one data set: what a worker is given."""

    listing: int
    """Number of the listing that they are from."""
    dataset: str | None
    """``None`` for stores that lie outside of a workspace."""
    stores: Sequence[Path]
    rows: Sequence[tuple[CacheRow, ...]] | None
    """Rows of the cache manifest for each store; ``None`` when there is no manifest."""
    deep: bool
    collect: bool
    """Whether the rows of whole stores are wanted."""


@dataclass(frozen=True)
class Checked:
    """What a worker found."""

    stores: int
    bytes: int
    """Of the whole ones."""
    broken: tuple[Broken, ...]
    rows: tuple[CacheRow, ...]
    """Of the whole ones, when they are wanted."""


def check_batch(batch: Batch) -> Checked:
    """Check some stores; what a worker runs."""
    broken, rows, size = [], [], 0
    for number, store in enumerate(batch.stores):
        listed = None if batch.rows is None else batch.rows[number]
        found, row = _check(store, batch.dataset, listed, deep=batch.deep)
        if found is not None:
            broken.append(found)
        if row is not None:
            size += row.bytes
            if batch.collect:
                rows.append(row)
    return Checked(len(batch.stores), size, tuple(broken), tuple(rows))


def _check(
    store: Path, dataset: str | None, listed: tuple[CacheRow, ...] | None, *, deep: bool
) -> tuple[Broken | None, CacheRow | None]:
    """What is wrong with a store and its rows; and its row as it must be, of a whole store."""
    faults: list[Fault] = []
    for _ in range(_TRIES):
        before = _identity(store)
        faults = check_store(store, deep=deep)
        if not faults:
            try:
                row = stored_row(store)
            except (StoreError, OSError) as error:
                faults = [Fault("store.unreadable", f"it cannot be read again: {error}")]
        # A build may have put another store in its place meanwhile.
        if not faults or before == _identity(store):
            break
    if not faults and dataset not in (None, row.dataset):
        detail = f"the attributes say data set {row.dataset!r}, the store lies in {dataset!r}"
        faults = [Fault("store.name", detail)]
    if faults:
        return Broken.by(store, faults), None
    if listed is None or listed == (row,):
        return None, row
    return Broken.by(store, [_drift(listed, row)], row), row


def _identity(store: Path) -> object:
    try:
        status = store.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _drift(listed: tuple[CacheRow, ...], row: CacheRow) -> Fault:
    if not listed:
        return Fault("store.no_row", "the cache manifest has no row for it")
    if len(listed) > 1:
        return Fault("store.row_differs", f"the cache manifest has {len(listed)} rows for it")
    names = [f.name for f in fields(row) if getattr(row, f.name) != getattr(listed[0], f.name)]
    told = "; ".join(
        f"{name} is {getattr(listed[0], name)!r}, the store says {getattr(row, name)!r}"
        for name in names[:3]
    )
    more = f"; and {len(names) - 3} more columns" if len(names) > 3 else ""
    return Fault("store.row_differs", told + more)


@dataclass
class Verification:
    """What was found in one data set: checked = whole + broken."""

    listing: Listing
    checked: int = 0
    bytes: int = 0
    """Of the whole stores."""
    broken: list[Broken] = field(default_factory=list)
    """By case."""
    stale: int = 0
    """Whole stores that build-cache would build again, and so are in no manifest."""
    not_yet_listed: int = 0
    """Whole stores without a row while a build is at work: it lists them as it goes on."""
    orphans: int = 0
    """Stores whose volume is not usable any more; they are checked like others."""
    half_written: int = 0
    set_aside: int = 0
    """Stores that were set aside by a repair, now or before."""
    tables: list[pa.Table] = field(default_factory=list)
    """Rows of the whole stores that the manifest must list, when they are wanted."""

    @property
    def whole(self) -> int:
        return self.checked - len(self.broken)

    @property
    def kinds(self) -> dict[Kind, int]:
        """Number of broken stores of each kind, zero included."""
        counts = Counter(broken.kind for broken in self.broken)
        return {kind: counts[kind] for kind in Kind}

    @property
    def sound(self) -> bool:
        """Whether nothing is broken, the manifest included."""
        return not self.broken and self.manifest_sound

    @property
    def manifest_sound(self) -> bool:
        """Whether the manifest is as it must be; that of a first build is written by and by."""
        if self.listing.building and self.listing.manifest is Manifest.MISSING:
            return True
        return self.listing.manifest in (Manifest.WHOLE, Manifest.NONE)

    def add(self, checked: Checked) -> None:
        """Count what a worker found."""
        expected = self.listing.expected
        self.checked += checked.stores
        self.bytes += checked.bytes
        for broken in checked.broken:
            # A store that a build would replace has no row, and misses none.
            unlisted = broken.row is not None and broken.faults[0].code == "store.no_row"
            if unlisted and broken.row is not None and not expected.lists(broken.row):
                self.stale += not expected.is_orphan(broken.case)
            elif unlisted and self.listing.building:
                self.not_yet_listed += 1
            else:
                self.broken.append(broken)
        rows = [row for row in checked.rows if expected.lists(row)]
        if rows:
            self.tables.append(cache_table(rows))

    def count_surroundings(self) -> None:
        """Count what lies beside the stores."""
        listing = self.listing
        if listing.dataset is None:
            return
        if listing.building and listing.manifest is Manifest.MISSING:
            self.not_yet_listed = self.whole
        self.orphans = sum(map(listing.expected.is_orphan, listing.on_disk))
        hidden = (parse_hidden(path.name) for path in listing.folder.glob(".*"))
        marks = Counter(parsed[1] for parsed in hidden if parsed is not None)
        self.half_written = marks[Mark.TEMPORARY]
        self.set_aside = marks[Mark.BROKEN]


Progress = Callable[[Checked], None]


def verify(
    listings: Sequence[Listing],
    client: Client | None,
    *,
    deep: bool,
    collect: bool = False,
    on_batch: Progress = lambda _: None,
) -> list[Verification]:
    """Check every store and every row of some data sets.

    Args:
        listings: what there must be.
        client: Dask client; without one this process does it, as is quicker for a few stores.
        deep: read and decode every byte; else documents, sizes and indexes.
        collect: keep the rows of whole stores, to write manifests from them.
        on_batch: called with what each job found.

    Returns:
        What was found, for each listing.
    """
    found = [Verification(listing) for listing in listings]
    workers = 1 if client is None else max(1, len(client.nthreads()))
    stores = sum(len(listing.cases) for listing in listings)
    size = max(1, min(_STORES_A_JOB, stores // (_JOBS_A_WORKER * workers)))
    batches = _batches(listings, size, deep=deep, collect=collect)
    for batch, checked in _run(batches, client):
        found[batch.listing].add(checked)
        on_batch(checked)
    for each in found:
        each.broken.sort(key=lambda broken: broken.case)
        each.count_surroundings()
    return found


def _batches(
    listings: Sequence[Listing], size: int, *, deep: bool, collect: bool
) -> Iterator[Batch]:
    for number, listing in enumerate(listings):
        for stores, rows in listing.jobs(size):
            yield Batch(number, listing.dataset, stores, rows, deep, collect)


def _run(batches: Iterable[Batch], client: Client | None) -> Iterator[tuple[Batch, Checked]]:
    if client is None:
        yield from ((batch, check_batch(batch)) for batch in batches)
        return
    for batch, checked in run_retrying(client, check_batch, batches, split=_singly):
        yield batch, checked or _unchecked(batch)


def _singly(batch: Batch) -> Iterator[Batch]:
    for number, store in enumerate(batch.stores):
        rows = None if batch.rows is None else [batch.rows[number]]
        yield replace(batch, stores=[store], rows=rows)


def _unchecked(batch: Batch) -> Checked:
    fault = Fault("store.worker_died", "the worker died more than once, memory may be short")
    return Checked(1, 0, (Broken.by(batch.stores[0], [fault]),), ())
