"""Read times of stores in several layouts, through prect's own writer and reader; for layout.py.

Boxes are drawn from a fixed seed, the same for every layout; layouts take turns at each box.
Warm: the files are in the page cache and the readers open; CPU seconds, since nothing waits.
Cold: every handle is closed, the store's files are dropped from the page cache, and the time on
the clock is that of opening the store and reading one box.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from layout_sweep import Form, Grid, Layout
from measuring import SEED

from prect.cache.format import BodyBox, LevelAttributes, SourceAttributes, StoreAttributes
from prect.cache.reader import StoreReader
from prect.cache.rows import store_bytes
from prect.cache.writer import StoreWriter
from prect.train.views import Geometry, plan_region, whole_view
from prect.units import Triple

REGION: Triple = (64, 192, 192)
"""Of VoCo v2, (z, y, x)."""
BOXES: dict[str, Triple] = {"64^3": (64, 64, 64), "96^3": (96, 96, 96), "v2 region": REGION}
ALIGNED = "v2 aligned"
"""The v2 region, its origin moved down to the grid of inner chunks."""
WHOLE = "whole body"
"""The coarsest level that is fine enough for the grid of `REGION`, all of it."""
VIEWS = (*BOXES, ALIGNED, WHOLE)
LEAST_FROM_DEVICE = 0.9
"""Share of a dropped store that must come from the device again, or cold is not cold."""


@dataclass(frozen=True)
class Candidate:
    """A layout whose reads are timed."""

    profile: str
    form: Form
    layout: Layout


@dataclass
class Reads:
    """What was measured of one candidate."""

    candidate: Candidate
    store_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of all files of the store, by volume."""
    shard_bytes: dict[str, list[int]] = field(default_factory=dict)
    """By volume and level."""
    warm: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Milliseconds by view, of every volume and round."""
    cold: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    device: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Megabytes that came from the device in the cold reads."""


@dataclass(frozen=True)
class Box:
    """A box of one level, (z, y, x)."""

    level: int
    start: Triple
    shape: Triple


def write_store(path: Path, grid: Grid, form: Form, layout: Layout) -> tuple[LevelAttributes, ...]:
    """A store of a volume; what else its attributes say is made up."""
    z, y, x = grid.spacing
    size = grid.levels[0].shape
    with StoreWriter(path) as writer:
        levels = writer.write_levels(
            grid.levels[0],
            grid.spacing,
            layout.chunk,
            layout.codec,
            len(grid.levels),
            form.intensity,
        )
        attributes = StoreAttributes(
            format_version=1,
            dataset="layout",
            case=path.name.removesuffix(".ome.zarr"),
            patient=32 * "0",
            series=32 * "0",
            source_digest=32 * "0",
            made_from=32 * "0",
            profile={},
            profile_digest=16 * "0",
            affine=((x, 0, 0, 0), (0, y, 0, 0), (0, 0, z, 0), (0, 0, 0, 1)),
            source=SourceAttributes(
                format="nifti", bytes=0, shape=size, spacing=(x, y, z), orientation="RAS"
            ),
            body_box=BodyBox(offset=(0, 0, 0), full_shape=grid.full_shape),
            hu_percentiles={},
            intensity=form.intensity,
            levels=levels,
            software={},
        )
        writer.commit(attributes)
    return levels


def draw_boxes(grid: Grid, rounds: int) -> list[dict[str, Box]]:
    """The boxes of each round, by view; an axis shorter than a box lies in its middle."""
    random = np.random.default_rng(SEED)
    shape = grid.levels[0].shape

    def start(free: int) -> int:
        return int(random.integers(0, free + 1)) if free >= 0 else free // 2

    drawn = []
    for number in range(rounds):
        boxes = {}
        for view, sizes in BOXES.items():
            z, y, x = (start(n - s) for n, s in zip(shape, sizes, strict=True))
            boxes[view] = Box(0, (z, y, x), sizes)
        boxes[ALIGNED] = boxes["v2 region"]
        if number % 4 == 0:  # all of it takes as long as many boxes, and does not move
            boxes[WHOLE] = _whole(grid)
        drawn.append(boxes)
    return drawn


def _whole(grid: Grid) -> Box:
    z, y, x = grid.levels[0].shape
    geometry = Geometry((z, y, x), grid.spacing, len(grid.levels))
    region = plan_region(whole_view(geometry, (REGION[2], REGION[1], REGION[0])), geometry)
    return Box(region.level, region.start, region.shape)


