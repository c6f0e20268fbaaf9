"""What a whole build will take: disk, time and memory, from trial builds of a sample.

Known of every volume without opening a file: the voxels of its file, and those of its field of
view on the grid of the profile. Measured on the sample: the bytes stored a voxel of that grid,
and the seconds a voxel of file and grid together. `prect.cache.forecast.ratio` has the statistics.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from distributed import Client

from prect.cache.forecast.amounts import Amounts, Part, amounts
from prect.cache.forecast.ratio import Interval, Sample, allocate, draw
from prect.cache.forecast.trial import Measured, Trial, trial_folder, try_out
from prect.cache.forecast.volumes import Volumes, volumes_to_build
from prect.cache.memory import decoded_bytes, machine_memory, memory_needed
from prect.cache.plan import Plan, usable_jobs
from prect.errors import BuildError, ManifestError
from prect.manifests.stores import CacheRow
from prect.retries import run_retrying
from prect.units import Triple

_LEAST_SAMPLE = 20
_SAMPLED_SHARE = 0.01
_LARGE = 0.5
"""Share of the largest sampled volume from which on a volume tells of the memory of large ones."""


@dataclass(frozen=True)
class Memory:
    """What a worker holds while it builds the largest volume; bytes."""

    shape: Triple
    """Voxels of the largest volume's file, (i, j, k)."""
    stated: int
    """The bound that a build keeps; see `prect.cache.memory`."""
    per_decoded_byte: float | None
    """Peak of the large volumes of the sample, less an idle worker, over the bytes of the volume
    as int16, of the file or of the grid if that is larger."""
    measured: int | None
    """What that makes for the largest volume; None when no volume of the sample was stored."""
    machine: int
    """Memory of this machine; of the smallest one, where the workers are on several."""

    @property
    def needed(self) -> int:
        """What to reckon with for each worker."""
        return max(self.stated, self.measured or 0)

    @property
    def workers(self) -> int:
        """Workers that one machine has the memory for; 0 when not even for one."""
        return self.machine // self.needed


@dataclass(frozen=True)
class Estimate:
    """Estimate of a build."""

    profile: str
    profile_digest: str
    intensity: str
    datasets: dict[str, Amounts]
    total: Amounts
    memory: Memory | None
    """None when there is nothing to build."""
    workers: int
    """Processes of the build."""
    seed: int
    free_bytes: int
    """On the disk of the stores."""

    @property
    def hours(self) -> Interval:
        """Of the build, with all workers at work until its end."""
        return self.total.worker_seconds.times(1 / 3600 / self.workers)

    @property
    def fits(self) -> str:
        """Whether the stores fit on the disk: ``yes``, ``no`` or ``unsure``.

        What stores that are replaced will give back is not counted.
        """
        stored = self.total.stored_bytes
        if stored.low is None or stored.high is None:
            return "no" if stored.value > self.free_bytes else "unsure"
        if stored.high <= self.free_bytes:
            return "yes"
        return "no" if stored.low > self.free_bytes else "unsure"


def sample_size(volumes: int, datasets: int) -> int:
    """Volumes to build on trial: 1 %, at least 20, and two of each data set."""
    wanted = max(_LEAST_SAMPLE, math.ceil(_SAMPLED_SHARE * volumes), 2 * datasets)
    return min(volumes, wanted)


