"""What step.py found: differences, ratios, shares, goals, tables, and the page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from measuring import BenchmarkError, goal, spread
from step_arms import LITERAL, ONE_CALL, PRECT

from prect.benchmark.tables import TextTable

OUTSIDE_GOAL = 0.05
"""Share of a step outside of the encoder."""
SPEED_GOAL = 1.0
"""The plain implementation's seconds over prect's."""
SAME_LOSS = 1e-4
"""Largest relative difference between the losses of two arms, float32."""
SAME_GRADIENT = 1e-2
"""The same of the gradient of the encoder's first layer, which rounding of all layers reaches."""
LOSS_TOLERANCE = 0.02
"""Relative difference between the loss in bfloat16 on the GPU and in float32 on the CPU."""
COSINE_TOLERANCE = 0.05
"""Largest difference of a cosine of crop and base between the same two."""
PROJECTION_TOLERANCE = 0.99
"""Lowest cosine of a crop's projection with itself between the same two."""

Run = Mapping[str, Any]
Document = Mapping[str, Any]
Key = tuple[str, str, str]


def seconds(run: Run) -> float:
    """Cropping, forward and backward pass."""
    return float(sum(run["parts"].values()))


def outside(run: Run) -> float:
    """Share of the step that is spent outside of the encoder and the teacher's encoder."""
    return 1 - float(run["parts"]["backbone"]) / seconds(run)


def outside_of_all(run: Run) -> float:
    """The same of the step with clipping, AdamW and the teacher's average, none of it encoder."""
    whole = seconds(run) + sum(run["optimiser_s"].values())
    return 1 - float(run["parts"]["backbone"] / whole)


def has_parts(run: Run) -> bool:
    """Whether the arm tells the encoder from the rest."""
    return "backbone" in run["parts"]


