"""What a user may call a volume: its case id, DATASET/CASE, where its file or its store lies."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from prect.errors import ManifestError, WorkspaceError
from prect.manifests.sources import read_source_table
from prect.manifests.stores import read_cache_table, read_quarantine
from prect.workspace import STORE_SUFFIX, Workspace, check_name

_SHOWN = 5


class Case(NamedTuple):
    """One volume of the workspace."""

    dataset: str
    case: str

    @property
    def name(self) -> str:
        """``DATASET/CASE``."""
        return f"{self.dataset}/{self.case}"


def known_datasets(workspace: Workspace) -> list[str]:
    """Names of the data sets that have a manifest or a store in the workspace, sorted.

    Stores that were passed on come without a source manifest, so these are more than the
    ingested ones. Folders with other names than a data set may have, such as the ``lost+found``
    of a disk that is mounted there, are none of them.
    """
    folders = [*named_folders(workspace.manifests), *named_folders(workspace.cache)]
    return sorted({folder.name for folder in folders})


def named_folders(parent: Path) -> list[Path]:
    """The folders in ``parent`` with names that a data set or a run may have, sorted."""
    return sorted(folder for folder in parent.glob("*/") if _is_name(folder.name))


def _is_name(name: str) -> bool:
    try:
        check_name(name, "folder")
    except WorkspaceError:
        return False
    return True


class CaseIndex:
    """Every volume that the manifests of some data sets, or their stores, know of.

    Args:
        workspace: where they lie.
        datasets: names of data sets; manifests that are not there count as empty.

    Raises:
        ManifestError: a manifest is damaged.
    """

    def __init__(self, workspace: Workspace, datasets: Sequence[str]) -> None:
        self._workspace = workspace
        self._cases: dict[str, set[str]] = {}
        self._by_source: dict[str, dict[str, list[str]]] = {}
        self._roots: dict[str, set[str]] = {}
        for dataset in datasets:
            self._read(dataset)

    def _read(self, dataset: str) -> None:
        place = self._workspace
        cases = place.stored_cases(dataset)
        cases.update(row.case for row in read_quarantine(place.quarantine(dataset)))
        if place.cache_manifest(dataset).exists():
            table = read_cache_table(place.cache_manifest(dataset), ["case"])
            cases.update(table["case"].to_pylist())
        self._cases[dataset] = cases
        self._roots[dataset] = set()
        self._by_source[dataset] = defaultdict(list)
        if not place.sources(dataset).exists():
            return
        table = read_source_table(place.sources(dataset), ["case", "source", "root"])
        self._roots[dataset].update(table["root"].unique().to_pylist())
        columns = (table[name].to_pylist() for name in ("case", "source"))
        self.add(dataset, zip(*columns, strict=True))

    def add(self, dataset: str, cases: Iterable[tuple[str, str]]) -> None:
        """Let volumes be found that no manifest knows: case id and source of each."""
        for case, source in cases:
            self._cases[dataset].add(case)
            self._by_source[dataset][source].append(case)

    def find(self, text: str) -> list[Case]:
        """All volumes that ``text`` may mean, in order.

        Args:
            text: case id, ``DATASET/CASE``, ``DATASET:SOURCE``, the source as ingest names it, the
                path of the foreign file, or the path of the store in this workspace.
        """
        found: set[Case] = set()
        for dataset, cases in self._cases.items():
            for spelling in self._spellings(dataset, text):
                matching = set(self._by_source[dataset].get(spelling, ()))
                found.update(Case(dataset, c) for c in matching | ({spelling} & cases))
        return sorted(found)

    def one(self, text: str) -> Case:
        """The volume that ``text`` means.

        Raises:
            ManifestError: there is none, or there are several; names the nearest, or all of them.
        """
        found = self.find(text)
        if len(found) == 1:
            return found[0]
        if found:
            names = _some([case.name for case in found])
            raise ManifestError(f"{text!r} may be any of {len(found)} volumes; give one: {names}")
        near = self.near(text)
        where = f" in {', '.join(self._cases)}" if self._cases else "; the workspace holds none"
        raise ManifestError(
            f"no volume {text!r}{where}{f'; near: {_some(near)}' if near else ''}. Give a case id, "
            "DATASET/CASE, or the source as the column `source` of sources.parquet has it"
        )

    def near(self, text: str) -> list[str]:
        """Up to five names that hold ``text`` or are spelled alike, nearest first."""
        names = [
            name
            for dataset, cases in self._cases.items()
            for name in (
                *(f"{dataset}/{case}" for case in sorted(cases)),
                *(f"{dataset}:{source}" for source in sorted(self._by_source[dataset])),
            )
        ]
        wanted = text.lower()
        holding = [name for name in names if wanted and wanted in name.lower()]
        if holding:
            return holding[:_SHOWN]
        tails = {_tail(name): name for name in reversed(names)}
        alike = difflib.get_close_matches(_tail(text), tails, n=_SHOWN)
        return [tails[tail] for tail in alike]

    def _spellings(self, dataset: str, text: str) -> set[str]:
        """Case ids and sources that ``text`` may stand for in one data set."""
        text = text.rstrip("/")  # of a folder
        prefixes = ("", f"{dataset}/", f"{dataset}:")
        spellings = {text.removeprefix(prefix) for prefix in prefixes if text.startswith(prefix)}
        path = Path(text).resolve()
        for root in map(Path, self._roots[dataset]):
            if path.is_relative_to(root):
                spellings.add(path.relative_to(root).as_posix())
        if path.parent == self._workspace.dataset_cache(dataset).resolve():
            spellings.add(path.name.removesuffix(STORE_SUFFIX))
        return spellings


def _tail(name: str) -> str:
    """What tells names of one data set apart, in small letters: the id or the file's name."""
    return name.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
