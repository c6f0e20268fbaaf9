"""What a workspace holds of each source of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from prect.manifests.cards import Card, catalogue, generic_card, load_card
from prect.manifests.parquet import read_table
from prect.manifests.sources import read_source_table, usable
from prect.manifests.stores import CACHE_SCHEMA
from prect.workspace import Workspace


@dataclass(frozen=True)
class Holding:
    """One source: what its card expects, and what there is."""

    card: Card
    ingested: bool
    found: int = 0
    """Candidates in the source manifest."""
    usable: int = 0
    """Candidates that build-cache takes."""
    stored: int = 0
    """Usable candidates that have a store."""

    @property
    def as_expected(self) -> bool:
        """Whether as many volumes are usable as the paper or the lists say."""
        return self.card.is_expected(self.usable)


def holdings(workspace: Workspace) -> list[Holding]:
    """Every source of the catalogue in its order, then the data sets that have no card there.

    Raises:
        ManifestError: a manifest is damaged.
        ConfigError: the card of an ingested data set is damaged.
    """
    ingested = workspace.datasets()
    known = [card.name for card in catalogue()]
    cards = [_card_in_force(workspace, card, card.name in ingested) for card in catalogue()]
    cards += [
        _card_in_force(workspace, generic_card(name), True)
        for name in ingested
        if name not in known
    ]
    return [
        _holding(workspace, card) if card.name in ingested else Holding(card, False)
        for card in cards
    ]


def _card_in_force(workspace: Workspace, card: Card, ingested: bool) -> Card:
    """The card that the data set was ingested under, else the one given."""
    path = workspace.card(card.name)
    return load_card(path) if ingested and path.exists() else card


def _holding(workspace: Workspace, card: Card) -> Holding:
    sources = read_source_table(workspace.sources(card.name), ["case", "verdict"])
    cases = sources["case"].filter(pa.array(usable(sources)))
    path = workspace.cache_manifest(card.name)
    stored: set[str] = set()
    if path.exists():
        stored = set(read_table(path, CACHE_SCHEMA, ["case"])["case"].to_pylist())
    return Holding(
        card=card,
        ingested=True,
        found=sources.num_rows,
        usable=len(cases),
        stored=len(stored.intersection(cases.to_pylist())),
    )
