"""One run of the benchmark: inputs, arms, loaders, start, goals; the document that it writes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prect import __version__
from prect.benchmark import endtoend
from prect.benchmark.arms import arms, find_arm
from prect.benchmark.boxes import WINDOW, Volume, draw_turns
from prect.benchmark.compare import compare, runners, starve
from prect.benchmark.goals import OWN_ARM, goals
from prect.benchmark.inputs import DATASET, Step, choose_stores, make_phantoms, prepare
from prect.benchmark.measuring import machine
from prect.cache.reader import StoreReader, best_decoder
from prect.workspace import Workspace

LIBRARIES = (
    *("numpy", "numcodecs", "zarr", "zarrs", "tensorstore", "blosc2", "mlarray"),
    *("monai", "torch", "numba", "google-crc32c"),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    size: Literal["small", "clinical"] = "clinical"
    """Of the phantoms."""
    volumes: int = 4
    """That the arms and the loaders read."""
    rounds: int = 12
    """Boxes of each view and volume, warm."""
    cold_rounds: int = 10
    """Of these, read cold."""
    starved_rounds: int = 10
    """Of these, read short of memory; none leaves that out, and makes no control group."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Reading processes of the loaders."""
    seconds: float = 6.0
    """To measure each loader for."""
    manifest_rows: int = 160_000
    start_workers: int = 2
    """Reading processes of the run whose start is timed."""

    @classmethod
    def quick(cls) -> Plan:
        """Small volumes, few boxes, memory enough: shows that it works, in less than a minute."""
        return cls("small", 1, 2, 2, 0, (0,), 0.2, 2000, 0)


def run(
    plan: Plan,
    *,
    names: Sequence[str] | None = None,
    dataset: tuple[Workspace, str] | None = None,
    folder: Path | None = None,
    on_step: Step = lambda _: None,
) -> dict[str, Any]:
    """Measure, and return what was found.

    Args:
        plan: how much.
        names: arms; all when left out.
        dataset: workspace and name of stores of HU that are there; phantoms when left out.
        folder: that temporary files are made in; the system's own when left out.
        on_step: told what is done next.

    Returns:
        The document of the JSON file: ``arms``, ``goals``, ``machine``, ``decoder`` (which one
        prect's reader uses), ``volumes``, ``settings``, ``starved``, ``loaders``, ``start``.

    Raises:
        ConfigError: there is no such arm, or the stores do not hold all HU.
        ManifestError: the data set has no stores.
        OSError: the disk is full, or cannot be written.
    """
    chosen = chosen_arms(names)
    with _scratch(folder) as place:
        if dataset is None:
            workspace, rows = make_phantoms(place / "phantoms", plan.volumes, plan.size, on_step)
            name = DATASET
            stores = [workspace.store(name, row.case) for row in rows]
        else:
            workspace, name = dataset
            stores = choose_stores(workspace, name, plan.volumes)
        on_step("writing the bare voxels and the stores of the window")
        volumes = [prepare(store, place, f"volume{n}") for n, store in enumerate(stores)]
        document = _arms(plan, chosen, volumes, place / "arms", on_step)
        pickles = place / "arms" / "monai-persistent"
        document["loaders"] = endtoend.feed(
            *(workspace, name, volumes, pickles if "monai-persistent" in chosen else None),
            *(plan.workers, plan.seconds, on_step),
        )
        document["start"] = endtoend.start(
            *(place / "simulated", workspace, name, plan.manifest_rows),
            *(plan.start_workers, on_step),
        )
    document["goals"] = [goal.to_json() for goal in goals(document)]
    return document


def _arms(
    plan: Plan, names: Sequence[str], volumes: Sequence[Volume], folder: Path, on_step: Step
) -> dict[str, Any]:
    warm = draw_turns(volumes, plan.rounds)
    a_round = len(warm) // plan.rounds
    cold, starved = warm[: a_round * plan.cold_rounds], warm[: a_round * plan.starved_rounds]
    told = machine(LIBRARIES)
    with runners(names, volumes, folder, on_step) as started:
        compare(started, volumes, warm, cold, on_step)
        shortage = starve(started, volumes, starved, on_step)
    return {
        "prect": __version__,
        "machine": told,
        "decoder": best_decoder().__name__,
        "settings": {
            "volumes": len(volumes),
            "rounds": plan.rounds,
            "cold_rounds": plan.cold_rounds,
            "window_hu": WINDOW,
        },
        "volumes": [_describe(volume) for volume in volumes],
        "arms": [runner.to_json() for runner in started],
        "starved": shortage,
    }


def failures(document: dict[str, Any]) -> list[str]:
    """Arms that were to be measured and failed, or returned wrong voxels; with the reason."""
    bad = ("failed", "wrong")
    return [
        f"{arm['name']}: {arm['status']}"
        for arm in document["arms"]
        if arm["status"].startswith(bad)
    ]


def _describe(volume: Volume) -> dict[str, Any]:
    with StoreReader(volume.hu) as reader:
        levels = reader.attributes.levels
    return {
        "name": volume.name,
        "shape": volume.shape,
        "full_shape": volume.full_shape,
        "chunk": volume.chunk,
        "codec": levels[0].codec.model_dump(),
        "level_bytes": [level.shard_bytes for level in levels],
    }


def chosen_arms(names: Sequence[str] | None) -> list[str]:
    """Names of the arms of a run, in the order of the tables.

    Raises:
        ConfigError: there is no such arm.
    """
    for name in names or ():
        find_arm(name)
    # prect itself is what the others are compared with.
    known = list(arms())
    chosen = [name for name in known if not names or name in (*names, OWN_ARM)]
    return chosen + [name for name in names or () if name not in known]


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="prect-benchmark-", dir=parent)).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
