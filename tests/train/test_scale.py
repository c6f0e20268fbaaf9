"""A manifest of 160,000 volumes: the time to the first batch, and the memory of a worker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from prect.manifests.stores import load_cache_table, read_cache_table, write_cache_table
from prect.train.config import TrainConfig, load_config
from prect.train.data import check_windows, split_data
from prect.train.loader import train_loader, worker_context
from prect.train.prefetch import region_bytes
from prect.workspace import Workspace
from tests.train.simulated import simulated_pool, write_simulated_manifest

COUNTS = {"abdomen": 40_000, "chest": 90_000, "headneck": 30_000}
LIMIT_S = 2.0
LIMIT_MIB = 300
MIB = 2**20


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """160,000 volumes in three data sets."""
    workspace = Workspace(tmp_path_factory.mktemp("collection"))
    write_simulated_manifest(workspace, COUNTS)
    return workspace


def mixed(workers: int) -> TrainConfig:
    """The published mix of the three recipes."""
    recipes = "{abdomen='v2-abdomen', chest='v2-chest', headneck='v2-global'}"
    return load_config(
        "voco-b",
        overrides=[
            f"data.datasets={list(COUNTS)}",
            f"data.workers={workers}",
            "data.global_batch=2",
            f"data.recipes={recipes}",
            "data.weights={abdomen=8, headneck=8}",
        ],
    )


def first_batch(workspace: Workspace, workers: int, step: int) -> dict[str, Any]:
    """Seconds from nothing to the first batch, its indices, and each worker's memory in bytes."""
    begin = time.perf_counter()
    config = mixed(workers)
    table = load_cache_table(workspace, config.data.datasets)
    check_windows(table, config)
    views = split_data(workspace, table, config).views(config, pool=simulated_pool())
    batches = train_loader(views, config, range(step, 2_000_000))
    batch = next(batches)
    seconds = time.perf_counter() - begin
    for _ in range(20):
        next(batches)
    family = psutil.Process().children(recursive=True)
    memory = [p.memory_full_info() for p in family if p.name() == "pt_data_worker"]
    return {
        "workers": workers,
        "step": step,
        "seconds": seconds,
        "indices": [sample.index for sample in batch.samples],
        "pss": [used.pss for used in memory],
        "rss": [used.rss for used in memory],
    }


def measure(folder: str) -> None:
    """Print the figures of all combinations; called in a process that did nothing else before."""
    server = worker_context().Process(target=int)  # imports are not what is measured
    server.start()
    server.join()
    for workers, step in product((0, 2), (0, 1_000_000)):
        print(json.dumps(first_batch(Workspace(folder), workers, step)))  # noqa: T201


def run_measure(workspace: Workspace) -> list[dict[str, Any]]:
    code = f"from tests.train.test_scale import measure; measure({str(workspace.root)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def figures(collection: Workspace) -> list[dict[str, Any]]:
    """Of each combination the fastest of up to four runs: other work on the machine only adds."""
    best = run_measure(collection)
    for _ in range(3):
        if all(figure["seconds"] < LIMIT_S for figure in best):
            break
        pairs = zip(best, run_measure(collection), strict=True)
        best = [min(pair, key=lambda figure: figure["seconds"]) for pair in pairs]
    return best


def test_the_first_batch_comes_at_once_from_any_step(figures: list[dict[str, Any]]) -> None:
    assert len(figures) == 4
    for figure in figures:
        assert figure["seconds"] < LIMIT_S
        assert figure["indices"] == [2 * figure["step"], 2 * figure["step"] + 1]


def test_a_worker_is_small(figures: list[dict[str, Any]]) -> None:
    """Its own pages and its part of those that it shares, and even all of them together."""
    for figure in figures:
        assert len(figure["pss"]) == figure["workers"]
        assert all(size < LIMIT_MIB * MIB for size in figure["pss"])
        # torch alone maps more than half of this, in pages that all workers share.
        assert all(size < 2 * LIMIT_MIB * MIB for size in figure["rss"])


def test_the_largest_region_is_found_in_milliseconds(collection: Workspace) -> None:
    config = mixed(0)
    data = split_data(collection, load_cache_table(collection, list(COUNTS)), config)
    begin = time.perf_counter()
    sizes = region_bytes(config, data.geometry, data.names.sources)
    assert time.perf_counter() - begin < 0.5
    assert sizes.shape == (160_000,)
    assert sizes.min() > 0


def test_the_digest_is_that_of_the_rows_in_order_of_case(
    collection: Workspace,
) -> None:
    table = load_cache_table(collection, ["headneck"])
    path = collection.cache_manifest("headneck")
    rows = read_cache_table(path)
    write_cache_table(path, rows.take(np.random.default_rng(0).permutation(rows.num_rows)))
    again = load_cache_table(collection, ["headneck"])
    assert (again.digest, again.case[123]) == (table.digest, table.case[123])
