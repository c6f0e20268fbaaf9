"""What trainer.py found: overhead with its spread, goals, tables, and the page of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import mean, median, quantiles
from typing import Any

from measuring import goal
from trainer_inside import ANY_LOOP, OF_A_LINE, OWN

from prect.benchmark.tables import TextTable

OVERHEAD_GOAL = 0.02
"""Share of the bare loop's time that the trainer takes beyond it."""
WAIT_GOAL = 0.01
"""Share of the time that is spent waiting for data."""
STALL_GOAL = 0.2
"""Seconds that a checkpoint may hold up a step on a GPU."""
_DOUBT = 0.025
"""Chance that the median lies below its interval, and that it lies above."""

Document = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
Key = tuple[str, tuple[str, ...], int, int, bool]


@dataclass(frozen=True)
class Compared:
    """Two arms of all rounds: the first over the second."""

    ratios: list[float]
    """Seconds of the blocks of each pair, the first arm's over the second's, less 1."""
    rounds: list[float]
    """Their median in each round."""
    steps: tuple[float, float]
    """Median seconds of a step of each arm."""
    quick: float
    """Seconds of the fastest quarter of each arm's blocks, as a ratio less 1."""
    whole: float
    """The same of all blocks."""
    cpu: float
    """The same of the processor's time."""
    faults: tuple[float, float]
    """Pages fetched a step, of each arm."""


def key_of(run: Mapping[str, Any]) -> Key:
    """What tells one kind of comparison from another."""
    return run["preset"], tuple(run["arms"]), run["procs"], run["gpus"], run["keep"]


def compared(runs: Rows) -> Compared:
    """The rounds of one kind."""
    per_round = []
    blocks: tuple[list[Any], list[Any]] = ([], [])
    for run in runs:
        first, second = run["blocks"]
        per_round.append(
            [sum(a["seconds"]) / sum(b["seconds"]) - 1 for a, b in zip(first, second, strict=True)]
        )
        blocks[0].extend(first)
        blocks[1].extend(second)
    seconds = [[s for block in arm for s in block["seconds"]] for arm in blocks]
    cpu = [sum(block["cpu_s"] for block in arm) for arm in blocks]
    faults = [sum(block["faults"] for block in arm) for arm in blocks]
    first_arm, second_arm = seconds
    return Compared(
        ratios=[ratio for ratios in per_round for ratio in ratios],
        rounds=[median(ratios) for ratios in per_round],
        steps=(median(first_arm), median(second_arm)),
        quick=_quick(blocks[0]) / _quick(blocks[1]) - 1,
        whole=sum(first_arm) / sum(second_arm) - 1,
        cpu=cpu[0] / cpu[1] - 1,
        faults=(faults[0] / len(first_arm), faults[1] / len(second_arm)),
    )


