"""Files of a run that are written line by line, and those that are written whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LineLog:
    """A ``.jsonl`` file: one object a line, each with a ``step``; steps count from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append one line; a reader sees it at once.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        line = json.dumps({"step": step, **figures}, allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                written = file.write(line.encode())
                if written < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise

    def read(self, step: float = float("inf")) -> list[dict[str, Any]]:
        """The objects of all lines up to a step; what a crash cut off is left out."""
        return [json.loads(line) for line in self._lines(step)]

    def newest(self, key: str, step: float = float("inf")) -> dict[str, Any]:
        """The last object up to a step that has a key, without its step; empty if none has."""
        found = [figures for figures in self.read(step) if key in figures]
        return {k: v for k, v in found[-1].items() if k != "step"} if found else {}

    def rewind(self, step: int) -> None:
        """Drop lines after ``step``: a resumed run writes them again."""
        if not self.path.exists():
            return
        kept = self._lines(step)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def _lines(self, step: float) -> list[str]:
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").splitlines()
        return [line for line in lines if _step(line) <= min(step, 2.0**53)]


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A line cut off by a crash belongs to no step.
        return float("inf")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
