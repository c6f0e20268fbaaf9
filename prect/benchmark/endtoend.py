"""The loader end to end, and the start of a run over 160,000 volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from prect.benchmark.boxes import Volume
from prect.benchmark.inputs import Step
from prect.benchmark.measuring import BenchmarkError
from prect.benchmark.processes import Process
from prect.manifests.stores import CacheRow, cache_table, read_cache_rows, write_cache_table
from prect.workspace import Workspace

FEEDING = "prect.benchmark.feeding"
VOLUMES_PER_GPU = 53 / 8
"""Volumes a second that one H100 takes when it trains VoCo-B: 53 on eight is the published pace."""
RESUME_STEP = 1_000_000
_SIMULATED = "simulated"


def feed(
    workspace: Workspace,
    dataset: str,
    volumes: Sequence[Volume],
    pickles: Path | None,
    workers: Sequence[int],
    seconds: float,
    on_step: Step,
) -> list[dict[str, Any]]:
    """Rates of the loaders, one row each.

    Args:
        workspace: with the stores and the manifest of ``dataset``.
        dataset: its name.
        volumes: what every loader reads, prect from their stores of HU.
        pickles: folder of the arm ``monai-persistent``; None leaves it out.
        workers: numbers of reading processes.
        seconds: to measure each for.
        on_step: told what is done next.
    """
    rows = []
    stores = [volume.hu for volume in volumes]
    for count in workers:
        on_step(f"loaders with {count} workers")
        asked: list[tuple[str, str, tuple[object, ...]]] = [
            ("prect", "prect", (workspace.root, dataset, stores, count, seconds, False)),
            ("prect, aligned", "prect", (workspace.root, dataset, stores, count, seconds, True)),
        ]
        if pickles is not None:
            asked.append(("monai-persistent", "monai", (list(volumes), pickles, count, seconds)))
        for loader, method, arguments in asked:
            rows.append({"loader": loader, "workers": count, **_ask(method, *arguments)})
    return [row | _gpus(row) for row in rows]


def _ask(method: str, *arguments: object) -> dict[str, Any]:
    try:
        with Process(FEEDING) as process:
            answer: dict[str, Any] = process.ask(method, *arguments)
            return answer
    except BenchmarkError as error:
        return {"reason": str(error)}


def _gpus(row: dict[str, Any]) -> dict[str, float]:
    if not row.get("cpu_s"):
        return {}
    return {"gpus_a_core": 1 / row["cpu_s"] / VOLUMES_PER_GPU}


def start(
    folder: Path, workspace: Workspace, dataset: str, rows: int, workers: int, on_step: Step
) -> dict[str, Any]:
    """Time a run's first batch from a manifest of many volumes, at step 0 and far on.

    Args:
        folder: new, for the simulated workspace.
        workspace: with the stores that stand for all of them.
        dataset: theirs.
        rows: of the manifest.
        workers: reading processes.
        on_step: told what is done next.

    Returns:
        ``first`` and ``resume`` with their seconds, or ``reason``.
    """
    on_step(f"simulating {rows:,} volumes")
    simulated = simulate(folder, workspace, dataset, rows)
    told: dict[str, Any] = {"rows": rows, "workers": workers, "resume_step": RESUME_STEP}
    for key, step in (("first", 0), ("resume", RESUME_STEP)):
        on_step(f"the first batch at step {step:,}")
        found = _ask("first_batch", simulated.root, _SIMULATED, workers, step)
        told |= {"reason": found["reason"]} if "reason" in found else {key: found}
    return told


def simulate(folder: Path, workspace: Workspace, dataset: str, rows: int) -> Workspace:
    """A manifest of many volumes, each of a patient of its own; links stand for their stores.

    Raises:
        ManifestError: the data set has no manifest of stores.
    """
    known = read_cache_rows(workspace.cache_manifest(dataset))
    simulated = Workspace(folder)
    stores = [workspace.store(dataset, row.case).resolve() for row in known]
    simulated.dataset_cache(_SIMULATED).mkdir(parents=True)

    made: list[CacheRow] = []
    for number, (row, store) in enumerate(islice(cycle(zip(known, stores, strict=True)), rows)):
        case = f"{number:016x}"
        simulated.store(_SIMULATED, case).symlink_to(store)
        made.append(replace(row, dataset=_SIMULATED, case=case, patient=f"{number:032x}"))
    write_cache_table(simulated.cache_manifest(_SIMULATED), cache_table(made))
    return simulated
