"""A run as a picture: what it learns, how it moves, how fast it is, and what happened to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from prect.train.report.runs import Happening, Line, RunRecord

_LOSS = "#1b6ca8"
_HELDOUT = "#d95f02"
_PARTS = ("#1b9e77", "#7570b3", "#e7298a", "#a6761d", "#666666")
_REFERENCE = "#555555"
_KINDS = {
    "skipped": "#d62728",
    "spike": "#ff7f0e",
    "straggler": "#9467bd",
    "unreadable": "#8c564b",
    "reader_died": "#e377c2",
    "save_failed": "#17becf",
    "damaged_checkpoint": "#bcbd22",
    "changed": "#1f77b4",
    "sink_failed": "#7f7f7f",
}
_OTHER_KIND = "#000000"
_SMOOTHED_POINTS = 150
"""From so many points on, a line is drawn through means of neighbours, the points behind it."""
_MARKED = 400
"""Incidents of a kind that are drawn; more would be a wall."""

Floats = NDArray[np.float64]


def draw_curves(record: RunRecord, target: Path) -> Path:
    """Draw a run to a PNG file, which is replaced whole; returns its path."""
    figure = Figure(figsize=(13, 13.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(record), fontsize=12)
    draw: list[list[Callable[[Axes, RunRecord], None]]] = [
        [_draw_loss, _draw_gradient],
        [_draw_heldout, _draw_rate],
        [_draw_top1, _draw_throughput],
        [_draw_incidents, _draw_waiting],
    ]
    axes = figure.subplots(4, 2, sharex=True)
    for row, panels in zip(axes, draw, strict=True):
        for axis, panel in zip(row, panels, strict=True):
            panel(axis, record)
            _finish(axis, record)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser step")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, dpi=110, format="png")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _title(record: RunRecord) -> str:
    info = record.info
    of = f" of {info.max_steps:,}" if info.max_steps is not None else ""
    learned = {True: ", has learned", False: ", has not learned", None: ""}[info.learned]
    return f"{info.name}: {info.state}, step {info.step:,}{of}{learned}"


def _draw_loss(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Training loss, and its parts before their weights")
    axis.set_ylabel("loss")
    for name, colour in zip(_parts_of_loss(record), _PARTS, strict=False):
        _curve(axis, record.training, name, colour, width=1.2)
    _curve(axis, record.training, "loss", _LOSS, width=2.2)
    _legend(axis)


def _parts_of_loss(record: RunRecord) -> list[str]:
    """Names of what stands between the loss and its gradient in a line."""
    names = list(record.training[-1]) if record.training else []
    if "grad_norm" not in names:
        return []
    return names[names.index("loss") + 1 : names.index("grad_norm")]


def _draw_gradient(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Norm of the gradient before clipping")
    axis.set_ylabel("norm (log scale)")
    if _curve(axis, record.training, "grad_norm", _LOSS):
        axis.set_yscale("log")


def _draw_rate(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Learning rate")
    axis.set_ylabel("learning rate")
    _curve(axis, record.training, "lr", _LOSS, smooth=False)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    _from_zero(axis)


def _draw_heldout(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Held-out patients: pos + neg (less is better)")
    axis.set_ylabel("pos + neg")
    lines = record.evaluations
    _points(axis, lines, "heldout_pos", _PARTS[0], "pos")
    _points(axis, lines, "heldout_neg", _PARTS[1], "neg")
    _points(axis, lines, "heldout_total", _HELDOUT, "pos + neg", width=2.2)
    _reference(axis, lines, "heldout_floor", "best constant ({:.3f})")
    _from_zero(axis)
    _legend(axis)


def _draw_top1(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Held-out patients: crops whose most similar base is the right one")
    axis.set_ylabel("top-1 accuracy")
    _points(axis, record.evaluations, "heldout_top1", _HELDOUT, "top-1", width=2.2)
    _reference(axis, record.evaluations, "heldout_chance", "chance ({:.1%})")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _from_zero(axis)
    _legend(axis)


def _draw_throughput(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Throughput of all processes")
    axis.set_ylabel("volumes a second")
    _curve(axis, record.training, "volumes_per_s", _LOSS)
    _from_zero(axis)


def _draw_waiting(axis: Axes, record: RunRecord) -> None:
    axis.set_title("Time in which training waits for data (mean of processes)")
    axis.set_ylabel("share of a step")
    _curve(axis, record.training, "wait_share", _LOSS)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    _from_zero(axis)


def _draw_incidents(axis: Axes, record: RunRecord) -> None:
    counts = record.info.incidents
    axis.set_title(f"Incidents: {sum(counts.values()):,}" if counts else "Incidents: none")
    kinds = sorted(counts, key=lambda kind: -counts[kind])
    for place, kind in enumerate(kinds):
        steps = _steps_of(record.incidents, kind)
        colour = _KINDS.get(kind, _OTHER_KIND)
        axis.plot(steps, [place] * len(steps), "|", color=colour, markersize=14, markeredgewidth=2)
    axis.set_yticks(
        range(len(kinds)), [f"{kind.replace('_', ' ')} ({counts[kind]:,})" for kind in kinds]
    )
    axis.set_ylim(max(len(kinds), 1) - 0.5, -0.5)


def _finish(axis: Axes, record: RunRecord) -> None:
    """What all panels have: incidents behind the curves, the whole run's steps, a light grid."""
    for kind in record.info.incidents:
        steps = _thinned(_steps_of(record.incidents, kind))
        colour = _KINDS.get(kind, _OTHER_KIND)
        across = axis.get_xaxis_transform()  # from the bottom of the panel, 0, to its top, 1
        axis.vlines(steps, 0, 1, transform=across, color=colour, lw=0.8, alpha=0.35, zorder=0)
    axis.set_xlim(0, max(record.info.step, 1))
    axis.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.title.set_fontsize(10)
    axis.grid(axis="y", linewidth=0.5, alpha=0.4)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _steps_of(incidents: Sequence[Happening], kind: str) -> list[int]:
    return [incident.step for incident in incidents if incident.kind == kind]