def with_differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The runs, each with its relative differences from the first of its network and objective.

    Loss, and gradient of the encoder's first layer: length of the difference over its length.
    """
    found: list[dict[str, Any]] = []
    wanted: dict[tuple[str, str], Run] = {}
    for run in runs:
        first = wanted.setdefault((run["network"], run["objective"]), run)
        mine, theirs = (torch.tensor(r["first_gradient"]) for r in (run, first))
        differs = {
            "from": first["arm"],
            "loss": abs(run["loss"] / first["loss"] - 1),
            "gradient": float((mine - theirs).norm() / theirs.norm()),
        }
        rest = {name: value for name, value in run.items() if name != "first_gradient"}
        found.append(rest | {"differs": differs})
    return found


def check_same(runs: Sequence[Run]) -> None:
    """All arms must have computed the same thing.

    Args:
        runs: of `with_differences`.

    Raises:
        BenchmarkError: losses or gradients of two arms differ.
    """
    for run in runs:
        differs = run["differs"]
        for name, most in (("loss", SAME_LOSS), ("gradient", SAME_GRADIENT)):
            if not differs[name] <= most:  # also when it is not a number
                raise BenchmarkError(
                    f"{run['network']}, {run['objective']}: the {name} of {run['arm']} differs by "
                    f"{differs[name]:.2g} of its value from that of {differs['from']}; they must "
                    f"agree to {most:g}"
                )


def ratios(runs: Sequence[Run], key: Key, plain: str) -> list[float]:
    """Seconds of a plain arm over those of another arm, round by round."""
    mine = {run["round"]: seconds(run) for run in _of(runs, key)}
    theirs = {run["round"]: seconds(run) for run in _of(runs, (key[0], key[1], plain))}
    return [theirs[n] / mine[n] for n in sorted(mine.keys() & theirs.keys())]


def goals_of(document: Document) -> list[dict[str, Any]]:
    """Each goal on the network and objective that is furthest from it."""
    runs = document["runs"]
    found = []
    for name, share in (
        ("share outside of the encoder", outside),
        ("the same with clipping, AdamW and the teacher's average", outside_of_all),
    ):
        shares = {
            f"{key[0]}, {key[1]}": median(map(share, _of(runs, key)))
            for key in _keys(runs)
            if key[2] == PRECT
        }
        if shares:
            worst = max(shares, key=shares.__getitem__)
            found.append(goal(name, worst, shares[worst], OUTSIDE_GOAL, most=True))
    faster = {
        f"{key[0]}, {key[1]}": median(rounds)
        for key in _keys(runs)
        if key[2] == PRECT and (rounds := ratios(runs, key, LITERAL))
    }
    if faster:
        slowest = min(faster, key=faster.__getitem__)
        name = "the plain implementation's seconds over prect's"
        found.append(goal(name, slowest, faster[slowest], SPEED_GOAL, most=False))
    return found + (_gpu_goals(document["gpu"]) if document["gpu"] else [])


def _gpu_goals(gpu: Mapping[str, Any]) -> list[dict[str, Any]]:
    """bfloat16 on the GPU against float32 on the CPU."""
    found = gpu["agreement"]
    if found is None:
        return []
    figures = found["cuda bfloat16"]
    what = f"{gpu['network']}, bfloat16 on the GPU, float32 on the CPU"
    return [
        goal("relative difference of the loss", what, figures["loss"], LOSS_TOLERANCE, most=True),
        goal(
            "largest difference of a cosine", what, figures["cosine"], COSINE_TOLERANCE, most=True
        ),
        goal(
            "lowest cosine of a projection with itself",
            what,
            figures["projection"],
            PROJECTION_TOLERANCE,
            most=False,
        ),
    ]


def tables(document: Document) -> list[TextTable]:
    """Steps, counts, what ran on a GPU, goals."""
    found = [_step_table(document["runs"]), _counts_table(document["counted"])]
    if document["gpu"]:
        found += _gpu_tables(document["gpu"])
    return [*found, _goal_table(document["goals"])]


def _step_table(runs: Sequence[Run]) -> TextTable:
    header = (
        *("network, objective", "arm", "s", "plain / own", "one call / own", "peak GB"),
        *("crops, heads s", "outside", "optimiser s", "outside, with it", "gradient differs"),
    )
    rows = [_step_row(runs, key) for key in _keys(runs)]
    return TextTable(
        "One step of one process: medians (lowest-highest) of its rounds", header, rows
    )


def _step_row(runs: Sequence[Run], key: Key) -> tuple[str, ...]:
    mine = _of(runs, key)
    parts = [run for run in mine if has_parts(run)]
    cells = ["", "", ""]
    if parts:
        rest = [seconds(run) - run["parts"]["backbone"] for run in parts]
        cells = [
            f"{median(rest):.3f}",
            f"{median(map(outside, parts)):.2%}",
            f"{median(map(outside_of_all, parts)):.2%}",
        ]
    faster = [[] if key[2] == plain else ratios(runs, key, plain) for plain in (LITERAL, ONE_CALL)]
    return (
        f"{key[0]}, {key[1]}",
        key[2],
        _rounds([seconds(run) for run in mine]),
        *map(_rounds, faster),
        f"{max(run['peak_bytes'] for run in mine) / 1e9:.2f}",
        *cells[:2],
        f"{median(sum(run['optimiser_s'].values()) for run in mine):.2f}",
        cells[2],
        f"{max(run['differs']['gradient'] for run in mine):.0e}",
    )


def _rounds(values: Sequence[float]) -> str:
    return spread(values) if len(values) > 1 else "".join(f"{value:.2f}" for value in values)


def _counts_table(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    header = (
        *("network", "forward, TFLOP", "both passes, TFLOP", "state, GB", "kept, GB"),
        "kept with `network.checkpointing`, GB",
    )
    cells = [
        (
            row["network"],
            *(f"{row[name] / 1e12:.2f}" for name in ("forward_flops", "step_flops")),
            *(
                f"{row[name] / 1e9:.1f}"
                for name in ("state_bytes", "kept_bytes", "kept_bytes_checkpointing")
            ),
        )
        for row in rows
    ]
    return TextTable("One volume of 11 crops of 64^3, counted", header, cells)


def _gpu_tables(gpu: Mapping[str, Any]) -> list[TextTable]:
    found = [_pace_table(gpu)]
    if gpu["agreement"]:
        rows = [
            (name, f"{row['loss']:.2%}", f"{row['cosine']:.4f}", f"{row['projection']:.4f}")
            for name, row in gpu["agreement"].items()
        ]
        header = (
            *("against float32 on the CPU", "loss", "largest difference of a cosine"),
            "lowest cosine of a projection with itself",
        )
        found.append(TextTable("Precisions, the same weights and volumes", header, rows))
    if gpu["wait"]:
        wait = gpu["wait"]
        cells = (gpu["network"], f"{wait['wait_share']:.1%}", f"{wait['volumes_per_s']:.2f}")
        waited = ("network", "share of time spent waiting for data", "volumes/s")
        found.append(TextTable("A short run on phantoms", waited, [cells]))
    return found


def _pace_table(gpu: Mapping[str, Any]) -> TextTable:
    header = ("precision", "compiled", "volumes", "volumes/s", "MFU", "peak GB")
    rows = [
        (
            row["precision"],
            "yes" if row["compiled"] else "no",
            str(row["batch"]),
            f"{row['volumes_per_s']:.2f}",
            f"{row['mfu']:.1%}" if row["mfu"] else "",
            f"{row['peak_bytes'] / 1e9:.1f}",
        )
        for row in gpu["rows"]
    ]
    title = f"{gpu['network']} on {gpu['device']}, batches up to the largest that fits"
    return TextTable(title, header, rows)


def _goal_table(goals: Sequence[Mapping[str, Any]]) -> TextTable:
    rows = [
        (
            each["name"],
            f"{each['ratio']:.3g}",
            each["goal"],
            "met" if each["met"] else "falls short",
            each["worst"],
        )
        for each in goals
    ]
    return TextTable("Goals, each where it is furthest", ("goal", "found", "bound", "", "on"), rows)


def _keys(runs: Sequence[Run]) -> list[Key]:
    """Networks, objectives and arms, those of a network and objective side by side."""
    keys = dict.fromkeys((r["network"], r["objective"], r["arm"]) for r in runs)
    groups = list(dict.fromkeys(key[:2] for key in keys))
    return sorted(keys, key=lambda key: groups.index(key[:2]))


def _of(runs: Sequence[Run], key: Key) -> list[Run]:
    return [run for run in runs if (run["network"], run["objective"], run["arm"]) == key]


def figures(document: Document) -> str:
    """Machine, all tables and what failed, as Markdown."""
    computer = document["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in computer["versions"].items())
    lines = [
        f"{computer['cores']} cores, {computer['threads']} threads, {computer['device']}; load "
        f"before the first run {document['load']:.1f}; Python {computer['python']}, {versions}.",
        "",
        *(table.markdown() for table in tables(document)),
        *(f"Failed: {each['what']}: {each['why']}\n" for each in document["failures"]),
    ]
    return "\n".join(lines)
