"""What is known of a data set from earlier ingests: unchanged files are not read again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.compute as pc

from prect.ingest.discover import Item
from prect.manifests.parquet import write_arrow
from prect.manifests.sources import SOURCES_SCHEMA, read_source_table

_JOURNAL_EVERY_S = 20.0
"""Seconds of work that a killed ingest may lose."""


@dataclass(frozen=True)
class Known:
    """One row of an earlier ingest, as far as comparing it with its files needs."""

    format: str
    source: str
    members: tuple[str, ...]
    digest: str


@dataclass
class _Entry:
    state: str
    rules: str
    rows: list[int] = field(default_factory=list)
    files: int = 0
    """Files that the rows refer to."""


class Earlier:
    """The rows of earlier ingests by item.

    Args:
        table: of `SOURCES_SCHEMA`.
        rules: digest of the limits and the card now in force.
    """

    def __init__(self, table: pa.Table, rules: str) -> None:
        self.table = table
        self.rules = rules
        self._entries: dict[str, _Entry] = {}
        keys, states, rule_digests = (table[c].to_pylist() for c in ("item", "state", "rules"))
        files = pc.list_value_length(table["members"]).to_pylist()
        for row, key in enumerate(keys):
            entry = self._entries.setdefault(key, _Entry(states[row], rule_digests[row]))
            entry.rows.append(row)
            entry.files += files[row] or 1
        self._kept: dict[str, tuple[str, str]] = {}

    def unchanged(self, item: Item) -> bool:
        """Whether names, sizes and times of the files are those that were judged."""
        entry = self._judged_alike(item)
        return entry is not None and item.state != "" and entry.state == item.state

    def keep(self, item: Item) -> int:
        """Take the item's rows over; returns how many they are."""
        self._kept[item.key] = item.state, item.split
        return len(self._entries[item.key].rows)

    def keep_below(self, folder: str) -> int:
        """Take over what lay in a folder that cannot be listed now; returns how many rows."""
        rows = 0
        for key, entry in self._entries.items():
            if key.startswith(folder) and key not in self._kept and key != folder:
                first = entry.rows[0]
                self._kept[key] = entry.state, self.table["split"][first].as_py()
                rows += len(entry.rows)
        return rows

    def known(self, item: Item) -> tuple[Known, ...]:
        """The item's rows, where a comparison of contents can decide; else nothing."""
        entry = self._judged_alike(item)
        if entry is None:
            return ()
        columns = ["format", "source", "members", "source_digest"]
        rows = self.table.select(columns).take(entry.rows).to_pylist()
        return tuple(
            Known(r["format"], r["source"], tuple(r["members"]), r["source_digest"]) for r in rows
        )

    def others_of(self, item: Item) -> list[str]:
        """Names of files of a folder that its rows do not refer to: they are no images."""
        if self._entries[item.key].files >= len(item.names):
            return []
        folder = item.key.rstrip("/")
        used = self._files_of(item)
        # A file that lies in the root itself is called by its name, its folder by a dot.
        return [n for n in item.names if n not in used and f"{folder}/{n}" not in used]

    def _files_of(self, item: Item) -> set[str]:
        return {
            f"{known.source}/{member}" if member else known.source
            for known in self.known(item)
            for member in known.members or ("",)
        }

    def kept_rows(self, root: Path) -> pa.Table:
        """The rows taken over, with the folder, state and split of now."""
        places, states, splits = [], [], []
        for key, (state, split) in self._kept.items():
            for row in self._entries[key].rows:
                places.append(row)
                states.append(state)
                splits.append(split)
        kept = self.table.take(pa.array(places, pa.int64()))
        roots = pa.repeat(str(root), len(places))
        for name, values in (("state", states), ("split", splits), ("root", roots)):
            place = kept.schema.get_field_index(name)
            kept = kept.set_column(place, SOURCES_SCHEMA.field(name), pa.array(values, pa.string()))
        return kept

    def _judged_alike(self, item: Item) -> _Entry | None:
        entry = self._entries.get(item.key)
        return entry if entry is not None and entry.rules == self.rules else None


class Journal:
    """Rows of an ingest that has not ended yet, so that one that is killed can go on.

    Args:
        folder: of the workspace; made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending: list[pa.Table] = []
        self._written = monotonic()

    def add(self, table: pa.Table) -> None:
        """Note rows; they reach the disk within `_JOURNAL_EVERY_S` seconds of work."""
        self._pending.append(table)
        if monotonic() - self._written > _JOURNAL_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows noted so far."""
        if self._pending:
            number = len(list(self.folder.glob("*.parquet")))
            write_arrow(self.folder / f"{number:06d}.parquet", pa.concat_tables(self._pending))
        self._pending.clear()
        self._written = monotonic()

    def read(self) -> pa.Table:
        """The rows of an ingest that was killed."""
        table = SOURCES_SCHEMA.empty_table()
        for path in sorted(self.folder.glob("*.parquet")):
            table = newest_first(read_source_table(path), table)
        return table

    def clear(self) -> None:
        """Forget the rows; they stand in the manifest now."""
        shutil.rmtree(self.folder, ignore_errors=True)


def newest_first(newer: pa.Table, older: pa.Table) -> pa.Table:
    """Both tables as one; of an item that is in both, the newer rows."""
    again = set(newer["item"].to_pylist())
    if not again:
        return older
    rest = pa.array([key not in again for key in older["item"].to_pylist()], pa.bool_())
    return pa.concat_tables([newer, older.filter(rest)])
