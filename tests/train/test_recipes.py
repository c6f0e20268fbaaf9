"""The recipes say what was published, and every network can be given their crops."""

from __future__ import annotations

import numpy as np
import pytest

from prect.errors import ConfigError
from prect.train.config import load_config
from prect.train.crops import base_starts, random_start_range
from prect.train.recipes import recipe, recipes

BODY = (-175.0, 250.0)
LUNG = (-1000.0, 500.0)


@pytest.mark.parametrize("name", recipes())
def test_recipe_makes_a_valid_run(name: str) -> None:
    config = load_config("voco-b", overrides=[f"recipe={name}"])
    shown = recipe(name)
    assert (config.view, config.crops, config.augment) == (shown.view, shown.crops, shown.augment)
    assert shown.title


@pytest.mark.parametrize(
    ("name", "kind", "grid", "spacing", "window"),
    [
        ("v1", "whole", (384, 384, 96), None, BODY),
        ("v2-abdomen", "box", (192, 192, 64), (1.5, 1.5, 1.5), BODY),
        ("v2-chest", "box", (192, 192, 64), (1.25, 1.25, 5.0), LUNG),
        ("v2-global", "whole", (192, 192, 64), None, BODY),
        ("patch", "box", (96, 96, 96), (1.5, 1.5, 1.5), BODY),
        ("patches", "box", (96, 96, 96), (1.5, 1.5, 1.5), BODY),
    ],
)
def test_views_are_those_that_were_published(
    name: str, kind: str, grid: object, spacing: object, window: object
) -> None:
    view = recipe(name).view
    assert (view.kind, view.grid, view.spacing, view.window) == (kind, grid, spacing, window)
    assert not view.align
    assert (view.patches, view.foreground > 0) == ((4, True) if name == "patches" else (1, False))


@pytest.mark.parametrize(
    ("name", "bases", "size", "shown", "centres", "shift"),
    [
        ("v1", 16, 96, 64, (48, 336), 0.1),
        ("v2-abdomen", 9, 64, 64, (32, 160), 0.5),
        ("v2-chest", 9, 64, 64, (32, 160), 0.5),
        ("v2-global", 9, 64, 64, (32, 160), 0.5),
    ],
)
def test_crops_are_those_that_were_published(
    name: str, bases: int, size: int, shown: int, centres: tuple[int, int], shift: float
) -> None:
    how = recipe(name)
    crops, grid = how.crops, how.view.grid
    assert (crops.bases, crops.random) == (bases, 2)
    assert (crops.size, crops.shown) == ((size,) * 3, (shown,) * 3)
    first, last = random_start_range(crops, grid)
    half = size // 2
    assert (first + half).tolist() == [centres[0], centres[0], half]
    assert (last + half).tolist() == [centres[1], centres[1], half]
    # The bases tile the view.
    ends = base_starts(crops, grid).max(axis=0) + np.array(crops.size)
    assert (base_starts(crops, grid).min(axis=0).tolist(), ends.tolist()) == ([0, 0, 0], [*grid])
    augment = how.augment
    assert (augment.flip, augment.rotate, augment.shift, augment.shift_range) == (
        0.2,
        0.2,
        shift,
        0.1,
    )


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"there are patch, patches, v1.*did you mean v2-global"):
        recipe("v2-globl")
