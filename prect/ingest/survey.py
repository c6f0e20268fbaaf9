"""Judging every candidate of a data set: from a folder to its source manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from prect.cluster import Workers
from prect.errors import ManifestError, VolumeError
from prect.ingest.discover import UNREADABLE, Discovery, Item, ListedItems, Passed
from prect.ingest.earlier import Earlier, Journal, Known, newest_first
from prect.ingest.judge import Judge
from prect.ingest.readers import READERS
from prect.manifests.cards import Card, generic_card
from prect.manifests.commit import commit, record, require_splits, resolved, unchanged
from prect.manifests.lists import read_list
from prect.manifests.sources import (
    SOURCES_SCHEMA,
    SourceRow,
    count_codes,
    count_verdicts,
    read_source_table,
    to_rows,
    to_table,
    usable,
)
from prect.retries import run_retrying
from prect.workspace import Workspace, check_name

if TYPE_CHECKING:
    from distributed import Client

_BATCH_BYTES = 64_000_000
_MANY = 10
"""Candidates that may go at once without a question, as long as others stay."""
_BATCH_FILES = 400
"""A batch is what one worker takes at a time: a few seconds of work."""


@dataclass(frozen=True)
class Survey:
    """What ingest found in a folder."""

    card: Card
    root: Path
    table: pa.Table
    """Of `SOURCES_SCHEMA`, with the verdicts in force."""
    passed: Passed
    """What was counted and is no candidate."""
    kept: int
    """Rows taken over from an earlier ingest, since their files are unchanged."""
    removed: tuple[str, ...]
    """Sources of the earlier manifest that are no longer found."""
    seconds: float

    @property
    def dataset(self) -> str:
        """Name of the data set in the workspace."""
        return self.card.name

    @property
    def as_expected(self) -> bool:
        """Whether as many volumes are usable as the card expects."""
        return self.card.is_expected(self.usable)

    @property
    def rows(self) -> list[SourceRow]:
        """The rows as objects; for tests and small sets."""
        return to_rows(self.table)

    @property
    def usable(self) -> int:
        """Volumes that build-cache takes."""
        return int(usable(self.table).sum())

    def summary(self) -> dict[str, object]:
        """Counts that add up: every candidate has one verdict."""
        return {
            "dataset": self.dataset,
            "source": str(self.root),
            "candidates": len(self.table),
            "verdicts": count_verdicts(self.table),
            "codes": count_codes(self.table),
            "usable": self.usable,
            "expected": self.card.expected,
            "as_expected": self.as_expected,
            "kept": self.kept,
            "judged": len(self.table) - self.kept,
            "removed": list(self.removed),
            "labels": self.passed.labels,
            "unlisted": self.passed.unlisted.total(),
            "other_files": dict(self.passed.other_files.most_common()),
            "skipped_folders": self.passed.skipped_folders,
            "duration_s": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class _Batch:
    """Items for one worker, and what is known of them where contents are to be compared."""

    items: tuple[Item, ...]
    known: tuple[tuple[Known, ...], ...]


@dataclass(frozen=True)
class _Result:
    table: pa.Table
    """Of `SOURCES_SCHEMA`: rows of the items that were judged."""
    same: tuple[Item, ...]
    """Items whose contents are what they were."""
    other_files: Counter[str]


def _singly(batch: _Batch) -> Iterator[_Batch]:
    """One file of a batch kills its worker: alone, it shows which one it is."""
    for item, known in zip(batch.items, batch.known, strict=True):
        yield _Batch((item,), (known,))


def survey(
    dataset: str | Card,
    root: Path,
    workspace: Workspace,
    *,
    salt: str | None = None,
    list_file: Path | None = None,
    rehash: bool = False,
    workers: Workers | None = None,
    write: bool = True,
    replace_all: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Survey:
    """Find and judge every candidate under ``root``, and write the source manifest.

    Args:
        dataset: name of the data set in the workspace, or its card.
        root: folder with the foreign files.
        workspace: where the manifest is written.
        salt: secret for hashed ids; the workspace's own, made at random, when left out.
        list_file: take exactly the volumes of this list.
        rehash: compare contents, not times, to tell what is unchanged.
        workers: processes that judge; this one when left out.
        write: ``False`` judges and writes nothing.
        replace_all: allow a manifest that holds none of the volumes of the one before.
        on_progress: called with a number of candidates that are done.

    Raises:
        WorkspaceError: ``root`` is no folder, the name cannot be used, or the salt differs.
        ManifestError: nothing of the earlier manifest was found again, or the list is no list.
        ConfigError: the card names a table that cannot be read.
        ClusterError: the scheduler cannot be reached.
    """
    started = monotonic()
    card = generic_card(dataset) if isinstance(dataset, str) else dataset
    check_name(card.name, "dataset")
    require_splits(workspace, card.name, list_file is not None)
    root = root.resolve()
    # Made first: it refuses a root that is no folder.
    discovery: Discovery | ListedItems = Discovery(root, card, workspace.root.resolve())
    if list_file is not None:
        discovery = ListedItems(root, card, read_list(list_file), list_file.resolve().parent)
    known = write or workspace.has_salt
    judge = Judge(card, root, workspace.salt(salt) if known else salt or "dry run")
    before = _before(workspace, card.name)
    journal = Journal(workspace.journal(card.name))
    earlier = Earlier(newest_first(journal.read(), before), judge.rules)
    run = _Run(judge, discovery, earlier, journal if write else None, rehash, on_progress)
    with run:
        table = run.table(workers)
    found = set(table["source"].to_pylist())
    removed = [source for source in before["source"].to_pylist() if source not in found]
    if write:
        if not replace_all:
            _refuse_loss(before, table, root)
        if not unchanged(workspace, before, table, card):
            table = commit(workspace, card.name, table, card)
        else:
            table = before  # decided when it, or another data set, was last committed
        journal.clear()
    else:
        table = resolved(workspace, card.name, table, card)
    result = Survey(
        card,
        root,
        table,
        discovery.passed,
        run.kept,
        tuple(sorted(set(removed))),
        monotonic() - started,
    )
    if write:
        taken_away = before.filter(pa.array(~_still_there(before, table)))
        record(workspace, card.name, result.summary(), taken_away)
    return result


class _Run:
    """One pass over all items; a context that saves its work when it is interrupted."""

    def __init__(
        self,
        judge: Judge,
        discovery: Discovery | ListedItems,
        earlier: Earlier,
        journal: Journal | None,
        rehash: bool,
        on_progress: Callable[[int], None],
    ) -> None:
        self.judge = judge
        self.discovery = discovery
        self.earlier = earlier
        self.journal = journal
        self.rehash = rehash
        self.on_progress = on_progress
        self.kept = 0
        self._parts: list[pa.Table] = [SOURCES_SCHEMA.empty_table()]

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None and self.journal is not None:
            self.journal.flush()

    def table(self, workers: Workers | None) -> pa.Table:
        """Judge what is new, take over what is not; the manifest before duplicates are sought."""
        work = partial(judge_batch, self.judge)
        batches = self._batches()
        ahead = list(islice(batches, 2))
        every = chain(ahead, batches)
        if ahead and workers is not None:
            # A single batch keeps one process busy; even then a file may kill that.
            client = workers.client(1 if len(ahead) == 1 else workers.count)
            self._judge_on(client, work, every)
        else:
            for batch in every:
                self._take(work(batch))
        return pa.concat_tables([self.earlier.kept_rows(self.judge.root), *self._parts])

    def _judge_on(
        self, client: Client, work: Callable[[_Batch], _Result], batches: Iterable[_Batch]
    ) -> None:
        for batch, result in run_retrying(client, work, batches, split=_singly):
            self._take(result or self._died(batch))

    def _died(self, batch: _Batch) -> _Result:
        """What is told of a file that kills its worker."""
        rows = to_table(self.judge.died(item) for item in batch.items)
        return _Result(rows, (), Counter())

    def _take(self, result: _Result) -> None:
        for item in result.same:
            self._keep(item)
        self.discovery.passed.other_files.update(result.other_files)
        self._parts.append(result.table)
        if self.journal is not None:
            self.journal.add(result.table)
        self.on_progress(len(result.table))

    def _keep(self, item: Item) -> None:
        rows = self.earlier.keep(item)
        self.kept += rows
        self.on_progress(rows)
        for name in self.earlier.others_of(item):
            self.discovery.passed.other_files[Path(name).suffix.lower() or name] += 1

    def _batches(self) -> Iterator[_Batch]:
        items: list[Item] = []
        size = files = 0
        for item in self.discovery:
            if not self.rehash and self.earlier.unchanged(item):
                self._keep(item)
                continue
            if item.kind == "folder":  # what lies below may be there all the same
                self.kept += self.earlier.keep_below(item.key)
            if item.kind in UNREADABLE:  # nothing is opened for these
                self._take(judge_batch(self.judge, self._batch([item])))
                continue
            items.append(item)
            size += item.bytes
            files += max(1, len(item.names))
            if size >= _BATCH_BYTES or files >= _BATCH_FILES:
                yield self._batch(items)
                items, size, files = [], 0, 0
        if items:
            yield self._batch(items)

    def _batch(self, items: list[Item]) -> _Batch:
        known = tuple(self.earlier.known(item) if self.rehash else () for item in items)
        return _Batch(tuple(items), known)


def judge_batch(judge: Judge, batch: _Batch) -> _Result:
    """What a worker does: compare contents where asked to, judge the rest."""
    same = tuple(
        item
        for item, known in zip(batch.items, batch.known, strict=True)
        if known and _same_content(judge.root, item, known)
    )
    changed = [item for item in batch.items if item not in same]
    judged = judge.judge(changed)
    return _Result(to_table(judged.rows), same, judged.other_files)


def _same_content(root: Path, item: Item, known: tuple[Known, ...]) -> bool:
    """Whether every volume of the item has the bytes it was judged by."""
    files: set[Path] = set()
    for row in known:
        base = root / row.source
        paths = [base / member for member in row.members] or [base]
        try:
            if not row.digest or READERS[row.format].digest(paths) != row.digest:
                return False
        except (VolumeError, OSError):
            return False  # judging it again finds out why
        files.update(paths)
    return all(root / item.key / name in files for name in item.names)


def _before(workspace: Workspace, dataset: str) -> pa.Table:
    path = workspace.sources(dataset)
    return read_source_table(path) if path.exists() else SOURCES_SCHEMA.empty_table()


def _still_there(before: pa.Table, after: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """(N,) bool, True for rows of before that after holds, judged on the same files."""
    columns = ("case", "rules", "state", "source_digest")
    if before.select(columns).equals(after.select(columns)):
        return np.ones(len(before), np.bool_)
    present: set[tuple[str, ...]] = set()
    for case, rules, state, digest in zip(*(after[c].to_pylist() for c in columns), strict=True):
        present |= {(case, rules, "state", state), (case, rules, "digest", digest)}
    rows = zip(*(before[c].to_pylist() for c in columns), strict=True)
    still = (
        (case, rules, "state", state) in present
        or (digest != "" and (case, rules, "digest", digest) in present)
        for case, rules, state, digest in rows
    )
    return np.fromiter(still, np.bool_, len(before))


def _refuse_loss(before: pa.Table, after: pa.Table, root: Path) -> None:
    """An unmounted disk or a wrong folder must not wipe out what is known of a data set."""
    cases = set(before["case"].to_pylist())
    gone = len(cases - set(after["case"].to_pylist()))
    if gone and (gone == len(cases) or (gone >= _MANY and gone > len(cases) / 2)):
        raise ManifestError(
            f"{gone} of the {len(cases)} candidates of the earlier manifest no longer lie under "
            f"{root}; is the disk mounted and the folder right? To replace the manifest, give "
            "--replace"
        )
