"""Recipes: what of a volume is shown, and how it is cut, as TOML files beside this module.

A recipe sets the sections ``[view]``, ``[crops]`` and ``[augment]`` of a configuration whole.
``recipe = "v2-chest"`` at the top of a configuration puts a recipe under the settings that
follow; ``data.recipes`` gives single data sets the view of another recipe. Files of a released
recipe are not changed: a run goes on only with the samples that it began with.
"""

from __future__ import annotations

from functools import lru_cache

from prect.train.sections import AugmentConfig, CropConfig, Section, ViewConfig
from prect.train.shipped import read_shipped, shipped


class Recipe(Section):
    """A way to show volumes."""

    title: str
    """One line that says where it comes from."""
    view: ViewConfig
    crops: CropConfig
    augment: AugmentConfig = AugmentConfig()


def recipes() -> list[str]:
    """Names of the recipes that come with prect."""
    return shipped("recipe")


@lru_cache
def recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ConfigError: there is none of this name; names those that there are.
    """
    return Recipe.model_validate(read_shipped("recipe", name))
