"""Where a run goes on from, and whether it may with what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prect.errors import CheckpointError, TrainingError
from prect.train.config import TrainConfig
from prect.train.data import TrainingData
from prect.train.run_folder import RunFolder
from prect.train.state.checkpoint import (
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
)

_FREE_SECTIONS = {
    "run": {"name"},
    "data": {
        "workers",
        "prefetch_mib",
        "open_stores",
        "on_damage",
        "max_damaged",
        "batch_size",
        "global_batch",
    },
    "network": {"checkpointing", "crops_at_once"},
    "optim": {"max_steps"},
    "train": {
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_last",
        "keep_every",
        "on_save_error",
        "threads",
        "parallel",
        "compile",
        "max_skipped",
        "spike_deviations",
        "straggler_factor",
        "timeout_s",
        "log_to",
        "peak_tflops",
    },
}
"""Settings that may change when a run goes on: its length, its pace, its bookkeeping, how it is
spread over processes, and how it saves memory. Volumes a step are compared by themselves."""


@dataclass(frozen=True)
class Origin:
    """What a run's samples come from, and how they are shared out."""

    manifest_digest: str
    sources: dict[str, Any]
    """By data set: ``volumes``, ``profiles`` (digests) and ``held_out``."""
    global_batch: int


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    checkpoint: Checkpoint | None
    """None for a fresh start."""
    damaged: tuple[tuple[Path, str], ...] = ()
    """Newer checkpoints that cannot be used, and why."""
    changed: tuple[str, ...] = ()
    """What is not as it was and is allowed to be."""

    @property
    def step(self) -> int:
        """Steps done before."""
        return self.checkpoint.step if self.checkpoint else 0


def origin_of(data: TrainingData, config: TrainConfig, world: int) -> Origin:
    """The origin of a run that is about to begin."""
    table = data.table
    codes, names = table.dataset.codes()
    sources = {}
    for code, name in enumerate(names):
        rows = (codes == code).nonzero()[0]
        sources[name] = {
            "volumes": len(rows),
            "profiles": sorted({str(table.profile[row]) for row in rows}),
            "held_out": int((codes[data.rows["heldout"]] == code).sum()),
        }
    return Origin(table.digest, sources, config.step_volumes(world))


def starting_point(
    folder: RunFolder,
    resume: str,
    config: TrainConfig,
    origin: Origin,
    *,
    allow_changed: bool = False,
    verify: bool = True,
) -> Start:
    """The checkpoint to go on from, or none for a fresh start.

    Args:
        folder: the run's folder, which may not exist yet.
        resume: ``auto`` goes on from the newest checkpoint that is whole, if there is one;
            ``never`` wants a new folder; anything else is the path of a checkpoint or of another
            run's folder.
        config: the settings to go on with.
        origin: the data to go on with.
        allow_changed: go on although data or settings are others than they were.
        verify: compare files with their checksums, which reads them whole.

    Raises:
        TrainingError: ``never``, and the folder exists.
        CheckpointError: the checkpoint is missing, or belongs to other data or settings; or none
            is whole.
    """
    if resume == "never":
        if folder.config.exists():
            raise TrainingError(
                f"run folder {folder.path} exists already; go on with --resume auto, choose "
                "another name with --set run.name=NAME, or delete the folder"
            )
        return Start(None)
    damaged: list[tuple[Path, str]] = []
    if resume == "auto":
        found = list_checkpoints(folder.checkpoints)
        if not found:
            return Start(None)
        checkpoint = _newest_whole(found, damaged, verify=verify)
    else:
        checkpoint = load_checkpoint(find_checkpoint(Path(resume)), verify=verify)
    try:
        changed = check_resumable(checkpoint, config, origin, allow_changed=allow_changed)
    except CheckpointError as error:
        error.add_note(f"checkpoint {checkpoint.path}")
        raise
    return Start(checkpoint, tuple(damaged), tuple(changed))


def _newest_whole(
    found: list[Path], damaged: list[tuple[Path, str]], *, verify: bool
) -> Checkpoint:
    """The newest that can be read; what cannot is added to ``damaged``."""
    for path in reversed(found):
        try:
            return load_checkpoint(path, verify=verify)
        except CheckpointError as error:
            damaged.append((path, str(error)))
    raise CheckpointError(
        f"none of the {len(found)} checkpoints in {found[0].parent} can be used; the newest: "
        f"{damaged[0][1]}. To begin anew, choose another name with --set run.name=NAME"
    )


def check_resumable(
    checkpoint: Checkpoint, config: TrainConfig, origin: Origin, *, allow_changed: bool = False
) -> list[str]:
    """Refuse to go on with other data or settings than the run began with.

    Returns:
        What differs, where that is allowed.

    Raises:
        CheckpointError: names what differs.
    """
    record = checkpoint.record
    if config.optim.max_steps < record.step:
        raise CheckpointError(
            f"the run has done {record.step} steps already, more than optim.max_steps = "
            f"{config.optim.max_steps}; ask for more, or start a new run with another run.name"
        )
    differing = differing_data(checkpoint, origin)
    differing += differing_settings(record.config, config.model_dump(mode="json"))
    if differing and not allow_changed:
        raise CheckpointError(
            "the run is not what it was when the checkpoint was written: "
            f"{'; '.join(differing)}. Take that back, start a new run with another run.name, or "
            "go on all the same with --allow-changed"
        )
    return differing


def differing_data(checkpoint: Checkpoint, origin: Origin) -> list[str]:
    """What is not as it was about volumes and how many make a step, a sentence each."""
    record, result = checkpoint.record, []
    if record.global_batch != origin.global_batch:
        result.append(
            f"it was made with {record.global_batch} volumes a step, this one would have "
            f"{origin.global_batch} (set data.global_batch={record.global_batch})"
        )
    if record.manifest_digest == origin.manifest_digest:
        return result
    details = []
    for name in sorted({*record.sources, *origin.sources}):
        before, now = record.sources.get(name, {}), origin.sources.get(name, {})
        for key in ("volumes", "profiles", "held_out"):
            if before.get(key) != now.get(key):
                details.append(f"{name} {key} {_short(before.get(key))} -> {_short(now.get(key))}")
    result.append(
        f"the cache manifest has changed (digest {record.manifest_digest[:12]}, now "
        f"{origin.manifest_digest[:12]}), so the samples would be others: "
        + (", ".join(details) or "as many volumes with the same profiles, built again")
    )
    return result


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(text[:12] for text in value)
    return "none" if value is None else str(value)


def differing_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """``section.key (old -> new)`` of every setting that must not change and did."""
    result = []
    for section in sorted(set(before) | set(after)):
        old, new = before.get(section, {}), after.get(section, {})
        for key in sorted((set(old) | set(new)) - _FREE_SECTIONS.get(section, set())):
            if old.get(key) != new.get(key):
                result.append(f"{section}.{key} ({old.get(key)} -> {new.get(key)})")
    return result
