"""Corrections of values that a card knows of, for sets whose files do not hold HU."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from prect.errors import ConfigError, VolumeError
from prect.ingest.volume import Volume
from prect.manifests.cards import Card, RescaleTable

RULES_VERSION = 1
"""Raised when a reader or a check says another thing of the same file: all is judged again."""
Line = tuple[float, float]
"""Slope and intercept."""


def rules_digest(card: Card, root: Path) -> str:
    """Digest of all that a judgement depends on besides the files: the card, and its table.

    Raises:
        ConfigError: the table is missing.
    """
    digest = hashlib.blake2b(f"{RULES_VERSION}\x1f{card.digest_of_rules}".encode(), digest_size=8)
    if isinstance(card.rescale, RescaleTable):
        digest.update(_bytes(root / card.rescale.table))
    return digest.hexdigest()


class Rescale:
    """Slope and intercept of each file of a data set: one for all, or a table of them.

    Args:
        card: may name a correction.
        root: folder that the table's path is relative to.

    Raises:
        ConfigError: the table is missing or lacks a column.
    """

    def __init__(self, card: Card, root: Path) -> None:
        self.rule = card.rescale
        self._table: dict[str, Line] = {}
        if isinstance(self.rule, RescaleTable):
            self._table = _read(root / self.rule.table, self.rule)

    def of(self, source: str) -> Line | None:
        """Slope and intercept for a file; ``None`` when the card names no correction.

        Raises:
            VolumeError: ``card.rescale_missing``, the table has no row for the file.
        """
        if self.rule is None:
            return None
        if not isinstance(self.rule, RescaleTable):
            return self.rule.slope, self.rule.intercept
        name = Path(source).name
        for key in (source, name, name.partition(".")[0]):
            if key in self._table:
                return self._table[key]
        raise VolumeError(
            "card.rescale_missing", f"the card's table {self.rule.table} has no row for this file"
        )


def rescaled(volume: Volume, slope: float, intercept: float) -> Volume:
    """The volume with ``slope * value + intercept``, rounded and clipped to int16."""
    if (slope, intercept) == (1.0, 0.0):
        return volume
    voxels = np.empty_like(volume.voxels)
    for k, plane in enumerate(volume.voxels):  # slice by slice, so that no float copy is held
        values = np.rint(plane.astype(np.float64) * slope + intercept)
        voxels[k] = np.clip(values, -32768, 32767)
    return replace(volume, voxels=voxels)


def _read(path: Path, rule: RescaleTable) -> dict[str, Line]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = {rule.key, rule.slope, rule.intercept} - set(rows.fieldnames or ())
            if missing:
                raise ConfigError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            return {
                row[rule.key]: (float(row[rule.slope]), float(row[rule.intercept])) for row in rows
            }
    except OSError as error:
        raise ConfigError(f"the card's table {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} holds a slope or intercept that is no number: {error}"
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the card's table {path} cannot be read: {error.strerror}") from error
