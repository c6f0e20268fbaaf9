"""What the manifests of a data set hold of its volumes, and taking some of them out.

The order of the writes matters, since a process may be killed between any two. The history
comes first, so that nothing goes unnoted; then the cache manifest, which training looks at; the
source manifest is where a removal becomes final.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prect.errors import ManifestError
from prect.files import sync_folder
from prect.manifests.commit import decide_without, record, require_test_sets
from prect.manifests.sources import SOURCES_SCHEMA, read_source_table, usable
from prect.manifests.stores import (
    read_cache_table,
    read_quarantine,
    write_cache_table,
    write_quarantine,
)
from prect.workspace import Workspace

REMOVED_MARK = ".removed-"
"""Part of the hidden name of what is being deleted."""
_REMOVED = "removed"
_ASIDE = r"\.(\d+\.tmp|removed-[0-9a-f]+)"
_NAMES = r"(sources|cache|quarantine)\.parquet|card\.yaml|history\.jsonl|profile\.json"
_MANIFEST = re.compile(rf"({_NAMES})|\.({_NAMES}){_ASIDE}")
"""Files that a manifests folder may hold, and their hidden forms."""
_PART = re.compile(rf"\d+\.parquet|\.\d+\.parquet{_ASIDE}")
"""The same of a journal."""

Changes = dict[str, dict[str, int]]
"""By data set, how many rows change their verdict, and how (``duplicate -> accepted``)."""


def hidden_name(path: Path) -> Path:
    """A name beside ``path`` for it while it is being deleted."""
    return path.with_name(f".{path.name}{REMOVED_MARK}{secrets.token_hex(4)}")


@dataclass(frozen=True)
class Rows:
    """The rows of a data set's manifests by case id."""

    sources: tuple[str, ...] = ()
    usable: frozenset[str] = frozenset()
    """Of the source manifest, those that build-cache takes."""
    cached: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the store, by case."""
    quarantined: tuple[str, ...] = ()


def read_rows(workspace: Workspace, dataset: str, *, tolerant: bool = False) -> Rows:
    """The rows of a data set; manifests that are not there count as empty.

    Args:
        workspace: the workspace.
        dataset: name of the data set.
        tolerant: count a damaged manifest as empty too, for whoever deletes it anyway.

    Raises:
        ManifestError: a manifest is damaged.
    """
    rows: dict[str, Any] = {}
    for read in (_source_rows, _cache_rows, _quarantine_rows):
        try:
            rows.update(read(workspace, dataset))
        except ManifestError:
            if not tolerant:
                raise
    return Rows(**rows)


def _source_rows(workspace: Workspace, dataset: str) -> dict[str, Any]:
    path = workspace.sources(dataset)
    if not path.exists():
        return {}
    table = read_source_table(path, ["case", "verdict"])
    taken = table["case"].filter(pa.array(usable(table))).to_pylist()
    return {"sources": tuple(table["case"].to_pylist()), "usable": frozenset(taken)}


def _cache_rows(workspace: Workspace, dataset: str) -> dict[str, Any]:
    path = workspace.cache_manifest(dataset)
    if not path.exists():
        return {}
    table = read_cache_table(path, ["case", "bytes"])
    pairs = zip(table["case"].to_pylist(), table["bytes"].to_pylist(), strict=True)
    return {"cached": dict(pairs)}


def _quarantine_rows(workspace: Workspace, dataset: str) -> dict[str, Any]:
    rows = read_quarantine(workspace.quarantine(dataset))
    return {"quarantined": tuple(row.case for row in rows)}


def take_out(
    workspace: Workspace,
    dataset: str,
    cases: Collection[str],
    summary: Mapping[str, Any],
    *,
    stores_only: bool,
) -> Changes:
    """Take volumes out of the manifests of a data set, and decide the workspace without them.

    The caller holds the locks ``manifests``, ``build-cache`` and that of the data set's ingest.
    Done again after it was cut short, it ends in the same state; the history may then tell of the
    removal twice.

    Args:
        workspace: the workspace.
        dataset: name of the data set.
        cases: ids of the volumes; some or all may be gone already.
        summary: what the history is to say of it; its ``cases`` are those not gone already.
        stores_only: take out the rows of stores alone; what was judged of the sources stays.

    Returns:
        What changes for the volumes that stay, in all data sets.

    Raises:
        ManifestError: a manifest is damaged, or a test set that is kept out would be gone.
    """
    taken = SOURCES_SCHEMA.empty_table()
    path = workspace.sources(dataset)
    if not stores_only and path.exists():
        require_test_sets(workspace, dataset, cases)
        rows = read_source_table(path)
        taken = rows.filter(_is_one_of(rows, cases))
    if summary["cases"]:
        record(workspace, dataset, summary, taken, _REMOVED)
    _drop_cache_rows(workspace, dataset, cases)
    if stores_only:
        return {}
    failed = read_quarantine(workspace.quarantine(dataset))
    kept = [row for row in failed if row.case not in cases]
    if len(kept) < len(failed):
        write_quarantine(workspace.quarantine(dataset), kept)
    changes = decide_without(workspace, dataset, cases, write=True)
    _record_changes(workspace, dataset, changes)
    return changes


def take_out_all(workspace: Workspace, dataset: str) -> Changes:
    """Make a data set unknown to the workspace, and decide the others without it.

    What is left of its manifests folder, `delete_manifests` deletes; until then it shows that a
    removal has begun. The caller holds the locks that `take_out` names.

    Returns:
        What changes for the volumes of other data sets.

    Raises:
        ManifestError: it is a test set that is kept out, or another data set's manifest is damaged.
    """
    require_test_sets(workspace, dataset, None)
    path = workspace.sources(dataset)
    if path.parent.is_symlink():  # what it points to is not touched
        changes = decide_without(workspace, dataset, None, write=True)
        _record_changes(workspace, dataset, changes)
        path.parent.unlink()
        return changes
    # First: stores without a source manifest are taken as they are, duplicates and all.
    workspace.cache_manifest(dataset).unlink(missing_ok=True)
    workspace.quarantine(dataset).unlink(missing_ok=True)
    if path.exists():
        path.rename(hidden_name(path))
        sync_folder(path.parent)
    changes = decide_without(workspace, dataset, None, write=True)
    _record_changes(workspace, dataset, changes)
    return changes


def delete_manifests(workspace: Workspace, dataset: str) -> list[Path]:
    """Delete what `take_out_all` left: card, history, journal; return what is not of our making.

    The folder goes when it is empty.
    """
    folder = workspace.sources(dataset).parent
    if not folder.is_dir():
        return []
    return [*_delete_folder(workspace.journal(dataset), _PART), *_delete_folder(folder, _MANIFEST)]


def _delete_folder(folder: Path, ours: re.Pattern[str]) -> list[Path]:
    """Delete our files in a folder, and the folder if it is empty then; return what is left."""
    if folder.is_symlink():
        folder.unlink()  # never what lies elsewhere
    if not folder.is_dir():
        return []
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink()
    kept = sorted(folder.iterdir())
    if not kept:
        folder.rmdir()
    return kept


def removed_before(workspace: Workspace, dataset: str) -> Iterator[tuple[str, str]]:
    """Case id and source of volumes that the history says were removed.

    A removal that was cut short has taken them out of the manifests already, and is asked for
    again by the names that they had there.
    """
    path = workspace.history(dataset)
    if not path.exists():
        return
    removed: set[str] = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        if entry["event"] == _REMOVED:
            removed.update(entry["cases"])
            yield from ((case, case) for case in entry["cases"])
        elif entry["event"] == "taken away" and entry["row"]["case"] in removed:
            yield entry["row"]["case"], entry["row"]["source"]


def _record_changes(workspace: Workspace, dataset: str, changes: Changes) -> None:
    for name, counts in changes.items():
        if name != dataset:
            summary = {"because_of": dataset, "changes": counts}
            record(workspace, name, summary, SOURCES_SCHEMA.empty_table(), "decided again")


def _drop_cache_rows(workspace: Workspace, dataset: str, cases: Collection[str]) -> None:
    path = workspace.cache_manifest(dataset)
    if not path.exists():
        return
    table = read_cache_table(path)
    kept = table.filter(pc.invert(_is_one_of(table, cases)))
    if len(kept) < len(table):
        write_cache_table(path, kept)


def _is_one_of(table: pa.Table, cases: Collection[str]) -> pa.ChunkedArray:
    """(N,) whether the row is of one of these cases."""
    return pc.is_in(table["case"], pa.array(sorted(cases), pa.string()))
