"""What there is to do about a broken store, and what became of it."""

from __future__ import annotations

from enum import StrEnum

from prect.cache.checks.inventory import Listing
from prect.cache.checks.verify import Broken, Kind


class Remedy(StrEnum):
    """What there is to do about a store with faults."""

    REBUILD = "rebuild"
    SET_ASIDE = "set aside"
    """There is nothing to build it from: it gets a hidden name, and its volume is quarantined."""
    TIDY = "tidy"
    """It is whole but for files that do not belong: these are put aside."""
    ROW = "row"
    """It is whole: its row is written."""
    LEAVE = "leave"


class Result(StrEnum):
    """What became of a store with faults."""

    REPAIRED = "repaired"
    SET_ASIDE = "set aside"
    LEFT = "left as it is"


def remedy(broken: Broken, listing: Listing) -> Remedy:
    """What a repair tries first."""
    if broken.kind in (Kind.OTHER_VERSION, Kind.UNCHECKED):
        return Remedy.LEAVE
    if broken.kind is Kind.DRIFTED:
        return Remedy.ROW
    if broken.codes == {"store.unexpected_file"}:
        # What is found through a link is not the workspace's.
        return Remedy.LEAVE if broken.store.is_symlink() else Remedy.TIDY
    origins = listing.expected.origins
    if origins is not None and broken.case in origins:
        return Remedy.REBUILD
    # The disk may give the store tomorrow, and nothing else holds the volume.
    return Remedy.LEAVE if "store.unreadable" in broken.codes else Remedy.SET_ASIDE
