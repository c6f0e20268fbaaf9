"""Where figures go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow.

A sink is told each line of figures. What a foreign library does with it happens in a thread of its
own, so neither a slow server nor a full disk holds up or ends a training: a sink that fails is
dropped, and says so once. ``metrics.jsonl`` has all figures, whatever becomes of the sinks.

::

    runs/<name>/
      tensorboard/     event files
      wandb/           what W&B keeps of the run on disk
      wandb.json       the run's id at W&B, under which it goes on
      mlflow.json      the same at MLflow, and where that is
    runs/mlflow.db     MLflow's own database, unless MLFLOW_TRACKING_URI names another place
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from prect.errors import ConfigError, SinkError
from prect.files import make_folder
from prect.train.config import TrainConfig
from prect.train.report.trackers import MlflowTracker, TensorBoardTracker, Tracker, WandbTracker

CLOSE_SECONDS = 10.0
"""All sinks together have so long at the end: a process that is told to stop has not much more."""
OPEN_SECONDS = 120.0
"""A new run waits so long until its sinks are open."""
_PENDING = 10_000
"""Lines that may wait for a sink that is slow."""

_TRACKERS: dict[str, Callable[[TrainConfig, Path, int], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
_INSTALL = {
    "tensorboard": "pip install tensorboard",
    "wandb": "pip install 'prect[wandb]'",
    "mlflow": "pip install 'prect[mlflow]'",
}


class Sink(Protocol):
    """Takes figures, on rank 0."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take one line of ``metrics.jsonl``; returns at once.

        Raises:
            SinkError: this or an earlier line could not be written; no more will be.
        """

    def close(self) -> None:
        """Write what is left, in `CLOSE_SECONDS` at most.

        Raises:
            SinkError: not all could be written.
        """


def check_sinks(config: TrainConfig) -> None:
    """Look whether the libraries of all sinks are there.

    Raises:
        ConfigError: one is not; says how to install it.
    """
    for name in config.train.log_to:
        if find_spec(name) is None:
            raise ConfigError(
                f"train.log_to asks for {name}, which is not installed; {_INSTALL[name]}, or leave "
                f"{name} out of train.log_to"
            )


def open_sinks(config: TrainConfig, folder: Path, step: int) -> list[Sink]:
    """The sinks of ``train.log_to``, on rank 0.

    A new run waits until they are open, while somebody still looks. A run that goes on does not:
    a server that is down at night must not keep it from training, and `write_all` tells.

    Args:
        config: the run's settings.
        folder: of the run.
        step: optimiser steps done; figures of later steps belong to a future that was left.

    Raises:
        ConfigError: the library of a sink is missing.
        SinkError: a new run's sink cannot be opened.
    """
    check_sinks(config)
    make_folder(folder)
    opened: list[_Background] = []
    for name in dict.fromkeys(config.train.log_to):
        opened.append(_Background(name, partial(_TRACKERS[name], config, folder, step)))
    if step == 0:
        try:
            for sink in opened:
                sink.wait()
        except SinkError:
            close_all(list(opened))  # the first failure is the one that is told
            raise
    return list(opened)


def write_all(sinks: list[Sink], step: int, figures: Mapping[str, float]) -> list[SinkError]:
    """Write to all sinks, take those that fail out of the list, and return their failures."""
    failures = []
    for sink in list(sinks):
        try:
            sink.write(step, figures)
        except SinkError as error:
            sinks.remove(sink)
            failures.append(error)
    return failures


def close_all(sinks: list[Sink]) -> list[SinkError]:
    """Close all sinks at the same time, empty the list, and return the failures."""

    def close(sink: Sink) -> SinkError | None:
        try:
            sink.close()
        except SinkError as error:
            return error
        return None

    if not sinks:
        return []
    with ThreadPoolExecutor(len(sinks)) as pool:
        failures = list(pool.map(close, sinks))
    sinks.clear()
    return [failure for failure in failures if failure is not None]


class _Background:
    """A sink that hands lines to a tracker in a thread, which opens and closes it, too."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self.name = name
        self._open_tracker = open_tracker
        self._lines: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_PENDING)
        self._error: Exception | None = None
        self._ready = threading.Event()
        # A daemon: a process that has to end does not wait for a server that is silent.
        self._thread = threading.Thread(target=self._work, name=f"figures to {name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the tracker is open.

        Raises:
            SinkError: it cannot be opened, or not in `OPEN_SECONDS`.
        """
        if not self._ready.wait(OPEN_SECONDS):
            raise SinkError(
                self.name,
                f"did not open in {OPEN_SECONDS:.0f} s; see that its server can be reached, or "
                f"leave {self.name} out of train.log_to",
            )
        if self._error is not None:
            raise SinkError(
                self.name,
                f"cannot be opened ({_told(self._error)}); put that right, or leave {self.name} "
                "out of train.log_to",
            ) from self._error

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Sink`."""
        self._check()
        try:
            self._lines.put_nowait((step, dict(figures)))
        except queue.Full:
            raise self._dropped(f"it is {_PENDING:,} lines behind") from None

    def close(self) -> None:
        """See `Sink`."""
        with suppress(queue.Full):  # then it is too far behind to end in time, which is told
            self._lines.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise self._dropped(f"it did not end in {CLOSE_SECONDS:.0f} s")
        self._check()

    def _work(self) -> None:
        try:
            tracker = self._open_tracker()
            self._ready.set()
            while (line := self._lines.get()) is not None:
                tracker.write(*line)
            tracker.close()
        except Exception as error:
            # Foreign libraries raise what they like; the training thread is told of it.
            self._error = error
        finally:
            self._ready.set()

    def _check(self) -> None:
        if self._error is not None:
            raise self._dropped(_told(self._error)) from self._error

    def _dropped(self, cause: str) -> SinkError:
        return SinkError(
            self.name,
            f"takes no more figures ({cause}); metrics.jsonl has them all, and the next start of "
            "the run tries again",
        )


def _told(error: Exception) -> str:
    """An error of a foreign library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
