"""Writing checkpoints beside the training: copied at once, written in a thread, then committed.

All processes write their share of the tensors into one hidden folder. When all have finished,
rank 0 adds the record with a checksum of every file and renames the folder. A process that is
killed at any moment leaves either the whole checkpoint or a hidden folder, which the next start
clears. The good ones that are there are touched only after a newer one is committed.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from prect.files import sync_folder
from prect.train.state.checkpoint import (
    CHECKPOINT_FORMAT,
    RECORD,
    SUFFIX,
    Record,
    alone_is_fine,
    cause_of,
    checksum,
    list_checkpoints,
    name_of,
    read_into,
    step_of,
)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Saved:
    """How the writing of a checkpoint ended; the same on all ranks."""

    step: int
    seconds: float
    """From the copy to the commit."""
    error: str | None = None
    """Why there is none."""


@dataclass(frozen=True)
class Team:
    """The processes of a run, and the group in which one of their threads talks."""

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None
    """None for a process that is alone. No two threads may use one group."""

    def gather(self, mine: _Answer) -> list[_Answer]:
        """What every rank says, in their order."""
        if self.group is None:
            return [mine]
        seen: list[Any] = [None] * self.world
        dist.all_gather_object(seen, mine, group=self.group)
        return seen

    def from_first(self, said: _Answer) -> _Answer:
        """What rank 0 says."""
        if self.group is None:
            return said
        box = [said]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def second(self) -> Team:
        """The same processes for another thread, on CPUs; all of them must ask."""
        if self.group is None:
            return self
        return Team(self.rank, self.world, dist.new_group(backend="gloo"))


class Saver:
    """Writes the checkpoints of one run, one at a time."""

    def __init__(
        self, folder: Path, team: Team, *, keep_last: int, keep_every: int = 0, pinned: bool = False
    ) -> None:
        """Nothing is written before `begin`.

        Args:
            folder: holds the checkpoints.
            team: all its members save together, in a group that nobody else uses.
            keep_last: newest checkpoints that are kept.
            keep_every: those of steps that this divides are kept for ever; 0 keeps none of them.
            pinned: copy through page-locked memory, which GPUs write to fastest.
        """
        self.folder, self.team = folder, team
        self.keep_last, self.keep_every = keep_last, keep_every
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=pinned,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=pinned,
            )
        )
        self._writing: Future[Saved] | None = None

    def clear(self) -> None:
        """Remove what killed processes have left; for rank 0, before anybody saves."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def begin(self, tensors: Mapping[str, torch.Tensor], record: Record) -> Saved | None:
        """Copy the state and begin to write it; all ranks must call this at the same step.

        Args:
            tensors: everything, the same names on all ranks but for those of a rank alone.
            record: the same on all ranks.

        Returns:
            How the one before ended, which is waited for, unless that has been told already.
        """
        before = self.wait()
        began = time.perf_counter()
        mine = own_share(tensors, self.team)
        # safetensors holds rows one after the other, whatever order memory has them in.
        copied = self._stager.stage({name: t.detach().contiguous() for name, t in mine.items()})
        writing: Future[Saved] = Future()
        self._writing = writing
        # Ranks that are gone would keep the thread waiting; it must not keep the process.
        work = (copied, record, began, writing)
        threading.Thread(target=self._work, args=work, name="checkpoint", daemon=True).start()
        return before

    @property
    def done(self) -> bool:
        """Whether a checkpoint has been written, or has failed, and `wait` has not told yet."""
        return self._writing is not None and self._writing.done()

    def wait(self) -> Saved | None:
        """Wait for what is being written; None when there is nothing new."""
        if self._writing is None:
            return None
        saved, self._writing = self._writing.result(), None
        return saved

    def _work(
        self,
        tensors: dict[str, torch.Tensor],
        record: Record,
        began: float,
        result: Future[Saved],
    ) -> None:
        try:
            result.set_result(self._write(tensors, record, began))
        except BaseException as error:  # another rank is gone, say; whoever waits is told
            result.set_exception(error)

    def _write(self, tensors: dict[str, torch.Tensor], record: Record, began: float) -> Saved:
        temporary = self.folder / f".{name_of(record.step)}.tmp"
        error, files = None, {}
        try:
            # Whatever one rank fails for in here, torch tells all of them.
            with alone_is_fine():
                save(
                    tensors,
                    storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True),
                    process_group=self.team.group,
                    no_dist=self.team.group is None,
                )
            own = temporary.glob(f"shard-{self.team.rank + 1:05d}-*{SUFFIX}")
            files = {path.name: checksum(path) for path in own}
        except (Exception, CheckpointException) as failure:
            error = cause_of(failure)
        told = self.team.gather((error, files))
        errors = [error for error, _ in told if error is not None]
        if self.team.rank == 0:
            everything = {name: known for _, part in told for name, known in part.items()}
            error = errors[0] if errors else self._commit(temporary, record, everything)
            if error is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        error = self.team.from_first(error)
        return Saved(record.step, time.perf_counter() - began, error)

    def _commit(self, temporary: Path, record: Record, files: dict[str, Any]) -> str | None:
        """Make the checkpoint one that counts; says why if that cannot be done."""
        document = {"format": CHECKPOINT_FORMAT, **asdict(record), "files": files}
        try:
            with (temporary / RECORD).open("w", encoding="utf-8") as file:
                file.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(temporary)
            temporary.rename(self.folder / name_of(record.step))
            sync_folder(self.folder)
            self._retain()
        except OSError as error:
            return str(error)
        return None

    def _retain(self) -> None:
        found = list_checkpoints(self.folder)
        for path in found[: -self.keep_last]:
            if not self.keep_every or step_of(path) % self.keep_every:
                drop(path)


def drop(path: Path) -> None:
    """Delete a checkpoint so that it is never half there under its name."""
    hidden = path.with_name(f".{path.name}.old")
    path.rename(hidden)
    shutil.rmtree(hidden)


def owners(tensors: Mapping[str, torch.Tensor], world: int) -> dict[str, int]:
    """The rank that writes and reads each plain tensor that all ranks hold, by size evenly."""
    load = [0] * world
    found = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].nbytes, item[0])):
        if isinstance(tensor, DTensor) or name.startswith("rng."):
            continue
        found[name] = load.index(min(load))
        load[found[name]] += tensor.nbytes
    return found


def own_share(tensors: Mapping[str, torch.Tensor], team: Team) -> dict[str, torch.Tensor]:
    """What one rank writes: its part of what all hold, and what it holds alone."""
    owner = owners(tensors, team.world)
    return {name: t for name, t in tensors.items() if owner.get(name, team.rank) == team.rank}


def read_together(path: Path, tensors: Mapping[str, torch.Tensor], team: Team) -> None:
    """Fill the tensors of all ranks in place; what all hold is read by one and sent to the others.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    owner = owners(tensors, team.world)
    read_into(path, {name: t for name, t in tensors.items() if owner.get(name) == team.rank})
    read_into(path, {n: t for n, t in tensors.items() if isinstance(t, DTensor)}, team.group)
    read_into(path, {n: t for n, t in tensors.items() if n.startswith("rng.")})
    if team.group is None:
        return
    for name, rank in owner.items():
        tensor = tensors[name].detach()
        whole = tensor.contiguous()
        dist.broadcast(whole, src=rank, group=team.group)
        tensor.copy_(whole)
