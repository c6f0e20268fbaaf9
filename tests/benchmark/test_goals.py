"""Goals from known figures: ratios, verdicts, and what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from prect.benchmark.goals import Goal, goals
from tests.benchmark.documents import document


def by_name(of: dict[str, Any]) -> dict[str, Goal]:
    return {goal.name: goal for goal in goals(of)}


@pytest.mark.parametrize(
    ("name", "ratio", "bound", "met"),
    [
        ("v2 region, warm, against monai-persistent", 10.0, ">= 6", True),
        ("v2 aligned, warm, against monai-persistent", 10.0, ">= 12", False),
        ("v2 region, cold, against monai-persistent", 10.0, ">= 5", True),
        ("96^3, warm, against tensorstore", 1.25, ">= 1.3", False),
        ("96^3, cold, against tensorstore", 1.25, ">= 1", True),
        ("64^3, warm, against zarr-python", 4.0, ">= 4", True),
        ("64^3, cold, against blosc2", 1.5, ">= 4", False),
        ("v2 region, cold, against blosc2", 1.5, ">= 1.3", True),
        ("v2 region, warm, against mlarray", 0.95, ">= 1", False),
        ("64^3, warm, against decode-limit", 0.9, ">= 0.85", True),
        ("bytes on disk, HU, all levels, against monai-persistent", 12 / 64, "<= 1/5", True),
        ("bytes on disk, window, all levels, against monai-persistent", 1 / 16, "<= 1/15", True),
        ("bytes on disk, HU, level 0, against blosc2", 1.1, "<= 1", False),
        ("bytes on disk, HU, level 0, against mlarray", 1.0, "<= 1", True),
        ("v2 region, cold, MB read from the device a sample", 6.0, "<= 6", True),
        ("seconds to open 160,000 volumes and give the first batch", 1.5, "< 2", True),
        (
            "seconds to open 160,000 volumes and give the first batch when resumed",
            2.5,
            "< 2",
            False,
        ),
    ],
)
def test_a_goal_of_known_figures(name: str, ratio: float, bound: str, met: bool) -> None:
    goal = by_name(document())[name]
    assert goal.ratio == pytest.approx(ratio)
    assert goal.goal == bound
    assert goal.met is met


def test_the_worst_volume_is_named() -> None:
    goal = by_name(document())["v2 region, warm, against monai-persistent"]
    # prect takes twice as long on the second volume, PersistentDataset does not.
    assert goal.worst == "volume1: 5.00"


def test_the_compiled_limit_has_no_goal() -> None:
    assert not [name for name in by_name(document()) if "decode-limit-compiled" in name]


def test_a_volume_without_a_cold_read_left_has_no_ratio() -> None:
    told = document()
    for arm in told["arms"]:
        if arm["name"] == "blosc2":
            del arm["reads"]["cold"]["64^3"]["p50_ms_by_volume"]["volume0"]
    assert by_name(told)["64^3, cold, against blosc2"].worst == "volume1: 1.50"


def test_a_goal_whose_arm_is_missing_is_not_met_and_not_missed() -> None:
    told = document()
    for arm in told["arms"]:
        if arm["name"] == "tensorstore":
            arm |= {"status": "not installed: pip install 'prect[bench]'", "reads": {}}
    goal = by_name(told)["96^3, warm, against tensorstore"]
    assert (goal.ratio, goal.met) == (None, None)
    assert goal.detail == "tensorstore: not installed: pip install 'prect[bench]'"


def test_a_state_that_was_not_measured_says_why() -> None:
    told = document()
    for arm in told["arms"]:
        if arm["reads"].pop("cold", None):
            arm["not_measured"]["cold"] = "the file system lies in memory"
    goal = by_name(told)["v2 region, cold, MB read from the device a sample"]
    assert (goal.met, goal.detail) == (None, "prect: the file system lies in memory")


def test_a_start_that_failed_says_why() -> None:
    told = document() | {"start": {"rows": 2000, "reason": "no memory"}}
    goal = by_name(told)["seconds to open 2,000 volumes and give the first batch"]
    assert (goal.met, goal.detail) == (None, "no memory")
