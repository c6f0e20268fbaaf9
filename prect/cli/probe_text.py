"""What ``prect probe`` says: before it measures, and of what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from prect.cli.console import console

_FIGURES = (
    ("position", "error_mm", "place, mm", "{:.1f}"),
    ("position", "r2", "place, R²", "{:.2f}"),
    ("position", "r2_x", "  along x", "{:.2f}"),
    ("position", "r2_y", "  along y", "{:.2f}"),
    ("position", "r2_z", "  along z", "{:.2f}"),
    ("organs", "accuracy", "organ kNN", "{:.2f}"),
    ("organs", "macro_accuracy", "  by organ", "{:.2f}"),
    ("segmentation", "dice", "Dice", "{:.2f}"),
)
_JUDGED = {
    "error_mm": "error of the place in mm",
    "macro_accuracy": "organ kNN, mean accuracy of organs",
    "dice": "linear segmentation, mean Dice of organs",
}


def say_what(document: Mapping[str, Any]) -> None:
    """What will be probed, and what to mind about it."""
    from prect.train.probes.bootstrap import LEAST_FOR_INTERVALS

    step = "" if document["step"] is None else f", step {document['step']}"
    volumes = f"{len(document['cases'])} volumes of {document['patients']} patients"
    console.print(
        f"{document['source']}: {document['network']}{step}; {volumes} ({document['split']}) of "
        f"{', '.join(document['datasets'])}"
    )
    if document["patients"] < LEAST_FOR_INTERVALS:
        console.print(
            Text("intervals of two patients have no width: ", style="yellow")
            + Text("take more, with --split all or another --dataset")
        )
    labels = document["labels"]
    if labels is not None:
        console.print(f"{labels['cases']} of them have labels in {labels['folder']}")
        if labels["unmapped"]:
            console.print(f"without labels: {', '.join(labels['unmapped'])}")
    if document["manifest_changed"]:
        console.print(
            Text("the manifest has changed since the run: ", style="yellow")
            + Text("patients that are held out now may have been trained on")
        )


def table(document: Mapping[str, Any], title: str) -> Table:
    """Figures of the network and its controls."""
    shown = Table("", "network", "untrained", "HU histogram", title=Text(title))
    for column in shown.columns:
        column.no_wrap = True
    for probe_name, figure, said, form in _FIGURES:
        if probe_name not in document:
            continue
        figures = document[probe_name]["figures"]
        cells = [_cell(figures[arm][figure], form) for arm in ("network", "untrained", "histogram")]
        shown.add_row(said, *cells)
    return shown


def _cell(estimate: Mapping[str, float | None], form: str) -> str:
    if estimate["value"] is None:
        return "not varied"
    value, low, high = (form.format(estimate[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def sentences(document: Mapping[str, Any]) -> list[str]:
    """References of the place, and what lies between the network and its controls."""
    place = document["position"]
    lines = [
        f"place: {place['pairs']} pairs of volumes, {place['queries']} queries each; by chance "
        f"{place['chance_mm']:.0f} mm, always the middle {place['centre_mm']:.0f} mm, best that "
        f"the gallery allows {place['best_mm']:.0f} mm"
    ]
    for probe_name, figure, _, form in _FIGURES:
        if probe_name not in document or figure not in _JUDGED:
            continue
        for control, values in document[probe_name]["against"].items():
            found = values[figure]
            if found["difference"]["value"] is None:
                continue
            apart = "overlap" if found["overlap"] else "are apart"
            lines.append(
                f"{_JUDGED[figure]}: {_cell(found['difference'], '{:+' + form[2:])} against "
                f"{control}; the two intervals {apart}"
            )
    left_out = document.get("organs", {}).get("left_out")
    if left_out:
        lines.append(f"left out, since one patient alone has them: {', '.join(left_out)}")
    return lines
