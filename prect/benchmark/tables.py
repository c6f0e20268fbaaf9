"""The document of a run as tables of text: for the terminal, and for the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prect.benchmark.boxes import ALIGNED, VIEWS
from prect.benchmark.goals import OWN_ARM, Figures

Document = Mapping[str, Any]
_STATES = {
    "warm": "Warm, files in the page cache and open",
    "cold": "Cold, files dropped from the page cache and opened again",
    "starved": "Short of memory, a quarter of the files fits",
}
_MISSING = "-"


@dataclass(frozen=True)
class TextTable:
    """A table whose first column names its rows."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    brief: int | None = None
    """Columns that a narrow terminal has room for; all when left out."""

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        lines = [f"**{self.title}**", "", _line(self.header), _line(["---"] * len(self.header))]
        return "\n".join([*lines, *(_line(row) for row in self.rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def tables(document: Document) -> list[TextTable]:
    """All tables of a run: times by state, costs, loaders, start, goals."""
    figures = Figures(document)
    times = [_times(figures, document, state) for state in _STATES]
    spreads = [_spread(figures, document, state) for state in ("warm", "cold")]
    return [
        *times,
        *(table for table in spreads if table.rows),
        _device(figures, document),
        _costs(figures, document),
        _loaders(document),
        _start(document),
        _goals(document),
    ]


def _times(figures: Figures, document: Document, state: str) -> TextTable:
    """Medians, and how many times prect's they are."""
    views = (*VIEWS, ALIGNED)
    title = f"{_STATES[state]}: ms a box, median, and how many times prect's"

    def cell(arm: str, view: str) -> str:
        found, own = (figures.reads(each, state, view) for each in (arm, OWN_ARM))
        if found is None:
            return _MISSING
        text = f"{found['p50_ms']:.2f}"
        if own is None or arm == OWN_ARM:
            return text
        return f"{text} {found['p50_ms'] / own['p50_ms']:.1f}x"

    rows = []
    for arm in document["arms"]:
        cells = [cell(arm["name"], view) for view in views]
        if all(text == _MISSING for text in cells):
            reason = figures.why_not(arm["name"], state).removeprefix(f"{arm['name']}: ")
            cells = [reason, *[""] * (len(views) - 1)]
        rows.append((arm["title"], *cells))
    if not any(
        figures.reads(arm["name"], state, view) for arm in document["arms"] for view in views
    ):
        return TextTable(title, ("not measured, because",), sorted({(row[1],) for row in rows}))
    return TextTable(title, ("reader", *views), rows)


def _spread(figures: Figures, document: Document, state: str) -> TextTable:
    """What one read in twenty, and one in a hundred, takes longer than."""
    views = (*VIEWS, ALIGNED)
    rows = []
    for arm in document["arms"]:
        reads = [figures.reads(arm["name"], state, view) for view in views]
        if any(reads):
            cells = [
                _MISSING if found is None else f"{found['p95_ms']:.2f}, {found['p99_ms']:.2f}"
                for found in reads
            ]
            rows.append((arm["title"], *cells))
    return TextTable(f"{_STATES[state]}: ms a box, p95 and p99", ("reader", *views), rows)


def _costs(figures: Figures, document: Document) -> TextTable:
    """What else an arm costs, of the v2 region where it depends on the view."""

    def row(arm: Mapping[str, Any]) -> tuple[str, ...]:
        warm = figures.reads(arm["name"], "warm", "v2 region") or {}
        total = figures.bytes(arm["name"])
        above = None
        if arm.get("peak_bytes") and arm.get("resident_bytes"):
            above = arm["peak_bytes"] - arm["resident_bytes"]
        return (
            arm["title"],
            _number(warm.get("samples_per_s"), "{:.0f}"),
            _number(warm.get("cpu_s"), "{:.2f}", 1e3),
            _number(total, "{:.1f}", 1e-6) if total else _MISSING,
            _number(arm.get("peak_bytes"), "{:.0f}", 1e-6),
            _number(above, "{:.0f}", 1e-6),
            _number(arm.get("first_read_ms"), "{:.1f}"),
            _number(arm.get("import_s"), "{:.2f}"),
        )

    header = (
        *("reader", "samples /s", "CPU ms", "disk MB"),
        *("peak MB", "to read MB", "first read ms", "import s"),
    )
    title = (
        "Costs of one process: samples/s and CPU time a sample (v2 region, warm), bytes of all "
        "volumes, peak memory and what of it reading took, time to the first read"
    )
    return TextTable(title, header, [row(arm) for arm in document["arms"]], brief=6)


def _device(figures: Figures, document: Document) -> TextTable:
    views = (*VIEWS, ALIGNED)
    rows = []
    for arm in document["arms"]:
        reads = [figures.reads(arm["name"], "cold", view) for view in views]
        if any(reads):
            cells = [
                _number(None if found is None else found["device_bytes"], "{:.2f}", 1e-6)
                for found in reads
            ]
            dropped = arm.get("reads_not_cold")
            told = f" ({dropped} reads were not cold and are left out)" if dropped else ""
            rows.append((arm["title"] + told, *cells))
    return TextTable("Cold: MB read from the device a sample", ("reader", *views), rows)


def _loaders(document: Document) -> TextTable:
    rows = []
    for each in document["loaders"]:
        cells = [each.get("reason", ""), "", ""]
        if "reason" not in each:
            gpus = f"{each['gpus_a_core']:.1f}" if "gpus_a_core" in each else _MISSING
            cells = [f"{each['samples_per_s']:.0f}", f"{1e3 * each['cpu_s']:.2f}", gpus]
        rows.append((each["loader"], str(each["workers"]), *cells))
    header = ("loader", "workers", "samples/s", "CPU ms a sample", "H100s a core feeds")
    title = "Loaders end to end: v2 regions, from the stores to the training process"
    return TextTable(title, header, rows)


def _start(document: Document) -> TextTable:
    start = document["start"]
    title = f"Start: {start['rows']:,} volumes in the manifest, {start['workers']} workers"
    header = ("run", "s to the first batch", "of it s to open", "MB of a worker's own")
    rows = []
    for key, what in (("first", "new"), ("resume", f"resumed at step {start['resume_step']:,}")):
        if key not in start:
            rows.append((what, start.get("reason", _MISSING), "", ""))
            continue
        told = start[key]
        memory = f"{told['worker_private_bytes'] / 1e6:.0f}"
        rows.append((what, f"{told['seconds']:.2f}", f"{told['open_s']:.2f}", memory))
    return TextTable(title, header, rows)


def _goals(document: Document) -> TextTable:
    verdicts: dict[bool | None, str] = {True: "pass", False: "falls short", None: "not measured"}
    rows = [
        (
            goal["name"],
            _number(goal["ratio"], "{:.3g}"),
            goal["goal"],
            verdicts[goal["met"]],
            goal["detail"],
            goal["worst"],
        )
        for goal in document["goals"]
    ]
    header = ("goal", "found", "bound", "verdict", "figures", "worst volume")
    return TextTable("Goals", header, rows, brief=4)


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    show: Callable[[float], str] = form.format
    return _MISSING if value is None else show(value * factor)