def _thinned(steps: list[int]) -> list[int]:
    return steps[:: max(1, -(-len(steps) // _MARKED))]


def _series(lines: Sequence[Line], name: str) -> tuple[Floats, Floats]:
    """Steps and values, both (N,), of the lines that have a figure."""
    there = [(line["step"], line[name]) for line in lines if name in line]
    pairs = np.array(there, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _curve(
    axis: Axes,
    lines: Sequence[Line],
    name: str,
    colour: str,
    *,
    width: float = 1.6,
    smooth: bool = True,
) -> bool:
    """Draw a figure of the training; whether there is any of it."""
    steps, values = _series(lines, name)
    if not len(steps):
        return False
    if smooth and len(steps) >= _SMOOTHED_POINTS:
        axis.plot(steps, values, color=colour, linewidth=0.5, alpha=0.25)
        steps, values = _means(steps, values)
    marker = "o" if len(steps) == 1 else None
    axis.plot(steps, values, color=colour, linewidth=width, marker=marker, label=name)
    return True


def _means(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means of neighbouring values, some hundred windows at half their length from each other."""
    length = max(2, len(values) // (_SMOOTHED_POINTS // 2))
    starts = np.arange(0, len(values) - length + 1, max(1, length // 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.concatenate([[0.0], np.cumsum(steps)])
    ends = starts + length
    return (places[ends] - places[starts]) / length, (sums[ends] - sums[starts]) / length


def _points(
    axis: Axes, lines: Sequence[Line], name: str, colour: str, label: str, *, width: float = 1.2
) -> None:
    """Draw a held-out figure; each evaluation has a point, unless there are very many."""
    steps, values = _series(lines, name)
    if not len(steps):
        return
    marker = "o" if len(steps) <= _SMOOTHED_POINTS else None
    axis.plot(
        steps, values, color=colour, linewidth=width, marker=marker, markersize=4, label=label
    )


def _reference(axis: Axes, lines: Sequence[Line], name: str, label: str) -> None:
    _, values = _series(lines, name)
    if len(values):
        said = label.format(values[-1])
        axis.axhline(values[-1], color=_REFERENCE, linestyle="--", linewidth=1, label=said)


def _from_zero(axis: Axes) -> None:
    axis.set_ylim(0, axis.get_ylim()[1] * 1.05)


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", fontsize=8, frameon=False, ncols=2)