def _quick(blocks: Rows) -> float:
    """Mean seconds of the fastest quarter: the least that others on the machine have disturbed."""
    seconds = sorted(sum(block["seconds"]) for block in blocks)
    return mean(seconds[: -(-len(seconds) // 4)])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median of what the values are drawn from lies, with a chance of 95 %.

    Order statistics: so many values at least lie on either side of it. Few values leave the
    lowest and the highest, with a chance that is less.
    """
    count = len(values)
    tail, inner = 0.5**count, 0
    while tail + comb(count, inner + 1) * 0.5**count <= _DOUBT:
        inner += 1
        tail += comb(count, inner) * 0.5**count
    ordered = sorted(values)
    return ordered[inner], ordered[-1 - inner]


def own_share(inside: Mapping[str, Any]) -> float:
    """What the trainer does of its own, over the parts that any loop has."""
    loop = sum(inside["parts"][name] for name in ANY_LOOP)
    return float(inside["step_s"] / loop - 1)


def goals_of(document: Document) -> list[dict[str, Any]]:
    """Each goal, on each preset that it was measured on."""
    found = []
    for preset, ratios in _overheads(document).items():
        worst = median(ratios)
        found.append(goal("overhead over a bare loop", preset, worst, OVERHEAD_GOAL, most=True))
    for run in document["inside"]:
        what = "the same, by clocks inside of the trainer"
        found.append(goal(what, run["preset"], own_share(run), OVERHEAD_GOAL, most=True))
    for preset, shares in _waits(document).items():
        found.append(goal("waiting for data", preset, median(shares), WAIT_GOAL, most=True))
    for run in document["resume"]:
        what = "tensors that differ after SIGTERM and going on"
        found.append(goal(what, run["preset"], run["differ"], 0, most=True))
    rows = document["gpu"]["rows"] if document["gpu"] else []
    if rows:
        found += _gpu_goals(document["gpu"]["preset"], rows)
    return found


def _gpu_goals(preset: str, rows: Rows) -> list[dict[str, Any]]:
    worst = max(rows, key=lambda row: row["wait_share"])
    where = f"{preset}, {_combination(worst)}"
    found = [goal("waiting for data, GPU", where, worst["wait_share"], WAIT_GOAL, most=True)]
    stalled = [row for row in rows if row["stalls_s"]]
    if stalled:
        worst = max(stalled, key=lambda row: max(row["stalls_s"]))
        what = "seconds that a checkpoint holds up a step, GPU"
        where = f"{preset}, {_combination(worst)}"
        found.append(goal(what, where, max(worst["stalls_s"]), STALL_GOAL, most=True))
    return found


def _combination(row: Mapping[str, Any]) -> str:
    how = "compiled" if row["compiled"] else "eager"
    return f"{row['precision']}, {how}, batch {row['batch']}"


def _kinds(runs: Rows) -> dict[Key, list[Mapping[str, Any]]]:
    kinds: dict[Key, list[Mapping[str, Any]]] = {}
    for run in runs:
        kinds.setdefault(key_of(run), []).append(run)
    return kinds


def _overheads(document: Document) -> dict[str, list[float]]:
    """Pairs of what goals are set for, by preset."""
    kinds = _kinds([run for run in document["turns"] if run["counts"]])
    return {key[0]: compared(runs).ratios for key, runs in kinds.items()}


def _waits(document: Document) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in document["waits"]:
        found.setdefault(run["preset"], []).extend(run["shares"])
    return found


def tables(document: Document) -> list[TextTable]:
    """Whatever was measured, and the goals."""
    found = [
        _turns_table(document["turns"]),
        *(_inside_table(run) for run in document["inside"]),
        _waits_table(document),
        _checkpoints_table(document["checkpoints"]),
        _resume_table(document["resume"]),
    ]
    if document["gpu"]:
        found.append(_gpu_table(document["gpu"]))
    return [table for table in (*found, _goal_table(document["goals"])) if table.rows]


def _turns_table(runs: Rows) -> TextTable:
    rows = []
    for (preset, arms, procs, gpus, keeps), same in _kinds(runs).items():
        found = compared(same)
        low, high = interval(found.ratios)
        what = [f"{preset}: {arms[0]} over {arms[1]}"]
        what += [f"{procs} processes"] if procs > 1 else []
        what += ["GPU"] if gpus else []
        what += [] if keeps else ["memory as it is"]
        rows.append(
            (
                ", ".join(what),
                f"{1000 * found.steps[0]:.1f}, {1000 * found.steps[1]:.1f}",
                f"{median(found.ratios):+.2%}",
                f"{low:+.2%} to {high:+.2%}",
                _quartiles(found.ratios),
                ", ".join(f"{each:+.2%}" for each in found.rounds),
                f"{found.quick:+.2%}",
                f"{found.whole:+.2%}",
                f"{found.cpu:+.2%}",
                f"{found.faults[0]:.0f}, {found.faults[1]:.0f}",
                str(len(found.ratios)),
            )
        )
    header = (
        *("arms", "ms a step (medians)", "overhead", "95 %", "middle half of the pairs", "rounds"),
        *("fastest quarter", "all blocks", "CPU time", "pages a step", "pairs"),
    )
    return TextTable("Steps in turns", header, rows)


def _quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    first, _, third = quantiles(values, n=4, method="inclusive")
    return f"{first:+.2%} to {third:+.2%}"


def _inside_table(run: Mapping[str, Any]) -> TextTable:
    parts, step = run["parts"], run["step_s"]
    rest = step - sum(parts[name] for name in (*ANY_LOOP, *OWN))
    own = [(name, parts[name]) for name in OWN]
    listed = [
        *((name, parts[name]) for name in ANY_LOOP),
        *sorted([*own, ("between all these", rest)], key=lambda part: -part[1]),
        ("all that is the trainer's own", step - sum(parts[name] for name in ANY_LOOP)),
        *((f"of a line of figures: {name}", parts[name]) for name in OF_A_LINE),
    ]
    rows = [(name, f"{1000 * s:.3f}", f"{s / step:.3%}") for name, s in listed]
    title = f"{run['preset']}: a step of {1000 * step:.1f} ms from inside, {run['steps']} steps"
    return TextTable(title, ("part", "ms a step", "share of the step"), rows)


def _waits_table(document: Document) -> TextTable:
    rows = []
    for preset, shares in _waits(document).items():
        runs = [run for run in document["waits"] if run["preset"] == preset]
        rows.append(
            (
                preset,
                str(runs[0]["workers"]),
                f"{median(shares):.2%}",
                f"{min(shares):.2%} to {max(shares):.2%}",
                f"{len(shares)} of {len(runs)} runs",
            )
        )
    header = ("preset", "workers", "share of the time", "lowest to highest", "lines")
    return TextTable("Waiting for data, without the first line of each run", header, rows)


def _checkpoints_table(runs: Rows) -> TextTable:
    rows = []
    for run in runs:
        later, usual = median(run["stall_s"][1:]), median(run["usual_stall_s"])
        rows.append(
            (
                run["preset"] + (", GPU" if run["gpus"] else ""),
                f"{run['bytes'] / 1e6:.1f}",
                f"{1000 * run['stall_s'][0]:.1f}",
                _ms(run["stall_s"][1:]),
                _ms(run["usual_stall_s"]),
                f"{later / usual:.2f}",
                _ms(run["commit_s"]),
                _ms(run["restore_s"]),
                _ms(run["usual_restore_s"]),
            )
        )
    header = (
        *("preset", "MB", "first stall", "later stalls", "torch.save", "later over torch.save"),
        *("to the commit", "restore", "torch.load"),
    )
    return TextTable("Checkpoints, ms: medians (lowest-highest)", header, rows)


def _ms(seconds: Sequence[float]) -> str:
    low, middle, high = (1000 * f(seconds) for f in (min, median, max))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def _resume_table(runs: Rows) -> TextTable:
    rows = [
        (
            run["preset"],
            str(run["steps"]),
            ", ".join(map(str, run["stopped"])),
            str(run["tensors"]),
            str(run["differ"]),
            str(run["equal"]).lower(),
        )
        for run in runs
    ]
    header = ("preset", "steps", "stopped after", "tensors", "of them differ", "equal")
    return TextTable("Stopped by SIGTERM and gone on, against one go: bits", header, rows)


def _gpu_table(gpu: Mapping[str, Any]) -> TextTable:
    rows = [
        (
            row["precision"],
            "yes" if row["compiled"] else "no",
            str(row["batch"]),
            f"{row['volumes_per_s']:.2f}",
            f"{1000 * row['step_s']:.0f}",
            f"{row['wait_share']:.2%}",
            f"{row['mfu']:.1%}" if row["mfu"] else "",
            f"{row['memory_mib'] / 1024:.1f}",
            ", ".join(f"{1000 * stall:.0f}" for stall in row["stalls_s"]),
        )
        for row in gpu["rows"]
    ]
    header = (
        *("precision", "compiled", "volumes", "volumes/s", "ms a step", "waiting for data", "MFU"),
        *("peak GiB", "stalls of checkpoints, ms"),
    )
    return TextTable(f"{gpu['preset']} from stores on {gpu['device']}", header, rows)


def _goal_table(goals: Rows) -> TextTable:
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
    return TextTable("Goals", ("goal", "found", "bound", "", "on"), rows)


def figures(document: Document) -> str:
    """Machine, all tables, and what falls short, as Markdown."""
    computer = document["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in computer["versions"].items())
    lines = [
        f"{computer['cores']} cores, {computer['threads']} threads; load before the first run "
        f"{computer['load']:.1f}; Python {computer['python']}, {versions}.",
        "",
        *(table.markdown() for table in tables(document)),
        *_shortcomings(document),
    ]
    return "\n".join(lines)


def _shortcomings(document: Document) -> list[str]:
    found = [
        f"{each['name']} ({each['worst']}): {each['ratio']:.3g}, the goal is {each['goal']}"
        for each in document["goals"]
        if not each["met"]
    ]
    for preset, ratios in _overheads(document).items():
        low, high = interval(ratios)
        if low <= OVERHEAD_GOAL < high:
            found.append(
                f"overhead of {preset}: with {low:+.2%} to {high:+.2%} the machine was too "
                "unsteady, or the rounds too few, to tell whether the goal is met"
            )
    found += [
        f"failed: {each['what']}: {each['why'].splitlines()[-1]}" for each in document["failures"]
    ]
    found += [f"not measured for want of time: {name}" for name in document["left_out"]]
    if document["gpu"] is None:
        found.append("not measured: a GPU, there was none")
    if not found:
        return ["Nothing falls short."]
    return ["What falls short, or is missing:", "", *(f"- {each}" for each in found)]
