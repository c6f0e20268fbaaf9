"""Where things lie in a workspace folder.

::

    manifests/<dataset>/sources.parquet      one row a candidate volume
    manifests/<dataset>/card.yaml            the card and its limits, as ingest used them
    manifests/<dataset>/history.jsonl        every ingest, and every row that it took away
    manifests/<dataset>/journal/             rows of an ingest that has not ended yet
    manifests/excluded-benchmarks.json       test sets that are kept out of pre-training
    manifests/<dataset>/quarantine.parquet   volumes that were accepted but could not be built
    manifests/<dataset>/profile.json         profile of the last build
    manifests/<dataset>/cache.parquet        one row a stored volume
    cache/<dataset>/<case>.ome.zarr/         the store of one volume
    runs/<name>/                             configuration, metrics, checkpoints
    salt                                     secret that patient and series ids are hashed with
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from prect.errors import WorkspaceError
from prect.files import locked, make_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STORE_SUFFIX = ".ome.zarr"


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can be a folder name on any system.

    Raises:
        WorkspaceError: the name is empty, longer than 64 characters or has other characters
            than letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise WorkspaceError(
            f"{what} {name!r} cannot be used: it must start with a letter or digit and hold "
            "only letters, digits, '.', '_' and '-', 64 characters at most"
        )
    return name


def _refuse_file(root: Path) -> None:
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except NotADirectoryError:  # it would lie below a file
        is_folder = False
    except OSError:  # it is not there yet; or whoever reads or writes in it is told why not
        return
    if not is_folder:
        raise WorkspaceError(
            f"the workspace {root} is a file, or lies below one; give the folder that holds "
            "manifests, stores and runs, or the name of a new one"
        )


class Workspace:
    """Paths inside one workspace folder; nothing is created until something is written.

    Raises:
        WorkspaceError: there is something else than a folder of that name.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        # Absolute, since workers on other machines run in other folders.
        self.root = Path(root).absolute()
        _refuse_file(self.root)

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def sources(self, dataset: str) -> Path:
        return self.manifests / check_name(dataset, "dataset") / "sources.parquet"

    def card(self, dataset: str) -> Path:
        return self.sources(dataset).with_name("card.yaml")

    def history(self, dataset: str) -> Path:
        return self.sources(dataset).with_name("history.jsonl")

    def journal(self, dataset: str) -> Path:
        return self.sources(dataset).with_name("journal")

    @property
    def excluded_benchmarks(self) -> Path:
        return self.manifests / "excluded-benchmarks.json"

    def quarantine(self, dataset: str) -> Path:
        return self.manifests / check_name(dataset, "dataset") / "quarantine.parquet"

    def cache_manifest(self, dataset: str) -> Path:
        return self.manifests / check_name(dataset, "dataset") / "cache.parquet"

    def profile(self, dataset: str) -> Path:
        return self.cache_manifest(dataset).with_name("profile.json")

    def dataset_cache(self, dataset: str) -> Path:
        return self.cache / check_name(dataset, "dataset")

    def store(self, dataset: str, case: str) -> Path:
        return self.dataset_cache(dataset) / f"{check_name(case, 'case')}{STORE_SUFFIX}"

    def stored_cases(self, dataset: str) -> set[str]:
        """Case ids of the stores that lie in the workspace, whatever the manifests say."""
        try:
            with os.scandir(self.dataset_cache(dataset)) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return set()
        return {
            name.removesuffix(STORE_SUFFIX)
            for name in names
            if name.endswith(STORE_SUFFIX) and not name.startswith(".")
        }

    def run(self, name: str) -> Path:
        return self.runs / check_name(name, "run name")

    def datasets(self) -> list[str]:
        """Names of the data sets that have been ingested, sorted."""
        if not self.manifests.is_dir():
            return []
        return sorted(p.parent.name for p in self.manifests.glob("*/sources.parquet"))

    @property
    def has_salt(self) -> bool:
        """Whether ids have been hashed in this workspace before."""
        return (self.root / "salt").exists()

    def salt(self, wanted: str | None = None) -> str:
        """The workspace's salt; made at random, or from ``wanted``, when there is none yet.

        Raises:
            WorkspaceError: ``wanted`` is empty, or differs from the salt already in use.
        """
        wanted = None if wanted is None else wanted.strip()
        if wanted == "":
            raise WorkspaceError("the salt is empty, so ids would not be secret; give some text")
        path = self.root / "salt"
        if not path.exists():
            self._make_salt(path, wanted or secrets.token_hex(16))
        present = path.read_text(encoding="utf-8").strip()
        if not present:
            raise WorkspaceError(f"{path} is empty; write the salt of this workspace into it")
        if wanted not in (None, present):
            raise WorkspaceError(
                f"{path} holds another salt than the one given; ids made with two salts "
                "cannot be compared. Leave --salt out, or use a new workspace"
            )
        return present

    def _make_salt(self, path: Path, salt: str) -> None:
        make_folder(self.root)
        temporary = path.with_name(f".salt.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(salt + "\n")
            with suppress(FileExistsError):  # another process was first: its salt is read
                os.link(temporary, path)
        finally:
            temporary.unlink()

    def lock(self, purpose: str, *, wait: bool = False) -> AbstractContextManager[None]:
        """Hold the workspace for one writer of a kind; released when the process ends.

        Args:
            purpose: kind of writer.
            wait: wait for the holder to end, for work that takes seconds.

        Raises:
            BusyError: another process holds the lock, and ``wait`` is false.
            WorkspaceError: the workspace cannot be written, or its file system has no locks.
        """
        make_folder(self.root)
        busy = (
            f"{purpose} is already running on {self.root}, or what must not run beside it "
            "(process {holder}); wait for it to end, or use another workspace"
        )
        return locked(self.lock_file(purpose), busy, wait=wait)

    def lock_file(self, purpose: str) -> Path:
        """The file that `lock` locks."""
        return self.root / f".{purpose}.lock"
