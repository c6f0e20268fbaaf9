"""The errors that prect raises.

::

    PrectError
    ├── ConfigError      (ValueError)    a setting is unknown, ill-typed or out of range
    ├── WorkspaceError   (OSError)       a folder of the workspace is missing or in use
    │   └── BusyError                    another process holds what is to be locked
    ├── ManifestError    (ValueError)    a table lacks columns or rows that it must have
    ├── VolumeError      (ValueError)    a foreign file is no usable CT volume; has a code
    ├── StoreError       (ValueError)    a store is missing, damaged or of another version
    │   ├── StoreVersionError            a store is of a format version of another release
    │   └── ChunkError                   one chunk is missing or damaged; says which
    ├── ClusterError     (RuntimeError)  no Dask scheduler or worker can be reached
    ├── BuildError       (RuntimeError)  the build engine itself failed
    ├── CheckpointError  (ValueError)    a weight file is missing, foreign or damaged
    ├── TrainingError    (RuntimeError)  a run cannot start or go on
    └── SinkError        (RuntimeError)  figures cannot be written beside metrics.jsonl

A message gives the value, the expectation and the remedy. The file, case or series
concerned is attached with ``add_note``, so that it survives re-raising.
"""

from __future__ import annotations


class PrectError(Exception):
    """Root of every error that prect raises on purpose."""


class ConfigError(PrectError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class WorkspaceError(PrectError, OSError):
    """A folder or file of the workspace is missing, unreadable or in use."""


class BusyError(WorkspaceError):
    """Another process holds what is to be locked."""


class ManifestError(PrectError, ValueError):
    """A manifest lacks columns, holds contradictory rows or is not Parquet."""


class VolumeError(PrectError, ValueError):
    """A foreign file is not a usable CT volume.

    Attributes:
        code: stable reason code, ``family.detail`` (for example ``nifti.truncated``).
        reason: one sentence with the measured value and the limit.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str], dict[str, object]]:
        return type(self), (self.code, self.reason), self.__dict__


class StoreError(PrectError, ValueError):
    """A store is missing, damaged, or of a format version this release cannot read."""


class StoreVersionError(StoreError):
    """A store is of a format version that this release does not know."""


class ChunkError(StoreError):
    """One inner chunk of a store is missing or damaged.

    Attributes:
        case: case id of the store.
        level: resolution level, 0 is the finest.
        chunk: index of the inner chunk, ``(z, y, x)``; ``None`` when the whole shard is concerned.
        detail: what was found.
        remedy: what to do about it.
    """

    def __init__(
        self,
        case: str,
        level: int,
        chunk: tuple[int, int, int] | None,
        detail: str,
        remedy: str = "To build it again from its source, run: prect verify --deep --repair",
    ) -> None:
        where = "shard" if chunk is None else f"chunk {chunk}"
        super().__init__(f"case {case}, level {level}, {where}: {detail}. {remedy}".rstrip())
        self.case = case
        self.level = level
        self.chunk = chunk
        self.detail = detail
        self.remedy = remedy

    def __reduce__(
        self,
    ) -> tuple[
        type[ChunkError],
        tuple[str, int, tuple[int, int, int] | None, str, str],
        dict[str, object],
    ]:
        made_of = (self.case, self.level, self.chunk, self.detail, self.remedy)
        return type(self), made_of, self.__dict__


class ClusterError(PrectError, RuntimeError):
    """A Dask scheduler cannot be reached, or has no workers."""


class BuildError(PrectError, RuntimeError):
    """The build engine itself failed; single volumes that fail are quarantined instead."""


class CheckpointError(PrectError, ValueError):
    """A checkpoint or weight file is missing, foreign or damaged."""


class TrainingError(PrectError, RuntimeError):
    """A run cannot start or cannot go on."""


class SinkError(PrectError, RuntimeError):
    """Figures of a run cannot be written beside ``metrics.jsonl``.

    Attributes:
        sink: ``tensorboard``, ``wandb`` or ``mlflow``.
    """

    def __init__(self, sink: str, text: str) -> None:
        super().__init__(f"{sink} {text}")
        self.sink = sink
        self.text = text

    def __reduce__(self) -> tuple[type[SinkError], tuple[str, str], dict[str, object]]:
        return type(self), (self.sink, self.text), self.__dict__


class HopelessError(TrainingError):
    """A run cannot go on, as all its processes have agreed; to start them again would not help."""
