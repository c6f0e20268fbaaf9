"""The goals of reading, computed from the figures of one run.

A ratio says how many times longer the other arm takes, of medians of the same boxes in the same
run; or, for bytes, what share prect takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prect.benchmark.boxes import ALIGNED

OWN_ARM = "prect"
WINDOW_ARM = "prect-window"
VIEW_NAMES = ("64^3", "96^3", "v2 region")
START_SECONDS = 2.0


@dataclass(frozen=True)
class Goal:
    """A figure and its bound."""

    name: str
    ratio: float | None
    """None when it was not measured."""
    goal: str
    """The bound in words."""
    met: bool | None
    """None when it was not measured."""
    detail: str
    """The two figures, or why there are none."""
    worst: str = ""
    """The volume with the worst ratio, and that."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


@dataclass(frozen=True)
class Against:
    """Read times of prect and of another arm."""

    arm: str
    state: str
    """``warm`` or ``cold``."""
    least: Mapping[str, float]
    """Least ratio, by view."""


_TIMES = (
    Against("monai-persistent", "warm", {"v2 region": 6.0, ALIGNED: 12.0}),
    Against("monai-persistent", "cold", {"v2 region": 5.0}),
    Against("tensorstore", "warm", dict.fromkeys(VIEW_NAMES, 1.3)),
    Against("tensorstore", "cold", dict.fromkeys(VIEW_NAMES, 1.0)),
    Against("zarr-python", "warm", {"64^3": 4.0, "96^3": 4.0}),
    Against("zarr-python", "cold", {"64^3": 4.0, "96^3": 4.0}),
    Against("blosc2", "warm", dict.fromkeys(VIEW_NAMES, 1.0)),
    Against("blosc2", "cold", {"64^3": 4.0, "96^3": 2.5, "v2 region": 1.3}),
    Against("mlarray", "warm", dict.fromkeys(VIEW_NAMES, 1.0)),
    Against("mlarray", "cold", {"64^3": 4.0, "96^3": 2.5, "v2 region": 1.3}),
    Against("decode-limit", "warm", dict.fromkeys((*VIEW_NAMES, ALIGNED), 0.85)),
)
_MOST_DEVICE_BYTES = 6e6


class Figures:
    """The figures of a run by arm.

    Args:
        document: with the ``arms`` and ``volumes`` of the JSON file.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.arms: dict[str, Mapping[str, Any]] = {arm["name"]: arm for arm in document["arms"]}
        self.volumes: Sequence[Mapping[str, Any]] = document["volumes"]

    def reads(self, arm: str, state: str, view: str) -> Mapping[str, Any] | None:
        """The summary of an arm's reads, or None."""
        found = self.arms.get(arm, {}).get("reads", {}).get(state, {}).get(view)
        return found if isinstance(found, Mapping) else None

    def why_not(self, arm: str, state: str) -> str:
        """Why an arm has no figures."""
        if arm not in self.arms:
            return f"{arm} was not part of the run"
        known = self.arms[arm]
        if known["status"] != "measured":
            return f"{arm}: {known['status']}"
        return f"{arm}: {known['not_measured'].get(state, 'no such read')}"

    def bytes(self, arm: str) -> int | None:
        """Bytes on disk of all volumes, or None."""
        known = self.arms.get(arm)
        if known is None or known["status"] != "measured":
            return None
        return int(sum(known["bytes"].values()))


def goals(document: Mapping[str, Any]) -> list[Goal]:
    """Every goal, met or not, and those that could not be measured.

    Args:
        document: as `prect.benchmark.run.run` makes it: ``arms``, ``volumes``, ``start``.
    """
    figures = Figures(document)
    found = [_time_goal(figures, each, view) for each in _TIMES for view in each.least]
    return [*found, *_byte_goals(figures), _device_goal(figures), *_start_goals(document)]


def _time_goal(figures: Figures, against: Against, view: str) -> Goal:
    arm, state, least = against.arm, against.state, against.least[view]
    name, bound = f"{view}, {state}, against {arm}", f">= {least:g}"
    own, other = (figures.reads(each, state, view) for each in (OWN_ARM, arm))
    if own is None or other is None:
        missing = OWN_ARM if own is None else arm
        return Goal(name, None, bound, None, figures.why_not(missing, state))
    ratio = other["p50_ms"] / own["p50_ms"]
    by_volume = {
        volume: other["p50_ms_by_volume"][volume] / ms
        for volume, ms in own["p50_ms_by_volume"].items()
        if volume in other["p50_ms_by_volume"]  # where each read of a volume was dropped it is not
    }
    volume = min(by_volume, key=lambda each: by_volume[each], default=None)
    detail = f"{own['p50_ms']:.2f} ms, {arm} {other['p50_ms']:.2f} ms"
    worst = "" if volume is None else f"{volume}: {by_volume[volume]:.2f}"
    return Goal(name, ratio, bound, ratio >= least, detail, worst)


def _byte_goals(figures: Figures) -> Iterator[Goal]:
    finest = sum(volume["level_bytes"][0] for volume in figures.volumes)
    own = figures.bytes(OWN_ARM), "HU, all levels"
    window = figures.bytes(WINDOW_ARM), "window, all levels"
    level = None if own[0] is None else finest, "HU, level 0"
    yield _bytes_goal(figures, own, "monai-persistent", 1 / 5, "1/5")
    yield _bytes_goal(figures, window, "monai-persistent", 1 / 15, "1/15")
    for other in ("blosc2", "mlarray"):
        # Their files hold one level; what the coarser ones add is told apart.
        yield _bytes_goal(figures, level, other, 1.0, "1")
        yield _bytes_goal(figures, own, other, 1.0, "1")


def _bytes_goal(
    figures: Figures, own: tuple[int | None, str], arm: str, most: float, bound: str
) -> Goal:
    count, what = own
    other = figures.bytes(arm)
    name = f"bytes on disk, {what}, against {arm}"
    if count is None or not other:
        reason = figures.why_not(OWN_ARM if count is None else arm, "bytes")
        return Goal(name, None, f"<= {bound}", None, reason)
    ratio = count / other
    detail = f"{count / 1e6:.1f} MB, {arm} {other / 1e6:.1f} MB"
    return Goal(name, ratio, f"<= {bound}", ratio <= most, detail)


def _device_goal(figures: Figures) -> Goal:
    name, bound = "v2 region, cold, MB read from the device a sample", "<= 6"
    own = figures.reads(OWN_ARM, "cold", "v2 region")
    if own is None or own["device_bytes"] is None:
        return Goal(name, None, bound, None, figures.why_not(OWN_ARM, "cold"))
    other = figures.reads("monai-persistent", "cold", "v2 region")
    told = "" if other is None else f", monai-persistent {other['device_bytes'] / 1e6:.1f} MB"
    megabytes = own["device_bytes"] / 1e6
    met = own["device_bytes"] <= _MOST_DEVICE_BYTES
    return Goal(name, megabytes, bound, met, f"{megabytes:.2f} MB{told}")


def _start_goals(document: Mapping[str, Any]) -> Iterator[Goal]:
    start = document.get("start") or {}
    rows = start.get("rows", 160_000)
    for key, what in (("first", "first batch"), ("resume", "first batch when resumed")):
        name, bound = f"seconds to open {rows:,} volumes and give the {what}", "< 2"
        seconds = start.get(key, {}).get("seconds")
        if seconds is None:
            yield Goal(name, None, bound, None, start.get("reason", "it was left out"))
            continue
        detail = f"manifest {start[key]['open_s']:.2f} s, {start['workers']} workers"
        yield Goal(name, seconds, bound, seconds < START_SECONDS, detail)
