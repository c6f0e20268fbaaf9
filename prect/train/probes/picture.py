"""Probes as pictures: figures with their intervals, and queries with the places found for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from prect.train.config import CropConfig
from prect.train.probes.measure import HISTOGRAM, NETWORK, UNTRAINED
from prect.train.probes.position import PositionResult
from prect.train.probes.volumes import ProbeVolume

_COLOURS = {NETWORK: "#d95f02", UNTRAINED: "#7570b3", HISTOGRAM: "#1b9e77"}
_PANELS = (
    ("position", "error_mm", "place in another patient\nerror, mm (less is better)"),
    ("position", "r2", "place in another patient\nR²"),
    ("organs", "macro_accuracy", "organ of a crop, kNN\nmean accuracy of organs"),
    ("segmentation", "dice", "linear segmentation\nmean Dice of organs"),
)
_REFERENCES = (("chance_mm", "chance"), ("centre_mm", "always the middle"), ("best_mm", "best"))
_PLANES = (("axial", 2), ("coronal", 1))
_QUERIES = 4
_TRUTH = "same relative place"

Floats = NDArray[np.float64]


def draw_figures(document: Mapping[str, Any], title: str, target: Path) -> None:
    """Bars of all probes with their intervals, to a PNG file."""
    panels = [panel for panel in _PANELS if panel[0] in document]
    figure = Figure(figsize=(3.4 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for axis, (probe, name, caption) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _bars(axis, document[probe]["figures"], name)
        axis.set_title(caption, fontsize=9)
        if name == "error_mm":
            for key, said in _REFERENCES:
                _line(axis, document[probe][key], said)
        if name == "macro_accuracy":
            _line(axis, document[probe]["chance"], "chance")
    figure.savefig(target, dpi=110)


def _bars(axis: Axes, figures: Mapping[str, Any], name: str) -> None:
    for place, (arm, values) in enumerate(figures.items()):
        estimate = values[name]
        if estimate["value"] is None:
            continue
        value = estimate["value"]
        around = [[max(0, value - estimate["low"])], [max(0, estimate["high"] - value)]]
        axis.bar(place, value, color=_COLOURS[arm], width=0.7)
        axis.errorbar(place, value, around, color="black", capsize=5, linewidth=1.2)
        axis.annotate(
            f"{value:.1f}" if name == "error_mm" else f"{value:.2f}",
            (place, max(estimate["high"], 0)),
            ha="center",
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=9,
        )
    axis.set_xticks(range(len(figures)), list(figures), fontsize=9)
    axis.margins(y=0.12)
    axis.axhline(0, color="black", linewidth=0.8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _line(axis: Axes, value: float, said: str) -> None:
    axis.axhline(value, color="#666666", linestyle="--", linewidth=0.8)
    axis.annotate(
        said,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(2, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        annotation_clip=False,
    )


def draw_places(
    results: Mapping[str, PositionResult],
    volumes: Sequence[ProbeVolume],
    crops: CropConfig,
    target: Path,
    *,
    seed: int = 0,
) -> None:
    """Some queries, their true places in another patient and those found, to a PNG file.

    Args:
        results: of each arm, on these volumes.
        volumes: four of which are asked for at most twice.
        crops: the size of crops.
        target: the file.
        seed: of the choice of queries.
    """
    chosen = _choose(results[NETWORK], seed)
    figure = Figure(figsize=(13, 3.9 * len(chosen) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Queries (left) and what was found for them in another patient (right)")
    for part, (a, b, query) in zip(
        figure.subfigures(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True
    ):
        one, other = volumes[a], volumes[b]
        first = results[NETWORK]
        truth = first.truth[a, query]
        found = {arm: result.predicted[a, b, query] for arm, result in results.items()}
        errors = ", ".join(
            f"{arm} {np.linalg.norm((place - truth) * first.extent):.0f} mm"
            for arm, place in found.items()
        )
        part.suptitle(f"{one.name} \u2192 {other.name}: {errors}", fontsize=9)
        widths = [volume.extent[0] for volume in (one, one, other, other)]
        axes = part.subplots(1, 4, width_ratios=widths)
        for axis, plane in zip(axes[:2], _PLANES, strict=True):
            _draw_plane(axis, one, truth, {"query": truth}, crops, plane)
        for axis, plane in zip(axes[2:], _PLANES, strict=True):
            _draw_plane(axis, other, truth, {_TRUTH: truth, **found}, crops, plane)
        axes[3].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    figure.savefig(target, dpi=90)


def _choose(result: PositionResult, seed: int) -> list[tuple[int, int, int]]:
    """(a, b, query) of random pairs of patients."""
    generator = np.random.default_rng(seed)
    pairs = np.argwhere(result.compared)
    picked = generator.permutation(len(pairs))[:_QUERIES]
    queries = generator.integers(0, result.truth.shape[1], len(picked))
    return [
        (int(pairs[p][0]), int(pairs[p][1]), int(q)) for p, q in zip(picked, queries, strict=True)
    ]


def _draw_plane(
    axis: Axes,
    volume: ProbeVolume,
    through: Floats,
    boxes: Mapping[str, Floats],
    crops: CropConfig,
    plane: tuple[str, int],
) -> None:
    """One plane through a place, with boxes of the crop's size around places; all relative."""
    caption, normal = plane
    across, up = (d for d in range(3) if d != normal)
    shape, extent = np.array(volume.image.shape), np.array(volume.extent)
    index = min(int(through[normal] * shape[normal]), int(shape[normal]) - 1)
    image = volume.image.select(normal, index).numpy().T
    edges = (0, float(extent[across]), 0, float(extent[up]))
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, origin="lower", extent=edges)
    size = np.array(crops.size) / shape * extent
    for arm, place in boxes.items():
        corner = place * extent - size / 2
        axis.add_patch(
            Rectangle(
                (corner[across], corner[up]),
                size[across],
                size[up],
                fill=False,
                color=_COLOURS.get(arm, "#ffd92f"),
                linestyle="--" if arm == _TRUTH else "-",
                linewidth=2.4 if arm in {_TRUTH, NETWORK, "query"} else 1.4,
                label=arm,
            )
        )
    axis.set_title(caption, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
