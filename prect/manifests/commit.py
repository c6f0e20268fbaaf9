"""Putting a judged data set into the workspace: duplicates, exclusions, history.

A new data set can make a volume of an older one a duplicate, so the manifests of all data
sets are decided together, each time one of them changes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from prect import __version__
from prect.errors import ManifestError
from prect.manifests.cards import Card, load_card, write_card
from prect.manifests.duplicates import Policy, resolve
from prect.manifests.parquet import write_whole
from prect.manifests.sources import (
    SOURCES_SCHEMA,
    in_order,
    read_source_table,
    write_sources,
)
from prect.workspace import Workspace

_DECIDED = ("verdict", "code", "reason", "duplicate_of")
"""Columns that are decided for all data sets together."""
_LEFT_OUT = {"root", "members", "state", "rules"}
"""Columns that no decision looks at; they need not be read for that."""
_FORGOTTEN = {"sketch", "members"}
"""Columns that history does without, since they are large and can be made again."""


def resolved(workspace: Workspace, dataset: str, table: pa.Table, card: Card) -> pa.Table:
    """The rows of one data set with the verdicts that the whole workspace gives them.

    Nothing is written.
    """
    tables = _tables(workspace, without=dataset) | {dataset: table}
    policies = {name: _policy(workspace, name) for name in tables if name != dataset}
    policies[dataset] = _policy_of(card)
    return resolve(tables, policies, excluded_benchmarks(workspace))[dataset]


def commit(workspace: Workspace, dataset: str, table: pa.Table, card: Card) -> pa.Table:
    """Write the manifest of one data set, its card, and whatever changes in other sets.

    Returns:
        The rows of the data set with the verdicts in force.
    """
    with workspace.lock("manifests", wait=True):
        others = _tables(workspace, without=dataset)
        policies = {name: _policy(workspace, name) for name in others}
        decided = resolve(
            others | {dataset: table},
            policies | {dataset: _policy_of(card)},
            excluded_benchmarks(workspace),
        )
        write_card(workspace.card(dataset), card)
        write_sources(workspace.sources(dataset), decided[dataset])
        _write_changes(workspace, others, decided)
    return decided[dataset]


def decide_without(
    workspace: Workspace, dataset: str, cases: Collection[str] | None, *, write: bool
) -> dict[str, dict[str, int]]:
    """Decide all data sets as if some volumes of one had never been found.

    What was a copy of them, or gave way to them in a study, may be used after that.

    Args:
        workspace: the workspace; who writes holds its lock ``manifests``.
        dataset: the data set that they leave; it may have lost them already, or be gone.
        cases: ids of the volumes; ``None`` for all of them, and the manifest is left alone.
        write: take the rows out and write what follows; else only tell.

    Returns:
        By data set, how many of the rows that stay change their verdict, and how
        (``duplicate -> accepted``).

    Raises:
        ManifestError: a manifest is damaged, or a test set that is kept out would be gone.
    """
    before = _tables(workspace, without=dataset if cases is None else "")
    if cases is not None and dataset in before:
        before[dataset] = _rows_without(before[dataset], cases)
    policies = {name: _policy(workspace, name) for name in before}
    decided = resolve(before, policies, excluded_benchmarks(workspace))
    if write:
        if cases is not None and dataset in before:
            whole = read_source_table(workspace.sources(dataset))
            kept = _rows_without(whole, cases)
            if len(kept) < len(whole):
                write_sources(workspace.sources(dataset), kept)
        _write_changes(workspace, before, decided)
    changes = {name: _changes(table, decided[name]) for name, table in before.items()}
    return {name: counts for name, counts in changes.items() if counts}


def _rows_without(table: pa.Table, cases: Collection[str]) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["case"], pa.array(sorted(cases), pa.string()))))


def _changes(before: pa.Table, after: pa.Table) -> dict[str, int]:
    pairs = zip(before["verdict"].to_pylist(), after["verdict"].to_pylist(), strict=True)
    return dict(Counter(f"{old} -> {new}" for old, new in pairs if old != new))


def require_test_sets(workspace: Workspace, dataset: str, cases: Collection[str] | None) -> None:
    """Refuse, before anything is written, to lose a test set that is kept out of pre-training.

    Args:
        workspace: the workspace.
        dataset: the data set that volumes leave.
        cases: ids of the volumes; ``None`` for all of them.

    Raises:
        ManifestError: a test set would have no rows left, so its copies could no longer be told.
    """
    excluded = [name.partition(":") for name in excluded_benchmarks(workspace)]
    splits = [split for test_set, _, split in excluded if test_set == dataset]
    if not splits:
        return
    left: set[str] = set()
    if cases is not None:
        table = read_source_table(workspace.sources(dataset), ["case", "split"])
        left = {"", *_rows_without(table, cases)["split"].to_pylist()}
    for split in splits:
        if split not in left:
            name = f"{dataset}:{split}" if split else dataset
            raise ManifestError(
                f"{name} is kept out of pre-training as a test set; without its rows, copies of it "
                "in other data sets would be let in unseen. If that is meant, run first: prect "
                f"ingest --include-benchmark {name}"
            )


def unchanged(workspace: Workspace, before: pa.Table, table: pa.Table, card: Card) -> bool:
    """Whether a data set is what its manifest says already, but for the order of its rows.

    Args:
        workspace: the workspace.
        before: the manifest, sorted and decided.
        table: rows as they were judged now.
        card: the card in force now.
    """
    path = workspace.card(card.name)
    if not path.exists() or load_card(path) != card or len(before) != len(table):
        return False
    columns = [name for name in SOURCES_SCHEMA.names if name not in _DECIDED]
    return bool(in_order(table).select(columns).equals(before.select(columns)))


def excluded_benchmarks(workspace: Workspace) -> list[str]:
    """``DATASET`` or ``DATASET:SPLIT`` of every test set that is kept out of pre-training."""
    path = workspace.excluded_benchmarks
    if not path.exists():
        return []
    names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ManifestError(f"{path} must hold a list of names; mend or delete it")
    return names


def set_excluded_benchmarks(workspace: Workspace, names: Sequence[str]) -> None:
    """Keep these test sets, and their copies in other sets, out of pre-training from now on.

    Raises:
        ManifestError: one of them has not been ingested, so its copies cannot be known.
    """
    with workspace.lock("manifests", wait=True):
        tables = _tables(workspace, without="")
        policies = {name: _policy(workspace, name) for name in tables}
        decided = resolve(tables, policies, names)
        text = json.dumps(sorted(set(names)), indent=2) + "\n"
        write_whole(workspace.excluded_benchmarks, text.encode())
        _write_changes(workspace, tables, decided)


def benchmark_summary(workspace: Workspace) -> list[dict[str, Any]]:
    """For each test set that is kept out: its volumes, their copies, and what is unread.

    Copies of a volume that could not be read cannot be found.
    """
    columns = ["dataset", "code", "duplicate_of", "split", "voxel_digest"]
    tables = [read_source_table(workspace.sources(name), columns) for name in workspace.datasets()]
    rows = pa.concat_tables(tables).to_pylist() if tables else []
    summaries = []
    for name in excluded_benchmarks(workspace):
        dataset, _, split = name.partition(":")
        own = [r for r in rows if r["dataset"] == dataset and split in ("", r["split"])]
        copies = [
            r
            for r in rows
            if r["code"] == "leakage.benchmark_copy" and r["duplicate_of"].startswith(f"{dataset}/")
        ]
        summaries.append(
            {
                "name": name,
                "volumes": len(own),
                "copies": len(copies),
                "unread": sum(not r["voxel_digest"] for r in own),
            }
        )
    return summaries


def require_splits(workspace: Workspace, dataset: str, listed: bool) -> None:
    """Refuse, before anything is judged, an ingest that would lose the splits of a test set.

    Raises:
        ManifestError: a split of the data set is kept out, and no list names its splits.
    """
    names = [n for n in excluded_benchmarks(workspace) if n.startswith(f"{dataset}:")]
    if names and not listed:
        raise ManifestError(
            f"{', '.join(names)} is kept out of pre-training: give --list, which names the split, "
            f"or first let it in with --include-benchmark {names[0]}"
        )


def record(
    workspace: Workspace,
    dataset: str,
    summary: Mapping[str, Any],
    taken_away: pa.Table,
    event: str = "ingest",
) -> None:
    """Append one event to the history, and the rows that it replaced or took away.

    Args:
        workspace: the workspace.
        dataset: the data set.
        summary: counts of the ingest, or what the event was.
        taken_away: rows of the manifest of before that the new one does not hold as they were.
        event: ``ingest``, ``removed``, or ``decided again`` after a removal elsewhere.
    """
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entries: list[dict[str, Any]] = [
        {"event": event, "time": time, "prect": __version__, **summary}
    ]
    kept = [name for name in taken_away.column_names if name not in _FORGOTTEN]
    entries += [
        {"event": "taken away", "time": time, "row": row}
        for row in taken_away.select(kept).to_pylist()
    ]
    path = workspace.history(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell() and not _ends_a_line(file):  # cut off by a crash
            file.write(b"\n")
        file.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _tables(workspace: Workspace, without: str) -> dict[str, pa.Table]:
    columns = [name for name in SOURCES_SCHEMA.names if name not in _LEFT_OUT]
    return {
        name: read_source_table(workspace.sources(name), columns)
        for name in workspace.datasets()
        if name != without
    }


def _write_changes(
    workspace: Workspace, before: Mapping[str, pa.Table], after: Mapping[str, pa.Table]
) -> None:
    for name, table in before.items():
        if all(table[column].equals(after[name][column]) for column in _DECIDED):
            continue
        whole = read_source_table(workspace.sources(name))
        for column in _DECIDED:
            place = whole.schema.get_field_index(column)
            whole = whole.set_column(place, SOURCES_SCHEMA.field(column), after[name][column])
        write_sources(workspace.sources(name), whole)


def _policy(workspace: Workspace, dataset: str) -> Policy:
    return _policy_of(load_card(workspace.card(dataset)))


def _policy_of(card: Card) -> Policy:
    return Policy(card.precedence, card.one_per_study)
