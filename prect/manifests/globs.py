"""Patterns of paths that hold wherever the search for files begins.

A pattern is matched against the last parts of a posix path: ``imagesTr/*.nii.gz`` matches
``imagesTr/a.nii.gz`` and ``x/imagesTr/a.nii.gz``, but not ``imagesTr/x/a.nii.gz``. Inside a
part, ``*`` stands for any characters, ``?`` for one, ``[abc]`` for one of a set and ``[!abc]``
for one outside it.
"""

from __future__ import annotations

import re
from functools import lru_cache

_TOKEN = re.compile(r"\[!?[^\]/]+\]|.", re.DOTALL)


def check_glob(pattern: str) -> str:
    """Return the pattern if it is one.

    Raises:
        ValueError: the pattern is absolute, leads upwards, or has brackets without a set.
    """
    parts = pattern.split("/")
    if not all(parts) or not {"..", ".", "**"}.isdisjoint(parts) or "\\" in pattern:
        raise ValueError(
            f"{pattern!r} is no pattern: write the last parts of the path, joined by '/', with *, "
            "? and [abc] inside a part; leading folders need not be named, so '**' is not needed"
        )
    try:
        re.compile(_regex_of(pattern))
    except re.error:
        raise ValueError(f"{pattern!r} is no pattern: its brackets hold no set") from None
    return pattern


def matches(globs: tuple[str, ...], path: str) -> bool:
    """Whether one of the patterns matches the path."""
    return _compiled(globs, r"\Z").search(path) is not None


def matches_on_the_way(globs: tuple[str, ...], path: str) -> bool:
    """Whether one of the patterns matches the path or a folder on its way, in either case.

    A pattern that begins with ``*`` is held against the path alone: folders are called
    ``Medical_Segmentation_Decathlon`` and the like.
    """
    of_folders = tuple(glob for glob in globs if not glob.startswith("*"))
    return bool(
        _compiled(of_folders, r"(?:/|\Z)", re.IGNORECASE).search(path)
        or _compiled(globs, r"\Z", re.IGNORECASE).search(path)
    )


def _regex_of(pattern: str) -> str:
    return _TOKEN.sub(_translated, pattern)


def _translated(token: re.Match[str]) -> str:
    text = token[0]
    if len(text) == 1:
        return {"*": "[^/]*", "?": "[^/]"}.get(text) or re.escape(text)
    negated = text.startswith("[!")
    inside = text[2 if negated else 1 : -1].replace("[", r"\[").replace("^", r"\^")
    return f"[^/{inside}]" if negated else f"[{inside}]"


@lru_cache(maxsize=256)
def _compiled(globs: tuple[str, ...], end: str, flags: int = 0) -> re.Pattern[str]:
    choices = "|".join(map(_regex_of, globs)) or "(?!)"
    return re.compile(f"(?:^|/)(?:{choices}){end}", flags)