def _aligned(box: Box, chunk: Triple) -> Box:
    z, y, x = (max(s, 0) // c * c for s, c in zip(box.start, chunk, strict=True))
    return Box(box.level, (z, y, x), box.shape)


def from_device() -> int:
    """Bytes that the device has given this process so far.

    Raises:
        OSError: this system does not tell.
    """
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["read_bytes"])


def drop(store: Path) -> None:
    """Drop the files of a store, which nobody may hold open, from the page cache."""
    for path in store.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that are not on the disk yet cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def why_not_cold(store: Path) -> str | None:
    """What keeps cold reads from being measured on the file system of a store, or None."""
    if not hasattr(os, "posix_fadvise"):
        return "this system has no posix_fadvise"
    try:
        drop(store)
        before = from_device()
        read = sum(len(path.read_bytes()) for path in store.rglob("*") if path.is_file())
        came = from_device() - before
    except OSError as error:
        return f"/proc/self/io cannot be read ({error.strerror})"
    if came < LEAST_FROM_DEVICE * read:
        return f"of {read} bytes dropped from the page cache only {came} came from a device"
    return None


def measure(
    candidates: Sequence[Candidate],
    grids: Sequence[Grid],
    rounds: int,
    folder: Path,
    on_step: Callable[[str], None],
) -> tuple[list[Reads], str | None]:
    """Time the views of each candidate on each volume.

    Args:
        candidates: of one profile.
        grids: volumes of that profile.
        rounds: boxes of each view and volume.
        folder: where the stores are written, and removed.
        on_step: told what is done next.

    Returns:
        The figures, and why cold reads were not measured, or None when they were.
    """
    reads = [Reads(candidate) for candidate in candidates]
    reason: str | None = None
    for grid in grids:
        stores = []
        for number, each in enumerate(reads):
            on_step(f"{grid.profile}, {grid.name}: writing store {number + 1} of {len(reads)}")
            stores.append(folder / f"{grid.profile}-{grid.name}-{number}.ome.zarr")
            _write(each, grid, stores[-1])
        boxes = draw_boxes(grid, rounds)
        on_step(f"{grid.profile}, {grid.name}: warm reads")
        _warm(reads, stores, boxes)
        reason = reason or why_not_cold(stores[0])
        if reason is None:
            on_step(f"{grid.profile}, {grid.name}: cold reads")
            reason = _cold(reads, stores, boxes)
        for store in stores:
            shutil.rmtree(store)
    if reason is not None:  # a few of the volumes are not what the figures are said to be
        for each in reads:
            each.cold.clear()
            each.device.clear()
    return reads, reason


def _write(reads: Reads, grid: Grid, store: Path) -> None:
    candidate = reads.candidate
    levels = write_store(store, grid, candidate.form, candidate.layout)
    reads.shard_bytes[grid.name] = [level.shard_bytes for level in levels]
    reads.store_bytes[grid.name] = store_bytes(store)


def _turns(
    reads: Sequence[Reads], boxes: Sequence[dict[str, Box]]
) -> Iterator[tuple[int, str, Box]]:
    """Every read to time: number of the candidate, view and box; candidates take turns."""
    for one_round in boxes:
        for view, box in one_round.items():
            for number, each in enumerate(reads):
                chunk = each.candidate.layout.chunk
                yield number, view, _aligned(box, chunk) if view == ALIGNED else box


def _warm(reads: Sequence[Reads], stores: Sequence[Path], boxes: Sequence[dict[str, Box]]) -> None:
    readers = [StoreReader(store) for store in stores]
    try:
        for reader in readers:
            for number, level in enumerate(reader.levels):
                reader.read(number, (0, 0, 0), level.shape)
        for number, view, box in _turns(reads, boxes):
            out = np.empty(box.shape, dtype=np.int16)
            out.fill(0)  # its pages are there before the clock starts
            began = time.thread_time()
            readers[number].read(box.level, box.start, box.shape, out=out)
            reads[number].warm[view].append(1e3 * (time.thread_time() - began))
    finally:
        for reader in readers:
            reader.close()


def _cold(
    reads: Sequence[Reads], stores: Sequence[Path], boxes: Sequence[dict[str, Box]]
) -> str | None:
    """Time cold reads; what kept them from being cold, or None."""
    for number, view, box in _turns(reads, boxes):
        out = np.empty(box.shape, dtype=np.int16)
        out.fill(0)
        drop(stores[number])
        before = from_device()
        began = time.perf_counter()
        with StoreReader(stores[number]) as reader:
            reader.read(box.level, box.start, box.shape, out=out)
        seconds = time.perf_counter() - began
        came = from_device() - before
        if came == 0:
            return "a read of dropped files took nothing from a device"
        reads[number].cold[view].append(1e3 * seconds)
        reads[number].device[view].append(came / 1e6)
    return None
