"""Whether one series holds several acquisitions of the same place, whose slices interleave.

Slices at one position are told apart by their pixels; here it is about those that lie
between each other. Mixed into one volume they would alternate between the acquisitions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prect.ingest.findings import Finding, failed, passed
from prect.ingest.readers.dicom.headers import Slice
from prect.manifests.limits import Limits

_MOST_OF_THE_SMALLER = 0.5
"""Parts that overlap by more than this share of the shorter one do not follow each other."""
_SMALL_GAP = 0.55
"""A gap is small below this share of the upper quartile of the gaps. It lies above one half,
which is what every third slice missing and a third of a gap between two stacks have alike."""
_LEAST_RUNS = 4
_LEAST_SHARE_OF_RUNS = 0.1
"""Runs of small gaps, as a share of all gaps, from which stacks interleave. A protocol that
changes its gap on the way has one or two."""


def check_phases(
    slices: Sequence[Slice],
    level: NDArray[np.intp],
    levels: NDArray[np.float64],
    limits: Limits,
) -> Finding | None:
    """Whether numbers in the headers divide the slices into parts that cover the same place.

    The slices are divided by acquisition number and temporal position and, apart from that,
    by how many slices below have the same instance number. A part counts from
    ``min_voxels`` positions on.

    Args:
        slices: (n,) of one volume, in the order of their positions.
        level: (n,) index of each slice's position in ``levels``.
        levels: (m,) the different positions along the normal, millimetres, ascending.
        limits: `Limits` in force.

    Returns:
        The failed check; ``None`` when nothing is found.
    """
    where = level.tolist()
    acquisitions = [(part.acquisition, part.temporal_position) for part in slices]
    repeats = _places_below([part.instance_number for part in slices], where)
    least = max(limits.min_voxels, 2)
    for keys, what in (
        (acquisitions, "acquisition number or temporal position"),
        (repeats, "instance number, which repeats"),
    ):
        counts = _overlapping(_parts(keys, where), levels, least)
        if counts is not None:
            first, second = counts
            measured = f"parts of {first} and {second} slices"
            reason = (
                f"{measured} that differ in {what} cover the same place: several phases or "
                "acquisitions in one series"
            )
            return failed("dicom.several_phases", reason, measured, "one acquisition a place")
    return None


def _parts(keys: Iterable[Hashable], level: Sequence[int]) -> list[list[int]]:
    """The different positions of each part, ascending."""
    parts: dict[Hashable, set[int]] = defaultdict(set)
    for key, place in zip(keys, level, strict=True):
        parts[key].add(place)
    return [sorted(part) for part in parts.values()]


def _places_below(numbers: Sequence[int | None], level: Sequence[int]) -> list[int]:
    """For each slice, at how many lower positions its number stands; 0 without a number."""
    seen: dict[int, list[int]] = defaultdict(list)
    below = []
    for number, place in zip(numbers, level, strict=True):
        if number is None:
            below.append(0)
            continue
        places = seen[number]
        if not places or places[-1] != place:
            places.append(place)
        below.append(len(places) - 1)
    return below


def _overlapping(
    parts: Sequence[Sequence[int]], levels: NDArray[np.float64], least: int
) -> tuple[int, int] | None:
    """Sizes of the first two parts that overlap over most of the shorter one."""
    large = [part for part in parts if len(part) >= least]
    for one, other in combinations(large, 2):
        low = max(levels[one[0]], levels[other[0]])
        high = min(levels[one[-1]], levels[other[-1]])
        shorter = min(levels[p[-1]] - levels[p[0]] for p in (one, other))
        if high - low > _MOST_OF_THE_SMALLER * shorter:
            return len(one), len(other)
    return None


def check_interleaved(gaps: NDArray[np.float64]) -> Finding:
    """Whether small and large gaps alternate, as they do where two stacks interleave.

    Args:
        gaps: (m - 1,) millimetres between neighbours, not even.
    """
    small = gaps < _SMALL_GAP * np.quantile(gaps, 0.75, method="higher")
    runs = int(np.count_nonzero(small & ~np.concatenate([[False], small[:-1]])))
    most = max(_LEAST_RUNS, _LEAST_SHARE_OF_RUNS * len(gaps))
    measured, limit = f"{runs} runs of small gaps", f"fewer than {most:.3g}"
    if runs < most:
        return passed("dicom.interleaved_stacks", measured, limit)
    reason = (
        f"gaps of {gaps.min():.4g} to {gaps.max():.4g} mm alternate ({measured}, {limit} are "
        "usual): the slices of two stacks lie between each other"
    )
    return failed("dicom.interleaved_stacks", reason, measured, limit)
