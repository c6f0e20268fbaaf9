"""Loaders end to end, in a process of their own: run as ``python -m prect.benchmark.feeding``."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prect.benchmark import children
from prect.benchmark.boxes import REGION, Volume
from prect.benchmark.measuring import BenchmarkError
from prect.benchmark.worker import serve
from prect.manifests.stores import load_cache_table
from prect.train.config import TrainConfig, load_config
from prect.train.data import TrainingData, open_data
from prect.train.loader import start_server, train_loader
from prect.workspace import Workspace

BATCH = 4
"""Volumes."""
RECIPE = "v2-abdomen"
_WARM_UP = 6
"""Batches that come before the clock starts, so that no queue is full of what came before it."""
_MANY_STEPS = 1_000_000


def recipe(dataset: str, workers: int, *settings: str) -> TrainConfig:
    """Settings of a run of the v2 recipe; one that splits its patients holds one out."""
    return load_config(
        overrides=(
            *(f"recipe={RECIPE}", "run.name=benchmark", f'data.datasets=["{dataset}"]'),
            *(f"data.workers={workers}", f"data.batch_size={BATCH}"),
            *("data.heldout_share=0", "data.heldout_minimum=1", *settings),
        )
    )


def these(workspace: Workspace, dataset: str, stores: Sequence[Path]) -> TrainingData:
    """Some stores of a data set, all of them to train on.

    Raises:
        BenchmarkError: the manifest of the data set does not list one of them.
        ManifestError: the data set has no stores.
    """
    table = load_cache_table(workspace, [dataset])
    wanted = set(stores)
    rows = [row for row in range(len(table)) if table.store(workspace, row) in wanted]
    if len(rows) != len(wanted):
        raise BenchmarkError(f"the manifest of {dataset} lists {len(rows)} of {len(wanted)} stores")
    return TrainingData(workspace, table, {"train": np.array(rows)})


class Feeding:
    """What may be asked for; each method ends the workers that it starts."""

    def prect(
        self,
        workspace: Path,
        dataset: str,
        stores: Sequence[Path],
        workers: int,
        seconds: float,
        align: bool,
    ) -> dict[str, Any]:
        """Rate of prect's own training loader.

        Args:
            workspace: with the stores of ``dataset``.
            dataset: its name.
            stores: those of it that are read, none held out.
            workers: reading processes.
            seconds: to measure for.
            align: put box origins on the grid of inner chunks.
        """
        config = recipe(dataset, workers, f"view.align={str(align).lower()}")
        views = these(Workspace(workspace), dataset, stores).views(config)
        batches = train_loader(views, config, range(_MANY_STEPS), recycle=True)
        return _rate(batches, seconds)

    def monai(
        self, volumes: Sequence[Volume], folder: Path, workers: int, seconds: float
    ) -> dict[str, Any]:
        """Rate of the same region from PersistentDataset through torch's DataLoader.

        Args:
            volumes: whose pickles lie in ``folder``.
            folder: of the arm ``monai-persistent``.
            workers: reading processes.
            seconds: to measure for.
        """
        from prect.benchmark.monai_loader import batches  # noqa: PLC0415

        return _rate(batches(volumes, folder, REGION, BATCH, workers), seconds)

    def first_batch(
        self, workspace: Path, dataset: str, workers: int, step: int
    ) -> dict[str, float | int]:
        """Time from nothing but imported modules to the first batch of a run.

        Args:
            workspace: with the manifest of ``dataset``.
            dataset: its name.
            workers: reading processes.
            step: that the run begins or goes on with.
        """
        began = time.perf_counter()
        config = recipe(dataset, workers)
        if workers:
            start_server()
        views = open_data(Workspace(workspace), config).views(config)
        opened = time.perf_counter() - began
        batches = train_loader(views, config, range(step, step + 100))
        next(batches)
        seconds = time.perf_counter() - began
        for _ in range(10):
            next(batches)
        pids = children.descendants(os.getpid()) if children.available() else []
        return {
            "seconds": seconds,
            "open_s": opened,
            "worker_private_bytes": max((children.private_bytes(pid) for pid in pids), default=0),
        }


def _rate(batches: Iterator[Any], seconds: float) -> dict[str, Any]:
    began = time.perf_counter()
    for _ in range(_WARM_UP):
        next(batches)
    first = time.perf_counter() - began
    pids = [os.getpid(), *children.descendants(os.getpid())] if children.available() else []
    cpu, start = _cpu(pids), time.perf_counter()
    samples = 0
    while time.perf_counter() < start + seconds:
        next(batches)
        samples += BATCH
    took = time.perf_counter() - start
    cpu = _cpu(pids) - cpu
    del batches
    return {
        "samples": samples,
        "samples_per_s": samples / took,
        "cpu_s": cpu / samples,
        "warm_up_s": first,
    }


def _cpu(pids: Iterable[int]) -> float:
    listed = list(pids)
    # Without /proc the time of the workers is not known.
    return children.cpu_seconds(listed) if listed else time.process_time()


def main() -> None:
    """Serve on standard input and output; what libraries print goes to standard error."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Feeding(), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