def estimate(
    plans: Sequence[Plan],
    client: Client | None,
    *,
    workers: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    on_trial: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
) -> Estimate:
    """Build a sample on trial, and say what the whole will take. Nothing stays on disk.

    Args:
        plans: one a data set, at least one; of one workspace and one profile.
        client: Dask client; may be ``None`` when there is nothing to build.
        workers: processes of the build; those of the client when left out.
        sample: volumes to build on trial; `sample_size` when left out.
        seed: of the choice of volumes.
        on_trial: called after each.
        stop: asked before each; once it says yes, what is in flight is finished.

    Raises:
        KeyboardInterrupt: ``stop`` said yes.
        BuildError: the worker died on every volume of the sample; or there is no client.
        ManifestError: a source manifest has changed since the plan was made.
        OSError: a store cannot be written, for example since the disk is full.
    """
    everything = [volumes_to_build(plan) for plan in plans]
    cache, profile = plans[0].workspace.cache, plans[0].profile
    samples = _samples(everything, sample, seed)
    parts = [Part(volumes, drawn, {}) for volumes, drawn in zip(everything, samples, strict=True)]
    memory = None
    if any(plan.todo for plan in plans):
        if client is None:
            raise BuildError("there are volumes to build and no Dask client")
        # Asked first: at the end, a worker may just be dying of the last volume.
        machine = min(client.run(machine_memory).values(), default=machine_memory())
        workers = workers or len(client.nthreads())
        with trial_folder(cache) as folder:
            trials = _trials(plans, parts, folder)
            results = dict(_run(trials, client, on_trial, stop))
        if stop():
            raise KeyboardInterrupt
        if len(results) < sum(len(part.cases) for part in parts):
            raise ManifestError("a source manifest has changed since the plan was made; plan again")
        parts = [Part(part.volumes, part.sample, results) for part in parts]
        memory = _memory(parts, machine)
    return Estimate(
        profile=profile.name,
        profile_digest=profile.digest,
        intensity=str(profile.intensity),
        datasets={part.volumes.dataset: amounts([part], parts) for part in parts},
        total=amounts(parts, parts),
        memory=memory,
        workers=workers or 1,
        seed=seed,
        free_bytes=shutil.disk_usage(_existing(cache)).free,
    )


def _samples(everything: Sequence[Volumes], wanted: int | None, seed: int) -> list[Sample]:
    """Strata of size in each data set; the largest volume of all is drawn, for its memory."""
    counts = [len(volumes) for volumes in everything]
    if wanted is None:
        wanted = sample_size(sum(counts), sum(count > 0 for count in counts))
    sizes = [float(volumes.grid_voxels.sum()) for volumes in everything]
    numbers = allocate(counts, sizes, wanted)
    tops = [int(volumes.held.max(initial=0)) for volumes in everything]
    chance = np.random.default_rng(seed)
    samples = []
    for volumes, number, top in zip(everything, numbers, tops, strict=True):
        certain = int(volumes.held.argmax()) if top and top == max(tops) else None
        samples.append(draw(volumes.grid_voxels.astype(np.float64), number, chance, certain))
    return samples


def _trials(plans: Sequence[Plan], parts: Sequence[Part], folder: Path) -> Iterator[Trial]:
    for plan, part in zip(plans, parts, strict=True):
        if part.cases:
            for job in usable_jobs(plan.dataset, plan.workspace, plan.profile, part.cases):
                yield Trial(job, folder)


def _run(
    trials: Iterator[Trial],
    client: Client,
    on_trial: Callable[[], None],
    stop: Callable[[], bool],
) -> Iterator[tuple[tuple[str, str], Measured | None]]:
    for trial, measured in run_retrying(client, try_out, trials, stop=stop):
        on_trial()
        yield trial.key, measured


def _memory(parts: Sequence[Part], machine: int) -> Memory:
    volumes = max((part.volumes for part in parts), key=lambda v: v.held.max(initial=0))
    largest = int(volumes.held.argmax())
    held = int(volumes.held[largest])
    stored = [
        (decoded_bytes([part.volumes.held[unit]]), measured)
        for part in parts
        for unit, measured in zip(part.sample.units, part.measured, strict=True)
        # One that fails may fail before it takes memory.
        if measured is not None and isinstance(measured.outcome, CacheRow)
    ]
    rate = measured_bytes = None
    if stored:
        # Later on, a worker still holds what earlier volumes have left free.
        idle = min(measured.base_bytes for _, measured in stored)
        top = max(size for size, _ in stored)
        rate = max((m.peak_bytes - idle) / size for size, m in stored if size >= _LARGE * top)
        measured_bytes = round(idle + rate * decoded_bytes([held]))
    i, j, k = (int(n) for n in volumes.shapes[largest])
    return Memory(
        shape=(i, j, k),
        stated=memory_needed([held]),
        per_decoded_byte=rate,
        measured=measured_bytes,
        machine=machine,
    )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
