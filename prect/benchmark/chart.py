"""The medians of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prect.benchmark.boxes import ALIGNED, VIEWS
from prect.benchmark.goals import OWN_ARM, WINDOW_ARM, Figures

_OWN = "#1b6e53"
_WINDOW = "#7fbfa6"
_LIMIT = "#c9c9c9"
_OTHER = "#5b7aa6"
_LEAST_MS = 0.1


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write bars of the median by view, warm above and cold below, as PNG.

    Args:
        document: of `prect.benchmark.run.run`.
        path: file to write.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figures = Figures(document)
    views = (*VIEWS, ALIGNED)
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(views), sharex="row", squeeze=False)
    for row, state in enumerate(("warm", "cold")):
        shown = [arm for arm in document["arms"] if figures.reads(arm["name"], state, views[0])]
        for column, view in enumerate(views):
            _bars(axes[row, column], figures, shown, state, view, column == 0)
        most = (
            max(
                (figures.reads(arm["name"], state, view) or {}).get("p95_ms", 1.0)
                for arm in shown
                for view in views
            )
            if shown
            else 1.0
        )
        axes[row, 0].set_xlim(_LEAST_MS, 4 * most)
    figure.suptitle(
        "Milliseconds to read a box (median; the line reaches to p95), one core; shorter is better"
    )
    figure.savefig(path, format="png", dpi=110)


def _bars(
    axis: Any,
    figures: Figures,
    arms: list[Mapping[str, Any]],
    state: str,
    view: str,
    named: bool,
) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415

    axis.set_title(f"{view}, {state}", fontsize=11)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(range(len(arms)), [arm["title"] for arm in arms] if named else [])
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", which="major", alpha=0.3)
    axis.set_axisbelow(True)
    for place, arm in enumerate(arms):
        found = figures.reads(arm["name"], state, view)
        if found is None:
            continue
        median, high = found["p50_ms"], found["p95_ms"]
        axis.barh(place, median, color=_colour(arm["name"]), height=0.7)
        axis.plot([median, high], [place, place], color="black", linewidth=1)
        text = f"{median:.2f}" if median < 10 else f"{median:.0f}"
        axis.annotate(
            text,
            (max(median, high), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    if state == "cold":
        axis.set_xlabel("ms")


def _colour(name: str) -> str:
    if name.startswith("decode-limit"):
        return _LIMIT
    return {OWN_ARM: _OWN, WINDOW_ARM: _WINDOW}.get(name, _OTHER)
