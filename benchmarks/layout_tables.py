"""What layout.py found, as tables and for its JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any, Literal

from layout_reads import VIEWS, Reads
from layout_sweep import (
    LEAST_ENCODE_MB_S,
    SHORT,
    Grid,
    Layout,
    Reference,
    Row,
    Sweep,
    chunk_name,
    front,
)
from measuring import machine
from rich import box
from rich.table import Table

from prect.units import Triple

LIBRARIES = ("prect", "numcodecs", "numpy", "SimpleITK")


@dataclass
class Found:
    """All that was measured."""

    reference: Reference
    grids: dict[str, list[Grid]]
    """By profile."""
    rows: dict[Sweep, list[Row]] = field(default_factory=dict)
    reads: dict[Sweep, list[Reads]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What was not measured, or not on what it is meant for."""

    def tables(self) -> list[Table]:
        """Sweeps, levels, then warm and cold reads."""
        found = [sweep_table(sweep, rows, self.reference) for sweep, rows in self.rows.items()]
        found.append(level_table(self.rows))
        for sweep, reads in self.reads.items():
            found.append(reads_table(sweep, reads, self.rows[sweep], "warm"))
            if all(each.cold for each in reads):
                found.append(reads_table(sweep, reads, self.rows[sweep], "cold"))
        return found

    def document(self) -> dict[str, Any]:
        """All figures, for the JSON file."""
        return {
            "volumes": [grid_json(grid) for grids in self.grids.values() for grid in grids],
            "reference": layout_json(self.reference.layout)
            | {
                "encode_mb_s": self.reference.encode_mb_s,
                "decode_mb_s": self.reference.decode_mb_s,
            },
            "sweep": [row_json(row, self.reference) for rows in self.rows.values() for row in rows],
            "reads": [reads_json(each) for reads in self.reads.values() for each in reads],
            "notes": self.notes,
            "machine": machine(LIBRARIES),
        }


def middle(values: Sequence[float]) -> str:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return f"{median(values):.2f}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.2f} ({low:.2f}-{high:.2f})"


def sweep_table(sweep: Sweep, rows: Sequence[Row], reference: Reference) -> Table:
    """Codecs down, chunks across."""
    table = Table(
        title=f"{sweep.name}: ratio of all levels, decode GB/s",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("codec", no_wrap=True)
    table.add_column("encode MB/s", justify="right", no_wrap=True)
    for chunk in sweep.chunks:
        table.add_column(f"{chunk_name(chunk)} ", justify="right", no_wrap=True)
    best = front(rows, reference)
    cells: dict[str, dict[Triple, str]] = {}
    speeds: dict[str, list[float]] = {}
    for row in rows:
        codec = row.layout.codec
        block = ", one block" if codec.blocksize else ""
        name = f"{codec.cname} {codec.clevel} {SHORT[codec.shuffle]}{block}"
        text = f"{row.ratio:.2f} {row.decode * reference.decode_mb_s / 1e3:.1f}"
        text = f"[bold]{text}*[/bold]" if row in best else f"{text} "
        cells.setdefault(name, {})[row.layout.chunk] = text
        speeds.setdefault(name, []).append(row.encode * reference.encode_mb_s)
    for name, texts in cells.items():
        speed = f"{min(speeds[name]):.0f}-{max(speeds[name]):.0f}"
        table.add_row(name, speed, *(texts.get(chunk, "as 0 ") for chunk in sweep.chunks))
    table.caption = (
        f"* no other layout that encodes {LEAST_ENCODE_MB_S:.0f} MB/s has both a better ratio and "
        "a faster decode. One block: blosc's block size is the whole chunk; as 0: it is so "
        "without asking."
    )
    return table


def level_table(found: dict[Sweep, list[Row]]) -> Table:
    """How much each further level costs, in the default layout."""
    table = Table(title="default layout", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("form", no_wrap=True)
    table.add_column("volume", no_wrap=True)
    count = max(len(levels) for rows in found.values() for levels in rows[0].level_bytes.values())
    for number in range(1, count + 1):
        table.add_column(f"{number} levels" if number > 1 else "1 level", justify="right")
    for sweep, rows in found.items():
        row = next(row for row in rows if row.layout == sweep.default)
        for name, levels in row.level_bytes.items():
            float32 = row.ratios[name] * sum(levels)
            texts = [f"{float32 / sum(levels[:n]):.2f}" for n in range(1, len(levels) + 1)]
            table.add_row(sweep.name, name, *texts)
    table.caption = "Ratio to float32 by the number of levels."
    return table


def reads_table(
    sweep: Sweep, reads: Sequence[Reads], rows: Sequence[Row], kind: Literal["warm", "cold"]
) -> Table:
    """Layouts down, views across, the smallest stores first."""
    what = "CPU ms of a warm read" if kind == "warm" else "ms of opening a store and a cold read"
    table = Table(
        title=f"{sweep.name}: {what}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layout", no_wrap=True)
    for name in ("ratio", *VIEWS, "gain", *(["MB, v2"] if kind == "cold" else [])):
        table.add_column(name, justify="right", no_wrap=True)
    (default,) = (each for each in reads if each.candidate.layout == sweep.default)
    ratios = {row.layout: row.ratio for row in rows}
    for each in sorted(reads, key=lambda one: -ratios[one.candidate.layout]):
        layout = each.candidate.layout
        figures, usual = (each.warm, default.warm) if kind == "warm" else (each.cold, default.cold)
        gains = [a / b for a, b in zip(usual["v2 region"], figures["v2 region"], strict=True)]
        cells = [f"{ratios[layout]:.2f}", *(middle(figures[view]) for view in VIEWS)]
        cells.append(f"{median(gains):.2f}")
        if kind == "cold":
            cells.append(f"{median(each.device['v2 region']):.1f}")
        name = f"{layout}, default" if each is default else str(layout)
        table.add_row(name, *cells, style="bold" if each is default else None)
    table.caption = (
        "Medians (quartiles) over the same boxes of all volumes, layouts in turn. Gain: the "
        "default's time for the v2 region over the own, box by box."
    )
    return table


def grid_json(grid: Grid) -> dict[str, Any]:
    return {
        "name": grid.name,
        "profile": grid.profile,
        "shape": grid.levels[0].shape,
        "full_shape": grid.full_shape,
        "float32_bytes": grid.float32_bytes,
    }


def layout_json(layout: Layout) -> dict[str, Any]:
    return {"chunk": layout.chunk, "codec": layout.codec.model_dump()}


def row_json(row: Row, reference: Reference) -> dict[str, Any]:
    figures = asdict(row)
    del figures["layout"]
    speeds = {
        "encode_mb_s": figures.pop("encode") * reference.encode_mb_s,
        "decode_mb_s": figures.pop("decode") * reference.decode_mb_s,
    }
    return figures | layout_json(row.layout) | speeds


def reads_json(reads: Reads) -> dict[str, Any]:
    return {
        "profile": reads.candidate.profile,
        "form": reads.candidate.form.name,
        **layout_json(reads.candidate.layout),
        "store_bytes": reads.store_bytes,
        "shard_bytes": reads.shard_bytes,
        "warm_ms": reads.warm,
        "cold_ms": reads.cold,
        "device_mb": reads.device,
    }
