"""Trial builds: real conversions that are measured and leave nothing behind."""

from __future__ import annotations

import math
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from prect.cache.convert import Job, convert
from prect.cache.hidden import delete
from prect.cache.memory import footprint, forget_peak
from prect.cache.reader import StoreReader
from prect.errors import BuildError
from prect.files import take_lock
from prect.manifests.stores import CacheRow, QuarantineRow

_PREFIX = ".plan-"
_NAME = re.compile(rf"{re.escape(_PREFIX)}[0-9a-f]+")
KEEPER = "in-use"
"""File of a trial folder that everyone who works in it has locked."""


@dataclass(frozen=True)
class Trial:
    """One volume to build for its measures alone."""

    job: Job
    folder: Path
    """From `trial_folder`."""

    @property
    def key(self) -> tuple[str, str]:
        """Data set and case."""
        return self.job.source.dataset, self.job.source.case


@dataclass(frozen=True)
class Measured:
    """What building one volume took."""

    outcome: CacheRow | QuarantineRow
    seconds: float
    """Wall time of one process."""
    base_bytes: int
    """Resident memory of the process before."""
    peak_bytes: int
    """Highest resident memory meanwhile."""
    grid_voxels: int
    """Of the whole field of view on the grid of the profile; 0 where there is no store."""


@contextmanager
def trial_folder(cache: Path) -> Iterator[Path]:
    """A folder on the disk of the stores that is gone at the end of the block.

    Also after an error or an interrupt: trials in flight are waited for, those that were to come
    find the folder closed.

    Args:
        cache: folder of all stores; made if need be, and gone again in that case.
    """
    clear_trials(cache)
    made = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    folder = cache / f"{_PREFIX}{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    with (folder / KEEPER).open("x+b") as keeper:
        take_lock(keeper, folder / KEEPER, wait=True, shared=True)
        keeper.write(b"open")
        keeper.flush()
        try:
            yield folder
        finally:
            keeper.truncate(0)
            # An interrupt while this waits leaves the folder to `clear_trials`.
            take_lock(keeper, folder / KEEPER, wait=True)
            _delete(folder, keeper)
            for parent in made:
                with suppress(OSError):  # others have put something there meanwhile
                    parent.rmdir()


def clear_trials(cache: Path) -> list[Path]:
    """Remove the trial folders that killed processes left in ``cache``; return their paths."""
    cleared = []
    for folder in sorted(cache.glob(".*")):
        # Without a keeper it is being made or removed at this moment.
        if is_trial(folder) and (folder / KEEPER).exists() and remove_trial(folder):
            cleared.append(folder)
    return cleared


def is_trial(folder: Path) -> bool:
    """Whether the name is that of a trial folder."""
    return _NAME.fullmatch(folder.name) is not None


def is_in_use(folder: Path) -> bool:
    """Whether a living process works in a trial folder that has a keeper."""
    with (folder / KEEPER).open("r+b") as keeper:
        return not take_lock(keeper, folder / KEEPER, wait=False, shared=True)


def remove_trial(folder: Path) -> bool:
    """Remove a trial folder, unless a living process works in it; whether it is gone."""
    try:
        keeper = (folder / KEEPER).open("r+b")
    except FileNotFoundError:
        return delete(folder)
    with keeper:
        return take_lock(keeper, folder / KEEPER, wait=False) and _delete(folder, keeper)


def _delete(folder: Path, keeper: BinaryIO) -> bool:
    keeper.truncate(0)  # who waits for the lock finds it closed
    return delete(folder, keeper)


def try_out(trial: Trial) -> Measured:
    """Build one store, measure it and remove it; what a worker does.

    Raises:
        OSError: the store cannot be written, or the folder is no longer there.
        BuildError: the folder is closed.
    """
    with (trial.folder / KEEPER).open("r+b") as keeper:
        take_lock(keeper, trial.folder / KEEPER, wait=True, shared=True)
        if not keeper.read(1):
            raise BuildError("the trial has ended before this volume")
        store = trial.folder / trial.job.source.dataset / trial.job.store.name
        forget_peak()
        before, started = footprint().now, time.perf_counter()
        try:
            outcome = convert(replace(trial.job, store=store))
            seconds, peak = time.perf_counter() - started, footprint().peak
            voxels = 0
            if isinstance(outcome, CacheRow):
                voxels = math.prod(StoreReader(store).attributes.body_box.full_shape)
        finally:
            shutil.rmtree(store, ignore_errors=True)  # the folder itself goes in the end
        return Measured(outcome, seconds, before, peak, voxels)
