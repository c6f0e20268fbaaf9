"""The settings that come with prect as TOML files: presets and recipes."""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from typing import Any, Literal

from prect.errors import ConfigError

Kind = Literal["preset", "recipe"]


def shipped(kind: Kind) -> list[str]:
    """Names of the presets or recipes that come with prect."""
    folder = resources.files("prect.train") / f"{kind}s"
    files = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def read_shipped(kind: Kind, name: str) -> dict[str, Any]:
    """The tables of a preset or recipe.

    Raises:
        ConfigError: there is none of this name; names those that there are.
    """
    known = shipped(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{kind} {name!r} does not exist; there are {', '.join(known)}{hint}")
    folder = resources.files("prect.train") / f"{kind}s"
    return tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
