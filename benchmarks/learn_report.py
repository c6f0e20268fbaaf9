"""What learn.py found: the bars that a run must clear, tables, pictures, the page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learn_runs import DEFAULT, SHUFFLED
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measuring import goal

from prect.benchmark.tables import TextTable

LARGEST_LOSS_RATIO = 0.7
SMALLEST_TOP1_RATIO = 1.4

Result = Mapping[str, Any]
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown")


def loss_ratio(run: Result) -> float:
    """Held-out pos + neg over the untrained network's."""
    return float(run["summary"]["heldout"]["total"] / run["summary"]["untrained"]["total"])


def floor_ratio(run: Result) -> float:
    """Held-out pos + neg over the best constant's."""
    return float(run["summary"]["heldout"]["total"] / run["summary"]["floor"]["value"])


def top1_ratio(run: Result) -> float:
    """Held-out top-1 over the untrained network's, which guesses right once in n at least."""
    untrained = run["summary"]["untrained"]
    return float(run["summary"]["heldout"]["top1"] / max(untrained["top1"], untrained["chance"]))


def retrieval_ratio(run: Result, control: str) -> float:
    """Upper end of the interval of the error over the lower end of the control's."""
    found = run["retrieval"]
    return float(found["trained"]["high"] / found[control]["low"])


def clears_the_bar(run: Result) -> bool:
    """Whether a run shows all that learning must show."""
    return (
        loss_ratio(run) <= LARGEST_LOSS_RATIO
        and floor_ratio(run) < 1
        and top1_ratio(run) >= SMALLEST_TOP1_RATIO
        and all(retrieval_ratio(run, control) < 1 for control in ("untrained", "histogram"))
    )


