"""What ``build-cache --plan`` shows: the estimate of a build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from prect.cli.console import (
    console,
    emit_json,
    graceful,
    human_bytes,
    interruptible,
    progress_bar,
)

if TYPE_CHECKING:
    from prect.cache.forecast.amounts import Amounts
    from prect.cache.forecast.estimate import Estimate
    from prect.cache.forecast.ratio import Interval
    from prect.cache.plan import Plan


def plan_build(
    plans: list[Plan],
    *,
    workers: int,
    scheduler: str | None,
    sample: int | None,
    as_json: bool,
) -> None:
    """Build a sample on trial and show what the whole build takes.

    Args:
        plans: one a data set, at least one.
        workers: local processes of the build; of no account with a scheduler.
        scheduler: address of a Dask scheduler to use instead.
        sample: volumes to build on trial; 1 %, at least 20, when left out.
        as_json: write one JSON object instead.
    """
    from contextlib import ExitStack

    from prect.cache.forecast.estimate import estimate, sample_size
    from prect.cluster import cluster

    todo = [len(plan.todo) for plan in plans if plan.todo]
    trials = min(sum(todo), sample or sample_size(sum(todo), len(todo)))
    with (
        interruptible("nothing was left behind"),
        graceful("what is in flight") as stop,
        ExitStack() as stack,
    ):
        client = None
        if trials:
            client = stack.enter_context(cluster(min(workers, trials), scheduler))
        progress = stack.enter_context(progress_bar("volume", quiet=as_json or not trials))
        task = progress.add_task("building a sample on trial", total=trials)
        result = estimate(
            plans,
            client,
            workers=None if scheduler else workers,
            sample=sample,
            on_trial=lambda: progress.advance(task),
            stop=stop,
        )
    show_estimate(result, as_json)


def show_estimate(estimate: Estimate, as_json: bool) -> None:
    """Show an estimate on standard error, or write it to standard output as one JSON object."""
    if as_json:
        emit_json(_document(estimate))
        return
    if not estimate.total.volumes:
        console.print("nothing to do: every usable volume is stored with this profile, or failed")
        return
    console.print(_table(estimate))
    for line in (_disk(estimate), _replaced(estimate), _time(estimate), *_memory(estimate)):
        console.print(line)
    for line in _remarks(estimate):
        console.print(line)


def _document(estimate: Estimate) -> dict[str, Any]:
    memory, total = estimate.memory, estimate.total
    return {
        "estimate": True,
        "profile": {
            "name": estimate.profile,
            "digest": estimate.profile_digest,
            "intensity": estimate.intensity,
        },
        "sample": {
            "volumes": total.sampled,
            "of": total.volumes,
            "seed": estimate.seed,
            "confidence": 0.95,
        },
        "workers": estimate.workers,
        "hours": _range(estimate.hours, 6),
        "core_hours": _range(total.worker_seconds.times(1 / 3600), 6),
        "disk": {"free_bytes": estimate.free_bytes, "fits": estimate.fits},
        "memory": None
        if memory is None
        else {
            "largest_shape": list(memory.shape),
            "worker_bytes": memory.needed,
            "stated_bytes": memory.stated,
            "measured_bytes": memory.measured,
            "measured_per_decoded_byte": memory.per_decoded_byte,
            "machine_bytes": memory.machine,
            "workers_that_fit": memory.workers,
        },
        "datasets": [
            {"dataset": name, **_amounts(amounts)} for name, amounts in estimate.datasets.items()
        ],
        "total": _amounts(total),
    }


def _amounts(amounts: Amounts) -> dict[str, Any]:
    return {
        "volumes": amounts.volumes,
        "sampled": amounts.sampled,
        "borrowed": amounts.borrowed,
        "sample_failures": amounts.failures,
        "quarantined": _range(amounts.quarantined, 1),
        "source_bytes": amounts.source_bytes,
        "stored_bytes": _range(amounts.stored_bytes),
        "float32_bytes": round(amounts.float32_bytes),
        "float32_over_stored": _times_smaller(amounts),
        "worker_seconds": _range(amounts.worker_seconds, 3),
    }


def _range(interval: Interval, digits: int | None = None) -> dict[str, float | None]:
    ends = {"estimate": interval.value, "low": interval.low, "high": interval.high}
    return {name: None if end is None else round(end, digits) for name, end in ends.items()}


def _times_smaller(amounts: Amounts) -> float | None:
    stored = amounts.stored_bytes.value
    return amounts.float32_bytes / stored if stored else None


def _table(estimate: Estimate) -> Table:
    total = estimate.total
    title = (
        f"estimate, profile {estimate.profile}, {estimate.intensity}: {total.sampled} of "
        f"{total.volumes} volumes were built on trial"
    )
    table = Table(title=Text(title), title_justify="left", show_footer=len(estimate.datasets) > 1)
    rows = [("total", total), *estimate.datasets.items()]
    cells = [_cells(name, amounts, estimate.workers) for name, amounts in rows]
    headers = ("data set", "volumes", "tried", "failing", "from", "stored", "float32", "time")
    for header, footer in zip(headers, cells[0], strict=True):
        left = header == "data set"
        table.add_column(header, footer, justify="left" if left else "right", no_wrap=not left)
    for row in cells[1:]:
        table.add_row(*row)
    return table


def _cells(name: str, amounts: Amounts, workers: int) -> tuple[Text, ...]:
    failing = amounts.quarantined.value / amounts.volumes if amounts.volumes else 0.0
    hours = amounts.worker_seconds.value / 3600 / workers
    texts = (
        name,
        str(amounts.volumes),
        str(amounts.sampled),
        f"{failing:.1%}",
        human_bytes(amounts.source_bytes),
        human_bytes(amounts.stored_bytes.value),
        human_bytes(amounts.float32_bytes),
        _duration(hours),
    )
    return tuple(Text(text) for text in texts)


def _disk(estimate: Estimate) -> str:
    stored, free = estimate.total.stored_bytes, human_bytes(estimate.free_bytes)
    verdict = {
        "yes": f"{free} are free, it fits",
        "no": f"only {free} are free: it does not fit",
        "unsure": f"{free} are free: it may not fit",
    }
    size = human_bytes(stored.value) + _ends(stored, human_bytes)
    return f"disk: about {size}; {verdict[estimate.fits]}"


def _replaced(estimate: Estimate) -> str:
    total, ratio = estimate.total, _times_smaller(estimate.total)
    size = human_bytes(total.float32_bytes)
    compared = "" if ratio is None else f", {ratio:.1f} times as much"
    return f"it replaces: a float32 cache of the whole fields of view, {size}{compared}"


def _time(estimate: Estimate) -> str:
    hours, workers = estimate.hours, estimate.workers
    core_hours = estimate.total.worker_seconds.value / 3600
    return (
        f"time: about {_duration(hours.value)}{_ends(hours, _duration)} with {workers} "
        f"{'worker' if workers == 1 else 'workers'}; {core_hours:.3g} core-hours"
    )


def _memory(estimate: Estimate) -> list[str]:
    memory = estimate.memory
    if memory is None:
        return []
    shape = " x ".join(map(str, memory.shape))
    measured = "none of the sample was stored, so nothing is"
    if memory.measured is not None:
        measured = human_bytes(memory.measured)
    lines = [
        f"memory: {human_bytes(memory.needed)} a worker for the largest volume, {shape} "
        f"(bound {human_bytes(memory.stated)}, measured {measured}); a machine of "
        f"{human_bytes(memory.machine)} holds {memory.workers} such workers"
    ]
    if memory.workers < 1:
        lines.append("warning: the largest volume does not fit into memory")
    return lines


def _remarks(estimate: Estimate) -> list[str]:
    total = estimate.total
    remarks = [
        f"{name}: only {amounts.sampled} of it tried, its ratios are those of the others"
        for name, amounts in estimate.datasets.items()
        if amounts.borrowed
    ]
    for code, count in total.failures.items():
        remarks.append(f"failed in the sample: {count} with {code}")
    if total.failures:
        expected = total.quarantined
        remarks.append(
            f"to be quarantined: about {expected.value:.0f}{_ends(expected, lambda n: f'{n:.0f}')}"
        )
    if total.stored_bytes.low is None:
        remarks.append("one volume says nothing of the spread; try more with --sample")
    remarks.append(
        "ranges hold in about 95 of 100 samples; slower disks and caches that are already warm are "
        "not in them"
    )
    return remarks


def _ends(interval: Interval, show: Any) -> str:
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return ""
    return f" ({show(interval.low)} to {show(interval.high)})"


def _duration(hours: float) -> str:
    for unit, length in (("s", 1 / 3600), ("min", 1 / 60), ("h", 1.0)):
        if hours < 90 * length or unit == "h":
            return f"{hours / length:.{0 if hours >= 10 * length else 1}f} {unit}"
    raise AssertionError("unreachable")