def goals_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The bars, each for the worst seed of each objective, and the controls that must fail."""
    found = []
    for objective in _objectives(results):
        trained = _of(results, objective, DEFAULT)
        bars = [
            ("pos + neg over untrained", [loss_ratio(r) for r in trained], LARGEST_LOSS_RATIO),
            ("pos + neg over best constant", [floor_ratio(r) for r in trained], 1.0),
        ]
        bars += [
            (
                f"retrieval: upper end of the interval over lower end of {control}'s",
                [retrieval_ratio(r, control) for r in trained],
                1.0,
            )
            for control in ("untrained", "histogram")
        ]
        found += [
            _goal(f"{objective}: {name}", trained, values, limit, most=True)
            for name, values, limit in bars
        ]
        gains = [top1_ratio(r) for r in trained]
        name = f"{objective}: top-1 over untrained"
        found.append(_goal(name, trained, gains, SMALLEST_TOP1_RATIO, most=False))
        for shuffled in _of(results, objective, SHUFFLED):
            name = f"{objective}, {SHUFFLED}: bar cleared (0: it fails, as it must)"
            cleared = float(clears_the_bar(shuffled))
            found.append(goal(name, shuffled["name"], cleared, 0, most=True))
    return found


def _goal(
    name: str, trained: Sequence[Result], values: Sequence[float], limit: float, *, most: bool
) -> dict[str, Any]:
    pairs = list(zip(values, (r["name"] for r in trained), strict=True))
    ratio, worst = max(pairs) if most else min(pairs)
    return goal(name, worst, ratio, limit, most=most)


def tables(document: Mapping[str, Any]) -> list[TextTable]:
    """All runs, and the goals."""
    header = (
        *("run", "pos", "neg", "pos + neg", "untrained", "best constant"),
        *("top-1", "untrained top-1", "Spearman", "rank", "mm", "mm untrained", "mm histogram"),
        *("clears the bar", "s"),
    )
    rows = [_row(run) for run in document["runs"]]
    return [TextTable("Held-out figures after training", header, rows), _goal_table(document)]


def _row(run: Result) -> tuple[str, ...]:
    trained, untrained = run["summary"]["heldout"], run["summary"]["untrained"]
    return (
        run["name"],
        *(f"{trained[name]:.3f}" for name in ("pos", "neg", "total")),
        f"{untrained['total']:.3f}",
        f"{run['summary']['floor']['value']:.3f}",
        f"{trained['top1']:.2f}",
        f"{untrained['top1']:.2f}",
        f"{trained['spearman']:.2f}",
        f"{trained['rank']:.0f}",
        *(_interval(run["retrieval"][name]) for name in ("trained", "untrained", "histogram")),
        "yes" if clears_the_bar(run) else "no",
        f"{run['seconds']['training']:.0f}",
    )


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.0f} ({estimate['low']:.0f}-{estimate['high']:.0f})"


def _goal_table(document: Mapping[str, Any]) -> TextTable:
    rows = [
        (
            each["name"],
            f"{each['ratio']:.2f}",
            each["goal"],
            "met" if each["met"] else "falls short",
            each["worst"],
        )
        for each in document["goals"]
    ]
    return TextTable("Goals, each by its worst run", ("goal", "found", "bound", "", "run"), rows)


def figures(document: Mapping[str, Any]) -> str:
    """Machine, extent and all tables as Markdown."""
    extent, computer = document["extent"], document["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in computer["versions"].items())
    lines = [
        f"{extent['cases']} phantoms, {extent['heldout']} of them held out; {extent['steps']} "
        f"steps of two volumes (voco-v2) or four (voco-v1), figures over {extent['views']} "
        f"held-out views; places of {extent['queries']} crops of each held-out volume looked for "
        "in all others.",
        f"{computer['cores']} cores, {computer['jobs']} runs at a time with one thread each; "
        f"Python {computer['python']}, {versions}.",
        "",
    ]
    return "\n".join([*lines, *(table.markdown() for table in tables(document))])


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """One picture of held-out and training curves for each objective."""
    paths = []
    for objective in _objectives(document["runs"]):
        path = folder / f"learning-{objective}.png"
        figure = Figure(figsize=(12, 7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3)
        trained = _of(document["runs"], objective, DEFAULT)
        shuffled = _of(document["runs"], objective, SHUFFLED)
        for place, name, title in (
            (axes[0, 0], "heldout_pos", "held-out pos"),
            (axes[0, 1], "heldout_neg", "held-out neg"),
            (axes[0, 2], "heldout_total", "held-out pos + neg"),
            (axes[1, 0], "heldout_top1", "held-out top-1"),
        ):
            _draw_evaluations(place, trained, shuffled, name, title)
        _draw_retrieval(axes[1, 1], trained, shuffled)
        _draw_training(axes[1, 2], trained)
        axes[0, 0].legend(fontsize=8)
        figure.suptitle(f"{objective}: small runs on phantoms")
        figure.savefig(path, dpi=80)
        paths.append(path)
    return paths


def _draw_evaluations(
    axes: Axes, trained: Sequence[Result], shuffled: Sequence[Result], name: str, title: str
) -> None:
    for run, colour, style, label in _styled(trained, shuffled):
        points = [(line["step"], line[name]) for line in run["evaluations"]]
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, label=label)
    untrained = [run["evaluations"][0][name] for run in trained]
    axes.axhline(sum(untrained) / len(untrained), color="grey", linewidth=0.8, label="untrained")
    summary = trained[0]["summary"]
    if name == "heldout_total":
        axes.axhline(summary["floor"]["value"], color="red", linewidth=0.8, label="best constant")
        axes.legend(fontsize=8)
    if name == "heldout_top1":
        axes.axhline(summary["heldout"]["chance"], color="red", linewidth=0.8, label="chance")
        axes.legend(fontsize=8)
    axes.set(title=title, xlabel="step", ylim=(0, None))


def _draw_retrieval(axes: Axes, trained: Sequence[Result], shuffled: Sequence[Result]) -> None:
    for run, colour, style, label in _styled(trained, shuffled):
        course = run["retrieval_course"]
        steps = [point["step"] for point in course]
        axes.plot(
            steps,
            [p["value"] for p in course],
            color=colour,
            linestyle=style,
            label=label,
            marker=".",
        )
        if style == "-":
            low, high = [p["low"] for p in course], [p["high"] for p in course]
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    histogram = trained[0]["retrieval"]["histogram"]
    axes.axhline(histogram["value"], color="red", linewidth=0.8, label="HU histograms")
    axes.axhspan(histogram["low"], histogram["high"], color="red", alpha=0.1, linewidth=0)
    axes.legend(fontsize=8)
    axes.set(title="position retrieval, mean error (mm)", xlabel="step", ylim=(0, None))


def _draw_training(axes: Axes, trained: Sequence[Result]) -> None:
    names = ("loss", "pos", "neg", "reg")
    for name, colour in zip(names, _COLOURS, strict=False):
        for run in trained:
            points = [(line["step"], line[name]) for line in run["training"] if name in line]
            label = name if run is trained[0] else None
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.9, label=label)
    axes.legend(fontsize=8)
    axes.set(title="training, all seeds", xlabel="step", ylim=(0, None))


def _styled(
    trained: Sequence[Result], shuffled: Sequence[Result]
) -> list[tuple[Result, str, str, str]]:
    lines = [
        (run, colour, "-", f"seed {run['seed']}")
        for run, colour in zip(trained, _COLOURS, strict=False)
    ]
    return [*lines, *((run, "black", ":", SHUFFLED) for run in shuffled)]


def _objectives(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(run["objective"] for run in results))


def _of(results: Sequence[Result], objective: str, variant: str) -> list[Result]:
    return [r for r in results if (r["objective"], r["variant"]) == (objective, variant)]
